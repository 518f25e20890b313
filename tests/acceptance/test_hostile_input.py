"""What no decent client sends: it gets one clear answer, and nothing is stored that was not meant."""

from __future__ import annotations

import smtplib
import socket
import ssl
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress

import pytest

from tests.acceptance.running_sandbox import Sandbox
from tests.acceptance.submitting import (
    FROM,
    MAIL,
    TAKEN,
    TO,
    answer,
    answered,
    answers_to_the_end,
    begin,
    count,
    delivered,
    in_inbox,
    nothing_stored,
    refusals,
    rows,
    said,
    stored,
    submit,
    unique,
)
from tests.waiting import patience_s

BEYOND = (554, "5.6.0")
BYE = (221, "2.0.0")
OUT_OF_STEP = (554, "5.5.0")


@pytest.fixture
def client(sandbox: Sandbox) -> Iterator[smtplib.SMTP]:
    """Log in on a connection that may end in any way."""
    client = sandbox.smtp()
    yield client
    client.close()


def plaintext(sandbox: Sandbox, port: str = "SANDBOX_SMTP_PORT") -> smtplib.SMTP:
    """Open a connection without TLS."""
    client = smtplib.SMTP(sandbox["SANDBOX_SMTP_HOST"], int(sandbox[port]), timeout=patience_s())
    client.ehlo()
    return client


# ---------------------------------------------------------------------- where a message ends


@pytest.mark.case(16)
@pytest.mark.parametrize(
    "ending",
    [
        b"\n.\n",
        b"\n.\r\n",
        b"\n.\r",
        b"\r\n.\n",
        b"\r\n.\r",
        b"\r.\r\n",
        b"\r.\r",
        b"\r\r\n.\r\r\n",
        b"\r\n\0.\r\n",
        b"\r\n.\0\r\n",
    ],
)
@pytest.mark.parametrize("command", ["DATA", "BDAT"])
def test_no_ending_but_the_true_one_makes_a_second_message(
    sandbox: Sandbox, client: smtplib.SMTP, command: str, ending: bytes
) -> None:
    mark = unique("inner")
    inner = (
        f"MAIL FROM:<{mark}@sandbox.test>\r\nRCPT TO:<{mark}@example.net>\r\nDATA\r\n"
        f"From: {mark}@sandbox.test\r\n\r\nsmuggled\r\n"
    ).encode()
    outer = FROM + b"Subject: outer\r\n\r\nbody" + ending + inner
    before = count(sandbox)
    begin(client, TO)
    if command == "DATA":
        assert client.docmd("DATA")[0] == 354
        answers = answers_to_the_end(client, outer + b".\r\n")
    else:
        answers = answers_to_the_end(client, b"BDAT %d LAST\r\n" % len(outer) + outer)
    taken = b"\0" not in ending
    assert [one.codes for one in answers] == [TAKEN if taken else (550, "5.7.1"), BYE]
    assert count(sandbox) == before + taken
    assert refusals(sandbox, f"{mark}@sandbox.test") == []
    if taken:
        sent = delivered(sandbox, answers[0].queue_id)
        assert sent.recipients == [TO]
        assert sent.content.endswith(inner), "all of it is the body of the one message"
        assert in_inbox(sandbox, f"Delivered-To: {mark}") is None


@pytest.mark.case(16)
def test_a_bare_line_feed_is_no_way_out_of_the_header(sandbox: Sandbox, client: smtplib.SMTP) -> None:
    """What Postfix and the inbox take for the header is what was judged."""
    message = b"Subject: x\nBcc: secret@example.net\nX: y\r\n" + FROM + b"\n\nFrom: ceo@evil.example\r\n"
    sent = delivered(sandbox, submit(client, message).queue_id)
    header, _, body = sent.content.partition(b"\r\n\r\n")
    assert header.lower().count(b"\r\nfrom:") == 1
    assert b"secret" not in header
    assert b"evil" not in header
    assert b"evil" in body


# ---------------------------------------------------------------------- before TLS


@pytest.mark.case(17)
@pytest.mark.parametrize("port", ["SANDBOX_SMTP_PORT", "SANDBOX_SUBMISSION_PORT"])
@pytest.mark.parametrize(
    "injected", ["NOOP", "EHLO evil", "MAIL FROM:<a@sandbox.test>", "AUTH PLAIN {}", "RSET\r\nQUIT"]
)
def test_what_comes_with_starttls_is_not_heard_after_it(sandbox: Sandbox, port: str, injected: str) -> None:
    key = b64encode(f"\0apikey\0{sandbox['SANDBOX_API_KEY']}".encode()).decode()
    client = plaintext(sandbox, port)
    client.send(f"STARTTLS\r\n{injected.format(key)}\r\n".encode())
    assert answer(client.getreply()).codes == (220, "2.0.0")
    assert client.sock
    context = ssl.create_default_context(cafile=sandbox["SANDBOX_TLS_CA"])
    client.sock = context.wrap_socket(client.sock, server_hostname=sandbox["SANDBOX_SMTP_HOST"])
    client.file = None
    answers = [said(client, "EHLO test"), *answers_to_the_end(client, b"MAIL FROM:<a@sandbox.test>\r\n")]
    assert [one.codes for one in answers] == [(250, ""), (530, "5.7.0"), BYE]
    assert "AUTH PLAIN LOGIN" in answers[0].text


