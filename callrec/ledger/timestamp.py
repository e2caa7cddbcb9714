"""Asks a time-stamp authority (RFC 3161) when a checkpoint was there, so that nobody need believe our clock.

What is kept is the authority's whole answer: `openssl ts -verify -in ANSWER -data NOTE -CAfile ROOTS` reads it. The
libraries are large; only who has an authority configured imports this module.
"""

from pathlib import Path

import urllib3
from cryptography import x509
from rfc3161_client import (
    HashAlgorithm,
    TimestampRequestBuilder,
    VerificationError,
    VerifierBuilder,
    decode_timestamp_response,
)
from urllib3.exceptions import HTTPError

from callrec.errors import ConfigError, StorageError

_CONNECT, _READ = 5.0, 10.0  # seconds
_MOST = 64 * 1024  # bytes of an answer: a token with its certificates has a few thousand
_OK = 200


class Authority:
    """The authority at `url`, believed by the certificates in the PEM file `roots`.

    Intermediate certificates may stand in that file too. ConfigError if it can't be read.
    """

    def __init__(self, url: str, roots: Path) -> None:
        self._url = url
        self._http = urllib3.PoolManager(timeout=urllib3.Timeout(connect=_CONNECT, read=_READ), retries=False)
        try:
            self._roots = x509.load_pem_x509_certificates(roots.read_bytes())
        except (OSError, ValueError) as error:
            why = (error.strerror or "") if isinstance(error, OSError) else "it holds no PEM certificates"
            raise ConfigError(f"[ledger] tsa_roots: {roots} can't be used", detail=why) from None

    def stamp(self, data: bytes) -> bytes:
        """The authority's answer about `data`, of which it sees the SHA-256 alone, in DER.

        StorageError when it does not answer in time, or with what is no valid stamp of these bytes.
        """
        request = TimestampRequestBuilder().data(data).hash_algorithm(HashAlgorithm.SHA256).build()
        answer = self._ask(request.as_bytes())
        verifier = VerifierBuilder.from_request(request)
        for certificate in self._roots:
            verifier = verifier.add_root_certificate(certificate)
        try:
            verifier.build().verify_message(decode_timestamp_response(answer), data)
        except (VerificationError, ValueError) as error:
            raise StorageError("The time-stamp authority gave no valid stamp", detail=str(error)[:200]) from None
        return answer

    def _ask(self, request: bytes) -> bytes:
        about = {"Content-Type": "application/timestamp-query"}
        try:
            answer = self._http.request(
                "POST", self._url, body=request, headers=about, redirect=False, preload_content=False
            )
            try:
                body = answer.read(_MOST + 1)
            finally:
                answer.close()
        except HTTPError as error:
            why = type(error).__name__
            raise StorageError("The time-stamp authority does not answer", detail=why, transient=True) from None
        if answer.status != _OK or len(body) > _MOST:
            why = f"HTTP {answer.status}, {len(body)} bytes"
            raise StorageError("The time-stamp authority gave no stamp", detail=why, transient=True)
        return body
