-- The stream during the call and what becomes of it (store/segments.py). Parameters are named; psycopg binds them.

-- name: beat
-- Nobody waits for the disk: what a crash of Postgres takes is said again.
INSERT INTO node_heartbeat (node, beat_at) VALUES (%(node)s, clock_timestamp())
ON CONFLICT (node) DO UPDATE SET beat_at = EXCLUDED.beat_at
RETURNING set_config('synchronous_commit', 'off', true);

-- name: streams
-- What this node records on these bases, without the `known`, and how far its segments have come. A recording that was
-- made of segments once, and that its own node goes on with, has an object already: that is enough.
SELECT r.recording_id, r.basis, r.prefix, COALESCE(r.started_at, r.authorised_at) AS started_at,
       COALESCE(cardinality(k.segment_keys), 0) AS keys, s.index, s.sha256, s.audio_end
  FROM recording r LEFT JOIN recording_key k USING (recording_id)
  LEFT JOIN LATERAL (SELECT index, sha256, audio_end FROM segment
                      WHERE recording_id = r.recording_id AND version_id IS NOT NULL ORDER BY index DESC LIMIT 1) s ON true
 WHERE r.node = %(node)s AND r.state = 'recording' AND r.version_id IS NULL AND r.basis = ANY (%(bases)s)
   AND r.recording_id <> ALL (%(known)s) AND NOT EXISTS (SELECT FROM erasure e WHERE e.recording_id = r.recording_id);

-- name: reserve_segment
-- Before a segment is put. No row: the recording is over, withdrawn, or another node's, and nothing of it may be put any
-- more; whoever ends it meanwhile waits for the lock on its row, and then finds this one.
WITH open AS (
    SELECT recording_id FROM recording r
     WHERE recording_id = %(recording_id)s AND node = %(node)s AND state IN ('recording', 'finished')
       AND version_id IS NULL AND NOT EXISTS (SELECT FROM erasure e WHERE e.recording_id = r.recording_id)
       FOR SHARE
), known AS (
    INSERT INTO remnant (recording_id) SELECT recording_id FROM open WHERE %(sealed)s::bytea IS NOT NULL
    ON CONFLICT DO NOTHING
), key AS (
    INSERT INTO recording_key (recording_id, key_id, segment_keys)
    SELECT recording_id, %(key_id)s, ARRAY[%(sealed)s::bytea] FROM open WHERE %(sealed)s::bytea IS NOT NULL
    ON CONFLICT (recording_id) DO UPDATE SET segment_keys[%(stream)s::integer + 1] = %(sealed)s::bytea
)
INSERT INTO segment (recording_id, index, stream, sha256, bytes, audio_end, ends_at, plaintext_sha256)
SELECT recording_id, %(index)s, %(stream)s, %(sha256)s, %(bytes)s, %(audio_end)s, %(ends_at)s, %(plaintext_sha256)s
  FROM open
ON CONFLICT (recording_id, index) DO UPDATE
    SET stream = EXCLUDED.stream, sha256 = EXCLUDED.sha256, bytes = EXCLUDED.bytes, audio_end = EXCLUDED.audio_end,
        ends_at = EXCLUDED.ends_at, plaintext_sha256 = EXCLUDED.plaintext_sha256, begun_at = EXCLUDED.begun_at
  WHERE segment.version_id IS NULL
RETURNING index;

-- name: segment_put
-- Nobody waits for the disk: without this row's version the object is looked for by its hash.
UPDATE segment SET version_id = %(version_id)s WHERE recording_id = %(recording_id)s AND index = %(index)s
RETURNING set_config('synchronous_commit', 'off', true);

-- name: segments_of
SELECT index, stream, sha256, bytes, ends_at, plaintext_sha256, version_id FROM segment
 WHERE recording_id = %(recording_id)s ORDER BY index;

-- name: streamed
-- What was about to be put does not count: segments that were not put could not make more of the recording.
SELECT audio_end, plaintext_sha256 FROM segment
 WHERE recording_id = %(recording_id)s AND version_id IS NOT NULL ORDER BY index DESC LIMIT 1;

-- name: nodes_lost
SELECT count(*) AS lost FROM node_heartbeat
 WHERE node <> %(node)s AND beat_at < now() - %(after)s * interval '1 second';

