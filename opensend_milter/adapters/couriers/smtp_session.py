"""One SMTP session over smtplib: open it, greet, log in, say a command and read its answer."""

from __future__ import annotations

import re
import smtplib
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass

from opensend_milter.config import Relay
from opensend_milter.core.address import domain_of, normal_domain, quoted
from opensend_milter.core.errors import ConfigError, DeliveryDeferred
from opensend_milter.core.model import Address

CLOSING = 421
_OUT_OF_ORDER = 503
_NOT_LOGGED_IN = frozenset({530, 534, 535, 538})
_OURS_TO_MEND = _NOT_LOGGED_IN | {CLOSING, _OUT_OF_ORDER}
"""Answers about this connection and its login: no fault of the message."""
_READY = 220
_QUIT_S = 5.0
_UNSPEAKABLE = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, slots=True)
class Answer:
    """What the relay said."""

    code: int
    text: str

    @property
    def is_yes(self) -> bool:
        return 200 <= self.code < 300  # noqa: PLR2004  # RFC 5321, 4.2.1

    @property
    def is_no(self) -> bool:
        return 400 <= self.code < 600  # noqa: PLR2004

    @property
    def is_never(self) -> bool:
        return 500 <= self.code < 600 and self.code not in _OURS_TO_MEND  # noqa: PLR2004

    @property
    def is_for_all(self) -> bool:
        """Any other message would hear the same now."""
        return self.code in _NOT_LOGGED_IN | {CLOSING}

    def __str__(self) -> str:
        return f"{self.code} {self.text}"


@dataclass(frozen=True, slots=True)
class Hop:
    """Where a relay listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


class Session:
    """A connection to one relay, with what it offers. Raises OSError and SMTPException where it breaks."""

    def __init__(self, relay: Relay, hop: Hop, *, hostname: str, context: ssl.SSLContext | None) -> None:
        """Open nothing yet; `hostname` is how we greet."""
        self._relay = relay
        self._hop = hop
        self._context = context
        self._smtp: smtplib.SMTP = (
            smtplib.SMTP_SSL(local_hostname=hostname, timeout=relay.timeout_s, context=context)
            if relay.tls == "tls"
            else smtplib.SMTP(local_hostname=hostname, timeout=relay.timeout_s)
        )
        self._is_cut = False
        # Otherwise only its constructor says for whom the certificate must be, and that connects at once.
        self._smtp._host = hop.host  # type: ignore[attr-defined]  # noqa: SLF001

    def open(self) -> None:
        """Connect, greet, start TLS and log in."""
        # Its own connect() waits for the greeting before anybody could cut the connection that it has just made.
        self._smtp.sock = self._smtp._get_socket(self._hop.host, self._hop.port, self._relay.timeout_s)  # type: ignore[attr-defined]  # noqa: SLF001
        if self._is_cut:
            raise smtplib.SMTPServerDisconnected("told to stop")
        greeting = self.answer()
        if greeting.code != _READY:
            raise DeliveryDeferred(f"{self._hop}: {greeting}")
        # The final dot goes by itself; with Nagle's algorithm it waits 40 ms for the other side's delayed ACK.
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._greet()
        if self._relay.tls == "starttls":
            self._smtp.starttls(context=self._context)
            self._greet()
        if self._relay.username:
            self._smtp.login(self._relay.username, password_of(self._relay))

    def _greet(self) -> None:
        answer = Answer(*_decoded(self._smtp.ehlo()))
        if not answer.is_yes:
            raise DeliveryDeferred(f"{self._hop}: EHLO: {answer}")

    def offers(self, extension: str) -> bool:
        return self._smtp.has_extn(extension)

    def say(self, command: str) -> Answer:
        """Send one line, in UTF-8 where SMTPUTF8 allows it, and return the answer."""
        self._smtp.command_encoding = "ascii" if command.isascii() else "utf-8"
        return Answer(*_decoded(self._smtp.docmd(command)))

    def write(self, octets: bytes | memoryview) -> None:
        self._socket.sendall(octets)

    def answer(self) -> Answer:
        return Answer(*_decoded(self._smtp.getreply()))

    @property
    def _socket(self) -> socket.socket:
        if self._smtp.sock is None:
            raise smtplib.SMTPServerDisconnected("not connected")
        return self._smtp.sock

    def cut(self) -> None:
        """End it under the thread that uses it."""
        self._is_cut = True
        connection = self._smtp.sock
        if connection is None:
            return
        # By a second handle: an SSLSocket takes itself apart on shutdown while the other thread reads from it.
        with suppress(OSError), socket.fromfd(connection.fileno(), connection.family, connection.type) as second:
            second.shutdown(socket.SHUT_RDWR)

    def quit(self) -> None:
        """Take leave; how that goes changes nothing."""
        with suppress(OSError, smtplib.SMTPException):
            self._socket.settimeout(_QUIT_S)
            self._smtp.quit()

    def close(self) -> None:
        self._smtp.close()


def hops(relay: Relay) -> tuple[Hop, ...]:
    """Return the relay and its fallbacks, in order."""
    found = [Hop(relay.host, relay.port)]
    for place in relay.fallbacks.split():
        host, _, port = place.rpartition(":")
        found.append(Hop(host, int(port)))
    return tuple(found)


def spelled(address: Address, *, utf8: bool) -> str | None:
    """Return the address as it can be said, or None where it cannot: a line end in it would begin a command."""
    if _UNSPEAKABLE.search(address):
        return None
    if utf8 or address.isascii():
        return quoted(address)
    local, domain = quoted(address).rpartition("@")[0], normal_domain(domain_of(address))
    return f"{local}@{domain}" if local.isascii() and domain else None


def context_of(relay: Relay) -> ssl.SSLContext | None:
    """Trust what the configuration says; raise ConfigError where that cannot be read."""
    if relay.tls == "none":
        return None
    try:
        return ssl.create_default_context(cafile=relay.ca_file)
    except OSError as error:
        raise ConfigError(f"relay.ca_file: {relay.ca_file}: {error.strerror or error}") from error


def password_of(relay: Relay) -> str:
    """Read the password; raise ConfigError where there is none."""
    if relay.password_file is None:
        raise ConfigError("relay.password_file: expected a file, because relay.username is set")
    try:
        return relay.password_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"relay.password_file: {relay.password_file}: {error.strerror}") from error


def _decoded(reply: tuple[int, bytes]) -> tuple[int, str]:
    return reply[0], " ".join(reply[1].decode("utf-8", "replace").split())
