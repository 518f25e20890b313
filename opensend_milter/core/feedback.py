"""What came back of a message: how a report names it, and what each kind of report changes."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Literal, Protocol, cast, get_args
from uuid import UUID

from opensend_milter.core.address import envelope_address, spellings
from opensend_milter.core.errors import PermanentError
from opensend_milter.core.model import Address, EmailId, UserId

ReportKind = Literal[
    "sent", "delivered", "bounced", "complained", "delivery_delayed", "opened", "clicked", "failed", "unsubscribe"
]
"""OpenSend's types of events, and one of our own that is no event there."""
Outcome = Literal["delivered", "bounced", "complained"]
Reason = Literal["bounced", "complained", "manual"]

KINDS: frozenset[str] = frozenset(get_args(ReportKind))
MOST_RECIPIENTS = 1_000
MOST_CHARACTERS = 1_000
"""Of any one text that a report brings along."""
LONGEST_ID = 255
"""What OpenSend's tables hold of a source's id."""

# An email moves only forward; what is canceled, suppressed or still scheduled cannot have gone out.
_STARTED = frozenset({"queued", "processing", "failed"})
_BEFORE: Mapping[str, frozenset[str]] = {
    "sent": _STARTED,
    "delivered": _STARTED | {"sent"},
    "bounced": _STARTED | {"sent", "delivered"},
    "complained": _STARTED | {"sent", "delivered", "bounced"},
    "failed": frozenset({"queued", "processing", "sent"}),
}
_WEAKER: Mapping[Outcome, frozenset[str]] = {
    "delivered": frozenset({"refused", "deferred"}),
    "bounced": frozenset({"refused", "deferred", "delivered"}),
    "complained": frozenset({"refused", "deferred", "delivered", "bounced"}),
}
_LINKS: Mapping[str, ReportKind] = {"open": "opened", "click": "clicked", "unsubscribe": "unsubscribe"}
_OUTCOMES: Mapping[str, Outcome] = {"delivered": "delivered", "bounced": "bounced", "complained": "complained"}


class ReportMalformed(PermanentError):  # noqa: N818
    """This is no report that we can read."""


class ReportRefused(PermanentError):  # noqa: N818
    """Whoever says this is nobody that we listen to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipient:
    """One whom a report is about."""

    names: tuple[Address, ...]
    """Final and original recipient: after a forwarding they differ. Empty: the report does not say."""
    status: str = ""
    """Enhanced code (RFC 3463)."""
    diagnostic: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What somebody whom we trust says of a message."""

    kind: ReportKind
    source_id: str
    """Equal when the same thing is reported again: it counts once."""
    email_id: EmailId | None
    provider_id: str = ""
    """By what the provider knows the message."""
    claimed_id: EmailId | None = None
    """An id in the message's own header, where its sender could have written it."""
    recipients: tuple[Recipient, ...] = ()
    permanent: bool = False
    """Of a bounce: it says something of the address, not of the moment or the message."""
    reason: str = ""
    via: str = ""
    at: str = ""
    """When it happened, as the reporter wrote it."""
    details: Mapping[str, str] = field(default_factory=dict)


class Standing(Enum):
    """Where the delivery of the message stands when a report of it comes."""

    DONE = "done"
    OPEN = "open"
    """Somebody is still to get it."""
    UNRESOLVED = "unresolved"
    """Nobody knows whether it went out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What we know of the message a report is about."""

    email_id: EmailId
    user_id: UserId
    recipients: tuple[Address, ...]
    standing: Standing = Standing.DONE
    waiting_for: tuple[Address, ...] | None = None
    """Whom the last attempt was for; None: all."""
    is_relay_broken: bool = False
    """The next hop that says so knows too few of those whom it was asked for lately."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Affected:
    """A recipient of the message, in our own spelling, with what the report says of him."""

    address: Address
    status: str
    diagnostic: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Effects:
    """What a report changes, if it is the first that says so."""

    event: ReportKind | None
    affected: tuple[Affected, ...]
    status: str | None
    """The email's new status, where the old one is in `before`."""
    before: frozenset[str]
    went_out: bool
    closes_job: bool
    outcome: Outcome | None
    """Of each one affected."""
    weaker: frozenset[str]
    """The outcomes that this one replaces."""
    suppress: Reason | None
    is_soft: bool
    """A bounce that counts, and suppresses only after several."""
    clears_soft: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Heard:
    """A message of a queue of reports."""

    receipt: str
    report: Report | None
    """None: it says nothing that matters."""


