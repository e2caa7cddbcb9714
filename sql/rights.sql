-- Statements about what the law takes back, by name (store/rights.py). Parameters are named; psycopg binds them.

-- name: held_recordings
-- The recordings that a number, a call, a recording or a reference code leads to, as a revocation has to know them. Each
-- is looked for by itself, in an index: joined by OR they would have all that is kept read.
WITH named AS (
    SELECT r.recording_id FROM caller c JOIN recording r USING (call_id) WHERE c.lookup = ANY (%(lookups)s::bytea[])
    UNION
    SELECT recording_id FROM recording WHERE call_id = %(call_id)s
    UNION
    SELECT recording_id FROM recording WHERE recording_id = %(recording_id)s
    UNION
    SELECT recording_id FROM recording WHERE reference = ANY (%(references)s::bytea[])
)
SELECT r.recording_id, r.call_id, r.channel, r.node, r.line, r.basis, r.state, r.authorised_at, k.decision,
       EXISTS (SELECT FROM hold h WHERE h.recording_id = r.recording_id AND h.released_at IS NULL) AS held
  FROM named JOIN recording r USING (recording_id) JOIN call k USING (call_id)
 WHERE r.state NOT IN ('discarded', 'empty', 'lost')
 ORDER BY r.authorised_at;

-- name: revoke
-- A revocation and what it does to each recording, in one statement; erasures are due at once. The same request again
-- does nothing.
WITH received AS (
    INSERT INTO revocation (revocation_id, request, received_at, channel, identification, given_by, on_behalf_of, scope,
                            recording_id, evidence_sha256, deadline, deadline_inputs, alarm_at)
    VALUES (%(revocation_id)s, %(request)s, %(received_at)s, %(channel)s, %(identification)s, %(given_by)s,
            %(on_behalf_of)s, %(scope)s, %(recording_id)s, %(evidence_sha256)s, %(deadline)s,
            %(deadline_inputs)s::jsonb, %(alarm_at)s)
    ON CONFLICT (request) DO NOTHING
    RETURNING revocation_id
), decided AS (
    INSERT INTO revocation_recording (revocation_id, recording_id, fate, why)
    SELECT revocation_id, d.recording_id, d.fate, d.why
      FROM received, jsonb_to_recordset(%(decisions)s::jsonb) AS d (recording_id uuid, fate text, why text)
    RETURNING recording_id, fate, why
), due AS (
    INSERT INTO erasure (recording_id, cause, deadline)
    SELECT recording_id, 'revocation', %(deadline)s FROM decided WHERE fate = 'erase' OR why = 'held'
    ON CONFLICT (recording_id) DO NOTHING
), noted AS (
    INSERT INTO ledger (call_id, recording_id, kind, body, node, at)
    SELECT NULL, NULL, 'revocation_received', %(body)s::jsonb, %(node)s, %(received_at)s FROM received
)
INSERT INTO ledger (call_id, recording_id, kind, body, node, at)
SELECT r.call_id, d.recording_id, 'revocation_decided',
       jsonb_build_object('revocation', %(revocation_id)s::uuid, 'fate', d.fate, 'why', d.why), %(node)s, now()
  FROM decided d JOIN recording r USING (recording_id);

-- name: revocation_by_request
SELECT * FROM revocation WHERE request = ANY (%(requests)s::bytea[]);

-- name: revocation_of
SELECT * FROM revocation WHERE revocation_id = %(revocation_id)s;

-- name: identified
-- The person of a revocation is known now, or is known not to be the caller: its recordings are decided again.
WITH known AS (
    UPDATE revocation SET identification = %(identification)s
     WHERE revocation_id = %(revocation_id)s RETURNING revocation_id, deadline
), decided AS (
    UPDATE revocation_recording v SET fate = d.fate, why = d.why
      FROM known, jsonb_to_recordset(%(decisions)s::jsonb) AS d (recording_id uuid, fate text, why text)
     WHERE v.revocation_id = known.revocation_id AND v.recording_id = d.recording_id
    RETURNING v.recording_id, v.fate, v.why
), due AS (
    INSERT INTO erasure (recording_id, cause, deadline)
    SELECT recording_id, 'revocation', deadline FROM decided, known WHERE fate = 'erase' OR why = 'held'
    ON CONFLICT (recording_id) DO NOTHING
), noted AS (
    INSERT INTO ledger (call_id, recording_id, kind, body, node, at)
    SELECT NULL, NULL, 'revocation_identified', %(body)s::jsonb, %(node)s, now() FROM known
)
INSERT INTO ledger (call_id, recording_id, kind, body, node, at)
SELECT r.call_id, d.recording_id, 'revocation_decided',
       jsonb_build_object('revocation', %(revocation_id)s::uuid, 'fate', d.fate, 'why', d.why), %(node)s, now()
  FROM decided d JOIN recording r USING (recording_id);

