"""A thousand messages, two workers, and kill -9 five times: nothing lost, nothing twice."""

from __future__ import annotations

import random
import re
import time
from collections import Counter
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from opensend_milter.core.model import EmailId
from tests.integration.outbox import add_emails, rows
from tests.integration.private_postgres import Database
from tests.integration.working import Working, working
from tests.smtp_sink import Sink
from tests.waiting import await_true, scaled_s

MESSAGES, KILLS = 1_000, 5


def has_sent(worker: Working) -> bool:
    return "status=sent" in worker.log


def outcomes(database: Database) -> Counter[str]:
    """Count emails by what became of them: `sent`, `uncertain`, or still on their way."""
    query = (
        "SELECT CASE WHEN e.status = 'sent' AND j.state IS NULL THEN 'sent'"
        " WHEN j.state = 'uncertain' THEN 'uncertain' ELSE 'under way' END, count(*)"
        " FROM emails e LEFT JOIN opensend_milter.jobs j ON j.email_id = e.id GROUP BY 1"
    )
    return Counter(dict(rows(database, query)))


@pytest.mark.case(58)
@pytest.mark.case(59)
@pytest.mark.long
def test_every_message_is_sent_once_or_uncertain(
    database: Database, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever the moment at which a worker dies."""
    lease_s = round(scaled_s(2))  # one that is too slow to prolong it in time is not dead
    ids: list[EmailId] = []
    chance = random.Random(20_251_121)
    with Sink() as sink, ExitStack() as stack:
        stack.enter_context(working(database, tmp_path, relay_port=sink.port, lease_s=lease_s))
        for _ in range(KILLS):
            victim = stack.enter_context(working(database, tmp_path, relay_port=sink.port, lease_s=lease_s))
            ids += add_emails(database, MESSAGES // KILLS)
            await_true(partial(has_sent, victim), lambda victim=victim: victim.log)  # type: ignore[misc]
            time.sleep(chance.uniform(0, 0.3))
            victim.kill()
        stack.enter_context(working(database, tmp_path, relay_port=sink.port, lease_s=lease_s))
        await_true(lambda: not outcomes(database)["under way"], lambda: outcomes(database), pause_s=0.2)
        found = outcomes(database)
        arrived = Counter(
            match[1].decode()
            for message in sink.delivered
            if (match := re.search(rb"^Subject: (\S+)\r$", message.raw, re.MULTILINE))
        )
    sent = {email_id for (email_id,) in rows(database, "SELECT id::text FROM emails WHERE status = 'sent'")}
    uncertain = set(ids) - sent
    with capsys.disabled():
        out = sum(1 for email_id in uncertain if arrived[email_id])
        print(f"\n{MESSAGES} messages, {KILLS} kills: {len(sent)} sent, {len(uncertain)} uncertain ({out} of them out)")  # noqa: T201
    assert len(ids) == MESSAGES
    assert {arrived[email_id] for email_id in sent} == {1}
    assert {arrived[email_id] for email_id in uncertain} <= {0, 1}
    assert found == Counter(sent=len(sent), uncertain=len(uncertain))
    assert len(uncertain) <= KILLS * 4, "at most what the dead had in hand"
