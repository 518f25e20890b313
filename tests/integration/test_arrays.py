"""What we write as an array Postgres reads as the same values."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from opensend_milter.adapters.postgres.intake_rows import array
from opensend_milter.adapters.postgres.link import Connection
from tests.integration.private_postgres import Database

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    with database.connect() as opened:
        yield opened


@given(values=st.lists(st.none() | TEXT))
@example(
    values=["", "NULL", "null", "{}", '"', "\\", '\\"', ",", " a ", "{a,b}", "\n\t\r", "\N{ZERO WIDTH SPACE}", None]
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_no_text_ends_an_array_or_becomes_two(connection: Connection, values: list[str | None]) -> None:
    ((read,),) = connection.execute("SELECT %s::text[]", [array(values)])
    assert read == values


def test_what_is_no_text_is_read_as_well(connection: Connection) -> None:
    at = datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=UTC)
    written = [array([True, False, None]), array([1, -2, None]), array([at, None]), array([])]
    query = "SELECT %s::boolean[], %s::bigint[], %s::timestamptz[], %s::text[]"
    assert connection.execute(query, written).fetchone() == ([True, False, None], [1, -2, None], [at, None], [])


def test_a_nul_never_makes_two_of_one() -> None:
    with pytest.raises(ValueError, match="NUL"):
        array(["a\0b", "c"])
