"""What is recorded of one message, as its story is told from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from opensend_milter.adapters.postgres.link import Connection, statements
from opensend_milter.adapters.postgres.standing import fates_of
from opensend_milter.core.address import listings
from opensend_milter.core.feedback import addresses
from opensend_milter.core.ids import key_id
from opensend_milter.core.lookup import Hit
from opensend_milter.core.model import Address, KeyId
from opensend_milter.core.recorded import Event, Facts, Listing, Refusal, Taking, Told, Visits, Waiting
from opensend_milter.core.story import Say, Story, tell, tell_refusal

SQL = statements("story")
MOST_EVENTS, MOST_VISITS = 500, 10_000
"""Of one email; of events the newest."""
MOST_KEYS = 20
_VISITS = ("opened", "clicked")


class EmailRow(NamedTuple):
    """One email, with what we have of it beside OpenSend's row."""

    id: str
    user_id: str | None
    status: str
    created_at: datetime
    scheduled_at: datetime | None
    sender: str
    subject: str
    to: Any
    cc: Any
    bcc: Any
    front_door: str | None
    """None: it came over OpenSend's REST API."""
    client_address: str
    tls: str
    key_id: str
    key_name: str | None
    envelope_sender: str
    queue_id: str
    message_id: str | None
    size_bytes: int
    repeats: int
    repeated_at: datetime | None
    raw_dropped_at: datetime | None
    envelope: list[str] | None
    dropped: list[dict[str, str]] | None
    fared: list[tuple[str, str, str]] | None
    noted: dict[str, str] | None
    work_state: str | None
    work_attempts: int | None
    work_left: list[str] | None
    work_reason: str | None
    due_at: datetime | None
    announce_at: datetime | None
    uncertain_at: datetime | None

    @property
    def recipients(self) -> Sequence[str]:
        """Return whom it goes to: by the envelope, which OpenSend's own rows lack."""
        shown = [one for some in (self.to, self.cc, self.bcc) if isinstance(some, list) for one in some]
        bare = ((*addresses(str(one)), str(one))[0] for one in shown)
        return list(dict.fromkeys(bare)) if self.envelope is None else self.envelope


class EventRow(NamedTuple):
    """An event, or all of a kind that are counted."""

    at: datetime
    kind: str
    payload: Any
    times: int
    last_at: datetime
    told: list[list[Any]] | None


class ListingRow(NamedTuple):
    """A recipient that is suppressed now."""

    recipient: str
    email: str
    reason: str
    at: datetime
    by_this: bool


class RefusalRow(NamedTuple):
    """A message that was not taken."""

    id: str
    at: datetime
    rule: str
    code: int
    enhanced: str
    text: str
    front_door: str
    queue_id: str
    client_address: str
    key_id: str
    key_name: str | None
    user_id: str | None
    sender: str
    recipients: list[str]
    message_id: str | None
    size_bytes: int


def facts_of(connection: Connection, email_id: str, *, beside: bool) -> Facts | None:
    """Return what is recorded of an email; None where it is gone. `beside`: OpenSend's worker delivers.

    Whether whoever asks may see it was decided when it was found.
    """
    for row in map(EmailRow._make, connection.execute(SQL["email"], {"id": email_id}).fetchall()):
        fates = fates_of(row)
        rows = connection.execute(SQL["events"], {"id": email_id, "most": MOST_EVENTS, "most_visits": MOST_VISITS})
        events = [EventRow._make(event) for event in rows]
        return Facts(
            id=row.id,
            user_id=row.user_id,
            status=row.status,
            created_at=row.created_at,
            scheduled_at=row.scheduled_at,
            sender=row.sender,
            subject=row.subject,
            taking=_taking(row),
            fates=fates,
            noted={email: datetime.fromisoformat(at) for email, at in (row.noted or {}).items()},
            waiting=_waiting(row),
            events=[_event(one) for one in events if one.kind not in _VISITS],
            visits=[
                Visits(kind=one.kind, count=one.times, first_at=one.at, last_at=one.last_at)
                for one in events
                if one.kind in _VISITS
            ],
            listings=_listings(connection, row, [fate.email for fate in fates]),
            beside=beside,
        )
    return None


