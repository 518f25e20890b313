"""The suppression list is OpenSend's: what it spells oddly is noted in a table of ours, by what it is compared."""

from __future__ import annotations

import time

from opensend_milter.adapters.postgres.link import Link, Tables, statements
from opensend_milter.core.address import envelope_address, folded

SQL = statements("spellings")
EVERY_S = 5.0
SHARE = 50
"""A list of a million takes its time: never more than this part of ours."""
AT_ONCE = 5_000


class PostgresSpellings:
    """One thread's step, with a connection of its own."""

    def __init__(self, info: str, *, name: str, timeout_s: float, tables: Tables | None = None) -> None:
        self._link = Link(info, name=name, timeout_s=timeout_s, tables=tables)

    def step(self) -> float:
        """Go through the list once; return how long to pause."""
        began = time.monotonic()
        last: tuple[str, str] | None = ("", "")
        pages = 0
        while last:
            last = self._note_behind(*last)
            pages += 1
        with self._link.lend() as connection:
            connection.execute(SQL["forget"])
        took_s = time.monotonic() - began
        # A short list, of one page and the empty one behind it, took long only where the database was away.
        return max(EVERY_S, took_s * SHARE) if pages > 2 else EVERY_S  # noqa: PLR2004

    def _note_behind(self, user_id: str, email: str) -> tuple[str, str] | None:
        """Note what is odd of the next rows; return the last of them, or None where there are no more."""
        with self._link.lend() as connection:
            values = {"user_id": user_id, "email": email, "limit": AT_ONCE}
            rows = connection.execute(SQL["next_page"], values).fetchall()
            if odd := rows[:-1]:
                user_ids, emails = zip(*odd, strict=True)
                noted = {"user_ids": [*user_ids], "emails": [*emails], "folded": [*map(_folded, emails)]}
                connection.execute(SQL["note"], noted)
        return rows[-1] if rows else None

    def close(self) -> None:
        """Let go of the connection."""
        self._link.close()


def _folded(email: str) -> str:
    address = envelope_address(email.strip())
    return folded(address) if address else email
