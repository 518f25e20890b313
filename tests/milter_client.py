"""Speaks the milter protocol over the socket, as Postfix does, and as Postfix never would."""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self

from tests.waiting import patience_s

HDR_LEADSPC = 0x100000
NO_EOH = 0x40
EVERY_STEP = 0x1FFFFF
"""All protocol flags of version 6, as Postfix 3.7 offers them."""


@dataclass(frozen=True)
class Answer:
    """One reply of the milter."""

    command: str
    text: str = ""

    @property
    def code(self) -> int:
        """SMTP code of a reply with a text."""
        return int(self.text[:3])


class MilterClient:
    """One SMTP connection as the milter sees it."""

    def __init__(self, path: Path | str) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(patience_s())
        self.flags = 0
        self.asked: dict[int, str] = {}
        """Macros that the milter asked for, by stage."""
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.socket.close()

    def send(self, command: bytes, payload: bytes = b"") -> None:
        """Send one packet."""
        self.socket.sendall(struct.pack("!I", len(payload) + 1) + command + payload)

    def receive(self) -> tuple[bytes, bytes]:
        """Read one packet; empty at end of file."""
        head = self._exactly(4)
        if not head:
            return b"", b""
        packet = self._exactly(struct.unpack("!I", head)[0])
        return packet[:1], packet[1:]

    def _exactly(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            piece = self.socket.recv(count - len(found))
            if not piece:
                return b""
            found += piece
        return found

    def negotiate(self, version: int = 6, actions: int = 0x1FF, protocol: int = EVERY_STEP) -> int:
        """Offer what Postfix offers; return the protocol flags that the milter chose."""
        self.send(b"O", struct.pack("!III", version, actions, protocol))
        command, payload = self.receive()
        assert command == b"O", command
        self.flags = int(struct.unpack("!III", payload[:12])[2])
        lists = payload[12:]
        while lists:
            stage = int.from_bytes(lists[:4])
            names, _, lists = lists[4:].partition(b"\0")
            self.asked[stage] = names.decode("ascii")
        return self.flags

    def macros(self, step: bytes, macros: Mapping[str, str | bytes]) -> None:
        """Define macros for a step."""
        pairs = b"".join(
            name.encode() + b"\0" + (value if isinstance(value, bytes) else value.encode()) + b"\0"
            for name, value in macros.items()
        )
        self.send(b"D", step + pairs)

    def _step(self, command: bytes, payload: bytes, no_reply: int) -> None:
        self.send(command, payload)
        if not self.flags & no_reply:
            reply, _ = self.receive()
            assert reply == b"c", reply

    def mail(
        self, sender: str = "<app@example.test>", *, odd: Mapping[str, bytes] = MappingProxyType({}), **macros: str
    ) -> None:
        """Begin a message; `auth` is the key's id."""
        names = {"auth": "{auth_authen}", "client": "{client_addr}"}
        self.macros(b"M", {**{names.get(name, name): value for name, value in macros.items()}, **odd})
        self._step(b"M", sender.encode() + b"\0", 0x4000)

    def rcpt(self, recipient: str | bytes) -> None:
        """Add a recipient."""
        self._step(b"R", (recipient if isinstance(recipient, bytes) else recipient.encode()) + b"\0", 0x8000)

    def header(self, name: bytes, value: bytes) -> None:
        """Add a header field; its value begins with its own white space."""
        self._step(b"L", name + b"\0" + value + b"\0", 0x80)

    def end_of_header(self) -> None:
        """End the header, where the milter has not said that it need not hear of it."""
        if not self.flags & NO_EOH:
            self._step(b"N", b"", 0x40000)

    def body(self, chunk: bytes) -> None:
        """Add a piece of the body."""
        self._step(b"B", chunk, 0x80000)

    def end(self, queue_id: str = "4XQUEUE") -> Answer:
        """End the message and return the milter's decision."""
        self.macros(b"E", {"i": queue_id})
        self.send(b"E")
        return self.answer()

    def answer(self) -> Answer:
        """Read a decision."""
        command, payload = self.receive()
        return Answer(command.decode("ascii"), payload.rstrip(b"\0").decode("ascii"))

    def abort(self) -> None:
        """Give the message up, as RSET does."""
        self.send(b"A")

    def message(self, auth: str, raw: bytes, *recipients: str, queue_id: str = "4XQUEUE") -> Answer:
        """Send a whole message given as bytes."""
        self.mail(auth=auth, client="192.0.2.7")
        for recipient in recipients or ("to@example.net",):
            self.rcpt(f"<{recipient}>")
        head, _, body = raw.partition(b"\r\n\r\n")
        for line in head.replace(b"\r\n ", b"\n ").replace(b"\r\n\t", b"\n\t").split(b"\r\n"):
            name, _, value = line.partition(b":")
            self.header(name, value)
        self.end_of_header()
        for at in range(0, len(body), 65_535):
            self.body(body[at : at + 65_535])
        return self.end(queue_id)