-- name: recordings_of_revocation
SELECT r.recording_id, r.call_id, r.channel, r.node, r.line, r.basis, r.state, r.authorised_at, k.decision,
       EXISTS (SELECT FROM hold h WHERE h.recording_id = r.recording_id AND h.released_at IS NULL) AS held
  FROM revocation_recording v JOIN recording r USING (recording_id) JOIN call k USING (call_id)
 WHERE v.revocation_id = %(revocation_id)s;

-- name: recording_rights
-- One recording with everything that rights ask about it.
SELECT r.recording_id, r.call_id, r.channel, r.node, r.line, r.basis, r.state, r.prefix, r.bucket, r.object_key,
       r.version_id, r.lock_mode, r.retain_until, COALESCE(r.started_at, r.authorised_at) AS started_at, d.disposition,
       k.decision,
       EXISTS (SELECT FROM segment s WHERE s.recording_id = r.recording_id AND s.version_id IS NULL
                  AND s.begun_at > now() - interval '2 minutes') AS putting,
       e.recording_id IS NOT NULL AS erasing, COALESCE('key' = ANY (e.done), false) AS key_gone
  FROM recording r JOIN call k USING (call_id)
       LEFT JOIN disposition d USING (recording_id) LEFT JOIN erasure e USING (recording_id)
 WHERE r.recording_id = %(recording_id)s;

-- name: dispose
WITH said AS (
    INSERT INTO disposition (recording_id, disposition, said, guardian_consent, account, seals)
    SELECT %(recording_id)s::uuid, %(disposition)s, %(said)s, %(guardian_consent)s, %(account)s, %(seals)s
     WHERE NOT EXISTS (SELECT FROM erasure WHERE recording_id = %(recording_id)s)
    ON CONFLICT DO NOTHING
    RETURNING recording_id
), due AS (
    INSERT INTO erasure (recording_id, cause)
    SELECT recording_id, %(cause)s FROM said WHERE NOT %(seals)s::boolean
    ON CONFLICT (recording_id) DO NOTHING
)
INSERT INTO ledger (call_id, recording_id, kind, body, node, at)
SELECT r.call_id, r.recording_id, 'disposition_said', %(body)s::jsonb, %(node)s, now()
  FROM said JOIN recording r USING (recording_id)
RETURNING entry_id;

-- name: to_seal
UPDATE disposition SET attempts = attempts + 1, due_at = now() + interval '60 seconds'
 WHERE recording_id = (
           SELECT d.recording_id FROM disposition d JOIN recording r USING (recording_id)
            WHERE d.seals AND d.sealed_at IS NULL AND d.due_at <= now() AND r.state = 'stored'
              AND NOT EXISTS (SELECT FROM erasure e WHERE e.recording_id = d.recording_id)
            ORDER BY d.due_at LIMIT 1 FOR UPDATE OF d SKIP LOCKED
       )
RETURNING recording_id, attempts;

-- name: locked_compliance
WITH sealed AS (
    UPDATE disposition SET sealed_at = clock_timestamp(), last_error = NULL
     WHERE recording_id = %(recording_id)s AND sealed_at IS NULL RETURNING recording_id
), locked AS (
    UPDATE recording SET lock_mode = 'COMPLIANCE' WHERE recording_id IN (SELECT recording_id FROM sealed)
    RETURNING recording_id, call_id, version_id, retain_until
)
INSERT INTO ledger (call_id, recording_id, kind, body, node, at)
SELECT call_id, recording_id, 'recording_locked',
       jsonb_build_object('lock_mode', 'COMPLIANCE', 'version_id', version_id, 'retain_until', retain_until), %(node)s,
       now()
  FROM locked;

