"""The story of one message: a verdict, what happened in order, where each recipient stands, and what to do next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from opensend_milter.core.fates import Fate
from opensend_milter.core.feedback import items_of, mapping_of, text_of
from opensend_milter.core.lookup import REFUSED
from opensend_milter.core.next_steps import Case, Step, cause_of, of_refusal, steps
from opensend_milter.core.recorded import Event, Facts, Refusal, Taking, Told

Say = Callable[[datetime], str]
"""How the reader is told a time."""

_ORDER = (
    "delivered", "sent", "complained", "bounced", "failed", "suppressed", "canceled", "uncertain", "deferred",
    "processing", "queued", "scheduled",
)  # fmt: skip
_WORDS: Mapping[str, str] = {
    "delivered": "delivered to {whom}",
    "sent": "sent to {whom}",
    "complained": "called spam by {whom}",
    "bounced": "bounced for {whom}",
    "failed": "failed for {whom}",
    "suppressed": "left out as suppressed: {whom}",
    "canceled": "canceled",
    "uncertain": "uncertain for {whom}{since}: nobody knows whether the next hop has it",
    "deferred": "waiting for {whom}{since}{until}",
    "processing": "in a worker's hands for {whom}",
    "queued": "waiting to be sent to {whom}{since}",
    "scheduled": "scheduled{until}",
}
_SPELLED_OTHERWISE = {"cancelled": "canceled"}
_LISTS = ("recipients", "bouncedRecipients", "complainedRecipients", "delayedRecipients")
"""Where an event names recipients: ours, and SES's as OpenSend keeps it."""
_MOST_NAMED = 50
_LONGEST = 1_000
"""Characters of what somebody else said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """One line of the story."""

    at: datetime | None
    """None: nobody wrote down when."""
    what: str
    who: str = ""
    text: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Where one recipient stands."""

    email: str
    status: str
    reason: str | None
    at: datetime | None
    suppressed: str | None = None
    """Why it is on the suppression list now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What became of a message."""

    id: str
    status: str
    verdict: str
    sender: str
    subject: str
    queue_id: str | None
    message_id: str | None
    created_at: datetime
    timeline: tuple[Moment, ...]
    recipients: tuple[Standing, ...]
    next_steps: tuple[Step, ...]
    cause: str = ""
    """Of a refusal, what its rule is about."""
    ref: str | None = None
    """By what a refusal is known to who got it."""


def tell(facts: Facts, say: Say) -> Story:
    """Tell what became of an email."""
    return Story(
        id=facts.id,
        status=facts.status,
        verdict=_verdict(facts, say),
        sender=facts.sender,
        subject=facts.subject,
        queue_id=facts.taking.queue_id if facts.taking else None,
        message_id=facts.taking.message_id if facts.taking else None,
        created_at=facts.created_at,
        timeline=tuple(sorted(_moments(facts, say), key=lambda one: one.at or facts.created_at)),
        recipients=tuple(_standing(facts, fate) for fate in facts.fates),
        next_steps=tuple(steps([_case(facts, fate) for fate in facts.fates])),
    )


def tell_refusal(facts: Refusal) -> Story:
    """Tell why a message was not taken."""
    answer = f"{facts.code} {facts.enhanced}"
    return Story(
        id=facts.id,
        status=REFUSED,
        verdict=f"refused by rule {facts.rule}: {answer} {facts.text}",
        sender=facts.taking.sender,
        subject="",
        queue_id=facts.taking.queue_id,
        message_id=facts.taking.message_id,
        created_at=facts.taking.at,
        timeline=(Moment(at=facts.taking.at, what=REFUSED, text=_handed_in(facts.taking)),),
        cause=cause_of(facts.rule),
        ref=facts.ref,
        recipients=tuple(
            Standing(email=email, status=REFUSED, reason=None, at=facts.taking.at) for email in facts.recipients
        ),
        next_steps=tuple(of_refusal(facts.rule, facts.taking.key_id, facts.user_id, facts.recipients)),
    )


