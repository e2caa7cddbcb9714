-- Evidence of a call is not kept for ever (C6): bodies of entries go, their leaves stay. And keys of look-ups have
-- epochs, so that each can be replaced, and destroyed when nothing is found by it any more.

-- Who migrates may act for the ledger's owner until the end of this file: see the end of 0001_calls.sql.
DO $$
BEGIN
    IF NOT pg_has_role('callrec_ledger', 'USAGE') THEN
        GRANT callrec_ledger TO CURRENT_USER;
    END IF;
END
$$;

-- A body is missing only where it was pruned. Nobody is granted to write pruned_at, so none can be missing from the
-- beginning. A body without a canonical form is hashed as it is written (ledger/entry.py), so that nothing need look into
-- it here: that took a third of an INSERT's time. NOT VALID, for the ledger is not to stand still while it is read: what
-- is there passed the constraint of 0003, and its bodies were NOT NULL until here.
ALTER TABLE ledger ADD COLUMN pruned_at timestamptz;
ALTER TABLE ledger DROP CONSTRAINT ledger_can_be_hashed;
ALTER TABLE ledger ADD CONSTRAINT ledger_can_be_hashed CHECK (
    (body IS NULL) = (pruned_at IS NOT NULL)
    AND jsonb_typeof(body) = 'object'
    AND pg_column_size(body) <= 65536
    AND at >= '1970-01-01 00:00+00' AND at < '9000-01-01 00:00+00'
) NOT VALID;
ALTER TABLE ledger ALTER COLUMN body DROP NOT NULL;

-- One change is let through: the body of an entry that has its leaf goes, and nothing else of it changes.
CREATE FUNCTION ledger_only_prunes() RETURNS trigger LANGUAGE plpgsql SET search_path = public, pg_temp AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND NEW.body IS NULL AND OLD.body IS NOT NULL
        AND EXISTS (SELECT FROM ledger_leaf WHERE entry_id = OLD.entry_id)
    THEN
        OLD.body := NULL;
        IF NEW IS NOT DISTINCT FROM OLD THEN
            NEW.pruned_at := clock_timestamp();
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION 'the ledger only grows: % refused', TG_OP USING ERRCODE = 'insufficient_privilege';
END
$$;
DROP TRIGGER ledger_only_grows ON ledger;
CREATE TRIGGER ledger_only_grows BEFORE UPDATE OR DELETE ON ledger
    FOR EACH ROW EXECUTE FUNCTION ledger_only_prunes();
ALTER TABLE ledger ENABLE ALWAYS TRIGGER ledger_only_grows;
GRANT UPDATE (body) ON ledger TO callrec_sweep;

-- Whose evidence is gone is looked for no more.
ALTER TABLE call ADD COLUMN pruned_at timestamptz;
CREATE INDEX call_evidence ON call (arrived_at) WHERE pruned_at IS NULL;
GRANT UPDATE (pruned_at) ON call TO callrec_sweep;
GRANT DELETE ON revocation, revocation_recording TO callrec_sweep;

-- What the previous version writes, it writes under the first key.
ALTER TABLE caller ADD COLUMN epoch smallint NOT NULL DEFAULT 1;            -- of the key that `lookup` was made with
ALTER TABLE recording ADD COLUMN reference_epoch smallint NOT NULL DEFAULT 1;
GRANT SELECT (epoch) ON caller TO callrec_api;
GRANT INSERT (reference_epoch) ON recording TO callrec_listen;

-- The hash of a reference code goes when the recording goes, as the caller's row does: else its key could never.
CREATE FUNCTION recording_forgets_its_code() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    NEW.reference := NULL;
    RETURN NEW;
END
$$;
CREATE TRIGGER recording_forgets_its_code BEFORE UPDATE OF state ON recording FOR EACH ROW
    WHEN (NEW.state IN ('discarded', 'empty', 'lost', 'erased') AND NEW.reference IS NOT NULL)
    EXECUTE FUNCTION recording_forgets_its_code();
UPDATE recording SET reference = NULL
 WHERE reference IS NOT NULL AND state IN ('discarded', 'empty', 'lost', 'erased');

GRANT CREATE ON SCHEMA public TO callrec_ledger;
ALTER FUNCTION ledger_only_prunes() OWNER TO callrec_ledger;
REVOKE CREATE ON SCHEMA public FROM callrec_ledger;
DO $$
BEGIN
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        REVOKE callrec_ledger FROM CURRENT_USER;
    END IF;
END
$$;
