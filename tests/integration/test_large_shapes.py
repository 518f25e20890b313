"""Large hostile shapes as Postfix hands them over: each gets an answer for good, in no more memory than may be."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests.integration.private_postgres import Cluster
from tests.integration.serving import Serving, serving
from tests.milter_client import Answer
from tests.peaks import Peaks
from tests.shapes import LARGE, MOST_MB, Shape

TAKEN = Answer("d")
FOR_GOOD = {550, 552, 554}


@pytest.fixture(scope="module")
def _served(_shared_cluster: Cluster, _template: Path) -> Iterator[Serving]:
    _shared_cluster.new_database("shapes", template="template_opensend")
    with psycopg.connect(_shared_cluster.url("shapes"), autocommit=True) as connection:
        # Each value would be in the server's log, which is looked through after each test.
        connection.execute("ALTER DATABASE shapes SET log_statement = 'none'")
    # As patient as may be: a machine that is busy with other tests must not look like a message that is.
    patient: dict[str, object] = {"soft_timeout_s": 25, "hard_timeout_s": 100}
    with serving(_shared_cluster.url("shapes"), _template, milter=patient) as running:
        running.rows("INSERT INTO domains (name, status, user_id) VALUES ('sandbox.test', 'verified', 'u1')")
        yield running
    _shared_cluster.drop_database("shapes")


@pytest.fixture
def served(_served: Serving) -> Iterator[Serving]:
    """A milter; what it stored is forgotten after each test, for the sake of the disk."""
    yield _served
    _served.rows(
        "TRUNCATE emails, opensend_milter.submissions, opensend_milter.raw_chunks, opensend_milter.jobs CASCADE"
    )


@pytest.mark.case(73)
@pytest.mark.case(74)
@pytest.mark.parametrize("shape", LARGE, ids=lambda shape: shape.name)
def test_a_large_hostile_shape_is_answered_for_good_in_little_memory(served: Serving, shape: Shape) -> None:
    said_before = len(served.log)
    peaks = Peaks.from_now(served.process.pid)
    with served.client() as client:
        answer = client.message(served.key, shape.octets())
    assert answer == TAKEN or answer.code in FOR_GOOD, answer
    assert "Traceback" not in served.log[said_before:]
    assert peaks.mb() < MOST_MB
