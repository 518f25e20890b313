"""FeedbackBox and FeedbackBook over psycopg: reports put down by anybody, taken up by one worker at a time."""

from __future__ import annotations

import dataclasses
import json
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

from opensend_milter.adapters.postgres.link import Connection, Link, Tables, statements, store_errors
from opensend_milter.adapters.postgres.signing import signing_secret
from opensend_milter.core import counting
from opensend_milter.core.address import folded
from opensend_milter.core.errors import RowRefused, StoreUnavailable
from opensend_milter.core.feedback import (
    Affected,
    Effects,
    Known,
    Report,
    ReportMalformed,
    Standing,
    effects,
    mapping_of,
    payload,
    report_of,
)
from opensend_milter.core.ids import SENT_ONCE
from opensend_milter.core.model import Address, EmailId, UserId
from opensend_milter.core.next_hop import INLINE, LANE_FOR, LANE_RECIPIENTS, is_relay_broken

log = logging.getLogger(__name__)
SQL = statements("feedback")
NO_EMAIL = "00000000-0000-0000-0000-000000000000"
SOFT_FOR = timedelta(days=7)
PATIENCE = timedelta(minutes=15)
"""How long a report may be ahead of the record that says whose the provider's id is."""
PRUNED_AT_ONCE = 1_000
PRUNE_ROUNDS = 50


class PostgresFeedbackBox:
    """FeedbackBox for any number of threads, which take turns on one connection."""

    def __init__(self, info: str, *, name: str, timeout_s: float) -> None:
        self._link = Link(info, name=name, timeout_s=timeout_s)
        self._timeout_s = timeout_s
        self._lock = threading.Lock()

    def close(self) -> None:
        """Let go of the connection."""
        self._link.close()

    def put(self, reports: Sequence[Report]) -> None:
        """Store reports that were verified; return after COMMIT."""
        if reports:
            values = {
                "kinds": [report.kind for report in reports],
                "source_ids": [report.source_id for report in reports],
                "email_ids": [report.email_id or NO_EMAIL for report in reports],
                "payloads": [json.dumps(payload(report)) for report in reports],
            }
            with self._lent() as connection:
                connection.execute(SQL["put"], values)

    def secret(self) -> bytes:
        """Return what all keys of ours are derived from."""
        with self._lent() as connection:
            return signing_secret(connection)

    @contextmanager
    def _lent(self) -> Iterator[Connection]:
        if not self._lock.acquire(timeout=self._timeout_s):
            raise StoreUnavailable
        try:
            with self._link.lend() as connection:
                yield connection
        finally:
            self._lock.release()


class ReportRow(NamedTuple):
    """A report as it was put down, with the message it is about."""

    id: int
    kind: str
    source_id: str
    payload: object
    email_id: str | None
    user_id: str
    recipients: Sequence[str]


class StandingRow(NamedTuple):
    """Where a job stands that reports are about."""

    email_id: str
    is_in_hand: bool
    is_unresolved: bool
    recipients: Sequence[str] | None


@dataclass(frozen=True, slots=True)
class _Delivery:
    """Where the delivery of a message stands."""

    is_in_hand: bool
    standing: Standing
    recipients: Sequence[str] | None


_NO_JOB = _Delivery(is_in_hand=False, standing=Standing.DONE, recipients=None)


