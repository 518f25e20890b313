"""What no log may hold is found where it is planted, and nowhere else."""

from __future__ import annotations

import base64
import logging
from pathlib import Path

import pytest

from tests.log_scan import Forbidden, Grown, Heard, Kind, assert_clean, body_starts, findings, look_through

KEY = "os_0123456789abcdef0123456789abcdef"
PASSWORD = "Q1w2-E3r4_T5y6u7I8o9P0aSdFgHjKlZxCvBnM12345"
LINE = "The meeting is at noon, in the room with the long table."
RAW = (
    "From: a@example.org\r\nSubject: a subject that is no body\r\n\r\n--boundary-of-some-length\r\n"
    f"Content-Type: text/plain; charset=utf-8\r\n\r\n{LINE}\r\n> {LINE[::-1]}\r\n"
    "short\r\nJVBERi0xLjQKJcfsj6IKNSAwIG9i\r\n"
).encode()
FORBIDDEN = Forbidden(secrets=frozenset({PASSWORD.encode()}), body_starts=frozenset(body_starts(RAW)), addresses=True)
BEFORE = "2026-01-02 03:04:05,678 INFO opensend_milter.mail[1]: 4Xq: reason="


def in_base64(text: str, before: str = "") -> str:
    return before + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("planted", "kind"),
    [
        (KEY, "key"),
        (f"/v1/send?key={KEY}&x=1", "key"),
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "key"),
        (in_base64(f"\0apikey\0{KEY}"), "key"),
        (in_base64(f"\0somebody else\0{KEY}"), "key"),
        (in_base64(KEY), "key"),
        (in_base64(f"\0apikey\0{KEY}", before="resp"), "key"),
        (in_base64(f"\0apikey\0{KEY}", before="AUTH/PLAIN+"), "key"),
        ("\\x" + f"body {KEY}".encode().hex(), "key"),
        (f"postgresql:///x?password={PASSWORD}", "secret"),
        (in_base64(f"\0role\0{PASSWORD}"), "secret"),
        (LINE, "body"),
        (LINE[:30], "body"),
        (LINE[::-1], "body"),
        (repr(f"x\r\n{LINE}\r\n".encode()), "body"),
        ("JVBERi0xLjQKJcfsj6IKNSAwIG9i", "body"),
        ("Failing row contains (1, \\x" + RAW.hex() + ")", "body"),
        ("to@example.net", "address"),
        ("<o'neil+x@mail.example>", "address"),
        ('"a b"@example.net', "address"),
        ("root@[192.0.2.1]", "address"),
        ("ü@ü.example", "address"),
        ("postgresql://role:word@db.example/x", "address"),
    ],
)
def test_what_is_planted_is_found(planted: str, kind: Kind) -> None:
    log = f"{BEFORE}fine\n{BEFORE}{planted} more\n{BEFORE}fine\n".encode()
    (found,) = findings(log, FORBIDDEN, "worker.log")
    assert (found.source, found.line, found.kind) == ("worker.log", 2, kind)
    assert BEFORE.startswith(found.before[:20])
    assert planted not in str(found)


@pytest.mark.parametrize(
    "clean",
    [
        "4XabcdZ1Kz2: email=0198c5a2-0000-7000-8000-000000000000 key=3f0f8f3e-0000-4000-8000-000000000000 size=62",
        'reason="no such user <address> here"',
        "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        "key os_0123...cdef was made",
        "listening on /tmp/os-0123456789abcdef0123456789abcdef/run/auth.sock, asking dovecot",
        "Content-Type: text/plain; charset=utf-8",
        "--boundary-of-some-length",
        "Subject: a subject that is no body",
        "short",
        "The meeting is late",
        "10 messages @ 3 a second",
        "",
    ],
)
def test_nothing_is_found_in_clean_lines(clean: str) -> None:
    assert findings(f"{BEFORE}{clean}\n".encode(), FORBIDDEN, "serve.log") == []


def test_addresses_are_looked_for_only_where_they_are_masked() -> None:
    log = f"postfix/smtpd[1]: 4Xq: from=<a@example.org>\npostfix/smtpd[1]: {KEY}\n".encode()
    (found,) = findings(log, Forbidden(), "postfix.log")
    assert (found.line, found.kind) == (2, "key")


def test_a_line_is_told_once_up_to_the_first_secret() -> None:
    (found,) = findings(f"a@example.org {LINE} {KEY}\n".encode(), FORBIDDEN, "x.log")
    assert (found.kind, found.before) == ("address", "")


def test_a_body_in_bytes_that_are_no_text() -> None:
    """Whatever a stranger sends, nothing of it can break the scan."""
    starts = body_starts(b"\r\n\r\n" + bytes(range(256)) * 4 + b"\n\xff\xfe" + b"x" * 30)
    assert findings(bytes(range(256)) * 100, Forbidden(body_starts=frozenset(starts), addresses=True), "x") is not None
    assert body_starts(b"") == body_starts(b"\r\n") == set()


def test_megabytes_are_looked_through() -> None:
    """A scan that went over a long word from each of its letters would never end."""
    line = f"{BEFORE}email=0198c5a2-0000-7000-8000-000000000000 client=192.0.2.7 size=62 nrcpt=1 status=accepted\n"
    starts = frozenset(f"line {number} of all the bodies"[:20].encode() for number in range(100_000))
    log = (line * 20_000).encode() + b"x" * 1_000_000 + b"@" * 100_000 + b"0123456789abcdef" * 50_000
    forbidden = Forbidden(secrets=FORBIDDEN.secrets, body_starts=starts, addresses=True)
    assert findings(log, forbidden, "x.log") == []


def test_files_are_looked_through_and_fail_by_name(tmp_path: Path) -> None:
    (tmp_path / "clean.txt").write_text("fine\n")
    (tmp_path / "serve.txt").write_text(f"fine\nkey={KEY}\n")
    found = look_through([tmp_path / "none.txt", *sorted(tmp_path.iterdir())], FORBIDDEN)
    with pytest.raises(AssertionError, match=r"serve\.txt:2: key after 'key='") as raised:
        assert_clean(found)
    assert KEY not in str(raised.value)


def test_what_this_process_logs_is_heard_as_a_daemon_writes_it() -> None:
    heard = Heard()
    for text in ("to a@example.org", KEY, PASSWORD):
        heard.handle(logging.LogRecord("x", logging.INFO, "f.py", 1, "said: %s", (text,), None))
    (found,) = findings(heard.taken(), FORBIDDEN, "test")
    assert (found.line, found.kind) == (3, "secret"), "address and key were masked"
    assert heard.taken() == b""


def test_only_what_was_added_is_read(tmp_path: Path) -> None:
    log, grown = tmp_path / "x.txt", Grown()
    assert grown.since_last(log) == b""
    for added in (b"one\n", b"", b"two\n"):
        with log.open("ab") as file:
            file.write(added)
        assert grown.since_last(log) == added
