"""A list that may be cut: its rows, and how many there would be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Generic, LiteralString, TypeVar

from psycopg import sql
from psycopg.rows import class_row

from opensend_milter.adapters.admin.explaining import explained
from opensend_milter.adapters.postgres.link import Connection

Row = TypeVar("Row")
MOST_COUNTED = 10_000
"""Whoever has more of them wants no number."""
FETCHED_AT_ONCE = 5_000


@dataclass(frozen=True, slots=True)
class Listed(Generic[Row]):
    """Rows, newest first."""

    rows: list[Row]
    total: int | None
    """None: more than MOST_COUNTED."""


def unwatched(_: int) -> None:
    """Say to nobody how many there are so far."""


def listed(
    connection: Connection,
    statement: LiteralString,
    row: type[Row],
    limit: int | None,
    values: Mapping[str, object],
    *,
    progress: Callable[[int], None] = unwatched,
) -> Listed[Row]:
    """Ask for as many rows as `limit`, all without one; only where there are more, they are counted."""
    with explained():
        rows = []
        with connection.transaction(), connection.cursor("opensend_list", row_factory=class_row(row)) as cursor:
            cursor.itersize = FETCHED_AT_ONCE
            cursor.execute(statement, {**values, "limit": None if limit is None else limit + 1})
            for number, one in enumerate(cursor, start=1):
                rows.append(one)
                progress(number)
        if limit is None or len(rows) <= limit:
            return Listed(rows, len(rows))
        count = sql.SQL("SELECT count(*) FROM ({}) AS listed").format(sql.SQL(statement.removesuffix(";")))
        ((total,),) = connection.execute(count, {**values, "limit": MOST_COUNTED + 1})
    return Listed(rows[:limit], total if total <= MOST_COUNTED else None)