-- name: seal_failed
UPDATE disposition SET last_error = %(error)s, due_at = now() + %(retry_in)s * interval '1 second'
 WHERE recording_id = %(recording_id)s;

-- name: unsaid
-- Recordings on a statutory basis that nobody said anything about, long enough after their call; `told`: those too that
-- somebody was told of and whose outcome is due.
SELECT r.recording_id, r.stopped_at, s.escalated_at
  FROM recording r LEFT JOIN erasure e USING (recording_id) LEFT JOIN escalation s USING (recording_id)
 WHERE r.basis = ANY (%(bases)s) AND r.state = 'stored' AND NOT r.kind_known AND r.stopped_at <= %(before)s
   AND e.recording_id IS NULL
   AND (s.recording_id IS NULL OR (%(told)s AND s.outcome_at <= %(now)s))
   AND NOT EXISTS (SELECT FROM hold h WHERE h.recording_id = r.recording_id AND h.released_at IS NULL)
 ORDER BY r.stopped_at LIMIT %(limit)s;

-- name: escalate
WITH told AS (
    INSERT INTO escalation (recording_id, escalated_at, outcome_at)
    VALUES (%(recording_id)s, %(at)s, %(outcome_at)s) ON CONFLICT DO NOTHING RETURNING recording_id
)
INSERT INTO ledger (call_id, recording_id, kind, body, node, at)
SELECT r.call_id, r.recording_id, 'disposition_missing', jsonb_build_object('outcome_at', %(outcome_at)s::timestamptz),
       %(node)s, %(at)s
  FROM told JOIN recording r USING (recording_id)
RETURNING entry_id;

-- name: place_hold
-- No row: the key went in this moment, and nothing can be held.
WITH placed AS (
    INSERT INTO hold (hold_id, recording_id, reason, case_reference, owner, placed_at, review_at)
    SELECT %(hold_id)s::uuid, %(recording_id)s::uuid, %(reason)s, %(case)s, %(owner)s, %(placed_at)s::timestamptz,
           %(review_at)s::timestamptz
     WHERE NOT EXISTS (SELECT FROM erasure WHERE recording_id = %(recording_id)s AND 'key' = ANY (done))
    RETURNING recording_id
)
INSERT INTO ledger (call_id, recording_id, kind, body, node, at)
SELECT r.call_id, r.recording_id, 'hold_placed', %(body)s::jsonb, %(node)s, %(placed_at)s
  FROM placed JOIN recording r USING (recording_id)
RETURNING entry_id;

-- name: review_hold
WITH reviewed AS (
    UPDATE hold SET review_at = %(review_at)s, reviews = %(reviews)s
     WHERE hold_id = %(hold_id)s AND released_at IS NULL RETURNING recording_id
)
INSERT INTO ledger (call_id, recording_id, kind, body, node, at)
SELECT r.call_id, r.recording_id, 'hold_reviewed', %(body)s::jsonb, %(node)s, now()
  FROM reviewed JOIN recording r USING (recording_id)
RETURNING recording_id;

-- name: release_hold
WITH released AS (
    UPDATE hold SET released_at = %(at)s, release_reason = %(why)s
     WHERE hold_id = %(hold_id)s AND released_at IS NULL RETURNING recording_id
), woken AS (
    UPDATE erasure SET due_at = now() WHERE recording_id IN (SELECT recording_id FROM released) AND state = 'waits'
)
INSERT INTO ledger (call_id, recording_id, kind, body, node, at)
SELECT r.call_id, r.recording_id, 'hold_released', %(body)s::jsonb, %(node)s, %(at)s
  FROM released JOIN recording r USING (recording_id)
RETURNING recording_id;

-- name: holds_of
SELECT hold_id, reason, case_reference, owner, placed_at, review_at, reviews FROM hold
 WHERE recording_id = %(recording_id)s AND released_at IS NULL;

-- name: hold_by_id
SELECT hold_id, recording_id, reason, case_reference, owner, placed_at, review_at, reviews, released_at FROM hold
 WHERE hold_id = %(hold_id)s;

