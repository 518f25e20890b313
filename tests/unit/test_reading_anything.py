"""Whatever is sent, the reader returns, in time and within its bounds; what it was given whole it gives back."""

from __future__ import annotations

import base64
from email.message import EmailMessage
from email.policy import SMTP

import pytest
from hypothesis import given, settings, strategies as st

from opensend_milter.core.message import read
from opensend_milter.core.model import Limits, Reading, Refuse
from tests.linear import assert_linear

FROM = b"From: a@example.org\r\n"
MUCH = 250_000
LIMITS = Limits(max_parts=20, max_depth=5, max_header_fields=30, max_addresses=10, max_header_bytes=4_000)

pieces = st.sampled_from([
    b"--b", b"--b--", b"\r\n", b"\n", b"\r", b":", b" ", b"\t", b";", b'"', b"\\", b"=?utf-8?q?", b"?=", b"\0", b"\xff",
    b"Content-Type: multipart/mixed; boundary=b\r\n\r\n", b"Content-Type: message/rfc822\r\n\r\n", b"From: a@b.c\r\n",
    b"Content-Transfer-Encoding: base64\r\n\r\n", b"Content-Transfer-Encoding: quoted-printable\r\n\r\n", b"=3", b"QQ=",
    b"Content-Disposition: attachment; filename*0*=utf-8''a%C3; filename*1=b\r\n", b"charset=utf-7", b"To: <a@b", b"(",
])  # fmt: skip


@pytest.mark.case(41)
@settings(max_examples=300, deadline=None)
@given(st.lists(st.one_of(pieces, st.binary(max_size=20)), max_size=60).map(b"".join), st.booleans())
def test_any_octets_are_read_or_refused_within_the_bounds(octets: bytes, signed: bool) -> None:  # noqa: FBT001
    found = read(FROM + octets if signed else octets, LIMITS)
    if isinstance(found, Refuse):
        assert 500 <= found.code < 600
        return
    assert len(found.attachments) <= LIMITS.max_parts
    assert len(found.fields) <= LIMITS.max_header_fields
    assert max(len(found.to), len(found.cc), len(found.reply_to)) <= LIMITS.max_addresses
    for attachment in found.attachments:
        content = b"".join(attachment.content.pieces())
        assert base64.b64decode(content) is not None
        assert all(len(line) <= 76 for line in content.split(b"\r\n"))
        assert attachment.filename


@pytest.mark.case(38)
@pytest.mark.case(39)
@pytest.mark.case(42)
@pytest.mark.parametrize(
    "unit",
    [
        b"--b\r\n",
        b"--b\r\n\r\n",
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n",
        b"Content-Type: message/rfc822\r\n\r\n",
        b"X: y\r\n",
        b"X:\r\n ",
        b" ",
        b"\t\r\n",
        b"To: a@b.c,",
        b"a@b.c,",
        b"(",
        b'"',
        b"=?utf-8?q?=41?= ",
        b"=\r\n",
        b"=4",
        b"QQ==\r\n",
        b"\n",
        b"\r",
        b"\0",
        b"\xff",
        b"--b--\r\n",
        b"\r\n--",
    ],
)
@pytest.mark.parametrize(
    "head",
    [
        b"",
        b"To: ",
        b"Subject: ",
        b"Content-Type: ",
        b'Content-Type: multipart/mixed; boundary="b"\r\n\r\n',
        b"Content-Transfer-Encoding: base64\r\n\r\n",
        b"Content-Transfer-Encoding: quoted-printable\r\n\r\n",
        b"Content-Type: application/x\r\nContent-Transfer-Encoding: base64\r\n\r\n",
        b"Content-Disposition: attachment; filename*0=",
    ],
)
def test_much_of_anything_is_read_in_passes_over_it(head: bytes, unit: bytes) -> None:
    """However many, they are few: one for each octet would not end."""

    def read_so_much(octets: int) -> None:
        found = read(FROM + head + unit * (octets // len(unit)), Limits())
        if isinstance(found, Reading):
            assert found.attachment_bytes < 2 * octets

    assert_linear(read_so_much, 5_000)
    read_so_much(MUCH)


words = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=60)
bodies = st.lists(words, min_size=1, max_size=8).map(lambda lines: "".join(f"{line.strip()}\n" for line in lines))
names = words.map(str.strip).filter(lambda name: name and len(name) < 40 and '"' not in name and "\\" not in name)


@settings(max_examples=150, deadline=None)
@given(
    words.map(lambda text: " ".join(text.split())), bodies, bodies, st.lists(st.tuples(names, st.binary()), max_size=3)
)
def test_what_a_library_writes_is_read_back(
    subject: str, text: str, html: str, attached: list[tuple[str, bytes]]
) -> None:
    written = EmailMessage(policy=SMTP)
    written["From"], written["To"], written["Subject"] = "App <a@example.org>", "b@example.net", subject
    written.set_content(text)
    written.add_alternative(html, subtype="html")
    for name, content in attached:
        written.add_attachment(content, maintype="application", subtype="octet-stream", filename=name)
    found = read(written.as_bytes(), Limits())
    assert isinstance(found, Reading)
    assert found.subject.split() == subject.split()
    assert (found.text, found.html) == (text.replace("\n", "\r\n"), html.replace("\n", "\r\n"))
    assert [base64.b64decode(b"".join(one.content.pieces())) for one in found.attachments] == [c for _, c in attached]
