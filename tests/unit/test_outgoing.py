"""The bytes that leave."""

from __future__ import annotations

import email
import email.policy
from datetime import UTC, datetime, timedelta, timezone
from email.utils import parsedate_to_datetime

import pytest

from opensend_milter.core.errors import PermanentError
from opensend_milter.core.model import Address, Job
from opensend_milter.core.outgoing import MOST_HOPS, outgoing, parcel
from tests.jobs import RAW, job

COMPLETE = b"From: a@example.org\r\nDate: Wed, 20 Aug 2025 12:00:00 +0000\r\nMessage-ID: <1@x>\r\n"


def sent(raw: bytes, **changes: object) -> bytes:
    return outgoing(job(raw=raw, **changes), hostname="mx.example.com")


def received(job: Job) -> bytes:
    """Return the first field, which is ours."""
    return outgoing(job, hostname="mx.example.com").partition(b"Message-ID")[0]


def behind_received(raw: bytes) -> bytes:
    """Return what leaves, less the three lines of our Received field."""
    return sent(raw).split(b"\r\n", 3)[3]


@pytest.mark.case(46)
@pytest.mark.case(47)
@pytest.mark.parametrize(
    "raw",
    [
        COMPLETE + b"\r\nhello\r\n",
        COMPLETE + b"\r\n.\r\n..\r\n.leading dot\r\n\r\n.",
        COMPLETE + b"\r\nno end of line",
        COMPLETE + b"\r\n",
        COMPLETE,
        COMPLETE + b"Subject: =?utf-8?q?=C3=A9?=\r\nX-Raw: \xc3\xa9 \xe9\r\n\r\n\x00\x01\xff\r\n",
        COMPLETE + b"X-Folded: a\r\n\tb\r\n  c\r\nX-A:1\r\nX-A:  2 \r\nx-a : 3\r\n\r\nbody\r\n",
        COMPLETE + b"\r\n" + b"x" * 2_000 + b"\r\n",
        COMPLETE + b"\r\nBcc: in the body\r\nX-OpenSend-Track: in the body\r\n\r\nBcc: again\r\n",
        COMPLETE + b"DKIM-Signature: v=1; h=From:Bcc;\r\n b=abc\r\nBccx: 1\r\nX-Bcc: 2\r\n\r\n",
    ],
)
def test_bytes_out_are_bytes_in(raw: bytes) -> None:
    """A signature made by the application stays valid: nothing behind our lines is touched."""
    assert behind_received(raw) == raw


@pytest.mark.case(35)
@pytest.mark.parametrize(
    "field",
    [
        b"Bcc: secret@example.net\r\n",
        b"BCC:secret@example.net\r\n",
        b"bcc : secret@example.net\r\n",
        b"Bcc\t: secret@example.net\r\n",
        b"Bcc: a@example.net,\r\n\tsecret@example.net,\r\n secret2@example.net\r\n",
        b"Bcc:\r\n secret@example.net\r\n",
        b"Bcc: x\r\n \r\n\tsecret@example.net\r\n",
        b"Resent-Bcc: secret@example.net\r\n",
        b"Bcc: secret@example.net\r\nBcc: secret@example.net\r\n",
        b"X-OpenSend-Track: secret\r\n",
        b"x-opensend-reply-token : secret\r\n folded secret\r\n",
        b"X-OpenSend-Tag: a=secret\r\nX-OpenSend-Tag: b=secret\r\n",
        b"X-OpenSend-Metadata-Order: secret\r\n secret\r\n",
        b"X-OPENSEND-SEND-AT: in 2 hours (secret)\r\n",
        b"Idempotency-Key: secret\r\n",
        b"resend-idempotency-key\t: secret\r\n",
        b"X-Idempotency-Key:secret\r\n",
    ],
)
@pytest.mark.parametrize("place", ["first", "between", "last", "without a body"])
def test_bcc_and_control_fields_never_leave(field: bytes, place: str) -> None:
    """Whole fields go, folded lines and all, and nothing else."""
    match place:
        case "first":
            raw, expected = field + COMPLETE + b"\r\nbody", COMPLETE + b"\r\nbody"
        case "between":
            raw, expected = COMPLETE + field + b"X-After: 1\r\n\r\nbody", COMPLETE + b"X-After: 1\r\n\r\nbody"
        case "last":
            raw, expected = COMPLETE + field + b"\r\nbody", COMPLETE + b"\r\nbody"
        case _:
            raw, expected = COMPLETE + field.removesuffix(b"\r\n"), COMPLETE
    assert behind_received(raw) == expected
    assert b"secret" not in sent(raw)


@pytest.mark.case(35)
def test_a_bcc_behind_a_bare_line_end_never_leaves() -> None:
    """A reader that takes a bare CR for a line end would show it."""
    for end in (b"\r", b"\n"):
        assert b"secret" not in sent(COMPLETE + b"Subject: x" + end + b"Bcc: secret@example.net\r\n\r\n")


@pytest.mark.case(16)
@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"a\nb\n", b"a\r\nb\r\n"),
        (b"a\rb\r", b"a\r\nb\r\n"),
        (b"a\r\r\nb", b"a\r\n\r\nb"),
        (b"a\n\r\nb", b"a\r\n\r\nb"),
        (b"a\n.\nMAIL FROM:<x>\n", b"a\r\n.\r\nMAIL FROM:<x>\r\n"),
        (b"a\r.\rb", b"a\r\n.\r\nb"),
        (b"a\r\n.\nb\n.\r\nc", b"a\r\n.\r\nb\r\n.\r\nc"),
    ],
)
def test_every_line_end_is_crlf(raw: bytes, expected: bytes) -> None:
    """A bare CR or LF would be read differently by different servers."""
    assert behind_received(COMPLETE + b"\r\n" + raw) == COMPLETE + b"\r\n" + expected


