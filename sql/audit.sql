-- The audit (store/audit.py): pages of what there is, what to judge of each, what was found.

-- name: audit_claim
-- No row: it is not due yet, or another node has it in hand.
INSERT INTO audit_run AS run (scope, node, started_at, claimed_until)
VALUES (%(scope)s, %(node)s, now(), now() + %(lease)s * interval '1 second')
ON CONFLICT (scope) DO UPDATE
    SET node = EXCLUDED.node, claimed_until = EXCLUDED.claimed_until, completed_at = NULL,
        started_at = CASE WHEN run.completed_at IS NULL THEN run.started_at ELSE now() END,
        stage = CASE WHEN run.completed_at IS NULL THEN run.stage ELSE '' END,
        position = CASE WHEN run.completed_at IS NULL THEN run.position ELSE '' END,
        counts = CASE WHEN run.completed_at IS NULL THEN run.counts ELSE '{}' END
  WHERE CASE WHEN run.completed_at IS NULL THEN run.node = EXCLUDED.node OR run.claimed_until < now()
             ELSE run.started_at <= now() - %(every)s * interval '1 second' END
RETURNING started_at, stage, position, counts;

-- name: audit_unclaimed
-- A walk that somebody asked for: it begins now, whatever others do.
SELECT now() AS started_at, '' AS stage, '' AS position, '{}'::jsonb AS counts;

-- name: audit_progress
-- No row: somebody else has taken the walk over.
UPDATE audit_run
   SET stage = %(stage)s, position = %(position)s, counts = %(counts)s::jsonb,
       claimed_until = now() + %(lease)s * interval '1 second'
 WHERE scope = %(scope)s AND node = %(node)s AND completed_at IS NULL
RETURNING scope;

-- name: audit_completed
-- The end of a walk, with what is open by then, in the ledger.
WITH over AS (
    UPDATE audit_run SET completed_at = now(), last_complete = now(), counts = %(counts)s::jsonb
     WHERE scope = %(scope)s AND node = %(node)s AND completed_at IS NULL AND %(claimed)s
)
INSERT INTO ledger (call_id, recording_id, kind, body, node, at)
SELECT NULL, NULL, 'audit_completed',
       %(counts)s::jsonb || jsonb_build_object(
           'of', %(of)s::text, 'full', %(full)s::boolean, 'started_at', %(started_at)s::timestamptz, 'findings',
           COALESCE((SELECT jsonb_object_agg(kind, found) FROM (
               SELECT kind, count(*) AS found FROM audit_finding
                WHERE scope = %(scope)s AND resolved_at IS NULL GROUP BY kind
           ) AS open), '{}')
       ), %(node)s, now();

-- name: audit_completed_at
-- When the stores and this node's spool were last walked to the end; the older of the two.
SELECT min(last_complete) AS at FROM audit_run WHERE scope IN ('', %(node)s) HAVING count(last_complete) = 2;

-- name: audit_call_page
SELECT call_id FROM call WHERE call_id > %(after)s ORDER BY call_id LIMIT %(limit)s;

-- name: audit_calls
-- What the ledger has to hold of these calls, and what it holds. Not of a call that goes on: its notes are on the way,
-- and its end comes with the last of them. A call that no listener ended is judged after a day.
SELECT c.call_id, c.ended_at IS NOT NULL AS ended, r.recording_id, r.state, r.stored_at IS NOT NULL AS stored,
       r.started_at <> r.authorised_at AS started, r.stopped_at IS NOT NULL AS stopped,
       EXISTS (SELECT FROM recording_key k WHERE k.recording_id = r.recording_id) AS key,
       EXISTS (SELECT FROM caller w WHERE w.call_id = c.call_id) AS caller,
       e.state AS erasure, COALESCE('key' = ANY (e.done), false) AS key_erased, d.recording_id IS NOT NULL AS disposed,
       d.sealed_at IS NOT NULL AS sealed, l.kinds, l.notes, l.last
  FROM call c LEFT JOIN recording r USING (call_id) LEFT JOIN erasure e USING (recording_id)
  LEFT JOIN disposition d USING (recording_id),
       LATERAL (SELECT COALESCE(array_agg(DISTINCT kind), '{}') AS kinds, count(ordinal) AS notes, max(ordinal) AS last
                  FROM ledger WHERE call_id = c.call_id) AS l
 WHERE c.call_id = ANY (%(calls)s::uuid[])
   AND (c.ended_at IS NOT NULL OR c.arrived_at < now() - interval '1 day');

