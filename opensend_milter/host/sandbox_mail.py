"""One message through the sandbox, as an application would send it, followed until it lies in the inbox."""

from __future__ import annotations

import re
import smtplib
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from pathlib import Path

from opensend_milter.core.errors import TemporaryError, UsageError

SMTP_S = 60.0
PAUSE_S = 0.05
RECORD_S = 5.0
_ACCEPTED = range(200, 300)
HEAD_BYTES = 65_536


class Refused(UsageError):  # noqa: N818  # the tree reads as mail says it
    """The server refused the message."""


class NotDelivered(TemporaryError):  # noqa: N818
    """The message is accepted, and not in the inbox."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """What to send."""

    sender: str
    recipient: str
    subject: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Sent:
    """What became of it."""

    reply: str
    """Of the server, to the message."""
    queue_id: str
    record: str | None
    """Id and status of the email, as the database has them."""
    delivered: Path


def send(
    variables: Mapping[str, str], draft: Draft, *, find_email: Callable[[str, str], str | None], wait_s: float
) -> Sent:
    """Send over STARTTLS and AUTH, wait for the inbox; `find_email` takes the database's URL and the queue id."""
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = draft.sender, draft.recipient, draft.subject
    message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain="sandbox.test")
    message.set_content(draft.text)
    begun_at = time.time()
    reply = _hand_over(variables, draft, message)
    found = re.search(r"queued as (\S+)", reply)
    queue_id = found[1] if found else ""
    delivered = _await_in(
        Path(variables["SANDBOX_INBOX"]), str(message["Message-ID"]), since=begun_at - 1, wait_s=wait_s
    )
    record = _await_record(lambda: find_email(variables["SANDBOX_DATABASE_URL"], queue_id), delivered=bool(delivered))
    if not delivered:
        raise NotDelivered(f"accepted ({reply}), recorded as {record}, and not in the inbox after {wait_s:g} s")
    return Sent(reply=reply, queue_id=queue_id, record=record, delivered=delivered)


def _hand_over(variables: Mapping[str, str], draft: Draft, message: EmailMessage) -> str:
    host, port = variables["SANDBOX_SMTP_HOST"], int(variables["SANDBOX_SMTP_PORT"])
    try:
        with smtplib.SMTP(host, port, timeout=SMTP_S) as client:
            client.starttls(context=ssl.create_default_context(cafile=variables["SANDBOX_TLS_CA"]))
            client.login("apikey", variables["SANDBOX_API_KEY"])
            for code, text in (
                client.mail(draft.sender),
                client.rcpt(draft.recipient),
                answer := client.data(message.as_bytes(policy=message.policy.clone(linesep="\r\n"))),
            ):
                if code not in _ACCEPTED:
                    raise Refused(f"refused: {code} {_text(text)}")
            return f"{answer[0]} {_text(answer[1])}"
    except smtplib.SMTPResponseException as error:
        raise Refused(f"refused: {error.smtp_code} {_text(error.smtp_error)}") from error
    except (OSError, smtplib.SMTPException) as error:
        raise TemporaryError(f"{host}:{port}: {error}") from error


def _text(reply: bytes | str) -> str:
    return reply if isinstance(reply, str) else reply.decode(errors="replace")


def _await_in(inbox: Path, message_id: str, *, since: float, wait_s: float) -> Path | None:
    wanted, deadline, seen = message_id.encode(), time.monotonic() + wait_s, set[str]()
    while True:
        for path in (inbox / "new").iterdir():
            if path.name not in seen:
                seen.add(path.name)
                if path.stat().st_mtime >= since and wanted in _head(path):
                    return path
        if time.monotonic() > deadline:
            return None
        time.sleep(PAUSE_S)


def _await_record(find: Callable[[], str | None], *, delivered: bool) -> str | None:
    """Return what is recorded; what is delivered is recorded as sent only a moment later."""
    deadline = time.monotonic() + RECORD_S
    while True:
        record = find()
        if not delivered or (record and record.endswith("sent")) or time.monotonic() > deadline:
            return record
        time.sleep(PAUSE_S)


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)
