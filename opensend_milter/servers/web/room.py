"""Room for requests and what they bring: so much in all, of which one key, or one client without one, has its part."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

from opensend_milter.core.model import KeyId
from opensend_milter.core.rates import client_of
from opensend_milter.servers.web.refusals import Refused

MOST_REQUESTS, MOST_MESSAGES = 200, 200
LARGE_BYTES = 262_144
"""A smaller body waits for nothing: all that there can be at once are no more than one of the largest."""
LARGEST_AT_ONCE = 4
"""So many of the largest bodies may be under way; of smaller ones, as many as are no more together."""
LONGEST_WAIT_S = 20.0
"""Then whoever waits for room is told so: sooner than clients give up by themselves."""
_OVER_ITS_PART = 429, "rate_limited", "too many requests of yours at once, try again later"
_CROWDED = 503, "unavailable", "too many requests at once, try again later"


@dataclass(frozen=True, slots=True, eq=False)
class _Wish:
    amount: int
    granted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Stock:
    """So much of one thing. Nobody holds more than his part; those who wait have some in turn, and none for ever."""

    def __init__(self, total: int, part: int) -> None:
        self.total, self.part = total, part
        self._held: Counter[str] = Counter()
        self._waiting: dict[str, deque[_Wish]] = {}
        """Whose turn is next comes first."""

    def take(self, who: str, amount: int = 1) -> None:
        """Take it now; raise where it is not there."""
        if not self._has(who, amount):
            raise self._refusal(who, amount)
        self._held[who] += amount

    def move(self, who: str, other: str) -> None:
        """Count one as another's; raise where he has his part."""
        if self._is_over(other, 1):
            raise self._refusal(other, 1)
        self._held[other] += 1
        self.give_back(who)

    async def wait_for(self, who: str, amount: int = 1) -> None:
        """Take it as soon as it is there; raise where that takes too long."""
        if not self._waiting and self._has(who, amount):
            self._held[who] += amount
            return
        wish = _Wish(amount)
        self._waiting.setdefault(who, deque()).append(wish)
        self._serve()
        try:
            async with asyncio.timeout(LONGEST_WAIT_S):
                await wish.granted
        except TimeoutError:
            self._withdraw(who, wish)
            raise self._refusal(who, amount) from None
        except asyncio.CancelledError:
            self._withdraw(who, wish)
            raise

    @asynccontextmanager
    async def one_for(self, who: str) -> AsyncIterator[None]:
        """Wait for one, and give it back at the end."""
        await self.wait_for(who)
        try:
            yield
        finally:
            self.give_back(who)

    def give_back(self, who: str, amount: int = 1) -> None:
        """Let others have it."""
        self._held[who] -= amount
        if not self._held[who]:
            del self._held[who]
        self._serve()

    def _withdraw(self, who: str, wish: _Wish) -> None:
        if wish.granted.cancelled():
            self._serve()
        else:  # granted in the same moment
            self.give_back(who, wish.amount)

    def _serve(self) -> None:
        while (who := self._next()) is not None:
            wishes = self._waiting.pop(who)
            wish = wishes.popleft()
            self._held[who] += wish.amount
            wish.granted.set_result(None)
            if wishes:
                self._waiting[who] = wishes

    def _next(self) -> str | None:
        """Return whose turn it is, None: nobody's. Who needs more than is left keeps it from those after him."""
        for who, wishes in [*self._waiting.items()]:
            while wishes and wishes[0].granted.cancelled():
                wishes.popleft()
            if not wishes:
                del self._waiting[who]
            elif self._has(who, wishes[0].amount):
                return who
            elif not self._is_over(who, wishes[0].amount):
                return None
        return None

    def _has(self, who: str, amount: int) -> bool:
        return not self._is_over(who, amount) and self._held.total() + amount <= self.total

    def _is_over(self, who: str, amount: int) -> bool:
        return self._held[who] + amount > self.part

    def _refusal(self, who: str, amount: int) -> Refused:
        status, code, text = _OVER_ITS_PART if self._is_over(who, amount) else _CROWDED
        return Refused(status, code, text, headers={"Retry-After": "1"})


class Room:
    """How much a process has in hand, whichever site it is for."""

    def __init__(self, max_body_bytes: int, share_percent: int = 100) -> None:
        self._share_percent = share_percent
        self.requests = Stock(MOST_REQUESTS, part_of(MOST_REQUESTS, share_percent))
        self.messages = Stock(MOST_MESSAGES, part_of(MOST_MESSAGES, share_percent))
        """Those that wait for our decision, of a bulk each for itself."""
        self.octets = Stock(0, 0)
        """Of large bodies, from when they begin to come until their messages are decided."""
        self.reading = Stock(1, 1)
        """What JSON becomes is many times its size, and keeps the interpreter busy: one body at a time."""
        self.fit(max_body_bytes)

    def fit(self, max_body_bytes: int) -> None:
        """Make room for bodies of another size; each alone always fits."""
        total = LARGEST_AT_ONCE * max_body_bytes
        self.octets.total, self.octets.part = total, max(part_of(total, self._share_percent), max_body_bytes)


class Visit:
    """What one request takes of the room: on the account of its client's address, until its key is known."""

    def __init__(self, room: Room, client_address: str) -> None:
        """Take its place; raise where there is none."""
        self.client_address = client_address
        self.has_key = False
        self._room = room
        self._who = f"client:{client_of(client_address)}"
        self._octets = 0
        self._has_left = False
        room.requests.take(self._who)

    def belongs_to(self, key_id: KeyId) -> None:
        """Go on on the account of the key; raise where it has its part."""
        who = f"key:{key_id}"
        self._room.requests.move(self._who, who)
        self._who, self.has_key = who, True

    async def expect(self, octets: int) -> None:
        """Wait for room for a large body, or for as much as one may have."""
        some = min(octets, self._room.octets.part)
        await self._room.octets.wait_for(self._who, some)
        self._octets = some

    def reading(self) -> AbstractAsyncContextManager[None]:
        """Wait for the turn to read what has come."""
        return self._room.reading.one_for(self._who)

    def deciding(self) -> AbstractAsyncContextManager[None]:
        """Wait for the turn to have a message decided."""
        return self._room.messages.one_for(self._who)

    def empty(self) -> None:
        """Make room for another large body: nothing of this one is left."""
        if self._octets:
            self._room.octets.give_back(self._who, self._octets)
        self._octets = 0

    def leave(self) -> None:
        """Make room for another request; whoever has left already does nothing more."""
        if not self._has_left:
            self._has_left = True
            self.empty()
            self._room.requests.give_back(self._who)


def part_of(total: int, share_percent: int) -> int:
    """Return how much of it one may hold: something, however little that is."""
    return max(total * share_percent // 100, 1)