-- name: standing_holds
SELECT h.hold_id, h.recording_id, h.reason, h.case_reference, h.owner, h.placed_at, h.review_at, h.reviews
  FROM hold h WHERE h.released_at IS NULL ORDER BY h.review_at LIMIT %(limit)s;

-- name: holds_to_apply
-- Holds whose object does not show it yet, or still shows it; one row a recording.
SELECT r.recording_id, r.object_key, r.version_id, bool_or(h.released_at IS NULL) AS standing
  FROM hold h JOIN recording r USING (recording_id)
 WHERE h.lifted_at IS NULL AND r.state = 'stored'
 GROUP BY r.recording_id
HAVING bool_or(h.released_at IS NULL AND h.applied_at IS NULL) OR NOT bool_or(h.released_at IS NULL)
 ORDER BY min(h.placed_at) LIMIT %(limit)s;

-- name: hold_applied
UPDATE hold SET applied_at = COALESCE(applied_at, now()) WHERE recording_id = %(recording_id)s AND released_at IS NULL;

-- name: hold_lifted
UPDATE hold SET lifted_at = now() WHERE recording_id = %(recording_id)s AND released_at IS NOT NULL AND lifted_at IS NULL;

-- name: expire
-- What has reached its date: its erasure is due, within a day of it or of its release. A held one is not (E11). What was
-- discarded while it was being stored may have left an object: that is followed, too. The clocks of node and Postgres
-- must both have come to the date.
WITH over AS (
    SELECT recording_id, 'expiry' AS cause, retain_until AS since FROM recording
     WHERE state = 'stored' AND retain_until <= LEAST(%(now)s, now())
    UNION ALL
    SELECT recording_id, CASE WHEN retain_until <= %(now)s THEN 'expiry' ELSE 'revocation' END, %(now)s FROM recording
     WHERE state = 'discarded' AND attempts > 0
), due AS (
    INSERT INTO erasure (recording_id, cause, deadline)
    SELECT o.recording_id, o.cause,
           GREATEST(o.since, (SELECT max(h.released_at) FROM hold h WHERE h.recording_id = o.recording_id))
               + interval '24 hours'
      FROM over o
     WHERE NOT EXISTS (SELECT FROM hold h WHERE h.recording_id = o.recording_id AND h.released_at IS NULL)
       AND NOT EXISTS (SELECT FROM erasure e WHERE e.recording_id = o.recording_id)
     ORDER BY o.since LIMIT %(limit)s
    ON CONFLICT DO NOTHING
    RETURNING recording_id, cause
)
INSERT INTO ledger (call_id, recording_id, kind, body, node, at)
SELECT r.call_id, r.recording_id, CASE d.cause WHEN 'expiry' THEN 'recording_expired' ELSE 'erasure_requested' END,
       jsonb_build_object('cause', d.cause), %(node)s, now()
  FROM due d JOIN recording r USING (recording_id)
RETURNING recording_id;

-- name: request_erasure
WITH due AS (
    INSERT INTO erasure (recording_id, cause)
    SELECT %(recording_id)s::uuid, %(cause)s
     WHERE NOT (%(unless_said)s AND EXISTS (SELECT FROM disposition WHERE recording_id = %(recording_id)s))
    ON CONFLICT DO NOTHING
    RETURNING recording_id
)
INSERT INTO ledger (call_id, recording_id, kind, body, node, at)
SELECT r.call_id, r.recording_id, 'erasure_requested', %(body)s::jsonb, %(node)s, now()
  FROM due JOIN recording r USING (recording_id)
RETURNING recording_id;

-- name: claim_erasure
-- The next erasure due on this node's recordings: only this node can look into its spool.
-- Here, in erasure_step and in forget_caller nobody waits for the disk: what a crash of Postgres takes is done again. The
-- log keeps its order, so what is on disk of an erasure is always a beginning of it; erase_key and erased, which others
-- rely on, wait until all of it is.
UPDATE erasure e SET claimed_until = now() + %(lease)s * interval '1 second', attempts = attempts + 1
 WHERE recording_id = (
           SELECT x.recording_id FROM erasure x JOIN recording r USING (recording_id)
            WHERE x.state <> 'erased' AND x.due_at <= now() AND (x.claimed_until IS NULL OR x.claimed_until < now())
              AND r.node = %(node)s
            ORDER BY x.due_at LIMIT 1 FOR UPDATE OF x SKIP LOCKED
       )
