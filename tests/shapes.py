"""Hostile shapes: messages made to cost whoever reads them. A new one is one line."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from encodings.aliases import aliases
from itertools import repeat

FROM = b"From: app@sandbox.test\r\n"
FIELD = 53_000
"""About the longest header field that is taken, in octets."""
HEADER = 1_000_000
"""About the longest header section."""
VALUE = 16_000
"""About the longest field of a part that is looked at."""
PARTS = 100
SOME = 4_000_000
MOST = 38_000_000
"""About the largest message that is taken: where it is memory that is to be spent."""
MOST_MB = 300
"""What a child of `serve` may take for any of them."""
BLANKS = (b"\r\n" + b" " * 70) * 214
"""15,000 of them, folded."""
PLAIN = b"Content-Type: text/plain\r\n"
FLOWED = b"Content-Type: text/plain; format=flowed\r\n"
ATTACHED = b"Content-Type: application/octet-stream\r\n"
HIDDEN = b"Content-Type: multipart/mixed; boundary*=us-ascii''bx\r\n"
"""Postfix's own reader of MIME sees no boundary here (RFC 2231), so it bounds nothing."""
BASE64 = b"Content-Transfer-Encoding: base64\r\n"
QUOTED = b"Content-Transfer-Encoding: quoted-printable\r\n"
CODECS = sorted({*aliases.values(), "idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined"})
"""All that Python calls an encoding; some of them are charsets of mail."""
HALF = b"=?utf-7?Q?a_+2AA-_b?="
"""An encoded word with half of a surrogate pair."""
MARKS = "\u0315\u0300".encode()
"""Two that change places when a name is normalised."""
EURO = "\u20ac\r\n".encode()
"""In a line; with one of these, Python takes two octets for each letter of the text."""
SMILE = "\U0001f600".encode()
"""With one of these, Python takes four octets for each letter of the text."""


@dataclass(frozen=True, slots=True)
class Shape:
    """One hostile message."""

    finding: int
    """Of issue 15, whose likeness it is; 0: found since."""
    name: str
    octets: Callable[[], bytes]
    """Make it: some have 38 MB."""


def mail(head: bytes, body: bytes = b"") -> bytes:
    """Return a message; where its head does not begin with From, with an ordinary one."""
    return (b"" if head.startswith(b"From:") else FROM) + head + b"\r\n" + body + b"\r\n"


