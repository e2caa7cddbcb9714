"""Who calls: bearer tokens, one for each account (the desktop, the portal, the telephony platform).

Tokens come from the environment as `account:token` pairs; what is compared is their SHA-256, in constant time.
"""

import hashlib
import hmac
import re
import time
from collections import deque

import falcon

from callrec.errors import ConfigError

_SHORTEST = 20  # characters of a token
_ACCOUNT = re.compile(r"[a-z][a-z0-9_.-]{0,63}")


class Accounts:
    """`text`: `account:token` pairs, separated by spaces, commas or line ends."""

    def __init__(self, text: str) -> None:
        self._digests: dict[str, bytes] = {}
        for pair in re.split(r"[\s,]+", text.strip()):
            account, colon, token = pair.partition(":")
            if not pair:
                continue
            if not colon or not _ACCOUNT.fullmatch(account) or len(token) < _SHORTEST:
                raise ConfigError(
                    "CALLREC_API_TOKENS can't be used",
                    detail=f"each is account:token: small letters, then {_SHORTEST} characters at least",
                    hint="Make a token with: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'",
                )
            digest = _digest(token)
            if account in self._digests or digest in self._digests.values():
                raise ConfigError(
                    "CALLREC_API_TOKENS can't be used",
                    detail=f"{account} is there twice, or has the token of another account",
                    hint="Give each account one token of its own: the ledger says which of them it was",
                )
            self._digests[account] = digest

    def __bool__(self) -> bool:
        return bool(self._digests)

    def account(self, authorization: str) -> str:
        """The account behind an Authorization header; falcon.HTTPUnauthorized where there is none."""
        scheme, _, token = authorization.partition(" ")
        found = ""
        if scheme.lower() == "bearer":
            given = _digest(token.strip())
            for account, digest in self._digests.items():  # all of them, so that the time says nothing
                if hmac.compare_digest(given, digest):
                    found = account
        if not found:
            raise falcon.HTTPUnauthorized(
                title="Who are you?",
                description="Send Authorization: Bearer and your account's token",
                challenges=["Bearer"],
            )
        return found


class Attempts:
    """At most `limit` in `seconds` for each account: reference codes must not be tried out (D11)."""

    def __init__(self, limit: int = 20, seconds: float = 60.0) -> None:
        self._limit = limit
        self._seconds = seconds
        self._made: dict[str, deque[float]] = {}

    def make(self, account: str) -> None:
        """Count one; falcon.HTTPTooManyRequests beyond the limit. Accounts are few: they are configured."""
        now = time.monotonic()
        made = self._made.setdefault(account, deque())
        while made and made[0] < now - self._seconds:
            made.popleft()
        if len(made) >= self._limit:
            raise falcon.HTTPTooManyRequests(title="Too many attempts", retry_after=int(self._seconds))
        made.append(now)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
