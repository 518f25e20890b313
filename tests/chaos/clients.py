"""Clients that hand mail in as applications do, and send again what was put off as a queue does."""

from __future__ import annotations

import http.client
import itertools
import json
import random
import re
import smtplib
import socket
import ssl
import threading
import time
from base64 import b64encode
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import urlsplit

from tests.acceptance.running_sandbox import Sandbox
from tests.chaos.ledger import Ledger, Outcome, Told
from tests.waiting import scaled_s

ANSWER_S = 40.0
"""Longer than our own time-outs, so that a client hears what we say of them."""
PAUSE_S = 0.35
"""Between two tries of one client."""
AGAIN_AFTER = 4
"""Turns until what was put off is tried again: a second or two, where an MTA waits for minutes."""
LARGE_EVERY, LARGE_BYTES = 15, 100_000
"""So that some go by the spool."""
TO = "to@example.net"
_LINE = "What an application says to somebody, in a line of seventy-two octets.\r\n"
_MARK = re.compile(rb"(?m)^Subject: chaos ([0-9a-z.-]+)\r$")
_LATER = {408, 429, 503}


def mark_of(content: bytes) -> str:
    """Return the mark of a message that was delivered."""
    found = _MARK.search(content)
    return found[1].decode() if found else "without a mark"


