"""DeliveryAdmin: what a person may do about a delivery, and what a domain asks of our worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from psycopg.rows import class_row

from opensend_milter.adapters.admin.explaining import explained
from opensend_milter.adapters.admin.naming import emails_named, no_email, the_email
from opensend_milter.adapters.postgres.link import Connection, statements
from opensend_milter.core.actions import Stood
from opensend_milter.core.couriers import CourierName
from opensend_milter.core.model import EmailId

SQL = statements("deliveries")
AT_ONCE = 500
Ending = Literal["sent", "failed", "canceled"]
Unsent = Literal["failed", "bounced"]
"""Of what nobody got: how it ended."""
_ENDS: dict[Ending, list[str]] = {"sent": ["uncertain"], "failed": ["uncertain", "waiting"], "canceled": ["waiting"]}
"""In which state of its job an email may be ended so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainSettings:
    """What a domain asks of our worker."""

    name: str
    user_id: str | None
    status: str
    courier: CourierName | None
    """None: as the configuration says."""
    region: str | None
    configuration_set: str | None
    track_opens: bool
    track_clicks: bool
    tracking_host: str | None
    one_click: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DomainChanges:
    """What is to be different; None leaves a thing as it is, an empty text takes it away."""

    courier: str | None = None
    region: str | None = None
    configuration_set: str | None = None
    track_opens: bool | None = None
    track_clicks: bool | None = None
    tracking_host: str | None = None
    one_click: bool | None = None


@dataclass(frozen=True, slots=True)
class Done:
    """What came of a request about several emails."""

    done: Mapping[EmailId, Stood]
    """Each as it was before."""
    not_done: dict[str, str]
    """Each with the reason."""


class DeliveryAdmin:
    """Over one connection that it does not close. Raises UsageError, or StoreUnavailable."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def find(self, asked: Sequence[str]) -> dict[str, EmailId]:
        """Return the emails of these ids, ends of ids, or queue ids; raise UsageError where one is not known."""
        named = {name: the_email(name, found) for name, found in emails_named(self._connection, asked).items()}
        if unknown := [name for name, email_id in named.items() if email_id is None]:
            raise no_email(unknown)
        return {name: email_id for name, email_id in named.items() if email_id is not None}

    def unsent(self, status: Unsent, *, user_id: str | None, since: datetime | None) -> list[EmailId]:
        """List what nobody got and could be tried again, oldest first."""
        rows = self._all("unsent_ids", status=status, user_id=user_id, since=since)
        return [EmailId(email_id) for (email_id,) in rows]

    def retry(self, ids: Sequence[EmailId]) -> Done:
        """Have emails tried again now."""
        return self._done(ids, self._all("retry", ids=list(ids)))

    def end(self, ids: Sequence[EmailId], ending: Ending, reason: str) -> Done:
        """End the delivery of emails as a person says."""
        states = _ENDS[ending]
        return self._done(ids, self._all("close", ids=list(ids), states=states, status=ending, reason=reason))

    def set_domain(self, domain_id: str, changes: DomainChanges) -> DomainSettings:
        """Change what a domain asks for; return all of it."""
        values = {name: getattr(changes, name) for name in DomainChanges.__slots__}
        with explained(), self._connection.cursor(row_factory=class_row(DomainSettings)) as cursor:
            cursor.execute(SQL["set_domain"], {"id": domain_id, **values})
            return cursor.execute(SQL["show_domain"], {"id": domain_id}).fetchall()[0]

    def _done(self, ids: Sequence[EmailId], rows: list[tuple[Any, ...]]) -> Done:
        done: dict[EmailId, Stood] = {EmailId(email_id): was for email_id, was in rows}
        left = [email_id for email_id in ids if email_id not in done]
        standing = self._all("standing", ids=left) if left else []
        reasons = {email_id: _why_not(status, state, dropped=dropped) for email_id, status, state, dropped in standing}
        return Done({email_id: done[email_id] for email_id in ids if email_id in done}, reasons)

    def _all(self, name: str, **values: object) -> list[tuple[Any, ...]]:
        with explained():
            return self._connection.execute(SQL[name], values).fetchall()


def _why_not(status: str, state: str | None, *, dropped: bool) -> str:
    match state:
        case "claimed" | "attempting":
            return "a worker has it in hand just now"
        case "uncertain":
            return "its outcome is unknown: retry, fail or mark-sent it"
        case "waiting":
            return f"it is {status} and waits for its next attempt"
        case _ if dropped:
            return f"it is {status}, and its bytes are not kept any more"
        case _:
            return f"it is {status}"
