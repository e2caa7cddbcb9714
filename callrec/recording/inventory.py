"""What a bucket holds, page by page: every version and every delete marker, in the order of S3's keys.

Beside S3Objects.versions(), which makes one list of what is under a key: minio-py gives the delete markers of a page
behind its versions, and does not say where the page ends.
"""

import re
from collections.abc import Iterator
from datetime import datetime
from typing import NamedTuple
from urllib.parse import unquote_plus
from xml.etree import ElementTree as ET

from callrec.errors import StorageError
from callrec.recording.exchange import Exchange
from callrec.recording.objects import Version
from callrec.recording.transport import refused

# Ceph RGW encodes the keys, and gives back the question as it was: what of that is no XML is not needed here.
_NO_XML = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f]|&#x0*(?:[0-8bcef]|1[0-9a-f]);", re.IGNORECASE)
_DOING = "list the versions of the bucket"


class Page(NamedTuple):
    """Whole keys with all their versions and markers, in the order of the keys' bytes."""

    keys: dict[str, list[Version]]
    last: str | None  # up to here, inclusive, the bucket is known; None: to its end


def versions_of(exchange: Exchange, key: str) -> list[Version]:
    """The versions and markers of this one key. StorageError."""
    return [each for page in pages(exchange, prefix=key) for each in page.keys.get(key, [])]


def pages(exchange: Exchange, after: str = "", *, prefix: str = "", size: int = 1000) -> Iterator[Page]:
    """The bucket behind the key `after`, below a prefix. Memory: a page, and the versions of one key. StorageError.

    Needs the right s3:ListBucketVersions. `size` is asked for; a server may give fewer.
    """
    marker, version, held = after, "", list[Version]()
    while True:
        # Encoded, because XML can't carry every character that a key may have.
        query = {"versions": "", "encoding-type": "url", "max-keys": str(size), "prefix": prefix, "key-marker": marker}
        answer = exchange.ask("GET", "", query=query | ({"version-id-marker": version} if version else {}))
        if not answer.accepted:
            raise refused(_DOING, answer.code, answer.status)
        found, more, version = _parsed(answer.body)
        # Not NextKeyMarker, which is the same: some servers encode it, some do not.
        marker = max((each.key for each in found), default=marker)
        keys: dict[str, list[Version]] = {}
        for each in [*held, *found]:
            if each.key > after:  # Ceph RGW begins with the marker's own key when no version is named
                keys.setdefault(each.key, []).append(each)
        held = keys.pop(max(keys)) if more and keys else []  # the next page may have more of the last key
        yield Page(keys, (max(keys) if keys else after) if more else None)
        if not more:
            return
        after = max(keys) if keys else after


def _parsed(body: bytes) -> tuple[list[Version], bool, str]:
    """What the answer lists, whether there is more, and the version behind which that begins."""
    try:
        root = ET.fromstring(_NO_XML.sub(b"", body))  # noqa: S314 # our own store's answer; expat bounds expansion
        for element in root.iter():
            element.tag = element.tag.rpartition("}")[2]  # some servers give a namespace, some none
        encoded = root.findtext("EncodingType", "") == "url"
        found = [_version(element, encoded) for element in root if element.tag in {"Version", "DeleteMarker"}]
    except (ET.ParseError, ValueError) as error:
        raise StorageError(f"The object store did not {_DOING}", detail=type(error).__name__) from error
    more = root.findtext("IsTruncated", "").lower() == "true"
    if more and not found:
        raise StorageError(f"The object store did not {_DOING}", detail="it says that there is more, and gives nothing")
    return found, more, root.findtext("NextVersionIdMarker", "")


def _version(element: ET.Element, encoded: bool) -> Version:
    key, modified = element.findtext("Key", ""), element.findtext("LastModified", "")
    return Version(
        key=unquote_plus(key) if encoded else key,
        version_id=element.findtext("VersionId", ""),
        is_delete_marker=element.tag == "DeleteMarker",
        size=int(element.findtext("Size") or 0),
        last_modified=datetime.fromisoformat(modified) if modified else None,
    )