@pytest.mark.case(17)
@pytest.mark.parametrize("port", ["SANDBOX_SMTP_PORT", "SANDBOX_SUBMISSION_PORT"])
def test_a_good_key_without_tls_is_refused_and_forgotten(sandbox: Sandbox, port: str) -> None:
    key = b64encode(f"\0apikey\0{sandbox['SANDBOX_API_KEY']}".encode()).decode()
    with plaintext(sandbox, port) as client:
        assert said(client, f"AUTH PLAIN {key}").codes == (503, "5.5.1")
        assert said(client, "AUTH LOGIN").codes == (503, "5.5.1")
        assert begin(client, TO).codes == (530, "5.7.0")
        client.starttls(context=ssl.create_default_context(cafile=sandbox["SANDBOX_TLS_CA"]))
        client.ehlo()
        assert begin(client, TO).codes == (530, "5.7.0")


def test_the_port_with_tls_says_no_smtp_without_it(sandbox: Sandbox) -> None:
    address = (sandbox["SANDBOX_SMTP_HOST"], int(sandbox["SANDBOX_SMTPS_PORT"]))
    with socket.create_connection(address, timeout=patience_s()) as connection, connection.makefile("rb") as replies:
        connection.sendall(b"EHLO test\r\n")
        with suppress(ConnectionResetError):
            assert b"SMTP" not in replies.read()


# ---------------------------------------------------------------------- PIPELINING, CHUNKING, 8BITMIME, DSN


@pytest.mark.case(18)
def test_pipelined_messages_are_parted_where_they_should_be(sandbox: Sandbox, client: smtplib.SMTP) -> None:
    assert client.has_extn("pipelining")
    sender = f"{unique()}@sandbox.test"
    envelope = f"MAIL FROM:<{sender}>\r\nRCPT TO:<a@example.net>\r\nRCPT TO:<b@example.net>\r\nDATA\r\n".encode()
    client.send(envelope)
    assert [client.getreply()[0] for _ in range(4)] == [250, 250, 250, 354]
    client.send(FROM + b"\r\none\r\n.\r\n" + envelope)
    assert [client.getreply()[0] for _ in range(5)] == [250, 250, 250, 250, 354]
    assert [one.codes for one in answers_to_the_end(client, FROM + b"\r\ntwo\r\n.\r\n")] == [TAKEN, BYE]
    found = rows(
        sandbox,
        "SELECT bytes, recipients FROM opensend_milter.submissions JOIN opensend_milter.raw_chunks USING (email_id)"
        " WHERE sender = %s ORDER BY received_at",
        sender,
    )
    both = ["a@example.net", "b@example.net"]
    assert found == [(FROM + b"\r\none\r\n", both), (FROM + b"\r\ntwo\r\n", both)]


@pytest.mark.case(18)
@pytest.mark.parametrize("recipient", [TO, "suppressed@example.net"])
def test_content_that_does_not_wait_for_354_is_not_taken(
    sandbox: Sandbox, client: smtplib.SMTP, recipient: str
) -> None:
    with nothing_stored(sandbox):
        hasty = f"MAIL FROM:<app@sandbox.test>\r\nRCPT TO:<{recipient}>\r\nDATA\r\n".encode() + MAIL + b".\r\n"
        assert [one.codes for one in answers_to_the_end(client, hasty)] == [
            (250, "2.1.0"),
            (250, "2.1.5"),
            OUT_OF_STEP,
        ]


