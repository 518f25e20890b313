"""What is killed or stopped while mail flows: no 250 without its row, no message twice, no 5xx for a fault of ours."""

from __future__ import annotations

import os
import random
import re
import signal
import smtplib
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.acceptance.running_sandbox import MakeSandbox, Sandbox
from tests.acceptance.submitting import MAIL, TAKEN, eventually, log_in, rows, submit, unique

CLIENTS = 20
PAUSE_S = 0.1
"""Between two messages of one client: the machine is to have time for what is tested."""
KILLS = 4
OURS = ("serve", "auth-gate", "worker", "dovecot", "postfix")
TROUBLE = (451, "4.3.0")


@dataclass
class Load:
    """Clients that send, each message under a Message-ID of its own, and note what they are told."""

    sandbox: Sandbox
    taken: list[str] = field(default_factory=list)
    refused: list[int] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def client(self) -> None:
        while not self.over.is_set():
            try:
                with self.sandbox.smtp() as client:
                    while not self.over.is_set():
                        self.send(client)
                        time.sleep(PAUSE_S)
            except smtplib.SMTPResponseException as error:
                self.refused.append(error.smtp_code)
            except (smtplib.SMTPException, OSError):
                time.sleep(PAUSE_S)  # hung up on: a client connects again

    def send(self, client: smtplib.SMTP) -> None:
        message_id = f"<{unique()}@sandbox.test>"
        answer = submit(client, b"Message-ID: " + message_id.encode() + b"\r\n" + MAIL)
        if answer.code == 250:
            self.taken.append(message_id)
        else:
            self.refused.append(answer.code)

    def await_more(self, count: int) -> None:
        enough = len(self.taken) + count
        eventually(lambda: len(self.taken) >= enough or None)

    def check(self) -> None:
        """Compare what was told with what is stored."""
        stored = Counter(
            message_id
            for (message_id,) in rows(
                self.sandbox,
                "SELECT s.message_id FROM opensend_milter.submissions s JOIN emails e ON e.id = s.email_id"
                " WHERE EXISTS (SELECT FROM opensend_milter.raw_chunks r WHERE r.email_id = e.id)",
            )
        )
        assert not set(self.taken) - set(stored), "taken and not stored"
        assert set(stored.values()) == {1}, "stored twice"
        assert not [code for code in self.refused if not 400 <= code < 500], "a fault of ours is no 5xx"


@contextmanager
def load(sandbox: Sandbox) -> Iterator[Load]:
    """Let the clients send while the body of the `with` does harm."""
    running = Load(sandbox)
    threads = [threading.Thread(target=running.client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        running.await_more(CLIENTS)
        yield running
    finally:
        running.over.set()
        for thread in threads:
            thread.join()


def supervisor(sandbox: Sandbox) -> int:
    return sandbox.pid("serve")


def child(sandbox: Sandbox) -> int:
    """Return one of the processes that answer Postfix."""
    parent = supervisor(sandbox)
    found = eventually(lambda: Path(f"/proc/{parent}/task/{parent}/children").read_text().split() or None)
    return int(random.choice(found))


def assert_takes_mail(sandbox: Sandbox) -> None:
    with sandbox.smtp() as client:
        assert submit(client, MAIL).codes == TAKEN


@pytest.mark.case(55)
@pytest.mark.parametrize("victim", [child, supervisor])
def test_every_250_has_one_row_and_one_delivery_whoever_is_killed(
    make_sandbox: MakeSandbox, victim: Callable[[Sandbox], int]
) -> None:
    sandbox = make_sandbox()
    with load(sandbox) as running:
        for _ in range(KILLS):
            os.kill(victim(sandbox), signal.SIGKILL)
            running.await_more(CLIENTS)
    sandbox.await_good()
    assert_takes_mail(sandbox)
    running.check()
    eventually(lambda: rows(sandbox, "SELECT count(*) FROM opensend_milter.jobs") == [(0,)] or None)
    arrived = Counter(re.search(rb"\nMessage-ID: ([^\r]*)", path.read_bytes())[1].decode() for path in sandbox.inbox())  # type: ignore[index]  # each has one
    assert {arrived[message_id] for message_id in running.taken} == {1}


@pytest.mark.case(60)
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_reload_and_a_restart_under_load_refuse_nothing_for_good(make_sandbox: MakeSandbox, number: int) -> None:
    sandbox = make_sandbox()
    with load(sandbox) as running:
        os.kill(supervisor(sandbox), number)
        running.await_more(CLIENTS * 3)
    sandbox.await_good()
    running.check()
    if number == signal.SIGHUP:
        assert running.refused == []


@contextmanager
def postgres_stopped(sandbox: Sandbox) -> Iterator[None]:
    """Take the database away; its keeper, who would start it at once, waits too."""
    pids = sandbox.pids()
    os.kill(pids["keeper"], signal.SIGSTOP)
    try:
        os.kill(pids["postgres"], signal.SIGQUIT)
        eventually(lambda: None if _runs(pids["postgres"]) else True)
        yield
    finally:
        os.kill(pids["keeper"], signal.SIGCONT)
        sandbox.await_good()


def _runs(pid: int) -> bool:
    """Tell whether a process is there and no zombie: its parent is stopped."""
    return ") Z " not in Path(f"/proc/{pid}/stat").read_text()


@pytest.mark.case(56)
def test_without_postgres_all_is_put_off_and_goes_on_by_itself(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox()
    before = sandbox.pids()
    with sandbox.smtp() as client, sandbox.connect() as other:
        with postgres_stopped(sandbox):
            assert submit(client, MAIL).codes == TROUBLE
            assert log_in(other, sandbox["SANDBOX_API_KEY"]).codes == (454, "4.7.0")
            assert submit(client, MAIL).codes == TROUBLE, "the connection is still good"
        assert submit(client, MAIL).codes == TAKEN
        assert log_in(other, sandbox["SANDBOX_API_KEY"]).codes == (235, "2.7.0")
    assert_takes_mail(sandbox)
    after = sandbox.pids()
    assert {name: after[name] for name in OURS} == {name: before[name] for name in OURS}, "nothing of ours started anew"
    assert rows(sandbox, "SELECT count(*) FROM emails") == [(2,)]


@pytest.mark.case(56)
def test_postgres_that_hangs_is_451_too(make_sandbox: MakeSandbox) -> None:
    sandbox = make_sandbox()
    server = sandbox.pids()["postgres"]
    assert_takes_mail(sandbox)
    with sandbox.smtp() as client:
        everybody = [server, *map(int, Path(f"/proc/{server}/task/{server}/children").read_text().split())]
        for pid in everybody:
            os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            assert submit(client, MAIL).codes == TROUBLE
            assert time.monotonic() - began < 30, "before Postfix loses its patience with the milter"
        finally:
            for pid in everybody:
                os.kill(pid, signal.SIGCONT)
        assert eventually(lambda: submit(client, MAIL).codes == TAKEN or None)