def much(unit: bytes, octets: int) -> bytes:
    """Return a unit so often that it makes up so many octets."""
    return unit * (octets // len(unit))


def lines(unit: bytes, octets: int) -> bytes:
    """Return the same in lines, so that every courier can carry it."""
    return much(much(unit, 76) + b"\r\n", octets)


def field(name: str, unit: bytes, before: bytes = b"", after: bytes = b"", *, octets: int = FIELD) -> bytes:
    """Return a header field whose value is a unit, again and again."""
    return b"%b: %b%b%b\r\n" % (name.encode(), before, much(unit, octets), after)


def split(parts: Iterable[bytes], head: bytes = HIDDEN) -> bytes:
    """Return a message of parts, each the lines of its header, an empty line and its content."""
    return mail(head, b"".join(b"--bx\r\n%b\r\n" % part for part in parts) + b"--bx--")


def alike(fields: bytes, count: int = PARTS, content: bytes = b"x") -> bytes:
    """Return a message of so many parts of one kind."""
    return split(repeat(fields + b"\r\n" + content, count))


def typed(unit: bytes, before: bytes = b"a/b", after: bytes = b"") -> bytes:
    """Return a message of parts whose type is a unit, again and again."""
    return alike(field("Content-Type", unit, before, after, octets=VALUE))


def disposed(unit: bytes, before: bytes = b"a", after: bytes = b"") -> bytes:
    """Return a message of parts with such a disposition."""
    return alike(ATTACHED + field("Content-Disposition", unit, before, after, octets=VALUE))


def numbered(pattern: bytes, octets: int) -> bytes:
    """Return a pattern with 1000 in it, with 1001, and so on, until it makes up so many octets."""
    return b"".join(pattern % number for number in range(1_000, 1_000 + octets // len(pattern % 1_000)))


def letters(count: int) -> bytes:
    """Return so many different letters beyond ASCII."""
    return "".join(map(chr, range(0x4E00, 0x4E00 + count))).encode()


def nested(levels: int) -> bytes:
    """Return the heads of multiparts in multiparts, each boundary the beginning of the next."""
    names = (b"b" * level for level in range(1, levels + 1))
    return b"".join(b"Content-Type: multipart/mixed; boundary=%b\r\n\r\n--%b\r\n" % (name, name) for name in names)


def text(charset: bytes, content: bytes, more: bytes = b"") -> bytes:
    """Return a message of one text."""
    return mail(b"Content-Type: text/plain; charset=" + charset + b"\r\n" + more, content)


def texts(charsets: Iterable[str]) -> bytes:
    """Return a message with a text in each of these."""
    content = b"\r\n\r\n" + much(b"ab+2AA-\\ud800=xn--~{", 20_000)
    return split(b"Content-Type: text/plain; charset=" + charset.encode() + content for charset in charsets)


SMALL = (
    # What an address may be written with.
    Shape(1, "Reply-To: a quote without its end", lambda: mail(field("Reply-To", rb"\"", b'"'))),
    Shape(1, "To: a quote without its end", lambda: mail(field("To", rb"\"", b'"'))),
    Shape(1, "Cc: a quote without its end", lambda: mail(field("Cc", rb"\"", b'"'))),
    Shape(1, "From: a quote without its end", lambda: mail(field("From", rb"\"", b'"'))),
    Shape(1, "To: a quote without its end, folded", lambda: mail(field("To", rb"\"" * 30 + b"\r\n ", b'"'))),
    Shape(1, "To: a quote with its end", lambda: mail(field("To", rb"\"", b'"', b'"'))),
    Shape(1, "To: quotes end and begin", lambda: mail(field("To", rb'"\"'))),
    Shape(1, "To: quoted backslashes", lambda: mail(field("To", rb"\\", b'"'))),
    Shape(1, "To: quotes in 18 fields", lambda: mail(field("To", rb"\"", b'"') * 18)),
    Shape(1, "To: quotes in 900 fields", lambda: mail(field("To", rb"\"", b'"', octets=1_000) * 900)),
    Shape(1, "To: comments in comments", lambda: mail(field("To", b"("))),
    Shape(1, "To: comments in comments, ended", lambda: mail(field("To", b"(", b"", b")" * 25_000, octets=25_000))),
    Shape(1, "To: comments beside comments", lambda: mail(field("To", b"()", b"a@b.c ") * 4)),
    Shape(1, "To: backslashes in a comment", lambda: mail(field("To", rb"\(", b"(") * 4)),
    Shape(1, "To: comments between commas", lambda: mail(field("To", b"(,", octets=3_900) * 50)),
    Shape(1, "To: angle brackets", lambda: mail(field("To", b"<") * 4)),
    Shape(1, "To: names without commas", lambda: mail(field("To", b"a <b@c.d> ") * 4)),
    Shape(1, "To: a route without its end", lambda: mail(field("To", b"@a.b", b"<") * 4)),
    Shape(1, "To: groups", lambda: mail(field("To", b"a:;") * 4)),
    Shape(1, "To: groups in a group", lambda: mail(field("To", b"a:") * 4)),
    Shape(1, "To: semicolons", lambda: mail(field("To", b";", b"a:") * 4)),
    Shape(1, "To: commas", lambda: mail(field("To", b",") * 4)),
    Shape(1, "To: commas and dots", lambda: mail(field("To", b",.", octets=3_900) * 100)),
    Shape(1, "To: dots", lambda: mail(field("To", b".") * 4)),
    Shape(1, "To: at-signs", lambda: mail(field("To", b"@") * 4)),
    Shape(1, "To: brackets", lambda: mail(field("To", b"[", b"a@") * 18)),
    Shape(1, "To: a domain of many labels", lambda: mail(field("To", b"a.", b"a@", b"a") * 18)),
    Shape(1, "To: a name of many words", lambda: mail(field("To", b'a "b" ', b"", b"<a@b.c>") * 4)),
    Shape(1, "To: blanks", lambda: mail(field("To", b" ", b"a", b"@b.c") * 18)),
    Shape(1, "To: all the addresses that may be", lambda: mail(field("To", b"a@b.c,", octets=11_990) * 20)),
    Shape(1, "To: all the names that may be", lambda: mail(field("To", b'"a" <a@b.c>,', octets=23_900) * 10)),
    # Domains.
    Shape(2, "From: a label of 4,000 letters", lambda: mail(b"From: a@" + letters(4_000) + b".test\r\n")),
    Shape(2, "From: a label of 17,000 letters", lambda: mail(b"From: a@" + letters(17_000) + b".test\r\n")),
    Shape(2, "From: many labels beyond ASCII", lambda: mail(field("From", "ä.".encode(), b"a@", b"test"))),
    Shape(2, "From: many A-labels", lambda: mail(field("From", b"xn--a.", b"a@", b"test"))),
    Shape(2, "From: a long A-label", lambda: mail(field("From", b"a9", b"a@xn--", b".test"))),
    Shape(2, "From: a letter with many marks", lambda: mail(field("From", MARKS, b"a@a", b".test"))),
    Shape(2, "To: letters with many marks", lambda: mail(field("To", MARKS, b"a@a", b".test") * 18)),
    Shape(2, "To: labels of 17,000 letters", lambda: mail((b"To: a@" + letters(17_000) + b".test\r\n") * 18)),
    Shape(2, "Reply-To: a label of 17,000 letters", lambda: mail(b"Reply-To: a@" + letters(17_000) + b".test\r\n")),
    # What calls itself a charset.
    Shape(3, "text in punycode", lambda: text(b"punycode", much(b"ab", 700_000))),
    Shape(3, "text in idna", lambda: text(b"idna", much(b"xn--ab", 700_000))),
    Shape(3, "text in unicode_escape", lambda: text(b"unicode_escape", much(rb"\ud800", 700_000))),
    Shape(3, "text in zip", lambda: text(b"zip", much(b"eJzt", 700_000), BASE64)),
    Shape(3, "text in rot13", lambda: text(b"rot13", much(b"ab", 700_000))),
    Shape(3, "text in uu", lambda: text(b"uu", b"begin 666 a\r\n" + much(b"ab", 700_000))),
    Shape(3, "text in each codec of Python", lambda: texts(CODECS)),
    Shape(3, "charsets that nobody knows", lambda: texts("x" * VALUE + str(number) for number in range(PARTS))),
    Shape(3, "Subject in punycode", lambda: mail(field("Subject", b"ab", b"=?punycode?q?", b"?="))),
    Shape(3, "names in punycode", lambda: mail(field("To", b"ab", b"=?punycode?q?", b"?= <a@b.c>") * 18)),
    Shape(3, "file names in punycode", lambda: disposed(b"ab", b"a; filename*=punycode''")),
    # Blanks and the like in what a part says of itself.
    Shape(4, "Content-Type: blanks", lambda: mail(b"Content-Type: text/plain" + BLANKS + b"x\r\n")),
    Shape(4, "Content-Type: blanks in 20 parts", lambda: alike(b"Content-Type: text/plain" + BLANKS + b"x\r\n", 20)),
    Shape(4, "Content-Type: blanks in parts", lambda: typed(b" ", b"text/plain", b"x")),
    Shape(4, "Content-Type: tabs", lambda: typed(b"\t", b"text/plain", b"x")),
    Shape(4, "Content-Type: blanks before a name", lambda: typed(b" ", b"a/b;", b"x")),
    Shape(4, "Content-Type: blanks in a quote", lambda: typed(b" ", b'a/b; c="', b"x")),
    Shape(4, "Content-Type: parameters, at last none", lambda: typed(b' ;a="b"', b"a/b", b" x")),
    Shape(4, "Content-Type: an endless word", lambda: typed(b"a", b"")),
    Shape(4, "Content-Type: slashes", lambda: typed(b"/")),
    Shape(4, "Content-Disposition: blanks", lambda: disposed(b" ", b"a", b"x")),
    Shape(4, "Content-Transfer-Encoding: blanks", lambda: mail(b"Content-Transfer-Encoding: a" + BLANKS + b"x\r\n")),
    Shape(4, "Content-ID: brackets", lambda: alike(ATTACHED + field("Content-ID", b"<", octets=VALUE))),
    # Half of a surrogate pair.
    Shape(5, "From: half a pair in utf-7", lambda: mail(b"From: " + HALF + b" <app@sandbox.test>\r\n")),
    Shape(5, "From: half a pair in utf-16", lambda: mail(b"From: =?utf-16-le?b?ANg=?= <app@sandbox.test>\r\n")),
    Shape(5, "From: half a pair, escaped", lambda: mail(b"From: =?unicode_escape?q?\\ud800?= <app@sandbox.test>\r\n")),
    Shape(5, "Subject: half a pair", lambda: mail(b"Subject: " + HALF + b"\r\n")),
    Shape(
        5, "To and Reply-To: half a pair", lambda: mail(b"To: %b <a@b.c>\r\nReply-To: %b <a@b.c>\r\n" % (HALF, HALF))
    ),
    Shape(5, "metadata: half a pair", lambda: mail(b"X-OpenSend-Metadata-a: " + HALF + b"\r\n")),
    Shape(5, "text: half a pair", lambda: text(b"utf-7", b"a +2AA- b")),
    Shape(5, "file name: half a pair", lambda: disposed(HALF, b'a; filename="', b'"')),
    Shape(5, "file name: half a pair by RFC 2231", lambda: disposed(b"+2AA-", b"a; filename*=utf-7''")),
    Shape(5, "type: half a pair", lambda: alike(b"Content-Type: a/b; charset*=utf-7''+2AA-; method*=utf-7''+2AA-\r\n")),
    Shape(5, "boundary: half a pair", lambda: mail(b"Content-Type: multipart/mixed; boundary*=utf-7''+2AA-\r\n", b"x")),
    # The header of a part.
    Shape(6, "parts: 970 fields each", lambda: alike(much(b"a:\r\n", 3_900))),
    Shape(6, "parts: one name of 40 kB each", lambda: alike(much(b"a", 40_000) + b"\r\n")),
    # Parameters.
    Shape(7, "parts: a long value", lambda: typed(b"a", b'a/b; c="', b'"')),
    Shape(7, "parts: a value of quoted pairs", lambda: typed(rb"\"", b'a/b; c="', b'"')),
    Shape(7, "parts: a value of quoted pairs, open", lambda: typed(rb"\"", b'a/b; c="')),
    Shape(7, "parts: a value of semicolons", lambda: typed(b";", b'a/b; c="', b'"')),
    Shape(7, "parts: a value of semicolons, open", lambda: typed(b";", b'a/b; c="')),
    Shape(7, "parts: semicolons", lambda: typed(b";")),
    Shape(7, "parts: short parameters", lambda: typed(b";a")),
    Shape(7, "parts: parameters without values", lambda: typed(b";a=")),
    Shape(7, "parts: values without names", lambda: typed(b";=a")),
    Shape(7, "parts: parameters with asterisks", lambda: typed(b";a*=b")),
    Shape(7, "parts: asterisks", lambda: typed(b"*", b"a/b; a", b"=b")),
    Shape(7, "parts: different parameters", lambda: typed(numbered(b";a%d=b", VALUE))),
    Shape(7, "parts: quotes", lambda: typed(b'"', b"a/b; c=")),
    Shape(7, "parts: quotes and semicolons", lambda: typed(b'";', b"a/b; c=")),
    Shape(7, "parts: comments", lambda: typed(b"(")),
    Shape(7, "parts: sections", lambda: disposed(numbered(b";filename*%d=b", VALUE))),
    Shape(7, "parts: sections of one number", lambda: disposed(b";filename*0=a")),
    Shape(7, "parts: sections of a long number", lambda: disposed(b"9", b"a; filename*", b"=a")),
    Shape(7, "parts: encoded sections", lambda: disposed(numbered(b";filename*%d*=%%41", VALUE))),
    Shape(7, "parts: percents", lambda: disposed(b"%", b"a; filename*=utf-8''")),
    Shape(7, "parts: encoded words", lambda: disposed(b"=?a?q?", b'a; filename="', b'"')),
    # Encoded words.
    Shape(0, "Subject: words without their ends", lambda: mail(field("Subject", b"=?a?q?"))),
    Shape(0, "Subject: words of one charset", lambda: mail(field("Subject", b"=?utf-8?q?a?= "))),
    Shape(0, "Subject: words of two charsets", lambda: mail(field("Subject", b"=?utf-8?q?a?= =?utf-7?q?+2AA-?= "))),
    Shape(0, "Subject: words in ascii that are none", lambda: mail(field("Subject", b"=?ascii?q?=FF=FF=FF?= a "))),
    Shape(0, "Subject: words of letters that Python lacks", lambda: mail(field("Subject", b"=?gbk?q?=80=80=80?= a "))),
    Shape(0, "Subject: beginnings of words", lambda: mail(field("Subject", b"=?"))),
    Shape(0, "Subject: a word of equals signs", lambda: mail(field("Subject", b"=41", b"=?utf-8?q?", b"?="))),
    Shape(0, "names: words", lambda: mail(field("To", b"=?a?q?=41?= ", b"", b"<a@b.c>") * 18)),
    Shape(0, "metadata: words", lambda: mail(numbered(b"X-OpenSend-Metadata-%d:" + b"=?a?q?" * 150 + b"\r\n", HEADER))),
    # The header section.
    Shape(0, "990 fields", lambda: mail(b"X-A: b\r\n" * 990)),
    Shape(0, "blank lines, folded", lambda: mail(b"X-A: b\r\n" + much(b" \r\n", FIELD))),
    Shape(0, "lines that are no fields", lambda: mail(b"X-A: b\r\n" + much(b"abc\r\n", HEADER))),
    Shape(0, "a field's name of 50 kB", lambda: mail(much(b"a", FIELD) + b": b\r\n")),
    Shape(0, "References: many ids", lambda: mail(field("References", b"<a@b>"))),
    Shape(0, "X-OpenSend-Tag: blanks", lambda: mail(field("X-OpenSend-Tag", b" ", b"a", b"x"))),
    Shape(0, "X-OpenSend-Send-At: blanks", lambda: mail(field("X-OpenSend-Send-At", b" ", b"in", b"x"))),
    # Boundaries.
    Shape(0, "multiparts 300 deep", lambda: mail(nested(300))),
    Shape(0, "messages in messages", lambda: mail(b"", much(b"Content-Type: message/rfc822\r\n\r\n", HEADER))),
    Shape(0, "990 files", lambda: alike(ATTACHED, 990)),
    Shape(0, "990 texts", lambda: alike(PLAIN, 990)),
)
"""Of 2 MB at most."""

LARGE = (
    Shape(3, "text in utf-7", lambda: text(b"utf-7", lines(b"+2AA-", MOST))),
    Shape(3, "text in iso-2022-jp", lambda: text(b"iso-2022-jp", lines(b"\x1b$B\x1b(B", SOME))),
    Shape(3, "text in hz", lambda: text(b"hz", lines(b"~{~}", SOME))),
    Shape(3, "text in utf-16", lambda: text(b"utf-16", lines(b"2ADYANgA", MOST), BASE64)),
    Shape(3, "text in big5: nothing of it is", lambda: text(b"big5", lines(b"\xff", SOME))),
    Shape(3, "text in ascii: nothing of it is", lambda: text(b"us-ascii", lines(b"\xff", MOST))),
    Shape(0, "text in ascii: umlauts here and there", lambda: text(b"us-ascii", much(b"a" * 300 + b"\xe4\r\n", MOST))),
    Shape(0, "text in gbk: euro signs here and there", lambda: text(b"gbk", much(b"a" * 300 + b"\x80\r\n", MOST))),
    Shape(0, "text in utf-7 with one smile", lambda: text(b"utf-7", b"+2D3eAA-" + much(b"abc\r\n", MOST))),
    Shape(
        0,
        "text in iso-2022-jp with one circled digit",
        lambda: text(b"iso-2022-jp", b"GyRCLSEbKEJh\r\n" + lines(b"YWJjYWIK", MOST), BASE64),
    ),
    Shape(
        0,
        "text in iso-2022-jp-2004 with one rare letter",
        lambda: text(b"iso-2022-jp-2004", b"GyQoUS4iGyhC\r\n" + lines(b"YWJjYWIK", MOST), BASE64),
    ),
    Shape(6, "a part: 38 MB of fields", lambda: split([much(b"a:\r\n", MOST) + b"\r\nx"])),
    Shape(6, "a part: fields without an end", lambda: mail(HIDDEN, b"--bx\r\n" + much(b"a:\r\n", SOME))),
    Shape(6, "a part: one field, folded", lambda: split([b"a:\r\n" + much(b" c\r\n", SOME)])),
    Shape(6, "a part: blank lines, folded", lambda: split([PLAIN + much(b" \r\n", SOME)])),
    Shape(6, "a part: types", lambda: split([much(PLAIN, SOME)])),
    Shape(6, "a part: lines that are no field", lambda: split([much(b"abc\r\n", SOME)])),
    Shape(6, "a part: one name", lambda: split([much(b"a", SOME)])),
    Shape(7, "990 parts: semicolons", lambda: alike(field("Content-Type", b";", b"a/b", octets=VALUE), 990)),
    Shape(0, "lines that begin like a boundary", lambda: mail(HIDDEN, much(b"--bx.\r\n", SOME))),
    Shape(0, "boundaries", lambda: mail(HIDDEN, much(b"--bx\r\n", SOME))),
    Shape(0, "lines that begin like 45 boundaries", lambda: mail(nested(45), much(b"\r\n--b" + b"b" * 45, SOME))),
    Shape(0, "hyphens", lambda: mail(b"Content-Type: multipart/mixed; boundary=-\r\n", much(b"-", SOME))),
    Shape(0, "empty lines", lambda: mail(b"", much(b"\r\n", MOST))),
    Shape(0, "empty lines that just fit", lambda: mail(b"", much(b"\r\n", 24_900_000))),
    Shape(0, "carriage returns", lambda: mail(b"", lines(b"\ra", MOST))),
    Shape(0, "text with one smile", lambda: text(b"utf-8", SMILE + much(b"abc\r\n", MOST))),
    Shape(0, "two texts with one smile each", lambda: alike(PLAIN, 2, SMILE + much(b"abc\r\n", MOST // 2))),
    Shape(0, "text with one smile that just fits", lambda: text(b"utf-8", SMILE + much(b'"bc\r\n', 9_900_000))),
    Shape(0, "text in utf-8: euro signs here and there", lambda: text(b"utf-8", much(b"a" * 300 + EURO, MOST))),
    Shape(0, "text with one euro sign that just fits", lambda: text(b"utf-8", EURO + much(b'"bc\r\n', 19_900_000))),
    Shape(0, "text of quotation marks", lambda: text(b"utf-8", lines(b'"', MOST))),
    Shape(0, "text of quotation marks that just fits", lambda: text(b"utf-8", lines(b'"', 21_000_000))),
    Shape(0, "texts of lines to be joined", lambda: alike(FLOWED, 36, much(b"a \r\n", 1_000_000))),
    Shape(0, "texts of lines to be joined that just fit", lambda: alike(FLOWED, 5, much(b"a \r\n", 1_000_000))),
    Shape(0, "HTML of umlauts", lambda: mail(b"Content-Type: text/html\r\n", lines("\u00e4".encode(), MOST))),
    Shape(0, "HTML of smiles", lambda: mail(b"Content-Type: text/html\r\n", lines(SMILE, SOME))),
    Shape(0, "text that is not UTF-8", lambda: text(b"utf-8", lines(b"\xe4", MOST))),
    Shape(0, "base64: lines without letters", lambda: text(b"utf-8", much(b"\r\n", SOME), BASE64)),
    Shape(0, "base64: nothing but line ends in it", lambda: text(b"utf-8", lines(b"CgoK", MOST), BASE64)),
    Shape(0, "quoted-printable: one line", lambda: text(b"utf-8", much(b"=", MOST), QUOTED)),
    Shape(0, "quoted-printable: equals signs", lambda: text(b"utf-8", lines(b"=41", MOST), QUOTED)),
    Shape(0, "quoted-printable: soft ends", lambda: text(b"utf-8", much(b"=\r\n", SOME), QUOTED)),
    Shape(0, "quoted-printable: blanks", lambda: text(b"utf-8", much(b" ", MOST), QUOTED)),
    Shape(0, "a file in base64: lines without letters", lambda: mail(ATTACHED + BASE64, much(b"\r\n", MOST))),
    Shape(0, "a file in base64: short lines", lambda: mail(ATTACHED + BASE64, much(b"QQ==\r\n", MOST))),
    Shape(0, "a file in quoted-printable: blanks", lambda: mail(ATTACHED + QUOTED, much(b" ", 30_000_000))),
    Shape(0, "a file of 8 bit", lambda: mail(ATTACHED, much(b"\xff\r\n", 30_000_000))),
)

SHAPES = (*SMALL, *LARGE)
