"""The job store against a real Postgres, as the worker's own role."""

from __future__ import annotations

import dataclasses
import logging
import threading
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from opensend_milter.adapters.postgres import jobs
from opensend_milter.adapters.postgres.jobs import SQL, Keeping, PostgresJobStore
from opensend_milter.adapters.postgres.link import store_errors
from opensend_milter.core.errors import RowRefused, StoreUnavailable
from opensend_milter.core.ids import new_email_id
from opensend_milter.core.model import Address, EmailId, Job, Lane, Route, Sent, UserId
from opensend_milter.servers.worker.delivering import Settings
from opensend_milter.servers.worker.threads import Housekeeping
from tests.integration.outbox import LANE, add_email, add_emails, end_leases, events, job_store, rows, state
from tests.integration.private_postgres import Database
from tests.jobs import RAW

LATER = datetime.now(UTC) + timedelta(hours=1)
YES = Sent(courier="smtp", reply="250 ok")


@pytest.fixture
def store(database: Database) -> Iterator[PostgresJobStore]:
    opened = job_store(database)
    yield opened
    opened.close()


def claimed(store: PostgresJobStore, email_id: EmailId, *, begun: bool = True) -> Job:
    job = store.claim(email_id)
    assert job
    assert not begun or store.begin(job)
    return job


def test_a_claimed_job_has_all_that_was_stored(database: Database, store: PostgresJobStore) -> None:
    """Bytes in order of their pieces, recipients of the envelope, From and not MAIL FROM."""
    raw = RAW + bytes(range(256)) * 40
    email_id = add_email(database, raw=raw, recipients=["b@example.net", "a@example.net"], chunk_bytes=700)
    job = store.claim(email_id)
    assert job
    assert job.raw == raw
    assert job.recipients == ("b@example.net", "a@example.net")
    assert (job.email_id, job.user_id, job.attempts, job.from_address) == (email_id, "u1", 0, "app@example.org")
    assert (job.queue_id, job.client_address, job.front_door, job.tls) == ("4Xq", "192.0.2.7", "smtp", "TLSv1.3")
    assert job.received_at.tzinfo
    assert state(database, email_id) == ("processing", "claimed")
    assert store.claim(email_id) is None
    assert store.claim_due(LANE) is None


def test_a_hint_that_is_faster_than_its_announcer_is_not_lost(database: Database, store: PostgresJobStore) -> None:
    """The queue hands a job over while `announced` is not committed yet."""
    email_id = add_email(database)
    found: list[Job | None] = []
    claiming = threading.Thread(target=lambda: found.append(store.claim(email_id)))
    with database.connect() as connection, connection.transaction():
        connection.execute(SQL["announced"], {"ids": [email_id]})
        claiming.start()
        database.await_blocked()
    claiming.join()
    assert found[0]
    assert found[0].email_id == email_id


def test_the_one_that_waited_longest_comes_first(database: Database, store: PostgresJobStore) -> None:
    """And none before its time."""
    first, second, early = (add_email(database) for _ in range(3))
    rows(database, "UPDATE opensend_milter.jobs SET not_before = now() + interval '1 hour' WHERE email_id = %s", early)
    found = [store.claim_due(LANE), store.claim_due(LANE), store.claim_due(LANE)]
    assert [job and job.email_id for job in found] == [first, second, None]
    assert store.claim(early) is None
    assert state(database, early) == ("queued", "waiting")


def test_one_claim_takes_one_job(database: Database, store: PostgresJobStore) -> None:
    """Whatever Postgres believes of the table: of an emptied one, its join asks per row for what is due."""
    add_email(database)
    for statement in ("DELETE FROM opensend_milter.jobs", "ANALYZE opensend_milter.jobs"):
        rows(database, statement)
    emails = [add_email(database) for _ in range(12)]
    assert len(store.due_announcements(10)) == 10
    assert store.claim_due(LANE)
    waiting = rows(database, "SELECT email_id::text FROM opensend_milter.jobs WHERE state = 'waiting' ORDER BY 1")
    assert [email_id for (email_id,) in waiting] == sorted(emails)[1:]


@pytest.mark.parametrize("status", ["canceled", "cancelled", "sent", "delivered", "bounced", "failed", "suppressed"])
def test_a_finished_email_is_never_sent(database: Database, store: PostgresJobStore, status: str) -> None:
    """Its job goes; the next one is found in the same call."""
    finished, other, third = add_email(database, status=status), add_email(database), add_email(database, status=status)
    assert store.claim(third) is None
    job = store.claim_due(LANE)
    assert job
    assert job.email_id == other
    assert state(database, finished) == (status, None)
    assert state(database, third) == (status, None)


