"""A real SMTP server that keeps what it is given: one Maildir file per message, the bytes as received."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from aiosmtpd.smtp import SMTP, Envelope, Session

MAX_MESSAGE_BYTES = 80 * 1024 * 1024


@dataclass(slots=True)
class Maildir:
    """Writes messages into a Maildir, each appearing as a whole."""

    path: Path
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def create(self) -> None:
        """Make the three directories, closed to others."""
        self.path.mkdir(parents=True, exist_ok=True)
        # Not at its making: that of an earlier version is open.
        self.path.chmod(0o700)
        for name in ("tmp", "new", "cur"):
            (self.path / name).mkdir(exist_ok=True)

    def keep(self, sender: str, recipients: list[str], content: bytes) -> Path:
        """Write the envelope as header lines, then the content."""
        name = f"{time.time_ns()}.P{os.getpid()}Q{next(self._numbers)}.{socket.gethostname()}"
        envelope = [f"Return-Path: <{sender}>", *(f"Delivered-To: {one}" for one in recipients)]
        head = "".join(f"{line}\r\n" for line in envelope).encode("utf-8", errors="surrogateescape")
        temporary, final = self.path / "tmp" / name, self.path / "new" / name
        with temporary.open("wb") as file:
            file.write(head)
            file.write(content)
        temporary.rename(final)
        return final


@dataclass(frozen=True)  # without slots: aiosmtpd reads all attributes, which 3.11.2 answers with a TypeError
class Handler:
    """What the SMTP server calls."""

    maildir: Maildir

    async def handle_DATA(self, _server: SMTP, _session: Session, envelope: Envelope) -> str:  # noqa: N802  # aiosmtpd's
        """Keep one message."""
        content = envelope.content or b""
        if isinstance(content, str):
            content = content.encode()
        name = self.maildir.keep(envelope.mail_from or "", envelope.rcpt_tos, content).name
        return f"250 2.0.0 kept as {name}"


async def serve(host: str, port: int, maildir: Maildir, ready: Callable[[], None]) -> None:
    """Take messages until SIGTERM or SIGINT."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)

    def session() -> SMTP:
        return SMTP(
            Handler(maildir),
            hostname="inbox.test",
            ident="inbox",
            data_size_limit=MAX_MESSAGE_BYTES,
            enable_SMTPUTF8=True,
            loop=loop,
        )

    server = await loop.create_server(session, host, port, backlog=512)
    ready()
    await stop.wait()
    server.close()


def main() -> None:
    """Run as a program of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--maildir", type=Path, required=True)
    arguments = parser.parse_args()
    maildir = Maildir(arguments.maildir)
    maildir.create()
    asyncio.run(serve(arguments.host, arguments.port, maildir, ready=lambda: None))


if __name__ == "__main__":
    main()
