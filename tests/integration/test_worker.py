"""The worker as a process: real database, real queue, real SMTP; killed, stopped and cut off."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.integration.outbox import add_email, add_emails, end_leases, events, rows, state
from tests.integration.private_postgres import Database
from tests.integration.sqs_server import Answer, client, faulty_sqs, new_queue, running_sqs, set_credentials
from tests.integration.working import Working, working
from tests.smtp_sink import DROP, HOLD, STALL, Sink
from tests.waiting import NEVER_S, await_true, scaled_s

pytestmark = pytest.mark.long
SOMEBODY_WAITS = "SELECT 1 FROM pg_locks WHERE NOT granted"
HEADER = b"From: app@example.org\r\nDate: x\r\nMessage-ID: <1@x>\r\n"


@pytest.fixture
def sink() -> Iterator[Sink]:
    with Sink() as running:
        yield running


def order(sink: Sink) -> list[bytes]:
    """Return the subjects of what arrived, which tell the messages apart."""
    found = (re.search(rb"^Subject: (\S+)\r$", message.raw, re.MULTILINE) for message in sink.delivered)
    return [match[1] for match in found if match]


def subjects(sink: Sink) -> Counter[bytes]:
    """Count how often each arrived."""
    return Counter(order(sink))


def await_sent(database: Database, count: int, running: Working) -> None:
    """Wait until so many are recorded as sent."""
    # By one connection: opening one costs as much as a hundred questions.
    with database.connect() as connection:
        sent = connection.execute
        await_true(
            lambda: sent("SELECT count(*) FROM emails WHERE status = 'sent'").fetchone() == (count,),
            lambda: running.log,
        )


@pytest.mark.case(16)
@pytest.mark.case(35)
@pytest.mark.case(46)
def test_messages_leave_as_they_came(database: Database, sink: Sink, tmp_path: Path) -> None:
    """From the row to the wire: less Bcc, behind our fields."""
    bodies = [b".\r\n..dots\r\n.", b"8 bits \xc3\xa9\xff\r\n", b"no end", b"bare\nline\nends\n.\nx", b"x" * 3_000_000]
    for number, body in enumerate(bodies):
        raw = HEADER + b"Bcc: hidden@example.net\r\nSubject: %d\r\n\r\n" % number + body
        add_email(database, raw=raw, recipients=["to@example.net", "hidden@example.net"])
    with working(database, tmp_path, relay_port=sink.port) as worker:
        await_sent(database, len(bodies), worker)
        assert worker.stop() == 0
    arrived = {message.raw.split(b"Subject: ")[1][:1]: message for message in sink.delivered}
    for number, body in enumerate(bodies):
        message = arrived[b"%d" % number]
        crlf = body.replace(b"\n", b"\r\n") if b"bare" in body else body
        expected = HEADER + b"Subject: %d\r\n\r\n" % number + crlf
        received, _, rest = message.raw.partition(b"+0000\r\n")
        assert received.startswith(b"Received: from [192.0.2.7] ([192.0.2.7])\r\n\tby mx.example.com ")
        assert rest == (expected if expected.endswith(b"\r\n") else expected + b"\r\n")
        assert message.recipients == ["to@example.net", "hidden@example.net"]
        assert message.mail.startswith("MAIL FROM:<bounces@example.com>")


def test_two_workers_send_each_message_once(database: Database, sink: Sink, tmp_path: Path) -> None:
    """200 jobs, eight threads in two processes."""
    add_emails(database, 200)
    with (
        working(database, tmp_path, relay_port=sink.port) as one,
        working(database, tmp_path, relay_port=sink.port) as two,
    ):
        await_sent(database, 200, one)
        assert [one.stop(), two.stop()] == [0, 0]
        assert "status=sent" in one.log
        assert re.search(r"^opensend-worker-[0-3] INFO 4Xq: email=", one.log, re.MULTILINE)
    assert len(subjects(sink)) == 200
    assert set(subjects(sink).values()) == {1}
    assert rows(database, "SELECT count(*) FROM opensend_milter.jobs") == [(0,)]


@pytest.mark.case(58)
@pytest.mark.case(59)
@pytest.mark.parametrize("step", ["RCPT", "."])
def test_a_worker_killed_in_its_attempt_leaves_an_uncertain_message(
    database: Database, sink: Sink, tmp_path: Path, step: str
) -> None:
    """Never sent twice: also where it was not sent at all, since nobody is left who knows."""
    email_id = add_email(database)
    sink.answers[step] = HOLD
    with working(database, tmp_path, relay_port=sink.port) as worker:
        sink.await_held()
        assert state(database, email_id) == ("processing", "attempting")
        worker.kill()
    sink.answers.clear()
    sink.release.set()
    other = add_email(database)
    with working(database, tmp_path, relay_port=sink.port) as worker:
        await_sent(database, 1, worker)
        end_leases(database)
        await_true(lambda: state(database, email_id)[1] == "uncertain", lambda: worker.log)
        assert state(database, other) == ("sent", None)
        add_email(database)
        await_sent(database, 2, worker)
        assert worker.stop() == 0
        assert "status=uncertain" in worker.log
    assert state(database, email_id) == ("processing", "uncertain"), "though one that came later is sent"
    assert len(sink.delivered) == (3 if step == "." else 2)


def test_a_worker_killed_before_its_attempt_gives_the_message_back(
    database: Database, sink: Sink, tmp_path: Path
) -> None:
    """Nothing went out, so the next one sends it."""
    email_id = add_email(database)
    with working(database, tmp_path, relay_port=sink.port, hold_begin=True) as worker:
        await_true(lambda: f"CLAIMED {email_id}" in worker.log, lambda: worker.log)
        worker.kill()
    assert state(database, email_id) == ("processing", "claimed")
    end_leases(database)
    with working(database, tmp_path, relay_port=sink.port) as worker:
        await_sent(database, 1, worker)
    assert len(sink.delivered) == 1


@pytest.mark.case(60)
def test_sigterm_under_load(database: Database, sink: Sink, tmp_path: Path) -> None:
    """What is in hand is finished, the rest waits, nothing is sent twice."""
    add_emails(database, 150)
    stopped_at = []
    for _ in range(3):
        with working(database, tmp_path, relay_port=sink.port) as worker:
            sink.await_delivered(len(sink.delivered) + 20)
            assert worker.stop() == 0
        stopped_at.append(len(sink.delivered))
        assert rows(database, "SELECT DISTINCT state FROM opensend_milter.jobs") in ([], [("waiting",)])
    assert stopped_at[0] < 150
    with working(database, tmp_path, relay_port=sink.port) as worker:
        await_sent(database, 150, worker)
    assert len(subjects(sink)) == 150
    assert set(subjects(sink).values()) == {1}


def stop_in_hand(worker: Working, sink: Sink) -> int:
    """Stop it, and let the next hop answer only then; return its exit code."""
    with ThreadPoolExecutor(1) as stopping:
        code = stopping.submit(worker.stop)
        await_true(lambda: "stopping: SIGTERM" in worker.log, lambda: worker.log)
        sink.release.set()
        return code.result()


@pytest.mark.case(60)
def test_sigterm_finishes_what_is_in_hand(database: Database, sink: Sink, tmp_path: Path) -> None:
    """The next hop takes its time."""
    email_id = add_email(database)
    sink.answers["."] = HOLD
    with working(database, tmp_path, relay_port=sink.port) as worker:
        sink.await_held()
        assert stop_in_hand(worker, sink) == 0
    assert state(database, email_id) == ("sent", None)


@pytest.mark.case(60)
@pytest.mark.parametrize(("step", "expected"), [("RCPT", ("queued", "waiting")), (".", ("processing", "uncertain"))])
def test_sigterm_cuts_what_takes_too_long(
    database: Database, sink: Sink, tmp_path: Path, step: str, expected: tuple[str, str]
) -> None:
    """And records the truth: only what may be out is uncertain."""
    email_id = add_email(database)
    sink.answers[step] = STALL
    with working(database, tmp_path, relay_port=sink.port, drain_s=0.5) as worker:
        sink.await_held()
        assert worker.stop() == 0
    assert state(database, email_id) == expected


@pytest.mark.case(56)
def test_the_database_goes_away_and_comes_back(database: Database, sink: Sink, tmp_path: Path) -> None:
    """The worker stays, goes on, and sends nothing twice."""
    add_emails(database, 60)
    # A claim whose commit got no answer is given back when its lease ends.
    with working(database, tmp_path, relay_port=sink.port, lease_s=scaled_s(5)) as worker:
        sink.await_delivered(10)
        database.cluster.stop()
        await_true(lambda: "trying on" in worker.log, lambda: worker.log)
        assert worker.process.poll() is None
        database.cluster.start()
        add_emails(database, 1)
        await_sent(database, 61, worker)
        assert worker.stop() == 0
        assert worker.log.count("trying on") <= 6 * 2, "one line a minute for each thread"
    counts = subjects(sink)
    assert len(counts) == 61
    assert set(counts.values()) == {1}


@pytest.mark.case(58)
def test_a_yes_while_the_database_is_away_is_recorded_later(database: Database, sink: Sink, tmp_path: Path) -> None:
    """The worker keeps the answer until somebody takes it."""
    email_id = add_email(database)
    sink.answers["."] = HOLD
    with working(database, tmp_path, relay_port=sink.port) as worker:
        sink.await_held()
        database.cluster.stop()
        sink.release.set()
        await_true(lambda: "not recorded yet" in worker.log, lambda: worker.log)
        database.cluster.start()
        await_sent(database, 1, worker)
    assert len(sink.delivered) == 1
    assert events(database, email_id) == [("sent", f"opensend-milter:sent:{email_id}")]


def test_a_relay_that_is_away_defers(database: Database, sink: Sink, tmp_path: Path) -> None:
    """It is tried again at its time, and fails after the last attempt."""
    email_id = add_email(database)
    sink.answers["connect"] = DROP
    with working(database, tmp_path, relay_port=sink.port, max_attempts=2) as worker:
        await_true(
            lambda: state(database, email_id) == ("queued", "waiting") and bool(events(database, email_id)),
            lambda: worker.log,
        )
        assert "status=deferred" in worker.log
        sink.answers.clear()
        other = add_email(database)
        await_true(lambda: state(database, other) == ("sent", None), lambda: worker.log)
        sink.answers["connect"] = DROP
        rows(database, "UPDATE opensend_milter.jobs SET not_before = now()")
        sink.answers["RCPT"] = sink.answers["RSET"] = DROP
        await_true(lambda: state(database, email_id) == ("failed", None), lambda: worker.log)
    assert [kind for kind, _ in events(database, email_id)] == ["delayed", "failed"]


def test_a_million_of_one_makes_nobody_wait(database: Database, sink: Sink, tmp_path: Path) -> None:
    """Lanes take turns: three messages of another user are out long before the first user's three hundred."""
    add_emails(database, 300)
    others = [add_email(database, user_id="u2", raw=HEADER + b"Subject: 9%03d\r\n\r\n" % n) for n in range(3)]
    with working(database, tmp_path, relay_port=sink.port, concurrency=1) as worker:
        await_true(lambda: all(state(database, email_id) == ("sent", None) for email_id in others), lambda: worker.log)
        worker.stop()
    arrived = order(sink)
    assert max(arrived.index(b"9%03d" % n) for n in range(3)) <= 8, arrived[:20]


