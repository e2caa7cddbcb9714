"""Every metric that callrec shows, in one place.

Labels are ids from the configuration, states and reasons from closed lists: never anything that a caller sent.
Under `callrec run` the roles are processes and share these through prometheus-client's multiprocess mode.
"""

from prometheus_client import Counter, Gauge, Histogram, disable_created_metrics

disable_created_metrics()  # type: ignore[no-untyped-call] # no types there; a series more for each counter, of no use

_FAST = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_LATE = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
_SLOW = (0.5, 1, 2, 5, 10, 30, 60, 120, 300, 900, 1800, 3600, 7200)

# The calls
CALLS = Counter("callrec_calls", "Calls that reached the listener", ["line", "basis"])
DECISIONS = Counter("callrec_decisions", "How each call was decided", ["line", "decision"])
UNRECORDED = Counter("callrec_unrecorded", "Calls that went on unrecorded, by reason", ["reason"])
STATE = Gauge("callrec_calls_in_state", "Calls now in each state", ["state"], multiprocess_mode="livesum")
CONNECT_SECONDS = Histogram("callrec_connect_seconds", "From accept to `connect` answered", buckets=_FAST)
DECIDE_SECONDS = Histogram("callrec_decide_seconds", "Time to make a legal basis durable", buckets=_FAST)
START_SECONDS = Histogram(
    "callrec_start_seconds", "From the key, or the end of the notice, to uuid_record", buckets=_FAST
)
RECORDING_SECONDS = Histogram("callrec_recording_seconds", "Length of recordings", buckets=_SLOW)

# The event socket
ESL_CONNECTIONS = Gauge(
    "callrec_esl_connections", "Calls that came over a connection and are not over", multiprocess_mode="livesum"
)
ESL_REFUSED = Counter("callrec_esl_refused", "Outbound connections closed at accept: too many")
ESL_ERRORS = Counter("callrec_esl_errors", "Faults on the event socket, by kind", ["link", "kind"])
CONTROL_UP = Gauge("callrec_control_link_up", "1 while the inbound event socket is up", multiprocess_mode="livesum")
RESYNCS = Counter("callrec_resyncs", "Comparisons with `show channels` after a reconnect")

# Spool and upload
SPOOL_BYTES = Gauge("callrec_spool_bytes", "Bytes in the spool", multiprocess_mode="livemax")
SPOOL_FILES = Gauge("callrec_spool_files", "Files in the spool", multiprocess_mode="livemax")
SPOOL_FREE = Gauge("callrec_spool_free_bytes", "Bytes that recordings may still take", multiprocess_mode="livemax")
SPOOL_OLDEST = Gauge("callrec_spool_oldest_seconds", "Age of the oldest file in the spool", multiprocess_mode="livemax")
SPOOL_ORPHANS = Gauge("callrec_spool_orphans", "Files in the spool without a row", multiprocess_mode="livemax")
UPLOADS = Counter("callrec_uploads", "Attempts to store a recording, by result", ["result"])
UPLOAD_SECONDS = Histogram(
    "callrec_upload_seconds", "Time to encrypt, put and verify a recording", buckets=(0.05, 0.1, 0.2, *_SLOW)
)
UPLOAD_LAG = Gauge(
    "callrec_upload_lag_seconds", "Age of the oldest recording not yet stored", multiprocess_mode="livemax"
)

# The stream during the call
STREAMS = Gauge("callrec_streams", "Running recordings that are followed", multiprocess_mode="livesum")
STREAM_LAG = Gauge(
    "callrec_stream_lag_seconds", "How late the latest segment of a running recording is", multiprocess_mode="livemax"
)
SEGMENTS = Counter("callrec_segments", "Segments of running recordings: put, failed, stopped", ["result"])
SEGMENT_BYTES = Counter("callrec_segment_bytes", "Bytes of the segments that were put")
UPLOAD_BYTES = Counter("callrec_upload_bytes", "Bytes of the recordings that were put whole")
READ_BACK_BYTES = Counter("callrec_read_back_bytes", "Bytes of stored recordings that were read to compare them")
REMNANTS = Counter("callrec_remnants_removed", "Recordings whose segments are gone again")
TAKEN_OVER = Counter("callrec_taken_over", "Recordings of lost nodes that were taken over")
NODES_LOST = Gauge("callrec_nodes_lost", "Other nodes that are not heard of any more", multiprocess_mode="livemax")

# Storage that keeps its word
WORM_PROBE = Gauge(
    "callrec_worm_probe_passed", "1 if the object store passed this check", ["check"], multiprocess_mode="livemin"
)
WORM_PROBE_AT = Gauge(
    "callrec_worm_probe_timestamp_seconds", "When the object store was last probed", multiprocess_mode="livemax"
)
LIFECYCLE_DRIFT = Gauge(
    "callrec_lifecycle_drift", "Lifecycle rules that are not as they should be", multiprocess_mode="livemax"
)

