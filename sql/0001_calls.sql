-- Calls, recordings, their keys, and the ledger. All of it lives in the schema public.

REVOKE CREATE ON SCHEMA public FROM PUBLIC;  -- Postgres before 15 lets everybody make tables there

CREATE TABLE call (
    call_id    uuid PRIMARY KEY,
    node       text NOT NULL,
    channel    text NOT NULL,               -- FreeSWITCH's Unique-ID
    line       text,                        -- the line's id in the configuration; NULL: not in the policy
    basis      text,
    state      text NOT NULL,               -- callrec/call/state.py, as far as it was noted
    decision   text,
    arrived_at timestamptz NOT NULL,
    ended_at   timestamptz
);
CREATE INDEX call_arrived ON call (arrived_at);
CREATE INDEX call_channel ON call (channel);

-- Personal data of recorded calls lives here alone, and goes when the recording goes. Never for a refusal: there is
-- nothing to prove about who refused.
CREATE TABLE caller (
    call_id uuid PRIMARY KEY REFERENCES call,
    lookup  bytea NOT NULL,                 -- HMAC of the number under the node's lookup key: finds a caller's calls
    salt    bytea NOT NULL,                 -- opens the commitment in the ledger; without it that says nothing
    sealed  bytea NOT NULL                  -- the number, sealed to the public key
);
CREATE INDEX caller_lookup ON caller (lookup);

CREATE TABLE recording (
    recording_id      uuid PRIMARY KEY,
    call_id           uuid NOT NULL UNIQUE REFERENCES call,
    node              text NOT NULL,        -- whose spool holds the file
    channel           text NOT NULL,
    line              text NOT NULL,
    basis             text NOT NULL,        -- exactly one, fixed before the first sample (A9)
    notice            text NOT NULL,
    notice_version    text NOT NULL,
    purposes          text[] NOT NULL,
    lock_mode         text NOT NULL CHECK (lock_mode IN ('GOVERNANCE', 'COMPLIANCE')),
    prefix            text NOT NULL,
    state             text NOT NULL DEFAULT 'authorised' CHECK (
        state IN ('authorised', 'recording', 'finished', 'stored', 'discarded', 'empty', 'lost')
    ),
    authorised_at     timestamptz NOT NULL,
    started_at        timestamptz,
    stopped_at        timestamptz,
    retain_until      timestamptz NOT NULL,
    retention_inputs  jsonb NOT NULL,       -- what retain_until was computed from
    samples           bigint,               -- per channel, as FreeSWITCH counted them
    abrupt            boolean NOT NULL DEFAULT false,
    bucket            text,
    object_key        text,
    version_id        text,
    plaintext_sha256  bytea,
    ciphertext_sha256 bytea,
    ciphertext_bytes  bigint,
    duration_seconds  double precision,
    stored_at         timestamptz,
    claimed_until     timestamptz,
    attempts          integer NOT NULL DEFAULT 0,
    due_at            timestamptz,          -- of the next attempt to store it
    last_error        text,
    CHECK (state <> 'stored' OR (version_id IS NOT NULL AND ciphertext_sha256 IS NOT NULL))
);
CREATE INDEX recording_work ON recording (node, due_at) WHERE state = 'finished';
CREATE INDEX recording_authorised ON recording (authorised_at);
CREATE INDEX recording_open ON recording (node) WHERE state IN ('authorised', 'recording');

CREATE FUNCTION recording_keeps_its_basis() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF (NEW.recording_id, NEW.call_id, NEW.basis, NEW.notice, NEW.notice_version, NEW.purposes)
        IS DISTINCT FROM (OLD.recording_id, OLD.call_id, OLD.basis, OLD.notice, OLD.notice_version, OLD.purposes)
    THEN
        RAISE EXCEPTION 'a recording keeps the basis it was started on' USING ERRCODE = 'integrity_constraint_violation';
    END IF;
    RETURN NEW;
END
$$;
CREATE TRIGGER recording_keeps_its_basis BEFORE UPDATE ON recording
    FOR EACH ROW EXECUTE FUNCTION recording_keeps_its_basis();

-- The only place where a recording's data key exists, sealed to the public key. Deleting the row erases the recording.
CREATE TABLE recording_key (
    recording_id uuid PRIMARY KEY REFERENCES recording,
    sealed       bytea NOT NULL,
    key_id       text NOT NULL,             -- which public key
    created_at   timestamptz NOT NULL DEFAULT now()
);