def test_an_email_that_is_gone_is_never_sent(database: Database, store: PostgresJobStore) -> None:
    """OpenSend is free to delete its rows."""
    email_id = add_email(database)
    rows(database, "DELETE FROM emails WHERE id = %s", email_id)
    assert store.claim_due(LANE) is None
    assert state(database, email_id) == (None, None)


def test_an_email_of_a_later_time_waits(database: Database, store: PostgresJobStore) -> None:
    """One that is scheduled until then, one in a state that we do not know for a while."""
    later, due, held = (add_email(database, status=status) for status in ("scheduled", "scheduled", "held"))
    rows(database, "UPDATE emails SET scheduled_at = %s WHERE id = %s", LATER, later)
    rows(database, "UPDATE emails SET scheduled_at = now() - interval '1 second' WHERE id IN (%s, %s)", due, held)
    job = store.claim_due(LANE)
    assert job
    assert job.email_id == due
    assert store.claim_due(LANE) is None
    assert state(database, later) == ("scheduled", "waiting")
    assert state(database, held) == ("held", "waiting")
    times = rows(database, "SELECT not_before FROM opensend_milter.jobs WHERE state = 'waiting' ORDER BY not_before")
    assert datetime.now(UTC) + timedelta(minutes=14) < times[0][0] < LATER
    assert times[1][0] == LATER


def test_an_email_that_somebody_else_has_in_hand_is_uncertain(database: Database, store: PostgresJobStore) -> None:
    """Whoever took it may have sent it."""
    email_id = add_email(database, status="processing")
    assert store.claim_due(LANE) is None
    assert state(database, email_id) == ("processing", "uncertain")


def test_a_message_that_is_not_whole_is_not_sent(database: Database, store: PostgresJobStore) -> None:
    """Half a message is worse than none."""
    email_id = add_email(database, raw=RAW * 10, chunk_bytes=100)
    rows(database, "DELETE FROM opensend_milter.raw_chunks WHERE email_id = %s AND chunk_no = 1", email_id)
    assert store.claim_due(LANE) is None
    assert state(database, email_id) == ("failed", None)
    assert events(database, email_id) == [("failed", f"provider-dead-letter:{email_id}:1")]


def test_begin_is_committed_and_counts(database: Database, store: PostgresJobStore) -> None:
    """Before the first byte goes out."""
    email_id = add_email(database)
    job = claimed(store, email_id)
    assert state(database, email_id) == ("processing", "attempting")
    assert rows(database, "SELECT attempts FROM opensend_milter.jobs") == [(1,)]
    assert not store.begin(job), "only once"


def test_sent(database: Database, store: PostgresJobStore) -> None:
    """Status, event with what the next hop said, no job."""
    email_id = add_email(database)
    rows(database, "UPDATE emails SET provider_last_error_code = 'x', provider_next_retry_at = now()")
    sent = Sent(courier="smtp", reply="250 ok \x00 \udcff", refused=((Address("b@example.net"), "550 no"),))
    store.record_sent(claimed(store, email_id), sent)
    assert state(database, email_id) == ("sent", None)
    assert events(database, email_id) == [("sent", f"opensend-milter:sent:{email_id}")]
    ((payload, user_id),) = rows(database, "SELECT payload, user_id FROM email_events")
    assert user_id == "u1"
    assert payload["courier"] == "smtp"
    assert payload["reply"].startswith("250 ok")
    assert payload["refused"] == [{"email": "b@example.net", "reason": "550 no"}]
    ((sent_at, code, retry_at),) = rows(
        database, "SELECT sent_at, provider_last_error_code, provider_next_retry_at FROM emails"
    )
    assert sent_at
    assert (code, retry_at) == (None, None)


