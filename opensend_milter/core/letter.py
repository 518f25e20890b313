"""What the holder of a key sees of an email: what was written, to whom, and what became of it last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from opensend_milter.core.submission import Submission

_RESENDS = {"processing": "queued", "cancelled": "canceled"}
"""What Resend calls a status where OpenSend has another word."""
_LATE = {"delayed": "delivery_delayed", "delivery_delayed": "delivery_delayed"}
_READ = {"opened": "opened", "clicked": "clicked"}
_MORE = {
    "queued": _LATE,
    "processing": _LATE,
    # What delayed it before is over.
    "sent": {"delivery_delayed": "delivery_delayed", **_READ},
    "delivered": _READ,
}
"""What an event that left the status as it was says besides, by status."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Letter:
    """One email, as OpenSend's row has it."""

    standing: Submission
    sender: str
    to: Sequence[str]
    cc: Sequence[str]
    bcc: Sequence[str]
    reply_to: Sequence[str]
    subject: str
    html: str | None
    """None: there is none, or who asks may not read it."""
    text: str | None
    tags: Sequence[Mapping[str, str]]
    topic_id: str | None
    sent_at: datetime | None
    noted: str | None
    """Of delays, openings and clicks the last that was heard of."""
    octets: int
    """Of what is written in it, where that was left out."""

    @property
    def last_event(self) -> str:
        """Return what happened last, in Resend's words."""
        status = self.standing.status
        return _MORE.get(status, {}).get(self.noted or "") or _RESENDS.get(status, status)
