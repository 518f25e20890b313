"""Recipients whom the next hop refuses while it is asked: over SMTP, recorded, taken up, told, and undone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from opensend_milter import cli
from opensend_milter.adapters.couriers.smtp import SmtpCourier
from opensend_milter.adapters.postgres.feedback import PostgresFeedbackBook, PostgresFeedbackBox
from opensend_milter.adapters.postgres.jobs import PostgresJobStore
from opensend_milter.adapters.postgres.link import conninfo_for
from opensend_milter.adapters.postgres.pool import Pool
from opensend_milter.adapters.postgres.submissions import PostgresSubmissions
from opensend_milter.config import Relay
from opensend_milter.core.breaker import Breaker
from opensend_milter.core.delivery import Delivery
from opensend_milter.core.feedback import Recipient, Report
from opensend_milter.core.model import Address, Answers, EmailId, KeyId
from opensend_milter.core.outgoing import parcel
from opensend_milter.core.submission import Submission
from tests.integration.outbox import add_email, events, job_store, rows, state
from tests.integration.private_postgres import Database
from tests.smtp_sink import Sink
from tests.waiting import NEVER_S, patience_s

ANN, BOB, CAT = (Address(f"{name}@example.net") for name in ("ann", "bob", "cat"))
UNKNOWN = "550 5.1.1 no such user"

Attempt = Callable[..., EmailId]


@pytest.fixture
def store(database: Database) -> Iterator[PostgresJobStore]:
    opened = job_store(database)
    yield opened
    opened.close()


@pytest.fixture
def book(database: Database) -> Iterator[PostgresFeedbackBook]:
    info = conninfo_for(database.url, database.password_dir, "opensend_worker")
    opened = PostgresFeedbackBook(info, name="opensend-feedback", timeout_s=patience_s(), soft_bounces=3)
    yield opened
    opened.close()


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink() as running:
        yield running


@pytest.fixture
def attempt(database: Database, store: PostgresJobStore, sink: Sink) -> Iterator[Attempt]:
    """Hand a message to the next hop, once."""
    courier = SmtpCourier(Relay(port=sink.port, timeout_s=NEVER_S), hostname="mx.example.com")
    delivery = Delivery(
        store=store,
        couriers={"smtp": courier},
        default="smtp",
        breaker=Breaker(lambda: 0.0),
        compose=lambda job: parcel(job, hostname="mx", sender=job.from_address),
        max_attempts=12,
        jitter=random.random,
        sleep=lambda _: None,
    )

    def run(*recipients: str, email_id: EmailId | None = None, user_id: str = "u1") -> EmailId:
        found = email_id or add_email(database, recipients=recipients or (ANN,), user_id=user_id)
        rows(database, "UPDATE opensend_milter.jobs SET not_before = now()")
        job = store.claim(found)
        assert job
        delivery.attempt(job)
        return found

    yield run
    courier.close()


def runner(database: Database, directory: Path) -> Callable[..., Result]:
    path = directory / "c.yaml"
    path.write_text(f"database:\n  password_dir: {database.password_dir}\n")
    environment = {"DATABASE_URL": database.url, "OPENSEND_MILTER_CONFIG": str(path), "COLUMNS": "250"}
    return lambda *words: CliRunner().invoke(cli.app_of(words[:1]), words, env=environment)


def submission(database: Database, email_id: EmailId) -> Submission:
    """Return what a key is told over HTTP."""
    ((key_id,),) = rows(database, "SELECT key_id::text FROM opensend_milter.submissions WHERE email_id = %s", email_id)
    info = conninfo_for(database.url_for("opensend_http"), None, None)
    pool = Pool(info, connections=1, timeout_s=patience_s())
    over_http = PostgresSubmissions(pool)
    try:
        (found,) = over_http.submissions(KeyId(key_id), [email_id])
    finally:
        pool.close()
    return found


def fates(database: Database, email_id: EmailId) -> tuple[int, dict[str, tuple[str, str | None]]]:
    """Return how many attempts a key is told of, and what became of each recipient."""
    found = submission(database, email_id)
    return found.attempts, {one.email: (one.status, one.reason) for one in found.fates}


def suppressed(database: Database) -> list[str]:
    return [email for (email,) in rows(database, "SELECT email FROM email_suppressions ORDER BY email")]


def everything(database: Database) -> list[list[tuple[Any, ...]]]:
    tables = ("emails", "email_events", "webhook_deliveries", "email_suppressions", "opensend_milter.recipient_results")
    return [rows(database, f"SELECT to_jsonb(t)::text FROM {table} t ORDER BY 1") for table in tables]  # noqa: S608


def bounced_by_mail(email_id: EmailId, address: str, *, permanent: bool = True) -> Report:
    about = (Recipient(names=(Address(address.upper()),), status="5.1.1", diagnostic="smtp; 550 5.1.1 no"),)
    return Report(
        kind="bounced", source_id=f"dsn:{address}", email_id=email_id, recipients=about, permanent=permanent, via="mail"
    )


def put(database: Database, report: Report) -> None:
    info = conninfo_for(database.url, database.password_dir, "opensend_http")
    box = PostgresFeedbackBox(info, name="opensend-http", timeout_s=patience_s())
    box.put([report])
    box.close()


def test_that_recipient_alone_has_bounced(
    database: Database, sink: Sink, attempt: Attempt, book: PostgresFeedbackBook
) -> None:
    """Status, event, evidence and fate as of a bounce by mail; before it is taken up as after."""
    sink.answers[BOB] = UNKNOWN
    sink.answers[CAT] = "550 5.7.1 not from you"
    email_id = attempt(ANN, BOB, CAT)
    for takes_up in (lambda: None, lambda: book.apply(100)):
        takes_up()
        assert state(database, email_id) == ("bounced", None)
        expected = {ANN: ("sent", None), BOB: ("bounced", UNKNOWN), CAT: ("failed", "550 5.7.1 not from you")}
        assert fates(database, email_id) == (1, expected)
        assert submission(database, email_id).state == "smtp_accepted"
    assert [kind for kind, _ in events(database, email_id)] == ["sent", "bounced"]
    listed = rows(database, "SELECT user_id, email, reason, source_email_id::text, metadata FROM email_suppressions")
    evidence = {
        "via": "inline", "courier": "smtp", "host": f"127.0.0.1:{sink.port}", "code": "550", "status": "5.1.1",
        "diagnostic": UNKNOWN,
    }  # fmt: skip
    assert listed == [("u1", BOB, "bounced", email_id, evidence)]


@pytest.mark.parametrize("place", ["RCPT", "."])
def test_a_message_that_its_only_recipient_never_got_has_bounced(
    database: Database, sink: Sink, attempt: Attempt, book: PostgresFeedbackBook, place: str
) -> None:
    """It did not fail: there is one event, one attempt, and it never left. Some look for mailboxes after the dot."""
    sink.answers[place] = UNKNOWN
    email_id = attempt(ANN)
    for takes_up in (lambda: None, lambda: book.apply(100)):
        takes_up()
        assert state(database, email_id) == ("bounced", None)
        assert fates(database, email_id)[1] == {ANN: ("bounced", UNKNOWN)}
    found = submission(database, email_id)
    assert (found.attempts, found.state, found.reply.endswith(UNKNOWN)) == (1, "smtp_failed", True)
    assert [kind for kind, _ in events(database, email_id)] == ["bounced"]
    assert suppressed(database) == [ANN]
    assert rows(database, "SELECT sent_at FROM emails") == [(None,)]


@pytest.mark.parametrize(
    "answers",
    [
        {"MAIL": "550 5.1.1 who are you"},
        {"RCPT": "550 5.7.1 no"},
        {"RCPT": "550 no such user"},
        {"RCPT": "450 5.1.1 odd"},
        {BOB: "550 5.7.1 no", ".": UNKNOWN, CAT: "250 ok"},
    ],
)
def test_whatever_else_is_refused_says_nothing_of_the_address(
    database: Database, sink: Sink, attempt: Attempt, book: PostgresFeedbackBook, answers: Mapping[str, str]
) -> None:
    """Without its code, for a while, or of a message that two were to get."""
    sink.answers |= answers
    email_id = attempt(ANN, BOB, CAT)
    assert book.apply(100) == 0
    assert state(database, email_id)[0] in {"failed", "queued"}
    assert suppressed(database) == []


def test_of_two_that_are_refused_each_has_its_own_end(
    database: Database, sink: Sink, attempt: Attempt, book: PostgresFeedbackBook
) -> None:
    """One bounce makes the message bounced, as by mail; the other is told as failed."""
    sink.answers |= {ANN: UNKNOWN, BOB: "550 5.7.1 no"}
    email_id = attempt(ANN, BOB)
    book.apply(100)
    assert state(database, email_id) == ("bounced", None)
    assert fates(database, email_id) == (1, {ANN: ("bounced", UNKNOWN), BOB: ("failed", "550 5.7.1 no")})
    found = rows(database, "SELECT type, payload -> 'refused' FROM email_events ORDER BY received_at")
    assert found == [("failed", [{"email": BOB, "reason": "550 5.7.1 no"}]), ("bounced", None)]


def test_while_others_wait_the_message_does(
    database: Database, sink: Sink, attempt: Attempt, book: PostgresFeedbackBook
) -> None:
    """The list does not; at the end the message has bounced, as if all had come at once, and it is told once."""
    sink.answers |= {BOB: UNKNOWN, CAT: "450 4.2.2 full"}
    email_id = attempt(ANN, BOB, CAT)
    book.apply(100)
    assert state(database, email_id) == ("queued", "waiting")
    assert suppressed(database) == [BOB]
    assert fates(database, email_id)[1] == {
        ANN: ("sent", None), BOB: ("bounced", UNKNOWN), CAT: ("deferred", "450 4.2.2 full")
    }  # fmt: skip
    del sink.answers[CAT]
    attempt(email_id=email_id)
    assert book.apply(100) == 0
    assert state(database, email_id) == ("bounced", None)
    assert [kind for kind, _ in events(database, email_id)] == ["delayed", "bounced", "sent"]
    assert fates(database, email_id)[1] == {ANN: ("sent", None), BOB: ("bounced", UNKNOWN), CAT: ("sent", None)}


def test_a_record_that_is_written_twice_counts_once(
    database: Database, store: PostgresJobStore, book: PostgresFeedbackBook, caplog: pytest.LogCaptureFixture
) -> None:
    """Its answer may be lost; also where a bounce is all that is told of it."""
    email_id = add_email(database, recipients=[ANN])
    job = store.claim(email_id)
    assert job
    assert store.begin(job)
    for takes_up in (lambda: None, lambda: book.apply(100)):
        store.record_failed(job, UNKNOWN, Answers(courier="smtp", refused=((ANN, UNKNOWN),)))
        takes_up()
    store.record_failed(job, UNKNOWN, Answers(courier="smtp", refused=((ANN, UNKNOWN),)))
    assert book.apply(100) == 0
    assert [kind for kind, _ in events(database, email_id)] == ["bounced"]
    assert rows(database, "SELECT recipients, unknown FROM opensend_milter.lane_answers") == [(1, 1)]
    assert "no longer ours" not in caplog.text


@pytest.mark.parametrize("permanent", [True, False])
def test_the_bounce_that_comes_by_mail_as_well_changes_nothing(
    database: Database, sink: Sink, attempt: Attempt, book: PostgresFeedbackBook, *, permanent: bool
) -> None:
    sink.answers[BOB] = UNKNOWN
    email_id = attempt(ANN, BOB)
    book.apply(100)
    before = everything(database)
    put(database, bounced_by_mail(email_id, BOB, permanent=permanent))
    assert book.apply(100) == 1
    assert everything(database) == before
    put(database, bounced_by_mail(email_id, ANN))
    assert book.apply(100) == 1
    assert suppressed(database) == [ANN, BOB], "another recipient's is news"


def test_a_next_hop_that_knows_too_few_suppresses_nobody(
    database: Database, sink: Sink, attempt: Attempt, book: PostgresFeedbackBook, tmp_path: Path
) -> None:
    """More than a fifth of a lane's last fifty. The mail has bounced all the same; other lanes are not concerned.

    What was suppressed before is undone, and what nobody got is tried again.
    """
    attempt(*(f"good{number}@example.net" for number in range(39)))
    sink.answers["RCPT"] = UNKNOWN
    for number in range(12):
        attempt(f"a{number:02}@example.net")
        book.apply(100)
    assert suppressed(database) == [f"a{number:02}@example.net" for number in range(10)]
    ((payload,),) = rows(
        database,
        "SELECT v.payload FROM email_events v JOIN opensend_milter.submissions s USING (email_id)"
        " WHERE s.recipients = '{a11@example.net}'",
    )
    assert "permanent" not in payload, "what such a relay says is not said for good"
    assert rows(database, "SELECT count(*) FROM opensend_milter.soft_bounces") == [(0,)]
    attempt("elsewhere@example.net", user_id="u2")
    book.apply(100)
    assert "elsewhere@example.net" in suppressed(database)

    run = runner(database, tmp_path)
    checked = run("doctor", "--only", "outbox.unknown")
    assert "12 of the last 51 recipients of user u1" in checked.stdout
    assert "suppression remove --via inline" in checked.stdout
    rows(database, "INSERT INTO email_suppressions (user_id, email, reason) VALUES ('u1', 'by-hand@x.net', 'manual')")
    tried = run("suppression", "remove", "--via", "inline", "--since", "1h", "--user", "u1", "--dry-run")
    assert (tried.exit_code, "10 would be no longer suppressed" in tried.stdout) == (0, True), tried.output
    assert len(suppressed(database)) == 12
    done = run("suppression", "remove", "--via", "inline", "--since", "1h", "--yes")
    assert (done.exit_code, "11 are no longer suppressed" in done.stdout) == (0, True), done.output
    assert suppressed(database) == ["by-hand@x.net"]

    del sink.answers["RCPT"]
    again = run("email", "retry", "--bounced", "--since", "1h", "--user", "u1", "--yes")
    assert "to be tried again: 12" in again.stdout, again.output
    ((email_id,),) = rows(
        database, "SELECT email_id::text FROM opensend_milter.submissions WHERE recipients = '{a03@example.net}'"
    )
    assert fates(database, EmailId(email_id))[1] == {"a03@example.net": ("queued", None)}
    attempt(email_id=EmailId(email_id))
    assert state(database, EmailId(email_id)) == ("sent", None)


def test_a_lane_that_is_mended_is_believed_again(
    database: Database, sink: Sink, attempt: Attempt, book: PostgresFeedbackBook, tmp_path: Path
) -> None:
    """Fifty recipients that it knows are enough."""
    sink.answers |= {f"a{number}@example.net": UNKNOWN for number in range(50)}
    attempt(*sink.answers)
    assert book.apply(100) == 50
    assert suppressed(database) == []
    attempt(*(f"good{number}@example.net" for number in range(50)))
    sink.answers[ANN] = UNKNOWN
    attempt(ANN)
    book.apply(100)
    assert suppressed(database) == [ANN]
    assert runner(database, tmp_path)("doctor", "--only", "outbox.unknown").exit_code == 0


def test_a_person_may_have_it_tried_again_and_hears_it_again(
    database: Database, sink: Sink, attempt: Attempt, book: PostgresFeedbackBook, tmp_path: Path
) -> None:
    sink.answers["RCPT"] = UNKNOWN
    email_id = attempt(ANN)
    book.apply(100)
    assert "tried again: 1" in runner(database, tmp_path)("email", "retry", email_id).stdout
    attempt(email_id=email_id)
    book.apply(100)
    assert [kind for kind, _ in events(database, email_id)] == ["bounced", "bounced"]
    assert fates(database, email_id)[0] == 2
    assert suppressed(database) == [ANN]


@pytest.mark.parametrize(
    "words",
    [
        [], [ANN, "--via", "inline", "--since", "1h"], ["--via", "inline"], ["--since", "1h"], [ANN, "--since", "1h"],
        [ANN, "--dry-run"], ["--via", "inline", "--since", "soon"], ["--via", "mail", "--since", "1h"],
    ],
)  # fmt: skip
def test_what_is_not_to_be_removed_so_is_said(database: Database, tmp_path: Path, words: list[str]) -> None:
    result = runner(database, tmp_path)("suppression", "remove", *words)
    assert result.exit_code in {2, 64}, result.output
    assert "Traceback" not in result.output


def test_answers_of_next_hops_are_kept_for_a_lanes_newest_only(database: Database, store: PostgresJobStore) -> None:
    for user_id, count in (("u1", 130), ("u2", 3)):
        rows(
            database,
            "INSERT INTO opensend_milter.lane_answers (user_id, courier, recipients, unknown)"
            " SELECT %s, 'smtp', 1, 0 FROM generate_series(1, %s)",
            user_id,
            count,
        )
    rows(
        database,
        "INSERT INTO opensend_milter.lane_answers (user_id, courier, recipients, unknown, noted_at)"
        " VALUES ('u2', 'smtp', 1, 1, now() - %s), ('u3', 'smtp', 1, 1, now() - %s)",
        timedelta(hours=25),
        timedelta(hours=23),
    )
    store.prune()
    found = rows(database, "SELECT user_id, count(*) FROM opensend_milter.lane_answers GROUP BY 1 ORDER BY 1")
    assert found == [("u1", 50), ("u2", 3), ("u3", 1)]
