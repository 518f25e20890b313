"""Statements as they are sent."""

from __future__ import annotations

from psycopg._queries import MAX_CACHED_STATEMENT_LENGTH

from opensend_milter.adapters.postgres.intake import SQL


def test_psycopg_remembers_where_the_parameters_of_an_intake_statement_are() -> None:
    assert {name: len(text) for name, text in SQL.items() if len(text) > MAX_CACHED_STATEMENT_LENGTH} == {}
