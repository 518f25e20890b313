"""For each courier a next hop that does what a test tells it, and shows what it was handed."""

from __future__ import annotations

import base64
import errno
import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import pytest

from opensend_milter.adapters.couriers.maildir import MaildirCourier
from opensend_milter.adapters.couriers.plunk import PlunkCourier
from opensend_milter.adapters.couriers.sendmail import SendmailCourier
from opensend_milter.adapters.couriers.ses import SesCourier
from opensend_milter.adapters.couriers.smtp import SmtpCourier
from opensend_milter.config import Api, Aws, Maildir, Relay, Sendmail, Ses
from opensend_milter.core.couriers import CourierName
from opensend_milter.core.ports import Courier
from tests.integration.courier_http import DROP, STALL, HttpServer, Reply, Request, Script
from tests.integration.sqs_server import set_credentials
from tests.smtp_sink import Sink
from tests.waiting import await_true

Step = Literal[
    "takes it",
    "refuses for good",
    "defers",
    "hangs up inside the message",
    "hangs up after the message",
    "stands still inside the message",
    "stands still after the message",
]
"""What a next hop does with one message."""
Promise = Step | Literal["refuses one recipient", "the bytes", "the return path", "an answer to abort at once"]
"""What a courier may be unable to do, each for a reason that its hop names."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What a next hop was handed: for whom, and what those get."""

    recipients: list[str]
    content: bytes
    sender: str | None = None
    """None: nobody is told."""


class Hop(ABC):
    """A next hop that takes messages until it is told otherwise."""

    cannot: ClassVar[Mapping[Promise, str]] = {}
    ends_with_line_end: ClassVar[bool] = False
    """A message without one at its end gets one: the next hop cannot be told otherwise where it ends."""
    refused = "Name <gone@example.net>"
    """A recipient that is refused beside others."""

    @abstractmethod
    def courier(self, timeout_s: float) -> Courier:
        """Make one that hands over to it."""

    @abstractmethod
    def does(self, step: Step) -> None:
        """Do this from now on."""

    @abstractmethod
    def stands_still(self) -> bool:
        """Tell whether it has come to where it does nothing more."""

    @property
    @abstractmethod
    def taken(self) -> list[Taken]:
        """All that it has answered for with yes."""

    def await_standstill(self) -> None:
        await_true(self.stands_still, "the next hop stands still")


_VERBS = {"EHLO", "MAIL", "RCPT", "DATA", "RSET", "QUIT"}


class _Relay(Hop):
    cannot: ClassVar[Mapping[Promise, str]] = {}
    ends_with_line_end = True
    refused = "gone@example.net"
    _ANSWERS: ClassVar[Mapping[Step, Mapping[str, str]]] = {
        "takes it": {},
        "refuses for good": {".": "550 5.7.1 no"},
        "defers": {".": "451 4.3.0 later"},
        "hangs up inside the message": {"body": DROP},
        "hangs up after the message": {".": DROP},
        "stands still inside the message": {"body": STALL},
        "stands still after the message": {".": STALL},
    }

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def courier(self, timeout_s: float) -> Courier:
        return SmtpCourier(
            Relay(host="127.0.0.1", port=self._sink.port, timeout_s=timeout_s), hostname="mx.example.com"
        )

    def does(self, step: Step) -> None:
        self._sink.held.clear()
        self._sink.answers = {self.refused: "550 5.1.1 unknown", **self._ANSWERS[step]}

    def stands_still(self) -> bool:
        return self._sink.held.is_set()

    @property
    def taken(self) -> list[Taken]:
        assert set(self._sink.verbs()) <= _VERBS, "nothing of a message was read as a command"
        return [
            Taken(one.recipients, one.raw, one.mail.partition("<")[2].partition(">")[0]) for one in self._sink.delivered
        ]


