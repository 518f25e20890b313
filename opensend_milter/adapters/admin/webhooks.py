"""WebhookAdmin: what the administrator's commands ask of the webhooks in the database."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, LiteralString, TypeVar

from psycopg.rows import class_row

from opensend_milter.adapters.admin.explaining import explained
from opensend_milter.adapters.admin.listing import Listed, listed, unwatched
from opensend_milter.adapters.admin.naming import start_of, the_one
from opensend_milter.adapters.postgres.link import Connection, statements
from opensend_milter.adapters.postgres.signing import signing_secret
from opensend_milter.core.errors import UsageError
from opensend_milter.core.ids import is_end, range_of
from opensend_milter.core.model import UserId
from opensend_milter.core.webhook import EventId, Webhook, WebhookId, secret_of

Row = TypeVar("Row")
Status = Literal["pending", "success", "dead_letter", "failed"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookRow:
    """A webhook, and what came of its latest attempt."""

    id: WebhookId
    url: str
    event_types: list[str]
    status: str
    user_id: UserId | None
    created_at: datetime
    generation: int
    rotated_at: datetime | None
    last_status: str | None
    last_code: int | None
    last_attempted_at: datetime | None
    pending: int

    @property
    def webhook(self) -> Webhook:
        return Webhook(id=self.id, url=self.url, generation=self.generation, rotated_at=self.rotated_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookDeliveryRow:
    """One event for one webhook."""

    id: str
    event_id: str
    type: str
    email_id: str | None
    status: str
    attempt: int
    code: int | None
    attempted_at: datetime | None
    next_retry_at: datetime | None
    created_at: datetime
    text: str | None


@dataclass(frozen=True, slots=True)
class _Event:
    id: EventId


class WebhookAdmin:
    """The administrator's view, over one connection that it does not close.

    Raises UsageError where something cannot be done as asked, StoreUnavailable where the database is the trouble.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def add(self, user_id: UserId, url: str, event_types: Sequence[str]) -> WebhookRow:
        """Add a webhook for these event types."""
        values = {"url": url, "event_types": json.dumps(event_types), "user_id": user_id}
        with explained():
            row = self._connection.execute(_sql("add"), values).fetchone()
        return self.find(str(row[0]) if row else "")

    def list_webhooks(self, user_id: str | None = None) -> list[WebhookRow]:
        """List webhooks of one user or of all, oldest first."""
        return self._rows("list", WebhookRow, user_id=user_id, named="")

    def find(self, named: str) -> WebhookRow:
        """Return the one webhook whose id begins or ends like this."""
        start = start_of(named, "webhook")
        return the_one(start, self._rows("list", WebhookRow, user_id=None, named=start), "webhook", "webhook list")

    def remove(self, webhook: WebhookRow) -> None:
        """Forget a webhook with all its deliveries."""
        self._execute("remove", id=webhook.id)

    def rotate(self, webhook: WebhookRow) -> WebhookRow:
        """Give it a new secret."""
        self._execute("rotate", id=webhook.id)
        return self.find(webhook.id)

    def signing(self) -> bytes:
        """Return what all keys of ours are derived from."""
        with explained():
            return signing_secret(self._connection)

    def secret(self, webhook: WebhookRow) -> str:
        """Return its secret as its receiver enters it."""
        return secret_of(self.signing(), webhook.id, webhook.generation)

    def replay(
        self, webhook: WebhookRow, *, event_id: str | None, since: datetime | None, failed: bool, lease: timedelta
    ) -> int:
        """Make deliveries due again, less those that somebody has in hand; return how many."""
        wanted = None if event_id is None else self._event(webhook, event_id)
        count = self._execute("replay", id=webhook.id, event_id=wanted, since=since, failed=failed, lease=lease)
        if wanted is not None and not count:
            raise UsageError(f"nothing to replay of event {wanted} for this webhook: see `webhook deliveries`")
        return count

    def _event(self, webhook: WebhookRow, named: str) -> EventId:
        """Return the one event that it was to be told and whose id begins or ends like this."""
        first, last = range_of(named) or (None, None)
        if first is None and not is_end(named):
            raise UsageError(f"--event: {named!r} is no id of an event, and no end of one: see `webhook deliveries`")
        values = {"id": webhook.id, "first": first, "last": last, "end": named.strip().lower()}
        return the_one(named, self._rows("events", _Event, **values), "event of this webhook", "webhook deliveries").id

    def deliveries(
        self,
        webhook: WebhookRow,
        *,
        status: Status | None,
        limit: int | None,
        progress: Callable[[int], None] = unwatched,
    ) -> Listed[WebhookDeliveryRow]:
        """List deliveries to a webhook, newest first."""
        values = {"id": webhook.id, "status": status}
        return listed(self._connection, _sql("deliveries"), WebhookDeliveryRow, limit, values, progress=progress)

    def _rows(self, name: str, row: type[Row], /, **values: object) -> list[Row]:
        with explained(), self._connection.cursor(row_factory=class_row(row)) as cursor:
            return cursor.execute(_sql(name), values).fetchall()

    def _execute(self, name: str, /, **values: object) -> int:
        with explained():
            return self._connection.execute(_sql(name), values).rowcount


def _sql(name: str) -> LiteralString:
    return statements("webhooks")[name]