RETURNING recording_id, cause, deadline, done, state, attempts, set_config('synchronous_commit', 'off', true);

-- name: unclaim_erasures
-- What a `sweep` of this node that died had claimed is free again: there is one `sweep` a node.
UPDATE erasure SET claimed_until = NULL
 WHERE state <> 'erased' AND claimed_until IS NOT NULL
   AND recording_id IN (SELECT recording_id FROM recording WHERE node = %(node)s);

-- name: node_leaves
-- What is of a node: recordings that are stored, and such as only its own disk had.
SELECT count(*) FILTER (WHERE state = 'stored') AS stored, count(*) FILTER (WHERE state <> 'stored') AS unstored
  FROM recording WHERE node = %(lost)s AND state IN ('authorised', 'recording', 'finished', 'stored');

-- name: adopt
-- Some of these are this node's from now on. What was not stored went with the other's disk, but for its segments: this
-- node's `ship` makes an object of them.
WITH there AS (
    SELECT recording_id, state,
           EXISTS (SELECT FROM segment s WHERE s.recording_id = recording.recording_id)
               AND NOT EXISTS (SELECT FROM erasure e
                                WHERE e.recording_id = recording.recording_id AND 'key' = ANY (e.done)) AS streamed
      FROM recording WHERE node = %(lost)s AND state IN ('authorised', 'recording', 'finished', 'stored')
     LIMIT %(limit)s FOR UPDATE
), taken AS (
    UPDATE recording r
       SET node = %(node)s, abrupt = r.abrupt OR (there.streamed AND there.state <> 'stored'), due_at = now(),
           stopped_at = COALESCE(r.stopped_at, now()), claimed_until = NULL,
           state = CASE WHEN there.state = 'stored' OR r.version_id IS NOT NULL THEN 'stored'
                        WHEN there.streamed THEN 'finished' ELSE 'lost' END
      FROM there WHERE r.recording_id = there.recording_id
    RETURNING r.call_id, r.recording_id, r.state
)
INSERT INTO ledger (call_id, recording_id, kind, body, node, at)
SELECT call_id, recording_id,
       CASE state WHEN 'stored' THEN 'recording_adopted' WHEN 'finished' THEN 'recording_taken_over' ELSE 'recording_lost' END,
       jsonb_build_object('node', %(lost)s::text), %(node)s, now()
  FROM taken
RETURNING recording_id;

-- name: node_gone
-- Nobody waits for it any more.
DELETE FROM node_heartbeat WHERE node = %(lost)s;

-- name: erase_key
-- The point of no return: the key row and that it is gone, in one statement. No row: a hold was placed in this moment.
WITH step AS (
    UPDATE erasure e SET done = %(done)s
     WHERE recording_id = %(recording_id)s AND NOT ('key' = ANY (done))
       AND NOT EXISTS (SELECT FROM hold h WHERE h.recording_id = e.recording_id AND h.released_at IS NULL)
    RETURNING recording_id, cause
), gone AS (
    DELETE FROM recording_key WHERE recording_id IN (SELECT recording_id FROM step)
)
INSERT INTO ledger (call_id, recording_id, kind, body, node, at)
SELECT r.call_id, r.recording_id, 'key_erased', jsonb_build_object('cause', s.cause), %(node)s, now()
  FROM step s JOIN recording r USING (recording_id)
RETURNING entry_id;

-- name: erasure_step
UPDATE erasure SET done = %(done)s WHERE recording_id = %(recording_id)s
RETURNING set_config('synchronous_commit', 'off', true);

-- name: forget_caller
DELETE FROM caller WHERE call_id = %(call_id)s RETURNING set_config('synchronous_commit', 'off', true);

-- name: erasure_left
-- What Postgres itself still has of a recording that is to be gone.
SELECT EXISTS (SELECT FROM recording_key WHERE recording_id = %(recording_id)s) AS key,
       EXISTS (SELECT FROM caller WHERE call_id = %(call_id)s) AS personal_data;

