"""IntakeStore over psycopg: one round trip for the facts of a batch, one transaction to store it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

from opensend_milter.adapters.postgres import Link, statements
from opensend_milter.core import row
from opensend_milter.core.address import spellings
from opensend_milter.core.model import (
    Accept,
    Address,
    Attachment,
    Facts,
    KeyFacts,
    Message,
    Question,
    Refuse,
    Settlement,
    UserId,
)

log = logging.getLogger(__name__)
SQL = statements("intake")
CHUNK_BYTES = 1_048_576
RECORDED_CHARACTERS = 1_000
"""Of each text in the record of a refusal: a stranger decides how long it is."""


class PostgresIntakeStore:
    """One connection for one thread, opened when first needed and again after it was lost."""

    def __init__(self, info: str, *, name: str, timeout_s: float) -> None:
        self._link = Link(info, name=name, timeout_s=timeout_s)

    def close(self) -> None:
        """Let go of the connection."""
        self._link.close()

    def facts_for(self, questions: Sequence[Question]) -> list[Facts]:
        """Answer for a batch in one round trip."""
        spelled = [
            (ordinal, recipient, spelling)
            for ordinal, question in enumerate(questions, 1)
            for recipient in question.recipients
            for spelling in spellings(recipient)
        ]
        parameters = {
            "key_ids": [question.key_id for question in questions],
            "ascii_domains": [question.sender_domains[0] for question in questions],
            "unicode_domains": [question.sender_domains[1] for question in questions],
            "ordinals": [ordinal for ordinal, _, _ in spelled],
            "recipients": [_clean(recipient) for _, recipient, _ in spelled],
            "spellings": [_clean(spelling) for _, _, spelling in spelled],
        }
        with self._link.lend() as connection:
            return [_facts(found) for found in connection.execute(SQL["facts_for"], parameters)]

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """Store a batch in one transaction; return after COMMIT."""
        accepted = [(s.message, s.verdict) for s in settlements if isinstance(s.verdict, Accept)]
        refused = [(s.message, s.verdict) for s in settlements if isinstance(s.verdict, Refuse)]
        rest = [(message.id, no, at) for message, _ in accepted for no, at in _later_chunks(message)]
        if not settlements:
            return
        with self._link.lend() as connection:
            if not refused and not rest:
                connection.execute(SQL["settle"], _accept_parameters(accepted))
                return
            with connection.transaction():
                if accepted:
                    connection.execute(SQL["settle"], _accept_parameters(accepted))
                if refused:
                    connection.execute(SQL["refuse"], _refuse_parameters(refused))
                raw = {message.id: message.raw for message, _ in accepted}
                for email_id, chunk_no, at in rest:
                    piece = bytes(raw[email_id][at : at + CHUNK_BYTES])
                    connection.execute(SQL["add_chunk"], {"id": email_id, "chunk_no": chunk_no, "bytes": piece})


def _facts(found: tuple[Any, ...]) -> Facts:
    known, user_id, restricted, restricted_domain, verified, suppressed = found
    key = KeyFacts(
        user_id=None if user_id is None else UserId(user_id), restricted=restricted, restricted_domain=restricted_domain
    )
    return Facts(
        key=key if known else None,
        sender_domain_verified=verified,
        suppressed=tuple((Address(address), reason) for address, reason in suppressed or ()),
    )


def _later_chunks(message: Message) -> Iterator[tuple[int, int]]:
    return enumerate(range(CHUNK_BYTES, message.size, CHUNK_BYTES), 1)


def _accept_parameters(accepted: Sequence[tuple[Message, Accept]]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    for message, verdict in accepted:
        for name, value in (_row_values(message, verdict) | _record_values(message, verdict)).items():
            columns.setdefault(name, []).append(value)
    return columns


def _row_values(message: Message, verdict: Accept) -> dict[str, Any]:
    reading = verdict.reading
    shown = row.recipients(message.envelope.recipients, reading)
    return {
        "ids": message.id,
        "senders": _clean(row.sender(reading.sender)),
        "to_lists": _json(shown.to),
        "cc_lists": _json(shown.cc),
        "bcc_lists": _json(shown.bcc),
        "reply_tos": _json([mailbox.address for mailbox in reading.reply_to]),
        "subjects": _clean(reading.subject),
        "htmls": _clean(reading.html),
        "texts": _clean(reading.text),
        "header_objects": _json(row.headers(reading)),
        "attachment_lists": _json([_attachment(attachment) for attachment in reading.attachments]),
        "user_ids": verdict.user_id,
        "received_ats": message.received_at,
    }


def _record_values(message: Message, verdict: Accept) -> dict[str, Any]:
    return {
        "key_ids": message.session.key_id,
        "front_doors": message.session.front_door,
        "queue_ids": message.queue_id,
        "client_addresses": message.session.client_address,
        "tls": message.session.tls,
        "envelope_senders": _clean(message.envelope.sender),
        "from_addresses": _clean(verdict.reading.sender.address),
        "recipients": _json(message.envelope.recipients),
        "message_ids": verdict.reading.message_id and _clean(verdict.reading.message_id),
        "sizes": message.size,
        "digests": message.sha256,
        "chunk_numbers": 0,
        "first_chunks": bytes(message.raw[:CHUNK_BYTES]),
        "job_ids": message.id,
        "job_user_ids": verdict.user_id,
    }


def _refuse_parameters(refused: Sequence[tuple[Message, Refuse]]) -> dict[str, list[Any]]:
    columns: dict[str, list[Any]] = {}
    for message, refusal in refused:
        values = {
            "rules": refusal.rule.value,
            "codes": refusal.code,
            "enhanced": refusal.enhanced,
            "texts": _clean(refusal.text[:RECORDED_CHARACTERS]),
            "front_doors": message.session.front_door,
            "queue_ids": message.queue_id,
            "client_addresses": message.session.client_address,
            "key_ids": _clean(message.session.key_id[:RECORDED_CHARACTERS]),
            "senders": _clean(message.envelope.sender[:RECORDED_CHARACTERS]),
            "recipients": _json(message.envelope.recipients),
            "message_ids": None,
            "sizes": message.size,
        }
        for name, value in values.items():
            columns.setdefault(name, []).append(value)
    return columns


def _attachment(attachment: Attachment) -> dict[str, str]:
    fields = {
        "filename": attachment.filename,
        "content": attachment.content,
        "content_type": attachment.content_type,
    }
    return fields | ({"content_id": attachment.content_id} if attachment.content_id else {})


def _json(value: Sequence[str] | Sequence[dict[str, str]] | dict[str, str]) -> str:
    if isinstance(value, dict):
        return json.dumps(_clean_object(value))
    return json.dumps([_clean_object(item) if isinstance(item, dict) else _clean(item) for item in value])


def _clean_object(fields: dict[str, str]) -> dict[str, str]:
    return {_clean(name): _clean(text) for name, text in fields.items()}


def _clean(text: str) -> str:
    """Make any text one that Postgres takes: without NUL, without half a surrogate pair."""
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace("\x00", "\ufffd")