def refusal_of(connection: Connection, refusal_id: str, ref: str | None) -> Refusal | None:
    """Return what is recorded of a message that was not taken; None where that is gone."""
    for row in map(RefusalRow._make, connection.execute(SQL["refusal"], {"id": refusal_id}).fetchall()):
        return Refusal(
            id=row.id,
            taking=Taking(
                at=row.at,
                door=row.front_door,
                client=row.client_address,
                tls=None,
                key_id=row.key_id,
                key_name=row.key_name,
                sender=row.sender,
                queue_id=row.queue_id,
                message_id=row.message_id,
                size=row.size_bytes,
            ),
            rule=row.rule,
            code=row.code,
            enhanced=row.enhanced,
            text=row.text,
            recipients=row.recipients,
            ref=ref,
            user_id=row.user_id,
        )
    return None


def story_of(connection: Connection, hit: Hit, say: Say, *, beside: bool) -> Story | None:
    """Tell the story of what was found; None where it is gone since."""
    if hit.kind == "refusal":
        refusal = refusal_of(connection, hit.id, hit.ref)
        return tell_refusal(refusal) if refusal else None
    facts = facts_of(connection, hit.id, beside=beside)
    return tell(facts, say) if facts else None


def keys_named(connection: Connection, asked: str) -> list[tuple[KeyId, str]]:
    """Return the keys that a person may mean, each with its name: by either end of an id, or by a name."""
    if whole := key_id(asked.strip()):
        return [(whole, "")]
    values = {"start": asked.strip().lower(), "name": asked.strip(), "most": MOST_KEYS}
    return [(KeyId(found), name) for found, name in connection.execute(SQL["keys"], values)]


def _taking(row: EmailRow) -> Taking | None:
    if row.front_door is None:
        return None
    return Taking(
        at=row.created_at,
        door=row.front_door,
        client=row.client_address,
        tls=row.tls,
        key_id=row.key_id,
        key_name=row.key_name,
        sender=row.envelope_sender,
        queue_id=row.queue_id,
        message_id=row.message_id,
        size=row.size_bytes,
        repeats=row.repeats,
        repeated_at=row.repeated_at,
        bytes_dropped_at=row.raw_dropped_at,
    )


def _waiting(row: EmailRow) -> Waiting | None:
    if row.work_state is None or row.due_at is None:
        return None
    return Waiting(
        state=row.work_state,
        attempts=row.work_attempts or 0,
        due_at=row.due_at,
        announce_at=row.announce_at,
        uncertain_at=row.uncertain_at,
    )


def _event(row: EventRow) -> Event:
    payload: Mapping[str, object] = row.payload if isinstance(row.payload, dict) else {}
    return Event(at=row.at, kind=row.kind, payload=payload, told=tuple(map(_told, row.told or ())))


def _told(found: Sequence[Any]) -> Told:
    webhook_id, url, status, attempts, code, at, next_at = found
    return Told(
        webhook_id=webhook_id,
        host=_host(url),
        status=status,
        attempts=attempts,
        code=code,
        at=_moment(at),
        next_at=_moment(next_at),
    )


def _host(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _moment(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _listings(connection: Connection, row: EmailRow, recipients: Sequence[str]) -> dict[str, Listing]:
    spelled = [(email, spelling) for email in recipients for spelling in listings(Address(email))]
    if row.user_id is None or not spelled:
        return {}
    values = {
        "id": row.id,
        "user_id": row.user_id,
        "recipients": [email for email, _ in spelled],
        "spellings": [spelling for _, spelling in spelled],
    }
    found = map(ListingRow._make, connection.execute(SQL["listings"], values).fetchall())
    return {one.recipient: Listing(email=one.email, reason=one.reason, at=one.at, by_this=one.by_this) for one in found}
