"""Starts the roles; the one place that knows which part goes with which (callrec/adapters.py builds the adapters).

`listen` has no S3 credentials, `ship` no event socket: each is a process that is given what its work needs, and a
role imports what that is.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import gevent

from callrec import metrics
from callrec.adapters import anchors, database, desk, objects, sequencer, spool
from callrec.call import events as on
from callrec.call.policy import Line, Prompt
from callrec.config import Config
from callrec.errors import SpoolError, StoreError
from callrec.ledger.caller import Lookup, LookupKeys, conceal
from callrec.log import Log
from callrec.process import Role
from callrec.recording.recovery import Assembler, Neighbours
from callrec.rights.reference_code import new_code, show_code
from callrec.sound import Sounds
from callrec.store.orders import OrderDesk, send
from callrec.store.records import CallRecords
from callrec.store.rights import RightsRecords
from callrec.store.segments import RemnantRecords, SegmentRecords

if TYPE_CHECKING:
    from callrec.esl.conduct import Node
    from callrec.recording.spool import Spool
    from callrec.store.db import Database
    from callrec.store.shipping import ShipRecords

log = Log(__name__)

_DRAIN = 5.0  # seconds beyond the longest interview until calls in theirs are released as they are
_LONGEST_DRAIN = 120.0
_ENDING = 10.0  # seconds for segments that are being put
_ROOM = 1.0  # seconds between looks at the spool
_PROOF = 2.0  # seconds between looks at what the last probe found
_SIGN = 0.15  # seconds between signatures of the ledger, half as much again at most
_MEASURE = 5.0  # seconds between looks at what waits for a signature


def listen(config: Config, http: tuple[str, int] | None) -> None:
    """Conduct calls until asked to end; then let interviews finish. Recordings that run go on without us."""
    from callrec.esl.conduct import Node
    from callrec.esl.link import OutboundServer
    from callrec.esl.listener import Listener
    from callrec.esl.registry import Registry
    from callrec.esl.watcher import Watcher
    from callrec.store import live
    from callrec.store.scribe import Scribe

    store = database(config, "listen", size=8)
    scribe = Scribe(store)
    directory = spool(config)
    directory.prepare()
    redis = live.connect(config.redis.url, config.secrets.redis_password())
    view = live.LiveState(redis, live_ttl=config.redis.live_ttl_seconds, ended_ttl=config.redis.ended_ttl_seconds)
    watcher = Watcher(*config.event_socket, config.secrets.event_socket_password())
    sounds = Sounds()
    lookup_keys = config.secrets.lookup_keys()
    node = Node(
        policy=config.policy,
        records=CallRecords(store, scribe, node=config.node, timezone=config.operator.timezone),
        live=view,
        spool=directory,
        control=watcher,
        prompts=partial(with_sounds, sounds),
        conceal=partial(conceal, lookup_keys=lookup_keys, public_key=config.public_key),
        refer=partial(refer, lookup_keys),
        name=config.node,
        decision_timeout=config.listen.decision_timeout,
        room=directory.left() > 0,
        room_for_consent=directory.left() > config.spool.consent_reserve,
    )
    registry = Registry()
    lines = map(node.prompts, config.policy.lines.values())  # reads each prompt before the first call needs it
    longest = max((line.longest_interview for line in lines), default=0.0)

    def take_order(channel: str, order: str, call: str) -> None:
        conduct = registry.get(channel, call)
        if conduct is not None and order in set(on.Order):
            conduct.mailbox.put(on.Ordered(on.Order(order)))

    desk = OrderDesk(store.conninfo, take_order)
    server = OutboundServer(config.listen.address, Listener(node, registry).serve, config.listen.max_calls)
    needs = {
        "redis": view.alive,
        "event_socket": lambda: watcher.up,
        "spool": lambda: node.room and node.room_for_consent,
    }
    role = Role("listen", _database(store) | needs)
    store.open()
    for part in (scribe, view, desk):
        part.start()
    watcher.start(node, registry)
    gevent.spawn(_keep_room_current, node, config.spool.consent_reserve)
    gevent.spawn(Neighbours(SegmentRecords(store, node=config.node), 0).run, role.stopping)
    if config.storage.worm_probe == "enforce":
        gevent.spawn(_keep_storage_current, node, RightsRecords(store, node=config.node), config.storage.bucket)
    server.start()
    role.start(http)
    role.wait()
    server.close()
    registry.await_interviews(min(longest + _DRAIN, _LONGEST_DRAIN))
    server.stop(timeout=0)
    watcher.stop()
    desk.stop()
    scribe.stop()
    view.stop()
    store.close()


def _database(store: "Database") -> dict[str, Callable[[], bool]]:
    """What every role needs of Postgres: that it answers, and that `callrec migrate` has been run."""
    return {"postgres": store.alive, "schema": store.current}


def with_sounds(sounds: Sounds, line: Line) -> Line:
    """The line with its prompts as their files are at this moment: what the caller will hear is what is proved."""

    def read(prompt: Prompt) -> Prompt:
        sound = sounds.inspect(prompt.file)
        return replace(prompt, audio_sha256=sound.sha256, seconds=sound.seconds)

    notice = line.notice
    ask = read(notice.ask) if notice.ask else None
    return replace(line, notice=replace(notice, prompt=read(notice.prompt), ask=ask))


def _keep_room_current(node: "Node", consent_reserve: int) -> None:
    threads = gevent.get_hub().threadpool
    while True:
        try:
            left = threads.apply(node.spool.left)  # it looks at every file; no call waits for that
        except SpoolError:  # where it can't be looked at, nothing can be recorded
            left = 0
        room, for_consent = left > 0, left > consent_reserve
        if room != node.room:
            (log.info if room else log.error)("spool_has_room" if room else "spool_full")
        elif for_consent != node.room_for_consent:
            (log.info if for_consent else log.error)("spool_takes_consent" if for_consent else "spool_low")
        node.room, node.room_for_consent = room, for_consent
        gevent.sleep(_ROOM)


def refer(lookup_keys: LookupKeys) -> tuple[str, Lookup]:
    """A new reference code as people read it, and what is kept of it (D11)."""
    code = new_code()
    return show_code(code), lookup_keys.newest(code)


def _keep_storage_current(node: "Node", records: RightsRecords, bucket: str) -> None:
    """Record nothing on storage that failed its latest probe. Before the first probe of all, nothing is known."""
    while True:
        with suppress(StoreError):  # without Postgres nothing is recorded anyway
            failed = records.storage_failures(bucket)
            if failed and node.storage_ok:
                log.error("storage_unproven", failed=failed)
            elif not failed and not node.storage_ok:
                log.info("storage_proven")
            node.storage_ok = not failed
        gevent.sleep(_PROOF)


def ship(config: Config, http: tuple[str, int] | None) -> None:
    """Store finished recordings until asked to end. What is under way is finished, or begun again next time."""
    from callrec.recording.stream import Streamer
    from callrec.recording.upload import Shipper
    from callrec.store.shipping import ShipRecords

    store = database(config, "ship", size=8)
    directory = spool(config)
    directory.prepare()
    bucket = objects(config, "ship")
    records = ShipRecords(store, node=config.node)
    pieces = SegmentRecords(store, node=config.node)
    shipper = Shipper(
        records, directory, bucket, config.public_key, config.node, segments=Assembler(pieces, directory, bucket),
        read_all_back=config.storage.read_back == "full",
    )  # fmt: skip
    every = {basis.id: float(basis.segment_seconds) for basis in config.bases.values()}
    streamer = Streamer(pieces, directory, bucket, config.public_key, every)
    neighbours = Neighbours(pieces, config.lost_after_seconds)
    ready = {"storage": lambda: bucket.check().object_lock, "spool": lambda: directory.left() > 0}
    role = Role("ship", _database(store) | ready)
    store.open()
    with suppress(StoreError):  # Postgres is away: the leases end by themselves
        records.unclaim()
    gevent.spawn(_measure_spool, directory, records)
    role.start(http)
    beside = [gevent.spawn(part.run, role.stopping) for part in (streamer, neighbours)]
    shipper.run(role.stopping)
    gevent.joinall(beside, timeout=_ENDING)
    store.close()


def _measure_spool(directory: "Spool", records: "ShipRecords") -> None:
    while True:
        with suppress(SpoolError, StoreError):  # counted, or shown by /readyz, where it arose; the next look is soon
            room = directory.room()
            metrics.SPOOL_BYTES.set(room.bytes_used)
            metrics.SPOOL_FILES.set(room.files)
            metrics.SPOOL_FREE.set(max(0, room.left))
            metrics.SPOOL_OLDEST.set(room.oldest_age)
            metrics.UPLOAD_LAG.set(records.lag())
        gevent.sleep(_ROOM)


def sweep(config: Config, http: tuple[str, int] | None) -> None:
    """Erase, expire, seal, escalate, mind deadlines and sign the ledger until asked to end."""
    from callrec.ledger.audit import Audit
    from callrec.recording import lifecycle
    from callrec.rights.erasure import Eraser
    from callrec.rights.pruning import Pruner
    from callrec.rights.remnants import Remover
    from callrec.rights.sweeper import Chore, Sweeper
    from callrec.rights.vigil import Vigil
    from callrec.store import live
    from callrec.store.audit import AuditRecords
    from callrec.store.reading import LedgerReading

    store = database(config, "sweep", size=6)
    directory = spool(config)
    directory.prepare()
    bucket = objects(config, "sweep")
    redis = live.connect(config.redis.url, config.secrets.redis_password())
    view = live.LiveState(redis, live_ttl=config.redis.live_ttl_seconds, ended_ttl=config.redis.ended_ttl_seconds)
    records = RightsRecords(store, node=config.node)
    eraser = Eraser(records, bucket, directory, view, partial(send, store))
    vigil = Vigil(bucket, lifecycle.rules(config.bases.values()), records)
    pruner = Pruner(records, config.terms.evidence, config.operator.timezone)
    auditor = Audit(AuditRecords(store, node=config.node), bucket, directory)
    remover = Remover(RemnantRecords(store, node=config.node), records, bucket)
    tree = LedgerReading(store)
    anchored = anchors(config, tree)
    signing = sequencer(config, tree, anchored)
    more: list[Chore] = [
        *vigil.chores,
        *auditor.chores,
        pruner.chore,
        *remover.chores,
        (signing.work, _SIGN),
        (signing.measure, _MEASURE),
    ]
    if anchored:  # a pause lasts half as long again at most
        more.append((anchored.anchor, config.ledger.anchor_seconds * 0.6))
    sweeper = Sweeper(records, eraser, bucket, config.bases, config.terms.patience, more=more)
    needs = {
        "storage": lambda: bucket.check().object_lock,
        "redis": view.alive,
        "ledger": lambda: signing.sound,  # it is what was signed, and can be signed on
    }
    role = Role("sweep", _database(store) | needs)
    store.open()
    with suppress(StoreError):  # Postgres is away: the leases end by themselves
        records.unclaim_erasures()
    role.start(http)
    sweeper.run(role.stopping)
    store.close()


def api(config: Config, http: tuple[str, int] | None) -> None:
    """Take callbacks until asked to end."""
    import falcon

    from callrec.web import health
    from callrec.web.api import Callbacks
    from callrec.web.auth import Accounts

    store = database(config, "api", size=8)
    role = Role("api", _database(store))
    store.open()
    pages = falcon.App()
    Callbacks(desk(config, store), Accounts(config.secrets.api_tokens()), config.operator.country).add_to(pages)
    server = health.serve(config.callbacks, pages)
    role.start(http)
    role.wait()
    server.stop(timeout=5)
    store.close()
