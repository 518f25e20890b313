"""Killed, stopped, hung, reloaded while ten clients send: what they were told is compared with what came of it."""

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
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import yaml

from opensend_milter.servers.orphans import NAME as KEEPER
from tests.acceptance.running_sandbox import Sandbox
from tests.acceptance.submitting import MAIL, Answer, count, log_in, rows, submit, unique
from tests.waiting import await_found, await_true, scaled_s

CLIENTS = 10
LOGINS = 20
PAUSE_S = 0.4
"""Between two messages of one client: the machine is to have time for what is tested."""
LONGEST_MOMENT_S = 0.4
BLOWS = 4
COMMIT_S = 0.01
"""For each message of a batch, where COMMIT is made slow."""
PUT_OFF = {(451, "4.3.0")}
TOLD_TO_COME_AGAIN = (421, "4.3.0")
LOGGED_IN = (235, "2.7.0")
NO_LOGIN = (454, "4.7.0")
OURS = ("serve", "auth-gate", "worker", "dovecot", "postfix")


@dataclass
class Load:
    """Ten clients, each on a connection of its own, and all that they were told."""

    sandbox: Sandbox
    stays: bool
    """On a connection after a 4xx; otherwise a client takes a new one."""
    tried: list[str] = field(default_factory=list)
    taken: list[str] = field(default_factory=list)
    refused: list[Answer] = field(default_factory=list)
    connections: int = 0
    hang_ups: list[Exception] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def client(self) -> None:
        while not self.over.is_set():
            try:
                with self.sandbox.connect() as client:
                    self.use(client)
            except smtplib.SMTPResponseException as error:
                self.refused.append(Answer(error.smtp_code, "", str(error.smtp_error)))
            except (smtplib.SMTPException, OSError) as error:
                self.hang_ups.append(error)
            self.over.wait(PAUSE_S)

    def use(self, client: smtplib.SMTP) -> None:
        reply = log_in(client, self.sandbox["SANDBOX_API_KEY"])
        if reply.code != 235:
            self.refused.append(reply)
            return
        with self.lock:
            self.connections += 1
        good = True
        while (good or self.stays) and not self.over.is_set():
            good = self.send(client)
            self.over.wait(PAUSE_S)

    def send(self, client: smtplib.SMTP) -> bool:
        """Make one try, under a Message-ID of its own."""
        message_id = f"<{unique()}@sandbox.test>"
        self.tried.append(message_id)
        reply = submit(client, b"Message-ID: " + message_id.encode() + b"\r\n" + MAIL)
        if reply.code != 250:
            self.refused.append(reply)
            return False
        self.taken.append(message_id)
        return True

    def await_taken(self, more: int) -> None:
        enough = len(self.taken) + more
        await_true(lambda: len(self.taken) >= enough, lambda: self.refused[-CLIENTS:])

    def await_refused(self, more: int) -> None:
        enough = len(self.refused) + more
        await_true(lambda: len(self.refused) >= enough, "more are refused")

    def moment(self) -> None:
        """Let a random time pass in which mail flows."""
        self.await_taken(CLIENTS)
        time.sleep(random.uniform(0, LONGEST_MOMENT_S))

    @property
    def codes(self) -> set[tuple[int, str]]:
        return {reply.codes for reply in self.refused}


@contextmanager
def load(sandbox: Sandbox, *, stays: bool = False) -> Iterator[Load]:
    """Let the clients send while the body of the `with` does harm."""
    running = Load(sandbox, stays)
    threads = [threading.Thread(target=running.client) for _ in range(CLIENTS)]
    for thread in threads:
        thread.start()
    try:
        running.await_taken(CLIENTS)
        yield running
        running.await_taken(CLIENTS * 2)
    finally:
        running.over.set()
        for thread in threads:
            thread.join()


# ---------------------------------------------------------------------- what must hold afterwards


def assert_one_row_each(sandbox: Sandbox, done: Load) -> set[str]:
    """Compare what was told with what is stored, and return that."""
    query = "SELECT s.message_id FROM emails e LEFT JOIN opensend_milter.submissions s ON s.email_id = e.id"
    stored = Counter(message_id for (message_id,) in rows(sandbox, query))
    assert len(set(done.taken)) == len(done.taken)
    assert set(done.taken) - set(stored) == set(), "taken and not stored"
    assert [message_id for message_id, number in stored.items() if number != 1] == [], "stored twice"
    # A row without a 250 is a try whose answer was lost.
    assert set(stored) - set(done.tried) == set(), "stored and never sent"
    assert count(sandbox) == len(stored)
    return set(stored)