@pytest.mark.case(59)
def test_a_next_hop_that_takes_its_time_is_no_lost_worker(database: Database, sink: Sink, tmp_path: Path) -> None:
    """The lease of what is in hand is put off."""
    email_id = add_email(database)
    sink.answers["."] = HOLD
    lease_s = scaled_s(1)
    with working(database, tmp_path, relay_port=sink.port, lease_s=lease_s) as worker:
        sink.await_held()
        ((first_until,),) = rows(database, "SELECT lease_until FROM opensend_milter.jobs")
        is_over = "SELECT lease_until - make_interval(secs => %s) > %s FROM opensend_milter.jobs"
        await_true(lambda: rows(database, is_over, lease_s, first_until) == [(True,)], lambda: worker.log)
        assert state(database, email_id) == ("processing", "attempting")
        sink.release.set()
        await_sent(database, 1, worker)
        assert "uncertain" not in worker.log


def test_a_relay_that_is_out_is_asked_by_one_message(database: Database, sink: Sink, tmp_path: Path) -> None:
    """The others keep their attempts, and go out when it is back."""
    add_emails(database, 40)
    sink.answers["connect"] = DROP
    with working(database, tmp_path, relay_port=sink.port) as worker:
        await_true(lambda: "is left alone" in worker.log, lambda: worker.log)
        untouched = "SELECT count(*) FROM opensend_milter.jobs WHERE attempts = 0"
        assert rows(database, untouched)[0][0] >= 40 - 8
        sink.answers.clear()
        # Only when nobody is about to put one off: that would be a minute of ours.
        await_true(lambda: rows(database, f"{untouched} OR state <> 'waiting'") == [(0,)], lambda: worker.log)
        rows(database, "UPDATE opensend_milter.jobs SET not_before = now()")
        await_sent(database, 40, worker)
    assert set(subjects(sink).values()) == {1}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    set_credentials()
    with running_sqs() as running:
        yield running


