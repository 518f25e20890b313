"""A child of serve dies: whoever it answered is told 421, and hears so at the next message."""

from __future__ import annotations

import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from opensend_milter.servers.orphans import NAME as KEEPER
from tests.integration.private_postgres import Cluster, Database
from tests.integration.serving import Serving, serving
from tests.milter_client import Answer
from tests.waiting import await_found, await_true

MAIL = b"From: app@example.org\r\nTo: to@example.net\r\nSubject: hi\r\n\r\nhello\r\n"
TAKEN = Answer("d")


def keeper(served: Serving, *, but: int = 0) -> int:
    """Return the process id of the one that keeps connections."""

    def find() -> int | None:
        for task in Path(f"/proc/{served.process.pid}/task/{served.process.pid}/children").read_text().split():
            if int(task) != but and Path(f"/proc/{task}/comm").read_text().strip() == KEEPER:
                return int(task)
        return None

    return await_found(find, "a keeper")


def held(pid: int) -> int:
    """Count the sockets of a process."""
    return sum(kind.startswith("socket:") for kind in descriptors(pid))


def descriptors(pid: int) -> list[str]:
    """Return what a process holds, in order."""
    found = []
    for entry in sorted(Path(f"/proc/{pid}/fd").iterdir(), key=lambda entry: int(entry.name)):
        with suppress(FileNotFoundError):  # closed meanwhile
            found.append(str(entry.readlink()))
    return found


def await_held(pid: int, number: int) -> None:
    """Wait until it has so many connections, beside the socket by which it is told of them."""
    await_true(lambda: held(pid) == number + 1, lambda: f"{number} connections; there are {held(pid) - 1}")


def kill_children(served: Serving) -> None:
    for pid in served.children():
        os.kill(pid, signal.SIGKILL)


def told_in(log: str) -> int:
    """Return how many the log says were told."""
    return sum(map(int, re.findall(r"is gone: (\d+) connections", log)))


def assert_is_told_to_come_again(answer: Answer) -> None:
    assert (answer.command, answer.text[:9]) == ("y", "421 4.3.0"), answer


@pytest.mark.case(81)
def test_a_kept_connection_of_a_killed_child_is_told_to_come_again(database: Database) -> None:
    with serving(database.url, database.password_dir) as served, served.client() as kept, served.client() as idle:
        assert kept.message(served.key, MAIL) == TAKEN
        await_held(keeper(served), 2)
        kill_children(served)
        await_true(lambda: told_in(served.log) == 2, lambda: served.log)
        assert_is_told_to_come_again(kept.message(served.key, MAIL))
        assert_is_told_to_come_again(idle.message(served.key, MAIL * 20_000))
        with served.client() as another:
            assert another.message(served.key, MAIL) == TAKEN
        assert served.counts()[0] == 2
        kept.socket.close()
        idle.socket.close()
        await_held(keeper(served), 0)


@pytest.mark.case(81)
def test_who_waits_for_an_answer_hears_it_when_the_child_dies(cluster: Cluster, database: Database) -> None:
    with serving(database.url, database.password_dir) as served, served.client() as client:
        await_held(keeper(served), 1)
        cluster.pause()
        with ThreadPoolExecutor() as threads:
            answer = threads.submit(client.message, served.key, MAIL)
            await_true(cluster.is_asked, "the message is in hand")
            kill_children(served)
            assert_is_told_to_come_again(answer.result())
        cluster.resume()


def test_a_connection_that_ends_is_let_go_whoever_ends_it(database: Database) -> None:
    with serving(database.url, database.password_dir) as served:
        pid = keeper(served)
        with served.client() as ends, served.client() as is_ended:
            await_held(pid, 2)
            ends.socket.close()
            await_held(pid, 1)
            # No packet of a milter's is as long: libmilter hangs up, and its word is heard.
            is_ended.socket.sendall(b"\xff\xff\xff\xffM")
            assert is_ended.receive() == (b"", b"")
            await_held(pid, 0)


def test_without_its_keeper_serve_goes_on_and_gets_another(database: Database) -> None:
    with serving(database.url, database.password_dir) as served, served.client() as before:
        first = keeper(served)
        await_held(first, 1)
        os.kill(first, signal.SIGKILL)
        second = keeper(served, but=first)
        assert before.message(served.key, MAIL) == TAKEN
        with served.client() as after:
            await_held(second, 1)
            kill_children(served)
            assert_is_told_to_come_again(after.message(served.key, MAIL))


def test_the_keeper_holds_nothing_else_and_ends_with_serve(database: Database) -> None:
    with serving(database.url, database.password_dir) as served:
        pid = keeper(served)
        with served.client():
            await_held(pid, 1)
        kinds = descriptors(pid)
        assert {re.sub(r"\d+", "", kind) for kind in kinds[3:]} <= {
            "socket:[]",
            "anon_inode:[eventpoll]",
            "anon_inode:[pidfd]",
            "pidfd:[]",
        }
        assert served.stop() == 0
        assert not Path(f"/proc/{pid}").exists()


def test_the_last_who_is_told_outlives_serve_itself(database: Database) -> None:
    """A supervisor that is killed takes its children with it: they drain; what they leave behind is told, too."""
    with serving(database.url, database.password_dir) as served, served.client() as kept:
        pid = keeper(served)
        await_held(pid, 1)
        children = served.children()
        served.process.kill()
        served.process.wait()
        await_true(lambda: not any(Path(f"/proc/{child}").exists() for child in children), "its children have ended")
        assert_is_told_to_come_again(kept.message(served.key, MAIL))
        kept.socket.close()
        await_true(lambda: not Path(f"/proc/{pid}").exists(), "the keeper has ended")
