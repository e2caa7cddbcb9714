-- The tree over the ledger: what the sequencer and those who prove something run.

-- name: tree_size
SELECT COALESCE(max(leaf_index) + 1, 0) AS size FROM ledger_leaf;

-- name: tree_pending
-- Entries that have no leaf yet. Not simply those behind the last: transactions end in another order than they begin.
-- Here and below each row looks by itself, in an index, whatever is known of the tables: a join that was planned for small
-- tables would read all of them, in each step.
SELECT e.entry_id, e.call_id::text AS call, e.recording_id::text AS recording, e.ordinal, e.kind, e.body::text AS body,
       e.node, (extract(epoch FROM e.at) * 1000000)::bigint AS at, (extract(epoch FROM e.noted_at) * 1000000)::bigint AS noted
  FROM ledger e
 WHERE e.entry_id > %(after)s AND (SELECT l.leaf_index FROM ledger_leaf l WHERE l.entry_id = e.entry_id) IS NULL
 ORDER BY e.entry_id LIMIT %(limit)s;

-- name: tree_settled
-- From the end backwards: no further than to the first that is old enough.
SELECT entry_id FROM ledger WHERE noted_at < now() - %(seconds)s * interval '1 second' ORDER BY entry_id DESC LIMIT 1;

-- name: tree_extend
-- A batch of leaves and the nodes that it fills, all or none; how many leaves. None: the tree has grown meanwhile. Of two
-- that extend it at the same moment the later violates a primary key. Who signs it next need not wait
-- for the disk here: a checkpoint does, and the log keeps its order, so nothing is signed that could be lost.
-- Hashes come one behind the other: an array of them costs both sides more than the hashing.
WITH base AS (
    SELECT %(size)s::bigint AS size WHERE (SELECT COALESCE(max(leaf_index) + 1, 0) FROM ledger_leaf) = %(size)s
), nodes AS (
    INSERT INTO ledger_node (level, position, hash)
    SELECT n.level, n.position, substring(%(hashes)s::bytea FROM (32 * n.place - 31)::integer FOR 32)
      FROM base, unnest(%(levels)s::smallint[], %(positions)s::bigint[]) WITH ORDINALITY AS n (level, position, place)
), leaves AS (
    INSERT INTO ledger_leaf (leaf_index, entry_id, body_sha256, leaf_hash)
    SELECT base.size + l.place - 1, l.entry_id, substring(%(bodies)s::bytea FROM (32 * l.place - 31)::integer FOR 32),
           substring(%(leaves)s::bytea FROM (32 * l.place - 31)::integer FOR 32)
      FROM base, unnest(%(entries)s::bigint[]) WITH ORDINALITY AS l (entry_id, place)
    RETURNING leaf_index
)
SELECT count(*) AS added,
       CASE WHEN NOT %(durable)s THEN set_config('synchronous_commit', 'off', true) END
  FROM leaves;

-- name: tree_nodes
SELECT * FROM (
    SELECT w.level::integer AS level, w.position,
           (SELECT n.hash FROM ledger_node n WHERE n.level = w.level AND n.position = w.position) AS hash
      FROM unnest(%(levels)s::smallint[], %(positions)s::bigint[]) AS w (level, position)
     UNION ALL
    SELECT 0, w.position, (SELECT l.leaf_hash FROM ledger_leaf l WHERE l.leaf_index = w.position)
      FROM unnest(%(leaves)s::bigint[]) AS w (position)
) AS found WHERE hash IS NOT NULL;

-- name: tree_leaf
SELECT leaf_index, body_sha256, leaf_hash FROM ledger_leaf WHERE entry_id = %(entry_id)s;

-- name: tree_last_checkpoint
SELECT size, note FROM ledger_checkpoint ORDER BY size DESC LIMIT 1;

-- name: tree_checkpoint
INSERT INTO ledger_checkpoint (size, note) VALUES (%(size)s, %(note)s) ON CONFLICT DO NOTHING;

-- name: tree_unsigned
-- What no checkpoint covers, and the age of the oldest: entries behind `after` without a leaf, and the latest leaves.
WITH waiting AS (
    SELECT e.noted_at FROM ledger e
     WHERE e.entry_id > %(after)s AND (SELECT l.leaf_index FROM ledger_leaf l WHERE l.entry_id = e.entry_id) IS NULL
     UNION ALL
    SELECT e.noted_at FROM ledger_leaf l JOIN ledger e USING (entry_id)
     WHERE l.leaf_index >= (SELECT COALESCE(max(size), 0) FROM ledger_checkpoint)
)
SELECT count(*) AS entries,
       COALESCE(extract(epoch FROM clock_timestamp() - min(noted_at)), 0)::double precision AS age
  FROM waiting;

-- name: anchor_last
SELECT object_key FROM ledger_anchor WHERE bucket = %(bucket)s ORDER BY size DESC LIMIT 1;

-- name: anchor_keep
INSERT INTO ledger_anchor (size, bucket, object_key, version_id, sha256)
VALUES (%(size)s, %(bucket)s, %(object_key)s, %(version_id)s, %(sha256)s) ON CONFLICT DO NOTHING;