-- name: take_over
-- What a node that is not heard of any more has put segments of is this node's from now on, to make an object of. One
-- whose key was erased has only to go; one that had been made of segments before is what it was then.
-- Asked in two parts, each of which has an index: what is kept for years is not looked at.
WITH silent AS (
    SELECT node FROM node_heartbeat
     WHERE node <> %(node)s AND beat_at < now() - %(after)s * interval '1 second'
), left_open AS (
    SELECT recording_id FROM recording WHERE state = 'recording' AND node IN (SELECT node FROM silent)
    UNION ALL
    SELECT recording_id FROM recording WHERE state = 'finished' AND node IN (SELECT node FROM silent)
), lost AS (
    SELECT r.recording_id, r.node, m.ends_at, m.begun_at,
           EXISTS (SELECT FROM erasure e WHERE e.recording_id = r.recording_id AND 'key' = ANY (e.done)) AS erased
      FROM left_open JOIN recording r USING (recording_id)
      LEFT JOIN LATERAL (SELECT ends_at, begun_at FROM segment
                          WHERE recording_id = r.recording_id ORDER BY index DESC LIMIT 1) m ON true
     WHERE r.node <> %(node)s AND r.state IN ('recording', 'finished')
       AND (m.begun_at IS NOT NULL OR r.version_id IS NOT NULL)
     LIMIT %(limit)s FOR UPDATE OF r SKIP LOCKED
), taken AS (
    UPDATE recording r
       SET node = %(node)s, abrupt = true, stopped_at = COALESCE(r.stopped_at, l.begun_at), due_at = now(),
           claimed_until = NULL,
           state = CASE WHEN l.erased THEN 'discarded' WHEN r.version_id IS NOT NULL THEN 'stored' ELSE 'finished' END
      FROM lost l WHERE r.recording_id = l.recording_id
    RETURNING r.call_id, r.recording_id, r.state, l.node, l.ends_at
)
INSERT INTO ledger (call_id, recording_id, kind, body, node, at)
SELECT call_id, recording_id, CASE state WHEN 'discarded' THEN 'recording_discarded' ELSE 'recording_taken_over' END,
       CASE state WHEN 'discarded' THEN jsonb_build_object('reason', 'withdrawn_after_put')
                  ELSE jsonb_build_object('node', node, 'ends_at_second', round(ends_at::numeric, 3)) END,
       %(node)s, now()
  FROM taken
RETURNING recording_id;

-- name: reclaim
-- There is an object made of segments, and a node that was taken over is back and has all of it: it goes on where it was,
-- and the listener says when it is finished. What this node itself made of segments had been finished before. Not where
-- the lock or a hold keeps the object that there is. `ask`: whether that could be.
WITH possible AS (
    SELECT recording_id FROM recording r
     WHERE recording_id = %(recording_id)s AND state = 'stored' AND incomplete
       AND lock_mode = 'GOVERNANCE' AND retain_until > now()
       AND NOT EXISTS (SELECT FROM erasure e WHERE e.recording_id = r.recording_id)
       AND NOT EXISTS (SELECT FROM hold h WHERE h.recording_id = r.recording_id AND h.released_at IS NULL)
       FOR UPDATE
), back AS (
    UPDATE recording r
       SET node = %(node)s, state = CASE WHEN r.node = %(node)s THEN 'finished' ELSE 'recording' END, due_at = now(),
           claimed_until = NULL
      FROM possible p WHERE r.recording_id = p.recording_id AND NOT %(ask)s
    RETURNING call_id, r.recording_id
), noted AS (
    INSERT INTO ledger (call_id, recording_id, kind, body, node, at)
    SELECT call_id, recording_id, 'recording_reclaimed', '{}', %(node)s, now() FROM back
)
SELECT EXISTS (SELECT FROM possible) AS possible, incomplete FROM recording
 WHERE recording_id = %(recording_id)s;

-- name: erase_discarded
-- What was discarded after segments of it were put: that none is left is looked at and said.
WITH due AS (
    INSERT INTO erasure (recording_id, cause, deadline)
    SELECT recording_id, CASE WHEN r.retain_until <= now() THEN 'expiry' ELSE 'revocation' END, now() + interval '24 hours'
      FROM remnant JOIN recording r USING (recording_id)
     WHERE r.state = 'discarded'
       AND NOT EXISTS (SELECT FROM hold h WHERE h.recording_id = r.recording_id AND h.released_at IS NULL)
    ON CONFLICT DO NOTHING
    RETURNING recording_id, cause
)
INSERT INTO ledger (call_id, recording_id, kind, body, node, at)
SELECT r.call_id, r.recording_id, 'erasure_requested', jsonb_build_object('cause', d.cause), %(node)s, now()
  FROM due d JOIN recording r USING (recording_id);

-- name: claim_remnant
-- A recording that is settled, with whatever is left of it beside its object. Not while a segment is being put; a put
-- that was not heard of for so long has failed.
UPDATE remnant SET claimed_until = now() + %(lease)s * interval '1 second', attempts = attempts + 1
 WHERE recording_id = (
           SELECT m.recording_id FROM remnant m JOIN recording r USING (recording_id)
            WHERE r.state NOT IN ('authorised', 'recording', 'finished', 'discarded') AND m.due_at <= now()
              AND (m.claimed_until IS NULL OR m.claimed_until < now())
              AND NOT EXISTS (SELECT FROM segment s WHERE s.recording_id = m.recording_id AND s.version_id IS NULL
                                 AND s.begun_at > now() - interval '2 minutes')
            ORDER BY m.due_at LIMIT 1 FOR UPDATE OF m SKIP LOCKED
       )
RETURNING recording_id, attempts, superseded;

-- name: remnant_gone
-- What an incomplete recording is made of stays known: a file that comes back has to begin with exactly that.
WITH gone AS (
    DELETE FROM segment WHERE recording_id = %(recording_id)s AND recording_id NOT IN (
        SELECT recording_id FROM recording WHERE recording_id = %(recording_id)s AND state = 'stored' AND incomplete
    )
)
DELETE FROM remnant WHERE recording_id = %(recording_id)s AND superseded = %(superseded)s;

-- name: remnant_stays
UPDATE remnant SET claimed_until = NULL, due_at = now() + %(retry_in)s * interval '1 second', last_error = %(error)s
 WHERE recording_id = %(recording_id)s;
