"""Mail as applications really send it: what is stored, what OpenSend's row says of it, what arrives.

tests/golden has each message as its client sends it, `NAME.eml`, and beside it what is to become of it, `NAME.json`:
each read and found right, or set right where the program was not. A null column is left out there.
"""

from __future__ import annotations

import json
import re
import secrets
from base64 import b64encode, encodebytes
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import LiteralString, TypedDict, cast

import dkim
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.acceptance.running_sandbox import Sandbox
from tests.acceptance.submitting import TAKEN, Answer, Stored, delivered, rows, stored, submit
from tests.opensend_worker import Row, RowAttachment, ShownAttachment, faults, raw_of, request, shown, shown_by
from tests.waiting import await_true

GOLDEN = Path(__file__).parents[1] / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.eml"))
SIGNED = {"dkim-relaxed": b"relaxed", "dkim-simple": b"simple"}
"""Which of them the application signs, and how."""
SIGNED_FIELDS = [b"from", b"from", b"to", b"subject", b"date", b"message-id", b"x-campaign", b"x-campaign", b"x-empty",
                 b"mime-version", b"content-type", b"content-transfer-encoding"]  # fmt: skip
MOVING = frozenset({"id", "created_at", "sent_at", "status", "provider_last_attempted_at"})
"""Columns that differ from time to time."""
ABOVE = {
    "Received": rb"Received: from \[\S+\] \(\[\S+\]\)\r\n\tby \S+ \(opensend-milter\) with ESMTPSA id \S+;\r\n"
                rb"\t[^\r\n]+\r\n",
    "Message-ID": rb"Message-ID: <[0-9a-f-]{36}@sandbox\.test>\r\n",
    "Date": rb"Date: [^\r\n]+\r\n",
}  # fmt: skip
NOT_SENT = re.compile(rb"(?i)(?:bcc|resent-bcc|x-opensend-[!-9;-~]*|(?:resend-|x-)?idempotency-key)[ \t]*:")
golden = pytest.mark.parametrize("name", NAMES)


class Envelope(TypedDict):
    sender: str
    recipients: list[str]
    options: str
    """Of MAIL FROM."""


class Expected(TypedDict):
    envelope: Envelope
    prepended: list[str]
    """Names of the fields above the delivered message."""
    message_id: str | None
    left_out: list[str] | None
    row: Mapping[str, object]


@dataclass(frozen=True, slots=True)
class Sent:
    """A golden message that was handed in."""

    expected: Expected
    raw: bytes
    """As Postfix is to hand it over."""
    answer: Answer

    @property
    def queue_id(self) -> str:
        assert self.answer.codes == TAKEN
        return self.answer.queue_id


@dataclass(frozen=True, slots=True)
class Application:
    """Somebody who signs what they send, with a key that is in DNS."""

    key: rsa.RSAPrivateKey

    def sign(self, message: bytes, canonicalization: bytes) -> bytes:
        pem = self.key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
        )
        both = (canonicalization, canonicalization)
        field = dkim.sign(message, b"golden", b"sandbox.test", pem, canonicalize=both, include_headers=SIGNED_FIELDS)
        return bytes(field) + message

    def has_signed(self, message: bytes) -> bool:
        """Verify as a receiving server does."""
        return bool(dkim.verify(message, dnsfunc=self._text_record))

    def _text_record(self, name: bytes, timeout: int = 5) -> bytes | None:  # noqa: ARG002  # dkimpy's signature
        der = self.key.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return b"v=DKIM1; k=rsa; p=" + b64encode(der) if name == b"golden._domainkey.sandbox.test." else None


@pytest.fixture(scope="session")
def application() -> Application:
    return Application(rsa.generate_private_key(public_exponent=65_537, key_size=2_048))


@pytest.fixture(scope="session")
def sent(sandbox: Sandbox, application: Application) -> Mapping[str, Sent]:
    """Hand all of them in, one after the other; once, because sent again they are repeats and not stored."""
    found = {}
    with sandbox.smtp() as client:
        for name in NAMES:
            expected: Expected = json.loads((GOLDEN / f"{name}.json").read_text())
            message = (GOLDEN / f"{name}.eml").read_bytes()
            if name in SIGNED:
                message = application.sign(message, SIGNED[name])
            envelope = expected["envelope"]
            reply = submit(
                client, message, *envelope["recipients"], sender=envelope["sender"], options=envelope["options"]
            )
            found[name] = Sent(expected, re.sub(rb"\r?\n", b"\r\n", message), reply)
    return found


Kept = Callable[[str], Stored]


