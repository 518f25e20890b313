"""A row in Python is what its statement answers: the same names, in the same order."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from psycopg import pq

from opensend_milter.adapters.postgres import feedback, intake, job_rows, submissions, webhooks
from opensend_milter.adapters.postgres.link import Connection, StatementFile, statements
from tests.integration.private_postgres import Database

SHAPES: list[tuple[StatementFile, str, tuple[str, ...]]] = [
    ("intake", "facts_for", intake.FactsRow._fields),
    ("jobs", "take", job_rows.TakenRow._fields),
    ("jobs", "take_due", job_rows.TakenRow._fields),
    ("jobs", "long_uncertain", job_rows.UncertainRow._fields),
    ("jobs", "submission", job_rows.SubmissionRow._fields),
    ("jobs", "route", job_rows.RouteRow._fields),
    ("feedback", "due", feedback.ReportRow._fields),
    ("feedback", "standing", feedback.StandingRow._fields),
    ("webhooks", "claim", webhooks.DeliveryRow._fields),
    ("submissions", "key", submissions.KeyRow._fields),
    ("submissions", "submission", submissions.SubmissionRow._fields),
    ("submissions", "rejections", submissions.RejectionRow._fields),
]


@pytest.fixture
def connection(database: Database) -> Iterator[Connection]:
    with database.connect() as connected:
        yield connected


@pytest.mark.parametrize(("file", "name", "fields"), SHAPES, ids=[f"{file}.{name}" for file, name, _ in SHAPES])
def test_a_statement_answers_what_its_row_names(
    connection: Connection, file: StatementFile, name: str, fields: tuple[str, ...]
) -> None:
    """Described and not run."""
    text = re.sub(r"%\(\w+\)[sb]", "NULL", statements(file)[name])
    assert connection.pgconn.prepare(b"asked", text.encode()).status == pq.ExecStatus.COMMAND_OK
    described = connection.pgconn.describe_prepared(b"asked")
    assert tuple((described.fname(place) or b"").decode() for place in range(described.nfields)) == fields
