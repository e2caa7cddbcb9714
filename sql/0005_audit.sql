-- The audit: how far each walk has come, and what it found.

-- The walk over the stores goes from object to row in the order of S3's listing, and from row to object in the same.
CREATE INDEX recording_object ON recording (object_key COLLATE "C") WHERE state = 'stored';

-- One row for what all nodes share (scope ''), and one for the spool of each node. Whoever claims it goes on where the
-- last one stopped.
CREATE TABLE audit_run (
    scope         text PRIMARY KEY,
    node          text NOT NULL,                -- who walks, or walked
    started_at    timestamptz NOT NULL,
    claimed_until timestamptz NOT NULL,
    stage         text NOT NULL DEFAULT '',
    position      text NOT NULL DEFAULT '',     -- the last that was looked at in this stage
    counts        jsonb NOT NULL DEFAULT '{}',
    completed_at  timestamptz,                  -- NULL while it is under way
    last_complete timestamptz                   -- of the walk before, too
);

-- What was found, until a later walk no longer finds it. Nothing is ever removed for being in here.
CREATE TABLE audit_finding (
    scope         text NOT NULL,
    kind          text NOT NULL,
    subject       text NOT NULL,                -- an id, an object's key, a file's name
    version_id    text NOT NULL DEFAULT '',
    detail        text NOT NULL,
    first_seen_at timestamptz NOT NULL DEFAULT now(),
    last_seen_at  timestamptz NOT NULL DEFAULT now(),
    quarantined   boolean NOT NULL DEFAULT false,   -- S3's legal hold is on the version, or the file was moved away
    resolved_at   timestamptz
);
-- Not the subject itself: the key of an object may be longer than an index takes.
CREATE UNIQUE INDEX audit_finding_once ON audit_finding (scope, kind, md5(subject), version_id);
CREATE INDEX audit_finding_open ON audit_finding (md5(subject)) WHERE resolved_at IS NULL;

REVOKE ALL ON audit_run, audit_finding FROM PUBLIC;
GRANT SELECT, INSERT, UPDATE ON audit_run, audit_finding TO callrec_sweep;
