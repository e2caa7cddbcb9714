-- Every statement that callrec runs, by name. Parameters are named; psycopg binds them.

-- name: note
-- Calls as they are now and what happened to them since their last notes, many at once. A repeated note changes nothing.
WITH said AS (
    SELECT * FROM ROWS FROM (jsonb_to_recordset(%(rows)s::jsonb) AS (
        call_id uuid, node text, channel text, line text, basis text, state text, decision text,
        arrived_at timestamptz, ended_at timestamptz, notes jsonb
    )) WITH ORDINALITY AS said (call_id, node, channel, line, basis, state, decision, arrived_at, ended_at, notes, place)
), seen AS (
    INSERT INTO call (call_id, node, channel, line, basis, state, decision, arrived_at, ended_at)
    SELECT DISTINCT ON (call_id) call_id, node, channel, line, basis, state, decision, arrived_at, ended_at
      FROM said ORDER BY call_id, place DESC
    ON CONFLICT (call_id) DO UPDATE
        SET state = EXCLUDED.state, decision = EXCLUDED.decision, ended_at = EXCLUDED.ended_at
)
INSERT INTO ledger (call_id, recording_id, ordinal, kind, body, node, at)
SELECT call_id, NULL, (note->>'ordinal')::integer, note->>'kind', note->'body', node, (note->>'at')::timestamptz
  FROM said, jsonb_array_elements(notes) WITH ORDINALITY AS noted (note, number)
 ORDER BY place, number
ON CONFLICT DO NOTHING;

-- name: authorise
-- The legal basis of calls and every note of each so far: what must be durable before uuid_record is sent. Gives the calls
-- that have it now. One that is missing was known already: it was released, or authorised, before this statement arrived,
-- and is not recorded by it.
WITH said AS (
    SELECT * FROM jsonb_to_recordset(%(rows)s::jsonb) AS (
        call_id uuid, node text, channel text, line text, basis text, state text, decision text, arrived_at timestamptz,
        notes jsonb, recording_id uuid, notice text, notice_version text, purposes text[], lock_mode text, prefix text,
        authorised_at timestamptz, retain_until timestamptz, retention_inputs jsonb, reference text,
        reference_epoch smallint, lookup text, lookup_epoch smallint, salt text, sealed text
    )
), seen AS (
    INSERT INTO call (call_id, node, channel, line, basis, state, decision, arrived_at)
    SELECT call_id, node, channel, line, basis, state, decision, arrived_at FROM said
    ON CONFLICT DO NOTHING
    RETURNING call_id
), fresh AS (
    SELECT * FROM said JOIN seen USING (call_id)
), who AS (
    INSERT INTO caller (call_id, lookup, epoch, salt, sealed)
    SELECT call_id, decode(lookup, 'hex'), lookup_epoch, decode(salt, 'hex'), decode(sealed, 'hex') FROM fresh
     WHERE lookup IS NOT NULL
), basis AS (
    INSERT INTO recording (recording_id, call_id, node, channel, line, basis, notice, notice_version, purposes, lock_mode,
                           prefix, authorised_at, retain_until, retention_inputs, reference, reference_epoch)
    SELECT recording_id, call_id, node, channel, line, basis, notice, notice_version, purposes, lock_mode,
           prefix, authorised_at, retain_until, retention_inputs, decode(reference, 'hex'), reference_epoch
      FROM fresh
), noted AS (
    INSERT INTO ledger (call_id, recording_id, ordinal, kind, body, node, at)
    SELECT call_id, NULL, (note->>'ordinal')::integer, note->>'kind', note->'body', node, (note->>'at')::timestamptz
      FROM fresh, jsonb_array_elements(notes) WITH ORDINALITY AS notes (note, place)
     ORDER BY call_id, place
)
SELECT call_id FROM seen;

-- name: started
-- Many at once, as `note`.
WITH said AS (
    SELECT DISTINCT ON (recording_id) recording_id, started_at, retain_until, retention_inputs
      FROM ROWS FROM (jsonb_to_recordset(%(rows)s::jsonb) AS (
          recording_id uuid, started_at timestamptz, retain_until timestamptz, retention_inputs jsonb
      )) WITH ORDINALITY AS said (recording_id, started_at, retain_until, retention_inputs, place)
     ORDER BY recording_id, place
)
UPDATE recording r
   SET state = 'recording', started_at = said.started_at, retain_until = said.retain_until,
       retention_inputs = said.retention_inputs
  FROM said WHERE r.recording_id = said.recording_id AND r.state = 'authorised';