@pytest.fixture(scope="session")
def kept(sandbox: Sandbox, sent: Mapping[str, Sent]) -> Kept:
    """Return a function that looks a message up, once."""
    return cache(lambda name: stored(sandbox, sent[name].queue_id))


def row_of(message: Stored) -> Row:
    return cast("Row", message.row)


def as_delivered(raw: bytes) -> bytes:
    """Leave out Bcc and what is for us."""
    head, empty_line, body = raw.partition(b"\r\n\r\n")
    fields = re.split(rb"\r\n(?![ \t])", head)
    return b"\r\n".join(field for field in fields if not NOT_SENT.match(field)) + empty_line + body


# ---------------------------------------------------------------------- what we keep and send


def test_each_message_has_its_review() -> None:
    assert sorted(path.stem for path in GOLDEN.glob("*.json")) == NAMES


@pytest.mark.case(46)
@pytest.mark.case(47)
@golden
def test_the_bytes_are_kept(kept: Kept, sent: Mapping[str, Sent], name: str) -> None:
    assert kept(name).raw == sent[name].raw
    envelope = sent[name].expected["envelope"]
    assert (kept(name).sender, kept(name).recipients) == (envelope["sender"], envelope["recipients"])


@pytest.mark.case(42)
@pytest.mark.case(45)
@golden
def test_the_row_is_as_reviewed(sandbox: Sandbox, kept: Kept, sent: Mapping[str, Sent], name: str) -> None:
    expected = sent[name].expected
    row = kept(name).row.items()
    assert {column: value for column, value in row if value is not None and column not in MOVING} == expected["row"]
    record = rows(
        sandbox,
        "SELECT message_id, left_out FROM opensend_milter.submissions WHERE queue_id = %s",
        sent[name].queue_id,
    )
    assert record == [(expected["message_id"], expected["left_out"])]


@pytest.mark.case(46)
@pytest.mark.case(47)
@golden
def test_what_arrives_is_what_was_sent(sandbox: Sandbox, sent: Mapping[str, Sent], name: str) -> None:
    found = delivered(sandbox, sent[name].queue_id)
    message = as_delivered(sent[name].raw)
    assert found.content.endswith(message)
    above = b"".join(ABOVE[field] for field in sent[name].expected["prepended"])
    assert re.fullmatch(above, found.content.removesuffix(message))
    assert found.recipients == sent[name].expected["envelope"]["recipients"]


def test_all_of_them_count_as_sent(sandbox: Sandbox, sent: Mapping[str, Sent]) -> None:
    query: LiteralString = (
        "SELECT s.message_id, e.status FROM emails e JOIN opensend_milter.submissions s ON s.email_id = e.id"
        " WHERE s.queue_id = ANY (%s) AND e.status <> 'sent'"
    )
    queue_ids = [one.queue_id for one in sent.values()]
    await_true(lambda: not rows(sandbox, query, queue_ids), lambda: rows(sandbox, query, queue_ids))


@pytest.mark.case(46)
@pytest.mark.parametrize("name", SIGNED)
def test_the_signature_of_the_application_holds(
    sandbox: Sandbox, sent: Mapping[str, Sent], application: Application, name: str
) -> None:
    content = delivered(sandbox, sent[name].queue_id).content
    assert b"c=%b/%b;" % (SIGNED[name], SIGNED[name]) in content
    assert application.has_signed(content)


@pytest.mark.parametrize(
    ("name", "change", "holds"),
    [
        ("dkim-relaxed", (b"Two  spaces", b"TWo  spaces"), False),
        ("dkim-relaxed", (b"the   application", b"the   Application"), False),
        ("dkim-relaxed", (b"X-Campaign:\t", b"X-Campaign:  "), True),
        ("dkim-simple", (b"Two  spaces", b"TWo  spaces"), False),
        ("dkim-simple", (b"the end \r\n", b"the end\r\n"), False),
        ("dkim-simple", (b"X-Campaign:autumn", b"X-Campaign: autumn"), False),
        ("dkim-simple", (b"John  Doe", b"John Doe"), False),
        ("dkim-simple", (b"FROM:", b"From:"), False),
    ],
)
def test_a_changed_byte_breaks_the_signature(
    sent: Mapping[str, Sent],
    application: Application,
    name: str,
    change: tuple[bytes, bytes],
    holds: bool,  # noqa: FBT001
) -> None:
    """So the test before this one would have seen it."""
    assert sent[name].raw.count(change[0]) == 1
    assert application.has_signed(sent[name].raw.replace(*change)) == holds