class PostgresFeedbackBook:
    """FeedbackBook for one thread."""

    def __init__(
        self, info: str, *, name: str, timeout_s: float, soft_bounces: int, tables: Tables | None = None
    ) -> None:
        """`soft_bounces`: so many within a week suppress an address; 0: never."""
        self._link = Link(info, name=name, timeout_s=timeout_s, tables=tables)
        self._soft_bounces = soft_bounces

    def close(self) -> None:
        """Let go of the connection."""
        self._link.close()

    def apply(self, at_most: int) -> int:
        """Do what the oldest reports ask for, in one transaction; return how many are done with."""
        with self._link.lend() as connection, connection.transaction():
            if connection.execute(SQL["take_turn"]).fetchone() != (True,):
                return 0
            rows = connection.execute(SQL["due"], {"limit": at_most, "patience": PATIENCE}).fetchall()
            found = [ReportRow._make(row) for row in rows]
            deliveries = _deliveries(connection, found)
            done = [one for one in found if not deliveries.get(one.email_id or "", _NO_JOB).is_in_hand]
            for one in done:
                self._take_up(connection, one, deliveries)
            connection.execute(SQL["done"], {"ids": [one.id for one in done]})
        return len(done)

    def prune(self) -> int:
        """Forget soft bounces that are too old to count. Return how many."""
        pruned = 0
        for _ in range(PRUNE_ROUNDS):
            with self._link.lend() as connection:
                batch = connection.execute(SQL["prune_soft"], {"age": SOFT_FOR, "limit": PRUNED_AT_ONCE}).rowcount
            pruned += batch
            if batch < PRUNED_AT_ONCE:
                break
        return pruned

    def _take_up(self, connection: Connection, found: ReportRow, deliveries: dict[str, _Delivery]) -> None:
        """Apply one report; one that the database will not take is dropped, since no other would ever be reached."""
        if found.email_id is None:
            log.warning("feedback=%s source=%s dropped: of no message of ours", found.kind, found.source_id)
            return
        email_id = EmailId(found.email_id)
        try:
            report = report_of(found.kind, found.source_id, email_id, found.payload)
            known = _known(found, deliveries.get(email_id, _NO_JOB))
            said = found.payload
            if report.via == INLINE and _is_relay_broken(connection, report, known.user_id):
                log.warning("email=%s feedback=%s suppresses nobody: the next hop knows too few", email_id, found.kind)
                known = dataclasses.replace(known, is_relay_broken=True)
                said = {name: value for name, value in mapping_of(said).items() if name != "permanent"}
            asked = effects(report, known)
            if asked is None:
                log.warning("email=%s feedback=%s dropped: it names none of its recipients", email_id, found.kind)
                return
            with store_errors(), connection.transaction():
                is_new = _Application(connection, report, known, asked, self._soft_bounces).run(said)
        except (RowRefused, ReportMalformed) as error:
            log.error("email=%s feedback=%s dropped: %s", email_id, found.kind, error)  # noqa: TRY400
            return
        log.info("email=%s feedback=%s source=%s new=%s", email_id, found.kind, found.source_id, is_new)
        if is_new:
            counting.feedback(found.kind)
        if is_new and asked.closes_job:
            deliveries.pop(email_id)


def _deliveries(connection: Connection, found: Sequence[ReportRow]) -> dict[str, _Delivery]:
    ids = sorted({one.email_id for one in found if one.email_id})
    rows = map(StandingRow._make, connection.execute(SQL["standing"], {"ids": ids}))
    return {
        row.email_id: _Delivery(
            row.is_in_hand, Standing.UNRESOLVED if row.is_unresolved else Standing.OPEN, row.recipients
        )
        for row in rows
    }


def _known(found: ReportRow, delivery: _Delivery) -> Known:
    return Known(
        email_id=EmailId(found.email_id or NO_EMAIL),
        user_id=UserId(found.user_id),
        recipients=tuple(map(Address, found.recipients)),
        standing=delivery.standing,
        waiting_for=None if delivery.recipients is None else tuple(map(Address, delivery.recipients)),
    )


def _is_relay_broken(connection: Connection, report: Report, user_id: UserId) -> bool:
    values = {
        "user_id": user_id,
        "courier": report.details.get("courier", ""),
        "most": LANE_RECIPIENTS,
        "age": LANE_FOR,
    }
    ((recipients, unknown),) = connection.execute(SQL["lane_answers"], values)
    return is_relay_broken(recipients, unknown)