-- name: erasure_waits
UPDATE erasure SET state = %(state)s, due_at = %(due_at)s, claimed_until = NULL, last_error = %(error)s,
       ciphertext_until = %(ciphertext_until)s
 WHERE recording_id = %(recording_id)s AND state <> 'erased';

-- name: note_of_recording
INSERT INTO ledger (call_id, recording_id, kind, body, node, at)
SELECT call_id, recording_id, %(kind)s, %(body)s::jsonb, %(node)s, now() FROM recording
 WHERE recording_id = %(recording_id)s;

-- name: erased
WITH over AS (
    UPDATE erasure SET state = 'erased', erased_at = clock_timestamp(), claimed_until = NULL, last_error = NULL
     WHERE recording_id = %(recording_id)s AND state <> 'erased' RETURNING recording_id, cause, requested_at, deadline
), gone AS (
    UPDATE recording SET state = 'erased' WHERE recording_id IN (SELECT recording_id FROM over)
    RETURNING recording_id, call_id
), segments AS (
    DELETE FROM segment WHERE recording_id IN (SELECT recording_id FROM over)
)
INSERT INTO ledger (call_id, recording_id, kind, body, node, at)
SELECT g.call_id, g.recording_id, 'recording_erased',
       jsonb_build_object('cause', o.cause, 'requested_at', o.requested_at, 'deadline', o.deadline), %(node)s, now()
  FROM over o JOIN gone g USING (recording_id);

-- name: deadlines
-- Revocations whose erasures are not over: those near their deadline and those past it, told once each (C4).
WITH open AS (
    SELECT v.revocation_id, v.deadline FROM revocation v
     WHERE v.alarm_at <= now() AND v.alarmed <> 'breached'
       AND EXISTS (SELECT FROM revocation_recording x LEFT JOIN erasure e USING (recording_id)
                    WHERE x.revocation_id = v.revocation_id AND x.fate <> 'not_touched'
                      AND e.state IS DISTINCT FROM 'erased')
)
UPDATE revocation v SET alarmed = CASE WHEN o.deadline < now() THEN 'breached' ELSE 'near' END
  FROM open o
 WHERE v.revocation_id = o.revocation_id AND v.alarmed <> CASE WHEN o.deadline < now() THEN 'breached' ELSE 'near' END
RETURNING v.revocation_id, v.alarmed, v.deadline;

-- name: affairs
-- What somebody has to look at. A basis is looked for in the last hour alone: it is looked for all the time, and the
-- alert remembers. Held erasures are not overdue; those by key wait for a lock that nobody can shorten.
WITH open AS (
    SELECT DISTINCT v.revocation_id, v.alarm_at, v.deadline
      FROM revocation v JOIN revocation_recording x USING (revocation_id)
           LEFT JOIN erasure e ON e.recording_id = x.recording_id
     WHERE x.fate <> 'not_touched' AND e.state IS DISTINCT FROM 'erased'
), counted AS (
    SELECT count(*) FILTER (WHERE deadline < now()) AS breached,
           count(*) FILTER (WHERE deadline >= now() AND alarm_at <= now()) AS near,
           count(*) FILTER (WHERE deadline >= now() AND alarm_at > now()) AS in_time
      FROM open
)
SELECT counted.*,
       (SELECT count(*) FROM erasure WHERE state = 'due' AND deadline < now()) AS overdue,
       (SELECT count(*) FROM escalation s JOIN recording r USING (recording_id)
         WHERE r.state = 'stored' AND NOT r.kind_known
           AND NOT EXISTS (SELECT FROM erasure e WHERE e.recording_id = s.recording_id)) AS unsaid,
       ARRAY(SELECT recording_id FROM recording r
              WHERE r.authorised_at > now() - interval '1 hour'
                AND NOT EXISTS (SELECT FROM ledger l WHERE l.call_id = r.call_id AND l.kind = 'basis_established')
              LIMIT 1000) AS without_basis
  FROM counted;

-- name: erasures
SELECT e.recording_id, r.line, r.basis, e.cause, e.state, e.done, e.requested_at, e.deadline, e.ciphertext_until,
       e.erased_at, e.attempts, e.last_error
  FROM erasure e JOIN recording r USING (recording_id) ORDER BY e.requested_at DESC LIMIT %(limit)s;

