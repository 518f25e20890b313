"""Whether a database has the tables that we need: each difference in a line, looked at again while we run."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from opensend_milter.adapters.postgres.link import Connection
from opensend_milter.adapters.schema import facts
from opensend_milter.adapters.schema.facts import Column
from opensend_milter.adapters.schema.needs import Need
from opensend_milter.core import counting
from opensend_milter.core.errors import TablesDiffer

log = logging.getLogger(__name__)
EVERY_S = 10.0
_WIDER = {"integer": {"bigint"}, "smallint": {"integer", "bigint"}, "character varying": {"text"}}
"""What takes, and gives back, all that the first does."""


def differences(connection: Connection, needed: Sequence[Need]) -> list[str]:
    """Return what is not as we need it, a line each; nothing: all of it is."""
    expected = {(column.table, column.name): column for column in facts.opensend().columns}
    found: dict[str, dict[str, Column]] = {need.table: {} for need in needed}
    for column in facts.columns_in(connection, found):
        found[column.table][column.name] = column
    return [line for need in needed for line in _differences(need, expected, found[need.table])]


def _differences(need: Need, expected: dict[tuple[str, str], Column], found: dict[str, Column]) -> Iterator[str]:
    if not found:
        yield f"{need.table}: there is no such table"
        return
    for name in sorted(need.columns):
        wanted, here = expected[need.table, name], found.get(name)
        if here is None:
            yield f"{need.table}.{name} is missing here, {wanted.type} expected"
        elif not _holds(wanted.type, here.type):
            yield f"{need.table}.{name} is {here.type} here, {wanted.type} expected"
    if need.is_written:
        for name, here in sorted(found.items()):
            if not here.nullable and name not in need.filled and (name in need.blank or not here.default):
                yield f"{need.table}.{name} is not null here, and a row of ours says nothing there"


def _holds(wanted: str, here: str) -> bool:
    """Tell whether one type will do for another: it holds as much, and reads the same."""
    if wanted == here:
        return True
    kind, _, length = wanted.rstrip(")").partition("(")
    its_kind, _, its_length = here.rstrip(")").partition("(")
    if kind == its_kind == "character varying":
        return not its_length or (bool(length) and int(its_length) >= int(length))
    return here in _WIDER.get(kind, set())


class Fitting:
    """Whether the tables are what we need, for all threads of a process: whoever has a connection looks."""

    def __init__(
        self, needed: Sequence[Need], *, every_s: float = EVERY_S, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._needed = needed
        self._every_s = every_s
        self._now = now
        self._due_at = now()
        self._looking = threading.Lock()
        self._found: tuple[str, ...] = ()

    def check(self, connection: Connection) -> None:
        """Look, where that is due; raise TablesDiffer as long as the last look found differences."""
        if self._now() >= self._due_at and self._looking.acquire(blocking=False):
            try:
                self._note(tuple(differences(connection, self._needed)))
                self._due_at = self._now() + self._every_s
            finally:
                self._looking.release()
        if self._found:
            counting.store_unavailable()
            raise TablesDiffer("; ".join(self._found))

    def expect(self, needed: Sequence[Need]) -> None:
        """Look for something else from now on."""
        self._needed = needed
        self.doubt()

    def doubt(self) -> None:
        """Something went wrong that a difference would explain: let the next one look at once."""
        self._due_at = self._now()

    def _note(self, found: tuple[str, ...]) -> None:
        for line in found if found != self._found else ():
            log.error("tables: %s", line)
        if self._found and not found:
            log.info("tables: as expected again")
        self._found = found
