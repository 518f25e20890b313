"""The SMTP courier against a server that fails at each step in each way, and against a real one."""

from __future__ import annotations

import dataclasses
import re
import smtplib
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, Envelope, Session

from opensend_milter.adapters.couriers import smtp
from opensend_milter.adapters.couriers.smtp import SmtpCourier
from opensend_milter.adapters.couriers.smtp_session import Hop, Session as OurSession
from opensend_milter.config import Relay
from opensend_milter.core.errors import (
    ConfigError,
    DeliveryDeferred,
    DeliveryRefused,
    DeliveryUncertain,
    PermanentError,
)
from opensend_milter.core.model import Address
from tests.integration.courier_abort import aborted_once
from tests.integration.courier_tls import own_certificate, server_context
from tests.jobs import RAW, parcel
from tests.ports import free_port
from tests.smtp_sink import DROP, EXTENSIONS, STALL, Sink
from tests.waiting import NEVER_S, await_true, scaled_s

HEADER = b"From: a@example.org\r\nDate: x\r\nMessage-ID: <1@x>\r\n"
TEMPORARY, FINAL = "451 4.3.0 later", "550 5.7.1 no"


_couriers: list[SmtpCourier] = []


@pytest.fixture(autouse=True)
def _closed() -> Iterator[None]:
    """Close what `courier_to` made."""
    yield
    while _couriers:
        _couriers.pop().close()


def courier_to(sink: Sink, **relay: Any) -> SmtpCourier:
    settings = dataclasses.replace(Relay(host="127.0.0.1", port=sink.port, timeout_s=NEVER_S), **relay)
    courier = SmtpCourier(settings, hostname="mx.example.com")
    _couriers.append(courier)
    return courier


def patience_with(what: str) -> float:
    """Return a time-out that is sat out only where nothing is answered."""
    return scaled_s(0.5) if what == STALL else NEVER_S


def to(*recipients: str) -> dict[str, tuple[Address, ...]]:
    return {"recipients": tuple(Address(recipient) for recipient in recipients)}


LATER, NONE_NOW = (DeliveryDeferred, False), (DeliveryDeferred, True)
NEVER, UNKNOWN = (DeliveryRefused, None), (DeliveryUncertain, None)
SHUTTING_DOWN = "421 4.3.2 shutting down"


@pytest.mark.case(59)
@pytest.mark.parametrize(
    ("step", "what", "expected"),
    [
        ("connect", SHUTTING_DOWN, NONE_NOW),
        ("connect", "554 5.7.1 not you", NONE_NOW),
        ("connect", DROP, NONE_NOW),
        ("connect", STALL, NONE_NOW),
        ("EHLO", TEMPORARY, NONE_NOW),
        ("EHLO", FINAL, NONE_NOW),
        ("EHLO", DROP, NONE_NOW),
        ("EHLO", STALL, NONE_NOW),
        ("MAIL", TEMPORARY, LATER),
        ("MAIL", FINAL, NEVER),
        ("MAIL", "530 5.7.0 log in first", NONE_NOW),
        ("MAIL", "503 5.5.1 out of order", LATER),
        ("MAIL", SHUTTING_DOWN, NONE_NOW),
        ("MAIL", DROP, LATER),
        ("MAIL", STALL, LATER),
        ("RCPT", TEMPORARY, LATER),
        ("RCPT", FINAL, NEVER),
        ("RCPT", "530 5.7.0 log in first", NONE_NOW),
        ("RCPT", SHUTTING_DOWN, NONE_NOW),
        ("RCPT", DROP, LATER),
        ("RCPT", STALL, LATER),
        ("DATA", TEMPORARY, LATER),
        ("DATA", FINAL, NEVER),
        ("DATA", "250 odd", LATER),
        ("DATA", DROP, LATER),
        ("DATA", STALL, LATER),
        (".", TEMPORARY, LATER),
        (".", SHUTTING_DOWN, NONE_NOW),
        (".", "354 what", UNKNOWN),
        (".", "garbage", UNKNOWN),
        (".", "250-" + "x" * 9_000, UNKNOWN),
    ],
)
def test_what_each_step_means(step: str, what: str, expected: tuple[type[Exception], bool | None]) -> None:
    """Before the final dot nothing can be out; after it only an answer is one. The next message goes."""
    outcome, outage = expected
    with Sink({step: what}) as sink:
        courier = courier_to(sink, timeout_s=patience_with(what))
        with pytest.raises(outcome) as raised:
            courier.send(parcel())
        assert type(raised.value) is outcome
        assert getattr(raised.value, "outage", None) is outage
        sink.answers.clear()
        before = len(sink.delivered)
        assert courier.send(parcel()).reply == "250 2.0.0 taken as 4711"
        assert len(sink.delivered) == before + 1
        courier.close()


