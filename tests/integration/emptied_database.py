"""A test's database is the last one's, emptied: making one costs a tenth of a second, emptying it a thousandth."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from opensend_milter.adapters.postgres.link import Connection
from tests.integration.private_postgres import Cluster

GROWN_BYTES = 8_000_000
"""What a test may leave behind in files before it is cheaper to make a new one."""
_CATALOGS = ("class", "attribute", "constraint", "index", "trigger", "proc", "type", "namespace", "rewrite", "policy")
# Whatever is done to a schema writes rows of these, and each carries the transaction that wrote it.
_SHAPE = sql.SQL(" UNION ALL ").join(
    sql.SQL("SELECT count(*), sum(xmin::text::bigint)::text FROM {}").format(sql.Identifier("pg_catalog", f"pg_{name}"))
    for name in _CATALOGS
) + sql.SQL("""
    UNION ALL SELECT count(*), min(setconfig::text)
        FROM pg_db_role_setting s JOIN pg_database d ON d.oid = s.setdatabase WHERE d.datname = current_database()
    UNION ALL SELECT datconnlimit, datacl::text FROM pg_database WHERE datname = current_database()""")
_TABLES = """
    SELECT schemaname, tablename FROM pg_tables WHERE schemaname IN ('public', 'opensend_milter') ORDER BY 1, 2"""
_CUT = """
    SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()"""
_BEGIN_AGAIN = """
    SELECT setval(format('%I.%I', schemaname, sequencename), start_value, false) FROM pg_sequences
    WHERE last_value IS NOT NULL"""

Shape = list[tuple[object, ...]]


@dataclass(slots=True)
class Databases:
    """Copies of a template, handed out one at a time, each as good as new."""

    cluster: Cluster
    template: str
    prefix: str = "test"
    _numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    _empty: str | None = None
    _shape: Shape = field(default_factory=list)
    _filled: frozenset[tuple[object, ...]] = frozenset()
    """Tables with rows that belong to the template."""
    _kept: Shape = field(default_factory=list)
    """Those rows, by their writers."""
    _size: int = 0

    def take(self) -> str:
        """Return the name of one that nobody is connected to: whoever knew it by its old name finds nothing."""
        if not self._shape:
            self._look_at_template()
        name = f"{self.prefix}_{next(self._numbers)}"
        if self._empty is None:
            self.cluster.new_database(name, template=self.template)
        else:
            old, self._empty = self._empty, None
            self.cluster.execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(*map(sql.Identifier, (old, name))))
        return name

    def give_back(self, name: str) -> None:
        """Empty it for the next; one that a test has altered is dropped."""
        with self._connected(name) as connection:
            connection.execute(_CUT)
            as_new = self._is_as_new(connection)
            if as_new:
                self._clear(connection)
        if as_new:
            self._empty = name
        else:
            self.cluster.drop_database(name)

    def _look_at_template(self) -> None:
        with self._connected(self.template) as connection:
            tables = connection.execute(_TABLES).fetchall()
            self._filled = frozenset(table for table in tables if self._rows(connection, [table])[0][0])
            self._kept = self._rows(connection, sorted(self._filled))
            self._shape = connection.execute(_SHAPE).fetchall()
            self._size = self._size_of(connection)

    def _is_as_new(self, connection: Connection) -> bool:
        return (
            connection.execute(_SHAPE).fetchall() == self._shape
            and self._rows(connection, sorted(self._filled)) == self._kept
            and self._size_of(connection) < self._size + GROWN_BYTES
        )

    def _clear(self, connection: Connection) -> None:
        tables = [table for table in connection.execute(_TABLES).fetchall() if table not in self._filled]
        # No trigger and no foreign key is to have a say.
        emptying: list[sql.Composable] = [sql.SQL("SET session_replication_role = replica")]
        emptying += [sql.SQL("DELETE FROM {}").format(sql.Identifier(*table)) for table in tables]
        connection.execute(sql.SQL("; ").join(emptying))
        connection.execute(_BEGIN_AGAIN)

    @contextmanager
    def _connected(self, name: str) -> Iterator[Connection]:
        with psycopg.connect(self.cluster.here(name), autocommit=True) as connection:
            yield connection

    @staticmethod
    def _rows(connection: Connection, tables: list[tuple[object, ...]]) -> Shape:
        query = sql.SQL("SELECT count(*), sum(xmin::text::bigint)::text FROM {}")
        return [row for table in tables for row in connection.execute(query.format(sql.Identifier(*map(str, table))))]

    @staticmethod
    def _size_of(connection: Connection) -> int:
        ((size,),) = connection.execute("SELECT pg_database_size(current_database())")
        return int(size)
