"""The queue adapter against a real SQS endpoint, and against one that fails."""

from __future__ import annotations

import json
import logging
import re
import socket
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest

from opensend_milter.adapters.aws import sqs
from opensend_milter.adapters.aws.sqs import SqsQueue
from opensend_milter.core.errors import QueueUnavailable
from opensend_milter.core.ids import new_email_id
from opensend_milter.core.model import Announcement, EmailId
from tests.integration.sqs_server import Answer, client, faulty_sqs, new_queue, running_sqs, set_credentials

ID = EmailId("0198c5a2-7f00-7abc-8def-0123456789ab")
ALL = ["All"]


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    set_credentials()
    with running_sqs() as running:
        yield running


@pytest.fixture
def url(endpoint: str) -> str:
    return new_queue(endpoint, str(new_email_id()))


@pytest.fixture
def fifo_url(endpoint: str) -> str:
    return new_queue(endpoint, f"{new_email_id()}.fifo", FifoQueue="true")


def queue_at(url: str, lease_s: float = 60) -> SqsQueue:
    return SqsQueue(url, region="us-east-1", endpoint_url=url.rsplit("/", 2)[0], lease_s=lease_s)


def announcement(email_id: EmailId | None = None, attempts: int = 0) -> Announcement:
    at = datetime(2025, 8, 20, 12, 0, 1, 234_567, tzinfo=UTC)
    return Announcement(email_id=email_id or new_email_id(), requested_at=at, attempts=attempts)


def received(endpoint: str, url: str) -> list[dict[str, Any]]:
    """Take what is on the queue, as OpenSend's ingester would."""
    answer = client(endpoint).receive_message(
        QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=ALL, AttributeNames=ALL, VisibilityTimeout=0
    )
    return list(answer.get("Messages", []))


def assert_is_the_contracts_job(message: dict[str, Any]) -> None:
    trace_id = ID.replace("-", "")
    body = message["Body"]
    traceparent = json.loads(body)["trace"]["traceparent"]
    assert re.fullmatch(rf"00-{trace_id}-(?!0{{16}})[0-9a-f]{{16}}-01", traceparent)
    assert body == (
        f'{{"id":"email.send:{ID}","type":"email.send","source":"api","emailId":"{ID}",'
        '"requestedAt":"2025-08-20T12:00:01.234Z",'
        f'"trace":{{"traceparent":"{traceparent}","correlationId":"{trace_id}"}}}}'
    )
    attributes = message["MessageAttributes"]
    assert {name: value["StringValue"] for name, value in attributes.items()} == {
        "jobId": f"email.send:{ID}",
        "jobType": "email.send",
        "source": "api",
        "correlationId": trace_id,
        "traceparent": traceparent,
    }
    assert {value["DataType"] for value in attributes.values()} == {"String"}


def test_the_job_is_the_contracts(endpoint: str, url: str) -> None:
    """Word for word; no FIFO parameters on a standard queue."""
    assert queue_at(url).announce([announcement(ID)]) == [ID]
    (message,) = received(endpoint, url)
    assert_is_the_contracts_job(message)
    assert "MessageGroupId" not in message["Attributes"]


def test_the_job_on_a_fifo_queue(endpoint: str, fifo_url: str) -> None:
    """Each email is a group of its own: one that fails stops nobody."""
    assert queue_at(fifo_url).announce([announcement(ID)]) == [ID]
    (message,) = received(endpoint, fifo_url)
    assert_is_the_contracts_job(message)
    assert message["Attributes"]["MessageGroupId"] == ID
    assert message["Attributes"]["MessageDeduplicationId"] == f"email.send:{ID}"


def test_a_later_attempt_is_no_duplicate(endpoint: str, fifo_url: str) -> None:
    """A FIFO queue drops what it was told within five minutes: a retry may be earlier."""
    for attempts in (0, 0, 1, 1):
        assert queue_at(fifo_url).announce([announcement(ID, attempts)]) == [ID]
    attributes = client(endpoint).get_queue_attributes(QueueUrl=fifo_url, AttributeNames=ALL)["Attributes"]
    assert attributes["ApproximateNumberOfMessages"] == "2"


def test_ten_at_once_and_back(url: str) -> None:
    """What is announced is received, once, until the lease ends."""
    queue = queue_at(url)
    email_ids = [new_email_id() for _ in range(10)]
    assert queue.announce([announcement(email_id) for email_id in email_ids]) == email_ids
    notices = queue.receive(1)
    assert sorted(notice.email_id for notice in notices) == sorted(email_ids)
    assert queue.receive(0) == []
    for notice in notices[:9]:
        queue.done(notice)
    queue.give_back(notices[9])
    assert [notice.email_id for notice in queue.receive(1)] == [notices[9].email_id]


