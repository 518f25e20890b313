"""IntakeStore over psycopg: one round trip for the facts of a batch, one transaction to store it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import chain
from typing import Any, NamedTuple, TypeGuard

from psycopg import errors

from opensend_milter.adapters.postgres import intake_rows
from opensend_milter.adapters.postgres.intake_rows import Step, array, columns
from opensend_milter.adapters.postgres.link import Link, Tables, statements
from opensend_milter.core.address import all_listings, listings
from opensend_milter.core.couriers import CourierName
from opensend_milter.core.errors import AlreadyStored
from opensend_milter.core.model import (
    Accept,
    Address,
    Earlier,
    EmailId,
    Facts,
    Holder,
    Identity,
    KeyFacts,
    KeyScope,
    Message,
    OnSuppressed,
    Question,
    Refuse,
    Repeat,
    Settlement,
    Subscription,
    UserId,
)

SQL = {**statements("intake"), **statements("billing"), **statements("whole_rows")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Habits:
    """What this installation does besides storing messages."""

    duplicate_window: timedelta
    """Zero: a message that is sent again is a new one, unless it has an Idempotency-Key."""
    beside_opensend: bool
    """Write what its dashboard shows, and large attachments into the row, where its worker reads them."""
    billing: bool
    """Ask OpenSend's billing, and count for it."""


class FactsRow(NamedTuple):
    """What facts_for answers of one message."""

    known: bool
    user_id: UserId | None
    restricted: bool
    restricted_domain: str | None
    sender_domain_verified: bool
    suppressed: list[tuple[str, str]] | None
    """Spellings of recipients that are listed, each with its reason."""
    on_suppressed: OnSuppressed | None
    unused_lately: bool
    earlier_id: EmailId | None
    """None: there is no earlier one, and so nothing else of it."""
    earlier_holder: Holder
    earlier_received_at: datetime
    earlier_scheduled_at: datetime | None
    earlier_expired: bool
    earlier_content_digest: bytes | None
    courier: CourierName | None
    allowed_senders: list[str] | None
    allowed_recipients: list[str] | None
    networks: list[str] | None
    may_attach: bool
    may_html: bool
    expired_at: datetime | None
    per_day: int | None
    sent_today: int | None
    now: datetime


class PostgresIntakeStore:
    """IntakeStore for one thread."""

    def __init__(self, info: str, habits: Habits, *, name: str, timeout_s: float, tables: Tables | None = None) -> None:
        self._habits = habits
        self._link = Link(info, name=name, timeout_s=timeout_s, tables=tables)

    def close(self) -> None:
        """Let go of the connection."""
        self._link.close()

    def facts_for(self, questions: Sequence[Question]) -> list[Facts]:
        """Answer for a batch in one round trip; one more for billing, and one where REST used a name before."""
        parameters = self._parameters(questions)
        with self._link.lend() as connection:
            rows = list(map(FactsRow._make, connection.execute(SQL["facts_for"], parameters)))
            subscriptions: dict[str, Subscription] = {}
            if self._habits.billing:
                user_ids = sorted({row.user_id for row in rows if row.user_id is not None})
                subscriptions = dict(connection.execute(SQL["subscriptions_of"], {"user_ids": user_ids}))
            facts = [
                _facts(row, question.recipients, subscriptions.get(row.user_id or "", "fine"))
                for row, question in zip(rows, questions, strict=True)
            ]
            rest = {earlier.email_id for one in facts if _is_to_compare(earlier := one.earlier)}
            digests = dict(connection.execute(SQL["row_digests"], {"ids": sorted(rest)})) if rest else {}
        return [_with_digest(one, digests) for one in facts] if digests else facts

    def _parameters(self, questions: Sequence[Question]) -> dict[str, Any]:
        return {
            "key_ids": array([question.key_id for question in questions]),
            "ascii_domains": array([question.sender_domains[0] for question in questions]),
            "unicode_domains": array([question.sender_domains[1] for question in questions]),
            "idempotency_keys": array([question.identity.idempotency_key for question in questions]),
            "fingerprints": [self._fingerprint(question.identity) for question in questions],
            "window": self._habits.duplicate_window,
            "spellings": array([intake_rows.lines(all_listings(question.recipients)) for question in questions]),
        }

    def settle(self, settlements: Sequence[Settlement]) -> None:
        """Store a batch in one transaction; return after COMMIT."""
        steps = self._steps(settlements)
        first, second = next(steps, None), next(steps, None)
        if first is None:
            return
        with self._link.lend() as connection, _names_taken():
            if second is None:
                connection.execute(SQL[first[0]], first[1])
                return
            with connection.transaction():
                for name, parameters in chain((first, second), steps):
                    done = connection.execute(SQL[name], parameters)
                    if name == "count" and done.rowcount < len(parameters["ids"]):
                        # One by one, and asked anew, each gets its own answer.
                        raise AlreadyStored("the daily limit of a key is reached in this batch")

    def _steps(self, settlements: Sequence[Settlement]) -> Iterator[Step]:
        """Yield the statements that a batch needs, lazily: pieces of a large message are made one by one."""
        accepted = [(s.message, s.verdict) for s in settlements if isinstance(s.verdict, Accept)]
        if accepted:
            # In one order everywhere: of two batches with the same messages one waits, and neither for ever.
            yield from self._accept(sorted(accepted, key=_name))
        refused = [intake_rows.refuse_values(s, s.verdict) for s in settlements if isinstance(s.verdict, Refuse)]
        if refused:
            yield "refuse", columns(refused)
        repeats = [s.verdict.email_id for s in settlements if isinstance(s.verdict, Repeat)]
        if repeats:
            yield "repeat", {"ids": repeats}
        yield from self._for_opensend(settlements)

    def _accept(self, accepted: Sequence[tuple[Message, Accept]]) -> Iterator[Step]:
        freed = [(message.session.key_id, accept) for message, accept in accepted if accept.frees]
        if freed:
            yield (
                "free_names",
                {
                    "ids": [accept.frees for _, accept in freed],
                    "key_ids": [key_id for key_id, _ in freed],
                    "fingerprints": [self._fingerprint(accept.identity) for _, accept in freed],
                },
            )
        whole_rows = self._habits.beside_opensend
        staged = [(message, accept) for message, accept in accepted if whole_rows and intake_rows.is_large(accept)]
        for message, accept in staged:
            yield from intake_rows.pieces(message.id, accept.reading)
        yield (
            "settle",
            columns(
                [
                    intake_rows.accept_values(
                        message, accept, self._fingerprint(accept.identity), whole_rows=whole_rows
                    )
                    for message, accept in accepted
                ]
            ),
        )
        if staged:
            yield "unstage", {"ids": [message.id for message, _ in staged]}
        for message, _ in accepted:
            yield from intake_rows.chunks(message)
        if touched := {message.session.key_id for message, accept in accepted if accept.touches_key}:
            yield "touch_keys", {"ids": sorted(touched)}
        limits = {message.session.key_id: accept.per_day for message, accept in accepted if accept.per_day is not None}
        if limits:
            # Last: all who send with such a key wait for its row until we commit.
            counts = Counter(message.session.key_id for message, accept in accepted if accept.per_day is not None)
            yield (
                "count",
                {"ids": list(limits), "counts": [counts[key] for key in limits], "limits": list(limits.values())},
            )

    def _for_opensend(self, settlements: Sequence[Settlement]) -> Iterator[Step]:
        """Yield what OpenSend's own code would have written besides the row."""
        if events := [intake_rows.event_values(s) for s in settlements if intake_rows.has_event(s)]:
            yield "suppressed", columns(events)
        if self._habits.beside_opensend and (
            logs := [intake_rows.log_values(s) for s in settlements if intake_rows.is_logged(s)]
        ):
            yield "log", columns(logs)
        if self._habits.billing and (
            counts := Counter(s.verdict.user_id for s in settlements if isinstance(s.verdict, Accept))
        ):
            yield "reserve", {"user_ids": list(counts), "counts": list(counts.values())}

    def _fingerprint(self, identity: Identity) -> bytes | None:
        return identity.fingerprint if self._habits.duplicate_window else None


