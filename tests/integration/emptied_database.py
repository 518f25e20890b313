"""A test's database is the last one's, emptied: making one costs a tenth of a second, emptying it a hundredth."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import psycopg
from psycopg import sql

from opensend_milter.adapters.postgres.link import Connection
from tests.integration.private_postgres import Cluster, Kept

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
_OTHERS = """
    SELECT FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"""
_TRIES_TO_BE_ALONE, _PAUSE_S = 20, 0.005
"""A connection that has been closed is still there for a moment."""
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
    _way_in: Kept | None = None
    """To the one that is handed out again and again: a new one would have to learn about each table first."""
    _shape: Shape = field(default_factory=list)
    _filled: frozenset[tuple[object, ...]] = frozenset()
    """Tables with rows that belong to the template."""
    _kept: Shape = field(default_factory=list)
    """Those rows, by their writers."""
    _size: int = 0

    def take(self) -> tuple[str, Kept]:
        """Return the name of one that nobody is connected to but us, and our way in."""
        if not self._shape:
            self._look_at_template()
        name, self._empty = self._empty or self._new(), None
        return name, self._into(name)

    def _into(self, name: str) -> Kept:
        self._way_in = self._way_in or Kept(self.cluster.here(name))
        return self._way_in

    def _new(self) -> str:
        name = f"{self.prefix}_{next(self._numbers)}"
        self.cluster.new_database(name, template=self.template)
        return name

    def give_back(self, name: str) -> None:
        """Empty it for the next; one that a test has altered is dropped, and one that somebody has not left."""
        connection = self._into(name).connection()
        if self._is_left(connection) and self._is_as_new(connection):
            self._clear(connection)
            self._empty = name
        else:
            self.close()
            self.cluster.drop_database(name)

    def close(self) -> None:
        """Close the connection that is kept."""
        if self._way_in:
            self._way_in.close()
            self._way_in = None

    @staticmethod
    def _is_left(connection: Connection) -> bool:
        for _ in range(_TRIES_TO_BE_ALONE):
            if not connection.execute(_OTHERS).rowcount:
                return True
            time.sleep(_PAUSE_S)
        return False

    def _look_at_template(self) -> None:
        with psycopg.connect(self.cluster.here(self.template), autocommit=True) as connection:
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

    @staticmethod
    def _rows(connection: Connection, tables: list[tuple[object, ...]]) -> Shape:
        query = sql.SQL("SELECT count(*), sum(xmin::text::bigint)::text FROM {}")
        return [row for table in tables for row in connection.execute(query.format(sql.Identifier(*map(str, table))))]

    @staticmethod
    def _size_of(connection: Connection) -> int:
        ((size,),) = connection.execute("SELECT pg_database_size(current_database())")
        return int(size)
