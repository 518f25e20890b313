"""Each disk full, slow, and hanging."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from tests.chaos.disk import Disk
from tests.chaos.faults.harm import Harm, state
from tests.chaos.stand import DISKS, NotRun, Stand

FROZEN_S, THAWED_S = 0.3, 0.1


def disk(stand: Stand, name: str) -> Disk:
    found = stand.disks.get(name, "this stand has no disks of its own")
    if isinstance(found, str):
        raise NotRun(found)
    return found


@contextmanager
def slow(one: Disk) -> Iterator[None]:
    """Let it write a quarter of the time."""
    over = threading.Event()

    def stutter() -> None:
        while not over.is_set():
            with one.frozen():
                over.wait(FROZEN_S)
            over.wait(THAWED_S)

    thread = threading.Thread(target=stutter, name="stutter", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def full(name: str) -> Harm:
    return state(lambda stand: disk(stand, name).full())


def stuttering(name: str) -> Harm:
    return state(lambda stand: slow(disk(stand, name)))


def hanging(name: str) -> Harm:
    def frozen(stand: Stand) -> AbstractContextManager[None]:
        return disk(stand, name).frozen()

    return state(frozen)


FAULTS: dict[str, Harm] = {
    **{f"disk-full-{name}": full(name) for name in DISKS},
    **{f"disk-slow-{name}": stuttering(name) for name in DISKS},
    **{f"disk-hangs-{name}": hanging(name) for name in DISKS},
}
