"""Jobs go by the queue. It does not answer, until the worker goes past it; and mail goes on coming in."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.acceptance.running_sandbox import Sandbox, standing
from tests.acceptance.submitting import rows
from tests.acceptance.test_sandbox import NAMES
from tests.waiting import await_true

EVERY_S = 0.4


@pytest.fixture(scope="module")
def queued() -> Iterator[Sandbox]:
    """A sandbox with a queue; no mail is in it at first."""
    with standing("--queue", "sqs") as sandbox:
        yield sandbox


@pytest.mark.case(57)
@pytest.mark.long
@pytest.mark.timeout(300)
def test_every_250_is_announced_later_and_each_row_claimed_once(queued: Sandbox) -> None:
    """The client never notices; what was taken meanwhile leaves, by the queue or past it, and nothing leaves twice."""
    sandbox, queue = queued, queued.pid("sqs")
    taken = 0
    os.kill(queue, signal.SIGSTOP)
    try:
        with sandbox.smtp() as client:
            while not sandbox.inbox():
                client.mail("app@sandbox.test")
                client.rcpt("to@example.net")
                message = f"From: app@sandbox.test\r\nSubject: away {taken}\r\n\r\nhi\r\n"
                assert client.data(message)[0] == 250
                taken += 1
                time.sleep(EVERY_S)
    finally:
        os.kill(queue, signal.SIGCONT)
    await_true(lambda: len(sandbox.inbox()) >= taken, lambda: sandbox.log("worker")[-3_000:])
    await_true(lambda: rows(sandbox, "SELECT count(*) FROM opensend_milter.jobs") == [(0,)], "no job is left")
    subjects = Counter(
        line
        for path in sandbox.inbox()
        for line in path.read_bytes().split(b"\r\n")
        if line.startswith(b"Subject: away")
    )
    assert subjects == Counter({b"Subject: away %d" % number: 1 for number in range(taken)})
    assert rows(sandbox, "SELECT status, count(*) FROM emails GROUP BY 1") == [("sent", taken)]
    assert rows(sandbox, "SELECT count(*) FROM email_events WHERE type = 'sent'") == [(taken,)]


def test_with_sqs_jobs_go_by_the_queue(queued: Sandbox) -> None:
    assert set(queued.values) == NAMES | {"SANDBOX_QUEUE_URL", "SANDBOX_AWS_ENDPOINT"}
    queued.run("send")
    os.kill(queued.pids()["sqs"], signal.SIGKILL)
    queued.await_good()
    queued.run("send", "--wait", "90")
    said = queued.run("up", "--queue", "postgres", check=False)
    assert said.returncode == 64
    assert "runs with --queue sqs" in said.stderr
