"""HTTP beneath the port to S3: one pool of connections, bounded repeats, errors in callrec's own words."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Self
from urllib.parse import SplitResult
from xml.etree.ElementTree import ParseError

import urllib3
from minio.credentials.credentials import Credentials
from minio.error import InvalidResponseError, MinioException, S3Error, ServerError
from minio.signer import sign_v4_s3
from urllib3.exceptions import HTTPError, MaxRetryError, SSLError

from callrec import metrics
from callrec.errors import StorageError

_CLIENT_ERROR, _SERVER_ERROR = 400, 500
_TRANSIENT = frozenset({"InternalError", "OperationAborted", "RequestTimeout", "ServiceUnavailable", "SlowDown"})
_HINTS = {
    "AccessDenied": "Compare the credential's rights with what this role needs; the object may be locked",
    "InvalidAccessKeyId": "The access key is unknown to the server",
    "InvalidRequest": "The bucket has to be created with object lock",
    "NoSuchBucket": "Create the bucket, with object lock, or correct its name",
    "RequestTimeTooSkewed": "Set the clock",
    "SignatureDoesNotMatch": "The secret key is not that of the access key",
}


class _Retry(urllib3.Retry):
    """Counts what is repeated."""

    def increment(self, *args: Any, **kwargs: Any) -> Self:
        again = super().increment(*args, **kwargs)  # raises when it was the last attempt
        metrics.RETRIES.labels("s3").inc()
        return again


def pool(connect_seconds: float, read_seconds: float, ca_file: str | None) -> urllib3.PoolManager:
    """Connections with short timeouts. GET and HEAD are repeated; anything else only if it never left this machine."""
    return urllib3.PoolManager(
        timeout=urllib3.Timeout(connect=connect_seconds, read=read_seconds),
        maxsize=8,
        ca_certs=ca_file,
        retries=_Retry(
            total=2,
            redirect=0,
            allowed_methods={"GET", "HEAD"},
            status_forcelist={500, 502, 503, 504},
            raise_on_status=False,
            backoff_factor=0.1,
            backoff_jitter=0.2,
        ),
    )


def signed(
    method: str,
    url: SplitResult,
    headers: Mapping[str, str],
    sha256: str,
    *,
    region: str,
    credentials: Credentials,
) -> dict[str, str]:
    """The headers of a request with its signature (AWS Signature Version 4). `sha256`: of the body, hexadecimal."""
    now = datetime.now(UTC)
    found: Any = sign_v4_s3(
        method=method,
        url=url,
        region=region,
        headers={
            **headers,
            "Host": url.netloc,
            "x-amz-content-sha256": sha256,
            "x-amz-date": now.strftime("%Y%m%dT%H%M%SZ"),
        },
        credentials=credentials,
        content_sha256=sha256,
        date=now,
    )
    return dict(found)


def said_no(answer: urllib3.BaseHTTPResponse) -> MinioException:
    """What minio-py would raise for an answer that is no success."""
    try:
        return S3Error.fromxml(answer)
    except (ParseError, ValueError, UnicodeDecodeError):  # a proxy's page, or nothing
        return ServerError("not an answer of S3", answer.status)


def error_code(answer: urllib3.BaseHTTPResponse) -> str:
    """S3's error code in an answer that is no success; empty otherwise, and where it names none."""
    if answer.status < _CLIENT_ERROR:
        return ""
    error = said_no(answer)
    return (error.code or "") if isinstance(error, S3Error) else ""


@contextmanager
def storage_errors(doing: str) -> Iterator[None]:
    """Turn what minio-py and urllib3 raise into a StorageError: "The object store did not `doing`"."""
    try:
        yield
    except S3Error as error:
        raise refused(doing, error.code or "", error.response.status) from error
    except (ServerError, InvalidResponseError) as error:
        status = error.status_code if isinstance(error, ServerError) else int(getattr(error, "_code", 0))
        raise refused(doing, "", status) from error
    except (HTTPError, OSError) as error:
        cause = error.reason if isinstance(error, MaxRetryError) else error
        untrusted = isinstance(cause, SSLError)
        raise StorageError(
            f"The object store did not {doing}",
            detail=type(cause).__name__,
            hint="Name the authority that signed its certificate"
            if untrusted
            else "Is it up, and reachable from here?",
            transient=not untrusted,
        ) from error
    except (MinioException, ParseError, ValueError, KeyError) as error:
        # The text of these may quote what a server sent; their type says enough.
        raise StorageError(f"The object store did not {doing}", detail=type(error).__name__) from error


def refused(doing: str, code: str, status: int) -> StorageError:
    """The error for an S3 error code (or "") and an HTTP status (or 0)."""
    return StorageError(
        f"The object store did not {doing}",
        detail=" ".join(part for part in (code, f"HTTP {status}" if status else "") if part),
        hint=_HINTS.get(code, ""),
        transient=status >= _SERVER_ERROR or code in _TRANSIENT,
    )
