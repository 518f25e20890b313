"""What is written is read back, by us and by the standard library, and nothing else is in it."""

from __future__ import annotations

import base64
import binascii
import email
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from email.headerregistry import Address as Shown
from email.message import EmailMessage
from email.policy import default
from unicodedata import normalize

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from opensend_milter.core.errors import MalformedMessage
from opensend_milter.core.message import has_longer_line, read
from opensend_milter.core.model import Address, Limits, Mailbox, Reading, Refuse
from opensend_milter.core.request import File, RequestLimits, SendRequest, read_send
from opensend_milter.core.row import ascii_domain
from opensend_milter.core.rules import Rule
from opensend_milter.core.words import decode_words
from opensend_milter.core.writing import envelope, write
from tests.linear import assert_linear

DATE = datetime(2026, 1, 31, 8, 0, tzinfo=UTC)
MESSAGE_ID = "<1@example.org>"
DEFAULT = Mailbox("", Address("app@example.org"))
MINIMAL: Mapping[str, object] = {"to": "b@example.net", "subject": "s", "body": "b"}
PART_FIELDS = {"content-type", "content-disposition", "content-id", "content-transfer-encoding"}
FILE: Mapping[str, object] = {"filename": "a.txt", "content_type": "text/plain", "data": "QUJD"}


def accepted(**fields: object) -> SendRequest:
    found = read_send({**MINIMAL, **fields}, "rele", RequestLimits())
    assert isinstance(found, SendRequest), found
    return found


def written(request: SendRequest) -> bytes:
    return write(request, sender=request.sender or DEFAULT, message_id=MESSAGE_ID, date=DATE)


def read_back(raw: bytes) -> Reading:
    found = read(raw, Limits())
    assert isinstance(found, Reading), found
    return found


def parsed(raw: bytes) -> EmailMessage:
    found = email.message_from_bytes(raw, policy=default)
    assert isinstance(found, EmailMessage)
    return found


def as_lines(text: str | None) -> str:
    return (text or "").replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n")


def expected_names(request: SendRequest) -> list[str]:
    is_multipart = bool(request.attachments) or bool(request.text and request.html)
    return [
        "from", "to", *(["cc"] if request.cc else []), *(["reply-to"] if request.reply_to else []),
        "subject", "date", "message-id", *(name.lower() for name, _ in request.headers),
        *(["idempotency-key"] if request.idempotency_key else []), *("x-opensend-tag" for _ in request.tags),
        *(f"x-opensend-metadata-{name}" for name in request.metadata),
        *(["x-opensend-send-at"] if request.send_at is not None else []), "mime-version", "content-type",
        *([] if is_multipart else ["content-transfer-encoding"]),
    ]  # fmt: skip


def in_order(request: SendRequest) -> list[File]:
    """Files as they stand in the message: those that HTML shows go first."""
    return sorted(request.attachments, key=lambda file: not (file.inline and request.html))


def shown(mailboxes: tuple[Mailbox, ...]) -> list[tuple[str, str]]:
    return [(mailbox.name, ascii_domain(mailbox.address)) for mailbox in mailboxes]


def is_ascii(request: SendRequest) -> bool:
    mailboxes = (*request.to, *request.cc, *request.reply_to, request.sender or DEFAULT)
    return all(ascii_domain(mailbox.address).isascii() for mailbox in mailboxes)


def assert_said(request: SendRequest) -> bytes:
    """Write it, and find exactly what was asked for, twice."""
    raw = written(request)
    assert raw.isascii() or not is_ascii(request)
    assert not has_longer_line(raw, 1_000)
    assert raw.count(b"\n") == raw.count(b"\r\n") == raw.count(b"\r")
    assert_line_by_line(request, raw)
    found = read(raw, Limits())
    if isinstance(found, Refuse):
        # A name that must be written as encoded words, with an address in it.
        sender = request.sender or DEFAULT
        named = normalize("NFKC", (request.from_name or sender.name) + sender.address.rpartition("@")[0])
        assert (found.rule, "@" in named) == (Rule.FROM_MALFORMED, True), found
    else:
        assert_read_by_us(request, found)
        assert not found.doubt or any('"' in file.content_type for file in request.attachments)
    if is_ascii(request):
        assert_read_by_others(request, parsed(raw))
    return raw