@pytest.mark.case(18)
@pytest.mark.case(19)
@pytest.mark.parametrize(
    ("pieces", "kept"),
    [
        ([MAIL], MAIL),
        ([FROM, b"\r\n", b"hi\r\n", b""], FROM + b"\r\nhi\r\n"),
        ([FROM + b"\r\none\r", b"\ntwo\r\n"], FROM + b"\r\none\r\ntwo\r\n"),
        ([FROM + b"\r\n.\r\n..\r\n.x\r\n"], FROM + b"\r\n.\r\n..\r\n.x\r\n"),
        ([FROM[:3], FROM[3:] + b"\r\n.", b"\r\nMAIL FROM:<x@y>\r\n"], FROM + b"\r\n.\r\nMAIL FROM:<x@y>\r\n"),
        ([FROM + b"\r\nno line end"], FROM + b"\r\nno line end\r\n"),
        ([FROM + b"\r\nno line end", b""], FROM + b"\r\nno line end\r\n"),
    ],
)
def test_chunks_are_put_together(sandbox: Sandbox, client: smtplib.SMTP, pieces: list[bytes], kept: bytes) -> None:
    assert client.has_extn("chunking")
    begin(client, TO)
    *first, last = pieces
    for piece in first:
        assert answered(client, b"BDAT %d\r\n" % len(piece) + piece).codes == TAKEN
    taken = answered(client, b"BDAT %d LAST\r\n" % len(last) + last)
    assert stored(sandbox, taken.queue_id).raw == kept
    assert delivered(sandbox, taken.queue_id).content.endswith(b"\r\n\r\n" + kept.partition(b"\r\n\r\n")[2])
    assert submit(client, MAIL).codes == TAKEN, "the connection goes on"


@pytest.mark.case(18)
@pytest.mark.parametrize("size", [b"", b"-1", b"x", b"99999999999999999999", b"5 LAST LAST", b"0x5"])
def test_a_chunk_of_no_size_ends_the_connection(sandbox: Sandbox, client: smtplib.SMTP, size: bytes) -> None:
    begin(client, TO)
    with nothing_stored(sandbox):
        assert [one.codes for one in answers_to_the_end(client, b"BDAT %s\r\n" % size + MAIL)] == [(521, "5.5.4")]


@pytest.mark.case(18)
def test_chunks_and_data_do_not_mix(sandbox: Sandbox, client: smtplib.SMTP) -> None:
    with nothing_stored(sandbox):
        begin(client, TO)
        assert answered(client, b"BDAT %d\r\n" % len(MAIL) + MAIL).codes == TAKEN
        assert said(client, "DATA").codes == (503, "5.5.1")
        assert said(client, "RSET").codes == TAKEN
        assert answered(client, b"BDAT %d LAST\r\n" % len(MAIL) + MAIL).codes == (503, "5.5.1")
    assert submit(client, MAIL).codes == TAKEN


@pytest.mark.case(18)
@pytest.mark.parametrize("options", ["", "BODY=8BITMIME", "BODY=7BIT", "SMTPUTF8 BODY=8BITMIME"])
def test_eight_bits_are_kept_whatever_was_said(sandbox: Sandbox, client: smtplib.SMTP, options: str) -> None:
    message = FROM + "Subject: grüß\r\n\r\n".encode() + bytes(range(0x80, 0x100)) + b"\r\n\x01\x1a\x7f\r\n"
    queue_id = submit(client, message, options=options).queue_id
    assert stored(sandbox, queue_id).raw == message
    delivered(sandbox, queue_id).prepended(message)


@pytest.mark.case(18)
@pytest.mark.case(20)
@pytest.mark.parametrize(
    ("at_mail", "at_rcpt", "codes"),
    [
        ("RET=HDRS", "", (501, "5.7.1")),
        ("ENVID=x", "", (501, "5.7.1")),
        ("", "NOTIFY=SUCCESS,FAILURE,DELAY", (501, "5.7.1")),
        ("", "ORCPT=rfc822;to@example.net", (501, "5.7.1")),
        ("BODY=BINARYMIME", "", (555, "5.5.4")),
        ("HOLDFOR=60", "", (555, "5.5.4")),
        ("SIZE=-1", "", (501, "5.5.4")),
        ("", "X=y", (555, "5.5.4")),
    ],
)
def test_what_is_not_offered_is_refused_by_name(
    client: smtplib.SMTP, at_mail: str, at_rcpt: str, codes: tuple[int, str]
) -> None:
    if at_mail:
        assert said(client, f"MAIL FROM:<app@sandbox.test> {at_mail}").codes == codes
    else:
        assert begin(client).code == 250
        assert said(client, f"RCPT TO:<{TO}> {at_rcpt}").codes == codes
        assert said(client, "RSET").codes == TAKEN
    assert submit(client, MAIL).codes == TAKEN, "the same without it is taken"


# ---------------------------------------------------------------------- how long


@pytest.mark.case(19)
@pytest.mark.parametrize("octets", [1_001, 2_048, 2_049, 100_000])
@pytest.mark.parametrize("head", [b"X-Long: ", b"Subject: short\r\n\t", b"\r\n"], ids=["field", "fold", "body"])
def test_a_line_that_smtp_does_not_carry_is_refused(
    sandbox: Sandbox, client: smtplib.SMTP, head: bytes, octets: int
) -> None:
    sender = f"{unique()}@sandbox.test"
    line = head + b"y" * (octets - 2 - len(head.rpartition(b"\n")[2])) + b"\r\n"
    with nothing_stored(sandbox):
        assert submit(client, FROM + line + b"\r\nhi\r\n", sender=sender).codes == BEYOND
    ((rule, *_),) = refusals(sandbox, sender)
    assert rule in {"cannot-carry", "beyond-limits"}
    assert submit(client, MAIL).codes == TAKEN, "the connection goes on"