class _HttpHop(Hop):
    yes: ClassVar[Reply]
    no: ClassVar[Reply]
    later: ClassVar[Reply]

    def __init__(self, server: HttpServer) -> None:
        self.server = server

    def does(self, step: Step) -> None:
        self.server.stalled.clear()
        match step:
            case "takes it":
                self.server.script = Script(answer=self.yes)
            case "refuses for good":
                self.server.script = Script(answer=self.no)
            case "defers":
                self.server.script = Script(answer=self.later)
            case "hangs up inside the message":
                self.server.script = Script(body=DROP)
            case "hangs up after the message":
                self.server.script = Script(answer=DROP)
            case "stands still inside the message":
                self.server.script = Script(body=STALL)
            case "stands still after the message":
                self.server.script = Script(answer=STALL)

    def stands_still(self) -> bool:
        return self.server.stalled.is_set()

    @property
    def taken(self) -> list[Taken]:
        return [self.read(request) for request in self.server.requests if request.answer == self.yes]

    @abstractmethod
    def read(self, request: Request) -> Taken:
        """Return what a request says."""


class _SesHop(_HttpHop):
    cannot: ClassVar[Mapping[Promise, str]] = {
        "the return path": "SES makes its own, of its domain or of one set up there",
        "an answer to abort at once": "boto3 shows nobody its connection: what is out waits for its answer",
    }
    yes = Reply(body=b'{"MessageId": "ses-1"}')
    no = Reply(status=400, body=b'{"message": "no"}', fields={"x-amzn-ErrorType": "MessageRejected"})
    later = Reply(status=500, body=b'{"message": "later"}', fields={"x-amzn-ErrorType": "InternalFailure"})

    def courier(self, timeout_s: float) -> Courier:
        set_credentials()
        return SesCourier(Ses(timeout_s=timeout_s), Aws(endpoint_url=self.server.url))

    def read(self, request: Request) -> Taken:
        sent = request.json
        return Taken(sent["Destination"]["BccAddresses"], base64.b64decode(sent["Content"]["Raw"]["Data"]))


class _PlunkHop(_HttpHop):
    cannot: ClassVar[Mapping[Promise, str]] = {
        "refuses one recipient": "the API has one answer for the whole request",
        "the bytes": "the API is told the parts and makes a message of its own",
        "the return path": "Plunk makes its own",
    }
    yes = Reply(body=b'{"success": true, "data": {"emails": [{"contact": {}, "email": "em_1"}]}}')
    no = Reply(status=422)
    later = Reply(status=500)

    def __init__(self, server: HttpServer, directory: Path) -> None:
        super().__init__(server)
        self._key_file = directory / "key"
        self._key_file.write_text("sk_0123456789abcdef\n")

    def courier(self, timeout_s: float) -> Courier:
        return PlunkCourier(Api(uri=self.server.url, key_file=self._key_file, timeout_s=timeout_s))

    def read(self, request: Request) -> Taken:
        sent = request.json
        return Taken([one["email"] for one in sent.pop("to")], json.dumps(sent).encode())


class _SendmailHop(Hop):
    ends_with_line_end = True
    cannot: ClassVar[Mapping[Promise, str]] = {}
    _THEN: ClassVar[Mapping[Step, str]] = {
        "takes it": 'mv "$at/coming" "$at/taken/$$"; exit 0',
        "refuses for good": f"exit {os.EX_NOUSER}",
        "defers": f"exit {os.EX_TEMPFAIL}",
        "hangs up inside the message": "kill -TERM $$",
        "hangs up after the message": "kill -TERM $$",
        "stands still inside the message": 'touch "$at/still"; exec sleep 3600',
        "stands still after the message": 'touch "$at/still"; exec sleep 3600',
    }

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        (directory / "taken").mkdir()

    def courier(self, timeout_s: float) -> Courier:
        return SendmailCourier(Sendmail(path=self._directory / "sendmail", timeout_s=timeout_s))

    def does(self, step: Step) -> None:
        (self._directory / "still").unlink(missing_ok=True)
        reads = "head -c 1000 > /dev/null" if "inside" in step else 'cat >> "$at/coming"'
        said = 'for one in "$@"; do printf "%s\\0" "$one"; done > "$at/coming"; echo >> "$at/coming"'
        # Another file in its place: one that runs is read by its shell to the end.
        new = self._directory / "new"
        new.write_text(f"#!/bin/sh\nat={self._directory}\n{said}\n{reads}\n{self._THEN[step]}\n")
        new.chmod(0o755)
        new.rename(self._directory / "sendmail")

    def stands_still(self) -> bool:
        return (self._directory / "still").exists()

    @property
    def taken(self) -> list[Taken]:
        found = sorted((self._directory / "taken").iterdir(), key=lambda path: path.stat().st_mtime_ns)
        return [self._read(path.read_bytes()) for path in found]

    @staticmethod
    def _read(kept: bytes) -> Taken:
        said, _, content = kept.partition(b"\n")
        options, _, recipients = said.decode().partition("\0--\0")
        assert options.startswith("-i\0-f\0"), "a dot alone is a line like others"
        return Taken(recipients.split("\0")[:-1], content, options.removeprefix("-i\0-f\0"))


