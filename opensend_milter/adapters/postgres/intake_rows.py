"""What the statements of intake.sql take: rows of a batch as columns, one list each."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC
from http import HTTPStatus
from typing import Any
from uuid import uuid4

from opensend_milter.core import row
from opensend_milter.core.address import domain_of, normal_domain
from opensend_milter.core.ids import key_id
from opensend_milter.core.model import Accept, Attachment, EmailId, Message, Reading, Refuse, Repeat, Settlement
from opensend_milter.core.refs import token_hash
from opensend_milter.core.rules import Rule
from opensend_milter.core.transfer import PIECE_BYTES, views

CHUNK_BYTES = PIECE_BYTES
RECORDED_CHARACTERS = 1_000
"""Of each text in the record of a refusal: a stranger decides how long it is."""

Values = dict[str, Any]
"""One row, by the name of each column's parameter."""
Step = tuple[str, Mapping[str, Any]]
"""Name of a statement, and its parameters."""
_NUL = "\x00"
_BYTES = frozenset({"digests", "content_digests", "fingerprints", "only_chunks", "token_hashes"})


def columns(rows: Sequence[Values]) -> Mapping[str, list[Any] | str]:
    """Turn rows into one array a column, as unnest() takes them."""
    return {name: _column(name, [values[name] for values in rows]) for name in rows[0]}


def _column(name: str, values: list[Any]) -> list[Any] | str:
    return values if name in _BYTES else array(values)


def lines(addresses: Iterable[str]) -> str:
    """Write addresses one a line, as none has a line end: linear, where a slice of one array for all is not."""
    return clean("\n".join(addresses))


def array(values: Sequence[object]) -> str:
    """Write an array as Postgres reads one: psycopg would take a third of a message's time for it."""
    if None in values:
        return "{" + ",".join(["NULL" if value is None else f'"{_escaped(str(value))}"' for value in values]) + "}"
    # All at once: a NUL is in none of them, and an escape for each would take longest of all.
    together = _escaped(_NUL.join(map(str, values)))
    if together.count(_NUL) >= len(values) > 0:
        raise ValueError("a value holds a NUL")
    together = together.replace(_NUL, '","')
    return f'{{"{together}"}}' if values else "{}"


def _escaped(text: str) -> str:
    # Not translate(): that asks for each letter, and nobody else runs meanwhile.
    return text.replace("\\", "\\\\").replace('"', '\\"')


def chunks(message: Message) -> Iterator[Step]:
    """Yield the raw bytes of a message that is more than one chunk: in an array each would be copied three times."""
    if message.size > CHUNK_BYTES:
        for number, piece in enumerate(views(message.raw, 0, message.size)):
            yield "add_chunk", {"id": message.id, "chunk_no": number, "bytes": piece}


def pieces(email_id: EmailId, reading: Reading) -> Iterator[Step]:
    """Yield attachments that are too large to be one parameter, piece by piece."""
    for attachment_no, attachment in enumerate(reading.attachments, 1):
        for piece_no, piece in enumerate(attachment.content.pieces()):
            content = piece.decode("ascii")
            place = {"id": email_id, "attachment_no": attachment_no, "piece_no": piece_no}
            yield "stage", {**place, "content": content}


def is_large(accept: Accept) -> bool:
    """Tell whether the attachments go into the row by way of `pieces`, or not at all."""
    return sum(each.content.end - each.content.start for each in accept.reading.attachments) > CHUNK_BYTES


def has_event(settlement: Settlement) -> bool:
    """Tell whether suppressed recipients made a difference that OpenSend has an event for."""
    if not settlement.suppressed or settlement.user_id is None:
        return False
    match settlement.verdict:
        case Accept(dropped=dropped):
            return bool(dropped)
        case Refuse(rule=rule):
            return rule is Rule.RECIPIENT_SUPPRESSED
        case _:
            return False


