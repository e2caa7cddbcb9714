-- The Merkle tree over the ledger and its signed checkpoints (RFC 6962, C2SP). They only grow, as the ledger does, and
-- belong to the same role, which nobody logs in as.

-- Who migrates may act for that role until the end of this file: see the end of 0001_calls.sql.
DO $$
BEGIN
    IF NOT pg_has_role('callrec_ledger', 'USAGE') THEN
        GRANT callrec_ledger TO CURRENT_USER;
    END IF;
END
$$;

-- What has no canonical form (RFC 8785), or no place in Python's calendar, could not be hashed, and whoever may write
-- one entry could so keep all later ones out of the tree.
ALTER TABLE ledger ADD CONSTRAINT ledger_can_be_hashed CHECK (
    jsonb_typeof(body) = 'object'
    AND pg_column_size(body) <= 65536
    AND NOT jsonb_path_exists(body, 'strict $.**{17 to last}')
    AND NOT jsonb_path_exists(body, 'strict $.** ? (@ > 9007199254740991 || @ < -9007199254740991)')
    AND at >= '1970-01-01 00:00+00' AND at < '9000-01-01 00:00+00'
);

-- No foreign keys here: each would lock, and so write, the row of the ledger that it points at. `callrec verify` looks
-- whether each leaf has its entry, and each entry its leaf.
CREATE TABLE ledger_leaf (
    leaf_index  bigint PRIMARY KEY CHECK (leaf_index >= 0),
    entry_id    bigint NOT NULL UNIQUE,
    body_sha256 bytea NOT NULL CHECK (octet_length(body_sha256) = 32),  -- outlives a body that is pruned
    leaf_hash   bytea NOT NULL CHECK (octet_length(leaf_hash) = 32)
);

-- The full subtrees above the leaves. Each can be computed from ledger_leaf; here it takes one look.
CREATE TABLE ledger_node (
    level    smallint NOT NULL CHECK (level > 0),
    position bigint NOT NULL CHECK (position >= 0),
    hash     bytea NOT NULL CHECK (octet_length(hash) = 32),
    PRIMARY KEY (level, position)
);

CREATE TABLE ledger_checkpoint (
    size      bigint PRIMARY KEY CHECK (size > 0),
    note      bytea NOT NULL,           -- signed: origin, size, root
    signed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

DO $$
DECLARE
    name text;
BEGIN
    FOREACH name IN ARRAY ARRAY['ledger_leaf', 'ledger_node', 'ledger_checkpoint'] LOOP
        EXECUTE format('CREATE TRIGGER ledger_only_grows BEFORE UPDATE OR DELETE ON %I
                        FOR EACH ROW EXECUTE FUNCTION ledger_only_grows()', name);
        EXECUTE format('CREATE TRIGGER ledger_is_not_truncated BEFORE TRUNCATE ON %I
                        FOR EACH STATEMENT EXECUTE FUNCTION ledger_only_grows()', name);
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER ledger_only_grows', name);
        EXECUTE format('ALTER TABLE %I ENABLE ALWAYS TRIGGER ledger_is_not_truncated', name);
    END LOOP;
END
$$;

REVOKE ALL ON ledger_leaf, ledger_node, ledger_checkpoint FROM PUBLIC;
GRANT SELECT, INSERT ON ledger_leaf, ledger_node TO callrec_sweep;
GRANT SELECT, INSERT (size, note) ON ledger_checkpoint TO callrec_sweep;
GRANT SELECT ON ledger_leaf, ledger_node, ledger_checkpoint TO callrec_api;

GRANT CREATE ON SCHEMA public TO callrec_ledger;
ALTER TABLE ledger_leaf OWNER TO callrec_ledger;
ALTER TABLE ledger_node OWNER TO callrec_ledger;
ALTER TABLE ledger_checkpoint OWNER TO callrec_ledger;
REVOKE CREATE ON SCHEMA public FROM callrec_ledger;
DO $$
BEGIN
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        REVOKE callrec_ledger FROM CURRENT_USER;
    END IF;
END
$$;