def test_deferred(database: Database, store: PostgresJobStore) -> None:
    """Back in the queue for later, announced again then, with the reason."""
    email_id = add_email(database)
    store.record_deferred(claimed(store, email_id), "451 later" + "x" * 2_000, 3_600)
    assert state(database, email_id) == ("queued", "waiting")
    assert events(database, email_id) == [("delayed", f"provider-delayed:{email_id}:1")]
    ((count, code, length, waits),) = rows(
        database,
        "SELECT provider_retry_count, provider_last_error_code, length(provider_last_error_message),"
        " provider_next_retry_at - provider_last_attempted_at FROM emails",
    )
    assert (count, code, length, waits) == (1, "delivery_deferred", 1_000, timedelta(hours=1))
    job_row = rows(database, "SELECT attempts, announce_at - not_before, lease_id FROM opensend_milter.jobs")
    assert job_row == [(1, timedelta(0), None)]
    assert rows(database, "SELECT not_before - now() < '1 hour' FROM opensend_milter.jobs") == [(True,)]
    assert store.claim_due(LANE) is None
    rows(database, "UPDATE opensend_milter.jobs SET not_before = now()")
    again = claimed(store, email_id)
    assert again.attempts == 1
    store.record_deferred(again, "451 later", 3_600)
    assert [source for _, source in events(database, email_id)] == [
        f"provider-delayed:{email_id}:1",
        f"provider-delayed:{email_id}:2",
    ]


def test_failed(database: Database, store: PostgresJobStore) -> None:
    """Given up, with the reason."""
    email_id = add_email(database)
    store.record_failed(claimed(store, email_id), "550 no")
    assert state(database, email_id) == ("failed", None)
    assert events(database, email_id) == [("failed", f"provider-dead-letter:{email_id}:1")]
    assert rows(database, "SELECT provider_last_error_message, provider_dead_lettered_at IS NOT NULL FROM emails") == [
        ("550 no", True)
    ]


@pytest.mark.case(59)
def test_uncertain(database: Database, store: PostgresJobStore) -> None:
    """Visible, and nobody takes it or announces it."""
    email_id = add_email(database)
    store.record_uncertain(claimed(store, email_id), "timed out after the final dot")
    assert state(database, email_id) == ("processing", "uncertain")
    assert events(database, email_id) == []
    end_leases(database)
    assert store.release_expired() == 0
    assert store.claim_due(LANE) is None
    assert store.claim(email_id) is None
    assert store.due_announcements(10) == []


def test_a_record_whose_answer_was_lost_may_be_repeated(
    database: Database, store: PostgresJobStore, caplog: pytest.LogCaptureFixture
) -> None:
    """The same again is no trouble; it changes nothing."""
    jobs = [claimed(store, add_email(database)) for _ in range(4)]
    for _ in range(2):
        store.record_sent(jobs[0], YES)
        store.record_deferred(jobs[1], "451 later", 3_600)
        store.record_failed(jobs[2], "550 no")
        store.record_uncertain(jobs[3], "who knows")
    assert rows(database, "SELECT type, count(*) FROM email_events GROUP BY 1 ORDER BY 1") == [
        ("delayed", 1),
        ("failed", 1),
        ("sent", 1),
    ]
    assert not caplog.records


