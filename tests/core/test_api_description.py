"""callrec/web/openapi.yaml says of the callbacks what the code says."""

import re

import falcon
import falcon.inspect
import pytest
import schemathesis

from callrec.rights.disposition import Disposition
from callrec.rights.holds import HoldReason
from callrec.rights.revocation import Channel, Fate, GivenBy, Identification, Proof, Why
from callrec.web import api
from callrec.web.auth import Accounts

ENUMS = {each.__name__: each for each in (Channel, Proof, Identification, GivenBy, Fate, Why, Disposition, HoldReason)}


@pytest.fixture(scope="module")
def pages():
    pages = falcon.App()
    api.Callbacks(None, Accounts(""), "SI").add_to(pages)
    return pages


@pytest.fixture(scope="module")
def description(pages):
    return schemathesis.openapi.from_wsgi("/v1/openapi.yaml", pages)


def operations(description):
    for path, methods in description.raw_schema["paths"].items():
        for method, operation in methods.items():
            yield path, method.upper(), operation


def test_it_is_valid_openapi(description):
    description.validate()
    assert description.specification.version.startswith("3.1")


def test_it_has_each_page_and_no_other(pages, description):
    served = {
        (re.sub(r"{\w+}", "{}", route.path), method.method)
        for route in falcon.inspect.inspect_routes(pages)
        for method in route.methods
        if not method.internal
    }
    assert {(re.sub(r"{\w+}", "{}", path), method) for path, method, _ in operations(description)} == served


def test_all_but_itself_wants_a_token(description):
    assert description.raw_schema["security"] == [{"account": []}]
    assert [path for path, _, operation in operations(description) if "security" in operation] == ["/v1/openapi.yaml"]


def test_its_lists_are_those_of_the_code(description):
    schemas = description.raw_schema["components"]["schemas"]
    written = {name: schema["enum"] for name, schema in schemas.items() if "enum" in schema}
    assert written == {name: list(kind) for name, kind in (ENUMS | {"Effect": api.Effect}).items()}


def test_it_explains_every_value_of_a_list(description):
    for name, schema in description.raw_schema["components"]["schemas"].items():
        for value in schema.get("enum", []) if name != "GivenBy" else []:
            assert f"`{value}`" in schema["description"], name


def test_its_limits_are_those_of_the_code(description):
    schemas = description.raw_schema["components"]["schemas"]
    assert schemas["Text"]["maxLength"] == api._LONGEST_TEXT
    assert schemas["Withdrawal"]["properties"]["proofs"]["maxItems"] == api._MOST
    assert f"{api._LONGEST_BODY // 1024} KiB" in description.raw_schema["info"]["description"]


def test_a_text_may_have_the_same_characters(description):
    fits = re.compile(description.raw_schema["components"]["schemas"]["Text"]["pattern"])
    told = {code for code in range(0x110000) if not 0xD800 <= code < 0xE000 and not fits.fullmatch(chr(code))}
    refused = {code for code in range(0x110000) if api._UNFIT.search(chr(code))}
    assert told == refused - set(range(0xD800, 0xE000))  # halves of characters are no JSON (RFC 8259, 8.2)
