"""What somebody looks for among messages and refusals, and what is found."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, NamedTuple

from opensend_milter.core.couriers import CourierName
from opensend_milter.core.model import KeyId, UserId

REFUSED = "refused"
"""Status of what was not taken; besides, a status is an email's, or uncertain."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """What is to be left out of an answer; None lets all through."""

    since: datetime | None = None
    key_id: KeyId | None = None
    domain: str | None = None
    """Of From; of a refusal, which has none, of the envelope's sender."""
    status: str | None = None
    rule: str | None = None
    """By what a message was refused: nothing but refusals then."""
    courier: CourierName | None = None
    """That has tried, or is set for the domain: nothing but messages then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """What whoever asks may see: everything, what one user has, or what one key may read."""

    user_id: UserId | None = None
    reads_by: KeyId | None = None
    """Its own messages and refusals; with full access all of its user's."""


EVERYTHING = Scope()


class Place(NamedTuple):
    """Where in an answer one stands: the next page is what comes `before`."""

    at: datetime
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hit:
    """A message, or a refusal."""

    kind: Literal["message", "refusal"]
    id: str
    """Of the email, or the refusal's number."""
    at: datetime
    status: str
    """The email's, in OpenSend's words, `uncertain`, or `refused`."""
    rule: str | None = None
    sender: str
    """From, as it is shown; of a refusal the envelope's."""
    recipients: tuple[str, ...]
    """Of the envelope, hidden ones too, then those who were left out."""
    subject: str | None = None
    queue_id: str | None = None
    key_name: str | None = None
    """None: the key is gone, or it came by OpenSend's own REST API."""
    ref: str | None = None
    """By what a refusal is known to who got it."""

    @property
    def place(self) -> Place:
        """Return where the next page goes on."""
        return Place(self.at, self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hits:
    """An answer, newest first."""

    rows: list[Hit] = field(default_factory=list)
    more: bool = False
    """There are more than were asked for."""
    further: Place | None = None
    """What comes before it was not looked at, because there was too much; None: all was. A whole id finds it."""
    noted_to: datetime | None = None
    """But of what is older, that was looked at which came up to this time: the worker has noted no more yet."""

    @property
    def searched_back_to(self) -> datetime | None:
        """Return the time beyond which nobody looked."""
        return self.further.at if self.further else None
