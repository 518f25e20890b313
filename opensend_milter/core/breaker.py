"""Leaves a courier alone whose next hop is out, so that one message finds out and not all of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from opensend_milter.core import counting
from opensend_milter.core.couriers import CourierName

OUTAGES = 3
"""In a row: a single one may be bad luck."""
FIRST_PAUSE_S, LONGEST_PAUSE_S = 5.0, 120.0
TRIAL_S = 5.0
"""While one message tries, the others wait."""


@dataclass(slots=True)
class _State:
    outages: int = 0
    until: float = 0.0
    is_tried: bool = False
    """A message is finding out whether it is back."""


@dataclass(slots=True)
class Breaker:
    """For all threads of a process."""

    clock: Callable[[], float]
    _states: dict[CourierName, _State] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def allows(self, courier: CourierName) -> bool:
        """Tell whether a message may be tried now; after a pause, only the first who asks may."""
        with self._lock:
            state = self._states.get(courier)
            if state is None or not state.until:
                return True
            if self.clock() < state.until:
                return False
            state.until = self.clock() + TRIAL_S
            state.is_tried = True
            return True

    @property
    def is_open(self) -> bool:
        """Tell whether any courier is left alone now."""
        with self._lock:
            return any(self.clock() < state.until for state in self._states.values())

    def note_answer(self, courier: CourierName) -> None:
        """Note that the next hop is there, whatever it said of this message."""
        with self._lock:
            if self._states.pop(courier, None):
                counting.courier_paused(courier, is_paused=False)

    def note_outage(self, courier: CourierName, asked_s: float | None = None) -> float:
        """Note that it is not, or asked all of us to wait; return for how long the courier is left alone."""
        with self._lock:
            state = self._states.setdefault(courier, _State())
            if self.clock() < state.until and not state.is_tried:
                return 0.0  # somebody who began at the same time was faster to say so
            state.is_tried = False
            state.outages += 1
            pause_s = min(asked_s, LONGEST_PAUSE_S) if asked_s else 0.0
            if state.outages >= OUTAGES:
                doublings = min(state.outages - OUTAGES, 10)
                pause_s = max(pause_s, min(FIRST_PAUSE_S * 2**doublings, LONGEST_PAUSE_S))
            state.until = self.clock() + pause_s if pause_s else 0.0
            counting.courier_paused(courier, is_paused=bool(pause_s))
            return pause_s
