"""Reading a message: what it says, whatever state it is in."""

from __future__ import annotations

import base64
import mmap
import tempfile
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, strategies as st

from opensend_milter.core.early_end import early_end
from opensend_milter.core.message import has_eight_bit, has_longer_line, read
from opensend_milter.core.model import Attachment, Limits, Reading, Refuse
from opensend_milter.core.rules import Rule
from tests.linear import assert_linear, lines_run

FROM = b"From: a@example.org\r\n"


def reading(raw: bytes, **limits: int) -> Reading:
    found = read(raw, Limits(**limits))
    assert isinstance(found, Reading), found
    return found


def content_of(attachment: Attachment) -> str:
    content = b"".join(attachment.content.pieces()).decode("ascii")
    assert attachment.content.letters == len("".join(content.split()))
    return content


def refusal(raw: bytes, **limits: int) -> Refuse:
    found = read(raw, Limits(**limits))
    assert isinstance(found, Refuse)
    return found


def multipart(*parts: bytes, kind: bytes = b"mixed") -> bytes:
    head = FROM + b"MIME-Version: 1.0\r\nContent-Type: multipart/" + kind + b'; boundary="b"\r\n\r\n'
    return head + b"".join(b"--b\r\n" + part + b"\r\n" for part in parts) + b"--b--\r\n"


@pytest.mark.case(45)
def test_an_empty_message_is_legal() -> None:
    found = reading(FROM + b"\r\n")
    assert (found.subject, found.text, found.html, found.attachments) == ("", "", "", ())
    assert found.message_id is None


def test_reads_the_header() -> None:
    found = reading(
        b"From: =?utf-8?q?J=C3=BCrgen?=\r\n <a@example.org>\r\nTo: b@example.net,\r\n\tC <c@example.net>\r\n"
        b"Cc: d@example.net\r\nReply-To: e@example.net\r\nSubject: =?utf-8?b?w6k=?= =?utf-8?b?w6k=?=\r\n"
        b"Message-ID: <1@example.org>\r\nX-One: 1\r\nX-One: 2\r\n\r\nhello\r\n"
    )
    assert (found.sender.name, found.sender.address) == ("Jürgen", "a@example.org")
    assert [mailbox.address for mailbox in found.to] == ["b@example.net", "c@example.net"]
    assert [mailbox.address for mailbox in (*found.cc, *found.reply_to)] == ["d@example.net", "e@example.net"]
    assert (found.subject, found.message_id, found.text) == ("éé", "<1@example.org>", "hello\r\n")
    assert [value for name, value in found.fields if name == "x-one"] == ["1", "2"]


@pytest.mark.case(24)
@pytest.mark.parametrize(
    ("head", "rule"),
    [
        (b"Subject: x\r\n", Rule.FROM_MISSING),
        (FROM + b"From: b@example.org\r\n", Rule.FROM_NOT_ONE),
        (FROM + b"From : b@example.org\r\n", Rule.FROM_NOT_ONE),
        (b"From : b@example.org\r\n" + FROM, Rule.FROM_NOT_ONE),
        (b"From: a@example.org,\r\n b@example.org\r\n", Rule.FROM_NOT_ONE),
        (b"From: Team: a@example.org, b@example.org;\r\n", Rule.FROM_MALFORMED),
        (b"From: undisclosed:;\r\n", Rule.FROM_MALFORMED),
        (b"From:\r\n", Rule.FROM_NOT_ONE),
        (b"From: a@ok)b@evil.example\r\n", Rule.FROM_MALFORMED),
        (b"From: a\x00@example.org\r\n", Rule.FROM_MALFORMED),
        (b"From: =?utf-8?q?a=40example.org?=\r\n", Rule.FROM_MALFORMED),
    ],
)
def test_from_is_exactly_one_address(head: bytes, rule: Rule) -> None:
    found = refusal(head + b"\r\nhi")
    assert (found.code, found.enhanced, found.rule) == (550, "5.7.1", rule)
    assert "From" in found.text


