"""The page of what goes on: how much comes in, what is refused by which rule, and what waits in which lane."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from opensend_milter.core.visitors import Visitor
from opensend_milter.servers.console.entrance import Entrance
from opensend_milter.servers.console.kept import Kept

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
    def due_since(self) -> datetime | None: ...


class Flow(Protocol):
    """What goes on."""

    @property
    def taken_last_minute(self) -> int: ...

    @property
    def taken_last_hour(self) -> int: ...

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
    def at(self) -> datetime: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class NowPage:
    """It asks for itself again every few seconds, with script or without."""

    entrance: Entrance
    flow: Kept[Flow]

    def routes(self) -> list[Route]:
        """Return the route; to the holder of a key there is none."""
        return [Route("/now", self.entrance.open_to_us(self._now), methods=["GET"])]

    async def _now(self, request: Request, visitor: Visitor) -> Response:
        return self.entrance.answer(
            request, visitor, "now.html", here="now", flow=await self.flow.get(), refresh_s=REFRESH_S
        )