-- name: finished
-- Many at once, as `note`.
WITH said AS (
    SELECT DISTINCT ON (recording_id) recording_id, stopped_at, samples, abrupt
      FROM ROWS FROM (jsonb_to_recordset(%(rows)s::jsonb) AS (
          recording_id uuid, stopped_at timestamptz, samples bigint, abrupt boolean
      )) WITH ORDINALITY AS said (recording_id, stopped_at, samples, abrupt, place)
     ORDER BY recording_id, place
)
UPDATE recording r
   SET state = 'finished', stopped_at = said.stopped_at, samples = said.samples, abrupt = said.abrupt, due_at = now()
  FROM said WHERE r.recording_id = said.recording_id AND r.state IN ('authorised', 'recording');

-- name: void
-- Nothing of this recording is kept; said in the ledger once, and only if a basis had been made durable.
WITH gone AS (
    UPDATE recording SET state = 'discarded'
     WHERE recording_id = %(recording_id)s AND state IN ('authorised', 'recording', 'finished')
    RETURNING call_id, recording_id
)
INSERT INTO ledger (call_id, recording_id, kind, body, node, at)
SELECT call_id, recording_id, 'recording_discarded', jsonb_build_object('reason', %(reason)s::text), %(node)s, %(at)s
  FROM gone;

-- name: open_recordings
-- What this node was recording, or about to, as far as Postgres knows.
SELECT r.recording_id, r.call_id, r.channel, r.line, r.basis, r.state, r.authorised_at, c.arrived_at, c.decision,
       COALESCE((SELECT max(ordinal) FROM ledger l WHERE l.call_id = r.call_id), 0) AS ordinal,
       COALESCE((SELECT kind = 'recording_masked' FROM ledger l
                  WHERE l.call_id = r.call_id AND kind IN ('recording_masked', 'recording_unmasked')
                  ORDER BY ordinal DESC LIMIT 1), false) AS masked
  FROM recording r JOIN call c USING (call_id)
 WHERE r.node = %(node)s AND r.state IN ('authorised', 'recording');

-- name: claim
UPDATE recording
   SET claimed_until = now() + %(lease)s * interval '1 second', attempts = attempts + 1
 WHERE recording_id = (
           SELECT recording_id FROM recording
            WHERE node = %(node)s AND state = 'finished' AND due_at <= now()
              AND (claimed_until IS NULL OR claimed_until < now())
            ORDER BY due_at
            LIMIT 1
              FOR UPDATE SKIP LOCKED
       )
RETURNING recording_id, call_id, basis, lock_mode, prefix, COALESCE(started_at, authorised_at) AS started_at,
          retain_until, attempts, abrupt, samples, retain_until <= now() AND NOT EXISTS (
              SELECT FROM hold h WHERE h.recording_id = recording.recording_id AND h.released_at IS NULL
          ) AS expired;

-- name: waiting
-- What this node has still to store: how many, and since when the oldest.
SELECT count(*) AS waiting, min(stopped_at) AS oldest
  FROM recording WHERE node = %(node)s AND state = 'finished';

-- name: sealed
-- No row: the recording is not waiting to be stored any more. The lock on its row: whoever ends it meanwhile waits, and
-- takes this key with it.
INSERT INTO recording_key (recording_id, sealed, key_id)
SELECT recording_id, %(sealed)s, %(key_id)s FROM recording
 WHERE recording_id = %(recording_id)s AND state = 'finished'
   FOR SHARE
ON CONFLICT (recording_id) DO UPDATE SET sealed = EXCLUDED.sealed, key_id = EXCLUDED.key_id
RETURNING sealed;

-- name: unclaim
-- What a `ship` of this node that died had claimed is due again: there is one `ship` a node.
UPDATE recording SET claimed_until = NULL WHERE node = %(node)s AND state = 'finished' AND claimed_until IS NOT NULL;

-- name: stored
-- ours: false where another node has stored it meanwhile, or is about to. What a complete object takes the place of is
-- one more thing to go, and with the segments goes what opened them.
WITH earlier AS (
    SELECT version_id FROM recording WHERE recording_id = %(recording_id)s AND version_id <> %(version_id)s
), done AS (
    UPDATE recording
       SET state = 'stored', bucket = %(bucket)s, object_key = %(object_key)s, version_id = %(version_id)s,
           plaintext_sha256 = %(plaintext_sha256)s, ciphertext_sha256 = %(ciphertext_sha256)s,
           ciphertext_bytes = %(ciphertext_bytes)s, duration_seconds = %(duration_seconds)s, stored_at = now(),
           incomplete = %(incomplete)s, claimed_until = NULL, last_error = NULL
     WHERE recording_id = %(recording_id)s AND state = 'finished' AND node = %(node)s
    RETURNING call_id, recording_id
), keys AS (
    UPDATE recording_key SET segment_keys = '{}'
     WHERE recording_id IN (SELECT recording_id FROM done) AND NOT %(incomplete)s AND segment_keys <> '{}'
), superseded AS (
    INSERT INTO remnant (recording_id, superseded) SELECT recording_id, ARRAY[version_id] FROM done, earlier
    ON CONFLICT (recording_id) DO UPDATE SET superseded = remnant.superseded || EXCLUDED.superseded, due_at = now()
), noted AS (
    INSERT INTO ledger (call_id, recording_id, kind, body, node, at)
    SELECT call_id, recording_id, 'recording_stored', %(body)s::jsonb, %(node)s, now() FROM done
)
SELECT EXISTS (SELECT FROM done) OR version_id = %(version_id)s
       OR state NOT IN ('recording', 'finished', 'stored') AS ours
  FROM recording WHERE recording_id = %(recording_id)s;