@pytest.mark.parametrize(
    ("before", "said"),
    [
        ("Hello there, it's 12 o'clock", "line 3 is no header field ('Hxxxx txxxx, ix's 1x o'cxxxx')"),
        ("X Foo: secret", "line 3 is no header field ('X Fxx: sxxxxx')"),
        ("X-Größe: 1", "line 3 is no header field ('X-Gx????e: 1')"),
        (" " * 3, "line 3 holds only blanks"),
        (" folded", "line 3 is no header field (' fxxxxx')"),
        ("x" * 80, f"line 3 is no header field ('{'x' * 40}')"),
        ("", "line 3 is empty"),
    ],
)
def test_says_which_line_ended_the_header_before_from(before: str, said: str) -> None:
    """Such a line begins the body, for Postfix; so what is behind it is there."""
    head, end = b"Subject: a\r\n b\r\n\r\n", f"{before}\r\n".encode() if before else b""
    found = refusal(head + end + b"To: b@example.net\r\nfrom : <a@example.org>\r\n\r\nhi\r\n")
    assert (found.code, found.enhanced, found.rule) == (550, "5.7.1", Rule.FROM_MISSING)
    assert found.text == f"{said} and ends the header section; the From header field behind it counts as text"


@pytest.mark.parametrize(
    "body", [b"hi\r\n\r\nFrom: a@example.org\r\n", b" From: a\r\n", b">From: a\r\n", b"", b"From me\r\n"]
)
def test_a_from_in_the_text_is_none(body: bytes) -> None:
    assert refusal(b"Subject: x\r\n\r\n" + body).text == "the message has no From header field; add one"


@pytest.mark.parametrize("line", [b"a: b\r\n", b"From\r\n", b"From ", b"\r", b" ", b"\xff"])
def test_a_long_text_is_looked_through_once_for_it(line: bytes) -> None:
    assert_linear(lambda size: early_end(b"\r\n" + line * size, 2, at_most=10**9), 100)


@pytest.mark.parametrize("local", [".a", "a.", "a..b"])
def test_dots_of_from_are_in_quotes_where_they_must_be(local: str) -> None:
    """Amazon and others refuse such a field once it is on its way."""
    found = refusal(f"From: {local}@example.org\r\n\r\n".encode())
    assert (found.code, found.rule) == (550, Rule.FROM_MALFORMED)
    assert "quotes" in found.text
    assert reading(f'From: "{local}"@example.org\r\n\r\n'.encode()).sender.address == f"{local}@example.org"


def test_an_address_in_front_of_itself_is_its_name() -> None:
    sender = reading(b"From: a@example.org <a@example.org>\r\n\r\n").sender
    assert (sender.name, sender.address) == ("a@example.org", "a@example.org")


def test_raw_utf8_and_windows_1252_fields_are_legal() -> None:
    assert reading(FROM + b"Subject: \x93Gr\xfc\xdfe\x94 \x80\r\n\r\n").subject == "“Grüße” €"
    assert reading("From: Jürgen <a@example.org>\r\n\r\n".encode()).sender.name == "Jürgen"
    assert reading("From: Jürgen <a@example.org>\r\n\r\n".encode("latin-1")).sender.name == "Jürgen"


def test_the_domain_of_from_is_mapped() -> None:
    for shown, meant in (
        ("app@ＳＡＮＤＢＯＸ．test", "app@sandbox.test"),
        ("ＡＰＰ@EXÄMPLE.test", "ＡＰＰ@exämple.test"),
        ("app@exam\u200dple.test", "app@exam\u200dple.test"),
    ):
        assert reading(f"From: {shown}\r\n\r\n".encode()).sender.address == meant


def test_text_html_and_attachment() -> None:
    found = reading(
        multipart(
            b"Content-Type: text/plain; charset=latin1\r\nContent-Transfer-Encoding: quoted-printable\r\n\r\ncaf=E9",
            b"Content-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: base64\r\n\r\nPGI+w6k8L2I+",
            b"Content-Type: application/pdf\r\nContent-Disposition: attachment; filename*=utf-8''caf%C3%A9.pdf\r\n"
            b"Content-ID: <one@x>\r\nContent-Transfer-Encoding: base64\r\n\r\nAAEC",
        )
    )
    assert (found.text, found.html) == ("café", "<b>é</b>")
    (attachment,) = found.attachments
    assert (attachment.filename, attachment.content_type, attachment.content_id) == (
        "café.pdf",
        "application/pdf",
        "one@x",
    )
    assert base64.b64decode(content_of(attachment)) == b"\x00\x01\x02"


def test_a_text_part_with_a_name_is_an_attachment() -> None:
    found = reading(multipart(b'Content-Type: text/plain; name="a.txt"\r\n\r\nattached', b"\r\nshown"))
    assert found.text == "shown"
    assert [attachment.filename for attachment in found.attachments] == ["a.txt"]


def test_base64_is_taken_over_as_sent() -> None:
    content = base64.encodebytes(bytes(range(256)) * 4).replace(b"\n", b"\r\n")
    found = reading(multipart(b"Content-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\r\n" + content))
    assert content_of(found.attachments[0]).encode() == content


