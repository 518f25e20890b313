"""Reports taken up by the worker's own role, in a real Postgres: counted once, only forward, only for recipients."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from opensend_milter.adapters.aws.ses_events import SesEventQueue
from opensend_milter.adapters.postgres.feedback import PATIENCE, PostgresFeedbackBook, PostgresFeedbackBox
from opensend_milter.adapters.postgres.intake import Habits, PostgresIntakeStore
from opensend_milter.adapters.postgres.link import conninfo_for
from opensend_milter.core.dsn import return_path
from opensend_milter.core.errors import StoreUnavailable
from opensend_milter.core.feedback import Recipient, Report
from opensend_milter.core.model import Address, EmailId, Identity, KeyId, Question, Sent
from opensend_milter.core.signing import derived
from opensend_milter.servers.worker.feedback import Applying, Listening
from tests.integration.outbox import add_email, end_leases, events, job_store, rows, state
from tests.integration.private_postgres import Database
from tests.integration.sqs_server import client, new_queue, running_sqs, set_credentials
from tests.waiting import patience_s

ROOT = Path(__file__).parents[2]
STRANGER = EmailId("0198c5a2-7f00-7abc-8def-0123456789ab")


@pytest.fixture
def box(database: Database) -> Iterator[PostgresFeedbackBox]:
    """As the HTTP process opens it: it may put down, and nothing else."""
    info = conninfo_for(database.url, database.password_dir, "opensend_http")
    opened = PostgresFeedbackBox(info, name="opensend-http", timeout_s=patience_s())
    yield opened
    opened.close()


def opened_book(database: Database, soft_bounces: int = 3) -> PostgresFeedbackBook:
    info = conninfo_for(database.url, database.password_dir, "opensend_worker")
    return PostgresFeedbackBook(info, name="opensend-feedback", timeout_s=patience_s(), soft_bounces=soft_bounces)


@pytest.fixture
def book(database: Database) -> Iterator[PostgresFeedbackBook]:
    opened = opened_book(database)
    yield opened
    opened.close()


def sent_email(database: Database, *recipients: str, status: str = "sent") -> EmailId:
    """A message that has left."""
    email_id = add_email(database, recipients=recipients or ("To@example.net",), status=status)
    rows(database, "DELETE FROM opensend_milter.jobs WHERE email_id = %s", email_id)
    return email_id


def report(email_id: EmailId | None, kind: str = "delivered", *addresses: str, **changes: Any) -> Report:
    about = tuple(Recipient(names=(Address(one),), status="5.1.1", diagnostic="550 no") for one in addresses)
    standard = {"kind": kind, "source_id": f"{kind}-1", "email_id": email_id, "recipients": about, "via": "ses"}
    return Report(**standard | changes)


def status(database: Database, email_id: EmailId) -> str | None:
    return state(database, email_id)[0]


def suppressed(database: Database) -> list[tuple[Any, ...]]:
    return rows(database, "SELECT user_id, email, reason FROM email_suppressions ORDER BY email")


def waiting(database: Database) -> int:
    ((count,),) = rows(database, "SELECT count(*) FROM opensend_milter.feedback")
    return int(count)


def everything(database: Database) -> list[list[tuple[Any, ...]]]:
    """All that a report may change."""
    tables = ("emails", "email_events", "webhook_deliveries", "email_suppressions", "opensend_milter.jobs",
              "opensend_milter.recipient_results", "opensend_milter.soft_bounces")  # fmt: skip
    return [rows(database, f"SELECT to_jsonb(t)::text FROM {table} t ORDER BY 1") for table in tables]  # noqa: S608


def test_a_hard_bounce_has_all_its_effects(
    database: Database, box: PostgresFeedbackBox, book: PostgresFeedbackBook
) -> None:
    """Status, event, deliveries to the webhooks that asked, the list with its evidence; and the same again: nothing."""
    email_id = sent_email(database)
    rows(database, "UPDATE opensend_milter.submissions SET provider_id = '0100-ses'")
    rows(
        database,
        "INSERT INTO webhooks (url, user_id, status, event_types, signing_secret_enc)"
        """ VALUES ('https://a', 'u1', 'active', '["email.bounced", "email.sent"]', ''),"""
        """ ('https://b', 'u1', 'active', '["email.delivered"]', ''),"""
        """ ('https://c', 'u1', 'disabled', '["email.bounced"]', ''),"""
        """ ('https://d', 'u2', 'active', '["email.bounced"]', '')""",
    )
    bounced = report(email_id, "bounced", "TO@example.net", permanent=True, source_id="sns-1", provider_id="0100-ses",
                     details={"bounceType": "Permanent"})  # fmt: skip
    box.put([bounced, bounced])
    assert book.apply(100) == 2
    assert status(database, email_id) == "bounced"
    assert events(database, email_id) == [("bounced", "sns-1")]
    ((payload,),) = rows(database, "SELECT payload FROM email_events")
    assert payload["recipients"][0] | {"names": 0} == {
        "email": "TO@example.net", "names": 0, "status": "5.1.1", "diagnostic": "550 no"
    }  # fmt: skip
    deliveries = rows(
        database,
        "SELECT w.url, d.status, d.attempt FROM webhook_deliveries d JOIN webhooks w ON w.id = d.webhook_id",
    )
    assert deliveries == [("https://a", "pending", 0)]
    listed = rows(
        database,
        "SELECT user_id, email, reason, source_event_id, source_email_id::text, source_message_id, metadata"
        " FROM email_suppressions",
    )
    evidence = {"via": "ses", "status": "5.1.1", "diagnostic": "550 no", "bounceType": "Permanent"}
    assert listed == [("u1", "to@example.net", "bounced", "sns-1", email_id, "0100-ses", evidence)]
    results = rows(database, "SELECT address, outcome, reason FROM opensend_milter.recipient_results")
    assert results == [("To@example.net", "bounced", "550 no")]
    before = everything(database)
    box.put([bounced])
    assert book.apply(100) == 1
    assert everything(database) == before
    assert waiting(database) == 0


def test_the_next_message_to_it_finds_it_suppressed(
    database: Database, box: PostgresFeedbackBox, book: PostgresFeedbackBook
) -> None:
    """In whatever spelling."""
    box.put([report(sent_email(database, "Jo@bücher.example"), "bounced", "jo@xn--bcher-kva.example", permanent=True)])
    assert book.apply(100) == 1
    rows(database, "INSERT INTO api_keys (id, name, token_hash, user_id) VALUES (%s, 'k', 'h', 'u1')", STRANGER)
    info = conninfo_for(database.url, database.password_dir, "opensend_milter")
    habits = Habits(duplicate_window=timedelta(0), beside_opensend=False, billing=False)
    store = PostgresIntakeStore(info, habits, name="t", timeout_s=patience_s())
    to = (Address("JO@xn--bcher-kva.example"), Address("jo@bücher.example"), Address("other@x.net"))
    question = Question(
        key_id=KeyId(STRANGER),
        sender_domains=("x.net", "x.net"),
        recipients=to,
        identity=Identity(content_digest=b"", fingerprint=None, idempotency_key=None),
    )
    try:
        (facts,) = store.facts_for([question])
    finally:
        store.close()
    assert sorted(facts.suppressed) == sorted([(to[0], "bounced"), (to[1], "bounced")])


@pytest.mark.case(75)
def test_whoever_bounced_in_an_odd_spelling_is_noted_by_what_it_is_compared(
    database: Database, box: PostgresFeedbackBox, book: PostgresFeedbackBook
) -> None:
    box.put([report(sent_email(database, "ſo@x.net"), "bounced", "ſo@x.net", permanent=True)])
    assert book.apply(100) == 1
    assert suppressed(database) == [("u1", "ſo@x.net", "bounced")]
    assert rows(database, "SELECT * FROM opensend_milter.odd_spellings") == [("u1", "ſo@x.net", "so@x.net")]


@pytest.mark.parametrize(
    ("kinds", "last"),
    [
        (["sent", "delivered"], "delivered"),
        (["delivered", "sent"], "delivered"),
        (["delivered", "bounced"], "bounced"),
        (["bounced", "delivered"], "bounced"),
        (["bounced", "complained"], "complained"),
        (["complained", "bounced", "delivered", "opened"], "complained"),
        (["delivery_delayed", "opened", "clicked"], "sent"),
        (["failed"], "failed"),
        (["delivered", "failed"], "delivered"),
        (["failed", "delivered"], "delivered"),
    ],
)
@pytest.mark.parametrize("at_once", [True, False])
def test_a_status_moves_only_forward(  # noqa: PLR0917  # pytest names them
    database: Database,
    box: PostgresFeedbackBox,
    book: PostgresFeedbackBook,
    kinds: list[str],
    last: str,
    at_once: bool,  # noqa: FBT001
) -> None:
    """Whatever comes first, and whether it comes in one batch; each is an event all the same."""
    email_id = sent_email(database)
    for kind in kinds:
        box.put([report(email_id, kind, "to@example.net")])
        if not at_once:
            assert book.apply(100) == 1
    book.apply(100)
    assert status(database, email_id) == last
    assert {kind for kind, _ in events(database, email_id)} == set(kinds)


@pytest.mark.parametrize("before", ["canceled", "scheduled", "suppressed"])
def test_what_cannot_have_gone_out_stays(
    database: Database, box: PostgresFeedbackBox, book: PostgresFeedbackBook, before: str
) -> None:
    email_id = sent_email(database, status=before)
    box.put([report(email_id, kind) for kind in ("sent", "delivered", "complained", "failed")])
    assert book.apply(100) == 4
    assert status(database, email_id) == before


def test_of_several_recipients_each_has_his_own_outcome(
    database: Database, box: PostgresFeedbackBox, book: PostgresFeedbackBook
) -> None:
    """One bounce is enough for the status, as OpenSend has it; who got it is in the results."""
    email_id = sent_email(database, "a@x.net", "B@x.net", "c@x.net")
    box.put(
        [
            report(email_id, "delivered", "a@x.net", source_id="1"),
            report(email_id, "bounced", "b@x.net", "victim@x.net", permanent=True, source_id="2"),
            report(email_id, "delivered", "b@x.net", source_id="3"),
            report(email_id, "complained", "a@x.net", source_id="4"),
        ]
    )
    assert book.apply(100) == 4
    found = rows(database, "SELECT address, outcome FROM opensend_milter.recipient_results ORDER BY address")
    assert found == [("B@x.net", "bounced"), ("a@x.net", "complained")]
    assert status(database, email_id) == "complained"
    assert suppressed(database) == [("u1", "a@x.net", "complained"), ("u1", "b@x.net", "bounced")]


@pytest.mark.parametrize(
    "said",
    [
        report(None, "bounced", "to@example.net", permanent=True, provider_id="nobody's"),
        report(STRANGER, "bounced", "to@example.net", permanent=True),
    ],
)
def test_a_report_of_no_message_of_ours_is_dropped(
    database: Database,
    box: PostgresFeedbackBox,
    book: PostgresFeedbackBook,
    said: Report,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """After a while, where only the provider's id is known: that may not be recorded yet. The log has no address."""
    sent_email(database)
    before = everything(database)
    box.put([said])
    assert book.apply(100) == (0 if said.email_id is None else 1)
    rows(database, "UPDATE opensend_milter.feedback SET received_at = now() - %s", PATIENCE * 1.1)
    book.apply(100)
    assert waiting(database) == 0
    assert everything(database) == before
    assert "of no message of ours" in caplog.text
    assert "@" not in caplog.text


