"""The form of a fault: something that is done to a stand and undone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from random import Random
from typing import TypeVar

from tests.chaos.stand import NotRun, Stand

Blow = Callable[[], None]
"""Does it once more, while it lasts."""
Harm = Callable[[Stand, Random], AbstractContextManager[Blow]]
Part = TypeVar("Part")


def once() -> None:
    """Stand for the blow of a fault that lasts by itself."""


def struck(blow: Callable[[Stand, Random], None]) -> Harm:
    """Make a fault of a blow that needs no healing: the product gets up by itself."""

    @contextmanager
    def harm(stand: Stand, chance: Random) -> Iterator[Blow]:
        blow(stand, chance)
        yield lambda: blow(stand, chance)

    return harm


def state(change: Callable[[Stand], AbstractContextManager[object]]) -> Harm:
    """Make a fault of something that is so for a while."""

    @contextmanager
    def harm(stand: Stand, _: Random) -> Iterator[Blow]:
        with change(stand):
            yield once

    return harm


def needed(part: Part | None, what: str) -> Part:
    """Return a part of the stand; raise NotRun where it has none."""
    if not part:
        raise NotRun(f"this stand has no {what}")
    return part
