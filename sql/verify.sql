-- What `callrec verify --ledger` reads. Values come as they are stored: nothing here computes what is to be proved.

-- name: verify_page
-- Leaves with the entries that they were made of. Times are microseconds since 1970, NULL where an entry can't have them.
SELECT l.leaf_index, l.entry_id, l.leaf_hash, l.body_sha256, e.entry_id IS NOT NULL AS found, e.call_id::text AS call,
       e.recording_id::text AS recording, e.ordinal, e.kind, e.body::text AS body, e.node,
       CASE WHEN e.at >= '1970-01-01 00:00+00' AND e.at < '9000-01-01 00:00+00'
            THEN (extract(epoch FROM e.at) * 1000000)::bigint END AS at,
       CASE WHEN e.noted_at >= '1970-01-01 00:00+00' AND e.noted_at < '9000-01-01 00:00+00'
            THEN (extract(epoch FROM e.noted_at) * 1000000)::bigint END AS noted
  FROM ledger_leaf l LEFT JOIN ledger e ON e.entry_id = l.entry_id
 WHERE l.leaf_index >= %(begin)s AND l.leaf_index < %(end)s ORDER BY l.leaf_index;

-- name: verify_nodes
-- The full subtrees that end within these leaves, a row a level.
SELECT n.level::integer AS level, string_agg(n.hash, ''::bytea ORDER BY n.position) AS hashes
  FROM generate_series(1, 62) AS l (level)
  JOIN ledger_node n ON n.level = l.level AND n.position >= (%(begin)s::bigint >> l.level)
                    AND n.position < (%(end)s::bigint >> l.level)
 GROUP BY n.level;

-- name: verify_leaves
SELECT leaf_index, leaf_hash FROM ledger_leaf
 WHERE leaf_index >= %(begin)s AND leaf_index < %(end)s ORDER BY leaf_index;

-- name: verify_checkpoints
SELECT size, note FROM ledger_checkpoint WHERE size > %(after)s AND size < %(end)s ORDER BY size LIMIT %(limit)s;

-- name: verify_last_entry
SELECT COALESCE(max(entry_id), 0) AS entry_id FROM ledger;

-- name: verify_unsequenced
-- Entries of this range that have no leaf though they are old enough.
SELECT e.entry_id, e.call_id::text AS call, e.noted_at, count(*) OVER () AS entries FROM ledger e
 WHERE e.entry_id > %(after)s AND e.entry_id <= %(end)s AND e.noted_at < now() - %(seconds)s * interval '1 second'
   AND NOT EXISTS (SELECT FROM ledger_leaf l WHERE l.entry_id = e.entry_id)
 ORDER BY e.entry_id LIMIT %(limit)s;

-- name: verify_restores
-- What was kept when a person accepted a restored database, by the origin that ended then.
SELECT body #>> '{anchored,origin}' AS origin, body #>> '{kept,size}' AS kept FROM ledger
 WHERE kind = 'restore_accepted' AND body IS NOT NULL ORDER BY entry_id;

-- name: verify_last_anchor
SELECT COALESCE(max(size), 0) AS size FROM ledger_anchor;

-- name: verify_anchored
SELECT size, object_key FROM ledger_anchor WHERE size > %(after)s AND size <= %(end)s ORDER BY size LIMIT %(limit)s;
