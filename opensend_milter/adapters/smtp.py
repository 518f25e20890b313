"""Courier over smtplib: one connection, used again; the one question that matters is when the final dot was written."""

from __future__ import annotations

import os
import re
import smtplib
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from opensend_milter.config import Relay
from opensend_milter.core.address import domain_of, normal_domain
from opensend_milter.core.errors import ConfigError, DeliveryDeferred, DeliveryRefused, DeliveryUncertain
from opensend_milter.core.model import Address, Carries, Parcel, Sent

MESSAGES_PER_CONNECTION = 100
IDLE_S = 30.0
_QUIT_S = 5.0
_PIECE_BYTES = 65_536
_AFTER_LINE_END = re.compile(rb"^\.", re.MULTILINE)
_UNSPEAKABLE = re.compile(r"[\x00-\x1f\x7f]")
_CLOSING = 421
_OURS_TO_MEND = frozenset({421, 503, 530, 534, 535, 538})
"""Answers to MAIL or RCPT about this connection and its login: no fault of the message."""
_ADDRESS_NOT_SPEAKABLE = "5.6.7 the next hop does not offer SMTPUTF8"


@dataclass(frozen=True, slots=True)
class _Answer:
    code: int
    text: str

    @property
    def is_yes(self) -> bool:
        return 200 <= self.code < 300  # noqa: PLR2004  # RFC 5321, 4.2.1

    @property
    def is_never(self) -> bool:
        return 500 <= self.code < 600 and self.code not in _OURS_TO_MEND  # noqa: PLR2004

    def __str__(self) -> str:
        return f"{self.code} {self.text}"


