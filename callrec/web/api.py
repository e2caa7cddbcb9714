"""Callbacks in: what the telephony platform, the agents' desktop and the portal tell callrec.

    POST /v1/revocations                          consent is withdrawn: by number, call, recording or reference code
    POST /v1/revocations/{id}/identification      the person is known now, or was asked, or was found to be another
    POST /v1/recordings/{id}/disposition          what kind of call it was
    POST /v1/recordings/{id}/holds                it has to stay for now
    POST /v1/holds/{id}/review, …/release
    GET  /v1/openapi.yaml                         all of this for an integrator; the only page without a token

Bodies and answers are JSON; a field that is not known is refused. Errors are application/problem+json (RFC 9457).
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import falcon

from callrec.call.policy import e164
from callrec.errors import (
    CallrecError,
    ConflictError,
    RightsError,
    StatementRefusedError,
    StoreError,
    UnknownError,
)
from callrec.log import Log
from callrec.rights.desk import Desk, Intake
from callrec.rights.disposition import Disposition, Said, Unchanged
from callrec.rights.holds import HoldReason
from callrec.rights.revocation import Channel, Decision, GivenBy, Identification, Person, Proof
from callrec.web.auth import Accounts, Attempts

log = Log(__name__)

_LONGEST_BODY = 64 * 1024
_LONGEST_TEXT = 1000
# Line ends and other controls, what hides or reorders text on a screen, halves of characters; as in openapi.yaml.
_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\xad\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]")
_MOST = 20  # entries of a list
# RFC 3339, the seconds optional because some libraries leave out zeros. What computes deadlines has an end.
_TIME = re.compile(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?(Z|[+-][0-9]{2}:[0-9]{2})")
_DIGEST = re.compile(r"([0-9a-fA-F]{64})?")
_E = TypeVar("_E", bound=StrEnum)


class Body:
    """The JSON object of a request, read strictly: each field is asked for once, what is left over is refused."""

    def __init__(self, request: falcon.Request) -> None:
        length = request.content_length or 0
        # A body in chunks has no length beforehand, but an end that the server knows.
        stream = request.stream if request.env.get("wsgi.input_terminated") else request.bounded_stream
        try:
            sent = stream.read(_LONGEST_BODY + 1) if length <= _LONGEST_BODY else b""
        except OSError:
            raise falcon.HTTPBadRequest(title="The body is cut short") from None
        if max(length, len(sent)) > _LONGEST_BODY:
            raise falcon.HTTPContentTooLarge(title="The body is too long")
        try:
            found = json.loads(sent or b"{}", object_pairs_hook=_once)
        except (ValueError, RecursionError):
            raise falcon.HTTPBadRequest(title="The body is not JSON") from None
        if not isinstance(found, dict):
            raise falcon.HTTPBadRequest(title="The body is not a JSON object")
        self._found: dict[str, Any] = found

    def text(self, name: str, default: str | None = None) -> str:
        value = self._found.pop(name, default)
        if not isinstance(value, str) or len(value) > _LONGEST_TEXT or _UNFIT.search(value):
            raise _bad(name, f"a text of one line, {_LONGEST_TEXT} characters at most")
        return value

    def has(self, name: str) -> bool:
        return name in self._found

    def flag(self, name: str) -> bool:
        value = self._found.pop(name, False)
        if not isinstance(value, bool):
            raise _bad(name, "true or false")
        return value

    def one_of(self, name: str, kind: type[_E], default: str | None = None) -> _E:
        value = self.text(name, default)
        if value not in set(kind):
            raise _bad(name, "one of " + ", ".join(kind))
        return kind(value)

    def all_of(self, name: str, kind: type[_E]) -> tuple[_E, ...]:
        values = self._found.pop(name, [])
        known = isinstance(values, list) and len(values) <= _MOST
        if not known or not all(isinstance(value, str) and value in set(kind) for value in values):
            raise _bad(name, "a list of " + ", ".join(kind))
        return tuple(kind(value) for value in values)

    def identifier(self, name: str) -> UUID | None:
        value = self.text(name, "")
        return identifier(value) if value else None

    def time(self, name: str) -> datetime:
        value = self.text(name)
        try:
            if _TIME.fullmatch(value):
                return datetime.fromisoformat(value)
        except ValueError:  # there is no such day or hour
            pass
        raise _bad(name, "a time with its offset, such as 2026-12-24T10:00:00+01:00")

    def digest(self, name: str) -> bytes | None:
        value = self.text(name, "")
        if not _DIGEST.fullmatch(value):
            raise _bad(name, "64 hex digits")
        return bytes.fromhex(value) or None

    def end(self) -> None:
        if self._found:
            names = sorted(name for name in self._found if re.fullmatch(r"[a-z_]{1,40}", name))  # no other is repeated
            raise falcon.HTTPBadRequest(
                title="The body has fields that are not known", description=", ".join(names[:_MOST])
            )


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; ValueError where a name stands twice, of which one reader takes the first and another the last."""
    if len(found := dict(pairs)) < len(pairs):
        raise ValueError
    return found