asking = cache(client)
"""Making one costs far more than asking it."""


def depth(endpoint: str, url: str) -> int:
    """Count what is on the queue, in hand or not."""
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    attributes = asking(endpoint).get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
    return sum(int(attributes[name]) for name in names)


@pytest.mark.parametrize("suffix", ["", ".fifo"])
def test_through_the_queue(database: Database, sink: Sink, tmp_path: Path, endpoint: str, suffix: str) -> None:
    """Announced, received, sent once, off the queue; also what is not to be sent any more."""
    url = new_queue(endpoint, f"{tmp_path.name}{suffix}", **({"FifoQueue": "true"} if suffix else {}))
    add_emails(database, 45)
    canceled = add_email(database)
    rows(database, "UPDATE emails SET status = 'canceled' WHERE id = %s", canceled)
    # Of two deletions in one instant moto may forget one, and that notice comes again when its lease ends.
    lease = {"lease_s": int(scaled_s(15))}
    settings: dict[str, Any] = {"relay_port": sink.port, "queue_url": url, "endpoint_url": endpoint, **lease}
    with working(database, tmp_path, **settings) as one, working(database, tmp_path, **settings) as two:
        await_sent(database, 45, one)
        await_true(lambda: state(database, canceled) == ("canceled", None), lambda: one.log)
        await_true(lambda: depth(endpoint, url) == 0, lambda: one.log)
        assert [one.stop(), two.stop()] == [0, 0]
        assert "opensend-announcer" in one.log or "opensend-worker" in one.log
    assert len(subjects(sink)) == 45
    assert set(subjects(sink).values()) == {1}


