"""What the page says of how a message is read, row for row."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import pytest

from opensend_milter.core.message import read
from opensend_milter.core.model import Limits, Reading

PAGE = Path(__file__).parents[2] / "docs" / "sending.md"
_, _, SECTION = PAGE.read_text(encoding="utf-8").partition("\n## How it is read\n")
ROWS = re.findall(r"^\| (?!in the message)([^|]+) \| [^|]+ \|$", SECTION.partition("\n## ")[0], re.MULTILINE)

Said = dict[str, object]
TEXT = "\n\nhello\n"
PAGE_OF_HTML = "Content-Type: text/html\n\n<p>hello</p>\n"
PDF = "Content-Type: application/pdf\n\n%PDF\n"


def multipart(kind: str, *parts: str, end: str = "--b--\n", boundary: str = "b") -> str:
    body = "".join(f"--{boundary}\n{part.removeprefix(chr(10))}" for part in parts)
    return f'Content-Type: multipart/{kind}; boundary="{boundary}"\n\n{body}{end}'


def inner(whole: str) -> str:
    """Give a multipart within another a boundary of its own."""
    return whole.replace('"b"', '"c"').replace("--b", "--c")


ROW: dict[str, list[tuple[str, Said]]] = {
    "text/plain, text/html": [
        ("Content-Type: text/plain\n\nhello\n", {"text": "hello\r\n"}),
        (multipart("mixed", TEXT, PAGE_OF_HTML, TEXT), {"text": "hello\r\nhello", "html": "<p>hello</p>"}),
    ],
    "the same with a name, or `Content-Disposition: attachment`": [
        ('Content-Type: text/plain; name="a.txt"\n\nhello\n', {"files": [("a.txt", "text/plain", "hello\n")]}),
        (
            multipart("mixed", TEXT, f"Content-Disposition: attachment\n{PAGE_OF_HTML}"),
            {"text": "hello", "files": [("attachment-1.html", "text/html", "<p>hello</p>")]},
        ),
    ],
    "any other type, in an alternative too: text/calendar, text/x-amp-html": [
        (
            multipart(
                "alternative",
                TEXT,
                "Content-Type: text/x-amp-html\n\n<amp>\n",
                PAGE_OF_HTML,
                "Content-Type: text/calendar; method=REQUEST\n\nBEGIN:VCALENDAR\n",
            ),
            {
                "text": "hello",
                "html": "<p>hello</p>",
                "files": [
                    ("attachment-1.html", "text/x-amp-html", "<amp>"),
                    ("attachment-2.ics", "text/calendar; method=REQUEST", "BEGIN:VCALENDAR"),
                ],
            },
        )
    ],
    "multipart/alternative, /mixed, /related, /signed in each other": [
        (
            multipart("alternative", TEXT, inner(multipart("related", PDF, PAGE_OF_HTML)), "\n\nbye\n"),
            {
                "text": "hello\r\nbye",
                "html": "<p>hello</p>",
                "files": [("attachment-1.pdf", "application/pdf", "%PDF")],
            },
        )
    ],
    "multipart/report": [
        (
            multipart(
                "report; report-type=delivery-status",
                TEXT,
                "Content-Type: message/delivery-status\n\nAction: failed\n",
                "Content-Type: text/rfc822-headers\n\nSubject: hi\n",
            ),
            {
                "text": "hello",
                "files": [
                    ("attachment-1.txt", "application/octet-stream", "Action: failed"),
                    ("attachment-2.txt", "text/rfc822-headers", "Subject: hi"),
                ],
            },
        )
    ],
    "multipart/signed": [
        (
            multipart("signed", TEXT, "Content-Type: application/pgp-signature\n\n-----\n"),
            {"text": "hello", "files": [("attachment-1.asc", "application/pgp-signature", "-----")]},
        )
    ],
    "a message (message/rfc822, message/global)": [
        (
            multipart("mixed", TEXT, f"Content-Type: message/{kind}\n\nSubject: hi{TEXT}"),
            {"text": "hello", "files": [("message-1.eml", "application/octet-stream", "Subject: hi\n\nhello")]},
        )
        for kind in ("rfc822", "global")
    ],
    "a file of type message/...": [
        ("Content-Type: message/x; name=a.x\n\nhello", {"files": [("a.x", "application/octet-stream", "hello")]})
    ],
    "multipart/digest": [
        (
            multipart("digest", "\n\nSubject: hi\n", "Content-Type: text/plain\n\nhello\n"),
            {"text": "hello", "files": [("message-1.eml", "application/octet-stream", "Subject: hi")]},
        )
    ],
    "a multipart whose boundary is missing, or nowhere in it": [
        ("Content-Type: multipart/mixed\n\n--b\n\nhello", {"text": "--b\r\n\r\nhello"}),
        ("Content-Type: multipart/mixed; boundary=c\n\n--b\n\nhello", {"text": "--b\r\n\r\nhello"}),
    ],
    "a multipart that only ends": [(multipart("mixed", end="This is MIME.\n--b--\n"), {})],
    "a multipart that does not end": [
        (
            multipart("mixed", TEXT, PDF, end=""),
            {"text": "hello", "files": [("attachment-1.pdf", "application/pdf", "%PDF\n")]},
        ),
        (multipart("mixed", inner(multipart("mixed", TEXT, end="")), TEXT), {"text": "hello\r\nhello"}),
    ],
    "a boundary with blanks, quotes, brackets, or beyond ASCII": [
        (multipart("mixed", TEXT, boundary=odd, end=f"--{odd}--  \n"), {"text": "hello"})
        for odd in ("a b", "'a'", "(a)[b]<c>{d}", "a:b=c?d/e,f", "größe", "--", "=_a_=")
    ],
    "no Content-Type, or none that can be read": [
        ("\nhello", {"text": "hello"}),
        ("Content-Type: text\n\nhello", {"text": "hello"}),
        ("Content-Type: ; charset=x\n\nhello", {"text": "hello"}),
    ],
    "no body": [("", {}), ("\n", {}), ("Content-Type: text/html\n\n", {}), (multipart("mixed", "\n\n"), {})],
    "errors in base64 or quoted-printable": [
        ("Content-Transfer-Encoding: base64\n\n=a.GV*sbG8\n", {"text": "hello"}),
        ("Content-Transfer-Encoding: quoted-printable\n\nhe=6Clo=\n=ZZ", {"text": "hello=ZZ"}),
    ],
    "another Content-Transfer-Encoding, such as x-uuencode": [
        ("Content-Transfer-Encoding: x-uuencode\n\nhello", {"text": "hello"}),
        (
            multipart("mixed", f"Content-Transfer-Encoding: x-uuencode\n{PDF}"),
            {"files": [("attachment-1.pdf", "application/pdf", "%PDF")]},
        ),
    ],
    "uuencode or yEnc in a text": [
        ("\nbegin 644 a\n#0V%T\n`\nend\n", {"text": "begin 644 a\r\n#0V%T\r\n`\r\nend\r\n"}),
        (
            "\n=ybegin line=128 size=1 name=a\nk\n=yend size=1\n",
            {"text": "=ybegin line=128 size=1 name=a\r\nk\r\n=yend size=1\r\n"},
        ),
    ],
    "`format=flowed`, up to 1 MiB": [
        ("Content-Type: text/plain; format=flowed\n\nhello \nyou\n> a \n> b", {"text": "hello you\r\n> a \r\n> b"}),
        ("Content-Type: text/plain; format=flowed; delsp=yes\n\nhel \nlo", {"text": "hello"}),
    ],
    "lines that end in LF, CR or CR CR LF": [
        ("Content-Transfer-Encoding: quoted-printable\n\na=0Ab=0Dc=0D\nd", {"text": "a\r\nb\r\nc\r\nd"})
    ],
    "a file without a name": [
        (
            multipart("mixed", PDF, "Content-Type: image/png\n\n\n", "Content-Type: x/y\n\n\n"),
            {
                "files": [
                    ("attachment-1.pdf", "application/pdf", "%PDF"),
                    ("attachment-2.png", "image/png", ""),
                    ("attachment-3.bin", "x/y", ""),
                ]
            },
        )
    ],
    "a name of more than 255 characters, or with line ends": [
        ('Content-Type: x/y; name="a/b=?utf-8?q?=0A?=c"\n\n', {"files": [("a/b c", "x/y", "")]}),
        (f'Content-Type: x/y; name="{"a" * 300}.pdf"\n\n', {"files": [("a" * 251 + ".pdf", "x/y", "")]}),
    ],
    "groups in To and Cc": [
        ("To: us: a@example.net, b@example.net;, c@example.net\nCc: none:;\n\n", {"to": ["a", "b", "c"]})
    ],
    "octets beyond ASCII in a header field": [
        ("Subject: größe\n\n", {"subject": "größe"}),
        ("Subject: gr\udcf6\udcdfe\n\n", {"subject": "größe"}),
    ],
}


def said(reading: Reading) -> Said:
    files = [
        (
            one.filename,
            one.content_type,
            base64.b64decode(b"".join(one.content.pieces())).decode().replace("\r\n", "\n"),
        )
        for one in reading.attachments
    ]
    to = [shown.address.removesuffix("@example.net") for shown in (*reading.to, *reading.cc)]
    found = {"subject": reading.subject, "text": reading.text, "html": reading.html, "files": files, "to": to}
    return {name: value for name, value in found.items() if value}


def test_each_row_is_proved() -> None:
    assert list(ROW) == ROWS


@pytest.mark.parametrize(
    ("raw", "expected"), [pytest.param(*one, id=row) for row, proofs in ROW.items() for one in proofs]
)
def test_a_message_is_read_as_the_page_says(raw: str, expected: Said) -> None:
    octets = f"From: a@example.org\n{raw}".replace("\n", "\r\n").encode("utf-8", "surrogateescape")
    found = read(octets, Limits())
    assert isinstance(found, Reading), found
    assert said(found) == expected