def assert_delivered_once(sandbox: Sandbox, stored: set[str]) -> None:
    """Wait for the worker; then the inbox has what is stored, no more and no less."""
    left = partial(rows, sandbox, "SELECT state, count(*) FROM opensend_milter.jobs GROUP BY state")
    await_true(lambda: not left(), left, pause_s=0.1)
    assert Counter(map(message_id_of, sandbox.inbox())) == Counter(stored)
    assert rows(sandbox, "SELECT status, count(*) FROM emails GROUP BY status") == [("sent", len(stored))]


def message_id_of(path: Path) -> str:
    (found,) = re.findall(rb"(?m)^Message-ID: ([^\r]*)\r$", path.read_bytes())
    return str(found, "ascii")


def assert_only_put_off(done: Load) -> None:
    """A fault of ours is 4xx, whoever says it."""
    assert [reply for reply in done.refused if not 400 <= reply.code < 500] == []


def assert_takes_the_next(sandbox: Sandbox, done: Load) -> None:
    with sandbox.connect() as client:
        await_login(sandbox, client)
        assert done.send(client), done.refused[-1]


# ---------------------------------------------------------------------- who is hit


def serve(sandbox: Sandbox, *, but: int = 0) -> int:
    """Return the process id of the supervisor, once it has one (another than `but`)."""

    def find() -> int | None:
        with suppress(StopIteration):
            pid = sandbox.pid("serve")
            return pid if pid != but else None
        return None

    return await_found(find, "a supervisor")


