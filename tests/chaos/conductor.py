"""Does harm while mail flows, one fault at a time, heals it, and waits until all clients are served again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from random import Random

from tests.chaos.faults import KINDS
from tests.chaos.ledger import Ledger, Window
from tests.chaos.stand import NotRun, Stand

ANSWERS = 100
"""During each fault, at least."""
FIRST_S, SHORT_S, LONG_S, AGAIN_S = (0.0, 1.5), (4.0, 6.0), (20.0, 30.0), (2.0, 4.0)
"""Between which seconds chance chooses: mail flows before a fault, it lasts, and is repeated."""
LONG_EVERY = 5
DEAF_S = 8.0
"""For how much longer the answers are waited for, where nobody hears anything."""
WHOLE_AT_MOST_S = 180.0


def schedule(kinds: Sequence[str], seed: int) -> Iterator[str]:
    """Yield faults for ever: all kinds in a random order, then all of them in another."""
    chance = Random(seed)
    while True:
        yield from chance.sample(kinds, len(kinds))


@dataclass(slots=True)
class Conductor:
    """Plays faults on a stand; each fifth is long."""

    stand: Stand
    ledger: Ledger
    seed: int
    say: Callable[[str], None]
    not_run: dict[str, str] = field(default_factory=dict)
    """What cannot be done here, and why."""
    broken: dict[str, str] = field(default_factory=dict)
    """What could not be done or undone as it was meant, and what went wrong."""

    def kinds(self, wanted: Sequence[str]) -> Iterator[str]:
        """Yield those that can be done, for as long as there are any."""
        for kind in schedule(wanted, self.seed):
            if len(self.not_run) == len(wanted):
                return
            if kind not in self.not_run:
                yield kind

    def play(self, kind: str) -> str:
        """Do one fault; return why it was not done, or not as it was meant; else nothing."""
        number = len(self.ledger.windows)
        chance = Random(f"{self.seed} {number} {kind}")
        time.sleep(chance.uniform(*FIRST_S))
        window = self.ledger.open(kind, is_long=number % LONG_EVERY == 0)
        try:
            with self._noting(kind), KINDS[kind](self.stand, chance) as again:
                self._hold(window, chance, again)
        except NotRun as reason:
            self.stand.until_whole.close()
            self.ledger.withdraw(window)
            self.not_run[kind] = str(reason)
            return f"not run: {reason}"
        healed_at = time.monotonic()
        window.whole_s = self.ledger.await_whole(healed_at, WHOLE_AT_MOST_S)
        if window.whole_s is None:
            self.say(f"not served again: {', '.join(self.ledger.not_whole(healed_at))}")
        self.ledger.await_true(lambda: window.answers >= ANSWERS, WHOLE_AT_MOST_S)
        with self._noting(kind):
            self.stand.until_whole.close()
        # Or who was served by what has ended would be refused in the next one's time.
        self.ledger.await_whole(time.monotonic(), WHOLE_AT_MOST_S)
        self.stand.forget()
        return f"broken: {self.broken[kind]}" if kind in self.broken else ""

    @contextmanager
    def _noting(self, kind: str) -> Iterator[None]:
        """Go on after what goes wrong: of a run of an hour, all that was counted is to be told."""
        try:
            yield
        except NotRun:
            raise
        except Exception as error:  # noqa: BLE001
            self.broken[kind] = f"{type(error).__name__}: {error}"

    def _hold(self, window: Window, chance: Random, again: Callable[[], None]) -> None:
        """Let it last for its time and for as long as the answers take; what is a blow is dealt again."""
        left_s = chance.uniform(*(LONG_S if window.is_long else SHORT_S))
        while left_s > 0:
            pause_s = min(chance.uniform(*AGAIN_S), left_s)
            time.sleep(pause_s)
            left_s -= pause_s
            if window.is_long:
                again()
        self.ledger.await_true(lambda: window.answers >= ANSWERS, DEAF_S)
