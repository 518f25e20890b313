"""Messages and refusals are found by anything that one knows of them, and by nobody whose they are not."""

from __future__ import annotations

from opensend_milter.adapters.postgres.lookup.search import find
from tests.integration.private_postgres import Database


def test_nothing_is_found_where_there_is_nothing(database: Database) -> None:
    with database.connect() as connection:
        for x in ("01a224b3-b000", "4jd5rb6fZCzRW0C", "17", None):
            assert find(connection, x).rows == []