# ---------------------------------------------------------------------- the verdict


def _verdict(facts: Facts, say: Say) -> str:
    found: dict[str, list[str]] = {}
    for fate in facts.fates:
        found.setdefault(_SPELLED_OTHERWISE.get(fate.status, fate.status), []).append(fate.email)
    known = [status for status in _ORDER if status in found]
    parts = [_part(facts, status, found[status], say) for status in [*known, *sorted(found.keys() - set(_ORDER))]]
    return "; ".join(parts) or facts.status


def _part(facts: Facts, status: str, whom: Sequence[str], say: Say) -> str:
    since, until = _since(facts, status), _until(facts, status)
    who = whom[0] if len(whom) == 1 else f"{len(whom)} of {len(facts.fates)}"
    if status not in _WORDS:
        return f"{status}: {who}"
    return _WORDS[status].format(
        whom=who,
        since=f" since {say(since)}" if since else "",
        until=f"{' for' if status == 'scheduled' else ', next attempt'} {say(until)}" if until else "",
    )


def _since(facts: Facts, status: str) -> datetime | None:
    if status == "uncertain":
        return facts.waiting.uncertain_at if facts.waiting else None
    put_off = [event.at for event in facts.events if event.kind == "delayed"]
    if status == "deferred" and put_off:
        return min(put_off)
    return max(facts.created_at, facts.scheduled_at or facts.created_at)


def _until(facts: Facts, status: str) -> datetime | None:
    if status == "scheduled":
        return facts.scheduled_at
    return facts.waiting.due_at if facts.waiting else None


def _standing(facts: Facts, fate: Fate) -> Standing:
    listing = facts.listings.get(fate.email)
    return Standing(
        email=fate.email,
        status=fate.status,
        reason=fate.reason,
        at=facts.noted.get(fate.email),
        suppressed=listing.reason if listing else None,
    )


def _case(facts: Facts, fate: Fate) -> Case:
    return Case(
        email_id=facts.id,
        recipient=fate.email,
        user_id=facts.user_id,
        domain=facts.sender.rpartition("@")[2].rstrip("> "),
        status=_SPELLED_OTHERWISE.get(fate.status, fate.status),
        reason=fate.reason or "",
        is_listed=fate.email in facts.listings,
        may_retry=facts.status == "failed" and not (facts.taking and facts.taking.bytes_dropped_at),
        beside=facts.beside,
    )


# ---------------------------------------------------------------------- the timeline


def _moments(facts: Facts, say: Say) -> Iterator[Moment]:
    yield from _beginning(facts, say)
    refused = set()
    for event in facts.events:
        for moment in _happened(event, say):
            # The last event of a delivery names those again whom an earlier one named.
            if moment.what != "refused" or (moment.who, moment.text) not in refused:
                yield moment
            refused.add((moment.who, moment.text))
        yield from (_called(event, told, say) for told in event.told)
    for visits in facts.visits:
        yield Moment(at=visits.first_at, what=visits.kind, text=_times(visits.count, visits.last_at, say))
    for email, listing in facts.listings.items():
        if listing.by_this:
            yield Moment(at=listing.at, what="suppressed", who=email, text=listing.reason)


def _beginning(facts: Facts, say: Say) -> Iterator[Moment]:
    taking = facts.taking
    text = _handed_in(taking) if taking else "over OpenSend's REST API"
    yield Moment(at=facts.created_at, what="taken", text=text)
    is_told = any(event.kind == "suppressed" for event in facts.events)
    for fate in facts.fates:
        if fate.status == "suppressed" and not is_told:
            yield Moment(at=facts.created_at, what="left out", who=fate.email, text=fate.reason or "")
    if taking and taking.repeats and taking.repeated_at:
        text = f"{_times(taking.repeats, taking.repeated_at, say)}: the client sent it again, and it is stored once"
        yield Moment(at=taking.repeated_at, what="repeated", text=text)
    if facts.scheduled_at:
        yield Moment(at=facts.created_at, what="scheduled", text=f"for {say(facts.scheduled_at)}")
    if announced := _announced(facts, say):
        yield Moment(at=None, what="announced", text=announced)


