"""What decides on messages, replaced while they come: the old one is let go when nobody waits for its answer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from opensend_milter.core.model import Message, Outcome

Accept = Callable[[Message], Outcome]


@dataclass(eq=False, slots=True)
class Deciding:
    """What messages are handed to, and how to close it."""

    accept: Accept
    close: Callable[[], None]
    inside: int = 0
    """Messages that wait for their outcome."""
    left: threading.Event = field(default_factory=threading.Event)
    """Set once it has a successor and the last of them is gone."""


class Succession:
    """Hands each message to the one that is in charge when it comes."""

    def __init__(self, first: Deciding) -> None:
        self._in_charge = first
        self._lock = threading.Lock()
        self._closing: list[threading.Thread] = []

    def accept(self, message: Message) -> Outcome:
        """Wait for the outcome of one message."""
        with self._lock:
            deciding = self._in_charge
            deciding.inside += 1
        try:
            return deciding.accept(message)
        finally:
            with self._lock:
                deciding.inside -= 1
                self._note_if_left(deciding)

    def replace(self, successor: Deciding) -> None:
        """Hand what comes from now on to another one."""
        with self._lock:
            before, self._in_charge = self._in_charge, successor
            self._note_if_left(before)
        closing = threading.Thread(target=_close, args=(before,), name="opensend-closing", daemon=True)
        closing.start()
        self._closing = [*(one for one in self._closing if one.is_alive()), closing]

    def _note_if_left(self, deciding: Deciding) -> None:
        if not deciding.inside and deciding is not self._in_charge:
            deciding.left.set()

    def close(self) -> None:
        """Finish what was handed in, then let go."""
        self._in_charge.close()
        for closing in self._closing:
            closing.join()


def _close(deciding: Deciding) -> None:
    deciding.left.wait()
    deciding.close()
