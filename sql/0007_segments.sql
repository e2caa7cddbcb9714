-- The stream during the call: segments in the object store, and what is needed to make a recording of them when the node
-- that wrote them does not come back.

-- When each node was last heard of, by Postgres' clock.
CREATE TABLE node_heartbeat (
    node    text PRIMARY KEY,
    beat_at timestamptz NOT NULL
);

-- What there is, or may be, of a recording beside its object; the row goes when nothing is left.
CREATE TABLE remnant (
    recording_id  uuid PRIMARY KEY REFERENCES recording,
    superseded    text[] NOT NULL DEFAULT '{}',     -- versions of its object that a more complete one took the place of
    due_at        timestamptz NOT NULL DEFAULT now(),
    claimed_until timestamptz,
    attempts      integer NOT NULL DEFAULT 0,
    last_error    text
);

-- One piece of a running call. The row is there before the object is, so nothing is ever put that nobody knows of.
CREATE TABLE segment (
    recording_id     uuid NOT NULL REFERENCES recording,
    index            integer NOT NULL,              -- from 0, without a gap
    stream           smallint NOT NULL,             -- which of segment_keys, from 0
    sha256           bytea NOT NULL,                -- of the object
    bytes            integer NOT NULL,              -- the same
    audio_end        bigint NOT NULL,               -- bytes of audio up to its end
    ends_at          double precision NOT NULL,     -- the same in seconds
    plaintext_sha256 bytea NOT NULL,                -- of all that was recorded up to its end, header included
    begun_at         timestamptz NOT NULL DEFAULT clock_timestamp(),
    version_id       text,                          -- NULL: nobody has seen the object
    PRIMARY KEY (recording_id, index)
);

-- In the row that erases a recording when it goes, beside the key of its object: the keys of its segments, each sealed to
-- the public key, one for every start of `ship` in which some were put. There may be no object yet.
ALTER TABLE recording_key ADD COLUMN segment_keys bytea[] NOT NULL DEFAULT '{}';
ALTER TABLE recording_key ALTER COLUMN sealed DROP NOT NULL;

-- Its node was lost, and the object is made of segments: duration_seconds says where it ends.
ALTER TABLE recording ADD COLUMN incomplete boolean NOT NULL DEFAULT false;

REVOKE ALL ON node_heartbeat, remnant, segment FROM PUBLIC;
GRANT SELECT, INSERT, UPDATE ON node_heartbeat TO callrec_listen, callrec_ship;
GRANT SELECT, DELETE ON node_heartbeat TO callrec_sweep;
GRANT SELECT, INSERT, UPDATE ON remnant, segment TO callrec_ship;
GRANT SELECT, UPDATE, DELETE ON remnant TO callrec_sweep;
GRANT SELECT, DELETE ON segment TO callrec_sweep;
GRANT SELECT ON segment TO callrec_api;
GRANT UPDATE (node, stopped_at, abrupt, incomplete) ON recording TO callrec_ship;
GRANT INSERT (segment_keys), UPDATE (segment_keys) ON recording_key TO callrec_ship;
GRANT SELECT (done) ON erasure TO callrec_ship;
GRANT SELECT (recording_id, released_at) ON hold TO callrec_ship;
GRANT UPDATE (stopped_at, abrupt, due_at, claimed_until) ON recording TO callrec_sweep;
