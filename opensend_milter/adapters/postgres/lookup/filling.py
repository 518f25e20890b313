"""The search table: by what each message is known, noted a moment after it was taken."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from opensend_milter.adapters.postgres.link import Connection, Link, Tables, statements
from opensend_milter.adapters.postgres.lookup.search import LEAST_ID, known_by
from opensend_milter.core import counting
from opensend_milter.core.terms import names, term_of

SQL = statements("filling")
AT_ONCE = 500
EVERY_S = 1.0
SHARE = 4
"""While there is much to note, never more than this part of the time: others have the machine too."""
SETTLED = timedelta(seconds=2)
"""What is younger may still be committed in another order than it was made in: search looks at it itself."""
LATE = timedelta(minutes=5)
"""What is older is all committed: no transaction of ours or OpenSend's lasts as long."""
STRETCH = 32_768
"""Messages of one stretch of time: as many are sorted where all of them are known by a word."""
_FORGET_EVERY_S = 600.0


class Place(NamedTuple):
    """A message, in the order in which they are noted."""

    at: datetime
    id: str


class Batch(NamedTuple):
    """Messages that were looked at."""

    looked_at: int
    last: Place

    @property
    def is_full(self) -> bool:
        """Tell whether there may be more."""
        return self.looked_at == AT_ONCE


class SearchTable:
    """One thread's step, with a connection of its own; of several processes one fills at a time."""

    def __init__(self, info: str, *, name: str, timeout_s: float, tables: Tables | None = None) -> None:
        self._link = Link(info, name=name, timeout_s=timeout_s, tables=tables)
        self._forgot_at = float("-inf")
        self._forget_behind = LEAST_ID

    def close(self) -> None:
        """Let go of the connection."""
        self._link.close()

    def step(self) -> float:
        """Note a batch, or else forget one of what is gone; return how long to pause."""
        began = time.monotonic()
        batch = self.fill()
        is_behind = batch.is_full if batch else False
        if not is_behind and began - self._forgot_at > _FORGET_EVERY_S:
            is_behind = self._forget()
            self._forgot_at = self._forgot_at if is_behind else began
        counting.search_lag(self.lag_s())
        pause_s = (time.monotonic() - began) * (SHARE - 1)
        return pause_s if is_behind else max(EVERY_S, pause_s)

    def fill(self, *, wait: bool = False) -> Batch | None:
        """Go on by one batch, if need be in turn with another process; None: that is at it, or nothing is new."""
        with self._link.lend() as connection, connection.transaction():
            for place in connection.execute(SQL["take_turn" if wait else "take"]).fetchall():
                noted, checked = Place(*place[:2]), Place(*place[2:])
                batch = _note(connection, noted)
                return batch if batch and batch.is_full else _check(connection, checked, noted.at) or batch
        return None

    def lag_s(self) -> float:
        """Return for how long the message that is to be noted next has waited."""
        with self._link.lend() as connection:
            ((seconds,),) = connection.execute(SQL["lag"])
        return float(seconds)

    def empty(self) -> None:
        """Forget all of it, so that it is filled anew: whoever searches meanwhile looks at the messages themselves."""
        with self._link.lend() as connection, connection.transaction():
            connection.execute(SQL["take_turn"])
            connection.execute(SQL["empty"])
            connection.execute(SQL["begin"], {"least": LEAST_ID})

    def _forget(self) -> bool:
        """Return whether there is more."""
        with self._link.lend() as connection:
            values = {"id": self._forget_behind, "limit": AT_ONCE}
            last = connection.execute(SQL["forget"], values).fetchone()
        self._forget_behind = last[0] if last else LEAST_ID
        return bool(last)


def _note(connection: Connection, behind: Place) -> Batch | None:
    rows = _page(connection, behind, SETTLED, "infinity")
    if not rows:
        return None
    connection.execute(SQL["begin_stretch"], {"at": rows[0][1], "enough": STRETCH})
    batch = _put_down(connection, rows)
    connection.execute(SQL["noted"], {**batch.last._asdict(), "late": LATE})
    return batch


def _check(connection: Connection, behind: Place, until: datetime) -> Batch | None:
    """Look again at what is old enough for all to be committed, and note what came late."""
    rows = _page(connection, behind, LATE, until)
    if not rows:
        return None
    batch = _put_down(connection, rows)
    connection.execute(SQL["checked"], batch.last._asdict())
    return batch


def _page(connection: Connection, behind: Place, age: timedelta, until: datetime | str) -> list[tuple[Any, ...]]:
    values = {**behind._asdict(), "age": age, "until": until, "limit": AT_ONCE}
    return connection.execute(SQL["next_page"], values).fetchall()


def _put_down(connection: Connection, rows: Sequence[Sequence[Any]]) -> Batch:
    # From, which every email has: the others are noted already.
    new = [row for row in rows if row[2] is not None]
    if new:
        values = {
            "ids": [row[0] for row in new],
            "times": [row[1] for row in new],
            "terms": [f"{{{','.join(str(term_of(name)) for name in names(known_by(row)))}}}" for row in new],
        }
        connection.execute(SQL["note"], values)
    last_id, last_at = rows[-1][:2]
    return Batch(len(rows), Place(last_at, last_id))
