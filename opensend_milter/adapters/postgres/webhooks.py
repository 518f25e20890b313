"""Deliveries over psycopg: claimed for one attempt, given back by time where nobody records what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from opensend_milter.adapters.postgres.link import Link, Tables, statements
from opensend_milter.adapters.postgres.signing import signing_secret
from opensend_milter.core.model import EmailId
from opensend_milter.core.webhook import (
    Answer,
    DeliveryId,
    Event,
    EventId,
    Fate,
    Webhook,
    WebhookDelivery,
    WebhookId,
)
from opensend_milter.core.webhook_data import Mail

SQL = statements("webhooks")
LOOKUP = timedelta(seconds=60)
"""How long a resolver may take, beside the call itself."""


def lease_of(timeout_s: float) -> timedelta:
    """Return how long a delivery may be in hand: longer than any call takes."""
    return timedelta(seconds=2 * timeout_s) + LOOKUP


class DeliveryRow(NamedTuple):
    """A delivery just claimed, with its webhook and its event."""

    id: DeliveryId
    attempt: int
    webhook_id: WebhookId
    url: str
    generation: int
    rotated_at: datetime | None
    event_id: EventId
    type: str
    received_at: datetime
    email_id: EmailId | None
    payload: object
    is_told_in_full: bool
    created_at: datetime | None
    sender: str | None
    to: object
    subject: str | None
    tags: object
    metadata: object
    message_id: str | None
    queue_id: str | None
    recipients: list[str] | None
    key_id: str | None
    key_name: str | None


class PostgresWebhooks:
    """One connection for one thread, opened when first needed and again after it was lost."""

    def __init__(
        self, info: str, *, name: str, timeout_s: float, lease: timedelta, tables: Tables | None = None
    ) -> None:
        self._link = Link(info, name=name, timeout_s=timeout_s, tables=tables)
        self._lease = lease

    def close(self) -> None:
        """Let go of the connection."""
        self._link.close()

    def secret(self) -> bytes:
        """Return what all keys of ours are derived from."""
        with self._link.lend() as connection:
            return signing_secret(connection)

    def claim(self, at_most: int, full: Sequence[WebhookId]) -> list[WebhookDelivery]:
        """Take deliveries that are due, of each webhook at most one, and none of those that are `full`."""
        with self._link.lend() as connection:
            values = {"limit": at_most, "full": list(full), "lease": self._lease}
            return [_delivery(DeliveryRow._make(row)) for row in connection.execute(SQL["claim"], values)]

    def record(self, delivery: WebhookDelivery, answer: Answer, fate: Fate) -> bool:
        """Note what came of it; False where somebody else has it in hand meanwhile, or knows better."""
        values: Mapping[str, Any] = {
            "id": delivery.id,
            "attempt": delivery.attempt,
            "status": fate.status,
            "code": answer.code,
            "text": answer.text,
            "pause": None if fate.pause_s is None else timedelta(seconds=fate.pause_s),
        }
        with self._link.lend() as connection:
            return connection.execute(SQL["record"], values).fetchone() is not None


def _delivery(row: DeliveryRow) -> WebhookDelivery:
    return WebhookDelivery(
        id=row.id,
        attempt=row.attempt,
        webhook=Webhook(id=row.webhook_id, url=row.url, generation=row.generation, rotated_at=row.rotated_at),
        event=Event(
            id=row.event_id,
            type=f"email.{row.type}",
            at=row.received_at,
            email_id=row.email_id,
            payload=row.payload if isinstance(row.payload, dict) else {"payload": row.payload},
            mail=_mail(row) if row.is_told_in_full else None,
        ),
    )


def _mail(row: DeliveryRow) -> Mail:
    return Mail(
        created_at=row.created_at,
        sender=row.sender,
        to=row.to,
        subject=row.subject,
        tags=row.tags,
        metadata=row.metadata,
        message_id=row.message_id,
        queue_id=row.queue_id,
        recipients=row.recipients or (),
        key_id=row.key_id,
        key_name=row.key_name,
    )
