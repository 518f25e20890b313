"""What a person may do about a delivery, as it is typed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from opensend_milter import cli
from opensend_milter.adapters.postgres.jobs import Keeping, PostgresJobStore
from opensend_milter.core.model import EmailId, Job, Sent
from tests.integration.outbox import LANE, add_email, events, job_store, rows, state
from tests.integration.private_postgres import Database
from tests.jobs import RAW

Run = Callable[..., Result]


@pytest.fixture
def store(database: Database) -> Iterator[PostgresJobStore]:
    opened = job_store(database, keeping=Keeping(raw=timedelta(days=30)))
    yield opened
    opened.close()


def runner(database: Database, directory: Path, profile: str) -> Run:
    """Run one command line against a test's database."""
    path = directory / "c.yaml"
    path.write_text(f"profile: {profile}\ndatabase:\n  password_dir: {database.password_dir}\n")
    environment = {"DATABASE_URL": database.url, "OPENSEND_MILTER_CONFIG": str(path), "COLUMNS": "250"}

    def invoke(*words: str) -> Result:
        return CliRunner().invoke(cli.app_of(words[:1]), words, env=environment)

    return invoke


@pytest.fixture
def run(database: Database, tmp_path: Path) -> Run:
    return runner(database, tmp_path, "standalone")


def begun(store: PostgresJobStore, email_id: EmailId) -> Job:
    job = store.claim(email_id)
    assert job
    assert store.begin(job)
    return job


def failed(database: Database, store: PostgresJobStore) -> EmailId:
    email_id = add_email(database)
    store.record_failed(begun(store, email_id), "550 no")
    return email_id


def uncertain(database: Database, store: PostgresJobStore) -> EmailId:
    email_id = add_email(database)
    store.record_uncertain(begun(store, email_id), "who knows")
    return email_id


def test_a_failed_email_is_tried_again_from_the_start(database: Database, store: PostgresJobStore, run: Run) -> None:
    """And when it fails again, that is a new event."""
    email_id = failed(database, store)
    result = run("email", "retry", email_id)
    assert result.exit_code == 0, result.output
    assert "to be tried again: 1" in result.stdout
    assert state(database, email_id) == ("queued", "waiting")
    job = begun(store, email_id)
    assert (job.attempts, job.raw) == (0, RAW)
    store.record_failed(job, "550 still no")
    assert [kind for kind, _ in events(database, email_id)] == ["failed", "failed"]
    assert run("email", "retry", email_id).exit_code == 0
    store.record_sent(begun(store, email_id), Sent(courier="smtp", reply="250 ok"))
    assert state(database, email_id) == ("sent", None)


def test_all_that_failed_since_then(database: Database, store: PostgresJobStore, run: Run) -> None:
    """Of one user, and not what can not be sent any more."""
    old, new, gone = (failed(database, store) for _ in range(3))
    rows(database, "UPDATE emails SET provider_dead_lettered_at = now() - interval '3 days' WHERE id = %s", old)
    rows(database, "UPDATE opensend_milter.submissions SET raw_dropped_at = now() WHERE email_id = %s", gone)
    assert json.loads(run("email", "retry", "--failed", "--user", "u2", "--json").stdout) == {"done": [], "left": {}}
    assert json.loads(run("email", "retry", "--failed", "--since", "1d", "--json").stdout)["done"] == [new]
    assert json.loads(run("email", "retry", "--failed", "--json").stdout)["done"] == [old]
    result = run("email", "retry", gone)
    assert result.exit_code == 1
    assert "its bytes are not kept any more" in result.stdout


def test_a_domain_of_the_failed_email_keeps_its_courier(database: Database, store: PostgresJobStore, run: Run) -> None:
    rows(database, "INSERT INTO domains (name, user_id, status) VALUES ('Example.org', 'u1', 'verified')")
    assert run("domain", "set", "example.org", "--courier", "ses").exit_code == 0
    email_id = failed(database, store)
    run("email", "retry", email_id)
    assert rows(database, "SELECT courier FROM opensend_milter.jobs") == [("ses",)]


def test_what_waits_goes_at_once(database: Database, store: PostgresJobStore, run: Run) -> None:
    email_id = add_email(database, queue_id="4Xlater")
    store.record_deferred(begun(store, email_id), "450", 3_600)
    assert store.claim_due(LANE) is None
    assert run("email", "retry", "4Xlater").exit_code == 0
    job = store.claim_due(LANE)
    assert job
    assert job.attempts == 1, "its attempts still count"


