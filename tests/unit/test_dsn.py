"""A bounce to a return path of ours is read as RFC 3464 means it; whatever else comes is no report."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings, strategies as st

from opensend_milter.core.dsn import MOST_BYTES, email_of, reports, return_path
from opensend_milter.core.model import EmailId
from opensend_milter.core.signing import derived
from tests.linear import assert_linear

ID = EmailId("0198c5a2-7f00-7abc-8def-0123456789ab")
KEY = derived(b"s" * 32, "return-path")
GOLDEN = Path(__file__).parents[1] / "golden" / "bounce.eml"


def bounce(*groups: str, kind: str = "message/delivery-status", head: str = "", end: str = "\r\n") -> bytes:
    status = end.join(["Reporting-MTA: dns; mx.example.net", "", *(end.join([group, ""]) for group in groups)])
    lines = [
        "From: MAILER-DAEMON@example.net", "MIME-Version: 1.0",
        'Content-Type: multipart/report; report-type=delivery-status; boundary="=_b"', "",
        "--=_b", "", "It did not work.", "", "--=_b", f"Content-Type: {kind}", *([head] if head else []), "", status,
        "--=_b", "Content-Type: message/rfc822", "", "Subject: x", "", "Action: failed", "--=_b--", "",
    ]  # fmt: skip
    return end.join(lines).encode()


def group(recipient: str = "rfc822; to@example.net", action: str = "failed", status: str = "5.1.1", *more: str) -> str:
    lines = [f"Final-Recipient: {recipient}" if recipient else "", f"Action: {action}", f"Status: {status}", *more]
    return "\r\n".join(filter(None, lines))


def complaint(feedback_type: str, *more: str) -> bytes:
    said = "\r\n".join([f"Feedback-Type: {feedback_type}", "User-Agent: Some/1.0", "Version: 1", *more])
    return (
        "Content-Type: multipart/report; report-type=feedback-report; boundary=b\r\n\r\n--b\r\n\r\nspam!\r\n"
        f"--b\r\nContent-Type: message/feedback-report\r\n\r\n{said}\r\n\r\n--b\r\nContent-Type: message/rfc822\r\n\r\n"
        "Subject: x\r\n--b--\r\n"
    ).encode()


def test_a_return_path_names_its_message() -> None:
    """Also where a mail server on the way wrote it in capitals."""
    address = return_path(KEY, ID, "bounces.example.com")
    assert address.startswith("b-")
    assert len(address.partition("@")[0]) <= 64
    for spelling in (address, address.upper(), address.replace("b-", "B-")):
        assert email_of(KEY, spelling) == ID


@pytest.mark.parametrize(
    "recipient",
    ["", "b-", "b-@x", "postmaster@bounces.example.com", "b-aaaa@x", "b-\x00@x", "--help", "b-ä@x",
     "b-" + "a" * 100_000 + "@x",
     return_path(derived(b"other", "return-path"), ID, "x"), return_path(derived(b"s" * 32, "link"), ID, "x"),
     return_path(KEY, ID, "x")[:-3] + "q@x", return_path(KEY, ID, "x") + "@y", return_path(KEY, ID, "x") + "\n"],
)  # fmt: skip
def test_no_other_address_does(recipient: str) -> None:
    assert email_of(KEY, recipient) is None


@pytest.mark.parametrize(
    ("said", "kind", "permanent", "status"),
    [
        (group(), "bounced", True, "5.1.1"),
        (group("rfc822; to@example.net", "Failed (gone)", " 5.1.1 (bad)"), "bounced", True, "5.1.1"),
        (group(action="failed", status="4.4.7"), "bounced", False, "4.4.7"),
        (group(action="failed", status="5.2.2"), "bounced", False, "5.2.2"),
        (group(action="failed", status="5.7.26"), "bounced", False, "5.7.26"),
        (group("to@example.net", "failed", ""), "bounced", False, ""),
        (group("", "failed", "", "Diagnostic-Code: smtp; 550 5.1.10 none"), "bounced", True, "5.1.10"),
        (group("", "failed", "x", "Diagnostic-Code: smtp; 550 no such user"), "bounced", True, "5.0.0"),
        (group("", "failed", "x", "Diagnostic-Code: smtp; 450 later"), "bounced", False, "4.0.0"),
        (group(action="delayed", status="4.4.1"), "delivery_delayed", False, "4.4.1"),
        (group(action="delivered", status="2.0.0"), "delivered", False, "2.0.0"),
        (group(action="relayed", status="2.0.0"), "sent", False, "2.0.0"),
        (group(action="expanded", status="2.0.0"), "sent", False, "2.0.0"),
    ],
)
def test_actions_and_codes(said: str, kind: str, permanent: bool, status: str) -> None:  # noqa: FBT001
    """A code that speaks of the message or the moment is no proof against the address."""
    for end in ("\r\n", "\n"):
        (found,) = reports(bounce(said.replace("\r\n", end), end=end), ID)
        assert (found.kind, found.permanent, found.recipients[0].status) == (kind, permanent, status)
        assert (found.email_id, found.via) == (ID, "mail")


@pytest.mark.parametrize(
    ("said", "names"),
    [
        (group("rfc822; to@example.net"), ["to@example.net"]),
        (group("RFC822;<to@example.net>"), ["to@example.net"]),
        (group("to@example.net"), ["to@example.net"]),
        (group("utf-8; t\\x{F6}@example.net"), ["tö@example.net"]),
        (group("utf-8; t\\x{FFFFFF}\\x{D800}@example.net"), []),
        (group("rfc822; far@y.net", "failed", "", "Original-Recipient: rfc822;a@x.net"), ["far@y.net", "a@x.net"]),
        (group(""), []),
        (group("unknown"), []),
        (group("x400; /S=x/"), []),
    ],
)  # fmt: skip
def test_recipients(said: str, names: list[str]) -> None:
    (found,) = reports(bounce(said), ID)
    assert list(found.recipients[0].names) == names


def test_a_report_of_several() -> None:
    """Each recipient counts once, however often the report comes."""
    raw = bounce(
        group("rfc822; a@x.net"), group("rfc822; b@x.net", "delayed", "4.0.0"), group("rfc822; c@x.net", "odd")
    )
    found = reports(raw, ID)
    assert [(one.kind, one.recipients[0].names) for one in found] == [
        ("bounced", ("a@x.net",)),
        ("delivery_delayed", ("b@x.net",)),
    ]
    assert len({one.source_id for one in found}) == 2
    assert reports(raw, ID) == found


def test_postfix_writes_one_like_this() -> None:
    (found,) = reports(GOLDEN.read_bytes(), ID)
    assert (found.kind, found.permanent) == ("bounced", True)
    assert found.recipients[0].names == ("nobody@example.net",)
    assert found.recipients[0].diagnostic == "smtp; 550 5.1.1 unknown"


def test_a_report_may_be_encoded() -> None:
    import base64  # noqa: PLC0415

    plain = bounce("")
    status = base64.encodebytes(f"Reporting-MTA: x\n\n{group()}\n".encode()).decode()
    start, _, rest = plain.decode().partition("Content-Type: message/delivery-status\r\n")
    raw = (
        f"{start}Content-Type: message/global-delivery-status\r\nContent-Transfer-Encoding: base64\r\n\r\n{status}\r\n"
        f"--=_b{rest.partition('--=_b')[2]}"
    )
    (found,) = reports(raw.encode(), ID)
    assert found.kind == "bounced"


@pytest.mark.parametrize(
    ("raw", "names"),
    [
        (complaint("abuse", "Original-Rcpt-To: <to@example.net>"), ["to@example.net"]),
        (complaint("Abuse"), []),
        (complaint("not-spam", "Original-Rcpt-To: to@example.net"), None),
        (complaint("auth-failure"), None),
        (complaint(""), None),
    ],
)
def test_complaints(raw: bytes, names: list[str] | None) -> None:
    found = reports(raw, ID)
    assert [list(one.recipients[0].names) for one in found] == ([] if names is None else [names])
    assert all(one.kind == "complained" for one in found)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\r\n",
        b"Subject: Out of office\r\nAuto-Submitted: auto-replied\r\n\r\nI am away. Action: failed\r\nStatus: 5.1.1\r\n",
        b"Content-Type: text/plain\r\n\r\n" + group().encode(),
        bounce(group()).replace(b"multipart/report", b"multipart/mixed"),
        b"Content-Type: multipart/report\r\n\r\n--b\r\n",
        b"Content-Type: multipart/report; boundary=b\r\n\r\nnothing",
        bounce("", kind="text/plain"),
        bounce(group(action="")),
        bounce(group(action="exploded")),
    ],
)  # fmt: skip
def test_what_is_no_report(raw: bytes) -> None:
    """Nobody is suppressed for an answer that a machine or a person wrote in words."""
    assert reports(raw, ID) == []


pieces = st.sampled_from([
    b"--b", b"--b--", b"\r\n", b"\n", b"\r", b":", b";", b"\0", b"\xff",
    b"Content-Type: message/delivery-status\r\n\r\n",
    b"Content-Type: message/feedback-report\r\n\r\n", b"Final-Recipient: ", b"rfc822;", b"utf-8;", b"\\x{D800}",
    b"a@b.c",
    b"Action: failed\r\n", b"Status: 5.1.1\r\n", b"Feedback-Type: abuse\r\n", b"Diagnostic-Code: smtp; 550 5.1.1\r\n",
    b"Content-Transfer-Encoding: base64\r\n", b"Original-Rcpt-To: ", b"=?utf-8?q?x?=", b" ", b"(", b'"', b"\xc3\x28",
])  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(pieces, st.binary(max_size=20)), max_size=60).map(b"".join), st.booleans())
def test_any_octets_are_read(octets: bytes, framed: bool) -> None:  # noqa: FBT001
    head = b"Content-Type: multipart/report; boundary=b\r\n\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\n"
    for one in reports(head + octets if framed else octets, ID):
        assert one.source_id.isascii()
        for name in one.recipients[0].names:
            name.encode("utf-8")


@pytest.mark.parametrize(
    "unit",
    [b"--b\r\n", b"\r\n", b" \n", b"Action: failed\r\n\r\n", b"X: y\r\n", b"X:\r\n ", b"--b", b"-", b"\r",
     b"\0", b"a@b.c,", b";",
     b"Content-Type: multipart/report; boundary=b\r\n\r\n--b\r\n", b"Final-Recipient: utf-8; \\x{41}\r\n"],
)  # fmt: skip
def test_a_megabyte_of_anything_is_read_in_passes_over_it(unit: bytes) -> None:
    """However many, they are few: one for each octet would not end."""
    heads = [
        b"",
        b"Content-Type: ",
        b"Content-Type: multipart/report; boundary=b\r\n\r\n",
        b"Content-Type: multipart/report; boundary=b\r\n\r\n--b\r\nContent-Type: message/delivery-status\r\n\r\n",
    ]
    for head in heads:

        def read_so_much(octets: int, head: bytes = head) -> None:
            assert len(reports(head + unit * (octets // len(unit)), ID)) <= 1_001

        assert_linear(read_so_much, 5_000)
        read_so_much(2 * MOST_BYTES)
