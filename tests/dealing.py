"""The order of the tests: what takes long begins early, what waits runs beside what computes, the ends are small."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
from typing import Generic, TypeVar

Test = TypeVar("Test")
SANDBOXED = "acceptance"
"""Whoever runs some of these makes a sandbox."""
LIGHT = frozenset({"unit", "fuzz", "upgrade"})
"""These start nothing, and none takes long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Module(Generic[Test]):
    """The tests of one file; they share what they start, so they stay together."""

    folder: str
    tests: Sequence[Test]
    is_long: bool = False


def dealt(modules: Iterable[Module[Test]], processes: int) -> list[Test]:
    """Return all tests as they are best run by so many processes.

    Of a list xdist gives each process a slice, and whoever has done his takes over half of what is left of another's.
    So half of the slices begin with what needs a sandbox, the others with what starts servers, and each ends with what
    is light: there is always somebody who computes while others wait, and no slice is cut where it is dear.
    """
    slices: list[list[Test]] = [[] for _ in range(processes)]
    half = max(processes // 2, 1)
    sandboxed, others = cycle(slices[:half]), cycle(slices[half:] or slices)
    light: list[Test] = []
    for module in sorted(modules, key=lambda module: not module.is_long):
        if module.folder in LIGHT:
            light += module.tests
        else:
            next(sandboxed if module.folder == SANDBOXED else others).extend(module.tests)
    left, waiting = iter(light), sum(map(len, slices)) + len(light)
    for number, one in enumerate(slices):
        size = waiting // (processes - number)  # as xdist cuts it
        waiting -= size
        one.extend(islice(left, max(size - len(one), 0)))
    return [*chain(*slices)]
