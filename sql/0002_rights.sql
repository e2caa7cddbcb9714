-- What the law takes back: revocations, dispositions, holds, erasures.

ALTER TABLE recording DROP CONSTRAINT recording_state_check;
ALTER TABLE recording ADD CONSTRAINT recording_state_check CHECK (
    state IN ('authorised', 'recording', 'finished', 'stored', 'discarded', 'empty', 'lost', 'erased')
);
ALTER TABLE recording ADD COLUMN reference bytea;   -- keyed hash of the code given to a caller without a number (D11)
CREATE INDEX recording_reference ON recording (reference) WHERE reference IS NOT NULL;
CREATE INDEX recording_expiry ON recording (retain_until) WHERE state = 'stored';
CREATE INDEX recording_discarded ON recording (recording_id) WHERE state = 'discarded' AND attempts > 0;

-- A withdrawal of consent, or an attempt at one, as it was received. The last received wins (D5): `receipt` orders them.
CREATE TABLE revocation (
    revocation_id   uuid PRIMARY KEY,
    request         bytea NOT NULL UNIQUE,      -- keyed hash of all that was said: a request sent twice is taken once
    receipt         bigint GENERATED ALWAYS AS IDENTITY UNIQUE,
    received_at     timestamptz NOT NULL,
    noted_at        timestamptz NOT NULL DEFAULT clock_timestamp(),
    channel         text NOT NULL CHECK (channel IN ('keypress', 'phone', 'email', 'post', 'portal', 'point_of_sale')),
    identification  text NOT NULL CHECK (identification IN ('unverified', 'info_requested', 'verified', 'failed')),
    given_by        text NOT NULL DEFAULT 'self' CHECK (given_by IN ('self', 'parent', 'foster_parent', 'guardian')),
    on_behalf_of    text NOT NULL DEFAULT '',   -- an opaque reference
    scope           text NOT NULL CHECK (scope IN ('all', 'one')),
    recording_id    uuid REFERENCES recording,
    evidence_sha256 bytea,                      -- of the e-mail, the letter, the form
    deadline        timestamptz NOT NULL,       -- end of the fifth working day (C4)
    deadline_inputs jsonb NOT NULL,
    alarm_at        timestamptz NOT NULL,       -- working day 3
    alarmed         text NOT NULL DEFAULT '' CHECK (alarmed IN ('', 'near', 'breached'))
);

-- What each revocation did to each recording that it led to.
CREATE TABLE revocation_recording (
    revocation_id uuid NOT NULL REFERENCES revocation,
    recording_id  uuid NOT NULL REFERENCES recording,
    fate          text NOT NULL CHECK (fate IN ('erase', 'not_touched', 'waits')),
    why           text NOT NULL,
    PRIMARY KEY (revocation_id, recording_id)
);
CREATE INDEX revocation_recording_recording ON revocation_recording (recording_id);

-- What kind of call it was (B1-B3). Said once.
CREATE TABLE disposition (
    recording_id      uuid PRIMARY KEY REFERENCES recording,
    disposition       text NOT NULL,            -- what it amounts to
    said              text NOT NULL,            -- what the desktop sent
    guardian_consent  text NOT NULL DEFAULT '',
    account           text NOT NULL,
    said_at           timestamptz NOT NULL DEFAULT clock_timestamp(),
    seals             boolean NOT NULL,
    sealed_at         timestamptz,              -- the lock was seen to be COMPLIANCE
    due_at            timestamptz NOT NULL DEFAULT now(),
    attempts          integer NOT NULL DEFAULT 0,
    last_error        text
);
CREATE INDEX disposition_to_seal ON disposition (due_at) WHERE seals AND sealed_at IS NULL;

-- Beside the recording, too: what nobody has said anything about is looked for every few seconds, and must be found
-- without a look at all that is kept for years.
ALTER TABLE recording ADD COLUMN kind_known boolean NOT NULL DEFAULT false;
CREATE INDEX recording_unsaid ON recording (basis, stopped_at) WHERE state = 'stored' AND NOT kind_known;

