"""Whatever is sent, the reader returns, in time and within its bounds; what it was given whole it gives back."""

from __future__ import annotations

import base64
import re
from email.header import Header
from email.headerregistry import Address
from email.message import EmailMessage
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.policy import SMTP, compat32
from encodings.aliases import aliases

import pytest
from hypothesis import given, settings, strategies as st

from opensend_milter.core.message import read
from opensend_milter.core.model import Limits, Reading, Refuse
from tests.linear import assert_linear
from tests.unit.messages import texts

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
    assert all(text.encode() or not text for text in texts(found))
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


RISKY = ["utf-7", "utf-8", "utf-16", "utf-16le", "utf-32be", "iso-2022-jp", "iso-2022-kr", "hz-gb-2312", "gb18030", ""]
LABELS = st.sampled_from(RISKY) | st.sampled_from([*aliases, "x-none", "iso-8859-8-i", "utf-8*en", "\xe9"])
SAYS = st.sampled_from([
    b"+2AA-", b"\x1b$B", b"\x1b(B", b"\x0e", b"~{", b"\xed\xa0\x80", b"\xff\xfe", b"\x00\xd8", b"\xd8\x00", b"\x80",
    b"=3D=D8", b"2AA=", b"\\ud800", b"a",
])  # fmt: skip
content = st.lists(SAYS | st.binary(max_size=8), max_size=12).map(b"".join)


@settings(max_examples=200, deadline=None)
@given(LABELS, content, content, st.sampled_from([b"8bit", b"base64", b"quoted-printable"]))
def test_whatever_the_label_all_that_is_read_is_text(label: str, text: bytes, named: bytes, encoding: bytes) -> None:
    """A half of a surrogate pair would be in no UTF-8, so in no row."""
    charset = label.encode("latin-1")
    of_header = re.sub(rb"[\r\n]", b"", named)
    words = b"=?%b?q?%b?= =?%b?b?%b?= %b" % (charset, of_header, charset, base64.b64encode(named), of_header)
    percents = b"".join(b"%%%02x" % octet for octet in named)
    found = read(
        b"From: App <a@example.org>\r\nTo: %b <b@example.net>\r\nSubject: %b\r\nX-OpenSend-Metadata-a: %b\r\n"
        b"Content-Type: multipart/mixed; boundary=b_\r\n\r\n--b_\r\nContent-Type: text/plain; charset=%b\r\n"
        b"Content-Transfer-Encoding: %b\r\n\r\n%b\r\n--b_\r\nContent-ID: <%b>\r\n"
        b"Content-Type: a/b; name*=%b''%b\r\n\r\n"
        b'--b_\r\nContent-Type: a/%b; charset=%b; name="%b"\r\n\r\n--b_--'
        % (words, words, words, charset, encoding, text, of_header, charset, percents, of_header, of_header, words),
        Limits(),
    )
    if isinstance(found, Reading):
        assert all(text.encode() or not text for text in texts(found))


words = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=60)
bodies = st.lists(words, min_size=1, max_size=8).map(lambda lines: "".join(f"{line.strip()}\n" for line in lines))
names = words.map(str.strip).filter(lambda name: name and len(name) < 40 and '"' not in name and "\\" not in name)
ENCODINGS = st.sampled_from([None, "8bit", "base64", "quoted-printable"])


def one_line(text: str) -> str:
    return " ".join(text.split())


@settings(max_examples=150, deadline=None)
@given(
    words.map(one_line),
    bodies,
    bodies,
    st.lists(st.tuples(names, st.binary()), max_size=3),
    names.map(one_line),
    ENCODINGS,
)
def test_what_a_library_writes_is_read_back(  # noqa: PLR0917
    subject: str, text: str, html: str, attached: list[tuple[str, bytes]], who: str, encoding: str | None
) -> None:
    written = EmailMessage(policy=SMTP)
    written["From"], written["To"], written["Subject"] = (
        "App <a@example.org>",
        Address(who, "b", "example.net"),
        subject,
    )
    written.set_content(text, cte=encoding)
    written.add_alternative(html, subtype="html", cte=encoding)
    for name, content in attached:
        written.add_attachment(content, maintype="application", subtype="octet-stream", filename=name)
    found = read(written.as_bytes(), Limits())
    assert isinstance(found, Reading)
    assert found.subject.split() == subject.split()
    assert [(one_line(one.name), one.address) for one in found.to] == [(who, "b@example.net")]
    assert (found.text, found.html) == (text.replace("\n", "\r\n"), html.replace("\n", "\r\n"))
    assert [one.filename for one in found.attachments] == [name for name, _ in attached]
    assert [base64.b64decode(b"".join(one.content.pieces())) for one in found.attachments] == [c for _, c in attached]


CHARSETS = (
    *("utf-8", "gb18030", "koi8-r", "koi8-u", "iso-8859-2", "iso-8859-5", "iso-8859-7", "iso-8859-8"),
    *("iso-8859-15", "windows-1250", "windows-1251", "windows-1252", "windows-1255", "windows-1256", "utf-7", "hz"),
)
"""Which Python writes as we read them."""


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(CHARSETS), words, bodies, names)
def test_so_is_what_its_older_parts_write_in_any_charset(charset: str, subject: str, text: str, name: str) -> None:
    subject, text, name = (said.encode(charset, "ignore").decode(charset) for said in (subject, text, name))
    body, page = MIMEText(text, "plain", charset), MIMEText(text, "html", charset)
    page.add_header("Content-Disposition", "attachment", filename=(charset, "", name))
    written = MIMEMultipart("mixed", _subparts=[body, page])
    written["From"], written["Subject"] = "a@example.org", Header(subject, charset).encode()
    found = read(written.as_bytes(policy=compat32.clone(linesep="\r\n")), Limits())
    assert isinstance(found, Reading)
    assert found.subject.split() == subject.split()
    assert found.text.split() == text.split()
    (attachment,) = found.attachments
    assert attachment.filename == (name.strip() or "attachment-1.html")
    assert base64.b64decode(b"".join(attachment.content.pieces())).decode(charset).split() == text.split()
