"""LetterStore over psycopg: what the holder of a key may read of emails, take back and put off."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any, NamedTuple

from opensend_milter.adapters.postgres.link import statements
from opensend_milter.adapters.postgres.pool import Pool
from opensend_milter.adapters.postgres.submissions import LATEST, SubmissionRow, submission
from opensend_milter.core.letter import Letter
from opensend_milter.core.model import EmailId
from opensend_milter.core.submission import Caller

SQL = statements("letters")
_STANDING = len(SubmissionRow._fields)


class LetterRow(NamedTuple):
    """One email, beside where it stands."""

    sender: str
    to: list[str]
    cc: list[str] | None
    bcc: list[str] | None
    reply_to: list[str] | None
    subject: str
    tags: list[dict[str, str]] | None
    topic_id: str | None
    html: str | None
    text: str | None
    octets: int
    sent_at: datetime | None
    noted: str | None


class PostgresLetters:
    """For any number of threads."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def letters(self, caller: Caller, ids: Sequence[EmailId], *, whole: bool) -> list[Letter]:
        """Return those of these emails that the caller may read, latest first; `whole`: with what they say."""
        rows = self._all("letters", token_hash=caller.token_hash, ids=list(ids), whole=whole)
        return [_letter(row) for row in rows]

    def older(self, caller: Caller, than: EmailId | None, limit: int) -> list[EmailId] | None:
        """List what the caller may read, latest first, from after an email on; None where he has no such email."""
        return self._ids("older", caller, than, limit)

    def newer(self, caller: Caller, than: EmailId, limit: int) -> list[EmailId] | None:
        """List what came after an email, oldest first; None where the caller has no such email."""
        return self._ids("newer", caller, than, limit)

    def now(self) -> datetime:
        """Tell the time, by the database's clock."""
        rows: list[tuple[datetime]] = self._all("now")
        return rows[0][0]

    def cancel(self, caller: Caller, email_id: EmailId) -> str | None:
        """Take a scheduled email back; return its status then, None: the caller has no such email."""
        ((status,),) = self._all("cancel", token_hash=caller.token_hash, id=email_id)
        return status and str(status)

    def reschedule(self, caller: Caller, email_id: EmailId, moment: datetime) -> str | None:
        """Have a scheduled email sent at another time; return its status then, None: the caller has no such email."""
        ((status,),) = self._all("reschedule", token_hash=caller.token_hash, id=email_id, moment=moment)
        return status and str(status)

    def _ids(self, which: str, caller: Caller, than: EmailId | None, limit: int) -> list[EmailId] | None:
        whose = "of_user" if caller.has_full_access else "of_key"
        at, email_id, _ = LATEST
        if than:
            places = self._all(f"place_{whose}", key_id=caller.key_id, id=than)
            if not places:
                return None
            ((at,),), email_id = places, than
        rows = self._all(f"{which}_{whose}", key_id=caller.key_id, at=at, id=email_id, limit=limit)
        return [EmailId(found) for (found,) in rows]

    def _all(self, name: str, **values: object) -> list[tuple[Any, ...]]:
        return self._pool.all(SQL[name], **values)


def _letter(row: tuple[Any, ...]) -> Letter:
    standing, written = SubmissionRow._make(row[:_STANDING]), LetterRow._make(row[_STANDING:])
    # Of what was not taken by us nobody has recorded an envelope.
    recipients = standing.recipients or [*written.to, *(written.cc or ()), *(written.bcc or ())]
    return Letter(
        standing=submission(standing._replace(recipients=recipients)),
        sender=written.sender,
        to=written.to,
        cc=written.cc or (),
        bcc=written.bcc or (),
        reply_to=written.reply_to or (),
        subject=written.subject,
        html=written.html or None,
        text=written.text or None,
        tags=written.tags or (),
        topic_id=written.topic_id,
        sent_at=written.sent_at,
        noted=written.noted,
        octets=written.octets,
    )
