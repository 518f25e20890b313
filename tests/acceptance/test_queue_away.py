"""The queue does not answer, until the worker goes past it; and mail goes on coming in."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter

import pytest

from tests.acceptance.running_sandbox import MakeSandbox
from tests.acceptance.submitting import rows
from tests.waiting import await_true

EVERY_S = 0.4


@pytest.mark.case(57)
@pytest.mark.long
@pytest.mark.timeout(300)
def test_every_250_is_announced_later_and_each_row_claimed_once(make_sandbox: MakeSandbox) -> None:
    """The client never notices; what was taken meanwhile leaves, by the queue or past it, and nothing leaves twice."""
    sandbox = make_sandbox("--queue", "sqs")
    queue = sandbox.pid("sqs")
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
