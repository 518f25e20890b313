"""What is recorded of one message, taken or refused: the facts of its story."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from opensend_milter.core.fates import Fate


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """A webhook that an event was for."""

    webhook_id: str
    host: str
    """Not its whole URL, which may have a secret."""
    status: str
    attempts: int
    code: int | None
    at: datetime | None
    """Of the last attempt."""
    next_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that was recorded of an email."""

    at: datetime
    kind: str
    payload: Mapping[str, object]
    told: tuple[Told, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Visits:
    """How often it was opened, or its links followed."""

    kind: str
    count: int
    first_at: datetime
    last_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Taking:
    """Who handed it in, and where."""

    at: datetime
    door: str
    client: str
    tls: str | None
    """Protocol and cipher, empty without TLS; None: not recorded."""
    key_id: str
    key_name: str | None
    """None: the key is revoked, or was never one."""
    sender: str
    """MAIL FROM."""
    queue_id: str
    message_id: str | None
    size: int
    repeats: int = 0
    repeated_at: datetime | None = None
    bytes_dropped_at: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """A delivery that is not finished."""

    state: str
    attempts: int
    due_at: datetime
    announce_at: datetime | None
    uncertain_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """An address that is on the suppression list now."""

    email: str
    reason: str
    at: datetime
    by_this: bool
    """Because of this very message."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is recorded of an email."""

    id: str
    user_id: str | None
    status: str
    created_at: datetime
    scheduled_at: datetime | None
    sender: str
    subject: str
    taking: Taking | None
    """None: it came over OpenSend's REST API."""
    fates: Sequence[Fate]
    noted: Mapping[str, datetime]
    """When something was last heard of one recipient alone."""
    waiting: Waiting | None
    events: Sequence[Event]
    visits: Sequence[Visits]
    listings: Mapping[str, Listing]
    """By recipient."""
    beside: bool
    """OpenSend's own worker delivers it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """What is recorded of a message that was not taken."""

    id: str
    taking: Taking
    rule: str
    code: int
    enhanced: str
    text: str
    recipients: Sequence[str]
    ref: str | None
    user_id: str | None
