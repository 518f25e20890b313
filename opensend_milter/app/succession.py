"""What decides on messages, replaced while they come: the old one is let go when nobody waits for its answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

T = TypeVar("T")
Decided = TypeVar("Decided")


@dataclass(eq=False, slots=True)
class Deciding(Generic[T, Decided]):
    """What messages are handed to, and how to close it."""

    accept: Callable[[T], Decided]
    close: Callable[[], None]
    inside: int = 0
    """Messages that wait for their outcome."""
    left: threading.Event = field(default_factory=threading.Event)
    """Set once it has a successor and the last of them is gone."""


class Succession(Generic[T, Decided]):
    """Hands each message, or lot of them, to the one that is in charge when it comes."""

    def __init__(self, first: Deciding[T, Decided]) -> None:
        self._in_charge = first
        self._lock = threading.Lock()
        self._closing: list[threading.Thread] = []

    def accept(self, asked: T) -> Decided:
        """Wait for what becomes of it."""
        with self._lock:
            deciding = self._in_charge
            deciding.inside += 1
        try:
            return deciding.accept(asked)
        finally:
            with self._lock:
                deciding.inside -= 1
                self._note_if_left(deciding)

    def replace(self, successor: Deciding[T, Decided]) -> None:
        """Hand what comes from now on to another one."""
        with self._lock:
            before, self._in_charge = self._in_charge, successor
            self._note_if_left(before)
        closing = threading.Thread(target=_close, args=(before,), name="opensend-closing", daemon=True)
        closing.start()
        self._closing = [*(one for one in self._closing if one.is_alive()), closing]

    def _note_if_left(self, deciding: Deciding[T, Decided]) -> None:
        if not deciding.inside and deciding is not self._in_charge:
            deciding.left.set()

    def close(self) -> None:
        """Finish what was handed in, then let go."""
        self._in_charge.close()
        for closing in self._closing:
            closing.join()


def _close(deciding: Deciding[T, Decided]) -> None:
    deciding.left.wait()
    deciding.close()