class ReportQueue(Protocol):
    """Where reports come from. Raises QueueUnavailable."""

    def receive(self, wait_s: float) -> list[Heard]:
        """Wait for messages; each comes again unless `done`."""
        ...

    def done(self, heard: Sequence[Heard]) -> None: ...


class FeedbackBox(Protocol):
    """Where reports are put down. Raises StoreUnavailable."""

    def put(self, reports: Sequence[Report]) -> None:
        """Store reports that were verified; return after COMMIT."""
        ...

    def close(self) -> None: ...


class FeedbackBook(Protocol):
    """Where reports are taken up. Raises StoreUnavailable."""

    def apply(self, at_most: int) -> int:
        """Do what the oldest reports ask for, in one transaction; return how many are done with."""
        ...

    def prune(self) -> int:
        """Forget soft bounces that are too old to count. Return how many."""
        ...

    def close(self) -> None: ...


def effects(report: Report, known: Known) -> Effects | None:
    """Return what a report changes; None where it is about somebody who never was a recipient."""
    affected = _affected(report, known.recipients)
    if not affected and any(recipient.names for recipient in report.recipients):
        return None
    went_out = report.kind != "failed"
    closes_job = known.standing is Standing.UNRESOLVED and _is_of_last_attempt(affected, known.waiting_for)
    # A message that others are still to get keeps its status: with any other its job would be put away.
    moves = closes_job or known.standing is Standing.DONE
    status = report.kind if report.kind in _BEFORE else "sent"
    outcome = _OUTCOMES.get(report.kind)
    return Effects(
        event=None if report.kind == "unsubscribe" else report.kind,
        affected=affected,
        status=status if moves else None,
        before=_BEFORE[status],
        went_out=went_out,
        closes_job=closes_job,
        # The status of a message says all of its only recipient who got it.
        outcome=None if outcome == "delivered" and len(known.recipients) == 1 else outcome,
        weaker=_WEAKER[outcome] if outcome else frozenset(),
        suppress=None if known.is_relay_broken else _suppression(report),
        is_soft=report.kind == "bounced" and not report.permanent,
        clears_soft=report.kind == "delivered",
    )


def _suppression(report: Report) -> Reason | None:
    match report.kind:
        case "bounced" if report.permanent:
            return "bounced"
        case "complained":
            return "complained"
        case "unsubscribe":
            return "manual"
        case _:
            return None


def _is_of_last_attempt(affected: Sequence[Affected], waiting_for: tuple[Address, ...] | None) -> bool:
    return waiting_for is None or not _spelled(waiting_for).isdisjoint(_spelled(one.address for one in affected))


def _affected(report: Report, recipients: tuple[Address, ...]) -> tuple[Affected, ...]:
    """Find those that a report means; one who is not named is the only recipient, if there is only one."""
    only = recipients[0] if len(recipients) == 1 else None
    places: dict[str, int] = {}
    for place, ours in enumerate(recipients):
        for spelling in spellings(ours):
            places.setdefault(spelling, place)
    found: dict[Address, Affected] = {}
    for said in report.recipients or (Recipient(names=()),):
        named = [places[spelling] for spelling in _spelled(said.names) if spelling in places]
        address = recipients[min(named)] if named else None if said.names else only
        if address:
            found.setdefault(address, Affected(address=address, status=said.status, diagnostic=said.diagnostic))
    return tuple(found.values())