def event_values(settlement: Settlement) -> Values:
    """Make OpenSend's event of suppressed recipients."""
    recipients = [{"email": address.lower(), "reason": reason} for address, reason in settlement.suppressed]
    submitted_at = settlement.message.received_at.astimezone(UTC)
    payload: dict[str, object] = {
        "reason": "recipient_suppressed",
        "recipients": recipients,
        "recipient_count": len(recipients),
        "submitted_at": submitted_at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    if not isinstance(settlement.verdict, Accept):
        payload |= _unstored(settlement)
    return {
        "event_ids": uuid4(),
        "email_ids": settlement.message.id if isinstance(settlement.verdict, Accept) else None,
        "user_ids": settlement.user_id,
        "payloads": json.dumps(payload),
    }


def _unstored(settlement: Settlement) -> dict[str, object]:
    """Say by what its sender knows a message of which there is no row."""
    message = settlement.message
    return {
        "key_id": key_id(message.session.key_id),
        "queue_id": clean(message.queue_id),
        "message_id": clean(settlement.message_id[:RECORDED_CHARACTERS]) if settlement.message_id else None,
        "from": clean((settlement.from_address or "")[:RECORDED_CHARACTERS]),
        "subject": clean(settlement.subject[:RECORDED_CHARACTERS]),
    }


def is_logged(settlement: Settlement) -> bool:
    """Tell whether the dashboard is to show it: not where nobody's key was used, nor what was sent again."""
    return not isinstance(settlement.verdict, Repeat) and key_id(settlement.message.session.key_id) is not None


def log_values(settlement: Settlement) -> Values:
    """Say in HTTP's words what was answered: the dashboard knows no others. Nothing of what the message says."""
    message, verdict = settlement.message, settlement.verdict
    session = message.session
    request = {
        "mail_from": clean(message.envelope.sender),
        "recipients": [clean(address) for address in message.envelope.recipients],
        "size": message.size,
        "queue_id": clean(message.queue_id),
    }
    response: dict[str, Any]
    if isinstance(verdict, Refuse):
        status = verdict.rule.logged
        said = clean(f"{verdict.code} {verdict.enhanced} {verdict.text}")
        response = {"code": verdict.rule.value, "message": said, "ref": verdict.ref}
    else:
        status, response = HTTPStatus.OK, {"id": message.id}
    return {
        "endpoints": session.endpoint or session.front_door,
        "methods": "POST" if session.endpoint else session.front_door.upper(),
        "statuses": int(status),
        "requests": json.dumps(request),
        "responses": json.dumps(response),
        "documents": json.dumps({"apiKeyId": session.key_id, "emailId": response.get("id")}),
        "key_ids": session.key_id,
    }


def accept_values(message: Message, accept: Accept, fingerprint: bytes | None, *, whole_rows: bool) -> Values:
    """Make OpenSend's row, and our record beside it."""
    headers = row.headers(accept.reading)
    return _row(message, accept, headers, whole_rows=whole_rows) | _record(message, accept, headers, fingerprint)


def _row(message: Message, accept: Accept, headers: row.Headers, *, whole_rows: bool) -> Values:
    reading, wishes = accept.reading, accept.reading.wishes
    shown = row.recipients(accept.recipients, reading)
    large = is_large(accept)
    return {
        "ids": message.id,
        "senders": clean(row.sender(reading.sender)),
        "to_lists": _json(shown.to),
        "cc_lists": _json(shown.cc),
        "bcc_lists": _json(shown.bcc),
        "reply_tos": _json([row.ascii_domain(mailbox.address) for mailbox in reading.reply_to]),
        "subjects": clean(reading.subject),
        "htmls": clean(reading.html),
        "texts": clean(row.text(reading)),
        "tag_lists": json.dumps([{"name": name, "value": value} for name, value in wishes.tags])
        if wishes.tags
        else "[]",
        "header_objects": _json(headers.kept),
        "attachment_lists": attachments(reading, with_content=not large),
        "staged": large and whole_rows,
        "user_ids": accept.user_id,
        "scheduled_ats": accept.scheduled_at,
        "couriers": accept.courier or "",
        "idempotency_keys": wishes.idempotency_key,
        "documents": json.dumps({"metadata": _clean_object(wishes.metadata)}) if wishes.metadata else None,
    }


def _record(message: Message, accept: Accept, headers: row.Headers, fingerprint: bytes | None) -> Values:
    dropped = [{"email": address, "reason": reason} for address, reason in accept.dropped]
    return {
        "key_ids": message.session.key_id,
        "front_doors": message.session.front_door,
        "queue_ids": clean(message.queue_id),
        "bulk_ids": message.bulk_id,
        "client_addresses": clean(message.session.client_address),
        "tls": message.session.tls,
        "envelope_senders": clean(message.envelope.sender),
        "from_addresses": clean(accept.reading.sender.address),
        "recipients": lines(accept.recipients),
        "message_ids": accept.reading.message_id and clean(accept.reading.message_id),
        "sizes": message.size,
        "digests": message.sha256,
        "only_chunks": bytes(message.raw) if message.size <= CHUNK_BYTES else None,
        "fingerprints": fingerprint,
        "content_digests": accept.identity.content_digest,
        "dropped": _json(dropped) if dropped else None,
        "left_out": _json(headers.left_out) if headers.left_out else None,
    }


def refuse_values(settlement: Settlement, refusal: Refuse) -> Values:
    """Make the record of a refusal."""
    message = settlement.message
    return {
        "rules": refusal.rule.value,
        "codes": refusal.code,
        "enhanced": refusal.enhanced,
        "texts": clean(refusal.text[:RECORDED_CHARACTERS]),
        "front_doors": message.session.front_door,
        "queue_ids": clean(message.queue_id),
        "client_addresses": clean(message.session.client_address),
        "key_ids": clean(message.session.key_id[:RECORDED_CHARACTERS]),
        "user_ids": settlement.user_id,
        "senders": clean(message.envelope.sender[:RECORDED_CHARACTERS]),
        "recipients": _json(message.envelope.recipients),
        "message_ids": clean((settlement.message_id or "")[:RECORDED_CHARACTERS]) or None,
        "sizes": message.size,
        "key_uuids": key_id(message.session.key_id),
        "from_domains": normal_domain(domain_of(settlement.from_address or "")),
        "refs": refusal.ref,
        "token_hashes": token_hash(refusal.token),
    }


def attachments(reading: Reading, *, with_content: bool) -> str:
    """Make the row's list of them."""
    return _json([_attachment(attachment, with_content=with_content) for attachment in reading.attachments])


def _attachment(attachment: Attachment, *, with_content: bool) -> dict[str, str]:
    fields = {"filename": attachment.filename, "content_type": attachment.content_type}
    if attachment.content_id:
        fields["content_id"] = attachment.content_id
    if with_content:
        fields["content"] = b"".join(attachment.content.pieces()).decode("ascii")
    return fields


def _json(value: Sequence[str] | Sequence[dict[str, str]] | dict[str, str]) -> str:
    if not value:
        return "{}" if isinstance(value, dict) else "[]"
    written = json.dumps(value)
    if "\\u" not in written:  # plain ASCII: nothing is to be cleaned
        return written
    if isinstance(value, dict):
        return json.dumps(_clean_object(value))
    return json.dumps([clean(item) if isinstance(item, str) else _clean_object(item) for item in value])


def _clean_object(fields: dict[str, str]) -> dict[str, str]:
    return {clean(name): clean(text) for name, text in fields.items()}


def clean(text: str) -> str:
    """Make any text one that Postgres takes: without NUL, without half a surrogate pair."""
    if not text.isascii():
        text = text.encode("utf-8", "replace").decode("utf-8")
    return text.replace("\x00", "\ufffd")