def children_of(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def hit_a_child(sandbox: Sandbox) -> None:
    child = random.choice(await_found(lambda: children_that_answer(sandbox) or None, "a child"))
    os.kill(child, signal.SIGKILL)


def hit_the_supervisor(sandbox: Sandbox) -> None:
    pid = serve(sandbox)
    os.kill(pid, signal.SIGKILL)
    serve(sandbox, but=pid)


def slow_commits(sandbox: Sandbox, seconds: float = COMMIT_S) -> None:
    """Let each message take its time at COMMIT, so that a random moment finds some there."""
    rows(
        sandbox,
        "CREATE FUNCTION public.take_time() RETURNS trigger LANGUAGE plpgsql AS"
        f" $$ BEGIN PERFORM pg_sleep({seconds}); RETURN NULL; END $$",
    )
    rows(
        sandbox,
        "CREATE CONSTRAINT TRIGGER slow AFTER INSERT ON opensend_milter.jobs DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION public.take_time()",
    )


# ---------------------------------------------------------------------- serve


@pytest.mark.case(55)
@pytest.mark.parametrize(("hit", "blows"), [(hit_a_child, 3 * BLOWS), (hit_the_supervisor, BLOWS)])
def test_killed_at_random_moments_nothing_is_lost_or_doubled(
    rough: Sandbox, hit: Callable[[Sandbox], None], blows: int
) -> None:
    slow_commits(rough)
    supervisor = serve(rough)
    with load(rough) as running:
        for _ in range(blows):
            running.moment()
            hit(rough)
    assert_takes_the_next(rough, running)
    assert_only_put_off(running)
    assert (serve(rough) == supervisor) == (hit is hit_a_child)
    assert_delivered_once(rough, assert_one_row_each(rough, running))


@pytest.mark.case(81)
def test_a_kept_connection_of_a_killed_child_is_closed_at_its_next_message(rough: Sandbox) -> None:
    """Postfix would put off all that comes on it, twenty times, while a new connection is of use at once."""
    said = len(rough.log("serve"))
    with rough.smtp() as kept:
        assert submit(kept, MAIL).code == 250
        pid = await_found(lambda: keeper_of(rough), "a keeper")
        await_true(lambda: sockets(pid) > 1, "the keeper has the connection")
        for child in children_that_answer(rough):
            os.kill(child, signal.SIGKILL)
        await_true(lambda: "are told to come again" in rough.log("serve")[said:], lambda: rough.log("serve")[said:])
        assert submit(kept, MAIL).codes == TOLD_TO_COME_AGAIN
        with pytest.raises(smtplib.SMTPServerDisconnected):
            kept.noop()
    with rough.smtp() as another:
        assert submit(another, MAIL).code == 250
    assert count(rough) == 2


def keeper_of(sandbox: Sandbox) -> int | None:
    return next((pid for pid in children_of(serve(sandbox)) if name_of(pid) == KEEPER), None)


def children_that_answer(sandbox: Sandbox) -> list[int]:
    return [pid for pid in children_of(serve(sandbox)) if name_of(pid) != KEEPER]


def name_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


def sockets(pid: int) -> int:
    return sum(str(entry.readlink()).startswith("socket:") for entry in Path(f"/proc/{pid}/fd").iterdir())


@pytest.mark.case(60)
def test_a_reload_under_load_is_noticed_by_nobody(rough: Sandbox) -> None:
    slow_commits(rough)
    before = rough.pids()
    with load(rough) as running:
        for _ in range(BLOWS):
            running.moment()
            reload(rough)
    assert running.refused == []
    assert running.hang_ups == []
    assert running.connections == CLIENTS
    assert rough.pids() == before
    assert_takes_the_next(rough, running)
    assert_delivered_once(rough, assert_one_row_each(rough, running))


def reload(sandbox: Sandbox) -> None:
    """Send SIGHUP, and wait until each of the two children has said that it has done it."""
    before = reloads(sandbox)
    os.kill(serve(sandbox), signal.SIGHUP)
    await_true(lambda: reloads(sandbox) == before + 2, "both reload")


def reloads(sandbox: Sandbox) -> int:
    return len(re.findall(r"(?m)\breloaded$", sandbox.log("serve")))


@pytest.mark.case(60)
def test_a_restart_under_load_loses_and_doubles_nothing(rough: Sandbox) -> None:
    said = len(rough.log("serve"))
    with load(rough) as running:
        for _ in range(BLOWS):
            running.moment()
            pid = serve(rough)
            os.kill(pid, signal.SIGTERM)
            serve(rough, but=pid)
    assert_takes_the_next(rough, running)
    assert_only_put_off(running)
    assert "Traceback" not in rough.log("serve")[said:]
    assert_delivered_once(rough, assert_one_row_each(rough, running))


@pytest.mark.case(60)
def test_an_orderly_stop_leaves_nobody_without_an_answer(rough: Sandbox) -> None:
    """Who is put off sends again: what was stored meanwhile would go out twice."""
    slow_commits(rough, 5 * COMMIT_S)
    with load(rough) as running:
        for _ in range(2):
            running.moment()
            pid = serve(rough)
            os.kill(pid, signal.SIGTERM)
            serve(rough, but=pid)
    assert_only_put_off(running)
    assert assert_one_row_each(rough, running) == set(running.taken)


# ---------------------------------------------------------------------- Postgres


@contextmanager
def postgres_stopped(sandbox: Sandbox, how: signal.Signals) -> Iterator[None]:
    """Take the database away; the keeper, who would start it at once, waits too."""
    pids = sandbox.pids()
    os.kill(pids["keeper"], signal.SIGSTOP)
    try:
        os.kill(pids["postgres"], how)
        # A zombie: its parent is stopped.
        await_true(lambda: ") Z " in Path(f"/proc/{pids['postgres']}/stat").read_text(), "Postgres has ended")
        yield
    finally:
        os.kill(pids["keeper"], signal.SIGCONT)
    sandbox.await_good()


@contextmanager
def postgres_hung(sandbox: Sandbox) -> Iterator[None]:
    """Stop all of its processes where they are."""
    server = sandbox.pids()["postgres"]
    os.kill(server, signal.SIGSTOP)  # from now on it makes no more of them
    everybody = [server, *children_of(server)]
    for pid in everybody:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in everybody:
            os.kill(pid, signal.SIGCONT)


def let_commits_last(sandbox: Sandbox) -> None:
    """Take back the one part of `--fast` that a crash of Postgres does not forgive."""
    rows(sandbox, "ALTER DATABASE opensend SET synchronous_commit = on")
    rows(
        sandbox,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE usename IN ('opensend_worker', 'opensend_milter')",
    )


def await_login(sandbox: Sandbox, client: smtplib.SMTP) -> None:
    """Try again what was put off, on the same connection."""

    def find() -> Answer | None:
        reply = log_in(client, sandbox["SANDBOX_API_KEY"])
        return None if reply.codes == NO_LOGIN else reply

    assert await_found(find, "a login").codes == LOGGED_IN


def ours(sandbox: Sandbox) -> dict[str, int]:
    found = sandbox.pids()
    return {name: found[name] for name in OURS}


@pytest.mark.case(56)
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["stopped", "crashed"])
def test_postgres_gone_under_load_puts_off_and_all_goes_on_by_itself(rough: Sandbox, how: signal.Signals) -> None:
    let_commits_last(rough)
    before = ours(rough)
    with rough.connect() as other, load(rough, stays=True) as running:
        with postgres_stopped(rough, how):
            running.await_refused(CLIENTS * 2)
            assert log_in(other, rough["SANDBOX_API_KEY"]).codes == NO_LOGIN
            taken = len(running.taken)
            running.await_refused(CLIENTS)
            assert len(running.taken) == taken
        running.await_taken(CLIENTS * 2)
        await_login(rough, other)
    assert running.codes == PUT_OFF
    assert running.hang_ups == []
    assert running.connections == CLIENTS, "each was of use before, meanwhile and afterwards"
    assert ours(rough) == before
    assert_takes_the_next(rough, running)
    assert_delivered_once(rough, assert_one_row_each(rough, running))