@pytest.mark.case(41)
@pytest.mark.parametrize(
    ("sent", "expected"),
    [
        (b"AAEC\r\n", b"\x00\x01\x02"),
        (b"AAEC" * 200, b"\x00\x01\x02" * 200),
        (b"AA!E\r\nC", b"\x00\x01\x02"),
        (b"AAECA", b"\x00\x01\x02"),
        (b"AAECAw", b"\x00\x01\x02\x03"),
        (b"", b""),
    ],
)
def test_broken_base64_gives_what_can_be_read(sent: bytes, expected: bytes) -> None:
    found = reading(multipart(b"Content-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\r\n" + sent))
    content = content_of(found.attachments[0])
    assert base64.b64decode(content, validate=False) == expected
    assert all(len(line) <= 76 for line in content.split("\r\n"))


@pytest.mark.case(41)
@pytest.mark.parametrize("charset", [b"no-such", b"utf-7", b"rot13", b"unicode_escape", b"idna", b"=?x"])
def test_any_charset_gives_text_without_nul(charset: bytes) -> None:
    found = reading(FROM + b"Content-Type: text/plain; charset=" + charset + b"\r\n\r\nab\x00\xff\\ud800")
    assert found.text.startswith("ab")
    assert "\x00" not in found.text


@pytest.mark.parametrize(
    ("charset", "unknown"),
    [
        (b"utf-8", ()), (b"US-ASCII", ()), (b'""', ()), (b'" "', ()), (b"x-utf-8", ()), (b"x-foo", ("x-foo",)),
        (b'"' + b"y" * 50 + b'"', ("y" * 40,)), (b'"a\x00b"', ("a b",)),
    ],
)  # fmt: skip
def test_a_charset_that_nobody_knows_is_noted(charset: bytes, unknown: tuple[str, ...]) -> None:
    part = b"Content-Type: text/plain; charset=" + charset + b"\r\n\r\ncaf\xc3\xa9"
    assert reading(multipart(part, part)).unknown_charsets == unknown
    assert reading(multipart(part)).text == "café"


def test_the_charset_of_a_file_is_not_looked_at() -> None:
    part = b"Content-Type: text/plain; charset=x-foo\r\nContent-Disposition: attachment\r\n\r\nx"
    assert reading(multipart(part)).unknown_charsets == ()


@pytest.mark.case(40)
@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (FROM + b"Content-Type: multipart/mixed\r\n\r\nno boundary", "no boundary"),
        (FROM + b"Content-Type: multipart/mixed; boundary=x\r\n\r\nnever there", "never there"),
        (FROM + b'Content-Type: multipart/mixed; boundary="b "\r\n\r\n--b \t\r\n\r\nspaces\r\n--b --',
         "spaces\r\n--b --"),
        (FROM + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\none\r\n--bb\r\n\r\ntwo\r\n--b--",
         "one\r\n--bb\r\n\r\ntwo"),
        (FROM + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\r\n\r\nnever closed", "never closed"),
        (FROM + b"Content-Type: multipart/mixed; boundary=b\r\n\r\nx--b\r\n--b\r\n\r\nin line\r\n--b--", "in line"),
        (FROM + b"Content-Type: multipart/mixed; boundary=b\r\n\r\n--b\n\nbare LF\n--b--\n", "bare LF"),
        (FROM + b"Content-Type: multipart/mixed; boundary=b\r\n\r\nThis is MIME.\r\n--b--\r\n", ""),
        (FROM + b"Content-Type: multipart/mixed; boundary=\"a 'b':(c)+_,-./=?\"\r\n\r\n"
                b"--a 'b':(c)+_,-./=?\r\n\r\nodd\r\n--a 'b':(c)+_,-./=?--", "odd"),
        (FROM + b'Content-Type: multipart/mixed; boundary="==\xc3\xa9.*+[x]"\r\n\r\n'
                b"--==\xc3\xa9.*+[x]\r\n\r\nbeyond\r\n--==\xc3\xa9.*+[x]--", "beyond"),
    ],
)  # fmt: skip
def test_boundaries_as_people_write_them(raw: bytes, text: str) -> None:
    assert reading(raw).text == text


def nested(depth: int) -> bytes:
    head, tail = FROM, b""
    for level in range(depth):
        head += b"Content-Type: multipart/mixed; boundary=b%d\r\n\r\n--b%d\r\n" % (level, level)
    return head + b"\r\ndeep" + tail