-- What keeps nothing keeps no key and no caller either, whoever ended it. So no role needs the right to delete these.
CREATE FUNCTION recording_takes_all_with_it() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = public, pg_temp AS $$
BEGIN
    DELETE FROM recording_key WHERE recording_id = NEW.recording_id;
    DELETE FROM caller WHERE call_id = NEW.call_id;
    RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION recording_takes_all_with_it() FROM PUBLIC;
CREATE TRIGGER recording_takes_all_with_it AFTER UPDATE OF state ON recording FOR EACH ROW
    WHEN (NEW.state IN ('discarded', 'empty', 'lost') AND OLD.state <> NEW.state)
    EXECUTE FUNCTION recording_takes_all_with_it();

CREATE TABLE ledger (
    entry_id     bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    call_id      uuid,
    recording_id uuid,
    ordinal      integer,                   -- of the call's own notes: a note sent twice is kept once
    kind         text NOT NULL,
    body         jsonb NOT NULL,            -- no personal data
    node         text NOT NULL,
    at           timestamptz NOT NULL,      -- when it happened, by the node's clock
    noted_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    UNIQUE (call_id, ordinal)
);

CREATE FUNCTION ledger_only_grows() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'the ledger only grows: % refused', TG_OP USING ERRCODE = 'insufficient_privilege';
END
$$;
CREATE TRIGGER ledger_only_grows BEFORE UPDATE OR DELETE ON ledger
    FOR EACH ROW EXECUTE FUNCTION ledger_only_grows();
CREATE TRIGGER ledger_is_not_truncated BEFORE TRUNCATE ON ledger
    FOR EACH STATEMENT EXECUTE FUNCTION ledger_only_grows();
ALTER TABLE ledger ENABLE ALWAYS TRIGGER ledger_only_grows;  -- session_replication_role can't silence them
ALTER TABLE ledger ENABLE ALWAYS TRIGGER ledger_is_not_truncated;

REVOKE ALL ON call, caller, recording, recording_key, ledger FROM PUBLIC;
-- noted_at and entry_id are Postgres' own to give.
GRANT SELECT ON schema_migration TO callrec_listen, callrec_ship, callrec_sweep, callrec_api;
GRANT SELECT, INSERT (call_id, recording_id, ordinal, kind, body, node, at)
    ON ledger TO callrec_listen, callrec_ship, callrec_sweep, callrec_api;

GRANT INSERT, SELECT ON call TO callrec_listen;
GRANT UPDATE (state, decision, ended_at) ON call TO callrec_listen;
GRANT INSERT ON caller TO callrec_listen;
GRANT SELECT, INSERT (
    recording_id, call_id, node, channel, line, basis, notice, notice_version, purposes, lock_mode, prefix,
    authorised_at, retain_until, retention_inputs
) ON recording TO callrec_listen;
GRANT UPDATE (state, started_at, stopped_at, retain_until, retention_inputs, samples, abrupt, due_at)
    ON recording TO callrec_listen;

GRANT SELECT ON call, recording TO callrec_ship;
GRANT UPDATE (
    state, bucket, object_key, version_id, plaintext_sha256, ciphertext_sha256, ciphertext_bytes, duration_seconds,
    stored_at, claimed_until, attempts, due_at, last_error
) ON recording TO callrec_ship;
GRANT SELECT, INSERT (recording_id, sealed, key_id), UPDATE (sealed, key_id) ON recording_key TO callrec_ship;

GRANT SELECT ON call, recording, recording_key TO callrec_api;
GRANT SELECT ON call, caller, recording, recording_key TO callrec_sweep;

-- Last: from here on the ledger belongs to a role that nobody logs in as. To give it away one must be a member of that
-- role, for this moment (a superuser need not be), and that role must be able to have tables here.
DO $$
BEGIN
    IF NOT pg_has_role('callrec_ledger', 'USAGE') THEN
        GRANT callrec_ledger TO CURRENT_USER;
    END IF;
END
$$;
GRANT CREATE ON SCHEMA public TO callrec_ledger;
ALTER TABLE ledger OWNER TO callrec_ledger;
ALTER FUNCTION ledger_only_grows() OWNER TO callrec_ledger;
REVOKE CREATE ON SCHEMA public FROM callrec_ledger;
DO $$
BEGIN
    IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN
        REVOKE callrec_ledger FROM CURRENT_USER;
    END IF;
END
$$;