-- name: bulk
-- What an order to erase would cover; NULL leaves a condition out.
SELECT r.recording_id FROM recording r LEFT JOIN disposition d USING (recording_id) LEFT JOIN erasure e USING (recording_id)
 WHERE e.recording_id IS NULL AND r.state IN ('recording', 'finished', 'stored')
   AND (%(line)s::text IS NULL OR r.line = %(line)s)
   AND (%(basis)s::text IS NULL OR r.basis = %(basis)s)
   AND (%(disposition)s::text IS NULL OR d.disposition = %(disposition)s
        OR (%(disposition)s = 'none' AND d.recording_id IS NULL))
   AND (%(since)s::timestamptz IS NULL OR COALESCE(r.started_at, r.authorised_at) >= %(since)s)
   AND (%(until)s::timestamptz IS NULL OR COALESCE(r.started_at, r.authorised_at) < %(until)s)
 ORDER BY r.authorised_at;

-- name: replay_erasures
-- After a database was restored from a backup: what was erased must not come back. `erased` are the recordings of which
-- the object store says so, beside what the ledger says. Their keys go now, and all steps are done again.
WITH known AS (
    SELECT (e->>'recording')::uuid AS recording_id, e->>'cause' AS cause FROM jsonb_array_elements(%(erased)s::jsonb) AS e
    UNION
    SELECT recording_id, body->>'cause' FROM ledger WHERE kind = 'key_erased'
    UNION
    SELECT recording_id, NULL FROM ledger WHERE kind = 'recording_discarded' AND recording_id IS NOT NULL
), again AS (
    SELECT r.recording_id, r.call_id, max(n.cause) AS cause FROM known n JOIN recording r USING (recording_id)
     WHERE EXISTS (SELECT FROM recording_key k WHERE k.recording_id = r.recording_id)
        OR (r.state IN ('erased', 'discarded') AND EXISTS (SELECT FROM caller c WHERE c.call_id = r.call_id))
        OR (r.state IN ('authorised', 'recording', 'finished', 'stored')
            AND NOT EXISTS (SELECT FROM erasure e WHERE e.recording_id = r.recording_id))
     GROUP BY r.recording_id
), gone AS (
    DELETE FROM recording_key WHERE recording_id IN (SELECT recording_id FROM again)
), forgotten AS (
    DELETE FROM caller WHERE call_id IN (SELECT call_id FROM again)
), due AS (
    INSERT INTO erasure (recording_id, cause, done)
    SELECT recording_id, COALESCE(cause, 'revocation'), '{key}' FROM again
    ON CONFLICT (recording_id) DO UPDATE
        SET state = 'due', done = '{key}', due_at = now(), claimed_until = NULL, erased_at = NULL
)
INSERT INTO ledger (call_id, recording_id, kind, body, node, at)
SELECT call_id, recording_id, 'erasure_replayed', '{}', %(node)s, now() FROM again
RETURNING recording_id;