@pytest.mark.case(59)
@pytest.mark.parametrize(
    ("words", "expected", "kinds"),
    [
        (["retry"], ("queued", "waiting"), []),
        (["fail", "--reason", "asked the next hop"], ("failed", None), ["failed"]),
        (["mark-sent"], ("sent", None), ["sent"]),
    ],
)
def test_a_person_resolves_what_is_uncertain(  # noqa: PLR0917  # fixtures
    database: Database,
    store: PostgresJobStore,
    run: Run,
    words: list[str],
    expected: tuple[str, str | None],
    kinds: list[str],
) -> None:
    """With its event and its webhooks, once."""
    rows(
        database,
        "INSERT INTO webhooks (url, user_id, event_types) VALUES ('https://a.example', 'u1', %s)",
        '["email.failed", "email.sent"]',
    )
    email_id = uncertain(database, store)
    assert run("email", words[0], email_id, *words[1:]).exit_code == 0
    assert state(database, email_id) == expected
    # An attempt that is taken up again has an event by which it is counted, and no webhook tells of it.
    assert [kind for kind, _ in events(database, email_id) if kind != "delayed"] == kinds
    assert rows(database, "SELECT count(*) FROM webhook_deliveries") == [(len(kinds),)]
    if kinds:
        again = run("email", words[0], email_id)
        assert again.exit_code == 1
        assert f"left: {email_id}: it is {expected[0]}" in again.stdout


def test_what_is_not_begun_can_be_taken_back(database: Database, store: PostgresJobStore, run: Run) -> None:
    """And what is in hand can not."""
    waiting, scheduled = add_email(database), add_email(database, status="scheduled")
    rows(database, "UPDATE emails SET scheduled_at = now() + interval '1 day' WHERE id = %s", scheduled)
    in_hand = add_email(database)
    begun(store, in_hand)
    result = run("email", "cancel", waiting, scheduled, in_hand)
    assert result.exit_code == 1
    assert "canceled: 2" in result.stdout
    assert f"left: {in_hand}: a worker has it in hand just now" in result.stdout
    assert state(database, waiting) == state(database, scheduled) == ("canceled", None)
    assert state(database, in_hand) == ("processing", "attempting")
    assert store.claim_due(LANE) is None


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["email", "retry"], "name emails by their ids"),
        (["email", "retry", "x", "--failed"], "name emails by their ids"),
        (["email", "retry", "x", "--since", "1d"], "go with --failed"),
        (["email", "fail", "nobody"], "no email has the id or queue id nobody"),
        (["domain", "set", "nowhere.example"], "no domain nowhere.example"),
    ],
)
def test_a_request_that_makes_no_sense(run: Run, words: list[str], text: str) -> None:
    result = run(*words)
    assert result.exit_code == 64
    assert text in result.stderr


def test_beside_opensend_its_ingester_delivers(beside: Database, tmp_path: Path) -> None:
    run = runner(beside, tmp_path, "opensend")
    for words in (["email", "retry", "--failed"], ["email", "cancel", "x"], ["domain", "set", "x.example"]):
        result = run(*words)
        assert result.exit_code == 64
        assert "OpenSend's ingester delivers" in result.stderr


def test_what_a_domain_asks_for(database: Database, run: Run) -> None:
    """Each thing by itself; what is not named stays."""
    rows(database, "INSERT INTO domains (name, user_id, status) VALUES ('example.org', 'u1', 'verified')")
    first = json.loads(run("domain", "set", "example.org", "--courier", "ses", "--one-click", "--json").stdout)
    assert (first["courier"], first["one_click"], first["track_opens"]) == ("ses", True, False)
    words = ["--track-opens", "--tracking-host", "links.example.org", "--region", "eu-west-1"]
    second = json.loads(run("domain", "set", "example.org", *words, "--json").stdout)
    assert second == first | {"track_opens": True, "tracking_host": "links.example.org", "region": "eu-west-1"}
    third = run("domain", "set", "example.org", "--courier", "configured", "--no-one-click", "--tracking-host", "")
    assert "courier: configured" in third.stdout
    assert "tracking_host: \n" in third.stdout
    assert "one_click: False" in third.stdout
    for wrong in (["--region", "US East"], ["--tracking-host", "a/b"], ["--configuration-set", "a b"]):
        assert run("domain", "set", "example.org", *wrong).exit_code == 64


def test_prune_says_what_it_deletes(database: Database, store: PostgresJobStore, run: Run) -> None:
    for _ in range(3):
        failed(database, store)
    rows(database, "UPDATE opensend_milter.submissions SET received_at = now() - interval '40 days'")
    result = run("db", "prune")
    assert result.exit_code == 0, result.output
    assert result.stdout == "3 messages\n"
    assert result.stderr == ""
    assert rows(database, "SELECT count(*) FROM opensend_milter.raw_chunks") == [(0,)]
    assert json.loads(run("db", "prune", "--json").stdout) == {}