CREATE FUNCTION disposition_makes_known() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    SET search_path = public, pg_temp AS $$
BEGIN
    UPDATE recording SET kind_known = true WHERE recording_id = NEW.recording_id;
    RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION disposition_makes_known() FROM PUBLIC;
CREATE TRIGGER disposition_makes_known AFTER INSERT ON disposition
    FOR EACH ROW EXECUTE FUNCTION disposition_makes_known();

-- Nobody said anything in time (B3).
CREATE TABLE escalation (
    recording_id uuid PRIMARY KEY REFERENCES recording,
    escalated_at timestamptz NOT NULL,
    outcome_at   timestamptz
);

CREATE TABLE hold (
    hold_id        uuid PRIMARY KEY,
    recording_id   uuid NOT NULL REFERENCES recording,
    reason         text NOT NULL CHECK (reason IN ('court_order', 'authority_request', 'dispute', 'restriction')),
    case_reference text NOT NULL,
    owner          text NOT NULL,
    placed_at      timestamptz NOT NULL,
    review_at      timestamptz NOT NULL,
    reviews        integer NOT NULL DEFAULT 0,
    released_at    timestamptz,
    release_reason text,
    applied_at     timestamptz,                 -- S3's legal hold was seen on the object
    lifted_at      timestamptz                  -- and was seen to be off again
);
CREATE INDEX hold_standing ON hold (recording_id) WHERE released_at IS NULL;
CREATE INDEX hold_to_apply ON hold (recording_id) WHERE lifted_at IS NULL;

CREATE TABLE erasure (
    recording_id     uuid PRIMARY KEY REFERENCES recording,
    cause            text NOT NULL CHECK (
        cause IN ('revocation', 'disposition', 'minor', 'expiry', 'no_longer_needed', 'order')
    ),
    requested_at     timestamptz NOT NULL DEFAULT clock_timestamp(),
    deadline         timestamptz,
    done             text[] NOT NULL DEFAULT '{}',
    state            text NOT NULL DEFAULT 'due' CHECK (state IN ('due', 'waits', 'key_erased', 'erased')),
    due_at           timestamptz NOT NULL DEFAULT now(),
    claimed_until    timestamptz,
    attempts         integer NOT NULL DEFAULT 0,
    last_error       text,
    ciphertext_until timestamptz,               -- a COMPLIANCE lock keeps the ciphertext until then
    erased_at        timestamptz,
    CHECK (state <> 'erased' OR erased_at IS NOT NULL)
);
CREATE INDEX erasure_work ON erasure (due_at) WHERE state <> 'erased';

-- Whether the object store keeps its word: the latest probe of each bucket. `listen` asks before it records.
CREATE TABLE storage_probe (
    bucket text PRIMARY KEY,
    at     timestamptz NOT NULL,
    node   text NOT NULL,
    passed boolean NOT NULL,
    failed text[] NOT NULL
);

REVOKE ALL ON revocation, revocation_recording, disposition, escalation, hold, erasure, storage_probe FROM PUBLIC;

GRANT SELECT, INSERT, UPDATE ON revocation, revocation_recording, disposition, escalation, hold, erasure TO callrec_sweep;
GRANT SELECT, INSERT ON revocation, revocation_recording, disposition, hold, erasure TO callrec_api;
GRANT UPDATE (identification) ON revocation TO callrec_api;
GRANT UPDATE (fate, why) ON revocation_recording TO callrec_api;
GRANT UPDATE (review_at, reviews, released_at, release_reason) ON hold TO callrec_api;
GRANT UPDATE (due_at) ON erasure TO callrec_api;    -- a released hold wakes what it held up
GRANT SELECT (call_id, lookup) ON caller TO callrec_api;
GRANT SELECT, INSERT, UPDATE ON storage_probe TO callrec_sweep;
GRANT SELECT ON storage_probe TO callrec_listen;
GRANT INSERT (reference) ON recording TO callrec_listen;

GRANT SELECT, DELETE ON recording_key TO callrec_sweep;
GRANT SELECT, DELETE ON caller TO callrec_sweep;
GRANT UPDATE (node, state, lock_mode) ON recording TO callrec_sweep;
GRANT SELECT (recording_id) ON erasure TO callrec_ship, callrec_listen;
