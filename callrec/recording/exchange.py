"""One request to S3 and its answer as they stand: for what minio-py has no call for, and for the probe.

Here a refusal is an answer like any other; StorageError means that none came. Deadlines and repeats are those of the
pool (transport.py).
"""

import base64
from collections.abc import Mapping
from datetime import timedelta
from hashlib import md5, sha256
from typing import NamedTuple
from urllib.parse import SplitResult, quote, urlsplit

from minio import Minio
from minio.credentials.credentials import Credentials
from urllib3 import PoolManager

from callrec.recording.transport import error_code, signed, storage_errors

BYPASS = {"x-amz-bypass-governance-retention": "true"}
_PRESIGNED = timedelta(seconds=60)
_REFUSED = 300


class Answer(NamedTuple):
    """What a server said."""

    status: int
    code: str  # of S3's error; empty where there is none
    headers: Mapping[str, str]
    body: bytes

    @property
    def accepted(self) -> bool:
        return self.status < _REFUSED


class Exchange:
    """Requests about one bucket and its keys."""

    def __init__(self, client: Minio, http: PoolManager, bucket: str, region: str, credentials: Credentials) -> None:
        self._client = client
        self._http = http
        self._bucket = bucket
        self._region = region
        self._credentials = credentials

    def ask(
        self,
        method: str,
        key: str,
        *,
        query: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
        secret_key: str | None = None,
        anonymous: bool = False,
    ) -> Answer:
        """Ask about a key; with an empty key, about the bucket. `secret_key` takes the place of the right one."""
        about = dict(headers or {})
        if body:  # S3 demands it of what changes a lock, a policy or a lifecycle, and as MD5 every server knows it
            about["Content-MD5"] = base64.b64encode(md5(body, usedforsecurity=False).digest()).decode("ascii")
        asked = "&".join(f"{name}={quote(value, safe='')}" for name, value in (query or {}).items())
        with storage_errors("answer"):
            url = self.url(key)._replace(query=asked)
            if not anonymous:
                who = Credentials(self._credentials.access_key, secret_key or self._credentials.secret_key)
                hashed = sha256(body).hexdigest()
                about = signed(method, url, about, hashed, region=self._region, credentials=who)
            got = self._http.urlopen(method, url.geturl(), body=body or None, headers=about, redirect=False)
            return Answer(got.status, error_code(got), got.headers, got.data)

    def url(self, key: str) -> SplitResult:
        """The URL of a key, or of the bucket, as this server wants it: minio-py knows."""
        presigned = self._client.get_presigned_url(
            method="GET", bucket_name=self._bucket, object_name=key or "-", expires=_PRESIGNED
        )
        url = urlsplit(presigned)._replace(query="")
        return url if key else url._replace(path=url.path.removesuffix("-"))
