"""The port to S3: one bucket with object lock.

minio-py 7.2.20 does the work, except for the single PUT: minio-py wants the whole body in memory and hashes it once
more, so that request is signed here with minio-py's signer over the SHA-256 that is known anyway, and the file is
streamed. Above `single_put_limit` a GOVERNANCE object goes up in parts of `part_bytes`; servers drop the lock headers
of a multipart upload, so the retention is set on the version afterwards, and the bucket's default covers the moment in
between.

Every wait has a deadline: `connect_seconds` for a connection and for each block sent, `read_seconds` for each answer
and for each part of a multipart upload. Reading requests are repeated twice at most, after a jittered pause; a PUT is
repeated only if the connection was never made, because each PUT that arrives makes another locked version.

Every failure is a StorageError that says whether it is transient.
"""

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256 as new_sha256
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from minio import Minio
from minio.commonconfig import ENABLED, Filter
from minio.credentials.credentials import Credentials
from minio.datatypes import Object
from minio.deleteobjects import DeleteObject
from minio.error import S3Error
from minio.lifecycleconfig import AbortIncompleteMultipartUpload, LifecycleConfig, Rule
from minio.objectlockconfig import DAYS, ObjectLockConfig
from minio.retention import Retention
from urllib3 import PoolManager

from callrec import metrics
from callrec.call.policy import LockMode
from callrec.errors import ConfigError, SpoolError, StorageError
from callrec.recording.exchange import BYPASS, Answer, Exchange
from callrec.recording.transport import pool, refused, said_no, signed, storage_errors

_BLOCK = 64 * 1024
_MOST_PARTS = 10_000  # of a multipart upload, as S3 has it
_LARGEST_PUT = 5 << 30  # the same
_LOCK_TOLERANCE = timedelta(seconds=1)  # servers keep whole seconds
_OK = 200
_CONTENT = "application/octet-stream"
_NO_LOCK = frozenset({"ObjectLockConfigurationNotFoundError", "InvalidRequest", "NoSuchObjectLockConfiguration"})


class Stored(NamedTuple):
    """Where an object went."""

    version_id: str
    etag: str  # empty where the server gives none


class Version(NamedTuple):
    """One version of a key, or one delete marker."""

    key: str
    version_id: str
    is_delete_marker: bool
    size: int
    last_modified: datetime | None


class DefaultRetention(NamedTuple):
    """What a bucket locks its objects with when a request says nothing."""

    mode: LockMode
    duration: int
    unit: str = DAYS  # or "Years"


@dataclass(frozen=True, slots=True)
class BucketFacts:
    """What the server says of the bucket. Whether the lock holds is for a probe to find out."""

    exists: bool
    object_lock: bool = False
    versioning: bool = False
    default_retention: DefaultRetention | None = None