def test_a_report_of_somebody_else_changes_nothing(
    database: Database, box: PostgresFeedbackBox, book: PostgresFeedbackBook, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever can report on a message must not have others suppressed."""
    email_id = sent_email(database)
    before = everything(database)
    box.put([report(email_id, "bounced", "victim@x.net", permanent=True), report(email_id, "complained", "v@x.net")])
    assert book.apply(100) == 2
    assert everything(database) == before
    assert "@" not in caplog.text


def test_the_providers_id_leads_to_the_message(
    database: Database, box: PostgresFeedbackBox, book: PostgresFeedbackBook
) -> None:
    """Also where it is recorded only later; an id in the message's header never outweighs it."""
    ours, other = sent_email(database), sent_email(database)
    box.put([report(None, "delivered", provider_id="p-1", claimed_id=other)])
    rows(database, "UPDATE opensend_milter.submissions SET provider_id = 'p-2' WHERE email_id = %s", other)
    assert book.apply(100) == 0
    rows(database, "UPDATE opensend_milter.submissions SET provider_id = 'p-1' WHERE email_id = %s", ours)
    assert book.apply(100) == 1
    assert (status(database, ours), status(database, other)) == ("delivered", "sent")


def test_a_claim_is_heard_where_nothing_contradicts_it(
    database: Database, box: PostgresFeedbackBox, book: PostgresFeedbackBook
) -> None:
    email_id = sent_email(database)
    box.put([report(None, "delivered", provider_id="p-1", claimed_id=email_id)])
    assert book.apply(100) == 1
    assert status(database, email_id) == "delivered"


@pytest.mark.case(59)
@pytest.mark.parametrize("how", ["uncertain", "lease ended"])
@pytest.mark.parametrize(
    ("kind", "becomes", "types"),
    [
        ("sent", "sent", {"sent"}),
        ("delivered", "delivered", {"sent", "delivered"}),
        ("bounced", "bounced", {"sent", "bounced"}),
        ("complained", "complained", {"sent", "complained"}),
        ("delivery_delayed", "sent", {"sent", "delivery_delayed"}),
        ("opened", "sent", {"sent", "opened"}),
        ("clicked", "sent", {"sent", "clicked"}),
        ("failed", "failed", {"failed"}),
    ],
)
def test_a_report_resolves_what_is_uncertain(  # noqa: PLR0917  # pytest names them
    database: Database,
    box: PostgresFeedbackBox,
    book: PostgresFeedbackBook,
    kind: str,
    becomes: str,
    types: set[str],
    how: str,
) -> None:
    """The provider knows better than the worker that lost its answer."""
    email_id = add_email(database)
    store = job_store(database)
    job = store.claim(email_id)
    assert job
    assert store.begin(job)
    if how == "uncertain":
        store.record_uncertain(job, "no answer")
    box.put([report(email_id, kind, "to@example.net")])
    if how == "lease ended":
        assert book.apply(100) == 0, "somebody is sending it: he knows it better"
        end_leases(database)
    assert book.apply(100) == 1
    assert state(database, email_id) == (becomes, None)
    assert {kind for kind, _ in events(database, email_id)} == types
    ((sent_at,),) = rows(database, "SELECT sent_at FROM emails WHERE id = %s", email_id)
    assert (sent_at is None) == (kind == "failed")
    # The worker that comes back after all finds it recorded.
    store.record_sent(job, Sent(courier="ses", reply="ok"))
    store.close()
    assert state(database, email_id) == (becomes, None)
    assert [kind for kind, _ in events(database, email_id)].count("sent") == ("sent" in types)


def test_what_others_are_still_to_get_is_not_put_away(
    database: Database, box: PostgresFeedbackBox, book: PostgresFeedbackBook
) -> None:
    """A bounce of one who had it counts, but the job of the others goes on."""
    email_id = add_email(database, recipients=("a@x.net", "b@x.net"))
    rows(database, "UPDATE opensend_milter.jobs SET recipients = '{b@x.net}'")
    box.put([report(email_id, "bounced", "a@x.net", permanent=True)])
    assert book.apply(100) == 1
    assert state(database, email_id) == ("queued", "waiting")
    assert suppressed(database) == [("u1", "a@x.net", "bounced")]
    rows(database, "UPDATE opensend_milter.jobs SET state = 'uncertain'")
    box.put([report(email_id, "delivered", "a@x.net", source_id="2")])
    assert book.apply(100) == 1
    assert state(database, email_id) == ("queued", "uncertain")
    box.put([report(email_id, "delivered", "b@x.net", source_id="3")])
    assert book.apply(100) == 1
    assert state(database, email_id) == ("delivered", None)


def test_what_was_heard_before_undoes_nothing(
    database: Database, box: PostgresFeedbackBox, book: PostgresFeedbackBook
) -> None:
    """An address that a person let in again is not shut out by the old bounce."""
    email_id = sent_email(database)
    for _ in range(2):
        box.put([report(email_id, "bounced", permanent=True)])
        assert book.apply(100) == 1
        rows(database, "DELETE FROM email_suppressions")
    box.put([report(email_id, "bounced", permanent=True)])
    assert book.apply(100) == 1
    assert suppressed(database) == []


def test_those_who_wait_make_nobody_wait(
    database: Database, box: PostgresFeedbackBox, book: PostgresFeedbackBook
) -> None:
    """Reports of messages that are being sent just now are passed over."""
    store = job_store(database)
    in_hand = [add_email(database) for _ in range(3)]
    for email_id in in_hand:
        job = store.claim(email_id)
        assert job
        assert store.begin(job)
    store.close()
    done = sent_email(database)
    box.put([report(email_id, source_id=email_id) for email_id in [*in_hand, done]])
    assert book.apply(2) == 1
    assert status(database, done) == "delivered"
    assert waiting(database) == 3


def test_who_is_just_recording_is_waited_for(
    database: Database, box: PostgresFeedbackBox, book: PostgresFeedbackBook
) -> None:
    """Its job is gone a moment later, and then the status may move."""
    email_id = add_email(database)
    box.put([report(email_id)])
    applying = threading.Thread(target=book.apply, args=(100,))
    with database.connect() as connection, connection.transaction():
        connection.execute("DELETE FROM opensend_milter.jobs")
        applying.start()
        database.await_blocked()
        connection.execute("UPDATE emails SET status = 'sent'")
    applying.join()
    assert state(database, email_id) == ("delivered", None)


@pytest.mark.parametrize(
    ("first", "then", "reason"),
    [
        ("bounced", "complained", "complained"),
        ("complained", "bounced", "complained"),
        ("manual", "bounced", "manual"),
        ("manual", "complained", "manual"),
        ("bounced", "unsubscribe", "bounced"),
        ("complained", "unsubscribe", "complained"),
        (None, "unsubscribe", "manual"),
    ],
)
def test_which_reason_stays(  # noqa: PLR0917  # pytest names them
    database: Database,
    box: PostgresFeedbackBox,
    book: PostgresFeedbackBook,
    first: str | None,
    then: str,
    reason: str,
) -> None:
    """A complaint outweighs a bounce; what a person decided stays."""
    email_id = sent_email(database)
    if first:
        rows(
            database,
            "INSERT INTO email_suppressions (user_id, email, reason) VALUES ('u1', 'to@example.net', %s)",
            first,
        )
    box.put([report(email_id, then, "to@example.net", permanent=True)])
    assert book.apply(100) == 1
    assert suppressed(database) == [("u1", "to@example.net", reason)]


def test_one_click_is_no_event(database: Database, box: PostgresFeedbackBox, book: PostgresFeedbackBook) -> None:
    """It is an entry on the list, and the status stays."""
    email_id = sent_email(database)
    box.put([report(email_id, "unsubscribe", via="link")])
    assert book.apply(100) == 1
    assert events(database, email_id) == []
    assert status(database, email_id) == "sent"
    assert rows(database, "SELECT reason, metadata FROM email_suppressions") == [("manual", {"via": "one-click"})]


def test_soft_bounces_add_up(database: Database, box: PostgresFeedbackBox, book: PostgresFeedbackBook) -> None:
    """Three within a week suppress; the same one twice is one; a delivery makes them forgotten."""
    email_id = sent_email(database)

    def bounce(*source_ids: str) -> None:
        box.put([report(email_id, "bounced", "to@example.net", source_id=source_id) for source_id in source_ids])
        book.apply(100)

    bounce("1", "2", "2", "1")
    assert suppressed(database) == []
    box.put([report(email_id, "delivered", "to@example.net")])
    bounce("3", "4")
    assert suppressed(database) == []
    rows(database, "UPDATE opensend_milter.soft_bounces SET bounced_at = now() - interval '8 days'")
    bounce("5", "6")
    assert suppressed(database) == []
    assert book.prune() == 2
    assert rows(database, "SELECT count(*) FROM opensend_milter.soft_bounces") == [(2,)]
    bounce("7")
    assert suppressed(database) == [("u1", "to@example.net", "bounced")]
    ((metadata,),) = rows(database, "SELECT metadata FROM email_suppressions")
    assert metadata["soft"] == 3
    assert rows(database, "SELECT count(*) FROM opensend_milter.soft_bounces") == [(0,)]


def test_soft_bounces_may_mean_nothing(database: Database, box: PostgresFeedbackBox) -> None:
    book = opened_book(database, soft_bounces=0)
    email_id = sent_email(database)
    box.put([report(email_id, "bounced", source_id=str(number)) for number in range(20)])
    assert book.apply(100) == 20
    book.close()
    assert suppressed(database) == []


def test_what_the_database_will_not_take_stops_nobody(
    database: Database, box: PostgresFeedbackBox, book: PostgresFeedbackBook, caplog: pytest.LogCaptureFixture
) -> None:
    """A row that cannot be written, one of an unknown kind, one that is nonsense: the others are taken up."""
    email_id = sent_email(database)
    rows(database, "ALTER TABLE email_events ADD CONSTRAINT odd CHECK (type <> 'clicked')")
    box.put([report(email_id, "clicked"), report(email_id, "opened")])
    rows(
        database,
        "INSERT INTO opensend_milter.feedback (kind, source_id, email_id, payload)"
        " VALUES ('exploded', 'x', %s, '{}'), ('delivered', 'y', %s, '[3]')",
        email_id,
        email_id,
    )
    assert book.apply(100) == 4
    assert events(database, email_id) == [("opened", "opened-1"), ("delivered", "y")]
    assert caplog.text.count("dropped") == 2


def test_an_email_that_opensend_has_deleted(
    database: Database, box: PostgresFeedbackBox, book: PostgresFeedbackBook
) -> None:
    """Its bounce still says something of the address."""
    email_id = sent_email(database)
    rows(database, "DELETE FROM emails WHERE id = %s", email_id)
    box.put([report(email_id, "bounced", permanent=True)] * 2)
    assert book.apply(100) == 2
    assert suppressed(database) == [("u1", "to@example.net", "bounced")]
    assert rows(database, "SELECT count(*) FROM email_events WHERE email_id IS NULL") == [(1,)]


def test_one_worker_at_a_time(database: Database, box: PostgresFeedbackBox) -> None:
    """Two workers on one pile: each report is taken up once, and in order."""
    emails = [sent_email(database) for _ in range(40)]
    for kind in ("sent", "delivered", "bounced"):
        box.put([report(email_id, kind, source_id=f"{kind}-{email_id}") for email_id in emails])
    applied: list[int] = []

    def work() -> None:
        book = opened_book(database)
        while waiting(database):
            applied.append(book.apply(7))
        book.close()

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(applied) == 120
    assert {status(database, email_id) for email_id in emails} == {"bounced"}
    assert rows(database, "SELECT count(*) FROM email_events") == [(120,)]


def test_who_records_and_who_applies_never_block_each_other_for_ever(
    database: Database, box: PostgresFeedbackBox
) -> None:
    """Both take the job before the email."""
    emails = [add_email(database) for _ in range(30)]
    store = job_store(database)
    book = opened_book(database)
    jobs = [job for email_id in emails if (job := store.claim(email_id)) and store.begin(job)]
    box.put(
        [
            report(job.email_id, kind, source_id=f"{kind}-{job.email_id}")
            for kind in ("sent", "delivered")
            for job in jobs
        ]
    )

    def record() -> None:
        for job in reversed(jobs):
            store.record_sent(job, Sent(courier="ses", reply="ok"))

    recording = threading.Thread(target=record)
    recording.start()
    while waiting(database):
        book.apply(100)
    recording.join()
    book.close()
    store.close()
    assert {state(database, email_id) for email_id in emails} == {("delivered", None)}
    assert {len(events(database, email_id)) for email_id in emails} == {2}


@pytest.mark.case(56)
def test_a_database_that_is_away_loses_nothing(
    database: Database, box: PostgresFeedbackBox, book: PostgresFeedbackBook
) -> None:
    email_id = sent_email(database)
    box.put([report(email_id)])
    database.cluster.stop()
    for call in (lambda: box.put([report(email_id)]), lambda: book.apply(100), book.prune, box.secret):
        with pytest.raises(StoreUnavailable):
            call()
    database.cluster.start()
    assert box.secret()
    assert book.apply(100) == 1
    assert status(database, email_id) == "delivered"


def test_the_oldest_are_found_by_their_index(database: Database) -> None:
    """However many messages there are, a batch looks at those it is about."""
    rows(
        database,
        "INSERT INTO opensend_milter.submissions (email_id, received_at, user_id, key_id, front_door, queue_id,"
        " client_address, tls, sender, from_address, recipients, size_bytes, sha256, provider_id)"
        " SELECT gen_random_uuid(), now(), 'u1', gen_random_uuid(), 'smtp', 'q', '', '', '', '', '{a@x.net}', 1, '', n"
        " FROM generate_series(1, 20000) n",
    )
    rows(
        database,
        "INSERT INTO opensend_milter.feedback (kind, source_id, email_id, payload)"
        " SELECT 'opened', n::text, '00000000-0000-0000-0000-000000000000', jsonb_build_object('provider_id', n::text)"
        " FROM generate_series(1, 5000) n",
    )
    rows(
        database,
        "INSERT INTO opensend_milter.jobs (email_id, user_id)"
        " SELECT email_id, user_id FROM opensend_milter.submissions",
    )
    rows(database, "ANALYZE")
    from opensend_milter.adapters.postgres.feedback import SQL  # noqa: PLC0415

    with database.connect("opensend_worker") as connection:
        values = {"limit": 100, "patience": PATIENCE}
        plan = "\n".join(line for (line,) in connection.execute(b"EXPLAIN " + SQL["due"].encode(), values))
    assert "Seq Scan" not in plan, plan


@pytest.fixture(scope="module")
def sqs() -> Iterator[str]:
    set_credentials()
    with running_sqs() as endpoint:
        yield endpoint


def test_events_of_a_queue(database: Database, book: PostgresFeedbackBook, sqs: str) -> None:
    """With SNS's envelope or without; what is no event stays for the redrive policy, and nothing counts twice."""
    email_id = sent_email(database)
    url = new_queue(sqs, "ses-events")
    sender = client(sqs)

    def event(kind: str, **section: Any) -> str:
        mail = {"messageId": "m", "tags": {"X-Entity-ID": [email_id]}}
        return json.dumps({"eventType": kind, "mail": mail, kind.lower(): section})

    enveloped = json.dumps({"Type": "Notification", "MessageId": "sns-7", "Message": event("Open")})
    greeting = "Successfully validated SNS topic for Amazon SES event publishing."
    good = [event("Delivery"), event("Delivery"), enveloped, enveloped, greeting, event("Subscription")]
    bad = ["hello", "{}", "[" * 50_000, json.dumps({"Type": "Notification", "Message": 3}), event("Open")[:-1]]
    for body in good + bad:
        sender.send_message(QueueUrl=url, MessageBody=body)
    queue = SesEventQueue(url, region="us-east-1", endpoint_url=sqs)
    info = conninfo_for(database.url, database.password_dir, "opensend_worker")
    worker_box = PostgresFeedbackBox(info, name="opensend-listener", timeout_s=patience_s())
    listening = Listening(queue, worker_box)
    while left(sender, url)[0]:
        listening.step()
    worker_box.close()
    assert left(sender, url) == (0, len(bad))
    assert queue.malformed == len(bad)
    applying = Applying(book, pause_s=0.5)
    assert applying.step() == 0.5
    assert sorted(kind for kind, _ in events(database, email_id)) == ["delivered", "opened"]
    assert ("opened", "sns-7") in events(database, email_id)
    assert status(database, email_id) == "delivered"


def left(sender: Any, url: str) -> tuple[int, int]:
    """Return how many wait, and how many somebody has received and not deleted."""
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    found = sender.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
    return int(found[names[0]]), int(found[names[1]])


def test_events_stay_on_the_queue_while_the_database_is_away(database: Database, sqs: str) -> None:
    url = new_queue(sqs, "ses-events-away")
    sender = client(sqs)
    sender.send_message(QueueUrl=url, MessageBody=json.dumps({"eventType": "Open", "mail": {"messageId": "m"}}))
    info = conninfo_for(database.url, database.password_dir, "opensend_worker")
    box = PostgresFeedbackBox(info, name="opensend-listener", timeout_s=patience_s())
    listening = Listening(SesEventQueue(url, region="us-east-1", endpoint_url=sqs), box)
    database.cluster.stop()
    with pytest.raises(StoreUnavailable):
        listening.step()
    box.close()
    assert left(sender, url) == (0, 1)


def secret(database: Database) -> bytes:
    ((found,),) = rows(database, "SELECT secret FROM opensend_milter.secrets")
    return bytes(found)


def piped(database: Database, directory: Path, recipient: str, raw: bytes) -> tuple[int, str]:
    """Run the command as Postfix's pipe(8) does; return exit code and what it said."""
    config = directory / "config.yaml"
    config.write_text(f"database:\n  password_dir: {database.password_dir}\n")
    program = [sys.executable, "-c", "from opensend_milter.cli.records.feedback import app; app()"]
    ran = subprocess.run(
        [*program, "bounce", f"--recipient={recipient}", "--config", str(config)],
        input=raw, capture_output=True, timeout=patience_s(), check=False, cwd=ROOT,
        env=os.environ | {"DATABASE_URL": database.url, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert b"Traceback" not in ran.stderr
    return ran.returncode, (ran.stdout + ran.stderr).decode()


def test_a_bounce_piped_in(database: Database, book: PostgresFeedbackBook, tmp_path: Path) -> None:
    """Taken from a return path of ours, in any spelling; also where megabytes of the message are sent back with it."""
    email_id = sent_email(database, "nobody@example.net")
    raw = (ROOT / "tests" / "golden" / "bounce.eml").read_bytes() + b"x" * 3_000_000
    path = return_path(derived(secret(database), "return-path"), email_id, "bounces.example.com")
    for recipient in (path, path.upper()):
        code, said = piped(database, tmp_path, recipient, raw)
        assert (code, "taken" in said, "@" in said) == (0, True, False), said
    assert book.apply(100) == 2
    assert status(database, email_id) == "bounced"
    assert [kind for kind, _ in events(database, email_id)] == ["bounced"]
    assert suppressed(database) == [("u1", "nobody@example.net", "bounced")]


def test_nothing_else_is_taken(database: Database, tmp_path: Path) -> None:
    """Without a valid token, or where it is no report: exit code 0, one line, no address, nothing stored."""
    email_id = sent_email(database)
    golden = (ROOT / "tests" / "golden" / "bounce.eml").read_bytes()
    ours = return_path(derived(secret(database), "return-path"), email_id, "x")
    forged = return_path(derived(b"guessed", "return-path"), email_id, "x")
    vacation = b"Subject: away\r\nAuto-Submitted: auto-replied\r\n\r\nvictim@example.net is away\r\n"
    hostile = b"\x00\xff" * 1_000 + b"--b\r\n" * 100_000
    for recipient, raw in [(forged, golden), ("postmaster@x", golden), ("", b""), (ours, vacation), (ours, hostile)]:
        code, said = piped(database, tmp_path, recipient, raw)
        assert code == 0, said
        assert said.count("\n") == 1
        assert "ignored" in said
        assert "@" not in said
    assert waiting(database) == 0


@pytest.mark.case(56)
def test_a_bounce_comes_again_while_the_database_is_away(database: Database, tmp_path: Path) -> None:
    database.cluster.stop()
    code, said = piped(database, tmp_path, "b-x@x", b"")
    assert (code, said.count("\n")) == (75, 1)
    (tmp_path / "config.yaml").unlink()
    database.cluster.start()