def test_nobody_listens() -> None:
    """Temporary, and the text says where."""
    with Sink() as sink:
        courier = courier_to(sink)
    with pytest.raises(DeliveryDeferred, match=r"127\.0\.0\.1:\d+: ConnectionRefusedError") as raised:
        courier.send(parcel())
    assert raised.value.outage
    with pytest.raises(DeliveryDeferred, match=r"nobody\.invalid:25: gaierror") as raised:
        SmtpCourier(Relay(host="nobody.invalid"), hostname="h").send(parcel())
    assert raised.value.outage


def test_a_connection_cut_while_it_is_made_waits_for_no_greeting() -> None:
    with Sink({"connect": STALL}) as sink:
        session = OurSession(Relay(timeout_s=NEVER_S), Hop("127.0.0.1", sink.port), hostname="h", context=None)
        session.cut()
        with pytest.raises(smtplib.SMTPServerDisconnected):
            session.open()
        session.close()


@pytest.mark.case(59)
def test_abort_ends_what_is_in_hand_with_the_truth() -> None:
    """Before the dot deferred, after it uncertain; no other relay is asked then."""
    for step, outcome in (("connect", DeliveryDeferred), ("RCPT", DeliveryDeferred), (".", DeliveryUncertain)):
        with Sink({step: STALL}) as sink, Sink() as other:
            courier = courier_to(sink, fallbacks=f"127.0.0.1:{other.port}")
            with aborted_once(partial(await_true, sink.held.is_set, step), courier), pytest.raises(outcome):
                courier.send(parcel())
            assert other.connections == 0
    courier.abort()


@pytest.mark.case(16)
@pytest.mark.parametrize(
    "ending", [b"\n.\n", b"\r.\r\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n\x00.\r\n", b"\r\n.\r\n", b"\r\n.\r"]
)
def test_nothing_is_smuggled(ending: bytes) -> None:
    """Whatever a server takes for the end of a message: on the wire there is one, and no bare CR or LF."""
    smuggled = b"MAIL FROM:<evil@example.org>\r\nRCPT TO:<x@example.net>\r\nDATA\r\nhi\r\n"
    with Sink() as sink:
        courier_to(sink).send(parcel(raw=HEADER + b"\r\nhello" + ending + smuggled))
    wire = sink.delivered[0].wire
    assert not re.search(rb"(?<!\r)\n|\r(?!\n)", wire)
    assert b"\r\n.\r\n" not in wire
    assert sink.verbs() == ["EHLO", "MAIL", "RCPT", "DATA"]


def test_odd_addresses_are_said_as_they_are() -> None:
    """A library that parses them again could be talked into another recipient."""
    odd = (
        '"a b"@example.net',
        "a%b@example.net",
        "user@[192.0.2.1]",
        "alice@example.org)bob@example.com",
        '">"@x.example',
    )
    with Sink() as sink:
        courier_to(sink).send(parcel(**to(*odd)))
    said = [command for command in sink.commands if command.startswith("RCPT")]
    assert said == [f"RCPT TO:<{address}>" for address in odd]


def test_dots_that_smtp_has_only_in_quotes_are_said_in_quotes() -> None:
    with Sink() as sink:
        sent = courier_to(sink).send(parcel(**to(".a@example.net", '"b."@example.net', "c..c@example.net")))
    assert sent.refused == ()
    assert sink.delivered[0].recipients == ['".a"@example.net', '"b."@example.net', '"c..c"@example.net']


def test_an_address_with_a_line_end_is_not_said() -> None:
    """It would be a command of its own."""
    with Sink() as sink:
        sent = courier_to(sink).send(parcel(**to("to@example.net", "x@example.net>\r\nRSET")))
        with pytest.raises(DeliveryRefused):
            courier_to(sink).send(parcel(**to("x@example.net>\r\nRCPT TO:<y@example.net")))
    assert [address for address, _ in sent.refused] == ["x@example.net>\r\nRSET"]
    assert "RSET" not in sink.verbs()
    assert sink.delivered[0].recipients == ["to@example.net"]


def test_recipients_refused_beside_others() -> None:
    """Those who have it do not get it again; for whom it was too early, the caller tries again."""
    answers = {"gone@example.net": "550 5.1.1 unknown", "full@example.net": "452 4.2.2 full"}
    with Sink(answers) as sink:
        sent = courier_to(sink).send(parcel(**to("to@example.net", "gone@example.net", "full@example.net")))
    assert sent.refused == (("gone@example.net", "550 5.1.1 unknown"),)
    assert sent.deferred == (("full@example.net", "452 4.2.2 full"),)
    assert sink.delivered[0].recipients == ["to@example.net"]


