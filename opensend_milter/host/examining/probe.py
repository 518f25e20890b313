"""A real message through every port, followed as far as the configuration lets it be seen."""

from __future__ import annotations

import http.client
import json
import re
import smtplib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from functools import partial
from pathlib import Path
from typing import TypeVar

from opensend_milter.config import Config
from opensend_milter.core.findings import Check, Seen, good, problem, warning
from opensend_milter.host.examining.machine import http_connection
from opensend_milter.host.examining.smtp import MadeKey, log_in
from opensend_milter.host.examining.smtp_ports import SmtpPort, dialogue, doors_of

T = TypeVar("T")
PAUSE_S = 0.1
_TAKEN = range(200, 300)
_OVER = {"sent", "delivered", "failed", "bounced", "complained", "rejected"}

FindEmail = Callable[[str], tuple[str, str] | None]
"""Takes a queue id, returns id and status of the email."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """Who writes to whom."""

    sender: str
    recipient: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """How a message is made, sent and followed."""

    config: Config
    draft: Callable[[], Draft]
    made_key: MadeKey
    find: FindEmail
    wait_s: float

    def checks(self) -> Iterator[Check]:
        """Return one check for each port and one for HTTP."""
        why = "only a message that arrives proves that messages arrive"
        for door in doors_of(self.config) if self.config.auth.protocol == "dovecot" else ():
            yield Check(name=f"probe.{door.name}", why=why, look=partial(self._by_smtp, door), needs="smtp.answers")
        yield Check(name="probe.http", why=why, look=self._by_http, needs="http.answers")

    def _by_smtp(self, door: SmtpPort) -> Seen:
        letter = self.draft()
        message = EmailMessage()
        message["From"], message["To"] = letter.sender, letter.recipient
        message["Subject"] = f"opensend-milter doctor: probe of port {door.port}"
        message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain="doctor.localhost")
        message.set_content(f"Sent by `opensend-milter doctor --probe` through port {door.port}.\n")
        with self.made_key() as key, dialogue(door) as client:
            code, text = log_in(client, key)
            if code not in _TAKEN:
                return problem(f"AUTH: {code} {text}")
            for answer in _hand_over(client, letter, message):
                code, text = answer
                if code not in _TAKEN:
                    return problem(f"refused: {code} {text}")
        found = re.search(r"queued as (\S+)", text)
        return self._followed(found[1] if found else "", str(message["Message-ID"]))

    def _by_http(self) -> Seen:
        letter = self.draft()
        connection = http_connection(self.config.http)
        content = {
            "from": letter.sender,
            "to": [letter.recipient],
            "subject": "opensend-milter doctor: probe of HTTP",
            "body": "Sent by `opensend-milter doctor --probe` over HTTP.\n",
        }
        try:
            with self.made_key() as key:
                headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
                connection.request("POST", "/v1/send", json.dumps(content), headers)
                response = connection.getresponse()
                status, answer = response.status, response.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            return problem(f"no answer: {error}")
        finally:
            connection.close()
        if status not in _TAKEN:
            return problem(f"refused: {status} {answer[:200]}")
        return self._followed(str(json.loads(answer)["request_id"]), "")

    def _followed(self, queue_id: str, message_id: str) -> Seen:
        """Follow a message from its queue id to where its delivery can be seen."""
        deadline = time.monotonic() + self.wait_s
        show = f"opensend-milter email show {queue_id}"
        while True:
            found = self.find(queue_id)
            if found and found[1] in _OVER:
                break
            if time.monotonic() > deadline:
                if not found:
                    return problem(f"accepted as {queue_id}, and not recorded", show)
                late = f"still {found[1]} after {self.wait_s:g} s"
                return warning(f"accepted as {queue_id}, recorded as {found[0]}, {late}", show)
            time.sleep(PAUSE_S)
        email_id, status = found
        recorded = f"accepted as {queue_id}, recorded as {email_id}, {status}"
        folder = self.config.maildir.folder
        lost = self.config.delivery.courier == "file" and message_id and not _is_in(folder, message_id)
        if lost or status not in {"sent", "delivered"}:
            return problem(f"{recorded}, and not in {folder}" if lost else recorded, show)
        return good(recorded)


def _hand_over(client: smtplib.SMTP, letter: Draft, message: EmailMessage) -> Iterator[tuple[int, str]]:
    yield _say(client.mail, letter.sender)
    yield _say(client.rcpt, letter.recipient)
    content = message.as_bytes(policy=message.policy.clone(linesep="\r\n"))
    yield _say(client.data, content)


def _say(command: Callable[[T], tuple[int, bytes]], what: T) -> tuple[int, str]:
    code, text = command(what)
    return code, text.decode(errors="replace")


def _is_in(folder: Path, message_id: str) -> bool:
    return any(message_id.encode() in path.read_bytes() for path in (folder / "new").glob("*"))
