"""An SMTP client that costs little: STARTTLS, AUTH, and an envelope in one packet."""

from __future__ import annotations

import re
import socket
import ssl
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

TIMEOUT_S = 120.0
JOINED_BELOW_BYTES = 65_536
"""A small message is one packet; a large one is not copied."""
_LAST_LINE = re.compile(rb"(?:^|\n)(\d{3}) ([^\n]*)\n")


class Refused(Exception):  # noqa: N818  # mail's own word
    """An answer other than the one expected."""

    def __init__(self, stage: str, reply: str) -> None:
        # Codes only: the texts name addresses and queue ids.
        codes = re.match(r"\d{3}(?: \d\.\d+\.\d+)?", reply)
        super().__init__(f"{stage}: {codes[0] if codes else 'no reply'}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """Where to send, and as whom."""

    port: int
    tls: ssl.SSLContext | None
    key: str
    host: str = "127.0.0.1"


@dataclass(slots=True)
class SmtpClient:
    """One connection."""

    server: Server
    _socket: socket.socket | None = None
    _received: bytes = field(default=b"")

    def open(self) -> float:
        """Connect, and log in where there is TLS; return how many seconds AUTH took."""
        self._received = b""
        self._socket = socket.create_connection((self.server.host, self.server.port), TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._expect("greeting", "220")
        self._ask("ehlo", b"EHLO bench.test", "250")
        if not self.server.tls:
            return 0.0
        self._ask("starttls", b"STARTTLS", "220")
        self._socket = self.server.tls.wrap_socket(self._socket, server_hostname=self.server.host)
        self._ask("ehlo", b"EHLO bench.test", "250")
        began = perf_counter()
        proof = b64encode(b"\0apikey\0" + self.server.key.encode())
        self._ask("auth", b"AUTH PLAIN " + proof, "235")
        return perf_counter() - began

    def deliver(self, sender: str, recipients: Sequence[str], header: bytes, body: bytes) -> float:
        """Send one message, whose body has the final dot; return the seconds from its last byte to the 250."""
        commands = [f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{one}>" for one in recipients), "DATA", ""]
        self._write("\r\n".join(commands).encode())
        self._expect("mail", "250")
        for _ in recipients:
            self._expect("rcpt", "250")
        self._expect("data", "354")
        if len(body) < JOINED_BELOW_BYTES:
            self._write(header + body)
        else:
            self._write(header)
            self._write(body)
        sent_at = perf_counter()
        self._expect("end of message", "250")
        return perf_counter() - sent_at

    def close(self) -> None:
        """Take leave; say nothing of what goes wrong then."""
        if self._socket is None:
            return
        try:
            self._ask("quit", b"QUIT", "221")
        except (OSError, Refused):
            pass
        finally:
            self._socket.close()
            self._socket = None

    def _write(self, content: bytes) -> None:
        if self._socket is None:
            raise ConnectionError("not open")
        self._socket.sendall(content)

    def _ask(self, stage: str, command: bytes, code: str) -> None:
        self._write(command + b"\r\n")
        self._expect(stage, code)

    def _expect(self, stage: str, code: str) -> None:
        reply = self._reply()
        if not reply.startswith(code):
            raise Refused(stage, reply)

    def _reply(self) -> str:
        """Read one reply; what follows it stays for the next."""
        while not (found := _LAST_LINE.search(self._received)):
            if self._socket is None:
                raise ConnectionError("not open")
            more = self._socket.recv(16_384)
            if not more:
                raise ConnectionError("hung up")
            self._received += more
        self._received = self._received[found.end() :]
        return f"{found[1].decode()} {found[2].decode(errors='replace')}".strip()
