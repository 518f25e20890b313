"""Two hosts on one database and queue, and what becomes of the second one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from random import Random

from tests.chaos.faults.harm import Blow, Harm, once
from tests.chaos.second_host import SecondHost, second_host
from tests.chaos.stand import Stand


def second(change: Callable[[SecondHost], AbstractContextManager[object]]) -> Harm:
    """Make a fault of something that a second host suffers while both take mail."""

    @contextmanager
    def harm(stand: Stand, _: Random) -> Iterator[Blow]:
        host = stand.until_whole.enter_context(second_host(stand))
        with change(host):
            yield once

    return harm


@contextmanager
def half_open(host: SecondHost) -> Iterator[None]:
    """Let open connections go dead on both sides; new ones are good."""
    host.wire.move()
    yield


@contextmanager
def killed(host: SecondHost) -> Iterator[None]:
    """Let it lose its power, and come back."""
    host.lose_power()
    yield
    host.start()


FAULTS: dict[str, Harm] = {
    "two-hosts": second(nullcontext),
    "second-host-cut": second(lambda host: host.wire.pulled()),
    "second-host-half-open": second(half_open),
    "second-host-slow": second(lambda host: host.wire.slow()),
    "second-host-killed": second(killed),
}