def identifier(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise falcon.HTTPBadRequest(title="That is no id", description="An id is a UUID") from None


class Effect(StrEnum):
    """What the kind of a call does to its recording."""

    SEAL = "seal"
    ERASE = "erase"
    UNCHANGED = "unchanged"


class Callbacks:
    """The resources; `country` is for numbers in national form."""

    def __init__(self, desk: Desk, accounts: Accounts, country: str) -> None:
        self._desk = desk
        self._accounts = accounts
        self._attempts = Attempts()
        self._country = country

    def add_to(self, pages: "falcon.App[falcon.Request, falcon.Response]") -> None:
        pages.add_route("/v1/revocations", _Post(self._revoke))
        pages.add_route("/v1/revocations/{subject}/identification", _Post(self._identify))
        pages.add_route("/v1/recordings/{subject}/disposition", _Post(self._dispose))
        pages.add_route("/v1/recordings/{subject}/holds", _Post(self._hold))
        pages.add_route("/v1/holds/{subject}/review", _Post(self._review))
        pages.add_route("/v1/holds/{subject}/release", _Post(self._release))
        pages.add_route("/v1/openapi.yaml", _Description())
        pages.add_error_handler(Exception, fault)  # falcon takes the most specific one
        pages.add_error_handler(CallrecError, problem)
        pages.set_error_serializer(refusal)

    def _revoke(self, request: falcon.Request, _subject: str) -> tuple[str, dict[str, Any]]:
        account, body = self._accounts.account(request.auth or ""), Body(request)
        code, number = body.text("code", ""), body.text("number", "")
        if code:
            self._attempts.make(account)
        known = e164(number, self._country) if number else ""
        if number and not known:
            raise _bad("number", "a telephone number")
        intake = Intake(
            channel=body.one_of("channel", Channel),
            received_at=body.time("received_at"),
            number=known or "",
            call_id=body.identifier("call"),
            recording_id=body.identifier("recording"),
            code=code,
            proofs=body.all_of("proofs", Proof),
            by=Person(body.one_of("given_by", GivenBy, "self"), body.text("on_behalf_of", "")),
            evidence_sha256=body.digest("evidence_sha256"),
        )
        body.end()
        answer = self._desk.revoke(intake)
        return falcon.HTTP_201, {
            "revocation": str(answer.revocation_id),
            "identification": answer.identification.value,
            "deadline": answer.deadline.isoformat(),
            "recordings": _told(answer.decisions),
        }

    def _identify(self, request: falcon.Request, subject: str) -> tuple[str, dict[str, Any]]:
        account, body = self._accounts.account(request.auth or ""), Body(request)
        to = body.one_of("identification", Identification)
        body.end()
        return falcon.HTTP_200, {"recordings": _told(self._desk.identify(identifier(subject), to, account))}

    def _dispose(self, request: falcon.Request, subject: str) -> tuple[str, dict[str, Any]]:
        account, body = self._accounts.account(request.auth or ""), Body(request)
        said = Said(body.one_of("disposition", Disposition), body.flag("minor"), body.text("guardian_consent", ""))
        body.end()
        outcome = self._desk.dispose(identifier(subject), said, account)
        effect = Effect.SEAL if said.effective.seals else Effect.ERASE
        if isinstance(outcome, Unchanged):
            effect = Effect.UNCHANGED
        return falcon.HTTP_200, {"disposition": said.effective.value, "effect": effect.value}

    def _hold(self, request: falcon.Request, subject: str) -> tuple[str, dict[str, Any]]:
        account, body = self._accounts.account(request.auth or ""), Body(request)
        reason, case = body.one_of("reason", HoldReason), body.text("case")
        owner, review_at = body.text("owner", "") or account, body.time("review_at")
        body.end()
        hold = self._desk.hold(identifier(subject), reason, case=case, owner=owner, review_at=review_at)
        return falcon.HTTP_201, {"hold": str(hold.id), "review_at": hold.review_at.isoformat()}

    def _review(self, request: falcon.Request, subject: str) -> tuple[str, dict[str, Any]]:
        account, body = self._accounts.account(request.auth or ""), Body(request)
        review_at = body.time("review_at")
        body.end()
        reviewed = self._desk.review(identifier(subject), review_at, account)
        return falcon.HTTP_200, {"review_at": reviewed.review_at.isoformat()}

    def _release(self, request: falcon.Request, subject: str) -> tuple[str, dict[str, Any]]:
        account, body = self._accounts.account(request.auth or ""), Body(request)
        why = body.text("why")
        told_at = body.time("person_told_at") if body.has("person_told_at") else None
        body.end()
        return falcon.HTTP_200, {"recording": str(self._desk.release(identifier(subject), why, account, told_at))}


class _Post:
    def __init__(self, answer: Callable[[falcon.Request, str], tuple[str, dict[str, Any]]]) -> None:
        self._answer = answer

    def on_post(self, request: falcon.Request, response: falcon.Response, subject: str = "") -> None:
        response.status, body = self._answer(request, subject)
        response.text = json.dumps(body)


class _Description:
    def __init__(self) -> None:
        self._text = Path(__file__).with_name("openapi.yaml").read_bytes()

    def on_get(self, _request: falcon.Request, response: falcon.Response) -> None:
        response.content_type = "application/yaml"  # RFC 9512
        response.data = self._text


def _told(decisions: Iterable[Decision]) -> list[dict[str, str]]:
    return [
        {"recording": str(each.recording_id), "fate": each.fate.value, "why": each.why.value, "says": each.why.says}
        for each in decisions
    ]


def problem(_request: falcon.Request, response: falcon.Response, error: Exception, _params: Mapping[str, Any]) -> None:
    """One of our errors, as RFC 9457 has it."""
    assert isinstance(error, CallrecError)
    kinds = (
        (ConflictError, falcon.HTTP_409), (UnknownError, falcon.HTTP_404), (RightsError, falcon.HTTP_422),
        (StatementRefusedError, falcon.HTTP_422), (StoreError, falcon.HTTP_503),
    )  # fmt: skip
    status = next((status for kind, status in kinds if isinstance(error, kind)), falcon.HTTP_500)
    if status == falcon.HTTP_503:
        response.set_header("Retry-After", "5")
    _tell(response, status, {"title": error.message, "detail": error.detail, "hint": error.hint})


def fault(_request: falcon.Request, response: falcon.Response, _error: Exception, _params: Mapping[str, Any]) -> None:
    """What nobody thought of: to the log by its type and place, never to the caller."""
    log.error("callback_failed", exc_info=True)
    _tell(response, falcon.HTTP_500, {"title": "callrec failed", "hint": "Its log says where"})


def refusal(_request: falcon.Request, response: falcon.Response, error: falcon.HTTPError) -> None:
    """What falcon or we refuse by its status, as RFC 9457 has it."""
    _tell(response, error.status, {"title": error.title or "", "detail": error.description or ""})


def _tell(response: falcon.Response, status: str | int, about: dict[str, str]) -> None:
    response.status = status
    response.content_type = "application/problem+json"
    code = falcon.http_status_to_code(status)
    response.text = json.dumps({"status": code} | {name: value for name, value in about.items() if value})


def _bad(name: str, wanted: str) -> falcon.HTTPBadRequest:
    return falcon.HTTPBadRequest(title=f"{name} can't be used", description=f"It must be {wanted}")