def assert_line_by_line(request: SendRequest, raw: bytes) -> None:
    """Find the header fields of the message and of each part without anybody's parser."""
    head, *parts = re.split(rb"(?m)^--=_[a-z]+_[0-9a-f]{32}\r\n", raw)
    assert names_of(head) == expected_names(request)
    for part in parts:
        assert set(names_of(part)) <= PART_FIELDS


def names_of(block: bytes) -> list[str]:
    lines = block.partition(b"\r\n\r\n")[0].split(b"\r\n")
    return [line.partition(b":")[0].decode().lower() for line in lines if line[:1] not in {b" ", b"\t"}]


def assert_read_by_us(request: SendRequest, found: Reading) -> None:
    assert [name for name, _ in found.fields] == expected_names(request)
    sender = request.sender or DEFAULT
    assert shown((found.sender,)) == [(request.from_name or sender.name, ascii_domain(sender.address))]
    assert shown(found.to) == shown(request.to)
    assert shown(found.cc) == shown(request.cc)
    assert shown(found.reply_to) == shown(request.reply_to)
    assert found.subject == request.subject
    assert (found.text, found.html) == (as_lines(request.text), as_lines(request.html))
    assert [(file.filename, file.content_id) for file in found.attachments] == [
        (file.filename, file.content_id) for file in in_order(request)
    ]
    for ours, theirs in zip(found.attachments, in_order(request), strict=True):
        assert base64.b64decode(b"".join(ours.content.pieces())) == theirs.content
    assert dict(request.headers).items() <= {
        (name, value)
        for given in dict(request.headers)
        for low, value in found.fields
        if low == (name := given).lower()
    }
    asked = found.wishes
    assert (asked.idempotency_key, asked.tags, asked.send_at) == (
        request.idempotency_key,
        request.tags,
        request.send_at,
    )
    assert asked.metadata.keys() == request.metadata.keys()
    for name, value in request.metadata.items():
        assert value in {asked.metadata[name], decode_words(asked.metadata[name])}


def assert_read_by_others(request: SendRequest, found: EmailMessage) -> None:
    assert [name.lower() for name in found] == expected_names(request)
    assert found["subject"] == request.subject
    assert not found["subject"].defects
    for field, mailboxes in (("to", request.to), ("cc", request.cc), ("reply-to", request.reply_to)):
        there: tuple[Shown, ...] = found[field].addresses if mailboxes else ()
        # The library folds spaces within a name, and puts one between the words of a long one.
        assert ["".join(one.display_name.split()) for one in there] == ["".join(m.name.split()) for m in mailboxes]
        assert [one.addr_spec for one in there] == [address for _, address in shown(mailboxes)]
    leaves = [part for part in found.walk() if not part.is_multipart()]
    assert [part for part in found.walk() if part.defects] == []
    files = [part for part in leaves if part.get_filename() is not None]
    assert [(part.get_filename(), part.get_payload(decode=True)) for part in files] == [
        (file.filename, file.content) for file in in_order(request)
    ]
    bodies = {part.get_content_subtype(): part.get_payload(decode=True) for part in leaves if part not in files}
    texts = {"plain": request.text, "html": request.html}
    expected = {kind: as_lines(text).encode() for kind, text in texts.items() if text}
    assert bodies == (expected or {"plain": b""})


# ---------------------------------------------------------------------- shapes

PICTURE = {**FILE, "filename": "p.png", "content_type": "image/png", "content_id": "<p@x>"}


