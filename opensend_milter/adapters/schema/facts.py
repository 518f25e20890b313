"""OpenSend's tables as its own migrations make them: read once from its catalog, written down in opensend.tsv."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import LiteralString

from opensend_milter.adapters.postgres.link import Connection

SNAPSHOT = "2026-07-02"
"""Of OpenSend, whose 41 migrations made the tables that were read."""


@dataclass(frozen=True, slots=True, order=True)
class Column:
    """One column; `type` and `default` as the catalog spells them."""

    table: str
    name: str
    type: str
    nullable: bool
    default: str


@dataclass(frozen=True, slots=True, order=True)
class Index:
    """One index: `btree (user_id, created_at)`, and `unique`, `primary` or nothing."""

    table: str
    name: str
    definition: str
    uniqueness: str


@dataclass(frozen=True, slots=True, order=True)
class ForeignKey:
    """One foreign key, as the catalog spells it."""

    table: str
    name: str
    definition: str


@dataclass(frozen=True, slots=True)
class Tables:
    """Some tables of one database, each part in order."""

    columns: tuple[Column, ...] = ()
    indexes: tuple[Index, ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()
    names: frozenset[str] = field(default=frozenset())


@cache
def opensend() -> Tables:
    """Return what the file says."""
    text = resources.files(__package__).joinpath("opensend.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    columns = [
        Column(table, name, kind, nullable == "null", default)
        for what, table, name, kind, nullable, default in (row[:6] for row in rows)
        if what == "column"
    ]
    return Tables(
        columns=tuple(sorted(columns)),
        indexes=tuple(sorted(Index(*row[1:5]) for row in rows if row[0] == "index")),
        foreign_keys=tuple(sorted(ForeignKey(*row[1:4]) for row in rows if row[0] == "foreign key")),
        names=frozenset(column.table for column in columns),
    )


# From pg_catalog: information_schema hides what a role may not read.
_COLUMNS: LiteralString = """
SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), NOT a.attnotnull,
    CASE WHEN a.attidentity <> '' THEN '(identity)' WHEN a.attgenerated <> '' THEN '(generated)'
        ELSE coalesce(pg_get_expr(d.adbin, d.adrelid), '') END
FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef d ON d.adrelid = c.oid AND d.adnum = a.attnum
WHERE c.relnamespace = to_regnamespace('public') AND c.relkind IN ('r', 'p', 'v', 'f') AND c.relname = ANY (%s)"""
_INDEXES: LiteralString = """
SELECT t.relname, c.relname, substring(pg_get_indexdef(c.oid) FROM ' USING (.*)$'),
    CASE WHEN i.indisprimary THEN 'primary' WHEN i.indisunique THEN 'unique' ELSE '' END
FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid JOIN pg_class t ON t.oid = i.indrelid
WHERE t.relnamespace = to_regnamespace('public') AND t.relname = ANY (%s)"""
_FOREIGN_KEYS: LiteralString = """
SELECT t.relname, k.conname, pg_get_constraintdef(k.oid)
FROM pg_constraint k JOIN pg_class t ON t.oid = k.conrelid
WHERE k.contype = 'f' AND t.relnamespace = to_regnamespace('public') AND t.relname = ANY (%s)"""


def columns_in(connection: Connection, tables: Iterable[str]) -> list[Column]:
    """Return the columns that a database has in these tables of the schema public."""
    return sorted(Column(*row) for row in connection.execute(_COLUMNS, [sorted(tables)]))


def tables_in(connection: Connection, tables: Iterable[str]) -> Tables:
    """Return what a database has of these tables of the schema public."""
    names = sorted(tables)
    columns = columns_in(connection, names)
    return Tables(
        columns=tuple(columns),
        indexes=tuple(sorted(Index(*row) for row in connection.execute(_INDEXES, [names]))),
        foreign_keys=tuple(sorted(ForeignKey(*row) for row in connection.execute(_FOREIGN_KEYS, [names]))),
        names=frozenset(column.table for column in columns),
    )


def make(connection: Connection, tables: Tables | None = None) -> None:
    """Make these tables, OpenSend's where none are given, in an empty database: as they are there, and nothing else."""
    with connection.transaction():
        connection.execute(";\n".join(_statements(tables or opensend())).encode())


def _statements(tables: Tables) -> Iterator[str]:
    for table in sorted(tables.names):
        lines = ",\n".join(_line(column) for column in tables.columns if column.table == table)
        yield f'CREATE TABLE public."{table}" (\n{lines}\n)'
    for index in tables.indexes:
        if index.uniqueness == "primary":
            columns = index.definition.partition(" ")[2]
            yield f'ALTER TABLE public."{index.table}" ADD CONSTRAINT "{index.name}" PRIMARY KEY {columns}'
        else:
            kind = "UNIQUE INDEX" if index.uniqueness else "INDEX"
            yield f'CREATE {kind} "{index.name}" ON public."{index.table}" USING {index.definition}'
    for key in tables.foreign_keys:
        yield f'ALTER TABLE public."{key.table}" ADD CONSTRAINT "{key.name}" {key.definition}'


def _line(column: Column) -> str:
    default = f" DEFAULT {column.default}" if column.default else ""
    return f'    "{column.name}" {column.type}{default}{"" if column.nullable else " NOT NULL"}'


def listed(columns: Sequence[Column], at_most: int = 5) -> str:
    """Name some columns for a person."""
    more = len(columns) - at_most
    named = ", ".join(f"{column.table}.{column.name}" for column in columns[:at_most])
    return named + (f" and {more} more" if more > 0 else "")