def _announced(facts: Facts, say: Say) -> str:
    waiting = facts.waiting
    if facts.beside:
        return "not yet: OpenSend's queue has not heard of it" if waiting else "to OpenSend, whose ingester sends it"
    if waiting and waiting.state == "waiting" and waiting.announce_at and waiting.announce_at > waiting.due_at:
        return f"to the queue, and again at {say(waiting.announce_at)} unless somebody takes it up"
    return ""


def _handed_in(taking: Taking) -> str:
    parts = [f"by {taking.door.upper()}"]
    if taking.client:
        parts.append(f"from {taking.client}")
    if taking.tls is not None:
        parts.append(f"with {taking.tls.partition(' ')[0]}" if taking.tls else "without TLS")
    key = f"{taking.key_name} ({taking.key_id})" if taking.key_name else taking.key_id
    return ", ".join([" ".join(parts), *([f"key {key}"] if key else []), f"{taking.size:,} octets"])


def _happened(event: Event, say: Say) -> Iterator[Moment]:
    """Tell an event, and after it each recipient that it names."""
    said, whom = event.payload, ": ".join(_by_whom(event.payload))
    text = ": ".join(filter(None, [whom, text_of(said.get("reply")) or text_of(said.get("reason"))]))[:_LONGEST]
    attempt, again = said.get("attempt", said.get("attempt_count")), _moment_of(said)
    tail = [f"attempt {attempt}"] if isinstance(attempt, int) else []
    tail += [f"next {say(again)}"] if again else []
    what = "sent" if event.kind == "delayed" and "reply" in said else event.kind
    named = [found for name in _LISTS for found in _named(said.get(name))]
    if not named:
        yield Moment(at=event.at, what=what, text=", ".join(filter(None, [text, *tail])))
    for email, why in named:
        yield Moment(at=event.at, what=what, who=email, text=": ".join(filter(None, [whom, why])) or text)
    for name, called in (("refused", "refused"), ("deferred", "put off")):
        for email, why in _named(said.get(name)):
            yield Moment(at=event.at, what=called, who=email, text=why)


def _by_whom(said: Mapping[str, object]) -> Iterator[str]:
    for name in ("courier", "provider", "via"):
        if found := text_of(said.get(name)):
            yield found[:_LONGEST]


def _named(listed: object) -> Iterator[tuple[str, str]]:
    for item in items_of(listed)[:_MOST_NAMED]:
        one = mapping_of(item)
        email = text_of(item) or text_of(one.get("email")) or text_of(one.get("emailAddress"))
        words = (one.get(name) for name in ("reason", "diagnostic", "diagnosticCode", "status"))
        if email:
            yield email[:_LONGEST], next(filter(None, map(text_of, words)), "")[:_LONGEST]


def _moment_of(said: Mapping[str, object]) -> datetime | None:
    try:
        found = datetime.fromisoformat(text_of(said.get("next_attempt_at", said.get("next_retry_at"))))
    except ValueError:
        return None
    return found if found.tzinfo else None


def _called(event: Event, told: Told, say: Say) -> Moment:
    text = f"email.{event.kind} to {told.host}: "
    if told.attempts:
        text += f"{f'answered {told.code}' if told.code else told.status}, attempt {told.attempts}"
    else:
        text += "not yet"
    if told.status == "pending" and told.next_at:
        text += f", next {say(told.next_at)}"
    return Moment(at=told.at or event.at, what="webhook", text=text)


def _times(count: int, last: datetime, say: Say) -> str:
    return f"{count:,} times, last {say(last)}" if count > 1 else "once"