def _spelled(addresses: Iterable[Address]) -> set[str]:
    """Return what to compare addresses by, as the suppression list does."""
    return {spelling for address in addresses for spelling in spellings(address)}


def payload(report: Report) -> dict[str, object]:
    """Write a report as customers see it in an event, and we ourselves in the table."""
    written: dict[str, object] = {
        "recipients": [
            {"email": recipient.names[0] if recipient.names else "", "names": list(recipient.names)}
            | {"status": recipient.status, "diagnostic": recipient.diagnostic}
            for recipient in report.recipients
        ],
        "provider_id": report.provider_id,
        "claimed_id": report.claimed_id or "",
        "permanent": report.permanent,
        "reason": report.reason,
        "via": report.via,
        "at": report.at,
        "details": dict(report.details),
    }
    return {name: value for name, value in written.items() if value}


def report_of(kind: str, source_id: str, email_id: EmailId | None, written: object) -> Report:
    """Read a report out of the table again; raise ReportMalformed where its kind is unknown."""
    if kind not in KINDS:
        raise ReportMalformed(f"kind {text_of(kind)!r}")
    found = mapping_of(written)
    return Report(
        kind=cast("ReportKind", kind),
        source_id=text_of(source_id)[:LONGEST_ID],
        email_id=email_id,
        provider_id=text_of(found.get("provider_id"))[:LONGEST_ID],
        claimed_id=email_id_of(found.get("claimed_id")),
        recipients=tuple(map(_recipient, items_of(found.get("recipients")))),
        permanent=found.get("permanent") is True,
        reason=text_of(found.get("reason")),
        via=text_of(found.get("via")),
        at=text_of(found.get("at")),
        details={text_of(name): text_of(value) for name, value in mapping_of(found.get("details")).items()},
    )


def _recipient(written: object) -> Recipient:
    if isinstance(written, str):
        return Recipient(names=addresses(written))
    found = mapping_of(written)
    return Recipient(
        names=addresses(*map(text_of, items_of(found.get("names")) or [found.get("email")])),
        status=text_of(found.get("status")),
        diagnostic=text_of(found.get("diagnostic")),
    )


def of_link(kind: str, source_id: str, email_id: EmailId, said: Mapping[str, str]) -> Report:
    """Make a report of what somebody did with a link of a message: open, click, unsubscribe."""
    return Report(
        kind=_LINKS[kind],
        source_id=source_id,
        email_id=email_id,
        recipients=tuple(Recipient(names=(one,)) for one in addresses(said.get("recipient", ""))),
        via="link",
        at=text_of(said.get("timestamp")),
        details={name: text_of(said[name]) for name in ("ipAddress", "userAgent", "link") if said.get(name)},
    )


def addresses(*texts: str) -> tuple[Address, ...]:
    """Read addresses as reports write them, some in angle brackets behind a name; what is none is left out."""
    bare = (re.sub(r"\A[^<]*<([^<>]*)>\s*\Z", r"\1", text).strip() for text in texts)
    return tuple(dict.fromkeys(address for text in bare if (address := envelope_address(text))))


def email_id_of(value: object) -> EmailId | None:
    """Read an email's id, or None where the value is none."""
    try:
        found = UUID(value) if isinstance(value, str) and len(value) == len(str(UUID(int=0))) else None
    except ValueError:
        return None
    return EmailId(str(found)) if found and found.int else None


def text_of(value: object) -> str:
    """Make a foreign value a text that Postgres takes, not longer than anybody reads; empty where it is none."""
    if not isinstance(value, str):
        return ""
    return value[:MOST_CHARACTERS].encode("utf-8", "replace").decode("utf-8").replace("\x00", "\ufffd")


def mapping_of(value: object) -> Mapping[str, object]:
    """Return a foreign value that is a JSON object, or an empty one."""
    return value if isinstance(value, dict) else {}


def items_of(value: object) -> list[object]:
    """Return a foreign value that is a JSON array, cut where no honest one goes on, or an empty one."""
    return value[:MOST_RECIPIENTS] if isinstance(value, list) else []