class _MaildirHop(Hop):
    cannot: ClassVar[Mapping[Promise, str]] = {
        "refuses for good": "a folder refuses no message; addresses that cannot be written are its own test's",
        "refuses one recipient": "a file has room for every recipient",
        "stands still inside the message": "writing waits for nobody",
        "stands still after the message": "writing waits for nobody",
        "an answer to abort at once": "writing ends by itself",
    }

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = directory / "maildir"
        self._fails: Literal["file", "folder", ""] = ""
        self._error = errno.ENOSPC
        self._fsync = os.fsync
        monkeypatch.setattr(os, "fsync", self._flush)

    def courier(self, timeout_s: float) -> Courier:
        assert timeout_s
        return MaildirCourier(Maildir(folder=self._folder))

    def _flush(self, descriptor: int) -> None:
        is_folder = Path(f"/proc/self/fd/{descriptor}").is_dir()
        if self._fails == ("folder" if is_folder else "file"):
            raise OSError(self._error, os.strerror(self._error))
        self._fsync(descriptor)

    def does(self, step: Step) -> None:
        match step:
            case "takes it":
                self._fails = ""
            case "defers":
                self._fails, self._error = "file", errno.ENOSPC
            case "hangs up inside the message":
                self._fails, self._error = "file", errno.EIO
            case "hangs up after the message":
                # It stays in its place: nobody can tell whether for good.
                self._fails, self._error = "folder", errno.EIO
            case _:
                raise AssertionError(self.cannot[step])

    def stands_still(self) -> bool:
        return False

    @property
    def taken(self) -> list[Taken]:
        assert not (self._folder / "tmp").is_dir() or not list((self._folder / "tmp").iterdir()), "nothing half written"
        return [self._read(path.read_bytes()) for path in sorted((self._folder / "new").iterdir())]

    @staticmethod
    def _read(kept: bytes) -> Taken:
        head = re.match(rb"Return-Path: <(.*)>\r\n((?:Delivered-To: .*\r\n)+)", kept)
        assert head
        recipients = [line.removeprefix("Delivered-To: ") for line in head[2].decode().splitlines()]
        return Taken(recipients, kept[head.end() :], head[1].decode())


KINDS: Mapping[CourierName, type[Hop]] = {
    "smtp": _Relay,
    "ses": _SesHop,
    "plunk": _PlunkHop,
    "sendmail": _SendmailHop,
    "file": _MaildirHop,
}


@contextmanager
def next_hop(name: CourierName, directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hop]:
    """Run the one that a courier hands over to."""
    match name:
        case "smtp":
            with Sink() as sink:
                yield _Relay(sink)
        case "ses":
            with HttpServer() as server:
                yield _SesHop(server)
        case "plunk":
            with HttpServer() as server:
                yield _PlunkHop(server, directory)
        case "sendmail":
            yield _SendmailHop(directory)
        case "file":
            yield _MaildirHop(directory, monkeypatch)
