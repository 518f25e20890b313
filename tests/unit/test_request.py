"""Requests of both dialects: what is taken, and that everything wrong is told at once."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings, strategies as st

from opensend_milter.core.model import Address, Mailbox
from opensend_milter.core.request import (
    Dialect,
    FieldError,
    File,
    RequestLimits,
    SendRequest,
    parse_json,
    read_send,
    read_time,
)
from tests.linear import assert_linear

LIMITS = RequestLimits(max_recipients=5, max_attachment_bytes=1_000, max_attachments=3)
RELE: Mapping[str, object] = {"to": "b@example.net", "subject": "s", "body": "b"}
RESEND: Mapping[str, object] = {"from": "a@example.org", "to": "b@example.net", "subject": "s", "text": "b"}
FILE: Mapping[str, object] = {"filename": "a.bin", "content_type": "application/x", "data": "QUJD"}
RESEND_FILE: Mapping[str, object] = {"filename": "a.bin", "content": "QUJD"}
B = Mailbox("", Address("b@example.net"))
MISSING = object()


def read(dialect: Dialect, fields: Mapping[str, object]) -> SendRequest | list[FieldError]:
    given_ = {**(RELE if dialect == "rele" else RESEND), **fields}
    return read_send({name: value for name, value in given_.items() if value is not MISSING}, dialect, LIMITS)


def accepted(dialect: Dialect, fields: Mapping[str, object]) -> SendRequest:
    found = read(dialect, fields)
    assert isinstance(found, SendRequest), found
    return found


def wrong(dialect: Dialect, fields: Mapping[str, object]) -> list[tuple[str, str]]:
    found = read(dialect, fields)
    assert not isinstance(found, SendRequest)
    assert all(error.message.startswith(f"{error.field}: ") for error in found)
    return [(error.field, error.code) for error in found]


# ---------------------------------------------------------------------- JSON


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"{} {}", "not JSON"),
        (b"\xef\xbb\xbf{}", "not JSON"),
        (b'{"a": "\xff"}', "not UTF-8"),
        ('{"a": 1}'.encode("utf-16"), "not UTF-8"),
        (b'{"a": "\n"}', "not JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"to": "a", "to": "b"}', "key to twice"),
        (b'{"a": [{"\\u0074o": 1, "to": 2}]}', "key to twice"),
        (b'{"\\ud800": 1, "\\ud800": 2}', "key \\ud800 twice"),
        (b"[" * 34 + b"]" * 34, "nested more than 32 deep"),
        (b'{"a":' * 34 + b"1" + b"}" * 34, "nested more than 32 deep"),
        (b"[" * 100_000, "nested more than 32 deep"),
        (b'{"a": ' + b"9" * 5_000 + b"}", "number that is too long"),
    ],
)
def test_json_that_readers_would_differ_about(body: bytes, said: str) -> None:
    found = parse_json(body)
    assert isinstance(found, FieldError)
    assert said in found.message
    assert found.message.encode()


@pytest.mark.parametrize(
    "value", [{}, [], None, "é\u2028😀", 1.5, {"a": {"a": [1, {"a": None}]}}, json.loads("[" * 32 + "]" * 32)]
)
def test_json(value: object) -> None:
    assert parse_json(json.dumps(value).encode()) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


def test_one_key_twice_among_many_is_found_in_one_pass() -> None:
    def find(keys: int) -> None:
        names = [*range(keys), keys - 1]
        body = "{" + ",".join(f'"{name}":1' for name in names) + "}"
        found = parse_json(body.encode())
        assert isinstance(found, FieldError)
        assert f"the key {keys - 1} twice" in found.message

    assert_linear(find, 2_000)
    find(300_000)  # a look at all for each would not end


# ---------------------------------------------------------------------- taken


def test_half_a_surrogate_in_an_encoded_word_can_be_written() -> None:
    assert accepted("rele", {"to": "=?utf-7?q?+2AA-?= <b@example.net>"}).to == (Mailbox("\ufffd", B.address),)


def test_every_field_of_rele() -> None:
    found = accepted(
        "rele",
        {
            "from": "App <a@example.org>",
            "from_name": " The App ",
            "to": ["B <b@example.net>", "c@example.net"],
            "cc": "d@example.net",
            "bcc": ["e@example.net"],
            "reply_to": ["r@example.org"],
            "subject": " Hello\tyou ",
            "body": "text\n",
            "body_html": "<p>",
            "attachments": [{**FILE, "content_id": "<logo@x>"}],
            "metadata": {"Order": 7, "ok": True},
            "headers": {"X-A": " a  b "},
            "tags": {"campaign": "spring", "x": ""},
            "send_at": "in 2 hours",
        },
    )
    assert found == SendRequest(
        sender=Mailbox("App", Address("a@example.org")),
        from_name="The App",
        to=(Mailbox("B", Address("b@example.net")), Mailbox("", Address("c@example.net"))),
        cc=(Mailbox("", Address("d@example.net")),),
        bcc=(Mailbox("", Address("e@example.net")),),
        reply_to=(Mailbox("", Address("r@example.org")),),
        subject="Hello you",
        text="text\n",
        html="<p>",
        attachments=(File(filename="a.bin", content_type="application/x", content=b"ABC", content_id="logo@x"),),
        headers=(("X-A", "a  b"),),
        tags=(("campaign", "spring"), ("x", "")),
        metadata={"order": "7", "ok": "true"},
        send_at=timedelta(hours=2),
    )


@pytest.mark.parametrize(
    "spelled",
    [
        {"reply_to": "r@example.org", "scheduled_at": "in 1 min"},
        {"replyTo": ["r@example.org"], "scheduledAt": "in 1 minute"},
    ],
)
def test_every_field_of_resend(spelled: dict[str, object]) -> None:
    found = accepted(
        "resend",
        {
            **spelled,
            "from": "App <a@example.org>",
            "html": "<p>",
            "text": MISSING,
            "cc": None,
            "attachments": [RESEND_FILE],
            "headers": {},
            "tags": [{"name": "a", "value": "b"}],
        },
    )
    assert found == SendRequest(
        sender=Mailbox("App", Address("a@example.org")),
        to=(B,),
        reply_to=(Mailbox("", Address("r@example.org")),),
        subject="s",
        html="<p>",
        attachments=(File(filename="a.bin", content_type="application/octet-stream", content=b"ABC"),),
        tags=(("a", "b"),),
        send_at=timedelta(minutes=1),
    )


def test_what_null_says_is_not_said() -> None:
    names = ["from", "cc", "bcc", "reply_to", "body_html", "attachments", "metadata", "headers", "tags", "send_at"]
    assert accepted("rele", dict.fromkeys(names)) == SendRequest(to=(B,), subject="s", text="b")


def test_a_moment() -> None:
    moment = datetime(2026, 1, 31, 7, tzinfo=UTC)
    assert accepted("rele", {"send_at": "2026-01-31T08:00:00+01:00"}).send_at == moment
    assert accepted("resend", {"scheduled_at": "2026-01-31T07:00:00.000Z"}).send_at == moment


@pytest.mark.parametrize(
    ("payload", "found"),
    [
        ({"scheduled_at": "2026-01-31T08:00:00+01:00"}, datetime(2026, 1, 31, 7, tzinfo=UTC)),
        ({"scheduledAt": "in 1 min", "id": "x"}, timedelta(minutes=1)),
        ({"scheduled_at": "in 0 days"}, timedelta(0)),
        ({"scheduled_at": "in 1 hour", "id": None}, timedelta(hours=1)),
        ({}, [("scheduled_at", "required")]),
        ({"scheduled_at": None}, [("scheduled_at", "required")]),
        ({"scheduled_at": 7}, [("scheduled_at", "wrong_type")]),
        ({"scheduled_at": "soon"}, [("scheduled_at", "invalid")]),
        ({"scheduled_at": "in 1 hour", "scheduledAt": "in 2 hours"}, [("scheduled_at", "invalid")]),
        ({"scheduled_at": "in 1 hour", "id": "y", "html": ""}, [("id", "invalid"), ("html", "unknown")]),
        (["in 1 hour"], [("", "wrong_type")]),
        (None, [("", "wrong_type")]),
    ],
)
def test_another_time(payload: object, found: object) -> None:
    read = read_time(payload, "x")
    assert ([(error.field, error.code) for error in read] if isinstance(read, list) else read) == found


def test_a_flood_of_fields_beside_a_time_is_read_once_each() -> None:
    assert_linear(lambda size: read_time({"scheduled_at": "x" * size, **{f"f{n}": n for n in range(size)}}, "x"), 200)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", b""),
        ("QUJD", b"ABC"),
        ("QUJD\r\nQQ==\n", b"ABCA"),
        ("QUJD\rQQ==", b"ABCA"),
        ([], b""),
        ([0, 255], b"\x00\xff"),
        ([65, 66.0], b"AB"),
        ({"type": "Buffer", "data": [65, 66]}, b"AB"),
    ],
)
def test_content_as_clients_of_resend_send_it(content: object, expected: bytes) -> None:
    (file,) = accepted("resend", {"attachments": [{**RESEND_FILE, "content": content}]}).attachments
    assert file.content == expected


@pytest.mark.parametrize("name", ["content_id", "contentId", "inline_content_id", "inlineContentId"])
def test_the_content_id_as_clients_of_resend_send_it(name: str) -> None:
    (file,) = accepted("resend", {"attachments": [{**RESEND_FILE, name: "logo"}]}).attachments
    assert (file.content_id, file.inline) == ("logo", True)


@pytest.mark.parametrize(
    ("asked", "content_type"),
    [
        ("image/PNG", "image/png"),
        (" text/plain;charset=utf-8 ", "text/plain; charset=utf-8"),
        ('text/plain ; Charset="utf-8"; format=flowed;', "text/plain; charset=utf-8; format=flowed"),
        ('a/b; x="a; b\\"c\\\\"', 'a/b; x="a; b\\"c\\\\"'),
        ('a/b; name="evil.exe"; boundary=x; y=""', 'a/b; y=""'),
        ("message/rfc822", "application/octet-stream"),
        ("application/vnd.openxmlformats-officedocument.wordprocessingml.document",
         "application/vnd.openxmlformats-officedocument.wordprocessingml.document"),
    ],
)  # fmt: skip
def test_a_content_type_is_written_anew(asked: str, content_type: str) -> None:
    (file,) = accepted("rele", {"attachments": [{**FILE, "content_type": asked}]}).attachments
    assert file.content_type == content_type


@pytest.mark.parametrize(
    ("filename", "content_type"),
    [
        ("a.PDF", "application/pdf"),
        ("a.png", "image/png"),
        ("a.eml", "application/octet-stream"),
        ("a.tar.gz", "application/octet-stream"),
        ("png", "application/octet-stream"),
        ("data:,a=1", "application/octet-stream"),
    ],
)
def test_a_content_type_nobody_said(filename: str, content_type: str) -> None:
    (file,) = accepted("resend", {"attachments": [{**RESEND_FILE, "filename": filename}]}).attachments
    assert file.content_type == content_type


@pytest.mark.parametrize(
    ("metadata", "kept"),
    [
        ({"Request-Id": " r1 ", "n": 1.5}, {"request-id": "r1", "n": "1.5"}),
        ({}, {}),
        ("text", {}),
        ([1], {}),
        ({"a": "b", "c": ["d"]}, {}),
        ({"a": None}, {}),
        ({"a": "1", "A": "2"}, {}),
        ({"a b": "1"}, {}),
        ({"a": "x\ny"}, {}),
        ({"a": "x" * 1_001}, {}),
        ({"a" * 65: "x"}, {}),
        ({"\u212a": "kelvin"}, {"k": "kelvin"}),
        ({str(number): "x" for number in range(51)}, {}),
    ],
)
def test_metadata_is_kept_or_ignored(metadata: object, kept: dict[str, str]) -> None:
    assert accepted("rele", {"metadata": metadata}).metadata == kept


# ---------------------------------------------------------------------- refused


def test_all_that_is_wrong_is_told_at_once() -> None:
    assert wrong(
        "rele",
        {
            "from": "nobody",
            "from_name": "a\nb",
            "to": ["b@example.net", 7, "x@y, z@y"],
            "cc": {},
            "reply_to": ["a\r\nb@example.net"],
            "subject": " ",
            "body": 1,
            "body_html": "\x00",
            "attachments": [FILE, {"data": "Q", "path": "/etc/passwd", "content_type": "x"}, 1],
            "headers": {"Bcc": "e@example.net", "X Y": "1", "X-A": "ü", "x-a": "1"},
            "tags": [{"name": "ü", "value": "1"}],
            "send_at": "tomorrow",
            "idempotency_key": "k",
        },
    ) == [
        ("from_name", "invalid"), ("from", "invalid"), ("to[1]", "wrong_type"), ("to[2]", "invalid"),
        ("cc", "wrong_type"), ("reply_to[0]", "invalid"), ("subject", "required"), ("body", "wrong_type"),
        ("body_html", "invalid"), ("attachments[1].filename", "required"), ("attachments[1].content_type", "invalid"),
        ("attachments[1].data", "invalid"), ("attachments[1].path", "unknown"), ("attachments[2]", "wrong_type"),
        ("headers.Bcc", "invalid"), ("headers.X Y", "invalid"), ("headers.X-A", "invalid"),
        ("tags[0]", "invalid"), ("send_at", "invalid"), ("idempotency_key", "unknown"),
    ]  # fmt: skip


@pytest.mark.parametrize("payload", [None, [], "x", 1, True])
@pytest.mark.parametrize("dialect", ["rele", "resend"])
def test_what_is_no_object(payload: object, dialect: Dialect) -> None:
    (error,) = read_send(payload, dialect, LIMITS)  # type: ignore[misc]  # a list, as it must be
    assert error.code == "wrong_type"


def test_what_must_be_there() -> None:
    assert [error.field for error in read_send({}, "rele", LIMITS)] == ["to", "subject", "body"]  # type: ignore[union-attr]  # a list
    assert [error.field for error in read_send({}, "resend", LIMITS)] == ["text", "from", "to", "subject"]  # type: ignore[union-attr]  # a list


@pytest.mark.parametrize(
    ("dialect", "fields", "expected"),
    [
        ("rele", {"to": []}, [("to", "required")]),
        ("rele", {"to": ""}, [("to", "invalid")]),
        ("rele", {"to": ["b@example.net"] * 6}, [("to", "too_many")]),
        ("rele", {"cc": ["b@example.net"] * 2, "bcc": ["b@example.net"] * 3}, [("to", "too_many")]),
        ("rele", {"reply_to": ["b@example.net"] * 6}, [("reply_to", "too_many")]),
        ("rele", {"to": "x" * 2_000}, [("to", "too_long")]),
        ("rele", {"to": "x" * 300 + "@example.net <b@example.net>"}, [("to", "invalid")]),
        ("rele", {"to": "y" * 257 + " <b@example.net>"}, [("to", "invalid")]),
        ("rele", {"to": "group: b@example.net;"}, [("to", "invalid")]),
        ("rele", {"to": "<@a.example:b@example.net>"}, [("to", "invalid")]),
        ("rele", {"to": "a@ok.example)b@evil.example"}, [("to", "invalid")]),
        ("rele", {"to": "b@example.net\ud800"}, [("to", "invalid")]),
        ("rele", {"to": "a" * 320 + "@example.net"}, [("to", "invalid")]),
        ("rele", {"subject": "x" * 1_025}, [("subject", "too_long")]),
        ("rele", {"subject": "x\x85"}, [("subject", "invalid")]),
        ("rele", {"from_name": "x" * 257}, [("from_name", "too_long")]),
        ("rele", {"html_body": "x"}, [("html_body", "unknown")]),
        ("rele", {"text": "x"}, [("text", "unknown")]),
        ("rele", {"\ud800": "x"}, [("\\ud800", "unknown")]),
        ("rele", {"attachments": FILE}, [("attachments", "wrong_type")]),
        ("rele", {"attachments": [FILE] * 4}, [("attachments", "too_many")]),
        ("rele", {"headers": ["X-A: 1"]}, [("headers", "wrong_type")]),
        ("rele", {"headers": {f"X-{n}": "1" for n in range(51)}}, [("headers", "too_many")]),
        ("rele", {"headers": {"X-A": 1}}, [("headers.X-A", "wrong_type")]),
        ("rele", {"headers": {"X-A": "1", "x-a": "1"}}, [("headers.x-a", "invalid")]),
        ("rele", {"headers": {"X" * 127: "1"}}, [("headers." + "X" * 60, "invalid")]),
        ("rele", {"tags": "x"}, [("tags", "wrong_type")]),
        ("rele", {"tags": {str(n): "" for n in range(76)}}, [("tags", "too_many")]),
        ("rele", {"tags": ["x"]}, [("tags[0]", "invalid")]),
        ("rele", {"tags": [{"name": "a", "value": "b", "c": "d"}]}, [("tags[0]", "invalid")]),
        ("rele", {"tags": [{"name": "a ", "value": "b"}]}, [("tags[0]", "invalid")]),
        ("rele", {"tags": [{"name": "a=b", "value": ""}]}, [("tags[0]", "invalid")]),
        ("rele", {"tags": [{"name": "", "value": "b"}]}, [("tags[0]", "invalid")]),
        ("rele", {"tags": [{"name": "a", "value": "b\n"}]}, [("tags[0]", "invalid")]),
        ("rele", {"send_at": 5}, [("send_at", "wrong_type")]),
        ("rele", {"send_at": "2026-01-31T08:00:00"}, [("send_at", "invalid")]),
        ("resend", {"from": "Name a@example.org"}, [("from", "invalid")]),
        ("resend", {"text": MISSING}, [("text", "required")]),
        ("resend", {"text": None}, [("text", "required")]),
        ("resend", {"body": "x"}, [("body", "unknown")]),
        ("resend", {"template": {"id": "x"}}, [("template", "not_offered")]),
        ("resend", {"topic_id": "x"}, [("topic_id", "not_offered")]),
        ("resend", {"reply_to": "r@x.example", "replyTo": "r@x.example"}, [("reply_to", "invalid")]),
        ("resend", {"metadata": {}}, [("metadata", "unknown")]),
        (
            "resend",
            {"attachments": [{"filename": "a", "path": "https://x"}]},
            [("attachments[0].path", "not_offered"), ("attachments[0].content", "required")],
        ),
    ],
)
def test_refused(dialect: Dialect, fields: dict[str, object], expected: list[tuple[str, str]]) -> None:
    assert wrong(dialect, fields) == expected


@pytest.mark.parametrize(
    "name",
    [
        "From", "sender", "TO", "Cc", "Bcc", "Reply-To", "Subject", "Date", "Message-ID", "MIME-Version",
        "Content-Type", "content-anything", "Received", "Return-Path", "DKIM-Signature", "X-OpenSend-Tag",
        "x-opensend-anything", "Idempotency-Key", "Resent-To",
        "ARC-Seal", "X-SES-CONFIGURATION-SET", "", "X-Ü", "X:", "X-A\r\nY", "a b",
    ],
)  # fmt: skip
def test_header_fields_that_are_ours(name: str) -> None:
    ((_, code),) = wrong("rele", {"headers": {name: "1"}})
    assert code == "invalid"


@pytest.mark.parametrize(
    "name", ["List-Unsubscribe", "List-Unsubscribe-Post", "In-Reply-To", "References", "X-Entity-Ref-ID", "Precedence"]
)
def test_header_fields_that_are_not(name: str) -> None:
    assert accepted("rele", {"headers": {name: "x" * 870}}).headers == ((name, "x" * 870),)
    assert wrong("rele", {"headers": {name: "x" * 871}}) == [(f"headers.{name}", "invalid")]


@pytest.mark.parametrize(
    ("field", "values", "code"),
    [
        (
            "filename",
            ["", "a/b", "a\\b", ".", "..", "a\nb", "a\x00", "a\x7f", "a\x9f", "a\u2028", "a\ud800", "a\u202egpj.exe",
             "\u2066a", "x" * 256, "ü" * 128, " a", "a\u00a0", "=?utf-8?q?a?="],
            "invalid",
        ),
        (
            "content_type",
            ["", "text", "text/", "/plain", "text/plain\r\nX: y", "text/plain; x", "text/plain; x=y; X=z",
             'text/plain; x="', 'text/plain; x="\r\n"', "text/plain; x=ü", "text/plain x=y", "a/b/c", "multipart/mixed",
             "text/plain; filename*=utf-8''x", "a/" + "b" * 300, "te xt/plain"],
            "invalid",
        ),
        ("content_id", ["", "<>", "a b", "a\n", "a>b", "x" * 129, "ü"], "invalid"),
        ("data", ["QUJ", "QUJD=", "QU JD", "QU-_", "ü", "=QUJ", "QUJDQ===", "QUJD====", "QQ=", "====", "=",
                  "\ud800", "QQ==QQ=="], "invalid"),
        ("data", ["QUJD" * 251, "Q" * 5_000, "Q\n" * 2_000], "too_large"),
        ("data", [[65], {"type": "Buffer", "data": [65]}, 1, True], "invalid"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_attachment(field: str, values: list[object], code: str) -> None:
    for value in values:
        assert wrong("rele", {"attachments": [{**FILE, field: value}]}) == [(f"attachments[0].{field}", code)], value


@pytest.mark.parametrize(
    "content", [[256], [-1], [1.5], [1e400], [True], ["65"], [None], {"data": [65]}, {"type": "Buffer", "data": "x"}]
)
def test_content_that_is_no_octets(content: object) -> None:
    assert wrong("resend", {"attachments": [{**RESEND_FILE, "content": content}]}) == [
        ("attachments[0].content", "invalid")
    ]


def test_attachments_are_bounded_together_as_base64() -> None:
    half = base64.b64encode(b"x" * 375).decode()
    assert len(accepted("rele", {"attachments": [{**FILE, "data": half}] * 2}).attachments) == 2
    files = [{**FILE, "data": half}, {**FILE, "data": half}, {**FILE, "data": "QQ=="}]
    assert wrong("rele", {"attachments": files}) == [("attachments[2].data", "too_large")]
    numbers = [{**RESEND_FILE, "content": [1] * 751}]
    assert wrong("resend", {"attachments": numbers}) == [("attachments[0].content", "too_large")]


def test_two_attachments_with_one_content_id() -> None:
    assert wrong("rele", {"attachments": [{**FILE, "content_id": "a"}, {**FILE, "content_id": "<a>"}]}) == [
        ("attachments[1].content_id", "invalid")
    ]


def test_names_that_no_header_field_has_room_for() -> None:
    names = ["😀" * 256 + " <b@example.net>"] * 50
    found = read_send({**RELE, "to": names}, "rele", RequestLimits())
    assert isinstance(found, list)
    assert [(error.field, error.code) for error in found] == [("to", "too_long")]


def test_a_flood_of_faults_is_bounded() -> None:
    found = read("rele", {f"field{number}": 1 for number in range(100_000)})
    assert isinstance(found, list)
    assert len(found) == 100


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4),
    max_leaves=8,
)
NAMES = sorted({
    "from", "to", "cc", "bcc", "subject", "body", "body_html", "from_name", "reply_to", "attachments", "metadata",
    "headers", "tags", "send_at", "text", "html", "scheduled_at", "template",
})  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), json_values, max_size=8), st.booleans())
def test_any_json_is_read_or_refused(payload: dict[str, object], rele: bool) -> None:  # noqa: FBT001
    found = read_send({**payload, "attachments": [payload]}, "rele" if rele else "resend", LIMITS)
    if not isinstance(found, SendRequest):
        assert found
        assert all((error.field + error.message).encode() for error in found)
