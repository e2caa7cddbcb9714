-- What may be written into the ledger is said by a policy, not by a constraint: Postgres reads a constraint anew for each
-- statement, and that took a twentieth of the ledger's throughput. A policy is planned with the statement and kept.
-- It binds all who may write here. It does not bind owner and superuser, who could have dropped the constraint as well.

-- Who migrates may act for the ledger's owner until the end of this file: see the end of 0001_calls.sql.
DO $$
BEGIN
    IF NOT pg_has_role('callrec_ledger', 'USAGE') THEN
        GRANT callrec_ledger TO CURRENT_USER;
    END IF;
END
$$;

-- As the constraint did: what nobody could hash would keep all behind it out of the tree. pruned_at is written by the
-- trigger ledger_only_prunes alone.
CREATE POLICY can_be_hashed ON ledger FOR INSERT WITH CHECK (
    body IS NOT NULL
    AND jsonb_typeof(body) = 'object'
    AND pg_column_size(body) <= 65536
    AND at >= '1970-01-01 00:00+00' AND at < '9000-01-01 00:00+00'
);
-- Who may read and prune is said by the grants.
CREATE POLICY read ON ledger FOR SELECT USING (true);
CREATE POLICY prune ON ledger FOR UPDATE USING (true);
ALTER TABLE ledger ENABLE ROW LEVEL SECURITY;
ALTER TABLE ledger DROP CONSTRAINT ledger_can_be_hashed;

DO $$
BEGIN
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        REVOKE callrec_ledger FROM CURRENT_USER;
    END IF;
END
$$;