def test_a_notice_that_is_not_done_comes_again(url: str) -> None:
    """A worker may die."""
    queue = queue_at(url, lease_s=1)
    queue.announce([announcement(ID)])
    assert len(queue.receive(0)) == 1
    assert queue.receive(0) == []
    assert len(queue.receive(5)) == 1


def test_a_notice_in_hand_is_kept(url: str) -> None:
    """For as long as it is put off, however many there are."""
    queue, long = queue_at(url, lease_s=1), queue_at(url, lease_s=60)
    for _ in range(2):
        queue.announce([announcement() for _ in range(10)])
    notices = [*queue.receive(0), *queue.receive(0)]
    long.extend(notices)
    assert len(notices) > 10, "more than one request's worth"
    assert queue.receive(3) == []


@pytest.mark.parametrize(
    ("body", "malformed"),
    [
        ("no json", 1),
        ("[]", 1),
        ("1", 1),
        ('"email.send"', 1),
        ("{}", 1),
        ('{"type":"email.send"}', 1),
        ('{"type":"email.send","emailId":7}', 1),
        ('{"type":"email.send","emailId":"\'; DROP TABLE emails"}', 1),
        ('{"type":["email.send"]}', 0),
        ('{"type":"webhook.dispatch","deliveryId":"x"}', 0),
        ('{"type":"scheduled-email.scan"}', 0),
        ("[" * 100_000, 1),
    ],
)
def test_what_is_no_job_of_ours_is_left(endpoint: str, url: str, body: str, malformed: int) -> None:
    """It stays for the queue's redrive policy and does not stop the others."""
    client(endpoint).send_message(QueueUrl=url, MessageBody=body)
    queue = queue_at(url, lease_s=0)
    queue.announce([announcement(ID)])
    notices = [*queue.receive(0), *queue.receive(0)]
    assert {notice.email_id for notice in notices} == {ID}
    assert queue.malformed in {malformed, 2 * malformed}
    for notice in notices:
        queue.done(notice)
    assert [message["Body"] for message in received(endpoint, url)] == [body]


def test_a_job_of_opensends_own_is_taken(endpoint: str, url: str) -> None:
    """Its trace is optional, unknown keys mean nothing, a UUID may be in upper case."""
    body = {"id": "x", "type": "email.send", "source": "retry", "emailId": ID.upper(), "requestedAt": "now", "new": 1}
    client(endpoint).send_message(QueueUrl=url, MessageBody=json.dumps(body))
    assert [notice.email_id for notice in queue_at(url).receive(0)] == [ID]


@pytest.mark.case(57)
def test_failed_entries_are_told_from_those_taken(caplog: pytest.LogCaptureFixture) -> None:
    """Only what the queue took is off the outbox."""
    set_credentials()
    announcements = [announcement() for _ in range(4)]

    def answer(action: str, parameters: dict[str, Any]) -> Answer:
        assert action == "SendMessageBatch"
        ids = [entry["Id"] for entry in parameters["Entries"]]
        return 200, {
            "Successful": [{"Id": one, "MessageId": "m", "MD5OfMessageBody": "0"} for one in (ids[3], ids[0])],
            "Failed": [{"Id": one, "Code": "InternalError", "SenderFault": False} for one in (ids[1], ids[2])],
        }

    with faulty_sqs(answer) as endpoint, caplog.at_level(logging.WARNING):
        taken = queue_at(f"{endpoint}/1/q").announce(announcements)
    assert taken == [announcements[3].email_id, announcements[0].email_id]
    assert announcements[1].email_id in caplog.text


@pytest.mark.case(57)
@pytest.mark.parametrize(
    ("status", "code"),
    [(500, "InternalFailure"), (503, "ServiceUnavailable"), (400, "ThrottlingException"), (400, "QueueDoesNotExist")],
)
def test_an_error_of_the_whole_queue(status: int, code: str) -> None:
    """One of ours, whatever AWS calls it."""
    set_credentials()
    with faulty_sqs(lambda *_: (status, {"__type": f"com.amazonaws.sqs#{code}", "message": "no"})) as endpoint:
        queue = queue_at(f"{endpoint}/1/q")
        with pytest.raises(QueueUnavailable):
            queue.announce([announcement()])
        with pytest.raises(QueueUnavailable):
            queue.receive(0)


@pytest.mark.case(57)
def test_a_queue_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused, or silent: an error of ours once it was asked twice."""
    set_credentials()
    monkeypatch.setattr(sqs, "_ANSWER_TO_WAITING_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(QueueUnavailable):
            queue_at(f"http://127.0.0.1:{port}/1/q").receive(0)
        silent.settimeout(0)
        for _ in range(2):
            silent.accept()[0].close()
        with pytest.raises(BlockingIOError):
            silent.accept()
    with pytest.raises(QueueUnavailable):
        queue_at(f"http://127.0.0.1:{port}/1/q").announce([announcement()])
