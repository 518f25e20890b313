"""An HTTP server that breaks off where a test tells it, and keeps what it got."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO, Self

DROP, STALL = "drop", "stall"


@dataclass(slots=True)
class Request:
    """What came: the request line, header fields by lower-case name, the body."""

    line: str
    fields: dict[str, str]
    body: bytes
    answer: str | Reply
    """What the script said of it."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """An answer; `cut`: after so many octets of its body the connection is closed."""

    status: int = 200
    body: bytes = b"{}"
    fields: Mapping[str, str] = field(default_factory=dict)
    cut: int | None = None

    @property
    def octets(self) -> bytes:
        fields = {"Content-Type": "application/json", "Content-Length": str(len(self.body)), **self.fields}
        head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
        return f"HTTP/1.1 {self.status} said\r\n{head}\r\n".encode() + self.body[: self.cut]


@dataclass(slots=True)
class Script:
    """What to do: at `connect`, `body` (its first octet has come) or `answer`."""

    connect: str = ""
    body: str | Reply = ""
    answer: str | Reply = field(default_factory=Reply)


class HttpServer:
    """For one test; `script` may be changed while it runs."""

    def __init__(self, script: Script | None = None, context: ssl.SSLContext | None = None) -> None:
        self.script = script or Script()
        self.requests: list[Request] = []
        self.connections = 0
        self.stalled = threading.Event()
        self._context = context
        self._stopped = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=16)
        self._open: list[socket.socket] = []
        self._listening = threading.Thread(target=self._listen, name="http", daemon=True)

    @property
    def url(self) -> str:
        return f"http{'s' if self._context else ''}://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._listening.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        for connection in [self._listener, *self._open]:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        # Closed while the thread is about to accept, its number might be that of the next test's listener.
        self._listening.join()
        self._listener.close()

    def _listen(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), name="http-session", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            if self._does(self.script.connect):
                return
            if self._context:
                connection = self._context.wrap_socket(connection, server_side=True)
            with connection, connection.makefile("rb") as file:
                while self._one(connection, file):
                    pass

    def _does(self, what: str | Reply) -> bool:
        """Play dead where it is asked for; tell whether it was."""
        if what == STALL:
            self.stalled.set()
            self._stopped.wait()
        return isinstance(what, str) and what != ""

    def _one(self, connection: socket.socket, file: BinaryIO) -> bool:
        line = file.readline().decode().strip()
        if not line:
            return False
        fields: dict[str, str] = {}
        while field_line := file.readline().decode().strip():
            name, _, value = field_line.partition(":")
            fields[name.lower()] = value.strip()
        length = int(fields.get("content-length", "0"))
        if self.script.body:
            file.read(1)
            if isinstance(self.script.body, Reply):
                connection.sendall(self.script.body.octets)
            self._does(self.script.body)
            return False
        answer = self.script.answer
        self.requests.append(Request(line, fields, file.read(length), answer))
        if self._does(answer) or not isinstance(answer, Reply):
            return False
        connection.sendall(answer.octets)
        return answer.cut is None


class Refusing:
    """An address where nobody listens: bound, so that nobody else takes it."""

    def __enter__(self) -> str:
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._socket.close()