@dataclass(frozen=True, slots=True)
class _Application:
    """Writes the effects of one report."""

    connection: Connection
    report: Report
    known: Known
    effects: Effects
    soft_bounces: int

    def run(self, said: object) -> bool:
        """Write them all; False, and nothing is written, where the same was reported before."""
        asked = self.effects
        if asked.event == "bounced" and self.report.via != INLINE and self._is_told(asked.affected):
            return False
        if asked.event and not self._add_event(asked.event, self._source_id(), said):
            return False
        if asked.closes_job:
            self._execute("close_job")
            if asked.went_out and asked.event != "sent":
                self._add_event("sent", SENT_ONCE.format(self.known.email_id), {"via": self.report.via})
        if asked.status:
            self._move(asked.status, list(asked.before))
        if asked.outcome and asked.affected:
            self._execute(
                "result",
                outcome=asked.outcome,
                weaker=list(asked.weaker),
                addresses=[one.address for one in asked.affected],
                reasons=[one.diagnostic or one.status or self.report.reason for one in asked.affected],
            )
        if asked.affected:
            self._mind_addresses(asked)
        return True

    def _is_told(self, affected: Sequence[Affected]) -> bool:
        """Tell whether the next hop refused all of these while it was asked, so that it is known."""
        addresses = {one.address for one in affected}
        return bool(addresses) and self._execute("told_inline", addresses=list(addresses)) == [(len(addresses),)]

    def _move(self, status: str, before: list[str]) -> None:
        if self.effects.went_out:
            self._execute("leave", before=before)
            self._execute("move", status=status, before=before)
        else:
            self._execute("reject", reason=self.report.reason, before=before)

    def _mind_addresses(self, asked: Effects) -> None:
        emails = [_listed(one.address) for one in asked.affected]
        if asked.suppress:
            self._suppress(asked.suppress, {_listed(one.address): self._evidence(one) for one in asked.affected})
        if asked.is_soft and self.soft_bounces:
            self._execute("soft_bounce", emails=emails, source_id=self.report.source_id)
            often = self._execute("often_bounced", emails=emails, age=SOFT_FOR, limit=self.soft_bounces)
            if often:
                evidence = {_listed(one.address): self._evidence(one) for one in asked.affected}
                self._suppress("bounced", {email: evidence[email] | {"soft": count} for email, count in often})
                self._execute("clear_soft", emails=[email for email, _ in often])
        if asked.clears_soft:
            self._execute("clear_soft", emails=emails)

    def _suppress(self, reason: str, evidence: Mapping[str, Mapping[str, object]]) -> None:
        self._execute(
            "suppress",
            reason=reason,
            source_id=self.report.source_id,
            provider_id=self.report.provider_id,
            emails=list(evidence),
            folded=[folded(Address(email)) for email in evidence],
            metadata=[json.dumps(one) for one in evidence.values()],
        )

    def _evidence(self, one: Affected) -> dict[str, object]:
        if self.report.kind == "unsubscribe":
            return {"via": "one-click"}
        found = {"via": self.report.via, "status": one.status, "diagnostic": one.diagnostic}
        return {name: value for name, value in (found | dict(self.report.details)).items() if value}

    def _source_id(self) -> str:
        return SENT_ONCE.format(self.known.email_id) if self.report.kind == "sent" else self.report.source_id

    def _add_event(self, kind: str, source_id: str, said: object) -> bool:
        return self._execute("event", type=kind, source_id=source_id, payload=json.dumps(said)) == [(1,)]

    def _execute(self, name: str, **values: Any) -> list[tuple[Any, ...]]:
        own = {"id": self.known.email_id, "user_id": self.known.user_id}
        cursor = self.connection.execute(SQL[name], own | values)
        return cursor.fetchall() if cursor.description else []


def _listed(address: Address) -> str:
    """Spell an address as the suppression list does."""
    return address.strip().lower()
