"""A few connections for any number of threads."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, LiteralString

from opensend_milter.adapters.postgres.link import Connection, Link, Tables
from opensend_milter.core.errors import StoreUnavailable


class Pool:
    """Lends them in turn; raises StoreUnavailable where none comes back in time."""

    def __init__(
        self,
        info: str,
        *,
        connections: int,
        timeout_s: float,
        tables: Tables | None = None,
        name: str = "opensend-http",
    ) -> None:
        """`timeout_s`: for a connection, and for what is asked over it; `name`: what the server calls them."""
        self._timeout_s = timeout_s
        self._links: queue.LifoQueue[Link] = queue.LifoQueue()
        for number in range(connections):
            self._links.put(Link(info, name=f"{name}-{number}", timeout_s=timeout_s, tables=tables))

    def close(self) -> None:
        """Let go of all connections."""
        while not self._links.empty():
            self._links.get_nowait().close()

    def all(self, statement: LiteralString, **values: object) -> list[tuple[Any, ...]]:
        """Ask, and return all rows."""
        with self.lend() as connection:
            return connection.execute(statement, values).fetchall()

    @contextmanager
    def lend(self) -> Iterator[Connection]:
        """Lend one."""
        try:
            link = self._links.get(timeout=self._timeout_s)
        except queue.Empty:
            raise StoreUnavailable("all connections are in use") from None
        try:
            with link.lend() as connection:
                yield connection
        finally:
            self._links.put(link)