def test_all_recipients_refused() -> None:
    """Nobody has it: one that may work later is reason enough to come again with all."""
    answers = {"gone@example.net": "550 5.1.1 unknown", "full@example.net": "452 4.2.2 full"}
    with Sink(answers) as sink:
        courier = courier_to(sink)
        with pytest.raises(DeliveryRefused, match=r"550 5\.1\.1 unknown"):
            courier.send(parcel(**to("gone@example.net")))
        with pytest.raises(DeliveryDeferred, match=r"452 4\.2\.2 full"):
            courier.send(parcel(**to("gone@example.net", "full@example.net")))
    assert "DATA" not in sink.verbs()


def test_a_relay_that_leaves_between_recipients() -> None:
    """Nobody has it yet, so all get it later."""
    with Sink({"last@example.net": "421 4.3.2 shutting down"}) as sink:
        with pytest.raises(DeliveryDeferred, match="421"):
            courier_to(sink).send(parcel(**to("to@example.net", "last@example.net")))
        assert "DATA" not in sink.verbs()


def test_size_and_8bitmime_are_said_where_offered() -> None:
    """SIZE is that of the message as it leaves."""
    with Sink() as sink:
        eight_bit = parcel(raw=HEADER + b"\r\n\xe9\r\n")
        courier_to(sink).send(parcel())
        courier_to(sink).send(eight_bit)
        assert sink.delivered[0].mail.endswith(f"> SIZE={len(sink.delivered[0].wire)}")
        assert sink.delivered[1].mail.endswith(f"> SIZE={len(eight_bit.content)} BODY=8BITMIME")
        sink.extensions = ()
        courier_to(sink).send(parcel())
        assert sink.delivered[2].mail == "MAIL FROM:<app@example.org>"


def test_a_relay_without_8bitmime_gets_no_8_bits() -> None:
    """Not the sender's fault, so not final; the text tells the operator."""
    with Sink(extensions=("SIZE 100",)) as sink:
        with pytest.raises(DeliveryDeferred, match=r"relay\.eight_bit"):
            courier_to(sink).send(parcel(raw=HEADER + b"\r\n\xe9\r\n"))
        assert "MAIL" not in sink.verbs()


def test_addresses_beyond_ascii() -> None:
    """With SMTPUTF8 as they are; without it the domain has another spelling, the local part has none."""
    cyrillic, idn = "\u043f\u043e\u0447\u0442\u0430@example.net", "to@b\u00fccher.example"
    with Sink() as sink:
        courier = courier_to(sink)
        courier.send(parcel(**to(cyrillic, idn)))
        courier.send(parcel())
        assert sink.delivered[0].recipients == [cyrillic, idn]
        assert " SMTPUTF8" in sink.delivered[0].mail
        assert " SMTPUTF8" not in sink.delivered[1].mail
        sink.extensions = ("8BITMIME",)
        courier = courier_to(sink)
        assert [who for who, _ in courier.send(parcel(**to(cyrillic, idn))).refused] == [cyrillic]
        assert sink.delivered[2].recipients == ["to@xn--bcher-kva.example"]
        for unsendable in (parcel(**to(cyrillic)), parcel(from_address=Address(cyrillic))):
            with pytest.raises(DeliveryRefused, match="SMTPUTF8"):
                courier.send(unsendable)
        courier.send(parcel())


def test_one_connection_serves_many_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """Up to a number, and only while it is in use."""
    monkeypatch.setattr(smtp, "MESSAGES_PER_CONNECTION", 3)
    with Sink() as sink:
        courier = courier_to(sink)
        for _ in range(5):
            courier.send(parcel())
        assert sink.connections == 2
        sink.answers["RCPT"] = FINAL
        with pytest.raises(DeliveryRefused):
            courier.send(parcel())
        del sink.answers["RCPT"]
        assert sink.connections == 2, "a refusal in good order keeps the connection"
        courier.rest()
        assert sink.verbs().count("QUIT") == 1
        monkeypatch.setattr(smtp, "IDLE_S", 0.0)
        courier.send(parcel())
        assert sink.connections == 3
        courier.rest()
        courier.rest()
        assert sink.verbs().count("QUIT") == 3


def test_a_connection_closed_while_idle_is_no_failure() -> None:
    """Servers close what is not used."""
    with Sink({"RSET": DROP}) as sink:
        courier = courier_to(sink)
        courier.send(parcel())
        courier.send(parcel())
        assert sink.connections == 2
        sink.answers["RSET"] = "421 4.4.2 idle for too long"
        courier.send(parcel())
        assert sink.connections == 3
        assert len(sink.delivered) == 3