def test_a_deferred_message_is_announced_again_at_its_time(
    database: Database, sink: Sink, tmp_path: Path, endpoint: str
) -> None:
    """Its notice is done meanwhile."""
    url = new_queue(endpoint, tmp_path.name)
    email_id = add_email(database)
    sink.answers["RCPT"] = "450 4.2.0 greylisted"
    with working(database, tmp_path, relay_port=sink.port, queue_url=url, endpoint_url=endpoint) as worker:
        await_true(lambda: events(database, email_id) != [], lambda: worker.log)
        await_true(lambda: depth(endpoint, url) == 0, lambda: worker.log)
        sink.answers.clear()
        rows(database, "UPDATE opensend_milter.jobs SET not_before = now(), announce_at = now()")
        await_sent(database, 1, worker)


def test_notices_in_hand_are_given_back_at_the_end(
    database: Database, sink: Sink, tmp_path: Path, endpoint: str
) -> None:
    """The next worker need not wait for a lease."""
    url = new_queue(endpoint, tmp_path.name)
    add_emails(database, 8)
    sink.answers["."] = HOLD
    settings: dict[str, Any] = {"relay_port": sink.port, "queue_url": url, "endpoint_url": endpoint, "concurrency": 2}
    with working(database, tmp_path, **settings, lease_s=600) as worker:
        sink.await_held()
        await_true(lambda: depth(endpoint, url) == 8, lambda: worker.log)
        assert stop_in_hand(worker, sink) == 0
    assert len(sink.delivered) < 8
    sink.answers.clear()
    with working(database, tmp_path, **settings, lease_s=600) as worker:
        await_sent(database, 8, worker)