@pytest.mark.case(56)
def test_postgres_hung_under_load_is_451_while_it_hangs_and_all_goes_on_by_itself(rough: Sandbox) -> None:
    before = ours(rough)
    with impatient(rough), rough.connect() as other, load(rough, stays=True) as running:
        with postgres_hung(rough):
            running.await_refused(CLIENTS * 2)
            assert log_in(other, rough["SANDBOX_API_KEY"]).codes == NO_LOGIN
        running.await_taken(CLIENTS * 2)
        await_login(rough, other)
    assert running.codes == PUT_OFF
    assert running.hang_ups == []
    assert running.connections == CLIENTS
    assert ours(rough) == before
    assert_takes_the_next(rough, running)
    assert_delivered_once(rough, assert_one_row_each(rough, running))


def test_what_was_not_recorded_cannot_be_looked_up(rough: Sandbox) -> None:
    bad = b"From: a@unverified.test\r\n\r\nx\r\n"
    with rough.smtp() as client:
        with postgres_stopped(rough, signal.SIGINT):
            put_off = submit(client, bad)
        refused = await_found(lambda: reply if (reply := submit(client, bad)).code == 550 else None, "it is refused")
    assert put_off.codes in PUT_OFF
    assert put_off.text.endswith("try again later")
    assert f"{rough['SANDBOX_HTTP_URL']}/r/" in refused.text


@pytest.mark.case(56)
def test_the_first_login_after_a_restart_of_postgres_is_good(rough: Sandbox) -> None:
    key = rough["SANDBOX_API_KEY"]
    with ExitStack() as connections, ThreadPoolExecutor(LOGINS) as threads:
        clients = [connections.enter_context(rough.connect()) for _ in range(LOGINS)]
        # All at once, so that Dovecot opens all the connections to Postgres that it may.
        assert {reply.code for reply in threads.map(lambda client: log_in(client, key), clients)} == {235}
    with postgres_stopped(rough, signal.SIGINT):
        pass
    with rough.connect() as client:
        assert log_in(client, key).codes == LOGGED_IN


@contextmanager
def impatient(sandbox: Sandbox) -> Iterator[None]:
    """Make the milter wait for less long."""
    path = sandbox.directory / "opensend-milter.yaml"
    before = path.read_text()
    settings = yaml.safe_load(before)
    settings["milter"] |= {"soft_timeout_s": scaled_s(1), "hard_timeout_s": scaled_s(3)}
    path.write_text(yaml.safe_dump(settings))
    reload(sandbox)
    try:
        yield
    finally:
        path.write_text(before)
        reload(sandbox)