def test_the_final_dot_does_not_wait_for_an_acknowledgement() -> None:
    """Nagle and delayed ACK together cost 40 ms a message."""
    with Sink() as sink:
        session = OurSession(Relay(timeout_s=NEVER_S), Hop("127.0.0.1", sink.port), hostname="h", context=None)
        session.open()
        assert session._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        session.close()


@pytest.mark.parametrize("how", [DROP, FINAL])
def test_a_bad_goodbye_changes_nothing(how: str) -> None:
    """The answer to the dot has settled it."""
    with Sink({"QUIT": how}) as sink:
        courier = courier_to(sink)
        assert courier.send(parcel()).reply
        courier.close()


def test_a_loop_is_refused_before_anything_is_opened() -> None:
    """More than fifty hops."""
    with Sink() as sink:
        with pytest.raises(PermanentError, match=r"5\.4\.6"):
            courier_to(sink).send(parcel(raw=b"Received: x\r\n" * 51 + RAW))
        assert sink.connections == 0


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate of 127.0.0.1, with its key in the same file."""
    return own_certificate(tmp_path_factory.mktemp("tls"))


def tls_sink(authority: Path, answers: dict[str, str] | None = None) -> Sink:
    return Sink(answers, extensions=(*EXTENSIONS, "STARTTLS", "AUTH PLAIN LOGIN"), context=server_context(authority))


def test_starttls_and_login(authority: Path, tmp_path: Path) -> None:
    """Verified, and what was offered before TLS is asked again."""
    secret = tmp_path / "password"
    secret.write_text("hunter2\n")
    with tls_sink(authority) as sink:
        courier_to(sink, tls="starttls", ca_file=authority, username="me", password_file=secret).send(parcel())
        assert sink.verbs() == ["EHLO", "STARTTLS", "EHLO", "AUTH", "MAIL", "RCPT", "DATA"]
        assert sink.commands[3] == "AUTH PLAIN AG1lAGh1bnRlcjI="


def test_a_certificate_nobody_vouches_for(authority: Path) -> None:
    """Nothing is sent in the clear instead."""
    with tls_sink(authority) as sink:
        with pytest.raises(DeliveryDeferred, match="CERTIFICATE_VERIFY_FAILED") as raised:
            courier_to(sink, tls="starttls").send(parcel())
        assert raised.value.outage
        assert "MAIL" not in sink.verbs()


def test_a_relay_without_starttls_is_not_used() -> None:
    """Somebody may have taken the offer away."""
    with Sink() as sink:
        with pytest.raises(DeliveryDeferred, match="STARTTLS") as raised:
            courier_to(sink, tls="starttls").send(parcel())
        assert raised.value.outage
        assert "MAIL" not in sink.verbs()


@pytest.mark.parametrize("answer", ["535 5.7.8 wrong", "454 4.7.0 later", "534 5.7.9 weak", DROP])
def test_a_refused_login_is_our_fault(authority: Path, tmp_path: Path, answer: str) -> None:
    """Never the message's: it waits until the operator has mended it. The password is in no text."""
    secret = tmp_path / "password"
    secret.write_text("hunter2")
    with tls_sink(authority, {"AUTH": answer}) as sink:
        with pytest.raises(DeliveryDeferred) as raised:
            courier_to(sink, tls="starttls", ca_file=authority, username="me", password_file=secret).send(parcel())
        assert raised.value.outage
        assert "hunter2" not in str(raised.value)
        assert "AG1lAGh1bnRlcjI" not in str(raised.value)


@pytest.mark.parametrize(
    ("step", "what"),
    [
        ("connect", SHUTTING_DOWN),
        ("connect", DROP),
        ("connect", STALL),
        ("EHLO", FINAL),
        ("STARTTLS", TEMPORARY),
        ("STARTTLS", DROP),
        ("AUTH", "535 5.7.8 wrong"),
        ("AUTH", DROP),
    ],
)
def test_another_relay_takes_what_the_first_cannot(authority: Path, tmp_path: Path, step: str, what: str) -> None:
    """Whichever step of the opening failed; no message was begun."""
    secret = tmp_path / "password"
    secret.write_text("hunter2")
    with tls_sink(authority, {step: what}) as first, tls_sink(authority) as second:
        courier = courier_to(
            first,
            tls="starttls",
            ca_file=authority,
            username="me",
            password_file=secret,
            fallbacks=f"127.0.0.1:{second.port}",
            timeout_s=patience_with(what),
        )
        courier.send(parcel())
        courier.send(parcel())
        assert len(second.delivered) == 2
        assert (first.connections, second.connections) == (1, 1), "the one that works is remembered"


