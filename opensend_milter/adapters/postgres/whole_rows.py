"""Rows made whole for OpenSend's worker: ours sends the raw bytes, so rows of large messages only name attachments."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import fields

from opensend_milter.adapters.postgres.intake_rows import attachments, pieces
from opensend_milter.adapters.postgres.link import Link, statements
from opensend_milter.core.message import read
from opensend_milter.core.model import EmailId, Limits, Reading, Refuse
from opensend_milter.core.policy import OURS

log = logging.getLogger(__name__)
SQL = statements("whole_rows")
PAGE = 1_000
_WHATEVER_WAS_TAKEN = Limits(**{bound.name: 2**40 for bound in fields(Limits)})
"""By the bounds of another day, which may have been wider."""


def make_whole(link: Link, email_ids: Sequence[EmailId]) -> set[EmailId]:
    """Fill what lacks of these; return which of them still lack something."""
    _fill(link, _lacking(link, email_ids))
    return set(_lacking(link, email_ids))


def make_all_whole(link: Link) -> int:
    """Fill what lacks of all that waits; return how many did."""
    filled, after, found = 0, None, PAGE
    while found == PAGE:
        with link.lend() as connection:
            rows = connection.execute(SQL["waiting"], {"after": after, "limit": PAGE}).fetchall()
        filled += _fill(link, [EmailId(email_id) for email_id, lacks in rows if lacks])
        after, found = rows[-1][0] if rows else None, len(rows)
    return filled


def _lacking(link: Link, email_ids: Sequence[EmailId]) -> list[EmailId]:
    with link.lend() as connection:
        return [EmailId(one) for (one,) in connection.execute(SQL["lacking"], {"ids": list(email_ids)})]


def _fill(link: Link, email_ids: Sequence[EmailId]) -> int:
    return sum(_fill_one(link, email_id) for email_id in email_ids)


def _fill_one(link: Link, email_id: EmailId) -> bool:
    key = {"id": email_id}
    with link.lend() as connection, connection.transaction():
        if not connection.execute(SQL["take"], key).rowcount:
            return False
        raw = b"".join(piece for (piece,) in connection.execute(SQL["raw"], key))
        reading = _read_back(raw, email_id)
        if isinstance(reading, Refuse):
            log.error("email=%s cannot be handed over: its attachments cannot be read back", email_id)
            return False
        for name, parameters in pieces(email_id, reading):
            connection.execute(SQL[name], parameters)
        connection.execute(SQL["fill"], {**key, "attachments": attachments(reading, with_content=False)})
        connection.execute(SQL["unstage"], {"ids": [email_id]})
        return True


def _read_back(raw: bytes, email_id: EmailId) -> Reading | Refuse:
    try:
        return read(raw, _WHATEVER_WAS_TAKEN)
    except Exception:
        # One message that trips over a fault of ours must not keep all others from being announced.
        log.exception("email=%s: could not be read", email_id)
        return OURS
