"""Builds what speaks to the stores, each with the credentials of one role.

A function imports what it builds. A command, or the supervisor, that needs one part starts in half the time that the
libraries of all of them take.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

from callrec.config import Config

if TYPE_CHECKING:
    from callrec.ledger.anchors import Anchors
    from callrec.ledger.audit import Audit
    from callrec.ledger.bundle import Exporter
    from callrec.ledger.note import Verifier
    from callrec.ledger.sequencer import Sequencer
    from callrec.recording.objects import S3Objects
    from callrec.recording.playback import Player
    from callrec.recording.spool import Spool
    from callrec.rights.desk import Desk
    from callrec.store.audit import AuditRecords
    from callrec.store.db import Database
    from callrec.store.reading import LedgerReading
    from callrec.store.rights import RightsRecords
    from callrec.store.tree import TreeRecords


def database(config: Config, role: str, *, size: int = 4) -> "Database":
    """The connections of one role."""
    from callrec.store.db import Database

    user, password = config.postgres.users[role], config.secrets.postgres_password(role)
    return Database(config.postgres.url, user, password, size=size)


def spool(config: Config) -> "Spool":
    from callrec.recording.spool import Spool

    return Spool(config.spool.path, config.spool.min_free, config.spool.max_size)


def objects(config: Config, role: str, bucket: str = "") -> "S3Objects":
    """The recordings' bucket, or the one of this name, by the credential of a role."""
    from callrec.recording.objects import S3Objects

    access_key, secret_key = config.secrets.s3_keys(role)
    return S3Objects(
        endpoint=config.storage.endpoint,
        region=config.storage.region,
        bucket=bucket or config.storage.bucket,
        access_key=access_key,
        secret_key=secret_key,
        single_put_limit=config.storage.single_put_limit,
    )


def anchors(config: Config, records: "LedgerReading") -> "Anchors | None":
    """The ledger's anchors, by the credential that writes them; None where none are kept in S3."""
    from callrec.ledger.anchors import Anchors
    from callrec.recording.objects import S3Objects

    kept, signing = config.storage.checkpoints, config.ledger
    if kept is None:
        return None
    access_key, secret_key = config.secrets.checkpoint_keys()
    bucket = S3Objects(
        endpoint=config.storage.endpoint,
        region=config.storage.region,
        bucket=kept.bucket,
        access_key=access_key,
        secret_key=secret_key,
        connect_seconds=2.0,  # `sweep` signs nothing before its first look there
        read_seconds=10.0,
    )
    stamp = None
    if signing.tsa_roots:
        from callrec.ledger.timestamp import Authority

        stamp = Authority(signing.tsa_url, signing.tsa_roots).stamp
    return Anchors(records, bucket, signing.lineage, kept.years, stamp=stamp)


def sequencer(config: Config, records: "TreeRecords", anchored: "Anchors | None") -> "Sequencer":
    """What signs the ledger; ConfigError without its key."""
    from callrec.ledger.sequencer import Sequencer

    signing = config.ledger
    signers = signing.signers(config.secrets)
    return Sequencer(records, signers, signing.origin, retired=signing.verifiers, anchors=anchored)


@contextmanager
def player(config: Config) -> Iterator["Player"]:
    """What opens recordings, with the credentials of `api`."""
    from callrec.recording.playback import Player

    with database(config, "api") as store:
        bucket = objects(config, "api")
        try:
            yield Player(
                store.run,
                bucket,
                config.secrets.private_key(),
                node=config.node,
                denied=config.purposes.denied,
                rights=config.purposes.rights,
            )
        finally:
            bucket.close()


@contextmanager
def audit(config: Config) -> Iterator[tuple["Audit", "AuditRecords"]]:
    """What audits everything that this node can see, with the credentials of `sweep`."""
    from callrec.ledger.audit import Audit
    from callrec.store.audit import AuditRecords

    with database(config, "sweep") as store:
        bucket, directory = objects(config, "sweep"), spool(config)
        directory.prepare()
        records = AuditRecords(store, node=config.node)
        try:
            yield Audit(records, bucket, directory), records
        finally:
            bucket.close()


@contextmanager
def exporter(config: Config, verifiers: Sequence["Verifier"]) -> Iterator["Exporter"]:
    """What makes evidence bundles, with the credentials of `api`. `verifiers`: the ledger's public keys."""
    from callrec.ledger.bundle import Exporter
    from callrec.ledger.receipt import Controller
    from callrec.store.evidence import EvidenceRecords
    from callrec.store.tree import TreeRecords

    with database(config, "api") as store, player(config) as opens:
        operator = config.operator
        yield Exporter(
            EvidenceRecords(store, node=config.node),
            TreeRecords(store),
            opens,
            Controller(
                operator.name, operator.address, operator.contact, operator.country, operator.language,
                config.storage.region,
            ),
            notices=config.notices,
            lines={line.id: line.number for line in config.policy.lines.values()},
            verifiers=verifiers,
        )  # fmt: skip


def rights(config: Config, store: "Database") -> "RightsRecords":
    from callrec.store.rights import RightsRecords

    return RightsRecords(store, node=config.node)


def desk(config: Config, store: "Database") -> "Desk":
    """Where withdrawals, kinds of call and holds arrive; `store` is logged in as `api`."""
    from callrec.rights.desk import Desk
    from callrec.store.orders import send

    return Desk(
        rights(config, store),
        config.calendar,
        config.bases,
        config.secrets.lookup_keys(),
        partial(send, store),
        longest_hold=config.terms.longest_hold,
    )
