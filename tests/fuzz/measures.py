"""What reading some octets may cost, and that what was read can be sent on."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from tests.linear import lines_run

LINES_AN_OCTET = 120
LINES_OF_ANY = 2_000
MEMORY_AN_OCTET = 400
"""A token, or a value of JSON, is an object of Python."""
MEMORY_OF_ANY = 2_000_000
MOST_COUNTED = 8_000
"""Octets: in longer ones it would take longest where there is least to be seen."""

Check = Callable[[bytes], float]
"""Raises where something does not hold; returns what to look for more of."""


class TooMuchError(AssertionError):
    """It took more than any input of that length may take."""


@contextmanager
def in_little_memory(octets: bytes) -> Iterator[None]:
    """Raise TooMuchError where what is done meanwhile takes more memory than its input may."""
    tracemalloc.start()
    try:
        yield
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    if peak > MEMORY_AN_OCTET * len(octets) + MEMORY_OF_ANY:
        raise TooMuchError(f"{peak} octets of memory for {len(octets)}")


def counted(octets: bytes, work: Callable[[], object]) -> float:
    """Run it, then count its lines; return how many there are for an octet."""
    with in_little_memory(octets):
        work()
    if len(octets) > MOST_COUNTED:
        return 0.0
    lines = lines_run(work)
    if lines > LINES_AN_OCTET * len(octets) + LINES_OF_ANY:
        raise TooMuchError(f"{lines} lines for {len(octets)} octets")
    return max(lines - LINES_OF_ANY, 0) / (len(octets) + 1)


def sound(texts: Iterable[str]) -> None:
    """See that each can be written as UTF-8: it raises otherwise."""
    for text in texts:
        text.encode()
