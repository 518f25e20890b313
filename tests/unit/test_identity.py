"""By what a message is known again: what the sender wrote, not how a mail library put it down."""

from __future__ import annotations

import base64
import quopri
from dataclasses import replace

import pytest

from opensend_milter.core.identity import identify
from opensend_milter.core.message import read
from opensend_milter.core.model import Envelope, Identity, Limits, Reading
from tests.unit.messages import message

TEXT = "hello, Jürgen\r\nbye\r\n"


def part(kind: str, content: bytes, encoding: str = "") -> bytes:
    head = f"Content-Type: {kind}\r\n" + (f"Content-Transfer-Encoding: {encoding}\r\n" if encoding else "")
    return head.encode() + b"\r\n" + content


def mixed(*parts: bytes, head: bytes = b"Message-ID: <1@app>\r\nSubject: hi\r\n", boundary: bytes = b"b1") -> bytes:
    body = b"".join(b"--" + boundary + b"\r\n" + each + b"\r\n" for each in parts) + b"--" + boundary + b"--\r\n"
    return (
        b"From: a@example.org\r\n" + head + b"Content-Type: multipart/mixed; boundary=" + boundary + b"\r\n\r\n" + body
    )


SHOWN = part("text/plain; charset=utf-8", TEXT.encode(), "8bit")
HTML = part("text/html", b"<b>hi</b>")
IMAGE = part("image/png; name=a.png", base64.encodebytes(bytes(range(200))), "base64")
STANDARD = mixed(SHOWN, HTML, IMAGE)


def identity(raw: bytes = STANDARD, *recipients: str, sender: str = "bounce@example.org") -> Identity:
    mail = message(raw, *recipients)
    mail = replace(mail, envelope=Envelope(sender=sender, recipients=mail.envelope.recipients))
    reading = read(raw, Limits())
    assert isinstance(reading, Reading)
    return identify(mail, reading)


@pytest.mark.case(64)
@pytest.mark.parametrize(
    "same",
    [
        mixed(SHOWN, HTML, IMAGE, boundary=b"another"),
        mixed(SHOWN, HTML, IMAGE, head=b"Date: x\r\nSubject: hi\r\nX-A: 2\r\nMessage-ID: <1@app>\r\nTo: x@y\r\n"),
        mixed(SHOWN, HTML, IMAGE, head=b"Message-ID:\t<1@app>\r\nSubject: =?utf-8?q?hi?=\r\nReply-To: x@y\r\n"),
        mixed(HTML, IMAGE, SHOWN),
        mixed(part("text/plain", base64.encodebytes(TEXT.encode()), "base64"), HTML, IMAGE),
        mixed(part("text/plain", quopri.encodestring(TEXT.encode()), "quoted-printable"), HTML, IMAGE),
        mixed(part("text/plain; charset=latin1", TEXT.encode("latin1"), "8bit"), HTML, IMAGE),
        mixed(SHOWN, HTML, part("image/png; name=a.png", bytes(range(200)), "binary")),
        mixed(SHOWN, HTML, part("image/png; name=a.png", base64.b64encode(bytes(range(200))), "base64")),
        mixed(SHOWN, HTML, part('image/png; x=y\r\nContent-Disposition: attachment; filename="a.png"',
                                base64.encodebytes(bytes(range(200))).replace(b"\n", b"\r\n"), "base64")),
        STANDARD.replace(b"From: a@", b"From: A Name <a@").replace(b"example.org\r\n", b"example.org>\r\n", 1),
    ],
)  # fmt: skip
def test_what_a_mail_library_makes_anew_has_no_part(same: bytes) -> None:
    assert identity(same) == identity()


