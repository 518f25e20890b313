"""A request's body -> the messages that it asks for, each with an id, or what is wrong with it."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from opensend_milter.core.address import normal_domain
from opensend_milter.core.fields import FieldError
from opensend_milter.core.ids import new_email_id
from opensend_milter.core.model import Address, EmailId, Envelope, KeyId, Mailbox, Message, Session
from opensend_milter.core.rates import Decision
from opensend_milter.core.request import Dialect, RequestLimits, SendRequest, read_send
from opensend_milter.core.strict_json import parse_json
from opensend_milter.core.submission import request_id
from opensend_milter.core.writing import envelope, write
from opensend_milter.servers.web.refusals import Refused

log = logging.getLogger(__name__)
NOT_YET = Refused(503, "unavailable", "not now, try again later")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a request says besides its body."""

    limit: Decision
    endpoint: str
    dialect: Dialect
    key_id: KeyId
    client_address: str
    is_tls: bool
    idempotency_key: str | None
    bulk_id: str | None = None
    one_of: int = 0
    """How many the request brings, where its name stands for all of them together."""

    def item(self, index: int) -> Asked:
        """Return it for one message of a bulk: each has a name of its own under the request's."""
        return replace(self, idempotency_key=f"{self.idempotency_key}#{index}") if self.idempotency_key else self


@dataclass(frozen=True, slots=True, kw_only=True)
class Bodies:
    """What may be asked for. Of what JSON became, nothing is left but the messages."""

    limits: RequestLimits
    default_from: str
    max_bulk_messages: int

    def one(self, body: bytearray, asked: Asked, email_id: EmailId) -> Message:
        """Write the one message of a body; raise Refused."""
        message = self._message(json_of(body), asked, email_id)
        if isinstance(message, Refused):
            raise message
        return message

    def several(self, body: bytearray, asked: Asked) -> list[tuple[EmailId, Message | Refused]]:
        """Write the messages of a body, in order; raise Refused where it is no list of them."""
        payload = json_of(body)
        if asked.dialect == "rele":
            if not isinstance(payload, dict) or payload.keys() != {"messages"}:
                raise Refused(400, "bad_request", "expected an object with the one field messages")
            payload = payload["messages"]
        if not isinstance(payload, list) or not payload:
            raise Refused(400, "bad_request", "expected a list of one message or more")
        if len(payload) > self.max_bulk_messages:
            raise Refused(
                413, "payload_too_large", f"{len(payload)} messages are over the limit of {self.max_bulk_messages}"
            )
        one_of = len(payload) if asked.dialect == "resend" else 0
        return list(self._written(payload, replace(asked, one_of=one_of)))

    def _written(self, payload: list[object], asked: Asked) -> Iterator[tuple[EmailId, Message | Refused]]:
        for index in range(len(payload)):
            # Not in memory twice, however many there are.
            item, payload[index] = payload[index], None
            email_id = new_email_id()
            try:
                yield email_id, self._message(item, asked.item(index), email_id)
            except Exception:
                # The others have nothing to do with it.
                log.exception("%s: not read", request_id(email_id))
                yield email_id, NOT_YET

    def _message(self, payload: object, asked: Asked, email_id: EmailId) -> Message | Refused:
        read = read_send(payload, asked.dialect, self.limits)
        if not isinstance(read, SendRequest):
            errors = [told(error) for error in read]
            many = f"{len(errors)} fields are wrong" if len(errors) > 1 else "a field is wrong"
            text = f"{many}: {errors[0]['message']}"
            return Refused(400, "validation_failed", text, errors=errors)
        sender = read.sender or (Mailbox(read.from_name, Address(self.default_from)) if self.default_from else None)
        if sender and read.from_name:
            sender = Mailbox(read.from_name, sender.address)
        if sender is None:
            missing = {"field": "from", "code": "required", "message": "from is missing, and there is no default"}
            return Refused(400, "validation_failed", missing["message"], errors=[missing])
        return _written(asked, read, sender, email_id)


def json_of(body: bytearray) -> object:
    """Read JSON; raise Refused where it is none."""
    found = parse_json(body)
    if isinstance(found, FieldError):
        raise Refused(400, "bad_request", found.message, errors=[told(found)])
    return found


def told(error: FieldError) -> dict[str, str]:
    """Tell what is wrong with a field."""
    return {"field": error.field, "code": error.code, "message": error.message}


def _written(asked: Asked, read: SendRequest, sender: Mailbox, email_id: EmailId) -> Message:
    received_at = datetime.now(UTC)
    domain = sender.address.rpartition("@")[2]
    named = replace(read, idempotency_key=asked.idempotency_key) if asked.idempotency_key else read
    raw = write(named, sender=sender, message_id=f"<{email_id}@{normal_domain(domain) or domain}>", date=received_at)
    return Message(
        id=email_id,
        session=Session(
            key_id=asked.key_id,
            front_door="http",
            client_address=asked.client_address,
            tls="HTTPS" if asked.is_tls else "",
            endpoint=asked.endpoint,
        ),
        envelope=Envelope(sender=sender.address, recipients=envelope(read)),
        queue_id=request_id(email_id),
        bulk_id=asked.bulk_id,
        one_of=asked.one_of,
        received_at=received_at,
        raw=raw,
        size=len(raw),
        sha256=hashlib.sha256(raw).digest(),
    )