def test_whoever_lost_the_claim_records_nothing(
    database: Database, store: PostgresJobStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody else may be sending it by now."""
    email_id = add_email(database)
    late = claimed(store, email_id, begun=False)
    end_leases(database)
    assert store.release_expired() == 1
    other = claimed(store, email_id, begun=False)
    assert not store.begin(late)
    assert store.begin(other)
    with caplog.at_level(logging.ERROR):
        store.record_sent(late, YES)
        store.record_deferred(late, "451", 3_600)
        store.record_failed(late, "550")
        store.record_uncertain(late, "?")
        store.give_back(late)
    assert caplog.text.count("no longer ours") == 4
    assert state(database, email_id) == ("processing", "attempting")
    store.record_sent(other, YES)
    assert state(database, email_id) == ("sent", None)


@pytest.mark.case(58)
def test_a_lease_that_ends_in_the_attempt_is_uncertain(database: Database, store: PostgresJobStore) -> None:
    """Never sent again; one that ends before it is given back."""
    begun, not_begun, fresh = add_email(database), add_email(database), add_email(database)
    claimed(store, begun)
    claimed(store, not_begun, begun=False)
    end_leases(database)
    claimed(store, fresh)
    assert store.release_expired() == 2
    assert state(database, begun) == ("processing", "uncertain")
    assert state(database, not_begun) == ("queued", "waiting")
    assert state(database, fresh) == ("processing", "attempting")
    job = store.claim_due(LANE)
    assert job
    assert job.email_id == not_begun
    assert store.claim_due(LANE) is None


def test_what_a_clock_that_was_ahead_put_off_is_due(
    database: Database, store: PostgresJobStore, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database's, by a day, and set back since; what is to leave later by the sender's wish or a retry, does."""
    day = "interval '1 day'"
    made, tried, announced, leased, scheduled, deferred, fresh = (add_email(database) for _ in range(7))
    for email_id in (tried, deferred):
        store.record_deferred(claimed(store, email_id), "451 later", 3_600)
    claimed(store, leased)
    claimed(store, fresh)
    for statement, email_id in (
        ("UPDATE opensend_milter.jobs SET created_at = created_at + {}, not_before = not_before + {}", made),
        ("UPDATE opensend_milter.jobs SET not_before = not_before + {}", tried),
        ("UPDATE email_events SET received_at = received_at + {}", tried),
        ("UPDATE opensend_milter.jobs SET announce_at = announce_at + {}", announced),
        ("UPDATE opensend_milter.jobs SET lease_until = lease_until + {}", leased),
        ("UPDATE opensend_milter.jobs SET created_at = created_at + {}, not_before = not_before + {}", scheduled),
        ("UPDATE emails SET status = 'scheduled', scheduled_at = now() + {}", scheduled),
    ):
        key = "id" if " emails " in statement else "email_id"
        rows(database, f"{statement.replace('{}', day)} WHERE {key} = %s", email_id)
    monkeypatch.setattr(jobs, "PRUNED_AT_ONCE", 1)
    with caplog.at_level(logging.WARNING):
        Housekeeping(store, Settings(concurrency=1, poll_interval_s=1, max_attempts=1)).step()
    assert "4 jobs are due" in caplog.text
    assert store.set_right() == 0
    due = "SELECT email_id::text FROM opensend_milter.jobs WHERE greatest(not_before, announce_at) <= now()"
    assert {email_id for (email_id,) in rows(database, f"{due} AND state = 'waiting'")} == {made, tried, announced}
    within = "SELECT count(*) FROM opensend_milter.jobs WHERE lease_until BETWEEN now() AND now() + interval '1 hour'"
    assert rows(database, within) == [(2,)]


@pytest.mark.case(58)
@pytest.mark.case(62)
def test_an_outcome_that_comes_after_the_lease_is_still_the_truth(database: Database, store: PostgresJobStore) -> None:
    """A slow next hop, a database that was away: the worker that was thought lost knows better."""
    yes, no = claimed(store, add_email(database)), claimed(store, add_email(database))
    end_leases(database)
    assert store.release_expired() == 2
    store.record_sent(yes, YES)
    store.record_deferred(no, "451", 3_600)
    assert state(database, yes.email_id) == ("sent", None)
    assert state(database, no.email_id) == ("queued", "waiting")


@pytest.mark.parametrize("begun", [True, False])
def test_a_claim_without_a_byte_sent_is_given_back(database: Database, store: PostgresJobStore, begun: bool) -> None:  # noqa: FBT001
    """As if nothing had been."""
    email_id = add_email(database)
    store.give_back(claimed(store, email_id, begun=begun))
    assert state(database, email_id) == ("queued", "waiting")
    again = store.claim_due(LANE)
    assert again
    assert again.attempts == 0


def test_what_came_back_already_knows_more(database: Database, store: PostgresJobStore) -> None:
    """A bounce may be faster than our record of the yes."""
    email_id = add_email(database)
    job = claimed(store, email_id)
    rows(database, "UPDATE emails SET status = 'bounced'")
    store.record_sent(job, YES)
    assert state(database, email_id) == ("bounced", None)
    assert [kind for kind, _ in events(database, email_id)] == ["sent"]


def test_an_email_deleted_while_it_was_sent(database: Database, store: PostgresJobStore) -> None:
    """There is nobody to tell, and nothing left over."""
    email_id = add_email(database)
    job = claimed(store, email_id)
    rows(database, "DELETE FROM emails")
    store.record_sent(job, YES)
    assert state(database, email_id) == (None, None)


def test_two_claim_at_once_and_nobody_twice(database: Database) -> None:
    """200 jobs, four threads."""
    expected = set(add_emails(database, 200))
    found: list[EmailId] = []

    def work(number: int) -> None:
        store = job_store(database, worker=f"w{number}")
        while job := store.claim_due(LANE):
            assert store.begin(job)
            found.append(job.email_id)
            store.record_sent(job, YES)
        store.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 200
    assert set(found) == expected
    assert rows(database, "SELECT count(*) FROM emails WHERE status = 'sent'") == [(200,)]
    assert rows(database, "SELECT count(*) FROM email_events") == [(200,)]
    assert rows(database, "SELECT count(*) FROM opensend_milter.jobs") == [(0,)]


@pytest.mark.case(55)
def test_an_announcement_that_is_not_confirmed_comes_again(database: Database, store: PostgresJobStore) -> None:
    """A crash between the two."""
    email_ids = [add_email(database) for _ in range(3)]
    first = store.due_announcements(2)
    assert [announcement.email_id for announcement in first] == email_ids[:2]
    assert [announcement.email_id for announcement in store.due_announcements(10)] == email_ids[2:]
    assert store.due_announcements(10) == []
    rows(database, "UPDATE opensend_milter.jobs SET announce_at = announce_at - interval '61 seconds'")
    assert {announcement.email_id for announcement in store.due_announcements(10)} == set(email_ids)


def test_announced_jobs_are_swept_after_a_while(database: Database, store: PostgresJobStore) -> None:
    """The queue may lose a hint; the row does not."""
    email_id = add_email(database)
    store.announced([announcement.email_id for announcement in store.due_announcements(10)])
    rows(database, "UPDATE opensend_milter.jobs SET announce_at = announce_at - interval '14 minutes'")
    assert store.due_announcements(10) == []
    rows(database, "UPDATE opensend_milter.jobs SET announce_at = announce_at - interval '1 minute'")
    (again,) = store.due_announcements(10)
    assert (again.email_id, again.attempts) == (email_id, 0)


def test_a_worker_may_be_faster_than_the_announcer(database: Database, store: PostgresJobStore) -> None:
    """Deferred already when `announced` comes: its own time holds."""
    email_id = add_email(database)
    store.due_announcements(10)
    store.record_deferred(claimed(store, email_id), "451", 3_600)
    store.announced([email_id])
    assert rows(database, "SELECT announce_at > now() + interval '59 minutes' FROM opensend_milter.jobs") == [(True,)]


def test_beside_opensend_an_announced_job_is_handed_over(beside: Database) -> None:
    """From there on it is its ingester's."""
    store = job_store(beside, hand_over=True)
    kept, handed_over = add_email(beside), add_email(beside)
    store.due_announcements(10)
    store.announced([handed_over])
    assert state(beside, handed_over) == ("queued", None)
    assert state(beside, kept) == ("queued", "waiting")
    store.close()


def test_only_waiting_jobs_whose_time_has_come_are_announced(database: Database, store: PostgresJobStore) -> None:
    """Not one in hand, not one deferred before it is due."""
    in_hand, deferred = add_email(database), add_email(database)
    claimed(store, in_hand)
    store.record_deferred(claimed(store, deferred), "451", 3_600)
    assert store.due_announcements(10) == []
    rows(database, "UPDATE opensend_milter.jobs SET not_before = now(), announce_at = now() WHERE state = 'waiting'")
    (again,) = store.due_announcements(10)
    assert (again.email_id, again.attempts) == (deferred, 1)


def test_old_and_surplus_refusals_go(
    database: Database, store: PostgresJobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In small batches; the newest stay."""
    monkeypatch.setattr(jobs, "REFUSALS_KEPT", 30)
    monkeypatch.setattr(jobs, "PRUNED_AT_ONCE", 7)
    insert = (
        "INSERT INTO opensend_milter.refusals (refused_at, rule, code, enhanced, text, front_door, queue_id,"
        " client_address, key_id, sender, recipients, size_bytes) SELECT now() - %s::interval, 'x', 550, '5.7.1', 't',"
        " 'smtp', 'q', 'c', 'k', 's', '{}', 1 FROM generate_series(1, %s)"
    )
    rows(database, insert, "31 days", 20)
    rows(database, insert, "29 days", 45)
    add_email(database)
    assert store.prune() == 35
    assert rows(database, "SELECT count(*), min(id) FROM opensend_milter.refusals") == [(30, 36)]
    assert store.prune() == 0
    assert rows(database, "SELECT count(*) FROM opensend_milter.jobs") == [(1,)]


def test_who_was_shown_a_message_or_did_something_is_known_for_a_year(
    database: Database, store: PostgresJobStore
) -> None:
    viewed = """INSERT INTO opensend_milter.console_views (viewed_at, viewer, client_address, email_id, what)
        VALUES (now() - %s::interval, 'ann', '::1', gen_random_uuid(), 'text')"""
    rows(database, viewed, "366 days")
    rows(database, viewed, "364 days")
    done = """INSERT INTO opensend_milter.console_actions
        (done_at, actor, client_address, action, email_id, outcome, form)
        VALUES (now() - %s::interval, 'ann', '::1', 'retry', gen_random_uuid(), 'done', gen_random_uuid())"""
    rows(database, done, "366 days")
    rows(database, done, "364 days")
    assert store.prune() == 2
    assert rows(database, "SELECT id FROM opensend_milter.console_views") == [(2,)]
    assert rows(database, "SELECT id FROM opensend_milter.console_actions") == [(2,)]


def test_beside_opensend_a_job_ends_when_its_email_was_taken_up_without_us(beside: Database) -> None:
    """After a time of polling, switching to a queue announces nothing that is out already."""
    store = job_store(beside, hand_over=True)
    waits = [add_email(beside), add_email(beside, status="scheduled")]
    moved_on = [add_email(beside, status=status) for status in ("processing", "sent", "failed", "canceled")]
    gone = add_email(beside)
    rows(beside, "DELETE FROM emails WHERE id = %s", gone)
    assert {one.email_id for one in store.due_announcements(10)} == set(waits)
    assert store.end_moved_on() == len(moved_on) + 1
    assert {email_id for (email_id,) in rows(beside, "SELECT email_id::text FROM opensend_milter.jobs")} == set(waits)
    assert store.end_moved_on() == 0
    store.close()


def test_alone_no_job_ends_unseen(database: Database, store: PostgresJobStore) -> None:
    add_email(database, status="processing")
    assert store.end_moved_on() == 0
    assert rows(database, "SELECT count(*) FROM opensend_milter.jobs") == [(1,)]


def test_beside_opensend_jobs_that_its_poller_has_sent_go(beside: Database) -> None:
    """Without a queue nobody announces, so nobody hands over."""
    store = job_store(beside, hand_over=True)
    queued, scheduled = add_email(beside), add_email(beside, status="scheduled")
    for status in ("processing", "sent", "canceled"):
        add_email(beside, status=status)
    assert store.prune() == 3
    assert {state(beside, email_id)[1] for email_id in (queued, scheduled)} == {"waiting"}
    store.close()


@pytest.mark.case(56)
def test_a_database_that_goes_away_and_comes_back(database: Database, store: PostgresJobStore) -> None:
    """Stopped, killed: an error of ours each time, and then it works again."""
    email_id = add_email(database)
    assert store.due_announcements(1)
    for fault in (database.cluster.stop, database.cluster.kill):
        fault()
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                store.claim_due(LANE)
        database.cluster.start()
    job = store.claim_due(LANE)
    assert job
    assert job.email_id == email_id


@pytest.mark.case(56)
def test_a_silent_database_is_cut_off(database: Database) -> None:
    """It must not hold a thread for ever."""
    store = job_store(database, timeout_s=1)
    add_email(database)
    assert store.due_announcements(1)
    database.cluster.pause()
    with pytest.raises(StoreUnavailable):
        store.claim_due(LANE)
    database.cluster.resume()
    assert store.claim_due(LANE)
    store.close()


@pytest.mark.parametrize(
    ("statement", "index"),
    [("take_due", "jobs_lane_idx"), ("due_lanes", "jobs_lane_idx"), ("due_announcements", "jobs_announce_idx")],
)
def test_the_hot_statements_use_their_index(database: Database, statement: str, index: str) -> None:
    """However many jobs wait for later."""
    with database.connect() as connection:
        connection.execute(
            "INSERT INTO opensend_milter.jobs (email_id, user_id, not_before, announce_at)"
            " SELECT gen_random_uuid(), 'u1', now() + interval '1 hour', now() + interval '1 hour'"
            " FROM generate_series(1, 20000)"
        )
        add_email(database)
        connection.execute("ANALYZE opensend_milter.jobs")
        values = {"lease": timedelta(seconds=60), "worker": "w", "limit": 10, "user_id": "u1", "courier": ""}
        values["hand_over"] = False
        query = b"EXPLAIN (ANALYZE, FORMAT TEXT) " + jobs.SQL[statement].rstrip(";").encode()
        plan = "\n".join(line for (line,) in connection.execute(query, values))
    assert index in plan
    assert "Seq Scan" not in plan
    assert "Rows Removed by Filter" not in plan


def test_the_role_may_do_no_more(database: Database) -> None:
    """It reads no message text from OpenSend's table, and writes no mail of its own."""
    add_email(database)
    with database.connect("opensend_worker") as connection:
        for forbidden in (
            "SELECT text FROM emails",
            "DELETE FROM emails",
            "UPDATE opensend_milter.submissions SET sender = ''",
            "SELECT * FROM api_keys",
            "INSERT INTO opensend_milter.jobs (email_id, user_id) VALUES (gen_random_uuid(), 'u')",
        ):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                connection.execute(forbidden.encode())


def test_an_unknown_email_is_none(store: PostgresJobStore) -> None:
    """A hint may name anything."""
    assert store.claim(new_email_id()) is None


def test_what_postgres_quotes_of_a_row_is_in_no_error(database: Database) -> None:
    statement = (
        "INSERT INTO public.email_suppressions (user_id, email, reason) VALUES ('u1', 'someone@example.net', 'manual')"
    )
    with database.connect() as connection:
        connection.execute(statement)
        with pytest.raises(RowRefused) as caught, store_errors():
            connection.execute(statement)
    assert "duplicate key" in str(caught.value)
    assert "someone" not in "".join(traceback.format_exception(caught.value))


def partly(*deferred: str, refused: tuple[str, ...] = ()) -> Sent:
    return Sent(
        courier="smtp",
        reply="250 ok",
        refused=tuple((Address(who), "550 no") for who in refused),
        deferred=tuple((Address(who), "450 full") for who in deferred),
        provider_id="p-1",
    )


def results(database: Database) -> dict[str, str]:
    return dict(rows(database, "SELECT address, outcome FROM opensend_milter.recipient_results ORDER BY 1"))


def test_who_was_deferred_alone_is_claimed_again(database: Database, store: PostgresJobStore) -> None:
    """What was refused before is not lost on the way to the last record."""
    email_id = add_email(database, recipients=["a@x.example", "b@x.example", "c@x.example", "d@x.example"])
    store.record_partly(claimed(store, email_id), partly("b@x.example", "c@x.example", refused=("d@x.example",)), 60)
    assert state(database, email_id) == ("queued", "waiting")
    assert results(database) == {"b@x.example": "deferred", "c@x.example": "deferred", "d@x.example": "refused"}
    rows(database, "UPDATE opensend_milter.jobs SET not_before = now()")
    again = claimed(store, email_id)
    assert again.recipients == ("b@x.example", "c@x.example")
    assert again.some_have_it
    assert again.refused == (("d@x.example", "550 no"),)
    store.record_partly(again, partly("c@x.example"), 60)
    assert results(database)["c@x.example"] == "deferred"
    rows(database, "UPDATE opensend_milter.jobs SET not_before = now()")
    last = claimed(store, email_id)
    assert last.recipients == ("c@x.example",)
    store.record_sent(
        last, Sent(courier="smtp", reply="250 ok", refused=(*last.refused, (Address("c@x.example"), "550")))
    )
    assert state(database, email_id) == ("sent", None)
    assert results(database) == {"c@x.example": "refused", "d@x.example": "refused"}
    assert rows(database, "SELECT provider_id FROM opensend_milter.submissions") == [("p-1",)]
    kinds = [kind for kind, _ in events(database, email_id)]
    assert kinds == ["delayed", "delayed", "sent"]
    ((payload,),) = rows(database, "SELECT payload FROM email_events WHERE type = 'sent'")
    assert [one["email"] for one in payload["refused"]] == ["d@x.example", "c@x.example"]


def test_each_lane_gives_its_own_jobs(database: Database, store: PostgresJobStore) -> None:
    """Listed once, however many jobs it has; not before one is due."""
    mine = [add_email(database) for _ in range(3)]
    other = add_email(database, user_id="u2")
    ses = add_email(database, courier="ses")
    later = add_email(database, user_id="u3")
    rows(database, "UPDATE opensend_milter.jobs SET not_before = now() + interval '1 hour' WHERE email_id = %s", later)
    u1, u2, u1_ses = LANE, Lane(UserId("u2"), None), Lane(UserId("u1"), "ses")
    assert sorted(store.due_lanes(), key=str) == sorted([u1, u2, u1_ses], key=str)
    by_ses = store.claim_due(u1_ses)
    assert by_ses
    assert (by_ses.email_id, by_ses.route.courier) == (ses, "ses")
    assert store.claim_due(u1_ses) is None
    found = [store.claim_due(lane) for lane in (u2, u1, u1, u1, u1)]
    assert [job and job.email_id for job in found] == [other, *mine, None]
    assert store.due_lanes() == []


def test_a_job_knows_what_its_domain_asks_for(database: Database, store: PostgresJobStore) -> None:
    """In either spelling of the domain, and never what another user's domain asks for."""
    rows(
        database,
        "INSERT INTO domains"
        " (name, user_id, status, region, ses_configuration_set_name, track_opens, tracking_subdomain)"
        " VALUES ('Example.org', 'u1', 'verified', 'eu-west-1', 'set', true, 'links.example.org'),"
        " ('example.org', 'u2', 'verified', 'eu-central-1', 'other', true, 'x')",
    )
    rows(
        database,
        "INSERT INTO opensend_milter.domain_settings (domain_id, courier, one_click)"
        " SELECT id, 'ses', true FROM domains WHERE user_id = 'u1'",
    )
    job = claimed(store, add_email(database))
    assert job.route == Route(
        region="eu-west-1",
        configuration_set="set",
        track_opens=True,
        tracking_host="links.example.org",
        one_click=True,
    )
    assert claimed(store, add_email(database, user_id="u3")).route == Route()


def test_an_event_is_told_to_the_webhooks_that_asked(database: Database, store: PostgresJobStore) -> None:
    """In the same transaction, once, and to nobody else."""
    rows(
        database,
        "INSERT INTO webhooks (url, user_id, status, event_types) VALUES"
        " ('https://a.example', 'u1', 'active', '[\"email.sent\", \"email.failed\"]'),"
        " ('https://b.example', 'u1', 'active', '[\"email.delayed\"]'),"
        " ('https://c.example', 'u1', 'disabled', '[\"email.sent\"]'),"
        " ('https://d.example', 'u2', 'active', '[\"email.sent\"]')",
    )
    sent, failed, delayed = (claimed(store, add_email(database)) for _ in range(3))
    for _ in range(2):
        store.record_sent(sent, YES)
        store.record_failed(failed, "550")
        store.record_deferred(delayed, "450", 60)
    found = rows(
        database,
        "SELECT w.url, e.type, d.status, d.attempt FROM webhook_deliveries d JOIN webhooks w ON w.id = d.webhook_id"
        " JOIN email_events e ON e.id = d.event_id ORDER BY 1, 2",
    )
    assert found == [
        ("https://a.example", "failed", "pending", 0),
        ("https://a.example", "sent", "pending", 0),
        ("https://b.example", "delayed", "pending", 0),
    ]


@pytest.mark.case(59)
def test_what_is_uncertain_for_too_long_is_failed(database: Database) -> None:
    """Only where the operator set a time, and only then."""
    store = job_store(database, keeping=Keeping(uncertain=timedelta(hours=72)))
    old, new = (claimed(store, add_email(database)) for _ in range(2))
    for job in (old, new):
        store.record_uncertain(job, "who knows")
    rows(
        database,
        "UPDATE opensend_milter.jobs SET uncertain_at = uncertain_at - interval '73 hours' WHERE email_id = %s",
        old.email_id,
    )
    assert store.release_expired() == 1
    assert state(database, old.email_id) == ("failed", None)
    assert state(database, new.email_id) == ("processing", "uncertain")
    store.close()


def test_bytes_of_old_messages_are_dropped_when_they_are_finished(database: Database) -> None:
    """Batch by batch, and the rest of the record stays."""
    store = job_store(database, keeping=Keeping(raw=timedelta(days=30)))
    done, waiting, young = (add_email(database, raw=RAW * 50, chunk_bytes=100) for _ in range(3))
    store.record_sent(claimed(store, done), YES)
    store.record_sent(claimed(store, young), YES)
    rows(
        database,
        "UPDATE opensend_milter.submissions SET received_at = received_at - interval '31 days' WHERE email_id <> %s",
        young,
    )
    told: list[tuple[str, int]] = []
    assert store.prune(lambda what, count: told.append((what, count))) == 1
    assert told == [("messages", 1)]
    kept = rows(database, "SELECT DISTINCT email_id::text FROM opensend_milter.raw_chunks ORDER BY 1")
    assert kept == sorted([(waiting,), (young,)])
    dropped = rows(database, "SELECT email_id::text FROM opensend_milter.submissions WHERE raw_dropped_at IS NOT NULL")
    assert dropped == [(done,)]
    assert store.prune() == 0
    store.close()


def test_a_lease_is_put_off_for_what_is_in_hand(database: Database) -> None:
    """Nobody else's, and not what is finished."""
    store = job_store(database, lease_s=3_600)
    mine, theirs = claimed(store, add_email(database)), claimed(store, add_email(database), begun=False)
    rows(database, "UPDATE opensend_milter.jobs SET lease_until = now() + interval '1 second'")
    store.extend([mine, dataclasses.replace(theirs, lease_id=mine.lease_id)])
    left = rows(
        database, "SELECT email_id::text FROM opensend_milter.jobs WHERE lease_until > now() + interval '50 min'"
    )
    assert left == [(mine.email_id,)]
    store.close()