@pytest.mark.case(59)
@pytest.mark.parametrize("step", ["MAIL", "RCPT", "DATA", "."])
@pytest.mark.parametrize("what", [TEMPORARY, SHUTTING_DOWN, DROP, STALL])
def test_no_other_relay_is_asked_once_a_message_was_begun(step: str, what: str) -> None:
    """It would be a second copy, or a decision that is the caller's."""
    with Sink({step: what}) as first, Sink() as second:
        with pytest.raises((DeliveryDeferred, DeliveryUncertain)):
            courier_to(first, fallbacks=f"127.0.0.1:{second.port}", timeout_s=patience_with(what)).send(parcel())
        assert second.connections == 0


def test_the_first_relay_is_tried_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """And left alone for as long again where it is still out."""
    with Sink({"connect": SHUTTING_DOWN}) as first, Sink() as second, Sink() as third:
        courier = courier_to(first, fallbacks=f"127.0.0.1:{second.port} 127.0.0.1:{third.port}")
        courier.send(parcel())
        second.answers["connect"] = second.answers["RSET"] = DROP
        courier.send(parcel())
        assert (first.connections, second.connections, third.connections) == (1, 2, 1), "those behind it come first"
        monkeypatch.setattr(courier, "_first_again_at", 0.0)
        courier.send(parcel())
        courier.send(parcel())
        assert (first.connections, third.connections) == (2, 2), "once in a while"
        monkeypatch.setattr(courier, "_first_again_at", 0.0)
        del first.answers["connect"]
        courier.send(parcel())
        courier.send(parcel())
        assert first.connections == 3
        assert [len(sink.delivered) for sink in (first, second, third)] == [2, 1, 3]


def test_all_relays_are_out() -> None:
    """One text names them all."""
    with Sink({"connect": SHUTTING_DOWN}) as first, Sink({"EHLO": DROP}) as second:
        courier = courier_to(first, fallbacks=f"127.0.0.1:{second.port}")
        with pytest.raises(DeliveryDeferred, match=f":{first.port}: 421 .*; 127.0.0.1:{second.port}: ") as raised:
            courier.send(parcel())
        assert raised.value.outage
        second.answers.clear()
        courier.send(parcel())


def test_wrong_files_stop_the_program_at_start(tmp_path: Path) -> None:
    """With the name of the key."""
    with pytest.raises(ConfigError, match=r"relay\.password_file"):
        SmtpCourier(Relay(username="me", password_file=tmp_path / "none"), hostname="h")
    with pytest.raises(ConfigError, match=r"relay\.ca_file"):
        SmtpCourier(Relay(tls="tls", ca_file=tmp_path / "none"), hostname="h")


class Inbox:
    """Keeps what a real server hands on."""

    def __init__(self) -> None:
        self.contents: list[bytes] = []

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802
        """Take it."""
        assert server
        assert session
        assert isinstance(envelope.content, bytes)
        self.contents.append(envelope.content)
        return "250 2.0.0 ok"


@pytest.mark.case(19)
@pytest.mark.parametrize("body", [b".\r\n..\r\n", b"8 bits \xe9\r\n", b"x" * 900 + b"\r\n", b"no end"])
def test_a_real_server_hands_on_the_same_bytes(body: bytes) -> None:
    """Framing is right for more than our own sink, over implicit TLS too."""
    inbox = Inbox()
    controller = Controller(inbox, hostname="127.0.0.1", port=free_port(), decode_data=False)
    controller.start()
    raw = HEADER + b"\r\n" + body
    courier = SmtpCourier(Relay(port=controller.port, timeout_s=NEVER_S), hostname="mx.example.com")
    courier.send(parcel(raw=raw))
    courier.close()
    controller.stop()
    assert inbox.contents[0].split(b"\r\n", 3)[3] == (raw if body.endswith(b"\n") else raw + b"\r\n")


def test_implicit_tls(authority: Path) -> None:
    """TLS from the first byte, verified too."""
    inbox = Inbox()
    controller = Controller(inbox, hostname="127.0.0.1", port=free_port(), ssl_context=server_context(authority))
    controller.start()
    relay = Relay(port=controller.port, tls="tls", ca_file=authority, timeout_s=NEVER_S)
    courier = SmtpCourier(relay, hostname="mx.example.com")
    courier.send(parcel())
    courier.close()
    controller.stop()
    assert len(inbox.contents) == 1
