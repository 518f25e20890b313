"""Statements as they are sent."""

from __future__ import annotations

import re

from psycopg._queries import MAX_CACHED_STATEMENT_LENGTH

from opensend_milter.adapters.postgres.intake import SQL


def test_psycopg_remembers_where_the_parameters_of_an_intake_statement_are() -> None:
    assert {name: len(text) for name, text in SQL.items() if len(text) > MAX_CACHED_STATEMENT_LENGTH} == {}


def test_no_row_of_a_batch_is_cut_out_of_what_all_have_together() -> None:
    """Postgres looks for a place in an array of texts from its beginning: a batch would cost the square of its rows."""
    cut = re.compile(r"\)\[|\[[^\]]*:[^\]]*\]")
    assert cut.search("(%(recipients)s::text[])[k.place]")
    assert cut.search("together.recipients[k.first:k.last]")
    assert {name: found[0] for name, text in SQL.items() if (found := cut.search(text))} == {}
