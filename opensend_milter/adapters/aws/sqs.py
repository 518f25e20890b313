"""JobQueue over boto3: OpenSend's job, word for word."""

from __future__ import annotations

import json
import logging
import re
import secrets
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC
from typing import TYPE_CHECKING

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from opensend_milter.adapters.amazon import session
from opensend_milter.core import counting
from opensend_milter.core.errors import QueueUnavailable
from opensend_milter.core.model import Announcement, EmailId, Notice

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.type_defs import (
        ChangeMessageVisibilityBatchRequestEntryTypeDef,
        MessageTypeDef,
        SendMessageBatchRequestEntryTypeDef,
    )

log = logging.getLogger(__name__)
EMAIL_SEND = "email.send"
MOST_AT_ONCE = 10
LONGEST_WAIT_S = 20
_CONNECT_S = 5
_ANSWER_S = 5
_ANSWER_TO_WAITING_S = LONGEST_WAIT_S + 10
_CONNECTIONS = 300
"""At least one for each thread: urllib3 warns of every one it has to throw away."""
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)


class SqsQueue:
    """One queue, for any number of threads; clients are made when first needed, so after a fork."""

    def __init__(self, url: str, *, region: str, endpoint_url: str, lease_s: float) -> None:
        self._url = url
        self._region = region
        self._endpoint_url = endpoint_url
        self._lease_s = int(lease_s)
        self._is_fifo = url.endswith(".fifo")
        self._clients: dict[int, SQSClient] = {}
        self._lock = threading.Lock()
        self.malformed = 0
        """Jobs received that were none; they stay for the queue's redrive policy."""

    def announce(self, announcements: Sequence[Announcement]) -> list[EmailId]:
        """Send up to ten; return those that the queue took."""
        entries = [self._entry(place, announcement) for place, announcement in enumerate(announcements)]
        with _queue_errors():
            answer = self._client(_ANSWER_S).send_message_batch(QueueUrl=self._url, Entries=entries)
        for failed in answer.get("Failed", []):
            email_id = announcements[int(failed["Id"])].email_id
            log.warning("email=%s not taken by the queue: %s %s", email_id, failed["Code"], failed.get("Message", ""))
        return [announcements[int(taken["Id"])].email_id for taken in answer.get("Successful", [])]

    def receive(self, wait_s: float) -> list[Notice]:
        """Wait for notices; each comes again after the lease unless `done`."""
        with _queue_errors():
            answer = self._client(_ANSWER_TO_WAITING_S).receive_message(
                QueueUrl=self._url,
                MaxNumberOfMessages=MOST_AT_ONCE,
                WaitTimeSeconds=min(int(wait_s), LONGEST_WAIT_S),
                VisibilityTimeout=self._lease_s,
            )
        return [notice for message in answer.get("Messages", []) if (notice := self._notice(message))]

    def done(self, notice: Notice) -> None:
        """Take it off the queue."""
        with _queue_errors():
            self._client(_ANSWER_S).delete_message(QueueUrl=self._url, ReceiptHandle=notice.receipt)

    def give_back(self, notice: Notice) -> None:
        """Let it come again at once."""
        with _queue_errors():
            self._client(_ANSWER_S).change_message_visibility(
                QueueUrl=self._url, ReceiptHandle=notice.receipt, VisibilityTimeout=0
            )

    def extend(self, notices: Sequence[Notice]) -> None:
        """Keep these in hand for another lease."""
        for first in range(0, len(notices), MOST_AT_ONCE):
            entries: list[ChangeMessageVisibilityBatchRequestEntryTypeDef] = [
                {"Id": str(place), "ReceiptHandle": notice.receipt, "VisibilityTimeout": self._lease_s}
                for place, notice in enumerate(notices[first : first + MOST_AT_ONCE])
            ]
            with _queue_errors():
                answer = self._client(_ANSWER_S).change_message_visibility_batch(QueueUrl=self._url, Entries=entries)
            for failed in answer.get("Failed", []):
                log.debug("notice comes again: %s", failed["Code"])

    def _client(self, answer_s: int) -> SQSClient:
        """Return one that gives up after so long: only who waits for notices has to be patient with a dead line."""
        with self._lock:
            if answer_s not in self._clients:
                config = Config(
                    connect_timeout=_CONNECT_S,
                    read_timeout=answer_s,
                    retries={"mode": "standard", "total_max_attempts": 2},
                    max_pool_connections=_CONNECTIONS,
                    tcp_keepalive=True,
                )
                self._clients[answer_s] = session().client(
                    "sqs", region_name=self._region, endpoint_url=self._endpoint_url or None, config=config
                )
            return self._clients[answer_s]

    def _entry(self, place: int, announcement: Announcement) -> SendMessageBatchRequestEntryTypeDef:
        email_id = announcement.email_id
        job_id = f"{EMAIL_SEND}:{email_id}"
        # The email's own id is a valid trace id, so traces are found by it and a repeated hint joins the same trace.
        trace_id = email_id.replace("-", "")
        traceparent = f"00-{trace_id}-{secrets.token_hex(8)}-01"
        requested_at = announcement.requested_at.astimezone(UTC).isoformat(timespec="milliseconds")
        job = {
            "id": job_id,
            "type": EMAIL_SEND,
            "source": "api",
            "emailId": email_id,
            "requestedAt": requested_at.replace("+00:00", "Z"),
            "trace": {"traceparent": traceparent, "correlationId": trace_id},
        }
        attributes = {
            "jobId": job_id,
            "jobType": EMAIL_SEND,
            "source": "api",
            "correlationId": trace_id,
            "traceparent": traceparent,
        }
        entry: SendMessageBatchRequestEntryTypeDef = {
            "Id": str(place),
            "MessageBody": json.dumps(job, separators=(",", ":")),
            "MessageAttributes": {
                name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()
            },
        }
        if self._is_fifo:
            # Not the seed's one group for all: there, one message that fails makes all others wait.
            entry["MessageGroupId"] = email_id
            retry = f":{announcement.attempts}" if announcement.attempts else ""
            entry["MessageDeduplicationId"] = job_id + retry
        return entry

    def _notice(self, message: MessageTypeDef) -> Notice | None:
        """Read a job; whatever is none of ours stays on the queue, which knows when to give up on it."""
        try:
            job = json.loads(message["Body"])
            kind, email_id = job["type"], job["emailId"] if job["type"] == EMAIL_SEND else ""
            if kind != EMAIL_SEND:
                log.info("message=%s is of another type: left", message["MessageId"])
                return None
            if not _UUID.fullmatch(email_id):
                raise ValueError("emailId is no UUID")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            self.malformed += 1
            counting.queue_malformed()
            log.warning("message=%s is no job: left (%s)", message.get("MessageId"), type(error).__name__)
            return None
        return Notice(receipt=message["ReceiptHandle"], email_id=EmailId(email_id.lower()))


@contextmanager
def _queue_errors() -> Iterator[None]:
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise QueueUnavailable(f"{type(error).__name__}: {error}") from error
