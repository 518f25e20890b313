"""Which messages mail programs may split otherwise than we do, and that honest ones are none of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from opensend_milter.core.doubts import outside_of_mime
from opensend_milter.core.message import read
from opensend_milter.core.mime import LONGEST_VALUE
from opensend_milter.core.model import Limits, Reading

GOLDEN = Path(__file__).parent.parent / "golden"
ODD = {
    "bounce": "an attached message, which is not looked into",
    "pgp-encrypted": "a part that mail programs unwrap",
    "repeated-headers": "a Content-Type field",
    "smime-opaque": "a part that mail programs unwrap",
}


def doubt(raw: str | bytes) -> str:
    octets = raw if isinstance(raw, bytes) else raw.replace("\n", "\r\n").encode()
    found = read(octets, Limits())
    assert isinstance(found, Reading), found
    return found.doubt or outside_of_mime(octets, found.text)


def mixed(*parts: str, kind: str = "multipart/mixed; boundary=b", more: str = "", end: str = "--b--\n") -> str:
    head = f"From: a@example.org\nContent-Type: {kind}\n{more}\n"
    return head + "".join(f"--b\n{part}\n" for part in parts) + end


def single(kind: str, more: str = "") -> str:
    return f"From: a@example.org\nContent-Type: {kind}\n{more}\nhello\n"


INNER = "Content-Type: multipart/alternative; boundary={}\n\n--{}\n\nhello\n--{}--"


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.eml")), ids=lambda path: path.stem)
def test_what_applications_send_leaves_no_doubt(path: Path) -> None:
    found = doubt(path.read_bytes())
    assert found.startswith(ODD[path.stem]) if path.stem in ODD else not found


@pytest.mark.parametrize(
    "raw",
    [
        "From: a@example.org\n\nhello\n",
        single("text/plain; charset=utf-8;"),
        single('text/plain; charset = "utf-8" ; format=flowed'),
        single("TEXT/HTML", "Content-Disposition: INLINE\nContent-Transfer-Encoding: 8BIT\n"),
        single("text/plain; x*=utf-8''y; x=y"),
        mixed("\nhello", kind='multipart/mixed; boundary="b"'),
        mixed("\nhello", kind='multipart/related; type="multipart/alternative"; boundary=b'),
        mixed("\nhello", INNER.format(*["=_c"] * 3), INNER.format(*["--Apple-Mail=_A0"] * 3)),
        mixed("Content-Type: application/pdf; name*0=a; name*1=b\nContent-Disposition: x; filename=a b;c\n\n%PDF"),
        mixed('Content-Type: image/png; name="a (1) \\"b\\".png"\n\n'),
        mixed("\nhello", end="--b--\n\nThe end.\n"),
        "From: a@example.org\n\nLet us begin 644 times.\n",
    ],
)
def test_what_everybody_reads_alike_leaves_none(raw: str) -> None:
    assert doubt(raw) == ""


@pytest.mark.parametrize(
    ("raw", "place"),
    [
        (single("text/plain; x=" + "x" * LONGEST_VALUE), "a Content-Type field"),
        (single("text/plain", "Content-Type: application/pdf\n"), "a Content-Type field"),
        (single("text"), "a Content-Type field"),
        (single("text/plain (a; name=a.exe)"), "a Content-Type field"),
        (single('text/plain; x="; name=a.exe'), "a Content-Type field"),
        (single('text/plain; x="; name=a.exe; y="'), "a Content-Type field"),
        (single("text/plain; x=a; X=b"), "a Content-Type field"),
        (
            single("text/plain", "Content-Disposition: inline\nContent-Disposition: attachment\n"),
            "a Content-Disposition",
        ),
        (single("text/plain", "Content-Disposition: inline=attachment\n"), "a Content-Disposition field"),
        (single("text/plain", "Content-Disposition: attachment now\n"), "may be shown as a file"),
        (single("text/plain", "Content-Disposition: form-data\n"), "may be shown as a file"),
        (single("text/plain", 'Content-Disposition: inline; filename="\x7f"\n'), "may be shown as a file"),
        (single("text/plain", "Content-Transfer-Encoding: x-uuencode\n"), "an unknown transfer encoding"),
        (single("text/plain", "Content-Transfer-Encoding: 7bit\n" * 2), "a Content-Transfer-Encoding field"),
        (single("message/partial; id=1; number=1"), "an attached message"),
        (single("multipart/mixed"), "an odd boundary, or none"),
        (single("multipart/mixed; boundary=b"), "a multipart without parts"),
        (mixed("\nhello", kind="multipart/digest; boundary=b"), "a multipart/digest"),
        (mixed("\nhello", kind="multipart/mixed; boundary=a; boundary=b"), "a Content-Type field"),
        (mixed("\nhello", kind="multipart/mixed; boundary*=us-ascii''b"), "a Content-Type field"),
        (mixed("\nhello", kind='multipart/mixed; boundary="\\b"'), "boundary"),
        (mixed("\nhello", more="Content-Transfer-Encoding: base64\n"), "encoded as a whole"),
        (mixed("\nhello", more="Content-Disposition: attachment\n"), "a multipart that may be shown as a file"),
        (mixed("\nhello", kind="multipart/mixed; boundary=b; name=a.exe"), "a multipart that may be shown as a file"),
        (mixed("\nhello", INNER.format("b", "b", "b")), "after its end"),
        (mixed("\nhello", INNER.partition("\n")[0].format("b") + "\n", "\nhello"), "the boundary of another"),
        (mixed("\nhello", INNER.format("b2", "b2", "b2")), "only begins like a boundary"),
        (mixed("\nhello", "\n--b and more"), "only begins like a boundary"),
        (mixed("\nhello", end=""), "without an end"),
        (mixed("Content-Type: multipart/mixed; boundary=c\n\n--c\n\nhello", "\n--c\nhello"), "without an end"),
        (mixed("\nhello", end="--b--\n--b\nContent-Type: application/pdf\n\n%PDF\n--b--\n"), "after its end"),
        (mixed(" Content-Type: application/pdf\n\n%PDF"), "begins with a blank"),
        (mixed("hello\nSubject: hi\n\nhello"), "a line that is no field"),
        (mixed("Subject: hi\nContent-Type\0: application/pdf\n\n%PDF"), "a line that is no field"),
        (mixed("Content-Type: application/ms-tnef; name=winmail.dat\n\n"), "unwrap"),
        (mixed("\nhello\r--b"), "CR alone"),
        ("From: a@example.org\n\nhi\nbegin 644 a.exe\n#0V%T\n`\nend\n", "uuencode"),
        (single("text/plain; format=flowed").replace("hello", "hi \nbegin 644 a.exe\n#0V%T\n`\nend"), "uuencode"),
        (single("text/plain; format=flowed").replace("hello", "hi\n begin 644 a.exe\n#0V%T\n`\nend"), "uuencode"),
    ],
)
def test_what_may_be_read_otherwise_is_named(raw: str, place: str) -> None:
    assert place in doubt(raw)
