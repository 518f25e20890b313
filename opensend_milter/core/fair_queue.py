"""A queue in which all take turns: who hands in many waits for himself, not the others for him."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """Holds things in the order in which they came, of each owner; owners take turns. Used like a SimpleQueue."""

    def __init__(self, owner: Callable[[Item], Hashable]) -> None:
        self._owner = owner
        self._waiting: dict[Hashable, deque[Item]] = {}
        """By owner; whose turn is next stands first."""
        self._size = 0
        self._ended = False
        self._changed = threading.Condition()

    def put(self, item: Item | None) -> None:
        """Add one; None is the end, behind all others."""
        with self._changed:
            if item is None:
                self._ended = True
            else:
                self._waiting.setdefault(self._owner(item), deque()).append(item)
                self._size += 1
            self._changed.notify()

    def get(self, timeout: float | None = None) -> Item | None:
        """Take the next one, None at the end; raise queue.Empty where there is none for so long."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._size or self._ended, timeout):
                raise queue.Empty
            if not self._size:
                return None
            owner, items = next(iter(self._waiting.items()))
            item = items.popleft()
            self._size -= 1
            del self._waiting[owner]
            if items:
                self._waiting[owner] = items
            return item

    def qsize(self) -> int:
        """Return how many wait."""
        return self._size

    def empty(self) -> bool:
        """Tell whether none does."""
        return not self._size
