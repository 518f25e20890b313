"""The queue of SES events: fetched, and taken off when they are put down; what is none stays for its redrive policy."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from opensend_milter.adapters.amazon import session
from opensend_milter.core import counting
from opensend_milter.core.errors import QueueUnavailable
from opensend_milter.core.feedback import Heard, Report, ReportMalformed, text_of
from opensend_milter.core.ses_report import GREETING, parsed, ses_report

if TYPE_CHECKING:
    from mypy_boto3_sqs import SQSClient
    from mypy_boto3_sqs.type_defs import MessageTypeDef

log = logging.getLogger(__name__)
MOST_AT_ONCE = 10
LONGEST_WAIT_S = 20
_LEASE_S = 60
_CONNECT_S = 5
_ANSWER_S = LONGEST_WAIT_S + 10


class SesEventQueue:
    """One queue; who may write to it is its own policy's business, so no signature is asked for."""

    def __init__(self, url: str, *, region: str, endpoint_url: str) -> None:
        self._url = url
        self._region = region
        self._endpoint_url = endpoint_url
        self._client: SQSClient | None = None
        self._lock = threading.Lock()
        self.malformed = 0
        """Messages that were no events."""

    def receive(self, wait_s: float) -> list[Heard]:
        """Wait for events; each comes again after a minute unless `done`."""
        with _queue_errors():
            answer = self._connected().receive_message(
                QueueUrl=self._url,
                MaxNumberOfMessages=MOST_AT_ONCE,
                WaitTimeSeconds=min(int(wait_s), LONGEST_WAIT_S),
                VisibilityTimeout=_LEASE_S,
            )
        return [heard for message in answer.get("Messages", []) if (heard := self._heard(message))]

    def done(self, heard: Sequence[Heard]) -> None:
        """Take them off the queue."""
        if not heard:
            return
        with _queue_errors():
            answer = self._connected().delete_message_batch(
                QueueUrl=self._url,
                Entries=[{"Id": str(place), "ReceiptHandle": one.receipt} for place, one in enumerate(heard)],
            )
        for failed in answer.get("Failed", []):
            log.info("an event stays on the queue and counts once: %s", failed["Code"])

    def _heard(self, message: MessageTypeDef) -> Heard | None:
        try:
            report = _report(message["Body"])
        except ReportMalformed as error:
            self.malformed += 1
            counting.queue_malformed()
            log.warning("message=%s is no SES event: left (%s)", message.get("MessageId"), error)
            return None
        return Heard(receipt=message["ReceiptHandle"], report=report)

    def _connected(self) -> SQSClient:
        with self._lock:
            if self._client is None:
                config = Config(
                    connect_timeout=_CONNECT_S,
                    read_timeout=_ANSWER_S,
                    retries={"mode": "standard", "total_max_attempts": 2},
                    tcp_keepalive=True,
                )
                self._client = session().client(
                    "sqs", region_name=self._region, endpoint_url=self._endpoint_url or None, config=config
                )
            return self._client


def _report(body: str) -> Report | None:
    """Read an event that came by way of SNS, with or without its envelope."""
    if body.startswith(GREETING):
        return None
    outer = parsed(body)
    if outer.get("Type") != "Notification":
        return ses_report(body)
    message = outer.get("Message")
    return ses_report(message if isinstance(message, str) else "", text_of(outer.get("MessageId")))


@contextmanager
def _queue_errors() -> Iterator[None]:
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise QueueUnavailable(f"{type(error).__name__}: {error}") from error
