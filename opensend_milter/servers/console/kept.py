"""An answer that many look at: however many those are, the database is asked as often as for one."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from anyio import CapacityLimiter, to_thread

T = TypeVar("T")
GOOD_FOR_S = 5.0
SHARE = 20
"""Counting millions takes its time: never more than this part of the database's."""


@dataclass(slots=True, weakref_slot=True)
class Kept(Generic[T]):
    """What was asked for lately; one asks for it anew, and others wait for that."""

    ask: Callable[[], T]
    clock: Callable[[], float] = time.monotonic
    alike: Callable[[], int] = lambda: 1
    """How many of its kind there are, who share its part of the database's time."""
    threads: CapacityLimiter | None = None
    _turn: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))
    _found: tuple[float, T] | None = None

    async def get(self, *, anew: bool = False) -> T:
        """Return it; `anew`: as it is now, which others have from then on."""
        async with self._turn:
            if anew or self._found is None or self.clock() >= self._found[0]:
                began = self.clock()
                found = await to_thread.run_sync(self.ask, limiter=self.threads)
                ended = self.clock()
                self._found = ended + max(GOOD_FOR_S, (ended - began) * SHARE * self.alike()), found
            return self._found[1]