@pytest.mark.case(64)
@pytest.mark.case(65)
@pytest.mark.parametrize(
    "other",
    [
        STANDARD.replace(b"From: a@", b"From: b@"),
        STANDARD.replace(b"Subject: hi", b"Subject: Hi"),
        STANDARD.replace(b"Subject: hi\r\n", b""),
        STANDARD.replace("Jürgen".encode(), b"Juergen"),
        STANDARD.replace(b"<b>hi</b>", b"<i>hi</i>"),
        mixed(SHOWN, HTML),
        mixed(SHOWN, IMAGE),
        mixed(HTML, IMAGE),
        mixed(SHOWN, HTML, IMAGE, IMAGE),
        mixed(SHOWN, HTML, IMAGE.replace(b"a.png", b"b.png")),
        mixed(SHOWN, HTML, IMAGE.replace(b"image/png", b"image/gif")),
        mixed(SHOWN, HTML, part("image/png; name=a.png", bytes(range(199)), "binary")),
    ],
)
def test_what_the_sender_wrote_is_its_content(other: bytes) -> None:
    assert identity(other).content_digest != identity().content_digest
    assert identity(other).fingerprint != identity().fingerprint


def test_recipients_are_content_in_any_order() -> None:
    one, two = "a@example.net", "b@example.net"
    assert identity(STANDARD, one, two) == identity(STANDARD, two, one)
    assert len({identity(STANDARD, *to).content_digest for to in ([one], [two], [one, two])}) == 3


def test_the_name_and_the_sender_of_the_envelope_are_no_content() -> None:
    """An Idempotency-Key outlives both; the fingerprint does not."""
    for other in (identity(sender="x@example.org"), identity(STANDARD.replace(b"<1@app>", b"<2@app>"))):
        assert other.content_digest == identity().content_digest
        assert other.fingerprint != identity().fingerprint


@pytest.mark.parametrize(
    "head", [b"", b"Message-ID:\r\n", b"Message-ID: \t\r\n", b"Message-ID: <1@app>\r\nIdempotency-Key: k\r\n"]
)
def test_a_message_without_a_name_or_with_a_better_one_has_no_fingerprint(head: bytes) -> None:
    found = identity(mixed(SHOWN, HTML, IMAGE, head=b"Subject: hi\r\n" + head))
    assert found.fingerprint is None
    assert found.content_digest == identity().content_digest
    assert found.idempotency_key == ("k" if b"Idempotency" in head else None)


def plain(subject: str, text: str) -> bytes:
    return f"From: a@example.org\r\nSubject: {subject}\r\n\r\n{text}".encode()


def named(content_type: str, content: bytes = b"") -> bytes:
    return part(content_type, content)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (plain("ab", "c"), plain("a", "bc")),
        (plain("", "ab"), plain("ab", "")),
        (mixed(part("text/plain", b"ab")), mixed(part("text/html", b"ab"))),
        (mixed(named("a/b; name=x", b"12"), named("a/b; name=y", b"3")),
         mixed(named("a/b; name=x", b"1"), named("a/b; name=y", b"23"))),
        (mixed(named("a/b; name=x"), named("a/b; name=y")), mixed(named("a/b; name=y"), named("a/b; name=x"))),
        (mixed(named('a/b; name="x y"')), mixed(named("y a/b; name=x"))),
    ],
)  # fmt: skip
def test_two_items_never_look_like_one(one: bytes, other: bytes) -> None:
    assert identity(one).content_digest != identity(other).content_digest


def test_a_recipient_does_not_look_like_an_attachment() -> None:
    assert (
        identity(mixed(named("a/b; name=c@example.net")), "b@example.net").content_digest
        != identity(mixed(part("text/plain", b"")), "b@example.net", "c@example.net a/b").content_digest
    )


def test_one_of_a_list_is_known_by_how_many_it_has() -> None:
    """A list under an old name that goes on where the first one ended is another request."""
    mail, reading = message(STANDARD), read(STANDARD, Limits())
    assert isinstance(reading, Reading)
    digests = {identify(replace(mail, one_of=count), reading).content_digest for count in (0, 1, 2, 2)}
    assert len(digests) == 3