@pytest.mark.case(19)
@pytest.mark.parametrize("head", [b"X-Long: ", b"Subject: short\r\n\t", b"\r\n"], ids=["field", "fold", "body"])
def test_the_longest_line_that_smtp_carries_arrives(sandbox: Sandbox, client: smtplib.SMTP, head: bytes) -> None:
    line = head + b"y" * (998 - len(head.rpartition(b"\n")[2])) + b"\r\n"
    message = FROM + line + b"\r\nhi\r\n"
    queue_id = submit(client, message).queue_id
    assert stored(sandbox, queue_id).raw == message
    delivered(sandbox, queue_id).prepended(message)


def references(octets: int, line_octets: int = 72) -> bytes:
    """Return a folded field of that many octets."""
    field = b"References:"
    while len(field) < octets - 2:
        field += b"\r\n\t" + (b"<%d@" % len(field)).ljust(min(line_octets - 3, octets - len(field) - 5), b"y")
    return field + b"\r\n"


@pytest.mark.case(12)
@pytest.mark.parametrize("octets", [50_000, 53_900])
def test_a_long_field_is_kept_to_the_last_byte(sandbox: Sandbox, client: smtplib.SMTP, octets: int) -> None:
    message = references(octets) + FROM + references(octets, 900) + b"\r\nhi\r\n"
    queue_id = submit(client, message).queue_id
    assert stored(sandbox, queue_id).raw == message
    delivered(sandbox, queue_id).prepended(message)


@pytest.mark.case(12)
@pytest.mark.parametrize(
    "field",
    [
        references(55_000),
        references(60_000),
        references(70_000),
        references(70_000, 990),
        references(200_000),
        b"X-Short: first\r\n\t" + b"y" * 70_000 + b"\r\n",
        references(20_000) + b"\t" + b"y" * 70_000 + b"\r\n",
        b"X-Long: " + b"y" * 70_000 + b"\r\n",
        b"References:" + b"\r\n " * 23_333 + b"x\r\n",
    ],
    ids=["55 kB", "60 kB", "70 kB", "long lines", "200 kB", "cut early", "cut late", "one line", "white space"],
)
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_a_field_that_postfix_may_have_cut_is_refused(
    sandbox: Sandbox,
    client: smtplib.SMTP,
    field: bytes,
    first: bool,  # noqa: FBT001
) -> None:
    sender = f"{unique()}@sandbox.test"
    head = field + FROM if first else FROM + field
    with nothing_stored(sandbox):
        assert submit(client, head + b"Subject: after\r\n\r\nhi\r\n", sender=sender).codes == BEYOND
    assert refusals(sandbox, sender) == [("beyond-limits", *BEYOND, [TO])]


@pytest.mark.case(12)
@pytest.mark.parametrize(
    "head",
    [b"".join(b"X-%d: y\r\n" % number for number in range(1_001)), references(50_000) * 22],
    ids=["too many", "too much"],
)
def test_a_header_beyond_all_measure_is_refused(sandbox: Sandbox, client: smtplib.SMTP, head: bytes) -> None:
    with nothing_stored(sandbox):
        assert submit(client, FROM + head + b"\r\nhi\r\n").codes == BEYOND
    assert submit(client, MAIL).codes == TAKEN


@pytest.mark.parametrize(
    ("line", "codes"),
    [
        (b"\0", (500, "5.5.2")),
        (b"\xff\xfe", (500, "5.5.2")),
        (b"MAIL FROM:<" + b"a" * 200_000 + b"@sandbox.test>", (501, "5.1.7")),
        (b"MAIL FROM:<a\0@sandbox.test>", (501, "5.1.7")),
        (b"MAIL FROM:<app@sandbox.test", (501, "5.1.7")),
        (b"XCLIENT LOGIN=root", (550, "5.7.0")),
        (b"XFORWARD NAME=x", (550, "5.7.0")),
        (b"VRFY root", (502, "5.5.1")),
        (b"ETRN sandbox.test", (554, "5.7.1")),
        (b"STARTTLS", (554, "5.5.1")),
        (b"BDAT 0 LAST", (503, "5.5.1")),
    ],
    ids=lambda value: value[:12].decode("latin-1") if isinstance(value, bytes) else None,
)
def test_an_odd_command_changes_nothing(client: smtplib.SMTP, line: bytes, codes: tuple[int, str]) -> None:
    assert answered(client, line + b"\r\n").codes == codes
    assert submit(client, MAIL).codes == TAKEN
