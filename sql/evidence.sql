-- What goes into an evidence bundle, by name (store/evidence.py).

-- name: evidence_case
SELECT c.call_id, c.channel, c.line, c.basis, c.decision, r.recording_id, COALESCE(r.purposes, '{}') AS purposes
  FROM call c LEFT JOIN recording r USING (call_id) WHERE c.call_id = %(call_id)s;

-- name: evidence_entries
-- Everything of a call; what the tree has of an entry outlives its body.
SELECT e.entry_id, e.call_id, e.recording_id, e.ordinal, e.kind, e.body, e.node, e.at, e.noted_at, l.body_sha256
  FROM ledger e LEFT JOIN ledger_leaf l USING (entry_id)
 WHERE e.call_id = %(call_id)s ORDER BY e.entry_id;

-- name: evidence_places
SELECT entry_id, leaf_index FROM ledger_leaf WHERE entry_id = ANY (%(entries)s);

-- name: evidence_note
INSERT INTO ledger (call_id, recording_id, kind, body, node, at)
VALUES (%(call_id)s, %(recording_id)s, %(kind)s, %(body)s::jsonb, %(node)s, now())
RETURNING entry_id;

-- name: evidence_caller
-- Who may read this may read callers' numbers: `sweep`, and not `api`.
SELECT salt, sealed FROM caller WHERE call_id = %(call_id)s;