-- name: failed
UPDATE recording
   SET due_at = now() + %(retry_in)s * interval '1 second', claimed_until = NULL, last_error = %(error)s
 WHERE recording_id = %(recording_id)s AND state = 'finished' AND node = %(node)s;

-- name: ended_without
-- A recording that left nothing to keep: discarded, empty or lost. A withdrawal that arrives while the object is being
-- put discards a stored one too; the object is followed by its version. Its key and its caller go with it (a trigger).
WITH gone AS (
    UPDATE recording SET state = %(state)s, claimed_until = NULL
     WHERE recording_id = %(recording_id)s
       AND (state IN ('authorised', 'recording', 'finished') OR (state = 'stored' AND %(state)s = 'discarded'))
    RETURNING call_id, recording_id
)
INSERT INTO ledger (call_id, recording_id, kind, body, node, at)
SELECT call_id, recording_id, 'recording_' || %(state)s::text, %(body)s::jsonb, %(node)s, now() FROM gone;

-- name: state_of
SELECT state FROM recording WHERE recording_id = %(recording_id)s;

-- name: nothing_may_stay_of
-- Of these recordings, those that are gone for good, and those that came to nothing and are past their date.
SELECT recording_id FROM recording
 WHERE recording_id = ANY (%(recordings)s)
   AND (state IN ('discarded', 'erased') OR (state IN ('empty', 'lost') AND retain_until <= now()));

-- name: calls
SELECT c.call_id, c.channel, c.line, c.basis, c.decision, c.state, c.arrived_at, c.ended_at, r.recording_id,
       r.state AS recording
  FROM call c LEFT JOIN recording r USING (call_id)
 ORDER BY c.arrived_at DESC LIMIT %(limit)s;

-- name: recordings
SELECT recording_id, call_id, line, basis, state, started_at, stopped_at, duration_seconds, abrupt, incomplete, lock_mode,
       retain_until, bucket, object_key, version_id, ciphertext_bytes, attempts, last_error
  FROM recording ORDER BY authorised_at DESC LIMIT %(limit)s;

-- name: ledger_of
SELECT entry_id, at, kind, body, recording_id, node FROM ledger
 WHERE call_id = %(call_id)s ORDER BY entry_id;

-- name: call_of
-- A call by its own id, its recording's id, or FreeSWITCH's id of its channel: of several there the one being recorded.
WITH wanted AS (
    SELECT %(id)s::text AS text,
           substring(lower(%(id)s::text) FROM '^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$')::uuid AS uuid
), found AS (
    SELECT call_id FROM call, wanted WHERE call_id = wanted.uuid
    UNION
    SELECT call_id FROM recording, wanted WHERE recording_id = wanted.uuid
    UNION
    SELECT call_id FROM call, wanted WHERE channel = wanted.text
)
SELECT c.call_id, c.channel, c.node, r.recording_id
  FROM found JOIN call c USING (call_id) LEFT JOIN recording r USING (call_id)
 ORDER BY (r.state IN ('authorised', 'recording')) IS TRUE DESC, c.arrived_at DESC LIMIT 1;

-- name: sealed_recording
SELECT r.recording_id, r.call_id, r.basis, r.purposes, r.state, r.bucket, r.object_key, r.version_id,
       r.plaintext_sha256, r.incomplete, CASE WHEN r.incomplete THEN k.segment_keys[1] ELSE k.sealed END AS sealed,
       k.segment_keys,
       EXISTS (SELECT FROM erasure e WHERE e.recording_id = r.recording_id)
           OR EXISTS (SELECT FROM revocation_recording v
                       WHERE v.recording_id = r.recording_id AND v.fate <> 'not_touched') AS withdrawn,
       EXISTS (SELECT FROM hold h WHERE h.recording_id = r.recording_id AND h.released_at IS NULL) AS held
  FROM recording r LEFT JOIN recording_key k USING (recording_id)
 WHERE r.recording_id = %(recording_id)s;

-- name: entry
-- A ledger entry that is not part of a call's own course: a listening, a denial.
INSERT INTO ledger (call_id, recording_id, kind, body, node, at)
VALUES (%(call_id)s, %(recording_id)s, %(kind)s, %(body)s::jsonb, %(node)s, now());

-- name: order
SELECT pg_notify('callrec_order', %(payload)s);

-- name: migrations
SELECT name FROM schema_migration;

-- name: alive
SELECT 1;
