"""The callbacks do what callrec/web/openapi.yaml says: the API as the role `api` builds it, on a real Postgres."""

from datetime import UTC, datetime, timedelta
from itertools import cycle

import falcon
import pytest
import schemathesis
from fix_rights import BASES, LOOKUP_KEYS, NODE, NUMBER, PUBLIC, code_reference
from fix_store import ZONE, make_facts, make_line, make_notes
from hypothesis import given, settings
from hypothesis import strategies as st
from schemathesis.checks import positive_data_acceptance
from schemathesis.generation import GenerationMode

from callrec.call.policy import BasisKind
from callrec.ledger.caller import conceal
from callrec.rights.calendar import Calendar
from callrec.rights.desk import Desk, Intake
from callrec.rights.holds import HoldReason
from callrec.rights.reference_code import parse_code
from callrec.rights.revocation import Channel
from callrec.store.records import CallRecords
from callrec.store.rights import RightsRecords
from callrec.store.scribe import Scribe
from callrec.web.api import Callbacks
from callrec.web.auth import Accounts

TOKENS = [f"{number:032}" for number in range(200)]  # each may try twenty codes a minute
CODE = "7K3M-9QXF"  # of the description's example
POSTS = [
    "/v1/revocations", "/v1/revocations/{revocation}/identification", "/v1/recordings/{recording}/disposition",
    "/v1/recordings/{recording}/holds", "/v1/holds/{hold}/review", "/v1/holds/{hold}/release",
]  # fmt: skip


def closed(node):
    """The description without room for fields that it does not name: clients ignore them, but here they show."""
    if isinstance(node, list):
        return [closed(each) for each in node]
    if not isinstance(node, dict):
        return node
    shut = {"additionalProperties": False} if node.get("type") == "object" else {}
    return shut | {name: closed(each) for name, each in node.items()}


class Api:
    """The application, its description as it serves it, and a way to have something of everything in the database."""

    def __init__(self, stores):
        listen = stores.database("listen")
        self._calls = CallRecords(listen, Scribe(listen), node=NODE, timezone=ZONE)
        self._desk = Desk(
            RightsRecords(stores.database("api"), node=NODE), Calendar("SI", ZONE), BASES, LOOKUP_KEYS, lambda *_: None,
            longest_hold=timedelta(days=90),
        )  # fmt: skip
        pages = falcon.App()
        accounts = " ".join(f"a{number}:{token}" for number, token in enumerate(TOKENS))
        Callbacks(self._desk, Accounts(accounts), "SI").add_to(pages)
        served = schemathesis.openapi.from_wsgi("/v1/openapi.yaml", pages)
        self.description = schemathesis.openapi.from_dict(closed(served.raw_schema))
        self.description.app = pages
        self._tokens = cycle(TOKENS)

    def post(self, path):
        return self.description[path]["POST"]

    def headers(self):
        return {"Authorization": f"Bearer {next(self._tokens)}"}

    def make_real(self, case):
        """Have what the case names be there, and its times be ones that can be."""
        kind = BasisKind.NOTICE if case.path.endswith("/disposition") else BasisKind.CONSENT
        facts = make_facts(make_line(kind))
        self._calls.authorise(
            facts, "granted", make_notes("basis_established"), conceal(NUMBER, LOOKUP_KEYS, PUBLIC), timeout=5,
            reference=code_reference(parse_code(CODE)),
        )  # fmt: skip
        now = datetime.now(UTC)
        soon = now + timedelta(days=9)
        if "{revocation}" in case.path:
            revocation = self._desk.revoke(Intake(Channel.POST, now, number=NUMBER))
            case.path_parameters = {"revocation": str(revocation.revocation_id)}
        elif "{hold}" in case.path:
            about = {"case": "c-1", "owner": "dpo", "review_at": soon}
            hold = self._desk.hold(facts.recording_id, HoldReason.DISPUTE, **about)
            case.path_parameters = {"hold": str(hold.id)}
        elif "{recording}" in case.path:
            case.path_parameters = {"recording": str(facts.recording_id)}
        true = {
            "received_at": now.isoformat(), "person_told_at": now.isoformat(), "review_at": soon.isoformat(),
            "number": NUMBER, "code": CODE, "call": str(facts.call_id), "recording": str(facts.recording_id),
        }  # fmt: skip
        case.body = {name: true.get(name, value) for name, value in case.body.items()}


@pytest.fixture
def api(stores):
    return Api(stores)


def examples(api, path):
    """(name, case) for each example of the description, its numbers and codes as they stand there."""
    described = api.post(path).definition.raw["requestBody"]["content"]["application/json"]
    for name, example in described["examples"].items():
        case = api.post(path).Case(body=example["value"], media_type="application/json")
        api.make_real(case)
        case.body |= {field: value for field, value in example["value"].items() if field in {"number", "code"}}
        yield name, case


def test_the_examples_of_the_description_work(api):
    for path in POSTS:
        for name, case in examples(api, path):
            answer = case.call_and_validate(headers=api.headers())
            assert answer.status_code in {200, 201}, (path, name, answer.json())
            assert answer.json().get("recordings", [True]), f"{path}: {name} led to nothing"
        same = case.path_parameters
        for _, case in examples(api, path):  # once more about the same: refused perhaps, but as described
            case.path_parameters = same
            case.call_and_validate(headers=api.headers(), excluded_checks=[positive_data_acceptance])


def test_a_field_that_is_not_described_is_refused(api):
    for path in POSTS:
        for _, case in examples(api, path):
            case.body["comment"] = "by the way"
            answer = case.call(headers=api.headers())
            assert (answer.status_code, answer.json().get("detail")) == (400, "comment"), path


@pytest.mark.parametrize("mode", GenerationMode, ids=lambda mode: mode.value)
@pytest.mark.parametrize("path", POSTS)
def test_whatever_is_sent_is_answered_as_described(api, path, mode):
    """No fault; no status, header or field that is not described; what does not fit is refused, what fits is read."""
    positive = mode is GenerationMode.POSITIVE

    @settings(max_examples=20)
    @given(api.post(path).as_strategy(generation_mode=mode), st.sampled_from([True, True, False]))
    def answered_as_described(case, real):
        if positive and real:
            api.make_real(case)
        answer = case.call_and_validate(headers=api.headers(), excluded_checks=[positive_data_acceptance])
        if answer.status_code == 400 and positive:
            assert answer.json()["title"] == "number can't be used"  # which digits are a number, no pattern can say
        assert answer.json().get("title") != "Postgres refused"  # that tells an integrator nothing

    answered_as_described()
