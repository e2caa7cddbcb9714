-- Which signed checkpoints lie in the object store under COMPLIANCE, where no database administrator reaches them. The
-- object is the anchor and is what the sequencer reads; this table only says where to begin to look. It only grows.

-- Who migrates may act for the ledger's owner until the end of this file: see the end of 0001_calls.sql.
DO $$
BEGIN
    IF NOT pg_has_role('callrec_ledger', 'USAGE') THEN
        GRANT callrec_ledger TO CURRENT_USER;
    END IF;
END
$$;

CREATE TABLE ledger_anchor (
    size        bigint PRIMARY KEY CHECK (size > 0),
    bucket      text NOT NULL,
    object_key  text NOT NULL,
    version_id  text NOT NULL,
    sha256      bytea NOT NULL CHECK (octet_length(sha256) = 32),   -- of the object
    anchored_at timestamptz NOT NULL DEFAULT clock_timestamp()
);

CREATE TRIGGER ledger_only_grows BEFORE UPDATE OR DELETE ON ledger_anchor
    FOR EACH ROW EXECUTE FUNCTION ledger_only_grows();
CREATE TRIGGER ledger_is_not_truncated BEFORE TRUNCATE ON ledger_anchor
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_only_grows();
ALTER TABLE ledger_anchor ENABLE ALWAYS TRIGGER ledger_only_grows;
ALTER TABLE ledger_anchor ENABLE ALWAYS TRIGGER ledger_is_not_truncated;

REVOKE ALL ON ledger_anchor FROM PUBLIC;
GRANT SELECT, INSERT (size, bucket, object_key, version_id, sha256) ON ledger_anchor TO callrec_sweep;
GRANT SELECT ON ledger_anchor TO callrec_api;

GRANT CREATE ON SCHEMA public TO callrec_ledger;
ALTER TABLE ledger_anchor OWNER TO callrec_ledger;
REVOKE CREATE ON SCHEMA public FROM callrec_ledger;
DO $$
BEGIN
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        REVOKE callrec_ledger FROM CURRENT_USER;
    END IF;
END
$$;