-- name: audit_ordinals
SELECT ordinal, kind, body->>'reason' AS reason FROM ledger
 WHERE call_id = %(call_id)s AND ordinal IS NOT NULL ORDER BY ordinal;

-- name: audit_entry_page
SELECT max(entry_id) AS last, count(*) AS entries
  FROM (SELECT entry_id FROM ledger WHERE entry_id > %(after)s ORDER BY entry_id LIMIT %(limit)s) AS page;

-- name: audit_entries
-- Entries that name a call or a recording that is not there.
WITH named AS (
    SELECT entry_id, call_id, COALESCE(recording_id, CASE WHEN kind IN ('basis_established', 'recording_started') THEN
               substring(body->>'recording' FROM '^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$')::uuid
           END) AS recording_id
      FROM ledger WHERE entry_id > %(after)s AND entry_id <= %(last)s
)
SELECT entry_id, call_id, recording_id FROM named n
 WHERE (call_id IS NOT NULL AND NOT EXISTS (SELECT FROM call c WHERE c.call_id = n.call_id))
    OR (recording_id IS NOT NULL AND NOT EXISTS (SELECT FROM recording r WHERE r.recording_id = n.recording_id));

-- name: audit_stored_between
-- The recordings whose objects the bucket's listing has between two keys; without an end, to the end.
SELECT recording_id, object_key FROM recording
 WHERE state = 'stored' AND object_key COLLATE "C" > %(after)s
   AND (%(last)s::text IS NULL OR object_key COLLATE "C" <= %(last)s)
 ORDER BY object_key COLLATE "C" LIMIT %(limit)s;

-- name: audit_objects
-- `look`: what the listing does not show has to be looked at, because something hangs on it or was wrong before.
SELECT r.recording_id, r.state, r.bucket, r.object_key, r.version_id, r.ciphertext_bytes, r.lock_mode, r.retain_until,
       r.attempts, e.state AS erasure, COALESCE('key' = ANY (e.done), false) AS key_erased,
       h.standing, h.shown, COALESCE(h.standing, false) OR EXISTS (
           SELECT FROM audit_finding f WHERE md5(f.subject) = md5(r.recording_id::text) AND f.resolved_at IS NULL
       ) AS look
  FROM recording r LEFT JOIN erasure e USING (recording_id),
       LATERAL (SELECT COALESCE(bool_or(released_at IS NULL AND applied_at IS NOT NULL), false) AS shown,
                       count(*) > 0 AS standing
                  FROM hold WHERE recording_id = r.recording_id AND lifted_at IS NULL) AS h
 WHERE r.recording_id = ANY (%(recordings)s::uuid[]);

-- name: audit_states
SELECT recording_id, state FROM recording WHERE recording_id = ANY (%(recordings)s::uuid[]);

-- name: audit_found
-- Gives those that are not quarantined.
INSERT INTO audit_finding AS known (scope, kind, subject, version_id, detail)
SELECT %(scope)s, f.kind, f.subject, f.version_id, f.detail
  FROM jsonb_to_recordset(%(findings)s::jsonb) AS f (kind text, subject text, version_id text, detail text)
ON CONFLICT (scope, kind, md5(subject), version_id) DO UPDATE
    SET detail = EXCLUDED.detail, last_seen_at = now(), resolved_at = NULL,
        first_seen_at = CASE WHEN known.resolved_at IS NULL THEN known.first_seen_at ELSE now() END
RETURNING kind, subject, version_id, quarantined;

-- name: audit_quarantined
UPDATE audit_finding SET quarantined = %(quarantined)s
 WHERE scope = %(scope)s AND kind = %(kind)s AND md5(subject) = md5(%(subject)s) AND version_id = %(version_id)s;

-- name: audit_stale
-- Quarantined objects that this walk no longer found to be without a row.
SELECT subject, version_id FROM audit_finding
 WHERE scope = %(scope)s AND kind = %(kind)s AND quarantined AND resolved_at IS NULL AND last_seen_at < %(started_at)s
 LIMIT %(limit)s;

-- name: audit_resolve
UPDATE audit_finding SET resolved_at = now()
 WHERE scope = %(scope)s AND resolved_at IS NULL AND last_seen_at < %(started_at)s;

-- name: audit_open
SELECT scope, kind, subject, version_id, detail, first_seen_at, last_seen_at, quarantined FROM audit_finding
 WHERE resolved_at IS NULL ORDER BY kind, first_seen_at, subject LIMIT %(limit)s;

-- name: audit_open_kinds
SELECT kind, count(*) AS found FROM audit_finding WHERE resolved_at IS NULL GROUP BY kind;
