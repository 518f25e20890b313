"""Checks of the SQS queue: reachable, of the right kind, with patience and a way out for what nobody can read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from functools import cache

from botocore.config import Config as ClientConfig
from botocore.exceptions import BotoCoreError, ClientError

from opensend_milter.adapters.amazon import session
from opensend_milter.config import Config
from opensend_milter.core.findings import Check, Seen, good, problem, skipped, warning

REACHABLE = "queue.reachable"
LEAST_VISIBLE_S = 30
LEAST_RECEIVES = 3
UNREAD_S = 600.0
_ANSWER_S = 10

Attributes = Mapping[str, str]


def checks(config: Config, oldest_s: Callable[[], float]) -> Iterator[Check]:
    """Return the checks of the configured queue; `oldest_s`: for how long a message has been due."""

    @cache
    def attributes() -> Attributes:
        return _attributes(config)

    def reachable() -> Seen:
        if not config.queue.url:
            return skipped("no queue is configured: the database is polled")
        try:
            found = attributes()
        except (BotoCoreError, ClientError) as error:
            return problem(
                str(error), f"aws sqs get-queue-attributes --attribute-names All --queue-url {config.queue.url}"
            )
        return good(f"{found.get('QueueArn', config.queue.url)}")

    yield Check(name=REACHABLE, why="what cannot be announced waits until the queue answers again", look=reachable)
    looks: tuple[tuple[str, str, Callable[[], Seen]], ...] = (
        (
            "queue.fifo",
            "a FIFO queue wants a group with each message, and another queue refuses it",
            lambda: judged_kind(config.queue.url, attributes()),
        ),
        (
            "queue.visibility",
            "a message that comes again while it is being sent is taken up twice",
            lambda: judged_visibility(config, attributes()),
        ),
        (
            "queue.redrive",
            "a message that nobody can read comes again until it is too old, and costs each time",
            lambda: judged_redrive(config.queue.url, attributes()),
        ),
        (
            "queue.read",
            "announcements that nobody reads are sent to nobody",
            lambda: judged_reading(attributes(), oldest_s()),
        ),
    )
    for name, why, look in looks:
        yield Check(name=name, why=why, look=look, needs=REACHABLE)


def _attributes(config: Config) -> Attributes:
    client = session().client(
        "sqs",
        region_name=config.aws.region,
        endpoint_url=config.aws.endpoint_url or None,
        config=ClientConfig(connect_timeout=_ANSWER_S, read_timeout=_ANSWER_S, retries={"total_max_attempts": 1}),
    )
    try:
        answer = client.get_queue_attributes(QueueUrl=config.queue.url, AttributeNames=["All"])
        return {str(name): value for name, value in answer["Attributes"].items()}
    finally:
        client.close()


def judged_kind(url: str, attributes: Attributes) -> Seen:
    """Compare what the queue is with what its URL says."""
    is_fifo, named_fifo = attributes.get("FifoQueue") == "true", url.endswith(".fifo")
    if is_fifo != named_fifo:
        return problem(
            f"the queue is {'a' if is_fifo else 'no'} FIFO queue, and its URL says otherwise",
            "set queue.url to the queue's own URL",
        )
    return good("FIFO" if is_fifo else "standard")


def judged_visibility(config: Config, attributes: Attributes) -> Seen:
    """Judge for how long a message is hidden; our own worker asks for its lease each time."""
    visible_s = int(attributes.get("VisibilityTimeout", "0"))
    if visible_s < LEAST_VISIBLE_S:
        wanted = int(config.delivery.lease_s) if config.profile == "standalone" else 2 * LEAST_VISIBLE_S
        return warning(
            f"visibility timeout {visible_s} s",
            f"aws sqs set-queue-attributes --queue-url {config.queue.url} --attributes VisibilityTimeout={wanted}",
        )
    return good(f"visibility timeout {visible_s} s; our worker asks for delivery.lease_s, {config.delivery.lease_s:g}")


def judged_redrive(url: str, attributes: Attributes) -> Seen:
    """Judge where messages go that were received too often."""
    policy = json.loads(attributes.get("RedrivePolicy") or "{}")
    receives = int(policy.get("maxReceiveCount", 0))
    setting = json.dumps({"RedrivePolicy": json.dumps({"deadLetterTargetArn": "ARN", "maxReceiveCount": "10"})})
    mend = f"aws sqs set-queue-attributes --queue-url {url} --attributes '{setting}'"
    if not policy:
        return warning("no redrive policy", mend)
    if receives < LEAST_RECEIVES:
        return warning(f"given up after {receives} receive(s)", mend)
    return good(f"given up after {receives} receives")


def judged_reading(attributes: Attributes, oldest_s: float) -> Seen:
    """Judge whether somebody reads the queue."""
    waiting = int(attributes.get("ApproximateNumberOfMessages", "0"))
    in_hand = int(attributes.get("ApproximateNumberOfMessagesNotVisible", "0"))
    shown = f"{waiting} waiting, {in_hand} in hand"
    if waiting and not in_hand and oldest_s > UNREAD_S:
        return problem(
            f"{shown}, and the oldest message is due for {oldest_s:.0f} s", "start the worker, or OpenSend's ingester"
        )
    return good(shown)
