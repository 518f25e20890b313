"""The clock of one program jumps, forward and back, while it works and while all others keep time."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from random import Random

from tests.chaos.clock import Clock
from tests.chaos.faults.harm import Blow, Harm
from tests.chaos.stand import Stand

HOUR, DAY = 3_600, 86_400
NEAR = (7, -7, HOUR, -HOUR)
FAR = (*NEAR, DAY + HOUR, -DAY - HOUR, 400 * DAY)
"""Beyond the day for which the names of messages are kept."""


def jumping(name: str, jumps: Sequence[int] = FAR, stopped_by: signal.Signals = signal.SIGTERM) -> Harm:
    """Let a program's clock jump at each blow, and at the end to the time that it is."""

    @contextmanager
    def harm(stand: Stand, chance: Random) -> Iterator[Blow]:
        clock = Clock.made(stand.directory)
        # Until all are served: what waits by a clock hangs when it is set back, and a new process would hide that.
        stand.until_whole.enter_context(stand.instead(name, stopped_by, clock.environment))

        def blow() -> None:
            clock.jump(chance.choice(jumps))

        blow()
        try:
            yield blow
        finally:
            clock.jump(0)

    return harm


FAULTS: dict[str, Harm] = {
    **{f"clock-jumps-{name}": jumping(name) for name in ("serve", "worker", "http", "auth-gate")},
    # By whose clock names end: a day later what is sent again is another message, as promised.
    "clock-jumps-postgres": jumping("postgres", NEAR, signal.SIGINT),
}