-- name: prune
-- Calls whose evidence has had its time, counted from when their recording was gone, and else from their end, by the
-- period that held on that day: the bodies of their entries go. Only what has its leaf: of an entry that nobody sequenced
-- nothing would be left.
WITH period AS (
    SELECT since, months * interval '1 month' AS lasts
      FROM unnest(%(since)s::date[], %(months)s::integer[]) AS p (since, months)
), over AS (
    SELECT c.call_id
      FROM call c LEFT JOIN recording r USING (call_id) LEFT JOIN erasure e USING (recording_id)
           CROSS JOIN LATERAL (
               SELECT GREATEST(c.arrived_at, c.ended_at, r.stopped_at, e.erased_at) AT TIME ZONE %(timezone)s AS at
           ) AS gone
     WHERE c.pruned_at IS NULL
       AND c.arrived_at <= %(now)s::timestamptz - (SELECT min(lasts) FROM period) + interval '4 days'
       AND (r.recording_id IS NULL OR r.state IN ('discarded', 'empty', 'lost', 'erased'))
       AND (e.recording_id IS NULL OR e.state = 'erased')
       AND NOT EXISTS (SELECT FROM hold h WHERE h.recording_id = r.recording_id AND h.released_at IS NULL)
       AND (gone.at + (SELECT lasts FROM period WHERE since <= gone.at ORDER BY since DESC LIMIT 1))
           AT TIME ZONE %(timezone)s <= %(now)s
       AND NOT EXISTS (SELECT FROM ledger l WHERE l.call_id = c.call_id
                          AND NOT EXISTS (SELECT FROM ledger_leaf f WHERE f.entry_id = l.entry_id))
     ORDER BY c.arrived_at LIMIT %(limit)s FOR UPDATE OF c SKIP LOCKED
), marked AS (
    UPDATE call SET pruned_at = clock_timestamp() WHERE call_id IN (SELECT call_id FROM over) RETURNING call_id
), pruned AS (
    UPDATE ledger SET body = NULL WHERE call_id IN (SELECT call_id FROM over) AND body IS NOT NULL RETURNING entry_id
), counted AS (
    SELECT (SELECT count(*) FROM marked) AS calls, (SELECT count(*) FROM pruned) AS entries
), noted AS (
    INSERT INTO ledger (kind, body, node, at)
    SELECT 'evidence_pruned', jsonb_build_object('calls', calls, 'entries', entries), %(node)s, now()
      FROM counted WHERE calls > 0
)
SELECT calls FROM counted;

-- name: prune_revocations
-- Withdrawals that have had their time, too, and are about no call whose evidence is still there. Their rows go with the
-- bodies: they say by whom, and for whom.
WITH period AS (
    SELECT since, months * interval '1 month' AS lasts
      FROM unnest(%(since)s::date[], %(months)s::integer[]) AS p (since, months)
), over AS (
    SELECT v.revocation_id, l.entry_id
      FROM revocation v
           CROSS JOIN LATERAL (SELECT v.received_at AT TIME ZONE %(timezone)s AS at) AS received
           JOIN ledger l ON l.call_id IS NULL AND l.kind IN ('revocation_received', 'revocation_identified')
                        AND l.body->>'revocation' = v.revocation_id::text
           JOIN ledger_leaf f USING (entry_id)
     WHERE (received.at + (SELECT lasts FROM period WHERE since <= received.at ORDER BY since DESC LIMIT 1))
           AT TIME ZONE %(timezone)s <= %(now)s
       AND NOT EXISTS (SELECT FROM revocation_recording x JOIN recording r USING (recording_id) JOIN call c USING (call_id)
                        WHERE x.revocation_id = v.revocation_id AND c.pruned_at IS NULL)
), unlinked AS (
    DELETE FROM revocation_recording WHERE revocation_id IN (SELECT revocation_id FROM over)
), gone AS (
    DELETE FROM revocation WHERE revocation_id IN (SELECT revocation_id FROM over)
)
UPDATE ledger SET body = NULL WHERE entry_id IN (SELECT entry_id FROM over) AND body IS NOT NULL
RETURNING entry_id;

-- name: lookup_epochs
-- Under which keys callers and reference codes are found.
SELECT epoch::integer AS epoch, sum(callers)::bigint AS callers, sum(codes)::bigint AS codes
  FROM (SELECT epoch, count(*) AS callers, 0 AS codes FROM caller GROUP BY epoch
         UNION ALL
        SELECT reference_epoch, 0, count(*) FROM recording WHERE reference IS NOT NULL GROUP BY reference_epoch) AS found
 GROUP BY epoch ORDER BY epoch;

-- name: storage_probed
-- From a node whose clock is ahead it would bar what others find, for so long.
INSERT INTO storage_probe (bucket, at, node, passed, failed)
VALUES (%(bucket)s, LEAST(%(at)s::timestamptz, now()), %(node)s, %(passed)s, %(failed)s)
ON CONFLICT (bucket) DO UPDATE
    SET at = EXCLUDED.at, node = EXCLUDED.node, passed = EXCLUDED.passed, failed = EXCLUDED.failed
  WHERE storage_probe.at < EXCLUDED.at;

-- name: storage_proven
SELECT passed, failed, at FROM storage_probe WHERE bucket = %(bucket)s;