@pytest.mark.case(56)
def test_a_notice_survives_a_database_that_is_away(
    database: Database, sink: Sink, tmp_path: Path, endpoint: str
) -> None:
    """It is kept in hand: the queue would bring it back only when its lease ends."""
    url = new_queue(endpoint, tmp_path.name)
    email_id = add_email(database)
    rows(database, "UPDATE opensend_milter.jobs SET announce_at = NULL")
    settings: dict[str, Any] = {"queue_url": url, "endpoint_url": endpoint, "lease_s": 600}
    with working(database, tmp_path, relay_port=sink.port, **settings) as worker:
        database.cluster.stop()
        job = {"id": "x", "type": "email.send", "source": "api", "emailId": email_id, "requestedAt": "now"}
        client(endpoint).send_message(QueueUrl=url, MessageBody=json.dumps(job))
        await_true(lambda: re.search(r"opensend-worker-\d: trying on", worker.log) is not None, lambda: worker.log)
        database.cluster.start()
        await_sent(database, 1, worker)
        await_true(lambda: depth(endpoint, url) == 0, lambda: worker.log)


def test_a_notice_is_word_for_one_that_is_being_noted(
    database: Database, sink: Sink, tmp_path: Path, endpoint: str
) -> None:
    """Its own may have been taken up for another; else it is announced again only after a quarter of an hour."""
    url = new_queue(endpoint, tmp_path.name)
    add_email(database)
    rows(database, "UPDATE opensend_milter.jobs SET announce_at = NULL")
    settings: dict[str, Any] = {"queue_url": url, "endpoint_url": endpoint, "lease_s": 600}
    with working(database, tmp_path, relay_port=sink.port, **settings) as worker:
        with database.connect() as noting, noting.transaction():
            noting.execute("UPDATE opensend_milter.jobs SET announce_at = now() + interval '15 minutes'")
            job = {"id": "x", "type": "email.send", "source": "api", "emailId": str(uuid4()), "requestedAt": "now"}
            client(endpoint).send_message(QueueUrl=url, MessageBody=json.dumps(job))
            await_true(lambda: rows(database, SOMEBODY_WAITS) or depth(endpoint, url) == 0, lambda: worker.log)
        await_sent(database, 1, worker)
        await_true(lambda: depth(endpoint, url) == 0, lambda: worker.log)