@pytest.mark.parametrize(
    ("fields", "kinds"),
    [
        ({}, ["text/plain"]),
        ({"body": ""}, ["text/plain"]),
        ({"body": "", "body_html": "<p>"}, ["text/html"]),
        ({"body_html": ""}, ["text/plain"]),
        ({"body_html": "<p>"}, ["multipart/alternative", "text/plain", "text/html"]),
        ({"attachments": [FILE]}, ["multipart/mixed", "text/plain", "text/plain"]),
        ({"attachments": []}, ["text/plain"]),
        ({"attachments": [PICTURE]}, ["multipart/mixed", "text/plain", "image/png"]),
        ({"body": "", "body_html": "<p>", "attachments": [PICTURE]}, ["multipart/related", "text/html", "image/png"]),
        (
            {"body_html": "<p>", "attachments": [FILE, PICTURE]},
            ["multipart/mixed", "multipart/alternative", "text/plain", "multipart/related", "text/html", "image/png",
             "text/plain"],
        ),
    ],
)  # fmt: skip
def test_shape(fields: dict[str, object], kinds: list[str]) -> None:
    raw = assert_said(accepted(**fields))
    assert [part.get_content_type() for part in parsed(raw).walk()] == kinds


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("", "7bit"),
        ("plain\nlines\r\nof\rany kind\n\n", "7bit"),
        ("x" * 78 + "\n", "7bit"),
        ("x\n" + "x" * 78, "7bit"),
        ("x" * 79, "quoted-printable"),
        ("x" * 5_000, "quoted-printable"),
        (" " * 77 + "xx", "quoted-printable"),
        ("space at the end \nof a line", "quoted-printable"),
        ("tab\t\n", "quoted-printable"),
        ("--=_mixed_\n", "quoted-printable"),
        ("a long text with a=_b", "quoted-printable"),
        ("\x01\x0b\x1b\x7f" + "x" * 30, "quoted-printable"),
        (".\n..\nFrom me\nmany Grüße of mine =3D\n", "quoted-printable"),
        ("Grüße", "base64"),
        ("日本語\n" * 100, "base64"),
        ("\ufeffmark", "base64"),
        ("\u2028\x85 " * 9, "base64"),
    ],
)
def test_text_is_kept_in_the_simplest_encoding(text: str, encoding: str) -> None:
    raw = assert_said(accepted(body=text))
    assert parsed(raw)["content-transfer-encoding"] == encoding
    assert_said(accepted(body=text, body_html=text, attachments=[FILE]))


def test_no_line_is_longer_than_it_must_be() -> None:
    raw = assert_said(
        accepted(
            to=[f"Recipient number {number} <r{number}@example.net>" for number in range(40)],
            subject="Grüße aus dem Süden, " * 20,
            headers={"References": " ".join(f"<{number}@example.org>" for number in range(40))},
            attachments=[{**FILE, "filename": "ü" * 100, "content_type": 'text/plain; charset="utf-8"; format=flowed'}],
        )
    )
    assert max(map(len, raw.split(b"\r\n"))) <= 78


@pytest.mark.case(35)
def test_nobody_sees_a_bcc() -> None:
    request = accepted(bcc=["secret@example.net", "B@EXAMPLE.NET", "b@example.NET"], cc="b@example.net")
    assert b"secret" not in assert_said(request)
    assert envelope(request) == ("b@example.net", "secret@example.net", "B@EXAMPLE.NET")


def test_without_to_the_recipients_are_not_told() -> None:
    raw = written(SendRequest(bcc=(DEFAULT,), subject="s", text="t"))
    assert b"\r\nTo: undisclosed-recipients:;\r\n" in raw
    assert read_back(raw).to == ()


def test_the_name_of_the_sender() -> None:
    request = accepted(from_name='Jörg, "the" boss')
    raw = write(request, sender=Mailbox("Default", Address("d@example.org")), message_id=MESSAGE_ID, date=DATE)
    assert read_back(raw).sender == Mailbox('Jörg, "the" boss', Address("d@example.org"))
    assert written(accepted(**{"from": "App <a@example.org>"})).startswith(b"From: App <a@example.org>\r\n")


@pytest.mark.case(27)
@pytest.mark.parametrize(
    "text",
    [
        "=?utf-8?q?a?=", "a =?utf-8?b?YQ==?= b", "=?", '"', "\\", 'the "boss"', "C:\\x", "a, b; c: <d@e> (f) [g]",
        "a@b.example", "two  spaces", "x" * 200, "Grüße_=?.~ ", "é" * 100, "=?utf-8?q?=3D=3Futf-8=3Fq=3Fa=3F=3D?=",
    ],
)  # fmt: skip
def test_text_in_a_header_field_is_what_it_is(text: str) -> None:
    """What looks like an encoded word, or like syntax, is text all the same."""
    assert_said(accepted(subject=text, from_name=text, metadata={"a": text}))
    mailbox = Mailbox(text.strip(), Address("b@example.net"))
    assert_said(SendRequest(to=(mailbox, mailbox), cc=(mailbox,), reply_to=(mailbox,), subject="s"))