@dataclass(frozen=True, slots=True)
class Letter:
    """A message before it is one: each try makes the same of it."""

    mark: str
    sender: str
    text: str

    def as_mail(self) -> bytes:
        head = (
            f"From: <{self.sender}>\r\nTo: <{TO}>\r\nSubject: chaos {self.mark}\r\n"
            f"Message-ID: <{self.mark}@chaos.test>\r\nDate: Thu, 01 Jan 2026 00:00:00 +0000\r\n\r\n"
        )
        return (head + self.text).encode()

    def as_request(self) -> bytes:
        asked = {"from": self.sender, "to": [TO], "subject": f"chaos {self.mark}", "body": self.text}
        return json.dumps(asked).encode()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a door said, in short."""

    outcome: Outcome
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrance:
    """Where a host takes mail, by its two ports."""

    smtp: int
    http: int

    @classmethod
    def of(cls, sandbox: Sandbox) -> Entrance:
        return cls(smtp=int(sandbox["SANDBOX_SMTP_PORT"]), http=urlsplit(sandbox["SANDBOX_HTTP_URL"]).port or 0)


@dataclass(slots=True)
class Entrances:
    """Of all hosts that take mail; each connection goes to the next, as by the records of a name."""

    known: tuple[Entrance, ...] = ()
    """Changed as a whole: who finds others than he knew connects anew."""
    _turns: itertools.count[int] = field(default_factory=itertools.count)

    def next(self) -> Entrance:
        return self.known[next(self._turns) % len(self.known)]


class Door(Protocol):
    """A way in, used by one client."""

    repeatable: bool

    def hand_in(self, letter: Letter) -> Answer: ...
    def close(self) -> None: ...

    @property
    def line(self) -> socket.socket | None: ...


class SmtpDoor:
    """Over SMTP: a connection that is kept through refusals too, or one for each message."""

    repeatable = True

    def __init__(self, sandbox: Sandbox, entrances: Entrances, *, kept: bool) -> None:
        self._host, self._entrances, self._known = sandbox["SANDBOX_SMTP_HOST"], entrances, entrances.known
        self._proof = b64encode(b"\0apikey\0" + sandbox["SANDBOX_API_KEY"].encode()).decode()
        self._tls = ssl.create_default_context(cafile=sandbox["SANDBOX_TLS_CA"])
        self._kept = kept
        self._client: smtplib.SMTP | None = None
        self._said_all = False

    def hand_in(self, letter: Letter) -> Answer:
        self._said_all = False
        if self._known is not self._entrances.known:
            self.close()
        try:
            code, text = self._speak(letter)
        except smtplib.SMTPResponseException as error:
            code, text = error.smtp_code, _bytes(error.smtp_error)
        except (smtplib.SMTPException, OSError, ValueError) as error:
            self.close()
            return Answer("unheard" if self._said_all else "put off", f"{type(error).__name__}: {error}")
        if not self._kept or code == 421:
            self.close()
        outcome: Outcome = "taken" if code < 300 else "put off" if code < 500 else "wrong"
        return Answer(outcome, f"{code} {text.decode(errors='replace')}")

    def _speak(self, letter: Letter) -> tuple[int, bytes]:
        """Return the first answer that is no yes, else the last."""
        client = self._client or self._connect()
        for line in (f"MAIL FROM:<{letter.sender}>", f"RCPT TO:<{TO}>", "DATA"):
            code, text = client.docmd(line)
            if code not in {250, 354}:
                if code != 421:
                    client.rset()
                return code, text
        client.send(letter.as_mail() + b".\r\n")
        self._said_all = True
        return client.getreply()

    def _connect(self) -> smtplib.SMTP:
        self._known = self._entrances.known
        self._client = client = smtplib.SMTP(
            self._host, self._entrances.next().smtp, timeout=scaled_s(ANSWER_S), local_hostname="chaos.test"
        )
        try:
            client.starttls(context=self._tls)
            client.ehlo()
            code, text = client.docmd("AUTH", f"PLAIN {self._proof}")
            if code != 235:
                raise smtplib.SMTPResponseException(code, text)
        except BaseException:
            self.close()
            raise
        return client

    @property
    def line(self) -> socket.socket | None:
        return self._client.sock if self._client else None

    def close(self) -> None:
        client, self._client = self._client, None
        if client:
            with suppress(OSError, smtplib.SMTPException):
                client.send("QUIT\r\n")  # and nobody waits for its answer
            client.close()


class HttpDoor:
    """Over HTTP: one connection, kept, with an Idempotency-Key; or without both."""

    def __init__(self, sandbox: Sandbox, entrances: Entrances, *, named: bool) -> None:
        self.repeatable = named
        self._key = sandbox["SANDBOX_API_KEY"]
        self._host, self._entrances, self._known = sandbox["SANDBOX_SMTP_HOST"], entrances, entrances.known
        self._connection = http.client.HTTPConnection(self._host)

    def hand_in(self, letter: Letter) -> Answer:
        name = {"Idempotency-Key": letter.mark} if self.repeatable else {}
        fields = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json", **name}
        try:
            if self._connection.sock is None or self._known is not self._entrances.known:
                self._connect()
        except OSError as error:
            self._connection.close()
            return Answer("put off", f"{type(error).__name__}: {error}")
        try:
            self._connection.request("POST", "/v1/send", letter.as_request(), fields)
            answer = self._connection.getresponse()
            said = answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            return Answer("unheard", f"{type(error).__name__}: {error}")
        if not self.repeatable:
            self._connection.close()
        outcome: Outcome = "taken" if answer.status == 202 else "put off" if answer.status in _LATER else "wrong"
        return Answer(outcome, f"{answer.status} {said}")

    def _connect(self) -> None:
        self._connection.close()
        self._known = self._entrances.known
        port = self._entrances.next().http
        self._connection = http.client.HTTPConnection(self._host, port, timeout=scaled_s(ANSWER_S))
        self._connection.connect()

    @property
    def line(self) -> socket.socket | None:
        return self._connection.sock

    def close(self) -> None:
        self._connection.close()


def _bytes(text: bytes | str) -> bytes:
    return text.encode() if isinstance(text, str) else text


@dataclass(slots=True)
class Client:
    """Tries one message after another, and again what was put off."""

    name: str
    door: Door
    ledger: Ledger
    senders: Sequence[str]
    over: threading.Event
    """Set, nothing new is begun."""
    given_up: threading.Event
    chance: random.Random
    _waiting: deque[tuple[int, Letter]] = field(default_factory=deque)
    _number: int = 0
    _turn: int = 0

    def run(self) -> None:
        while not self.given_up.is_set() and (self._waiting or not self.over.is_set()):
            self._turn += 1
            if letter := self._next():
                self._try(letter)
            self.given_up.wait(PAUSE_S * self.chance.uniform(0.5, 1.5))
        self.door.close()

    def _next(self) -> Letter | None:
        """Return what is due again, else something new."""
        if self._waiting and self._turn >= self._waiting[0][0]:
            return self._waiting.popleft()[1]
        return None if self.over.is_set() else self._write()

    def _write(self) -> Letter:
        self._number += 1
        size = LARGE_BYTES if self._number % LARGE_EVERY == 0 else self.chance.randint(2_000, 5_000)
        mark = f"{self.name}.{self._number}"
        return Letter(mark, self.chance.choice(self.senders), _LINE * (size // len(_LINE)))

    def _try(self, letter: Letter) -> None:
        began_at = time.monotonic()
        answer = self.door.hand_in(letter)
        self.ledger.note(
            Told(
                client=self.name, mark=letter.mark, outcome=answer.outcome, answer=answer.text,
                began_at=began_at, ended_at=time.monotonic(), repeatable=self.door.repeatable,
            )
        )  # fmt: skip
        # What may be stored is not sent again where that would make two of it.
        if answer.outcome == "put off" or (answer.outcome == "unheard" and self.door.repeatable):
            self._waiting.append((self._turn + AGAIN_AFTER, letter))


def doors(sandbox: Sandbox, entrances: Entrances) -> Iterator[tuple[str, Door]]:
    """Make a door for each client, with the client's name."""
    for number in range(4):
        yield f"kept-{number}", SmtpDoor(sandbox, entrances, kept=True)
    for number in range(3):
        yield f"single-{number}", SmtpDoor(sandbox, entrances, kept=False)
    for number in range(3):
        yield f"named-{number}", HttpDoor(sandbox, entrances, named=True)
    for number in range(2):
        yield f"bare-{number}", HttpDoor(sandbox, entrances, named=False)


@contextmanager
def sending(
    sandbox: Sandbox, entrances: Entrances, senders: Sequence[str], seed: int, drain_s: float
) -> Iterator[Ledger]:
    """Let all of them send; at the end let each get rid of what it has, for so long at most."""
    made = dict(doors(sandbox, entrances))
    ledger = Ledger(*made)
    over, given_up = threading.Event(), threading.Event()
    clients = [
        Client(name, door, ledger, senders, over, given_up, random.Random(f"{seed} {name}"))
        for name, door in made.items()
    ]
    threads = [threading.Thread(target=client.run, name=client.name, daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield ledger
        over.set()
        until = time.monotonic() + drain_s
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))
    finally:
        over.set()
        given_up.set()
        for client, thread in zip(clients, threads, strict=True):
            while thread.is_alive():
                with suppress(OSError):
                    if line := client.door.line:
                        line.shutdown(socket.SHUT_RDWR)
                thread.join(scaled_s(PAUSE_S))
