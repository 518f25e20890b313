"""What became of three recipients, as every door tells it: the same at each step."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from opensend_milter.adapters.admin.store import AdminStore
from opensend_milter.adapters.postgres.jobs import PostgresJobStore
from opensend_milter.adapters.postgres.letters import PostgresLetters
from opensend_milter.adapters.postgres.link import conninfo_for
from opensend_milter.adapters.postgres.lookup.messages import PostgresMessages
from opensend_milter.adapters.postgres.lookup.story import facts_of
from opensend_milter.adapters.postgres.pool import Pool
from opensend_milter.adapters.postgres.submissions import PostgresSubmissions
from opensend_milter.cli import app_of
from opensend_milter.core.lookup import Scope
from opensend_milter.core.model import Address, EmailId, Job, KeyId, Sent
from opensend_milter.core.submission import Caller, Submission
from tests.integration.outbox import add_email, events, job_store, rows
from tests.integration.private_postgres import Database
from tests.waiting import patience_s

ANN, BOB, CAT, DAN = (Address(f"{name}@example.net") for name in ("ann", "bob", "cat", "dan"))

OF_ONE = frozenset({"refused", "put off", "webhook"})
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
def told(database: Database, email_id: EmailId, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    ((key_id,),) = rows(database, "SELECT key_id::text FROM opensend_milter.submissions")
    info = conninfo_for(database.url_for("opensend_http"), None, None)
    pool = Pool(info, connections=1, timeout_s=patience_s())
    over_http = PostgresSubmissions(pool)
    rows(database, "INSERT INTO api_keys (id, name, token_hash, user_id) VALUES (%s, 'shop', 'a', 'u1')", key_id)
    monkeypatch.setenv("DATABASE_URL", database.url)
    path = tmp_path / "opensend-milter.yaml"
    path.write_text("profile: standalone\n")

    by_key = PostgresMessages(pool.lend, beside=False)
    caller = Caller(key_id=KeyId(key_id), networks=None, may_bulk=True, has_full_access=True, token_hash="a")

    def all_of_them() -> Submission:
        with database.connect() as connection:
            shown = AdminStore(connection, makes_users=True).show_email(email_id)
        (found,) = over_http.submissions(KeyId(key_id), [email_id])
        over_v1 = by_key.story(Scope(reads_by=KeyId(key_id)), email_id, datetime.isoformat)
        ended = CliRunner().invoke(app_of(["why"]), ["why", email_id, "--json", "--config", str(path)])
        by_why = json.loads(ended.stdout)["story"]
        assert over_v1
        fates = [(one.email, one.status, one.reason) for one in found.fates]
        (letter,) = PostgresLetters(pool).letters(caller, [email_id], whole=True)
        assert letter.standing == found
        assert fates == [(one.address, one.status, one.reason) for one in shown.recipients]
        assert fates == [(one.email, one.status, one.reason) for one in over_v1.recipients]
        assert fates == [(one["email"], one["status"], one["reason"]) for one in by_why["recipients"]]
        assert [moment.what for moment in over_v1.timeline] == [moment["what"] for moment in by_why["timeline"]]
        ((status,),) = rows(database, "SELECT status FROM emails WHERE id = %s", email_id)
        assert {found.status, over_v1.status, by_why["status"], shown.email.status if shown.email else ""} == {status}
        recorded = {kind for kind, _ in events(database, email_id)}
        assert recorded - {"delayed"} <= {moment.what for moment in over_v1.timeline}
        assert {one.what for one in over_v1.timeline} <= recorded | {"taken", "left out", "sent", *OF_ONE}
        return found

    yield all_of_them
    pool.close()


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


def test_webhooks_are_found_from_the_events_that_they_are_told(
    database: Database, store: PostgresJobStore, email_id: EmailId, told: Told
) -> None:
    """By an id that follows from both: no index of OpenSend's knows the event."""
    ((webhook,),) = rows(
        database,
        "INSERT INTO webhooks (url, event_types, status, user_id)"
        """ VALUES ('https://shop.example/hooks?token=secret', '["email.failed"]', 'active', 'u1') RETURNING id""",
    )
    store.record_failed(claimed(store, email_id), "554 5.7.1 no")
    told()
    rows(
        database,
        "UPDATE webhook_deliveries SET status = 'success', attempt = 2, status_code = 204, attempted_at = now()"
        " WHERE webhook_id = %s",
        webhook,
    )
    with database.connect() as connection:
        facts = facts_of(connection, email_id, beside=False)
    assert facts
    ((only,),) = [event.told for event in facts.events]
    assert (only.webhook_id, only.host, only.status, only.attempts, only.code) == (
        str(webhook),
        "shop.example",
        "success",
        2,
        204,
    )
