"""The page of what goes on: how much comes in and goes out, what waits and why, what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from opensend_milter.core.visitors import Visitor
from opensend_milter.servers.console.entrance import Entrance
from opensend_milter.servers.console.kept import Kept
from opensend_milter.servers.console.live import Places, live

REFRESH_S = 15


class Lane(Protocol):
    """What waits to be delivered of one user by one courier."""

    @property
    def user_id(self) -> str: ...

    @property
    def courier(self) -> str | None: ...

    @property
    def waiting(self) -> int: ...

    @property
    def uncertain(self) -> int: ...

    @property
    def due_for(self) -> timedelta | None: ...


class PutOff(Protocol):
    """Why so many messages of a courier wait for another attempt."""

    @property
    def courier(self) -> str: ...

    @property
    def reason(self) -> str: ...

    @property
    def messages(self) -> int: ...

    @property
    def next_at(self) -> datetime: ...


class Sent(Protocol):
    """What next hops took lately, and how long that was after it could be sent."""

    @property
    def last_minute(self) -> int: ...

    @property
    def last_hour(self) -> int: ...

    @property
    def usual_delay(self) -> timedelta | None: ...

    @property
    def longest_delay(self) -> timedelta | None: ...


class Examined(Protocol):
    """A host whose doctor has looked."""

    @property
    def host(self) -> str: ...

    @property
    def age(self) -> timedelta: ...

    @property
    def is_old(self) -> bool: ...

    @property
    def good(self) -> int: ...

    @property
    def skipped(self) -> int: ...


class Fault(Protocol):
    """What was wrong on a host."""

    @property
    def host(self) -> str: ...

    @property
    def name(self) -> str: ...

    @property
    def result(self) -> str: ...

    @property
    def seen(self) -> str: ...

    @property
    def mend(self) -> str: ...


class Flow(Protocol):
    """What goes on."""

    @property
    def taken_last_minute(self) -> int: ...

    @property
    def taken_last_hour(self) -> int: ...

    @property
    def sent(self) -> Sent: ...

    @property
    def states(self) -> Sequence[tuple[str, int]]:
        """How messages of the last hour fare."""
        ...

    @property
    def refusals(self) -> Sequence[tuple[str, int]]:
        """How many each rule has refused in the last hour."""
        ...

    @property
    def lanes(self) -> Sequence[Lane]: ...

    @property
    def put_off(self) -> Sequence[PutOff]: ...

    @property
    def workers(self) -> int:
        """Connections that they have."""
        ...

    @property
    def failing_webhooks(self) -> int: ...

    @property
    def examined(self) -> Sequence[Examined]: ...

    @property
    def faults(self) -> Sequence[Fault]: ...

    @property
    def at(self) -> datetime: ...


AskFlow = Callable[[], Flow]
"""Raises StoreUnavailable."""


@dataclass(slots=True, kw_only=True)
class NowPage:
    """It hears what is new; without script, or where there is no place for that, it is asked for again."""

    entrance: Entrance
    flow: AskFlow
    places: Places
    _part: Kept[str] = field(init=False)

    def __post_init__(self) -> None:
        self._part = Kept(self._written)

    def routes(self) -> list[Route]:
        """Return the routes; to the holder of a key there are none."""
        ours = self.entrance.open_to_us
        return [
            Route("/now", ours(self._now), methods=["GET"]),
            Route("/now/live", ours(self._live), methods=["GET"]),
        ]

    async def _now(self, request: Request, visitor: Visitor) -> Response:
        part = await self._part.get()
        return self.entrance.answer(request, visitor, "now.html", here="now", part=part, refresh_s=REFRESH_S)

    async def _live(self, request: Request, _: Visitor) -> Response:
        watching = self.entrance.watching(request)

        async def told() -> str | None:
            looks = await watching()
            return await self._part.get() if looks and looks.sees_everything else None

        return live(request, self.places, self.entrance.session_of(request), "now", told)

    def _written(self) -> str:
        return self.entrance.pages.text("now_part.html", {"flow": self.flow()}, root="./")
