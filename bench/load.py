"""One process of the load generator: some sessions, each in a thread, told over standard input what to do and when."""

from __future__ import annotations

import json
import os
import resource
import ssl
import sys
import time
from base64 import encodebytes
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from threading import Thread
from typing import Literal, Protocol

from bench.http_client import HttpClient, NotTaken
from bench.smtp_client import Refused, Server, SmtpClient

Kind = Literal["smtp", "login", "http"]
PAUSE_S = 0.05
"""After a connection that broke: a server that is away is not hammered."""
LONGEST_LINE = 80
_LINE = "What an application says to somebody, in a line of seventy-two octets.\r\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What to send where."""

    kind: Kind = "smtp"
    port: int
    key: str = ""
    ca: str | None = None
    """None: without TLS and AUTH."""
    sender: str
    sessions: int
    kept: bool = True
    """Many messages on a connection; else one."""
    seconds: float = 5.0
    per_session: int = 0
    """So many messages each instead of for some time; 0: for some time."""
    recipients: int = 1
    size_bytes: int = 2_048
    attachment: bool = False


class Session(Protocol):
    """One connection, opened and closed as often as the load asks for it."""

    def open(self) -> float: ...
    def send(self, number: int) -> float: ...
    def close(self) -> None: ...


@dataclass(slots=True)
class SmtpSession:
    """Sends messages over SMTP."""

    load: Load
    client: SmtpClient
    named: str
    recipients: list[str]
    body: bytes

    def open(self) -> float:
        return self.client.open()

    def send(self, number: int) -> float:
        head = header(self.load, self.recipients, f"{self.named}-{number}")
        return self.client.deliver(self.load.sender, self.recipients, head, self.body)

    def close(self) -> None:
        self.client.close()


@dataclass(slots=True)
class HttpSession:
    """Sends the same messages as requests."""

    load: Load
    client: HttpClient
    named: str
    recipients: list[str]
    text: str

    def open(self) -> float:
        return self.client.open()

    def send(self, number: int) -> float:
        asked = {
            "from": self.load.sender,
            "to": self.recipients,
            "subject": f"measured {self.named}-{number}",
            "body": self.text,
        }
        return self.client.post("/v1/send", json.dumps(asked).encode())

    def close(self) -> None:
        self.client.close()


def header(load: Load, recipients: list[str], name: str) -> bytes:
    """Return the header section: nothing in it is as in any other message."""
    lines = [
        f"From: App <{load.sender}>",
        "To: " + ",\r\n ".join(recipients),
        f"Subject: measured {name}",
        f"Message-ID: <{name}@bench.test>",
        "Date: Thu, 01 Jan 2026 00:00:00 +0000",
        "MIME-Version: 1.0",
    ]
    if load.attachment:
        lines += ['Content-Type: application/octet-stream; name="large.bin"', "Content-Transfer-Encoding: base64"]
    return "\r\n".join([*lines, "", ""]).encode()


def body(load: Load, taken: int) -> bytes:
    """Return the rest of a message, its final dot included, so that all of it is of the size asked for."""
    wanted = max(load.size_bytes - taken, LONGEST_LINE)
    if load.attachment:
        # 78 octets hold 57 of the attachment.
        content = encodebytes(os.urandom(wanted * 57 // 78 + 57)).replace(b"\n", b"\r\n")
    else:
        content = (_LINE * (wanted // len(_LINE) + 1)).encode()
    # Cut where a line ends.
    return content[: content.rfind(b"\r\n", 0, wanted) + 2] + b".\r\n"


@dataclass(slots=True)
class Worker:
    """A session and what came of it."""

    load: Load
    session: Session
    latencies_s: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    connected: bool = False

    def prepare(self) -> None:
        """A connection that is kept is opened before the clock runs."""
        if self.load.kept and not self._try(self._connect):
            self._disconnect()

    def run(self, until: float) -> None:
        """Send until then, or so many as asked for."""
        for number in range(self.load.per_session) if self.load.per_session else count():
            if not self.load.per_session and time.monotonic() >= until:
                break
            if not self._try(partial(self._once, number)):
                self._disconnect()
                time.sleep(PAUSE_S)
        self._disconnect()

    def _once(self, number: int) -> None:
        opened_s = self._connect()
        latency_s = opened_s if self.load.kind == "login" else self.session.send(number)
        if not self.load.kept:
            self._disconnect()
        self.latencies_s.append(latency_s)

    def _connect(self) -> float:
        if self.connected:
            return 0.0
        opened_s = self.session.open()
        self.connected = True
        return opened_s

    def _disconnect(self) -> None:
        self.session.close()
        self.connected = False

    def _try(self, act: Callable[[], object]) -> bool:
        try:
            act()
        except (Refused, NotTaken) as error:
            self.errors[str(error)] += 1
        except OSError as error:
            self.errors[f"connection: {error.strerror or type(error).__name__}"] += 1
        else:
            return True
        return False


def workers(load: Load) -> list[Worker]:
    """Make the sessions of this process."""
    tls = ssl.create_default_context(cafile=load.ca) if load.ca else None
    recipients = [f"to{number}@example.net" for number in range(load.recipients)]
    content = body(load, len(header(load, recipients, "x" * 16)))
    made: list[Worker] = []
    for _ in range(load.sessions):
        named = os.urandom(6).hex()
        session: Session
        if load.kind == "http":
            text = content.removesuffix(b".\r\n").decode()
            session = HttpSession(load, HttpClient(load.port, load.key), named, recipients, text)
        else:
            client = SmtpClient(Server(port=load.port, tls=tls, key=load.key))
            session = SmtpSession(load, client, named, recipients, content)
        made.append(Worker(load, session))
    return made


def all_at_once(threads: list[Thread]) -> None:
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def main() -> None:
    """Read what to do, say ready, wait for the word, do it, print what came of it."""
    load = Load(**json.loads(sys.stdin.readline()))
    made = workers(load)
    all_at_once([Thread(target=worker.prepare) for worker in made])
    print("ready", flush=True)
    if not sys.stdin.readline():
        return
    before = resource.getrusage(resource.RUSAGE_SELF)
    began = time.monotonic()
    all_at_once([Thread(target=worker.run, args=(began + load.seconds,)) for worker in made])
    seconds = time.monotonic() - began
    after = resource.getrusage(resource.RUSAGE_SELF)
    errors = sum((worker.errors for worker in made), Counter[str]())
    done = {
        "seconds": seconds,
        "latencies_s": [latency for worker in made for latency in worker.latencies_s],
        "cpu_s": after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime,
        "errors": errors,
    }
    print(json.dumps(done), flush=True)


if __name__ == "__main__":
    main()
