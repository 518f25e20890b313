"""What the console shows at a glance: what goes on, and the lists that commands show, each bounded."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from psycopg.rows import class_row

from opensend_milter.adapters.admin.findings import Examined, Fault, examined, faults
from opensend_milter.adapters.admin.listing import Listed, listed
from opensend_milter.adapters.admin.rows import DomainRow, KeyRow
from opensend_milter.adapters.admin.store import AdminStore
from opensend_milter.adapters.admin.webhooks import WebhookAdmin, WebhookRow
from opensend_milter.adapters.postgres.link import Connection, statements

Row = TypeVar("Row")
MOST_COUNTED = 100_000
"""Of the last hour, or day, the newest."""
MOST_LANES = 50
MOST_CAUSES = 10
MOST_WEBHOOK_CALLS = 10_000
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)
SQL = {**statements("overview"), "workers": statements("inspection")["workers"]}


@dataclass(frozen=True, slots=True, kw_only=True)
class Lane:
    """What is to be delivered of one user by one courier; empty: the configured one."""

    user_id: str
    courier: str
    waiting: int
    uncertain: int
    due_for: timedelta | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PutOff:
    """Why so many messages of a courier wait for another attempt."""

    courier: str
    reason: str
    messages: int
    next_at: datetime


@dataclass(frozen=True, slots=True)
class Sent:
    """What next hops took lately, and how long that was after it could be sent."""

    last_minute: int
    last_hour: int
    usual_delay: timedelta | None
    longest_delay: timedelta | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """What goes on."""

    at: datetime
    taken_last_minute: int
    taken_last_hour: int
    sent: Sent
    states: Sequence[tuple[str, int]]
    refusals: Sequence[tuple[str, int]]
    lanes: Sequence[Lane]
    put_off: Sequence[PutOff]
    workers: int
    """Connections that they have."""
    failing_webhooks: int
    examined: Sequence[Examined]
    faults: Sequence[Fault]


@dataclass(frozen=True, slots=True)
class Volume:
    """How many messages of each status began in each of some steps of time, the oldest first."""

    starts: Sequence[datetime]
    counts: Mapping[str, Sequence[int]]


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyUse:
    """A key, and how many messages of its day are left; None: it has no daily limit."""

    key: KeyRow
    left_today: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Suppression:
    """An address that a user's mail must not reach, and the message that showed why; None: nobody's message did."""

    user_id: str
    email: str
    reason: str
    suppressed_at: datetime
    updated_at: datetime
    source_email_id: str | None


@dataclass(frozen=True, slots=True)
class Overview:
    """For any number of threads; it only reads."""

    lend: Callable[[], AbstractContextManager[Connection]]

    def flow(self) -> Flow:
        """Look at what goes on."""
        with self.lend() as connection:
            taken = connection.execute(SQL["taken"], {"most": MOST_COUNTED}).fetchall()
            refused = connection.execute(SQL["refused"], {"most": MOST_COUNTED}).fetchall()
            sent = connection.execute(SQL["handed_over"], {"most": MOST_COUNTED}).fetchone()
            with connection.cursor(row_factory=class_row(Lane)) as cursor:
                lanes = cursor.execute(SQL["lanes"], {"lanes": MOST_LANES}).fetchall()
            with connection.cursor(row_factory=class_row(PutOff)) as cursor:
                put_off = cursor.execute(SQL["put_off"], {"causes": MOST_CAUSES}).fetchall()
            ((workers,),) = connection.execute(SQL["workers"])
            ((failing_webhooks,),) = connection.execute(SQL["failing_webhooks"], {"most": MOST_WEBHOOK_CALLS})
            hosts, wrong = examined(connection), faults(connection)
        return Flow(
            at=datetime.now(UTC),
            taken_last_minute=sum(count for *_, count in taken),
            taken_last_hour=sum(count for _, count, _ in taken),
            sent=Sent(*sent or (0, 0, None, None)),
            states=[(status, count) for status, count, _ in taken],
            refusals=[(rule, count) for rule, count in refused],
            lanes=lanes,
            put_off=put_off,
            workers=workers,
            failing_webhooks=failing_webhooks,
            examined=hosts,
            faults=wrong,
        )

    def volume(self, steps: int, step_s: int) -> Volume:
        """Count what came in, and what was refused, up to now."""
        first = int(datetime.now(UTC).timestamp()) // step_s - steps + 1
        with self.lend() as connection:
            rows = connection.execute(SQL["volume"], {"first": first, "step_s": step_s}).fetchall()
        counts: dict[str, list[int]] = {}
        for bar, status, count in rows:
            if bar < first + steps:
                counts.setdefault(status, [0] * steps)[bar - first] = count
        return Volume([datetime.fromtimestamp((first + at) * step_s, UTC) for at in range(steps)], counts)

    def keys(self, most: int) -> Listed[KeyUse]:
        """List keys, those used last first."""
        with self.lend() as connection:
            store = AdminStore(connection, makes_users=False)
            keys = sorted(store.list_keys(), key=lambda key: key.last_used_at or _NEVER, reverse=True)
            return _first(most, [KeyUse(key=key, left_today=_left(store, key)) for key in keys[:most]], len(keys))

    def domains(self, most: int) -> Listed[DomainRow]:
        """List domains, verified ones first."""
        with self.lend() as connection:
            rows = AdminStore(connection, makes_users=False).list_domains()
        return _first(most, rows, len(rows))

    def suppressions(self, most: int) -> Listed[Suppression]:
        """List suppressed addresses, newest first."""
        with self.lend() as connection:
            return listed(connection, SQL["suppressions"], Suppression, most, {})

    def webhooks(self, most: int) -> Listed[WebhookRow]:
        """List webhooks, those that fail first."""
        with self.lend() as connection:
            rows = WebhookAdmin(connection).list_webhooks()
        return _first(most, sorted(rows, key=lambda row: row.last_status in {None, "success"}), len(rows))


def _left(store: AdminStore, key: KeyRow) -> int | None:
    return None if key.per_day is None else max(key.per_day - store.sent_today(key.id), 0)


def _first(most: int, rows: Sequence[Row], total: int) -> Listed[Row]:
    return Listed([*rows[:most]], total)
