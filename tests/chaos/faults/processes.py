"""Each process killed, and stopped for a while: ours, those in front of us and those behind."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random

from tests.acceptance.test_faults import children_of
from tests.chaos.faults.harm import Blow, Harm, once, struck
from tests.chaos.stand import OURS, Stand
from tests.waiting import await_found

Who = Callable[[Stand, Random], int]


def program(name: str) -> Who:
    """Find a program that the keeper has started."""

    def find(stand: Stand, _: Random) -> int:
        return stand.pid(name)

    return find


def child(of: str, command: str = "") -> Who:
    """Find one of a program's children."""

    def find(stand: Stand, chance: Random) -> int:
        def children() -> list[int] | None:
            with suppress(FileNotFoundError, ProcessLookupError):
                return sorted(pid for pid in children_of(stand.pid(of)) if command in command_of(pid)) or None
            return None

        return chance.choice(await_found(children, f"{of} has a child {command}"))

    return find


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/comm").read_text().strip()


PROCESSES: dict[str, Who] = {
    "serve": program("serve"),
    "serve-child": child("serve"),
    "worker": program("worker"),
    "http": program("http"),
    "gate": program("auth-gate"),
    "dovecot": program("dovecot"),
    "dovecot-auth": child("dovecot", "auth"),
    "smtpd": child("postfix", "smtpd"),
    "cleanup": child("postfix", "cleanup"),
    "postfix": program("postfix"),
}


def killed(who: Who) -> Harm:
    return struck(lambda stand, chance: send(who(stand, chance), signal.SIGKILL))


def stopped(who: Who) -> Harm:
    """It neither works nor dies."""

    @contextmanager
    def harm(stand: Stand, chance: Random) -> Iterator[Blow]:
        pid = who(stand, chance)
        send(pid, signal.SIGSTOP)
        try:
            yield once
        finally:
            send(pid, signal.SIGCONT)

    return harm


def send(pid: int, number: signal.Signals) -> None:
    """Signal somebody who may just have ended."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def ended(name: str) -> Harm:
    """End it in order, as a restart by systemd does."""
    return struck(lambda stand, _: send(stand.pid(name), signal.SIGTERM))


def all_at_once(stand: Stand, _: Random) -> None:
    for pid in [stand.pid(name) for name in OURS]:
        send(pid, signal.SIGKILL)


FAULTS: dict[str, Harm] = {
    **{f"{name}-killed": killed(who) for name, who in PROCESSES.items()},
    **{f"{name}-stopped": stopped(who) for name, who in PROCESSES.items()},
    **{f"{name}-restarted": ended(name) for name in ("serve", "http", "worker")},
    "all-of-ours-killed": struck(all_at_once),
}
