-- Of a hold and the deletion of the key in the same moment one alone happens. Each statement looks for the other, but in a
-- transaction that is not over it would see nothing: whoever comes second waits on the recording's row, and looks again.
-- A function sees what was committed meanwhile, the statement that called it would not.

CREATE FUNCTION hold_needs_a_key() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM FROM recording WHERE recording_id = NEW.recording_id FOR NO KEY UPDATE;
    IF EXISTS (SELECT FROM erasure WHERE recording_id = NEW.recording_id AND 'key' = ANY (done)) THEN
        RETURN NULL;  -- no row: place_hold says that nothing can be held
    END IF;
    RETURN NEW;
END
$$;
REVOKE ALL ON FUNCTION hold_needs_a_key() FROM PUBLIC;
CREATE TRIGGER hold_needs_a_key BEFORE INSERT ON hold FOR EACH ROW EXECUTE FUNCTION hold_needs_a_key();

CREATE FUNCTION hold_keeps_the_key() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = public, pg_temp AS $$
BEGIN
    PERFORM FROM recording WHERE recording_id = NEW.recording_id FOR NO KEY UPDATE;
    IF EXISTS (SELECT FROM hold WHERE recording_id = NEW.recording_id AND released_at IS NULL) THEN
        RETURN NULL;  -- no row: erase_key says that a hold came before
    END IF;
    RETURN NEW;
END
$$;
REVOKE ALL ON FUNCTION hold_keeps_the_key() FROM PUBLIC;
CREATE TRIGGER hold_keeps_the_key BEFORE UPDATE OF done ON erasure FOR EACH ROW
    WHEN ('key' = ANY (NEW.done) AND NOT 'key' = ANY (OLD.done))
    EXECUTE FUNCTION hold_keeps_the_key();

-- `api` orders erasures. That one is done is not for it to say: nobody would look for the recording again.
REVOKE INSERT ON erasure FROM callrec_api;
GRANT INSERT (recording_id, cause, deadline) ON erasure TO callrec_api;
