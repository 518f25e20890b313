"""An HTTP client that costs little: one connection, kept, and one kind of request."""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass, field
from time import perf_counter

TIMEOUT_S = 120.0
_HEAD_END = b"\r\n\r\n"
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


class NotTaken(Exception):  # noqa: N818
    """A status other than 202."""


@dataclass(slots=True)
class HttpClient:
    """One connection, without TLS, as from a proxy on the same machine."""

    port: int
    key: str
    host: str = "127.0.0.1"
    _socket: socket.socket | None = None
    _received: bytes = field(default=b"")

    def open(self) -> float:
        """Connect."""
        self._received = b""
        self._socket = socket.create_connection((self.host, self.port), TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return 0.0

    def post(self, path: str, content: bytes) -> float:
        """Send one request; return the seconds from its last byte to the end of its answer."""
        if self._socket is None:
            raise ConnectionError("not open")
        head = (
            f"POST {path} HTTP/1.1\r\nHost: {self.host}:{self.port}\r\nAuthorization: Bearer {self.key}\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
        )
        self._socket.sendall(head.encode() + content)
        sent_at = perf_counter()
        status = self._answer(self._socket)
        seconds = perf_counter() - sent_at
        if status != "202":
            raise NotTaken(f"send: {status}")
        return seconds

    def close(self) -> None:
        """Hang up."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _answer(self, connection: socket.socket) -> str:
        """Read one answer as a whole; return its status."""
        while (end := self._received.find(_HEAD_END)) < 0:
            self._more(connection)
        found = _LENGTH.search(self._received, 0, end + 2)
        whole = end + len(_HEAD_END) + int(found[1] if found else 0)
        while len(self._received) < whole:
            self._more(connection)
        status = self._received[9:12].decode(errors="replace")
        self._received = self._received[whole:]
        return status

    def _more(self, connection: socket.socket) -> None:
        more = connection.recv(65_536)
        if not more:
            raise ConnectionError("hung up")
        self._received += more
