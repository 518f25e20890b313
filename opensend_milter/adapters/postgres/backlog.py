"""Counts what is not delivered yet, now and then, for whoever watches."""

from __future__ import annotations

import time

from opensend_milter.adapters.postgres.link import Link, statements
from opensend_milter.core import counting
from opensend_milter.core.model import JobState

SQL = statements("jobs")
EVERY_S = 15.0
SHARE = 20
"""Counting a million rows takes its time: never more than this part of ours."""


class PostgresBacklog:
    """One thread's step, with a connection of its own."""

    def __init__(self, info: str, *, name: str, timeout_s: float) -> None:
        self._link = Link(info, name=name, timeout_s=timeout_s)

    def step(self) -> float:
        """Count once; return how long to pause."""
        began = time.monotonic()
        with self._link.lend() as connection:
            rows = connection.execute(SQL["backlog"]).fetchall()
        counting.backlog(
            {JobState(state): count for state, count, _ in rows}, float(max((late for *_, late in rows), default=0))
        )
        return max(EVERY_S, (time.monotonic() - began) * SHARE)

    def close(self) -> None:
        """Let go of the connection."""
        self._link.close()