@pytest.mark.parametrize(
    ("address", "octets"),
    [
        ("jörg@example.net", "jörg@example.net".encode()),
        ("b@bücher.example", b"b@xn--bcher-kva.example"),
        ('"a b"@example.net', b'"a b"@example.net'),
        ('"a\\"b\\\\"@example.net', b'"a\\"b\\\\"@example.net'),
        ("a@[192.0.2.1]", b"a@[192.0.2.1]"),
        (".a@example.net", b'".a"@example.net'),
        ("a!#$%&'*+/=?^_`{|}~-b@example.net", b"a!#$%&'*+/=?^_`{|}~-b@example.net"),
    ],
)
def test_an_address_is_shown_as_over_smtp(address: str, octets: bytes) -> None:
    request = accepted(to=[address, f"Jörg <{address}>"])
    assert b" " + octets + b",\r\n" in assert_said(request).replace(b", ", b",\r\n")
    assert envelope(request) == (address,)


@pytest.mark.parametrize(
    ("text", "delay"),
    [
        ("in 1 minute", timedelta(minutes=1)),
        ("in 999999 minutes", timedelta(minutes=999_999)),
        ("in 999999 hours", timedelta(hours=999_999)),
        ("in 999999 days", timedelta(days=999_999)),
        ("in 0 days", timedelta(0)),
        ("2026-01-31T08:00:00.25-05:30", None),
        ("2026-01-31T08:00:00Z", None),
    ],
)
def test_when_to_send(text: str, delay: timedelta | None) -> None:
    request = accepted(send_at=text)
    assert delay is None or request.send_at == delay
    assert_said(request)


def test_all_that_is_asked_of_us() -> None:
    found = accepted(
        tags=[{"name": "campaign", "value": "spring"}, {"name": "x" * 256, "value": ""}],
        metadata={"Order": 4711, "who": "Jörg  B", "yes": True, "half": 0.5, "none": "", "long": "word " * 199},
    )
    raw = assert_said(SendRequest(to=found.to, tags=found.tags, metadata=found.metadata, idempotency_key="order #1"))
    assert read_back(raw).wishes.idempotency_key == "order #1"


# ---------------------------------------------------------------------- hostile

BREAKS = ["\r\n", "\n", "\r", "\0", "\x0b", "\x0c", "\x1c", "\x7f", "\x85", "\u2028", "\u2029", "\ud800", "\udc0a"]


@pytest.mark.case(29)
@pytest.mark.parametrize("end", BREAKS)
@pytest.mark.parametrize(
    "request_",
    [
        lambda text: SendRequest(subject=text),
        lambda text: SendRequest(from_name=text),
        lambda text: SendRequest(to=(Mailbox(text, Address("a@b.example")),)),
        lambda text: SendRequest(cc=(Mailbox("", Address(f"{text}@b.example")),)),
        lambda text: SendRequest(reply_to=(Mailbox("x", Address(f"a@{text}")),)),
        lambda text: SendRequest(headers=((text, "x"),)),
        lambda text: SendRequest(headers=(("X-A", text),)),
        lambda text: SendRequest(headers=((f"X-A:{text}", "x"),)),
        lambda text: SendRequest(tags=((text, "x"),)),
        lambda text: SendRequest(metadata={text: "x"}),
        lambda text: SendRequest(metadata={"x": text}),
        lambda text: SendRequest(idempotency_key=text),
        lambda text: SendRequest(attachments=(File(filename=text, content_type="a/b", content=b""),)),
        lambda text: SendRequest(attachments=(File(filename="a", content_type=text, content=b""),)),
        lambda text: SendRequest(attachments=(File(filename="a", content_type="a/b", content=b"", content_id=text),)),
    ],
)
def test_what_was_never_checked_cannot_break_a_line_either(request_: Callable[[str], SendRequest], end: str) -> None:
    """The writer alone would do: whatever is in a request, it makes no field that was not asked for."""
    request = request_(f"x{end}X-Evil: 1{end}{end}evil")
    try:
        raw = write(request, sender=DEFAULT, message_id=MESSAGE_ID, date=DATE)
    except (MalformedMessage, UnicodeEncodeError):
        return
    assert raw.count(b"\n") == raw.count(b"\r\n") == raw.count(b"\r")
    assert not any(line.lower().startswith(b"x-evil") for line in raw.split(b"\r\n"))
    assert "x-evil" not in {name.lower() for name in parsed(raw)}


