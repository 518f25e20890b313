"""Pages of messages and refusals: found and told as `why` does; the newest keep themselves up to date."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, urlencode
from weakref import WeakValueDictionary

from anyio import CapacityLimiter, to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from opensend_milter.core.lookup import EVERYTHING, REFUSED, Hits, Scope
from opensend_milter.core.visitors import Visitor
from opensend_milter.servers.console.actions import ActionPages
from opensend_milter.servers.console.entrance import Entrance
from opensend_milter.servers.console.kept import SHARE, Kept
from opensend_milter.servers.console.live import Places, live
from opensend_milter.servers.pages.answering import HEADERS, root_of
from opensend_milter.servers.pages.shown import moment
from opensend_milter.servers.web.messages import AT_ONCE, FILTERS, STATUSES, MessageStore, spelled, wanted
from opensend_milter.servers.web.queries import only

ROWS = 50
_SPANS = (("hour", timedelta(hours=1)), ("24 h", timedelta(days=1)), ("7 d", timedelta(days=7)))
_OF_FORM = ("q", "since", "key", "domain", "status", "rule", "courier")
"""Filters that a search keeps."""
_STILL = {"q", "before", "limit"}
"""What is asked for so is not the newest, or costs too much to be asked for again and again."""
REFRESH_S = 60
"""Without script; whoever is typing a search then loses it."""
_Tail = tuple[Scope, frozenset[tuple[str, str]]]


@dataclass(frozen=True, slots=True)
class Choice:
    """One value of a filter, as a link."""

    label: str
    href: str
    chosen: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class MessagePages:
    """The list, and one of it."""

    entrance: Entrance
    store: MessageStore
    places: Places
    actions: ActionPages | None = None
    """Where somebody of this host may do something about a message."""
    turns: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(AT_ONCE))
    """Its own: who looks for much leaves other pages their threads and connections."""
    _tails: WeakValueDictionary[_Tail, Kept[str]] = field(init=False, default_factory=WeakValueDictionary)
    """Of all that live pages show, each once: whoever shows it holds it."""

    def routes(self) -> list[Route]:
        """Return the routes; what a key may not read is not there."""
        everybody = self.entrance.open_to_all
        return [
            Route("/", everybody(self._start), methods=["GET"]),
            Route("/messages", everybody(self._some), methods=["GET"]),
            Route("/messages/live", everybody(self._live), methods=["GET"]),
            Route("/messages/{id}", everybody(self._one), methods=["GET"]),
        ]

    async def _start(self, request: Request, visitor: Visitor) -> Response:
        return _led(request, "now" if visitor.sees_everything else "messages")

    async def _some(self, request: Request, visitor: Visitor) -> Response:
        # A field of a form that was left empty filters nothing.
        query = {name: value for name, value in request.query_params.items() if value}
        only(request, *FILTERS)
        scope, kept = _scope_of(visitor), _kept(query)
        is_live = not query.keys() & _STILL
        if is_live:
            part = await self._tail(scope, kept).get(anew=True)
        else:
            found = await to_thread.run_sync(lambda: self._found(scope, query), limiter=self.turns)
            if "q" in query and len(found.rows) == 1 and not found.more and "before" not in query:
                return _led(request, f"messages/{quote(found.rows[0].id)}")
            part = self._part(query, found)
        refused = query.get("status") == REFUSED
        return self.entrance.answer(
            request,
            visitor,
            "messages.html",
            here="refusals" if refused else "messages",
            refused=refused,
            query=query,
            kept={name: value for name, value in kept.items() if name != "q"},
            part=part,
            spans=_spans(kept),
            statuses=_choices(kept, "status", STATUSES),
            others=[*_others(kept)],
            live=_href(kept) if is_live else None,
            **({"refresh_s": REFRESH_S} if is_live else {}),
        )

    async def _live(self, request: Request, visitor: Visitor) -> Response:
        only(request, *set(FILTERS) - _STILL)
        scope, kept = _scope_of(visitor), _kept(request.query_params)
        tail, watching = self._tail(scope, kept), self.entrance.watching(request)

        async def told() -> str | None:
            looks = await watching()
            return await tail.get() if looks and _scope_of(looks) == scope else None

        return live(request, self.places, self.entrance.session_of(request), "messages", told)

    def _tail(self, scope: Scope, kept: Mapping[str, str]) -> Kept[str]:
        """Return what all live pages of these filters share."""

        def ask() -> str:
            return self._part(kept, self._found(scope, kept))

        tail = Kept(ask, share=lambda: SHARE * len(self._tails), threads=self.turns)
        return self._tails.setdefault((scope, frozenset(kept.items())), tail)

    def _found(self, scope: Scope, query: Mapping[str, str]) -> Hits:
        asked, filters, before = wanted(query)
        return self.store.find(scope, asked, filters, before=before, limit=ROWS)

    def _part(self, query: Mapping[str, str], found: Hits) -> str:
        """Write what of the page changes: the list, and the ways to what is newer and older."""
        kept = _kept(query)
        older = _href(kept | {"before": spelled(found.rows[-1].place)}) if found.more and found.rows else ""
        values = {
            "refused": query.get("status") == REFUSED,
            "rows": found.rows,
            "searched_back_to": found.searched_back_to,
            "further": _href(kept | {"before": spelled(found.further)}) if found.further else "",
            "newest": _href(kept) if "before" in query else "",
            "older": older,
        }
        return self.entrance.pages.text("messages_part.html", values, root="./")

    async def _one(self, request: Request, visitor: Visitor) -> Response:
        asked: str = request.path_params["id"]
        scope = _scope_of(visitor)
        story = await to_thread.run_sync(lambda: self.store.story(scope, asked, moment), limiter=self.turns)
        if story is None:
            raise HTTPException(404)
        refused = story.status == REFUSED
        here = "refusals" if refused else "messages"
        acts = await self.actions.beside(story) if self.actions and visitor.sees_everything else {}
        return self.entrance.answer(request, visitor, "message.html", here=here, refused=refused, story=story, **acts)


def _kept(query: Mapping[str, str]) -> dict[str, str]:
    return {name: query[name] for name in _OF_FORM if name in query}


def _scope_of(visitor: Visitor) -> Scope:
    return Scope(reads_by=visitor.key_id) if visitor.key_id else EVERYTHING


def _led(request: Request, way: str) -> Response:
    return RedirectResponse(root_of(request) + way, 303, HEADERS)


def _href(query: Mapping[str, str]) -> str:
    return "?" + urlencode(query)


def _choices(kept: Mapping[str, str], name: str, values: Sequence[str]) -> list[Choice]:
    others = {key: value for key, value in kept.items() if key != name}
    chosen = kept.get(name, "")
    every = [Choice("any", _href(others), not chosen)]
    return every + [Choice(value, _href(others | {name: value}), value == chosen) for value in values]


def _spans(kept: Mapping[str, str]) -> list[Choice]:
    """Return links to what came since then: the time stands in them, so that a colleague finds the same."""
    others = {key: value for key, value in kept.items() if key != "since"}
    now = datetime.now(UTC)
    since = [
        Choice(label, _href(others | {"since": f"{now - age:%Y-%m-%dT%H:%MZ}"}), chosen=False) for label, age in _SPANS
    ]
    return [Choice("any time", _href(others), "since" not in kept), *since]


def _others(kept: Mapping[str, str]) -> Iterator[Choice]:
    """Return filters that are in force and have no list of their own; a link takes each away."""
    for name in ("since", "key", "domain", "rule", "courier"):
        if name in kept:
            yield Choice(
                f"{name}: {kept[name]}", _href({key: one for key, one in kept.items() if key != name}), chosen=True
            )
