"""What reading one message may cost: steps that are the same on every machine, and a clock as the last net."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, Self, get_args

Where = Literal["fields", "addresses", "words", "parts", "parameters"]
PLACES: tuple[Where, ...] = get_args(Where)
OCTETS_A_STEP = 1_024
"""A step is one turn of a loop, or so many octets that one expression or codec goes over: about a microsecond."""
_LEAST = 50_000
_STEPS_AN_OCTET = 2
"""For as many octets as header sections have; five times what a list of short addresses needs."""
_HEADER_OCTETS = 500_000
_OCTETS_A_STEP_BEYOND = 16
_LOOKS_AT_THE_CLOCK = 2_000
"""Steps from one look to the next."""


class OverBudgetError(Exception):
    """Reading has cost more than any honest message of this size needs."""

    def __init__(self, where: Where) -> None:
        super().__init__(where)
        self.where = where


class OutOfTimeError(Exception):
    """Reading took too long, which may be this machine's doing: nothing is said of the message."""


class Budget:
    """How many steps a message may cost that is being read, and when whoever waits for it gives up."""

    __slots__ = ("_clock", "_deadline", "_look_at", "exhausted_in", "steps", "used")

    def __init__(
        self, steps: int, *, deadline: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.steps = steps
        self.used = 0
        self.exhausted_in: Where | None = None
        self._deadline = deadline
        self._clock = clock
        self._look_at = _LOOKS_AT_THE_CLOCK

    @classmethod
    def of(cls, octets: int, *, deadline: float | None = None) -> Self:
        """Return what a message of that size may cost."""
        steps = _LEAST + _STEPS_AN_OCTET * min(octets, _HEADER_OCTETS) + octets // _OCTETS_A_STEP_BEYOND
        return cls(steps, deadline=deadline)

    def spend(self, steps: int, where: Where) -> None:
        """Note what is about to be done.

        Raise OverBudgetError where there are no steps left for it, OutOfTimeError where there is no time left.
        """
        self.used += steps
        if self.used > self.steps:
            self.exhausted_in = where
            raise OverBudgetError(where)
        if self.used >= self._look_at and self._deadline is not None:
            self._look_at = self.used + _LOOKS_AT_THE_CLOCK
            if self._clock() > self._deadline:
                raise OutOfTimeError