@pytest.mark.case(38)
@pytest.mark.parametrize(("depth", "taken"), [(1, True), (50, True), (51, False), (1000, False)])
def test_depth_is_bounded(depth: int, taken: bool) -> None:  # noqa: FBT001
    found = read(nested(depth), Limits())
    if taken:
        assert isinstance(found, Reading)
        assert found.text == "deep"
    else:
        assert isinstance(found, Refuse)
        assert (found.code, found.enhanced, found.rule) == (554, "5.6.0", Rule.BEYOND_LIMITS)


@pytest.mark.case(39)
def test_the_number_of_parts_is_bounded_and_cheap() -> None:
    """What has too many is not read any further than what has as many as may be."""

    def read_parts(parts: int) -> None:
        read(multipart(*[b"\r\n"] * parts), Limits())

    most = Limits().max_parts
    assert_linear(read_parts, most // 4)
    assert refusal(multipart(*[b"\r\n"] * 100_000)).rule is Rule.BEYOND_LIMITS
    assert lines_run(partial(read_parts, 100_000)) <= lines_run(partial(read_parts, most))


@pytest.mark.parametrize(
    ("raw", "limits", "named"),
    [
        (FROM + b"X: " + b"y" * 2_000 + b"\r\n\r\n", {"max_header_bytes": 1_000}, "1000 octets"),
        (FROM + b"X: y\r\n" * 20 + b"\r\n", {"max_header_fields": 10}, "10 header fields"),
        (FROM + b"References:" + b" <y@example.org>\r\n" * 3_200 + b"\r\n", {}, "54000 octets"),
        (FROM + b"To: " + b"a@b.c," * 20 + b"\r\n\r\n", {"max_addresses": 10}, "10 addresses"),
    ],
)
def test_the_header_is_bounded(raw: bytes, limits: dict[str, int], named: str) -> None:
    found = refusal(raw, **limits)
    assert (found.code, found.rule) == (554, Rule.BEYOND_LIMITS)
    assert named in found.text


def test_a_long_header_of_many_fields_is_read() -> None:
    assert (
        reading(FROM + (b"References:" + b" <y@example.org>\r\n" * 2_900) * 10 + b"\r\n").sender.address
        == "a@example.org"
    )


@pytest.mark.case(42)
def test_a_file_name_in_ten_thousand_pieces_costs_nothing() -> None:
    def name_of(pieces: int) -> str:
        field = b"Content-Disposition: attachment" + b"".join(b"; filename*%d=x" % number for number in range(pieces))
        return reading(multipart(b"Content-Type: image/png\r\n" + field + b"\r\n\r\nx")).attachments[0].filename

    assert name_of(10_000) == "attachment-1.png"
    assert_linear(name_of, 250)


@pytest.mark.case(29)
def test_a_file_name_is_one_line() -> None:
    found = reading(multipart(b"Content-Type: image/png; name*=utf-8''a%0D%0ABcc:%00b.png\r\n\r\nx"))
    assert found.attachments[0].filename == "a Bcc: b.png"


@pytest.mark.parametrize(
    ("disposition", "name"),
    [
        (b"filename*=utf-8''%E2%82%AC.pdf; filename=euro.pdf", "€.pdf"),
        (b"filename=euro.pdf; filename*=utf-8''%E2%82%AC.pdf", "€.pdf"),
        (b"filename=euro.pdf; filename*0*=utf-8''%E2%82; filename*1*=%AC.pdf", "€.pdf"),
        (b"filename*=%E2%82%AC.pdf", "€.pdf"),
        (b"filename*=Gr%FC%DFe.pdf", "Grüße.pdf"),
        (b"filename*0*=%E2%82; filename*1*=%AC.pdf", "€.pdf"),
        (b"filename*=windows-1252''%80.pdf", "€.pdf"),
        (b"filename*=gbk''%80.pdf", "€.pdf"),
        (b'filename*0="=?utf-8?b?4oKsLn"; filename*1="BkZg==?="', "€.pdf"),
        (b'filename*0="=?utf-8?q?=E2=82?="; filename*1="=?utf-8?q?=AC.pdf?="', "€.pdf"),
        (b'filename="=?utf-8?q?=3D=3Futf-8=3Fb=3F4oKsLnBkZg=3D=3D=3F=3D?="', "€.pdf"),
        (b"filename*=utf-8''%3D%3Futf-8%3Fb%3F4oKsLnBkZg%3D%3D%3F%3D", "€.pdf"),
        (b"filename*=utf-8''100%25.pdf", "100%.pdf"),
        (b"filename=100%25.pdf", "100%25.pdf"),
        (b"filename=Gr\xfc\xdfe.pdf", "Grüße.pdf"),
        (b'filename=""', "attachment-1.pdf"),
        (b"size=1", "attachment-1.pdf"),
    ],
)
def test_file_names_as_people_write_them(disposition: bytes, name: str) -> None:
    found = reading(
        multipart(b"Content-Type: application/pdf\r\nContent-Disposition: attachment; " + disposition + b"\r\n\r\nx")
    )
    assert [attachment.filename for attachment in found.attachments] == [name]


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("image/jpeg", "attachment-1.jpg"),
        ("text/calendar", "attachment-1.ics"),
        ("application/xml", "attachment-1.xml"),
        ("application/pkcs7-signature", "attachment-1.p7s"),
        ("application/vnd.openxmlformats-officedocument.wordprocessingml.document", "attachment-1.docx"),
        ("application/x-nobody-knows", "attachment-1.bin"),
        ("text/x-amp-html", "attachment-1.html"),
        ("message/rfc822", "message-1.eml"),
        ("message/delivery-status", "attachment-1.txt"),
        ("message/feedback-report", "attachment-1.txt"),
        ("message/global", "message-1.eml"),
        ("message/global-delivery-status", "attachment-1.txt"),
    ],
)
def test_a_file_without_a_name_ends_as_its_type_usually_does(kind: str, name: str) -> None:
    found = reading(multipart(f"Content-Type: {kind}\r\n\r\nx".encode()))
    assert [attachment.filename for attachment in found.attachments] == [name]


