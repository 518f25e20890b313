"""Pages of what is set up: keys, domains, suppressed addresses and webhooks, as the commands list them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from opensend_milter.core.visitors import Visitor
from opensend_milter.servers.console.entrance import Entrance

MOST_ROWS = 200
"""Of one list; whoever looks for more asks the command."""


class Listed(Protocol):
    """The first rows of a list."""

    @property
    def rows(self) -> Sequence[object]: ...

    @property
    def total(self) -> int | None:
        """How many there would be; None: too many to be counted."""
        ...


class Lists(Protocol):
    """What is set up. Raises StoreUnavailable."""

    def keys(self, most: int) -> Listed:
        """Return keys, those used last first."""
        ...

    def domains(self, most: int) -> Listed: ...

    def suppressions(self, most: int) -> Listed:
        """Return suppressed addresses, the newest first."""
        ...

    def webhooks(self, most: int) -> Listed:
        """Return webhooks, those that fail first."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ListPages:
    """One page for each list."""

    entrance: Entrance
    lists: Lists

    def routes(self) -> list[Route]:
        """Return the routes; to the holder of a key there are none."""
        lists = self.lists
        return [
            self._route("keys", lists.keys),
            self._route("domains", lists.domains),
            self._route("suppressions", lists.suppressions),
            self._route("webhooks", lists.webhooks),
        ]

    def _route(self, name: str, ask: Callable[[int], Listed]) -> Route:
        async def page(request: Request, visitor: Visitor) -> Response:
            found = await self.entrance.in_thread(lambda: ask(MOST_ROWS))
            return self.entrance.answer(request, visitor, f"{name}.html", here=name, rows=found.rows, total=found.total)

        return Route(f"/{name}", self.entrance.open_to_us(page), methods=["GET"])