anything = st.text(st.characters(exclude_categories=[]), max_size=40)
pieces = st.sampled_from([
    "a", " ", "  ", "\t", "é", "日", "😀", "\u00a0", "\u200b", "\u202e", "=?utf-8?q?a?=", "=?", "?=", "=", "_", '"',
    "\\", ",", ";", ":", "(", ")", "<", ">", "@", "[", "]", "%0a", "=0D=0A", "''", "*", "\r\nX-Evil: 1",
    "\nBcc: e@evil.example", "\x85", "\u2028", "x" * 90, "--=_mixed_", ".", "/",
])  # fmt: skip
hostile = st.one_of(anything, st.lists(pieces, max_size=8).map("".join))
tame = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=120)
addresses = st.one_of(
    st.emails(),
    st.builds("{} <{}>".format, hostile | tame, st.emails()),
    st.builds('"{}" <{}>'.format, tame.map(lambda text: text.replace("\\", "").replace('"', "")), st.emails()),
    hostile,
)
files = st.fixed_dictionaries(
    {
        "filename": hostile | tame,
        "content_type": st.one_of(hostile, st.just("image/png"), st.builds('text/x; a="{}"'.format, hostile)),
        "data": st.one_of(hostile, st.binary(max_size=200).map(lambda octets: base64.b64encode(octets).decode())),
    },
    optional={"content_id": hostile | st.from_regex(r"[a-z0-9.]{1,20}@x", fullmatch=True)},
)
texts = st.one_of(hostile, tame)
names = st.one_of(hostile, st.from_regex(r"X-[A-Za-z]{1,20}", fullmatch=True))
requests = st.fixed_dictionaries(
    {"to": st.lists(addresses, min_size=1, max_size=3), "subject": texts, "body": texts},
    optional={
        "cc": addresses,
        "bcc": addresses,
        "from": addresses,
        "reply_to": addresses,
        "from_name": texts,
        "body_html": texts,
        "headers": st.dictionaries(names, texts | st.text("ab ,;<>", max_size=200), max_size=3),
        "tags": st.dictionaries(hostile | st.text("ab_-9", max_size=9), hostile | st.text("ab_-9"), max_size=3),
        "metadata": st.dictionaries(
            hostile | st.text("abAB_-9", min_size=1, max_size=9), texts | st.integers(), max_size=3
        ),
        "send_at": hostile | st.just("in 5 minutes"),
        "attachments": st.lists(files, max_size=3),
    },
)


@pytest.mark.case(29)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(requests)
def test_any_request_is_refused_or_written_exactly(payload: dict[str, object]) -> None:
    """One that is refused is written without the refused fields, so that what is left is often a lot."""
    found = read_send(payload, "rele", RequestLimits())
    if not isinstance(found, SendRequest):
        assert all(error.message.encode() for error in found)
        wrong = {error.field.partition("[")[0].partition(".")[0] for error in found}
        found = read_send({**{k: v for k, v in payload.items() if k not in wrong}, **{
            name: MINIMAL[name] for name in wrong & MINIMAL.keys()}}, "rele", RequestLimits())  # fmt: skip
    assert isinstance(found, SendRequest)
    assert_said(found)


@pytest.mark.case(29)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(requests, addresses)
def test_so_is_any_of_resends(payload: dict[str, object], sender: str) -> None:
    named = {"body": "text", "body_html": "html", "send_at": "scheduled_at"}
    asked = {named.get(name, name): value for name, value in payload.items() if name not in {"from_name", "metadata"}}
    if isinstance(given := asked.get("attachments"), list):
        asked["attachments"] = [{"content" if k == "data" else k: v for k, v in one.items()} for one in given]
    found = read_send({"from": sender, **asked}, "resend", RequestLimits())
    if not isinstance(found, SendRequest):
        wrong = {error.field.partition("[")[0].partition(".")[0] for error in found}
        good = {"from": "a@example.org", "to": "b@example.net", "subject": "s", "text": "b"}
        left = {name: value for name, value in asked.items() if name not in wrong}
        found = read_send({**good, **left}, "resend", RequestLimits())
    assert isinstance(found, SendRequest)
    assert_said(found)


@pytest.mark.case(44)
def test_forty_megabytes_are_written_in_one_pass() -> None:
    def write_file(octets: int) -> None:
        letters = binascii.b2a_base64(bytes(range(256)) * (octets // 256), newline=False).decode()
        raw = written(accepted(attachments=[{**FILE, "data": letters}]))
        assert not has_longer_line(raw, 78)
        (file,) = read_back(raw).attachments
        assert file.content.as_sent
        assert file.content.letters == len(letters)

    assert_linear(write_file, 250_000)
    write_file(30_000_000)