def test_bare_line_ends_in_the_header() -> None:
    """A message of LF lines is one of CRLF lines."""
    assert behind_received(COMPLETE.replace(b"\r\n", b"\n") + b"\nbody\n") == COMPLETE + b"\r\nbody\r\n"


@pytest.mark.case(45)
def test_trace_date_and_message_id_are_prepended_where_absent() -> None:
    """Received first; then the message as it was."""
    assert (
        sent(RAW)
        == (
            b"Received: from [192.0.2.7] ([192.0.2.7])\r\n"
            b"\tby mx.example.com (opensend-milter) with ESMTPSA id 4XabcdZ1Kz2;\r\n"
            b"\tWed, 20 Aug 2025 12:00:01 +0000\r\n"
            b"Message-ID: <0198c5a2-7f00-7abc-8def-0123456789ab@example.org>\r\n"
            b"Date: Wed, 20 Aug 2025 12:00:01 +0000\r\n"
        )
        + RAW
    )


@pytest.mark.case(45)
@pytest.mark.parametrize(
    ("raw", "rest"),
    [
        (b"", b""),
        (b"\r\n", b"\r\n"),
        (b"\r\nbody\r\n", b"\r\nbody\r\n"),
        (b"\r\n\r\nFrom: x\r\n", b"\r\n\r\nFrom: x\r\n"),
    ],
)
def test_a_message_without_a_header(raw: bytes, rest: bytes) -> None:
    """Its body stays a body."""
    assert sent(raw).endswith(b"+0000\r\n" + rest)
    assert email.message_from_bytes(sent(raw)).keys() == ["Received", "Message-ID", "Date"]


@pytest.mark.parametrize("spelling", [b"message-id: <1@x>\r\ndate : x\r\n", b"MESSAGE-ID\t:\r\nDATE:\r\n"])
def test_fields_that_are_there_in_any_spelling_stay(spelling: bytes) -> None:
    """A second Date or Message-ID would make the message invalid."""
    assert behind_received(spelling + b"\r\n") == spelling + b"\r\n"


def test_a_folded_line_is_no_field() -> None:
    """What looks like a Date inside another field is none."""
    assert b"\r\nDate: Wed, 20" in sent(b"Subject: a\r\n Date: x\r\n Bcc: stays\r\n\r\n")
    assert b"Bcc: stays" in sent(b"Subject: a\r\n Bcc: stays\r\n\r\n")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"tls": ""}, b"with ESMTPA id 4XabcdZ1Kz2;"),
        ({"front_door": "http"}, b"with HTTP id 4XabcdZ1Kz2;"),
        ({"client_address": "2001:db8::1"}, b"from [IPv6:2001:db8::1] ([IPv6:2001:db8::1])\r\n"),
        ({"client_address": "fe80::1%eth0"}, b"from [IPv6:fe80::1] ([IPv6:fe80::1])\r\n"),
        ({"client_address": "unix:\r\nBcc: x"}, b"from unknown\r\n"),
        ({"client_address": ""}, b"from unknown\r\n"),
        ({"queue_id": ""}, b"id 0198c5a2-7f00-7abc-8def-0123456789ab;"),
        ({"queue_id": "a b\r\nX: y"}, b"id 0198c5a2-7f00-7abc-8def-0123456789ab;"),
    ],
)
def test_received_says_how_it_came(changes: dict[str, object], expected: bytes) -> None:
    """As RFC 5321, 4.4 has it; nothing foreign gets in."""
    line = received(job(**changes))
    assert expected in line
    assert line.count(b"\r\n") == 3


@pytest.mark.case(35)
def test_received_names_no_recipient() -> None:
    """Of one recipient it could: but who is to say that he is not a Bcc."""
    assert b"example.net" not in received(job())


def test_times_are_utc() -> None:
    """Whatever the zone of the row."""
    here = datetime(2025, 8, 20, 14, 0, 1, tzinfo=timezone(timedelta(hours=2)))
    assert sent(RAW, received_at=here) == sent(RAW)
    message = email.message_from_bytes(sent(RAW), policy=email.policy.default)
    assert parsedate_to_datetime(str(message["Date"])) == datetime(2025, 8, 20, 12, 0, 1, tzinfo=UTC)


def test_the_message_id_of_an_idn_sender_is_ascii() -> None:
    """A-labels need no SMTPUTF8."""
    assert b"@xn--bcher-kva.example>" in sent(RAW, from_address="app@b\u00fccher.example")


def test_a_message_that_goes_round_is_stopped() -> None:
    """More hops than any way has."""
    hop = b"Received: from a by b\r\n"
    assert sent(hop * MOST_HOPS + RAW)
    with pytest.raises(PermanentError, match=r"5\.4\.6"):
        sent(hop * (MOST_HOPS + 1) + RAW)
    assert sent(RAW + hop * (MOST_HOPS + 1)), "in the body they mean nothing"


@pytest.mark.case(26)
def test_a_parcel_has_the_jobs_envelope_and_the_return_path_that_we_give() -> None:
    made = parcel(job(), hostname="mx.example.com", sender=Address("bounces@example.com"))
    assert (made.sender, made.recipients) == ("bounces@example.com", job().recipients)
    assert made.content == outgoing(job(), hostname="mx.example.com")
