-- The roles of callrec, with the least that each needs; `callrec migrate` runs this file each time, it may be repeated.
-- They are groups without login: give each process a login of its own that is a member (or ALTER ROLE … LOGIN PASSWORD …).

DO $$
DECLARE
    name text;
BEGIN
    -- callrec_ledger owns the ledger and nobody logs in as it: not even the owner of the other tables can rewrite it.
    FOREACH name IN ARRAY ARRAY['callrec_ledger', 'callrec_listen', 'callrec_ship', 'callrec_sweep', 'callrec_api'] LOOP
        IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', name);
            EXCEPTION WHEN duplicate_object OR unique_violation THEN
                NULL;  -- roles belong to the server: a migration of another of its databases was quicker
            END;
        END IF;
    END LOOP;
END
$$;
