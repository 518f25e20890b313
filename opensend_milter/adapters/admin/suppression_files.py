"""Suppressed addresses by the hundred thousand: in by COPY, all or none; out in one pass."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime

from psycopg import Rollback

from opensend_milter.adapters.admin.explaining import explained
from opensend_milter.adapters.postgres.link import Connection, statements
from opensend_milter.core.address import folded
from opensend_milter.core.model import UserId
from opensend_milter.core.suppression_list import Entry

SQL = statements("suppression_files")
FETCHED_AT_ONCE = 5_000


def import_entries(
    connection: Connection,
    user_id: UserId,
    entries: Iterable[Entry],
    *,
    dry_run: bool,
    progress: Callable[[int], None],
) -> int:
    """Add those that are not there yet, in one transaction; return how many. A dry run undoes it."""
    added = 0
    with explained(), connection.transaction():
        connection.execute(SQL["make_incoming"])
        with connection.cursor().copy(SQL["fill_incoming"]) as copy:
            for count, entry in enumerate(entries, start=1):
                copy.write_row((entry.address, folded(entry.address), entry.reason, entry.since))
                progress(count)
        added = connection.execute(SQL["add_incoming"], {"user_id": user_id}).rowcount
        if dry_run:
            raise Rollback
    return added


def export_entries(connection: Connection, user_id: UserId) -> Iterator[tuple[str, str, datetime]]:
    """Yield address, reason and time of each, oldest first."""
    with explained(), connection.transaction(), connection.cursor("opensend_suppressions") as cursor:
        cursor.itersize = FETCHED_AT_ONCE
        cursor.execute(SQL["export"], {"user_id": user_id})
        yield from cursor
