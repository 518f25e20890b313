"""One message through the sandbox, as an application would send it, followed to the end: inbox, or OpenSend's queue."""

from __future__ import annotations

import json
import re
import smtplib
import ssl
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from datetime import datetime
from email.message import EmailMessage
from email.utils import formatdate, make_msgid
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

from opensend_milter.core.errors import TemporaryError, UsageError
from opensend_milter.host.sandbox.programs import ask_sqs

SMTP_S = 60.0
PAUSE_S = 0.05
LOOK_PAUSE_S = 0.25
LOOK_S = 30
"""How long a job is hidden from others at most, should nobody put it back."""
MOST_AT_ONCE = 10
RECORD_S = 5.0
_ACCEPTED = range(200, 300)
HEAD_BYTES = 65_536


class Refused(UsageError):  # noqa: N818  # the tree reads as mail says it
    """The server refused the message."""


class NotDelivered(TemporaryError):  # noqa: N818
    """The message is accepted, and not in the inbox."""


class NotHandedOver(TemporaryError):  # noqa: N818
    """The message is accepted, and OpenSend's ingester would not find it."""


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


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """What OpenSend's dashboard shows of a request: a row of its `logs`."""

    created_at: datetime
    method: str | None
    endpoint: str | None
    status: int | None
    request_body: object
    response_body: object


@dataclass(frozen=True, slots=True, kw_only=True)
class HandedOver:
    """What became of it beside OpenSend, whose ingester delivers."""

    reply: str
    queue_id: str
    record: str
    job: str | None
    """As it lies in the queue; None where the row is polled, or the job is taken already."""
    log: LogLine | None


FindEmail = Callable[[str, str], str | None]
"""Takes the database's URL and the queue id; returns id and status."""
FindLog = Callable[[str, str], LogLine | None]
"""Takes the database's URL and the email's id."""


def send(variables: Mapping[str, str], draft: Draft, *, find_email: FindEmail, wait_s: float) -> Sent:
    """Send over STARTTLS and AUTH, wait for the inbox."""
    message = _message(draft)
    begun_at = time.time()
    reply, queue_id = _accepted(variables, draft, message)
    delivered = _await_in(
        Path(variables["SANDBOX_INBOX"]), str(message["Message-ID"]), since=begun_at - 1, wait_s=wait_s
    )
    record = _await_record(lambda: find_email(variables["SANDBOX_DATABASE_URL"], queue_id), delivered=bool(delivered))
    if not delivered:
        raise NotDelivered(f"accepted ({reply}), recorded as {record}, and not in the inbox after {wait_s:g} s")
    return Sent(reply=reply, queue_id=queue_id, record=record, delivered=delivered)


def hand_over(
    variables: Mapping[str, str], draft: Draft, *, find_email: FindEmail, find_log: FindLog, wait_s: float
) -> HandedOver:
    """Send over STARTTLS and AUTH, follow it to where OpenSend's ingester takes over."""
    reply, queue_id = _accepted(variables, draft, _message(draft))
    url = variables["SANDBOX_DATABASE_URL"]
    record = find_email(url, queue_id)
    if not record:
        raise NotHandedOver(f"accepted ({reply}), and there is no row in emails")
    email_id = record.partition(" ")[0]
    job = None
    if "SANDBOX_QUEUE_URL" in variables:
        job = _await_job(variables, email_id, partial(find_email, url, queue_id), wait_s)
        record = find_email(url, queue_id) or record
    return HandedOver(reply=reply, queue_id=queue_id, record=record, job=job, log=find_log(url, email_id))


def _message(draft: Draft) -> EmailMessage:
    message = EmailMessage()
    message["From"], message["To"], message["Subject"] = draft.sender, draft.recipient, draft.subject
    message["Date"], message["Message-ID"] = formatdate(), make_msgid(domain="sandbox.test")
    message.set_content(draft.text)
    return message


def _accepted(variables: Mapping[str, str], draft: Draft, message: EmailMessage) -> tuple[str, str]:
    """Return the reply, and the queue id in it."""
    reply = _submit(variables, draft, message)
    found = re.search(r"queued as (\S+)", reply)
    return reply, found[1] if found else ""


def _submit(variables: Mapping[str, str], draft: Draft, message: EmailMessage) -> str:
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


def _await_job(
    variables: Mapping[str, str], email_id: str, find: Callable[[], str | None], wait_s: float
) -> str | None:
    """Return the job; None where somebody who takes jobs was faster."""
    deadline = time.monotonic() + wait_s
    while True:
        with closing(_jobs(variables, deadline)) as jobs:
            for job in jobs:
                if _email_of(job) == email_id:
                    return job
        record = find()
        if not record or not record.endswith(" queued"):
            return None
        if time.monotonic() > deadline:
            raise NotHandedOver(f"recorded as {record}, and no job for it in the queue after {wait_s:g} s")
        time.sleep(LOOK_PAUSE_S)


def _email_of(job: str) -> object:
    try:
        content = json.loads(job)
    except ValueError:  # anybody may have put it there
        return None
    return content.get("emailId") if isinstance(content, dict) else None


def _jobs(variables: Mapping[str, str], deadline: float) -> Generator[str, None, None]:
    """Yield what is in the queue, and leave it there: what was looked at is hidden only until all is seen."""
    queue = {"QueueUrl": variables["SANDBOX_QUEUE_URL"]}
    ask, seen = partial(_ask, variables["SANDBOX_AWS_ENDPOINT"]), list[dict[str, str]]()
    wish = {**queue, "MaxNumberOfMessages": MOST_AT_ONCE, "VisibilityTimeout": LOOK_S}
    try:
        while batch := ask("ReceiveMessage", wish).get("Messages"):
            seen += batch
            yield from (message["Body"] for message in batch)
            if time.monotonic() > deadline:
                break
    finally:
        for message in seen:
            with suppress(TemporaryError):  # then it comes again by itself
                again = {**queue, "ReceiptHandle": message["ReceiptHandle"], "VisibilityTimeout": 0}
                ask("ChangeMessageVisibility", again)


def _ask(endpoint: str, action: str, values: Mapping[str, object]) -> dict[str, Any]:
    try:
        return ask_sqs(endpoint, action, values)
    except (OSError, HTTPException, ValueError) as error:
        raise TemporaryError(f"{endpoint}: {error}") from error


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)
