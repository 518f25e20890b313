"""Messages for unit tests."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime

from opensend_milter.core.budget import Budget
from opensend_milter.core.ids import new_email_id
from opensend_milter.core.intake import Intake
from opensend_milter.core.model import Address, Envelope, KeyId, Message, Outcome, Reading, Session

KEY = KeyId("3f0f8f3e-5f0e-4c57-9d5c-0b8f5f1d9a11")
RECEIVED_AT = datetime(2026, 1, 2, tzinfo=UTC)
PLAIN = b"From: a@example.org\r\nTo: b@example.net\r\nSubject: hi\r\n\r\nhello\r\n"


def message(raw: bytes = PLAIN, *recipients: str) -> Message:
    """Make a message as a front door would."""
    return Message(
        id=new_email_id(),
        session=Session(key_id=KEY, front_door="smtp", client_address="192.0.2.7", tls=""),
        envelope=Envelope(sender="", recipients=tuple(map(Address, recipients or ("b@example.net",)))),
        queue_id="4XQUEUE",
        received_at=RECEIVED_AT,
        raw=raw,
        size=len(raw),
        sha256=hashlib.sha256(raw).digest(),
    )


def decide(intake: Intake, messages: Sequence[Message]) -> list[Outcome]:
    """Read messages and have them judged and stored together."""
    lots = intake.accept([[(one, intake.read(one, Budget.of(one.size)))] for one in messages])
    return [outcome for lot in lots for outcome in lot if outcome is not None]


def texts(reading: Reading) -> Iterator[str]:
    """Yield all that a reading says."""
    yield from (reading.subject, reading.text, reading.html, reading.message_id or "")
    for mailbox in (reading.sender, *reading.to, *reading.cc, *reading.reply_to):
        yield from (mailbox.name, mailbox.address)
    for pair in (*reading.fields, *reading.wishes.tags, *reading.wishes.metadata.items()):
        yield from pair
    for attachment in reading.attachments:
        yield from (attachment.filename, attachment.content_type, attachment.content_id or "")
    yield from (*reading.unknown_charsets, reading.doubt)