# What the law takes back
ERASURES = Counter("callrec_erasures", "Recordings erased, each copy looked for and not found, by cause", ["cause"])
ERASURE_SECONDS = Histogram("callrec_erasure_seconds", "Time of one go at an erasure", buckets=(*_FAST, 2.5, 5, 10, 30))
EXPIRED = Counter("callrec_expired", "Recordings that reached the date of their retention")
LOCKED = Counter("callrec_locked_compliance", "Recordings whose lock was raised to COMPLIANCE")
ESCALATIONS = Counter("callrec_escalations", "Recordings whose kind of call nobody gave in time")
DEADLINES = Counter(
    "callrec_revocation_deadlines", "Revocations not yet carried out: near the deadline, breached", ["how"]
)
REVOCATIONS_OPEN = Gauge(
    "callrec_revocations_open",
    "Revocations not yet carried out, by how near their deadline is",
    ["how"],
    multiprocess_mode="livemax",
)
ERASURES_OVERDUE = Gauge(
    "callrec_erasures_overdue", "Erasures past their deadline that no hold stops", multiprocess_mode="livemax"
)
KINDS_MISSING = Gauge(
    "callrec_dispositions_missing",
    "Escalated recordings whose kind of call is still unsaid",
    multiprocess_mode="livemax",
)
WITHOUT_BASIS = Gauge(
    "callrec_recordings_without_basis",
    "Recordings of the last hour whose legal basis is not in the ledger",
    multiprocess_mode="livemax",
)
HOLDS = Gauge("callrec_holds", "Holds that stand", multiprocess_mode="livemax")
HOLDS_OVERDUE = Gauge("callrec_holds_overdue", "Holds whose review date has come", multiprocess_mode="livemax")
PRUNED = Counter("callrec_evidence_pruned", "Calls whose evidence has had its time: only leaves are left of it")

# The ledger's tree
LEDGER_SIZE = Gauge("callrec_ledger_size", "Entries under the last signed checkpoint", multiprocess_mode="livemax")
LEDGER_SIGNED = Gauge(
    "callrec_ledger_signed_timestamp_seconds", "When the ledger was last signed to its end", multiprocess_mode="livemax"
)
LEDGER_UNSIGNED = Gauge(
    "callrec_ledger_unsequenced", "Ledger entries that no signed checkpoint covers yet", multiprocess_mode="livemax"
)
LEDGER_OLDEST = Gauge(
    "callrec_ledger_unsequenced_oldest_seconds", "Age of the oldest of those", multiprocess_mode="livemax"
)
LEDGER_REFUSED = Counter(
    "callrec_ledger_refused", "Times that nothing was signed or anchored because the ledger is not what was signed"
)
LEDGER_ANCHOR_SIZE = Gauge(
    "callrec_ledger_anchor_size", "Entries under the last checkpoint in the object store", multiprocess_mode="livemax"
)
LEDGER_ANCHORED = Gauge(
    "callrec_ledger_anchor_timestamp_seconds", "When that was put there", multiprocess_mode="livemax"
)

# Completeness
AUDIT_FINDINGS = Gauge(
    "callrec_audit_findings",
    "What the audit found and nobody has mended, by kind",
    ["kind"],
    multiprocess_mode="livemax",
)
AUDIT_AT = Gauge(
    "callrec_audit_timestamp_seconds", "When the stores and this spool were last audited", multiprocess_mode="livemax"
)

# The process and what it stands on
RETRIES = Counter("callrec_retries", "Repeated attempts, by what is repeated", ["what"])
STORE_ERRORS = Counter("callrec_store_errors", "Faults of Postgres and Redis", ["store", "operation"])
NOTES_WAITING = Gauge("callrec_notes_waiting", "Ledger notes not yet in Postgres", multiprocess_mode="livesum")
NOTES_LOST = Counter("callrec_notes_lost", "Ledger notes given up: the queue was full, or Postgres refused them")
DEPENDENCY_UP = Gauge(
    "callrec_dependency_up", "1 while a role's dependency answers", ["role", "dependency"], multiprocess_mode="livemin"
)
HUB_LAG = Histogram("callrec_hub_lag_seconds", "How late the gevent hub ran each tick", ["role"], buckets=_LATE)
HUB_LAG_MAX = Gauge(
    "callrec_hub_lag_max_seconds", "The latest that the hub has run", ["role"], multiprocess_mode="livemax"
)
HEARTBEAT = Gauge(
    "callrec_role_heartbeat_timestamp_seconds", "When the role's hub last ran", ["role"], multiprocess_mode="livemax"
)

# A counter that appears with its first fault was never seen to rise. These stand at 0 from the beginning.
for _reason in (
    "control_link_down", "decision_overdue", "fault", "ledger_down", "link_lost", "no_input", "not_taken",
    "notice_not_played", "notice_overdue", "refused", "spool_full", "start_overdue", "start_refused",
    "started_otherwise", "storage_unproven", "unknown_line", "withdrawn", "wrong_key",
):  # fmt: skip
    UNRECORDED.labels(_reason)
for _result in ("stored", "incomplete", "discarded", "empty", "lost", "failed", "quarantined"):
    UPLOADS.labels(_result)
for _how in ("near", "breached"):
    DEADLINES.labels(_how)
for _cause in ("revocation", "disposition", "minor", "expiry", "no_longer_needed", "order"):
    ERASURES.labels(_cause)
RETRIES.labels("sweep")
