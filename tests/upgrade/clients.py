"""Applications that send all the time, as they do: what is put off they send again, until it is taken."""

from __future__ import annotations

import json
import smtplib
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from email.message import EmailMessage
from http.client import HTTPConnection, HTTPException
from typing import Protocol

from tests.upgrade.hosts import MailHost
from tests.upgrade.ledger import Answer, Ledger, Try, now, token
from tests.waiting import patience_s

SENDER, RECIPIENT = "app@sender.example", "b@example.net"
PAUSE_S = 0.1
AGAIN_AFTER_S = 0.3
_BUSY = {429, 503}


class Door(Protocol):
    """A way in."""

    def send(self, mail: EmailMessage) -> Answer: ...
    def close(self) -> None: ...


def mail_named(name: str, **fields: str) -> EmailMessage:
    """Write a message whose name is in all that is kept of it."""
    mail = EmailMessage()
    mail["From"], mail["To"], mail["Subject"] = SENDER, RECIPIENT, name
    mail["Message-ID"] = f"<{name}@sender.example>"
    for field_name, value in fields.items():
        mail[field_name.replace("_", "-")] = value
    mail.set_content(f"Grüße von {name}.\n")
    return mail


@dataclass(slots=True)
class Smtp:
    """STARTTLS and AUTH on port 587; a connection for each message, or one that is kept."""

    tls: ssl.SSLContext
    key: str
    keeps: bool
    _session: smtplib.SMTP | None = None

    def send(self, mail: EmailMessage) -> Answer:
        try:
            self._session = self._session or self._opened()
            self._session.send_message(mail)
        except smtplib.SMTPRecipientsRefused as error:
            self.close()
            return _smtp_answer(*next(iter(error.recipients.values())))
        except smtplib.SMTPResponseException as error:
            self.close()
            return _smtp_answer(error.smtp_code, error.smtp_error)
        except (OSError, smtplib.SMTPException) as error:
            self.close()
            return Answer("put off", 0, str(error))
        if not self.keeps:
            self.close()
        return Answer("accepted", 250, "")

    def _opened(self) -> smtplib.SMTP:
        session = smtplib.SMTP("127.0.0.1", 587, "client.example", timeout=patience_s())
        try:
            session.starttls(context=self.tls)
            session.login("apikey", self.key)
        except BaseException:
            session.close()
            raise
        return session

    def close(self) -> None:
        if self._session:
            with suppress(OSError, smtplib.SMTPException):
                self._session.quit()
            self._session.close()
        self._session = None


def _smtp_answer(code: int, text: bytes | str) -> Answer:
    said = text.decode(errors="replace") if isinstance(text, bytes) else text
    return Answer("wrong" if 500 <= code < 600 else "put off", code, said)


@dataclass(slots=True)
class Http:
    """POST /v1/send with an Idempotency-Key, a connection for each."""

    key: str

    def send(self, mail: EmailMessage) -> Answer:
        body = mail.get_body(("plain",))
        text = body.get_content() if body else ""
        written = {"from": mail["From"], "to": mail["To"], "subject": mail["Subject"], "body": text}
        client = HTTPConnection("127.0.0.1", 8025, timeout=patience_s())
        try:
            client.request("POST", "/v1/send", json.dumps(written), {
                "X-API-Key": self.key, "Content-Type": "application/json", "Idempotency-Key": mail["Subject"],
            })  # fmt: skip
            answer = client.getresponse()
            text = answer.read().decode(errors="replace")
        except (OSError, HTTPException) as error:
            return Answer("put off", 0, str(error))
        finally:
            client.close()
        if answer.status in _BUSY:
            return Answer("put off", answer.status, text)
        return Answer("accepted" if answer.status == 202 else "wrong", answer.status, text)

    def close(self) -> None:
        """Nothing stays open between messages."""


@dataclass(slots=True)
class Client:
    """One application on one host; it ends after the message that it has in hand."""

    name: str
    host: MailHost
    door: Door
    ledger: Ledger
    stopping: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with self.host.network(), ExitStack() as undo:
            undo.callback(self.door.close)
            number = 0
            while not self.stopping.wait(PAUSE_S):
                number += 1
                self._bring_in(mail_named(token(self.name, "load", number)))

    def _bring_in(self, mail: EmailMessage) -> None:
        began_at = now()
        while now() - began_at < patience_s():
            tried_at = now()
            answer = self.door.send(mail)
            self.ledger.note(Try(mail["Subject"], answer, tried_at, now()))
            if answer.verdict != "put off":
                return
            time.sleep(AGAIN_AFTER_S)


@contextmanager
def sending(ledger: Ledger, doors: Mapping[str, tuple[MailHost, Door]]) -> Iterator[None]:
    """Let clients of these names send; wait at the end until each has got rid of what it had in hand."""
    clients = [Client(name, host, door, ledger) for name, (host, door) in doors.items()]
    threads = [threading.Thread(target=one.run, name=one.name, daemon=True) for one in clients]
    for one in threads:
        one.start()
    try:
        yield
    finally:
        for client in clients:
            client.stopping.set()
        for one in threads:
            one.join()
