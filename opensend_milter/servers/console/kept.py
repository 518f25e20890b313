"""An answer that many look at: however many those are, the database is asked as often as for one."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from anyio import CapacityLimiter, to_thread

T = TypeVar("T")
GOOD_FOR_S = 4.0
"""Less than the time after which a live page looks again."""
SHARE = 20
"""Counting millions takes its time: never more than this part of the database's."""


@dataclass(slots=True, weakref_slot=True)
class Kept(Generic[T]):
    """What was asked for lately; one asks for it anew, and others wait for that."""

    ask: Callable[[], T]
    clock: Callable[[], float] = time.monotonic
    good_for_s: float = GOOD_FOR_S
    share: Callable[[], int] = lambda: SHARE
    """More where there are others of its kind, who have that part of the database's time together."""
    threads: CapacityLimiter | None = None
    _turn: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))
    _begun: int = 0
    _answered: int = 0
    """Which of those that were begun the last answer is of."""
    _last: Future[T] = field(default_factory=Future)
    _good_until: float = -math.inf

    async def get(self, *, anew: bool = False) -> T:
        """Return it; `anew`: as it is now, which others have from then on."""
        before = self._begun
        async with self._turn:
            # What was begun after one came is new enough, and an outage is not waited for again.
            if self._answered <= before and (anew or self.clock() >= self._good_until):
                await self._ask()
            return self._last.result()

    async def _ask(self) -> None:
        self._begun += 1
        number, last = self._begun, Future[T]()
        began = self.clock()
        try:
            last.set_result(await to_thread.run_sync(self.ask, limiter=self.threads))
            ended = self.clock()
            self._good_until = ended + max(self.good_for_s, (ended - began) * self.share())
        except Exception as error:  # noqa: BLE001  # whoever waits is told
            last.set_exception(error)
            self._good_until = -math.inf
        self._answered, self._last = number, last