@pytest.mark.case(57)
def test_a_queue_that_stays_away_is_no_reason_to_wait(database: Database, sink: Sink, tmp_path: Path) -> None:
    """After a while the database is polled, and not before."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    add_emails(database, 20)
    url = f"http://127.0.0.1:{port}/1/q"
    settings: dict[str, Any] = {"relay_port": sink.port, "queue_url": url, "endpoint_url": f"http://127.0.0.1:{port}"}
    with working(database, tmp_path, **settings, poll_after_s=NEVER_S) as worker:
        said = "opensend-receiver: trying on", "opensend-announcer: trying on"
        await_true(lambda: all(line in worker.log for line in said), lambda: worker.log)
        assert worker.stop() == 0
    assert sink.delivered == []
    with working(database, tmp_path, **settings, poll_after_s=0.5) as worker:
        await_sent(database, 20, worker)
        assert worker.stop() == 0
    assert set(subjects(sink).values()) == {1}


@pytest.mark.case(57)
def test_what_the_queue_does_not_take_is_sent_again(beside: Database, tmp_path: Path) -> None:
    """Beside OpenSend: one entry fails, then the whole queue, then one answer is lost; in the end all are there."""
    set_credentials()
    seen: list[list[str]] = []
    unlucky, lucky = add_email(beside), add_email(beside)
    hang = threading.Event()

    def answer(action: str, parameters: dict[str, Any]) -> Answer:
        assert action == "SendMessageBatch", "nobody receives"
        entries = {json.loads(entry["MessageBody"])["emailId"]: entry["Id"] for entry in parameters["Entries"]}
        seen.append(sorted(entries))
        taken = [{"Id": one, "MessageId": "m", "MD5OfMessageBody": "0"} for one in entries.values()]
        if len(seen) == 1:
            failed = [{"Id": entries[unlucky], "Code": "InternalError", "SenderFault": False}]
            return 200, {"Successful": [one for one in taken if one["Id"] != entries[unlucky]], "Failed": failed}
        if len(seen) <= 3:
            return 500, {"__type": "InternalFailure"}
        hang.wait(NEVER_S)
        return 200, {"Successful": taken, "Failed": []}

    def announce_now() -> None:
        rows(beside, "UPDATE opensend_milter.jobs SET announce_at = now()")

    with faulty_sqs(answer) as endpoint:
        settings = {"queue_url": f"{endpoint}/1/q", "endpoint_url": endpoint}
        with working(beside, tmp_path, **settings) as worker:
            await_true(lambda: state(beside, lucky)[1] is None, lambda: worker.log)
            assert state(beside, unlucky) == ("queued", "waiting")
            announce_now()
            await_true(lambda: len(seen) >= 4, lambda: worker.log)  # of the failed call boto3 made two
            worker.kill()
        hang.set()
        assert state(beside, unlucky) == ("queued", "waiting"), "the answer was lost"
        announce_now()
        with working(beside, tmp_path, **settings) as worker:
            await_true(lambda: state(beside, unlucky)[1] is None, lambda: worker.log)
            assert worker.stop() == 0
    assert seen == [sorted([unlucky, lucky]), [unlucky], [unlucky], [unlucky], [unlucky]]
    assert state(beside, unlucky) == ("queued", None), "OpenSend's ingester owns it now"


@pytest.mark.case(83)
def test_a_queue_that_was_out_has_all_as_soon_as_it_answers(beside: Database, tmp_path: Path) -> None:
    """What it was not asked for waits for nothing; what it alone refused, for a moment."""
    set_credentials()
    count = 150
    unlucky = add_email(beside)
    add_emails(beside, count - 1)
    is_out = threading.Event()
    is_out.set()
    asked = 0

    def answer(_: str, parameters: dict[str, Any]) -> Answer:
        nonlocal asked
        asked += 1
        if is_out.is_set():
            return 503, {"__type": "ServiceUnavailable"}
        entries = {json.loads(entry["MessageBody"])["emailId"]: entry["Id"] for entry in parameters["Entries"]}
        failed = [{"Id": one, "Code": "X", "SenderFault": False} for email, one in entries.items() if email == unlucky]
        taken = [{"Id": one, "MessageId": "m", "MD5OfMessageBody": "0"} for one in entries.values()]
        return 200, {
            "Successful": [one for one in taken if one["Id"] not in {x["Id"] for x in failed}],
            "Failed": failed,
        }

    def waiting() -> tuple[object, ...]:
        """Count what is due, what is due within ten seconds, and all."""
        of_them = "SELECT announce_at <= now() AS due, announce_at <= now() + interval '10 seconds' AS soon"
        counts = "SELECT count(*) FILTER (WHERE due), count(*) FILTER (WHERE soon), count(*)"
        return rows(beside, f"{counts} FROM ({of_them} FROM opensend_milter.jobs) j")[0]

    with faulty_sqs(answer) as endpoint:
        settings = {"queue_url": f"{endpoint}/1/q", "endpoint_url": endpoint}
        with working(beside, tmp_path, **settings) as worker:
            await_true(lambda: asked > 4, lambda: worker.log)
            await_true(lambda: waiting() == (count, count, count), "all are due while it is out")
            is_out.clear()
            await_true(lambda: waiting() == (0, 1, 1), lambda: worker.log)