def test_a_large_attachment_is_named_in_the_row(sandbox: Sandbox) -> None:
    """By itself; beside OpenSend the row has it: test_whole_rows.py and test_intake_rules.py."""
    content = encodebytes(secrets.token_bytes(2_000_000)).replace(b"\n", b"\r\n")
    message = (GOLDEN / "smime-opaque.eml").read_bytes().partition(b"\r\n\r\n")[0] + b"\r\n\r\n" + content
    with sandbox.smtp() as client:
        queue_id = submit(client, message.replace(b"<smime-opaque@", b"<large@"), "jane@example.net").queue_id
    row = row_of(stored(sandbox, queue_id))
    assert [each.keys() for each in row["attachments"]] == [{"filename", "content_type"}]


# ---------------------------------------------------------------------- what OpenSend's worker makes of the row


@pytest.mark.case(72)
@golden
def test_opensends_worker_can_send_the_row(kept: Kept, name: str) -> None:
    assert faults(row_of(kept(name))) == []


@pytest.mark.case(32)
@golden
def test_the_row_sends_to_the_envelope(kept: Kept, sent: Mapping[str, Sent], name: str) -> None:
    row = row_of(kept(name))
    envelope = sent[name].expected["envelope"]["recipients"]
    assert sorted([*row["to"], *row["cc"], *row["bcc"]]) == sorted(map(with_a_labels, envelope))


def with_a_labels(address: str) -> str:
    local, _, domain = address.rpartition("@")
    return f"{local}@{domain.encode('idna').decode()}"


BETTER_NAMES = {"plain.pdf": "schön.pdf"}
"""Where a name is there twice the library takes the plain one, mail clients that by RFC 2231."""


@pytest.mark.case(41)
@pytest.mark.case(46)
@golden
def test_who_gets_the_row_sees_what_the_message_says(kept: Kept, sent: Mapping[str, Sent], name: str) -> None:
    """As the standard library reads either. Beside attachments the worker sends html or text, not both."""
    # A line end at the end nobody sees: of a message that says nothing the row has one.
    meant, found = shown(sent[name].raw), shown_by(row_of(kept(name)))
    assert found.html.splitlines() == meant.html.splitlines()
    text = "" if meant.html and meant.attachments else meant.text
    assert found.text.rstrip("\r\n").splitlines() == text.rstrip("\r\n").splitlines()
    assert list(map(comparable, found.attachments)) == list(map(comparable, meant.attachments))
    for there, here in zip(found.attachments, meant.attachments, strict=True):
        meant_name = BETTER_NAMES.get(here.filename or "", here.filename)
        assert there.filename == (re.sub(r'["\\]', "_", meant_name) if meant_name else there.filename)
        assert there.filename


def comparable(attachment: ShownAttachment) -> tuple[str, str, bytes]:
    """Leave out the name; a message travels in base64, so it can no longer say that it is one (RFC 2046, 5.2)."""
    is_message = attachment.kind.startswith("message/")
    kind = "application/octet-stream" if is_message else attachment.kind
    return kind, attachment.content_id, attachment.content


# ---------------------------------------------------------------------- the checker itself

FILE: RowAttachment = {"filename": "a.pdf", "content": "QQ==\r\n", "content_type": "application/pdf"}
ROW: Row = {
    "id": "0199f3c8-0000-7000-8000-000000000000",
    "from": "Shop <shop@sandbox.test>",
    "to": ["jane@example.net"],
    "cc": [],
    "bcc": [],
    "reply_to": [],
    "subject": "hi",
    "text": "hi",
    "html": "",
    "headers": {"x-a": "1"},
    "tags": [],
    "attachments": [],
}


