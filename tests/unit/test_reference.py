"""The API as a page: what it says is what the OpenAPI document says, and its examples are good requests."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import timedelta
from html import unescape
from typing import Any

import pytest
from starlette.requests import Request

from opensend_milter.core.request import Dialect, RequestLimits, SendRequest, read_send, read_time
from opensend_milter.core.rules import Rule
from opensend_milter.servers.web.openapi import openapi
from opensend_milter.servers.web.public.examples import EXAMPLES
from opensend_milter.servers.web.public.fields import Reader
from opensend_milter.servers.web.public.page import PAGES
from opensend_milter.servers.web.public.reference import base_of, described

DOCUMENT: Mapping[str, Any] = openapi(max_bulk_messages=100, limits=RequestLimits())
OPERATIONS: dict[str, Any] = {
    said["operationId"]: said for methods in DOCUMENT["paths"].values() for said in methods.values()
}
PAGE = PAGES.text("reference.html", described(DOCUMENT), root="./")
SCHEMAS = {
    "Inner": {"type": "object", "properties": {"deep": {"type": ["string", "null"]}}},
    "Word": {"type": "string", "maxLength": 5_000, "description": "a word"},
}


def asked(host: str, scheme: str = "http") -> Request:
    return Request({"type": "http", "scheme": scheme, "headers": [(b"host", host.encode("latin-1"))]})


def test_every_operation_is_there_with_an_example() -> None:
    assert EXAMPLES.keys() == OPERATIONS.keys()
    for name in OPERATIONS:
        assert f'<h2 id="{name}">' in PAGE


@pytest.mark.parametrize(
    ("dialect", "messages"),
    [
        ("rele", [EXAMPLES["send"].body, *EXAMPLES["sendBulk"].body["messages"]]),
        ("resend", [EXAMPLES["sendEmail"].body, *EXAMPLES["sendEmails"].body]),
    ],
)
def test_the_bodies_of_examples_are_taken(dialect: Dialect, messages: list[object]) -> None:
    for message in messages:
        assert isinstance(read_send(message, dialect, RequestLimits()), SendRequest)
    assert isinstance(read_time(EXAMPLES["updateEmail"].body, "x"), timedelta)


def test_every_way_within_the_page_leads_somewhere() -> None:
    there = set(re.findall(r' id="([^"]+)"', PAGE))
    assert len(there) == PAGE.count(' id="'), "each once"
    assert set(re.findall(r'href="#([^"]+)"', PAGE)) <= there


def test_every_rule_is_told_with_its_mend() -> None:
    assert [rule.value for rule in Rule if f'id="rule-{rule.value}"' not in PAGE] == []


def test_every_field_that_is_asked_for_has_a_meaning() -> None:
    for name in ("Send", "Email", "Bulk", "File", "EmailFile", "Time"):
        rows = list(Reader(DOCUMENT["components"]["schemas"]).fields(DOCUMENT["components"]["schemas"][name]))
        assert [one.name for one in rows if not one.about and one.name.count(".") == 0] == []


@pytest.mark.parametrize(
    ("schema", "kind", "about"),
    [
        ({"type": "integer", "minimum": 1, "maximum": 9, "default": 5}, "number", "1 to 9; `5` unless said"),
        ({"type": ["string", "null"], "format": "date-time"}, "time", ""),
        ({"anyOf": [{"$ref": "#/components/schemas/Word"}, {"type": "null"}]}, "text", "up to 5,000 characters"),
        ({"$ref": "#/components/schemas/Word", "description": "mine"}, "text", "mine; up to 5,000 characters"),
        ({"type": "array", "maxItems": 3, "items": {"$ref": "#/components/schemas/Inner"}}, "list of Inner", "up to 3"),
        ({"enum": ["a", "b"]}, "text", "`a`, `b`"),
        ({}, "any value", ""),
    ],
)
def test_a_field_is_said_in_a_line(schema: dict[str, object], kind: str, about: str) -> None:
    field = Reader(SCHEMAS).field("it", schema, required=False)
    assert (field.kind, field.about) == (kind, about)


def test_fields_within_fields_are_named_by_their_way() -> None:
    inner = {"type": "object", "properties": {"b": {"type": "array", "items": SCHEMAS["Inner"]}}}
    names = [one.name for one in Reader(SCHEMAS).fields({"properties": {"a": inner}})]
    assert names == ["a", "a.b", "a.b[].deep"]


@pytest.mark.parametrize(
    ("host", "public_url", "base"),
    [
        ("mail.example:8025", "", "http://mail.example:8025"),
        ("192.0.2.7", "", "http://192.0.2.7"),
        ("[2001:db8::1]:8025", "", "http://[2001:db8::1]:8025"),
        ("inner:8025", "https://mail.example", "http://inner:8025"),
        ("Mail.Example", "https://mail.example/api/", "https://mail.example/api"),
        ("", "https://mail.example", "https://mail.example"),
        ("<script>", "https://mail.example", "https://mail.example"),
        ("a b", "", "https://HOST"),
        ("x';rm -rf ~;'", "", "https://HOST"),
        ("\u00e9.example", "", "https://HOST"),
        ("a" * 300, "", "https://HOST"),
        ("a:99999999", "", "https://HOST"),
    ],
)
def test_the_reader_is_shown_the_name_that_he_used(host: str, public_url: str, base: str) -> None:
    assert base_of(asked(host), public_url) == base


def test_what_is_typed_is_set_apart() -> None:
    assert "`" not in re.sub(r"<pre.*?</pre>", "", unescape(PAGE), flags=re.DOTALL)
