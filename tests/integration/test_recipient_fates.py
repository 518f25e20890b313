"""What became of three recipients, as the command line and HTTP tell it: the same at each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

import pytest

from opensend_milter.adapters.admin.store import AdminStore
from opensend_milter.adapters.postgres.jobs import PostgresJobStore
from opensend_milter.adapters.postgres.link import conninfo_for
from opensend_milter.adapters.postgres.submissions import PostgresSubmissions
from opensend_milter.core.model import Address, EmailId, Job, KeyId, Sent
from opensend_milter.core.submission import Submission
from tests.integration.outbox import add_email, job_store, rows
from tests.integration.private_postgres import Database
from tests.waiting import patience_s

ANN, BOB, CAT, DAN = (Address(f"{name}@example.net") for name in ("ann", "bob", "cat", "dan"))

Told = Callable[[], Submission]


@pytest.fixture
def store(database: Database) -> Iterator[PostgresJobStore]:
    opened = job_store(database)
    yield opened
    opened.close()


@pytest.fixture
def email_id(database: Database) -> EmailId:
    """One that goes to three; a fourth was left out."""
    made = add_email(database, recipients=[ANN, BOB, CAT])
    dropped = (
        """UPDATE opensend_milter.submissions SET dropped = '[{"email": "dan@example.net", "reason": "bounced"}]'"""
    )
    rows(database, dropped)
    return made


@pytest.fixture
def told(database: Database, email_id: EmailId) -> Iterator[Told]:
    ((key_id,),) = rows(database, "SELECT key_id::text FROM opensend_milter.submissions")
    over_http = PostgresSubmissions(
        conninfo_for(database.url_for("opensend_http"), None, None), connections=1, timeout_s=patience_s()
    )

    def both() -> Submission:
        with database.connect() as connection:
            shown = AdminStore(connection, makes_users=True).show_email(email_id)
        (found,) = over_http.submissions(KeyId(key_id), [email_id])
        assert [(one.email, one.status, one.reason) for one in found.fates] == [
            (one.address, one.status, one.reason) for one in shown.recipients
        ]
        return found

    yield both
    over_http.close()


def claimed(store: PostgresJobStore, email_id: EmailId) -> Job:
    job = store.claim(email_id)
    assert job
    assert store.begin(job)
    return job


def test_every_door_says_the_same_of_each_recipient(
    database: Database, store: PostgresJobStore, email_id: EmailId, told: Told
) -> None:
    def says(*statuses: str, attempts: int) -> datetime:
        found = told()
        assert [(one.email, one.status) for one in found.fates] == list(
            zip((ANN, BOB, CAT, DAN), (*statuses, "suppressed"), strict=True)
        )
        assert found.attempts == attempts
        assert found.recipients == (ANN, BOB, CAT)
        return found.updated_at

    taken_at = says("queued", "queued", "queued", attempts=0)
    first = claimed(store, email_id)
    says("processing", "processing", "processing", attempts=1)
    partly = Sent(courier="smtp", reply="250 ok", deferred=((BOB, "450 later"),), refused=((CAT, "550 5.7.1 no"),))
    store.record_partly(first, partly, 60)
    tried_at = says("sent", "deferred", "failed", attempts=1)
    assert tried_at > taken_at
    rows(database, "UPDATE opensend_milter.jobs SET not_before = now()")
    second = claimed(store, email_id)
    says("sent", "processing", "failed", attempts=2)
    store.record_uncertain(second, "the relay went away")
    says("sent", "uncertain", "failed", attempts=2)
    store.record_sent(second, Sent(courier="smtp", reply="250 ok", refused=((CAT, "550 5.7.1 no"),)))
    sent_at = says("sent", "sent", "failed", attempts=2)
    assert sent_at > tried_at
    rows(
        database,
        "INSERT INTO opensend_milter.recipient_results (email_id, address, outcome, reason)"
        " VALUES (%s, %s, 'bounced', '550 5.1.1')",
        email_id,
        ANN,
    )
    rows(database, "UPDATE emails SET status = 'bounced'")
    assert says("bounced", "sent", "failed", attempts=2) > sent_at


def test_the_attempts_of_a_failed_message_and_its_end_are_told(
    store: PostgresJobStore, email_id: EmailId, told: Told
) -> None:
    """Nobody counts them in the job, which is gone."""
    taken_at = told().updated_at
    store.record_failed(claimed(store, email_id), "554 5.7.1 no")
    found = told()
    assert [one.status for one in found.fates] == ["failed", "failed", "failed", "suppressed"]
    assert found.attempts == 1
    assert found.updated_at > taken_at
