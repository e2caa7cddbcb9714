"""Callbacks in: what the telephony platform, the agents' desktop and the portal tell callrec.

    POST /v1/revocations                          consent is withdrawn: by number, call, recording or reference code
    POST /v1/revocations/{id}/identification      the person is known now, or was asked, or was found to be another
    POST /v1/recordings/{id}/disposition          what kind of call it was
    POST /v1/recordings/{id}/holds                it has to stay for now
    POST /v1/holds/{id}/review, …/release

Bodies and answers are JSON; a field that is not known is refused. Errors are application/problem+json (RFC 9457).
"""

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from enum import StrEnum
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
from callrec.rights.revocation import Channel, GivenBy, Identification, Person, Proof
from callrec.web.auth import Accounts, Attempts

log = Log(__name__)

_LONGEST_BODY = 64 * 1024
_LONGEST_TEXT = 1000
_MOST = 20  # entries of a list
_YEARS = range(2000, 2100)  # of which a time may be: what computes deadlines has an end
_E = TypeVar("_E", bound=StrEnum)


class Body:
    """The JSON object of a request, read strictly: each field is asked for once, what is left over is refused."""

    def __init__(self, request: falcon.Request) -> None:
        if (request.content_length or 0) > _LONGEST_BODY:
            raise falcon.HTTPContentTooLarge(title="The body is too long")
        try:
            found = json.loads(request.bounded_stream.read(_LONGEST_BODY + 1) or b"{}")
        except (ValueError, RecursionError):
            raise falcon.HTTPBadRequest(title="The body is not JSON") from None
        if not isinstance(found, dict):
            raise falcon.HTTPBadRequest(title="The body is not a JSON object")
        self._found: dict[str, Any] = found

    def text(self, name: str, default: str | None = None) -> str:
        value = self._found.pop(name, default)
        if not isinstance(value, str) or len(value) > _LONGEST_TEXT or not value.isprintable():
            raise _bad(name, f"a text of {_LONGEST_TEXT} printable characters at most")
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
        try:
            value = datetime.fromisoformat(self.text(name))
        except ValueError:
            raise _bad(name, "a time such as 2026-12-24T10:00:00+01:00") from None
        if value.tzinfo is None or value.year not in _YEARS:
            raise _bad(name, "a time with its offset, such as 2026-12-24T10:00:00+01:00")
        return value

    def digest(self, name: str) -> bytes | None:
        value = self.text(name, "")
        try:
            digest = bytes.fromhex(value)
        except ValueError:
            raise _bad(name, "64 hex digits") from None
        if len(digest) not in {0, 32}:
            raise _bad(name, "64 hex digits")
        return digest or None

    def end(self) -> None:
        if self._found:
            names = sorted(name for name in self._found if re.fullmatch(r"[a-z_]{1,40}", name))  # no other is repeated
            raise falcon.HTTPBadRequest(
                title="The body has fields that are not known", description=", ".join(names[:_MOST])
            )


def identifier(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise falcon.HTTPBadRequest(title="That is no id", description="An id is a UUID") from None


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
            "recordings": [
                {
                    "recording": str(each.recording_id),
                    "fate": each.fate.value,
                    "why": each.why.value,
                    "says": each.why.says,
                }
                for each in answer.decisions
            ],
        }

    def _identify(self, request: falcon.Request, subject: str) -> tuple[str, dict[str, Any]]:
        self._accounts.account(request.auth or "")
        body = Body(request)
        to = body.one_of("identification", Identification)
        body.end()
        decisions = self._desk.identify(identifier(subject), to)
        return falcon.HTTP_200, {
            "recordings": [
                {"recording": str(each.recording_id), "fate": each.fate.value, "why": each.why.value}
                for each in decisions
            ]
        }

    def _dispose(self, request: falcon.Request, subject: str) -> tuple[str, dict[str, Any]]:
        account, body = self._accounts.account(request.auth or ""), Body(request)
        said = Said(body.one_of("disposition", Disposition), body.flag("minor"), body.text("guardian_consent", ""))
        body.end()
        outcome = self._desk.dispose(identifier(subject), said, account)
        effect = "unchanged" if isinstance(outcome, Unchanged) else "seal" if said.effective.seals else "erase"
        return falcon.HTTP_200, {"disposition": said.effective.value, "effect": effect}

    def _hold(self, request: falcon.Request, subject: str) -> tuple[str, dict[str, Any]]:
        account, body = self._accounts.account(request.auth or ""), Body(request)
        reason, case = body.one_of("reason", HoldReason), body.text("case")
        owner, review_at = body.text("owner", account), body.time("review_at")
        body.end()
        hold = self._desk.hold(identifier(subject), reason, case=case, owner=owner, review_at=review_at)
        return falcon.HTTP_201, {"hold": str(hold.id), "review_at": hold.review_at.isoformat()}

    def _review(self, request: falcon.Request, subject: str) -> tuple[str, dict[str, Any]]:
        self._accounts.account(request.auth or "")
        body = Body(request)
        review_at = body.time("review_at")
        body.end()
        return falcon.HTTP_200, {"review_at": self._desk.review(identifier(subject), review_at).review_at.isoformat()}

    def _release(self, request: falcon.Request, subject: str) -> tuple[str, dict[str, Any]]:
        self._accounts.account(request.auth or "")
        body = Body(request)
        why = body.text("why")
        told_at = body.time("person_told_at") if body.has("person_told_at") else None
        body.end()
        return falcon.HTTP_200, {"recording": str(self._desk.release(identifier(subject), why, told_at))}


class _Post:
    def __init__(self, answer: Callable[[falcon.Request, str], tuple[str, dict[str, Any]]]) -> None:
        self._answer = answer

    def on_post(self, request: falcon.Request, response: falcon.Response, subject: str = "") -> None:
        response.status, body = self._answer(request, subject)
        response.text = json.dumps(body)


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