class SmtpCourier:
    """For one thread. Nothing is opened before the first message."""

    def __init__(self, relay: Relay, *, hostname: str) -> None:
        """`hostname` is how we greet."""
        self._relay = relay
        self._hostname = hostname
        self._smtp: smtplib.SMTP | None = None
        self._sent = 0
        self._used_at = 0.0
        self._context = None if relay.tls == "none" else _context(relay)
        if relay.username:
            _password(relay)

    @property
    def carries(self) -> Carries:
        """Any line that SMTP allows."""
        return Carries(eight_bit=self._relay.eight_bit)

    def send(self, parcel: Parcel) -> Sent:
        """Hand one message over."""
        try:
            with self._errors():
                smtp = self._connected()
                refused = self._envelope(smtp, parcel)
                self._data(smtp, parcel.content)
            answer = self._final_answer(smtp)
        except DeliveryRefused:
            raise  # an answer in good order: the next message begins with RSET
        except BaseException:
            self._drop()
            raise
        self._sent += 1
        self._used_at = time.monotonic()
        if answer.code == _CLOSING:
            self._drop()
        if answer.is_yes:
            return Sent(courier="smtp", reply=str(answer), refused=tuple(refused))
        raise _no("the message", answer)

    def rest(self) -> None:
        """Close a connection that is idle."""
        if self._smtp and time.monotonic() - self._used_at > IDLE_S:
            self.close()

    def abort(self) -> None:
        """Cut the connection under the thread that is sending."""
        connection = self._smtp.sock if self._smtp else None
        if connection is None:
            return
        # By a second handle: an SSLSocket takes itself apart on shutdown while the other thread reads from it.
        with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as cut:
            cut.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Take leave."""
        if self._smtp:
            # What was sent is settled by the answer to its dot; how the goodbye goes changes nothing.
            with suppress(OSError, smtplib.SMTPException):
                _socket(self._smtp).settimeout(_QUIT_S)
                self._smtp.quit()
        self._drop()

    def _drop(self) -> None:
        if self._smtp:
            self._smtp.close()
        self._smtp = None

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Map what may happen before the final dot: the next hop does not have the message."""
        try:
            yield
        except (OSError, smtplib.SMTPException) as error:
            where = f"{self._relay.host}:{self._relay.port}"
            raise DeliveryDeferred(f"{where}: {type(error).__name__}: {error}") from error

    def _connected(self) -> smtplib.SMTP:
        """Return a connection on which a transaction may begin."""
        idle_s = time.monotonic() - self._used_at
        if self._smtp and (self._sent >= MESSAGES_PER_CONNECTION or idle_s > IDLE_S):
            self.close()
        if self._smtp:
            with suppress(OSError, smtplib.SMTPException):
                if _command(self._smtp, "RSET").is_yes:
                    return self._smtp
            self._drop()
        self._smtp = self._open()
        self._sent = 0
        self._used_at = time.monotonic()
        return self._smtp

    def _open(self) -> smtplib.SMTP:
        relay = self._relay
        if relay.tls == "tls":
            smtp: smtplib.SMTP = smtplib.SMTP_SSL(
                relay.host, relay.port, self._hostname, timeout=relay.timeout_s, context=self._context
            )
        else:
            smtp = smtplib.SMTP(relay.host, relay.port, self._hostname, timeout=relay.timeout_s)
        try:
            # The final dot goes by itself; with Nagle's algorithm it waits 40 ms for the other side's delayed ACK.
            _socket(smtp).setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._greet(smtp)
            if relay.tls == "starttls":
                smtp.starttls(context=self._context)
                self._greet(smtp)
            if relay.username:
                smtp.login(relay.username, _password(relay))
        except BaseException:
            smtp.close()
            raise
        return smtp

    def _greet(self, smtp: smtplib.SMTP) -> None:
        answer = _Answer(*_decoded(smtp.ehlo()))
        if not answer.is_yes:
            raise DeliveryDeferred(f"EHLO: {answer}")

    def _envelope(self, smtp: smtplib.SMTP, parcel: Parcel) -> list[tuple[Address, str]]:
        """Name sender and recipients; return those refused while others were taken."""
        utf8 = smtp.has_extn("smtputf8")
        sender = _spelled(parcel.sender, utf8=utf8)
        recipients = {recipient: _spelled(recipient, utf8=utf8) for recipient in parcel.recipients}
        if sender is None:
            raise DeliveryRefused(_ADDRESS_NOT_SPEAKABLE)
        needs_utf8 = not all((spelled or "").isascii() for spelled in (sender, *recipients.values()))
        smtp.command_encoding = "utf-8" if needs_utf8 else "ascii"
        answer = _command(smtp, f"MAIL FROM:<{sender}>" + self._parameters(smtp, parcel.content, needs_utf8=needs_utf8))
        if not answer.is_yes:
            raise _no("MAIL FROM", answer)
        refused: list[tuple[Address, str]] = []
        final = True
        for recipient, spelled in recipients.items():
            answer = _command(smtp, f"RCPT TO:<{spelled}>") if spelled else _Answer(553, _ADDRESS_NOT_SPEAKABLE)
            if answer.code == _CLOSING:
                raise DeliveryDeferred(f"RCPT TO: {answer}")
            if not answer.is_yes:
                refused.append((recipient, str(answer)))
                final = final and answer.is_never
        if len(refused) == len(recipients):
            reason = f"all recipients refused: {refused[0][1]}" if refused else "no recipients"
            raise DeliveryRefused(reason) if final else DeliveryDeferred(reason)
        return refused

    def _parameters(self, smtp: smtplib.SMTP, message: bytes, *, needs_utf8: bool) -> str:
        found = []
        if smtp.has_extn("size"):
            found.append(f" SIZE={len(message)}")
        if not message.isascii():
            if not smtp.has_extn("8bitmime"):
                raise DeliveryDeferred(
                    f"{self._relay.host} does not offer 8BITMIME and the message is 8-bit: set relay.eight_bit: false"
                )
            found.append(" BODY=8BITMIME")
        if needs_utf8:
            found.append(" SMTPUTF8")
        return "".join(found)

    def _data(self, smtp: smtplib.SMTP, message: bytes) -> None:
        """Send all but the final dot: without it the next hop can have nothing (RFC 5321, 4.1.1.4)."""
        answer = _command(smtp, "DATA")
        if answer.code != 354:  # noqa: PLR2004
            raise _no("DATA", answer)
        stuffed = _AFTER_LINE_END.sub(b"..", message)
        if not stuffed.endswith(b"\r\n"):
            stuffed += b"\r\n"
        view = memoryview(stuffed)
        for at in range(0, len(view), _PIECE_BYTES):
            # In pieces, because the socket's timeout is for the whole of one sendall.
            _socket(smtp).sendall(view[at : at + _PIECE_BYTES])

    def _final_answer(self, smtp: smtplib.SMTP) -> _Answer:
        try:
            _socket(smtp).sendall(b".\r\n")
            answer = _Answer(*_decoded(smtp.getreply()))
        except Exception as error:
            raise DeliveryUncertain(f"after the final dot: {type(error).__name__}: {error}") from error
        if not (answer.is_yes or 400 <= answer.code < 600):  # noqa: PLR2004
            raise DeliveryUncertain(f"after the final dot: {answer}")
        return answer


def _command(smtp: smtplib.SMTP, line: str) -> _Answer:
    return _Answer(*_decoded(smtp.docmd(line)))


def _decoded(reply: tuple[int, bytes]) -> tuple[int, str]:
    return reply[0], " ".join(reply[1].decode("utf-8", "replace").split())


def _socket(smtp: smtplib.SMTP) -> socket.socket:
    if smtp.sock is None:
        raise smtplib.SMTPServerDisconnected("not connected")
    return smtp.sock


def _no(what: str, answer: _Answer) -> DeliveryDeferred | DeliveryRefused:
    text = f"{what}: {answer}"
    return DeliveryRefused(text) if answer.is_never else DeliveryDeferred(text)


def _spelled(address: Address, *, utf8: bool) -> str | None:
    """Return the address as it can be said to this relay, or None where it cannot."""
    if _UNSPEAKABLE.search(address):
        return None
    if utf8 or address.isascii():
        return address
    local, domain = address.rpartition("@")[0], normal_domain(domain_of(address))
    return f"{local}@{domain}" if local.isascii() and domain else None


def _context(relay: Relay) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=relay.ca_file)
    except OSError as error:
        raise ConfigError(f"relay.ca_file: {relay.ca_file}: {error.strerror or error}") from error


def _password(relay: Relay) -> str:
    if relay.password_file is None:
        raise ConfigError("relay.password_file: expected a file, because relay.username is set")
    try:
        return relay.password_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"relay.password_file: {relay.password_file}: {error.strerror}") from error