def with_file(**changes: object) -> dict[str, object]:
    return {"attachments": [{**FILE, **changes}]}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"from": "Shop"}, "from: 'Shop' is not one address"),
        ({"from": "a@sandbox.test, b@sandbox.test"}, "is not one address"),
        ({"from": "Jürgen <shop@sandbox.test>"}, "is not ASCII"),
        ({"from": "shop@sandbox.test\r\nBcc: x@example.net"}, "more than one line"),
        ({"to": []}, "0 recipients"),
        ({"cc": [f"r{number}@example.net" for number in range(50)]}, "51 recipients"),
        ({"bcc": ["jane@exämple.net"]}, "bcc: "),
        ({"reply_to": ["<broken"]}, "reply_to: "),
        ({"subject": "hi\r\nBcc: x@example.net"}, "subject"),
        ({"headers": {"x" * 127: "1"}}, "no name of 1 to 126"),
        ({"headers": {"x a": "1"}}, "no name of"),
        ({"headers": {"x:a": "1"}}, "no name of"),
        ({"headers": {"": "1"}}, "no name of"),
        ({"headers": {"x-a": ""}}, "no value of 1 to 870"),
        ({"headers": {"x-a": "1" * 871}}, "no value of"),
        ({"headers": {"x-a": "é"}}, "no value of"),
        ({"headers": {"x-a": "1\r\nBcc: x@example.net"}}, "no value of"),
        ({"headers": {"x-a": "1\0"}}, "no value of"),
        ({"headers": {"content-type": "text/html"}}, "written by SES"),
        ({"headers": {"bcc": "x@example.net"}}, "written by SES"),
        ({"headers": {"x-entity-id": "1"}}, "written by SES"),
        ({"headers": {"content-transfer-encoding": "base64"}}, "not true"),
        ({"headers": {"received": "from a by b"}}, "not true"),
        ({"headers": {"dkim-signature": "v=1"}}, "not true"),
        ({"headers": {"resent-to": "x@example.net"}}, "not true"),
        ({"headers": {"x-opensend-tag": "a=b"}}, "not true"),
        ({"headers": {"x-a": "1", "X-A": "2"}}, "the same name twice"),
        ({"headers": {f"x-{number}": "1" for number in range(15)}}, "more than 15"),
        ({"tags": [{"name": "ä", "value": ""}]}, "tags: "),
        ({"attachments": [{"filename": "a.pdf"}]}, "attachment 1: dropped"),
        ({"attachments": [FILE, {"filename": None, "content": "QQ=="}]}, "attachment 2: dropped"),
        (with_file(filename="a\r\n.pdf"), "file name"),
        (with_file(content_type="pdf"), "type 'pdf'"),
        (with_file(content_type="text/plain; charset=a b"), "type"),
        (with_file(content_type="message/rfc822"), "in base64"),
        (with_file(content_id="a>\r\nBcc: x"), "content id"),
        (with_file(content="QQ"), "no base64"),
        (with_file(content="QQ==\r\nQQ=="), "no base64"),
        (with_file(content="Q?=="), "no base64"),
        (with_file(content="QUFB" * 250), "a line over 998 octets"),
        (with_file(content=("QUFB" * 200 + "\r\n") * 52_429), "41943200 octets of base64"),
        ({**with_file(), "html": "<p>" + "x" * 998}, "message: a line over"),
        ({**with_file(), "html": "<p>\n</p>"}, "not CRLF"),
        ({**with_file(), "subject": "x" * 998}, "message: a line over"),
        ({"text": ""}, "body: neither text nor html"),
        ({"id": 4711}, "request: Parameter validation failed"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_sent_is_found(changes: dict[str, object], fault: str) -> None:
    assert faults(ROW) == faults({**ROW, "attachments": [FILE]}) == []
    found = faults(cast("Row", {**ROW, **changes}))
    assert [one for one in found if fault in one], found


@pytest.mark.case(72)
@pytest.mark.parametrize(
    "changes",
    [
        {"text": "\r\n"},
        {"text": "", "html": "<p>"},
        {"text": "", **with_file()},
        {"text": "x" * 2_000, "html": "<p>" + "é" * 2_000, "subject": "é" * 2_000},
    ],
)
def test_a_row_that_can_be_sent_has_no_fault(changes: dict[str, object]) -> None:
    """Without attachments SES itself writes the message: no line of it is too long."""
    assert faults(cast("Row", {**ROW, **changes})) == []


def test_what_the_worker_writes_of_a_row_with_attachments() -> None:
    """Each line of it is in docs/opensend.md, so that nobody is surprised."""
    row = {**ROW, **with_file(filename="Größe.pdf"), "subject": "Grüße", "html": "<p>Grüße", "bcc": ["b@example.net"]}
    raw = raw_of(request(cast("Row", {**row, "text": "seen by nobody"})))
    assert raw is not None
    head, _, parts = raw.decode().partition("\r\n\r\n")
    assert head.split("\r\n")[:6] == [
        "From: Shop <shop@sandbox.test>",
        "To: jane@example.net",
        "Bcc: b@example.net",
        "Subject: Grüße",
        "x-a: 1",
        f"X-Entity-ID: {ROW['id']}",
    ]
    assert "Content-Transfer-Encoding: 7bit\r\n\r\n<p>Grüße\r\n" in parts
    assert 'filename="Größe.pdf"' in parts
    assert not re.search(r"(?i)date:|message-id:|seen by nobody", raw.decode())
