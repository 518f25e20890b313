"""A mail server that does at each step what a test tells it, and keeps what it got as it came over the wire."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import BinaryIO, Self

from tests.waiting import NEVER_S, await_true

DROP = "drop"
"""Close without an answer."""
STALL = "stall"
"""Answer nothing and keep the connection."""
HOLD = "hold"
"""Answer as usual, but only after `release`."""
EXTENSIONS = ("PIPELINING", "SIZE 52428800", "8BITMIME", "SMTPUTF8")
_YES = {"MAIL": "250 2.1.0 ok", "RCPT": "250 2.1.5 ok", "DATA": "354 go on", "RSET": "250 2.0.0 ok"}


@dataclass(slots=True)
class Delivered:
    """One message: the commands that led to it, and its bytes with the dots still stuffed."""

    mail: str = ""
    recipients: list[str] = field(default_factory=list)
    wire: bytes = b""

    @property
    def raw(self) -> bytes:
        """The message as a server stores it (RFC 5321, 4.5.2)."""
        return re.sub(rb"(?m)^\.", b"", self.wire)


class _HangUp(Exception):  # noqa: N818
    """The test wants this connection closed."""


class Sink:
    """`answers` maps a verb, `connect`, `body`, `.`, or a recipient's address to a reply, DROP, STALL or HOLD."""

    def __init__(
        self,
        answers: Mapping[str, str] | None = None,
        *,
        extensions: tuple[str, ...] = EXTENSIONS,
        context: ssl.SSLContext | None = None,
    ) -> None:
        self.answers = dict(answers or {})
        self.extensions = extensions
        self.context = context
        self.delivered: list[Delivered] = []
        self.commands: list[str] = []
        self.connections = 0
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._open: list[socket.socket] = []
        self._stopped = threading.Event()
        self.held = threading.Event()
        """Somebody waits for `release`."""
        self.release = threading.Event()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def __enter__(self) -> Self:
        self._listening = threading.Thread(target=self._listen, name="sink", daemon=True)
        self._listening.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self.release.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        # Before its descriptor is somebody else's: the thread would accept for the next sink.
        self._listening.join()
        self._listener.close()
        for connection in self._open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def verbs(self) -> list[str]:
        """Return the verbs of all commands in order."""
        return [command.split()[0].upper() for command in self.commands]

    def await_delivered(self, count: int) -> list[Delivered]:
        """Wait for so many messages."""
        await_true(lambda: len(self.delivered) >= count, lambda: f"{count} messages, not {len(self.delivered)}")
        return list(self.delivered)

    def await_held(self) -> None:
        """Wait until somebody waits for `release`."""
        await_true(self.held.is_set, lambda: f"somebody is held, after {self.commands}")

    def _listen(self) -> None:
        while not self._stopped.is_set():
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.connections += 1
                self._open.append(connection)
            threading.Thread(target=self._serve, args=(connection,), name="sink-session", daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        session = _Session(self, connection)
        with contextlib.suppress(_HangUp, OSError):
            session.run()
        session.close()


class _Session:
    def __init__(self, sink: Sink, connection: socket.socket) -> None:
        self._sink = sink
        self._connection = connection
        self._file: BinaryIO = connection.makefile("rb")
        self._now = Delivered()

    def close(self) -> None:
        self._file.close()
        self._connection.close()

    def run(self) -> None:
        self._answer("connect", "220 sink ESMTP")
        while True:
            line = self._file.readline()
            if not line:
                return
            command = line.decode().rstrip("\r\n")
            self._sink.commands.append(command)
            if not self._obey(command):
                return

    def _obey(self, command: str) -> bool:
        verb = command.split(maxsplit=1)[0].upper()
        match verb:
            case "EHLO":
                lines = ["sink", *self._sink.extensions]
                signs = ["-"] * (len(lines) - 1) + [" "]
                self._answer(verb, "\r\n".join(f"250{sign}{line}" for sign, line in zip(signs, lines, strict=True)))
            case "STARTTLS":
                self._answer(verb, "220 go on")
                assert self._sink.context
                self._file.close()
                self._connection = self._sink.context.wrap_socket(self._connection, server_side=True)
                self._file = self._connection.makefile("rb")
            case "AUTH":
                self._answer(verb, "235 2.7.0 ok")
            case "MAIL":
                self._now = Delivered(mail=command)
                self._answer(verb, _YES[verb])
            case "RCPT":
                self._recipient(command)
            case "DATA":
                if self._answer(verb, _YES[verb]).startswith("354"):
                    self._receive()
            case "QUIT":
                self._answer(verb, "221 2.0.0 bye")
                return False
            case _:
                self._answer(verb, _YES.get(verb, "500 5.5.1 what?"))
        return True

    def _recipient(self, command: str) -> None:
        address = command.partition("<")[2].partition(">")[0]
        key = address if address in self._sink.answers else "RCPT"
        if self._answer(key, _YES["RCPT"]).startswith("2"):
            self._now.recipients.append(address)

    def _receive(self) -> None:
        lines = []
        if "body" in self._sink.answers:
            self._file.read(1)
            self._answer("body", "")
        while (line := self._file.readline()) != b".\r\n":
            if not line:
                return
            lines.append(line)
        self._now.wire = b"".join(lines)
        if self._sink.answers.get(".", "250").startswith(("250", HOLD)):
            self._sink.delivered.append(self._now)
        self._answer(".", "250 2.0.0 taken as 4711")

    def _answer(self, key: str, standard: str) -> str:
        reply = self._sink.answers.get(key, standard)
        if reply == HOLD:
            self._sink.held.set()
            self._sink.release.wait(NEVER_S)
            reply = standard
        if reply == STALL:
            self._sink.held.set()
            self._sink._stopped.wait()
        if reply in {DROP, STALL}:
            raise _HangUp
        self._connection.sendall(reply.encode() + b"\r\n")
        return reply
