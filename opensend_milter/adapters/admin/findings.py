"""What the doctor of each host saw last: kept for the console, which says how old it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from psycopg.rows import class_row

from opensend_milter.adapters.admin.explaining import explained
from opensend_milter.adapters.postgres.answers import text
from opensend_milter.adapters.postgres.link import Connection, statements
from opensend_milter.core.findings import Finding

SQL = statements("findings")
EVERY = timedelta(minutes=15)
"""As opensend-doctor.timer says."""
MOST_SHOWN = 100
LONGEST = 2_000
"""Of what is stored of one check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Examined:
    """One host, and how many of its checks found nothing wrong, or were not made."""

    host: str
    age: timedelta
    good: int
    skipped: int

    @property
    def is_old(self) -> bool:
        """Tell whether the doctor should have looked again since."""
        return self.age > 2 * EVERY


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What was wrong on a host, and what mends it."""

    host: str
    name: str
    result: str
    seen: str
    mend: str


def keep(connection: Connection, host: str, findings: Sequence[Finding]) -> None:
    """Put down what this host's doctor saw, in the place of what it saw before."""
    values = {
        "host": host,
        "names": [one.name for one in findings],
        "results": [one.result.value for one in findings],
        "seen": [text(one.seen[:LONGEST]) for one in findings],
        "mends": [text(one.mend[:LONGEST]) for one in findings],
    }
    with explained(), connection.transaction():
        connection.execute(SQL["forget"], values)
        connection.execute(SQL["keep"], values)


def examined(connection: Connection) -> list[Examined]:
    """Return whose doctor has looked."""
    with connection.cursor(row_factory=class_row(Examined)) as cursor:
        return cursor.execute(SQL["examined"]).fetchall()


def faults(connection: Connection) -> list[Fault]:
    """Return what was wrong, problems first."""
    with connection.cursor(row_factory=class_row(Fault)) as cursor:
        return cursor.execute(SQL["faults"], {"most": MOST_SHOWN}).fetchall()