def _name(accepted: tuple[Message, Accept]) -> tuple[str, str, bytes]:
    _, accept = accepted
    return accept.user_id, accept.identity.idempotency_key or "", accept.identity.fingerprint or b""


@contextmanager
def _names_taken() -> Iterator[None]:
    """Tell a race for a message's name from other faults in the data."""
    try:
        yield
    except errors.UniqueViolation as error:
        if error.diag.constraint_name in {"fingerprints_pkey", "emails_user_id_idempotency_key_idx"} or (
            error.diag.table_name == "emails" and "idempotency_key" in (error.diag.message_detail or "")
        ):
            raise AlreadyStored(str(error.diag.message_primary)) from error
        raise


def _facts(row: FactsRow, recipients: Sequence[Address], subscription: Subscription) -> Facts:
    earlier = None
    if row.earlier_id:
        earlier = Earlier(
            email_id=row.earlier_id,
            holder=row.earlier_holder,
            received_at=row.earlier_received_at,
            scheduled_at=row.earlier_scheduled_at,
            content_digest=row.earlier_content_digest,
            expired=row.earlier_expired,
        )
    key = KeyFacts(
        user_id=row.user_id,
        restricted=row.restricted,
        restricted_domain=row.restricted_domain,
        on_suppressed=row.on_suppressed,
        unused_lately=row.unused_lately,
        scope=_scope(row),
    )
    return Facts(
        now=row.now,
        key=key if row.known else None,
        sender_domain_verified=row.sender_domain_verified,
        suppressed=_suppressed(recipients, row.suppressed) if row.suppressed else (),
        earlier=earlier,
        courier=row.courier,
        subscription=subscription,
    )


def _suppressed(recipients: Sequence[Address], listed: Iterable[tuple[str, str]]) -> tuple[tuple[Address, str], ...]:
    """Tell who is meant by the spellings that are listed; one that is listed in two is still one recipient."""
    reasons = dict(sorted(listed))
    found = {address: [intake_rows.clean(spelling) for spelling in listings(address)] for address in recipients}
    return tuple(
        (address, max(reasons[spelling] for spelling in spelled if spelling in reasons))
        for address, spelled in found.items()
        if not reasons.keys().isdisjoint(spelled)
    )


def _is_to_compare(earlier: Earlier | None) -> TypeGuard[Earlier]:
    return earlier is not None and earlier.holder == "rest" and not earlier.expired


def _with_digest(facts: Facts, digests: Mapping[str, bytes | None]) -> Facts:
    """Add what is known of a row that REST made."""
    if not _is_to_compare(facts.earlier):
        return facts
    return replace(facts, earlier=replace(facts.earlier, content_digest=digests.get(facts.earlier.email_id)))


def _scope(row: FactsRow) -> KeyScope:
    senders, recipients, networks = row.allowed_senders, row.allowed_recipients, row.networks
    return KeyScope(
        allowed_senders=None if senders is None else tuple(senders),
        allowed_recipients=None if recipients is None else tuple(recipients),
        networks=None if networks is None else tuple(networks),
        may_attach=row.may_attach,
        may_html=row.may_html,
        expired_at=row.expired_at,
        per_day=row.per_day,
        sent_today=row.sent_today or 0,
    )