class S3Objects:
    """The objects of `bucket`. `endpoint` is a URL: https://host, or http://host:port on a trusted network."""

    def __init__(
        self,
        *,
        endpoint: str,
        region: str,
        bucket: str,
        access_key: str,
        secret_key: str,
        connect_seconds: float = 5.0,
        read_seconds: float = 30.0,
        single_put_limit: int = 64 * 1024 * 1024,
        part_bytes: int = 8 * 1024 * 1024,
        ca_file: str | None = None,
    ) -> None:
        url = urlsplit(endpoint)
        if url.scheme not in {"http", "https"} or not url.netloc or url.path.strip("/"):
            raise ConfigError(f"{endpoint!r} is no S3 endpoint", hint="Write it as https://host or http://host:port")
        self.bucket = bucket
        self._region = region
        self._credentials = Credentials(access_key, secret_key)
        self._single_put_limit = single_put_limit
        self._part_bytes = part_bytes

        def client(http: PoolManager) -> Minio:
            return Minio(
                endpoint=url.netloc,
                access_key=access_key,
                secret_key=secret_key,
                secure=url.scheme == "https",
                region=region,
                http_client=http,
            )

        self._http = pool(connect_seconds, read_seconds, ca_file)
        self._client = client(self._http)
        self.exchange = Exchange(self._client, self._http, bucket, region, self._credentials)
        # A part goes out in one send, which urllib3 bounds by the connect timeout.
        self._bulk_http = pool(read_seconds, read_seconds, ca_file)
        self._bulk = client(self._bulk_http)

    def close(self) -> None:
        """Close the idle connections."""
        self._http.clear()
        self._bulk_http.clear()

    # Putting

    def put_locked(
        self, key: str, path: Path, *, sha256: bytes, mode: LockMode, until: datetime, metadata: Mapping[str, str]
    ) -> Stored:
        """Put the file under lock as a new version of `key`.

        `sha256` is the hash of the file, 32 bytes; it is sent as checksum and kept as metadata beside `metadata`, which
        holds our own identifiers and nothing of a caller. SpoolError if the file can't be read.
        """
        try:
            size = path.stat().st_size
        except OSError as error:
            raise SpoolError("A file to be stored can't be read", detail=error.strerror or "") from error
        headers = {
            **lock_headers(mode, until),
            "x-amz-meta-sha256": sha256.hex(),
            **{f"x-amz-meta-{name}": value for name, value in metadata.items()},
        }
        # Where the bucket's default is GOVERNANCE, parts would end in a version that only a bypass can change.
        if size <= (_LARGEST_PUT if mode is LockMode.COMPLIANCE else self._single_put_limit):
            return self._put(key, path, size, sha256, headers)
        stored = self._put_parts(key, path, size, headers)
        self.lock(key, stored.version_id, mode, until)
        return stored

    def lock(self, key: str, version_id: str, mode: LockMode, until: datetime) -> None:
        """Lock a version, or lengthen its lock. Without bypass: a lock never becomes shorter or weaker by this."""
        with storage_errors("set the lock of an object"):
            self._client.set_object_retention(
                bucket_name=self.bucket, object_name=key, version_id=version_id, config=Retention(mode.value, until)
            )

    def seal(self, key: str, version_id: str, until: datetime) -> None:
        """GOVERNANCE becomes COMPLIANCE: nobody can delete the version before `until`. Needs the bypass right."""
        answer = self.relock(key, version_id, LockMode.COMPLIANCE, until)
        if answer.status != _OK:
            raise refused("seal an object", answer.code, answer.status)

    def relock(self, key: str, version_id: str, mode: LockMode, until: datetime) -> Answer:
        """Ask for another lock with the bypass header, be it weaker; what the server said to that."""
        lock = f"<Mode>{mode.value}</Mode><RetainUntilDate>{_header_date(until)}</RetainUntilDate>"
        body = f'<Retention xmlns="http://s3.amazonaws.com/doc/2006-03-01/">{lock}</Retention>'
        about = {"retention": "", "versionId": version_id}
        return self.exchange.ask("PUT", key, query=about, headers=BYPASS, body=body.encode())

    def hold(self, key: str, version_id: str, *, on: bool) -> None:
        """Set or release the legal hold of a version, which no bypass and no end of a lock undoes (E16)."""
        change = self._client.enable_object_legal_hold if on else self._client.disable_object_legal_hold
        with storage_errors("change the legal hold of an object"):
            change(bucket_name=self.bucket, object_name=key, version_id=version_id)

    def _put(self, key: str, path: Path, size: int, sha256: bytes, headers: Mapping[str, str]) -> Stored:
        with storage_errors("put an object"):
            url = self.exchange.url(key)
            asked = {
                **headers,
                "Content-Length": str(size),
                "Content-Type": _CONTENT,
                # AWS refuses a locked PUT without a checksum.
                "x-amz-sdk-checksum-algorithm": "SHA256",
                "x-amz-checksum-sha256": base64.b64encode(sha256).decode("ascii"),
            }
            sent = signed("PUT", url, asked, sha256.hex(), region=self._region, credentials=self._credentials)
            with path.open("rb") as body:
                answer = self._http.urlopen("PUT", url.geturl(), body=body, headers=sent, redirect=False)
            if answer.status != _OK:
                raise said_no(answer)
        return _stored(answer.headers.get("x-amz-version-id"), answer.headers.get("etag"))

    def _put_parts(self, key: str, path: Path, size: int, headers: Mapping[str, str]) -> Stored:
        with storage_errors("put an object in parts"), path.open("rb") as body:
            result = self._bulk.put_object(
                bucket_name=self.bucket,
                object_name=key,
                data=body,
                length=size,
                content_type=_CONTENT,
                part_size=max(self._part_bytes, -(-size // _MOST_PARTS)),
                num_parallel_uploads=1,  # its threads would outlive a greenlet that is killed
                metadata={**headers},
            )
        return _stored(result.version_id, result.etag)

    # Looking

    def find(self, key: str, sha256: bytes, *, whole: bool = False) -> str | None:
        """The newest version of exactly this key that was put with this hash; with `whole`, whose bytes have it now."""
        for version in self.versions(key):
            if version.key == key and not version.is_delete_marker:
                said = (self._head(key, version.version_id).metadata or {}).get("x-amz-meta-sha256")
                if said == sha256.hex() and (not whole or self.hash_of(key, version.version_id) == sha256):
                    return version.version_id
        return None

    def verify(self, key: str, version_id: str, *, sha256: bytes, size: int, mode: LockMode, until: datetime) -> bool:
        """Read back size, lock mode, lock date and hash; StorageError naming the first that differs.

        The lock may differ by one second. The hash is the server's checksum of the whole object where it has one;
        otherwise the object is read back, which the answer says. The lock needs the right s3:GetObjectRetention.
        """
        head = self._head(key, version_id)
        said = _headers(head)
        same("size", str(size), str(head.size))
        locked, held = lock_in(said)
        same("lock mode", mode.value, locked or "none")
        if held is None or abs(held - until) > _LOCK_TOLERANCE:
            same("lock date", until.astimezone(UTC).isoformat(), held.isoformat() if held else "none")
        checksum = said.get("x-amz-checksum-sha256", "")
        if checksum and "-" not in checksum:  # with a hyphen it is a checksum of checksums of parts
            same("SHA-256", base64.b64encode(sha256).decode("ascii"), checksum)
            return False
        same("SHA-256", sha256.hex(), self.hash_of(key, version_id).hex())
        return True

    def hash_of(self, key: str, version_id: str) -> bytes:
        """The SHA-256 of a version's bytes, all of which are read."""
        found = new_sha256()
        for block in self.read(key, version_id):
            found.update(block)
            metrics.READ_BACK_BYTES.inc(len(block))
        return found.digest()

    def lock_of(self, key: str, version_id: str) -> tuple[str, datetime | None]:
        """The lock's mode and end as the server holds them now; an empty mode where there is no lock."""
        return self.locks_of(key, version_id)[:2]

    def held(self, key: str, version_id: str) -> bool:
        """Whether a legal hold is on the version."""
        return self.locks_of(key, version_id)[2]

    def locks_of(self, key: str, version_id: str) -> tuple[str, datetime | None, bool]:
        """Both: mode and end of the lock, and whether a legal hold is on."""
        said = _headers(self._head(key, version_id))
        return (*lock_in(said), said.get("x-amz-object-lock-legal-hold") == "ON")

    def read(self, key: str, version_id: str, offset: int = 0, length: int = 0) -> Iterator[bytes]:
        """The bytes of a version from `offset` on, in blocks; with a `length`, so many."""
        with storage_errors("read an object"):
            answer = self._client.get_object(
                bucket_name=self.bucket, object_name=key, version_id=version_id, offset=offset, length=length
            )
            try:
                yield from answer.stream(_BLOCK)
            finally:
                answer.close()
                answer.release_conn()

    def versions(self, prefix: str) -> list[Version]:
        """Every version and delete marker under the prefix."""
        return list(self.versions_after(prefix, ""))

    def versions_after(self, prefix: str, key: str) -> Iterator[Version]:
        """Those under the prefix whose keys come behind `key`: by key, the newest of a key first."""
        with storage_errors("list the versions of an object"):
            for each in self._client.list_objects(
                bucket_name=self.bucket, prefix=prefix, recursive=True, include_version=True, start_after=key or None
            ):
                yield Version(
                    key=each.object_name or "",
                    version_id=each.version_id or "",
                    is_delete_marker=each.is_delete_marker,
                    size=each.size or 0,
                    last_modified=each.last_modified,
                )

    def _head(self, key: str, version_id: str) -> Object:
        with storage_errors("look at an object"):
            return self._client.stat_object(
                bucket_name=self.bucket,
                object_name=key,
                version_id=version_id,
                extra_headers={"x-amz-checksum-mode": "ENABLED"},
            )

    # The bucket

    def check(self) -> BucketFacts:
        """What the server says of the bucket."""
        with storage_errors("look at the bucket"):
            if not self._client.bucket_exists(bucket_name=self.bucket):
                return BucketFacts(exists=False)
            versioning = self._client.get_bucket_versioning(bucket_name=self.bucket).status == ENABLED
            try:
                config = self._client.get_object_lock_config(bucket_name=self.bucket)
            except S3Error as error:
                if error.code in _NO_LOCK:
                    return BucketFacts(exists=True, versioning=versioning)
                raise
            default = None
            if config.mode and config.duration:
                default = DefaultRetention(LockMode(config.mode), config.duration, config.duration_unit or DAYS)
            return BucketFacts(exists=True, object_lock=True, versioning=versioning, default_retention=default)

    def create_bucket(self, default_retention: DefaultRetention | None) -> None:
        """Make the bucket with object lock, and let it drop multipart uploads that were never completed."""
        with storage_errors("create the bucket"):
            self._client.make_bucket(bucket_name=self.bucket, location=self._region, object_lock=True)
            stale = Rule(
                ENABLED,
                rule_filter=Filter(prefix=""),
                rule_id="abort-stale-uploads",
                abort_incomplete_multipart_upload=AbortIncompleteMultipartUpload(days_after_initiation=1),
            )
            self._client.set_bucket_lifecycle(bucket_name=self.bucket, config=LifecycleConfig([stale]))
        if default_retention:
            self.set_default_retention(default_retention)

    def set_default_retention(self, default: DefaultRetention) -> None:
        """What the bucket locks with from now on when a request says nothing; what is there keeps its lock."""
        with storage_errors("set the default retention of the bucket"):
            config = ObjectLockConfig(default.mode.value, default.duration, default.unit)
            self._client.set_object_lock_config(bucket_name=self.bucket, config=config)

    def delete_version(self, key: str, version_id: str, *, bypass_governance: bool) -> None:
        """Delete one version or delete marker; none there is no error. StorageError when its lock forbids it."""
        with storage_errors("delete a version"):
            faults = self._client.remove_objects(
                bucket_name=self.bucket,
                delete_object_list=[DeleteObject(key, version_id)],
                bypass_governance_mode=bypass_governance,
            )
            for error in faults:  # a lazy generator: nothing happens before it is asked
                raise refused("delete a version", error.code or "", status=0)


def _headers(head: Object) -> dict[str, str]:
    return {name.lower(): value for name, value in (head.metadata or {}).items()}


def lock_in(headers: Mapping[str, str]) -> tuple[str, datetime | None]:
    """The lock that an answer tells: mode, empty where there is none, and end."""
    until = _instant(headers.get("x-amz-object-lock-retain-until-date", ""))
    return headers.get("x-amz-object-lock-mode", ""), until


def lock_headers(mode: LockMode, until: datetime) -> dict[str, str]:
    """What a request for a locked object says."""
    return {"x-amz-object-lock-mode": mode.value, "x-amz-object-lock-retain-until-date": _header_date(until)}


def _header_date(instant: datetime) -> str:
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _stored(version_id: str | None, etag: str | None) -> Stored:
    if not version_id:
        raise StorageError("The bucket keeps no versions", hint="It has to be created with object lock")
    return Stored(version_id, (etag or "").strip('"'))


def same(what: str, asked: str, found: str) -> None:
    """StorageError where what was found of an object is not what was asked for."""
    if asked != found:
        raise StorageError(
            f"The object store does not hold what it was given: {what}",
            detail=f"asked for {asked}, found {found}",
            hint="Don't trust this server with recordings before you know why",
        )


def _instant(text: str) -> datetime | None:
    """A date of a lock header; Ceph RGW writes nine fraction digits, of which Python keeps six."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None
