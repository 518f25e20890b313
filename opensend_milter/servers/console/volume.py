"""The page of how much came in and how it fared, as a chart with its table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import NamedTuple, Protocol

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from opensend_milter.core.visitors import Visitor
from opensend_milter.servers.console.entrance import Entrance
from opensend_milter.servers.console.kept import Kept
from opensend_milter.servers.pages.charts import Series
from opensend_milter.servers.pages.marks import Mark

HOUR_S = 3_600


class Span(NamedTuple):
    """How far back, and in which steps."""

    label: str
    steps: int
    step_s: int
    times: str
    """How the start of a step is written."""


SPANS: Mapping[str, Span] = {
    "24h": Span("24 hours", 24, HOUR_S, "%H:%M"),
    "7d": Span("7 days", 28, 6 * HOUR_S, "%d %b %H:%M"),
    "30d": Span("30 days", 30, 24 * HOUR_S, "%d %b"),
}
_USUAL = "24h"
_OUTCOMES: Sequence[tuple[str, Mark, frozenset[str]]] = (
    ("delivered or sent", "good", frozenset({"delivered", "sent"})),
    ("waiting", "wait", frozenset({"queued", "scheduled", "processing"})),
    ("failed, bounced or called spam", "bad", frozenset({"failed", "bounced", "complained"})),
    ("refused", "unsure", frozenset({"refused"})),
)
_OTHER = "left out or taken back"


class Volume(Protocol):
    """How many messages of each status began in each step, the oldest first."""

    @property
    def starts(self) -> Sequence[datetime]: ...

    @property
    def counts(self) -> Mapping[str, Sequence[int]]: ...


AskVolume = Callable[[int, int], Volume]
"""Of so many steps of so many seconds. Raises StoreUnavailable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VolumePage:
    """One page for each span."""

    entrance: Entrance
    ask: AskVolume
    _kept: dict[str, Kept[Volume]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._kept.update({name: Kept(partial(self.ask, span.steps, span.step_s)) for name, span in SPANS.items()})

    def routes(self) -> list[Route]:
        """Return the route; to the holder of a key there is none."""
        return [Route("/volume", self.entrance.open_to_us(self._volume), methods=["GET"])]

    async def _volume(self, request: Request, visitor: Visitor) -> Response:
        name = request.query_params.get("span", _USUAL)
        if name not in SPANS:
            raise HTTPException(400, f"span: expected one of {', '.join(SPANS)}")
        span, volume = SPANS[name], await self._kept[name].get()
        return self.entrance.answer(
            request,
            visitor,
            "volume.html",
            here="volume",
            spans=[(key, one.label) for key, one in SPANS.items()],
            chosen=name,
            span=span,
            labels=[f"{start:{span.times}}" for start in volume.starts],
            series=series_of(volume),
        )


def series_of(volume: Volume) -> list[Series]:
    """Put statuses together as the chart shows them; one that nobody foresaw is among the others."""
    known = frozenset[str]().union(*(statuses for *_, statuses in _OUTCOMES))
    groups = [*_OUTCOMES, (_OTHER, "off", frozenset(volume.counts) - known)]
    return [Series(name, mark, _sums(volume, statuses)) for name, mark, statuses in groups]


def _sums(volume: Volume, statuses: frozenset[str]) -> list[int]:
    some = [counts for status, counts in volume.counts.items() if status in statuses]
    return [sum(counts[at] for counts in some) for at in range(len(volume.starts))]