@pytest.mark.case(43)
def test_an_attached_message_stays_closed() -> None:
    inner = b"From: x@example.org\r\nSubject: inner\r\n\r\ninner text"
    found = reading(multipart(b"\r\nouter", b"Content-Type: message/rfc822\r\n\r\n" + inner))
    assert found.text == "outer"
    assert base64.b64decode(content_of(found.attachments[0])) == inner
    assert found.attachments[0].filename == "message-1.eml"


def test_what_a_digest_holds_is_messages_unless_it_says_otherwise() -> None:
    inner = b"Subject: one\r\n\r\nfirst"
    parts = (b"\r\n" + inner, b"Content-Type: text/plain\r\n\r\nshown", b"Content-ID: <2@x>\r\n\r\n" + inner)
    found = reading(multipart(*parts, kind=b"digest"))
    assert found.text == "shown"
    assert [one.filename for one in found.attachments] == ["message-1.eml", "message-2.eml"]
    assert [base64.b64decode(content_of(one)) for one in found.attachments] == [inner, inner]
    deeper = multipart(b"\r\nin a multipart of it", kind=b"mixed").removeprefix(FROM)
    assert reading(multipart(deeper.replace(b'"b"', b'"c"').replace(b"--b", b"--c"), kind=b"digest")).text


def test_a_mapped_file_reads_like_bytes() -> None:
    raw = multipart(b"\r\nshown", b"Content-Type: image/png\r\nContent-Transfer-Encoding: base64\r\n\r\nAAEC")
    with tempfile.TemporaryFile() as spool:
        spool.write(raw)
        spool.flush()
        with mmap.mmap(spool.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            found = read(mapped, Limits())
            assert isinstance(found, Reading)
            assert content_of(found.attachments[0]) == "AAEC\r\n"
            assert replace(found, attachments=()) == replace(reading(raw), attachments=())
            del found


@pytest.mark.case(19)
def test_line_lengths_count_the_line_end() -> None:
    assert not has_longer_line(b"x" * 998 + b"\r\nshort\r\n", 1_000)
    assert has_longer_line(b"short\r\n" + b"x" * 999 + b"\r\n", 1_000)
    assert has_longer_line(b"x" * 2_048, 1_000)


@given(st.lists(st.binary(max_size=6)), st.integers(1, 8))
def test_a_line_is_as_long_as_from_one_line_end_to_the_next(lines: list[bytes], octets: int) -> None:
    raw = b"\n".join(lines)
    assert has_longer_line(raw, octets) == any(len(line) >= octets for line in raw.split(b"\n"))


def test_eight_bit() -> None:
    assert has_eight_bit("é".encode())
    assert not has_eight_bit(b"e")


def test_attachment_bytes_are_those_of_base64() -> None:
    found = reading(multipart(b"Content-Type: image/png\r\nContent-Transfer-Encoding: 8bit\r\n\r\n" + b"x" * 300))
    assert found.attachment_bytes == 400
