"""What a key may know of messages and refusals, over HTTP: found by anything, and told as `why` tells it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeVar, get_args

from anyio import CapacityLimiter, to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from opensend_milter.core.couriers import CourierName
from opensend_milter.core.ids import key_id as key_id_of
from opensend_milter.core.lookup import REFUSED, Filters, Hit, Hits, Place, Scope
from opensend_milter.core.model import KeyId
from opensend_milter.core.rules import Rule
from opensend_milter.core.story import Say, Story
from opensend_milter.servers.web.queries import bad, limit_of, moment_of, only, shown
from opensend_milter.servers.web.records import Authenticated
from opensend_milter.servers.web.refusals import Refused

T = TypeVar("T")
STATUSES = (
    "queued", "scheduled", "processing", "uncertain", "sent", "delivered", "bounced", "complained", "suppressed",
    "failed", "canceled", REFUSED,
)  # fmt: skip
FILTERS = ("q", "since", "key", "domain", "status", "rule", "courier", "before", "limit")
LONGEST_Q, LONGEST_DOMAIN = 1_000, 253
AT_ONCE = 2
"""Of the connections to the database that all requests share."""
_PLACE = re.compile(r"(\d{1,16})-([0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|\d{1,18})", re.ASCII)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class MessageStore(Protocol):
    """What may be known of messages. Raises StoreUnavailable."""

    def find(self, scope: Scope, asked: str | None, filters: Filters, *, before: Place | None, limit: int) -> Hits: ...

    def story(self, scope: Scope, asked: str, say: Say) -> Story | None:
        """Tell of the one that this names: an id, a request's id, or what a refusal is known by."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Messages:
    """Answers for one process."""

    store: MessageStore
    turns: CapacityLimiter
    """Its own: who looks for much takes neither threads nor connections from who sends."""

    def routes(self, authenticated: Authenticated) -> list[Route]:
        """Return the routes; what a key may not read is not there."""

        async def some(request: Request) -> Response:
            reader = await authenticated(request)
            return JSONResponse(await self._some(reader, request))

        async def one(request: Request) -> Response:
            reader = await authenticated(request)
            asked: str = request.path_params["id"]
            story = await self._in_thread(lambda: self.store.story(Scope(reads_by=reader), asked, _said))
            if story is None:
                raise Refused(404, "message_not_found", "no message that this key may read has that id")
            return JSONResponse(_plain(asdict(story)))

        return [
            Route("/v1/messages", some, methods=["GET"]),
            Route("/v1/messages/{id}", one, methods=["GET"]),
        ]

    async def _some(self, reader: KeyId, request: Request) -> dict[str, object]:
        only(request, *FILTERS)
        query = request.query_params
        asked, filters, before = wanted(query)
        limit, scope = limit_of(query.get("limit")), Scope(reads_by=reader)
        found = await self._in_thread(lambda: self.store.find(scope, asked, filters, before=before, limit=limit))
        more = {"next": spelled(found.rows[-1].place)} if found.more and found.rows else {}
        return {
            "messages": [_row(one) for one in found.rows],
            "searched_back_to": shown(found.searched_back_to),
            "noted_to": shown(found.noted_to),
            **more,
        }

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await to_thread.run_sync(call, limiter=self.turns)


def wanted(query: Mapping[str, str]) -> tuple[str | None, Filters, Place | None]:
    """Read what is looked for, what is left out of it, and where the page before ended."""
    asked, key, domain = query.get("q"), query.get("key"), query.get("domain")
    if asked is not None and len(asked) > LONGEST_Q:
        raise bad("q", f"expected at most {LONGEST_Q} characters")
    if domain is not None and not 0 < len(domain) <= LONGEST_DOMAIN:
        raise bad("domain", "expected a domain such as example.org")
    key_id = key_id_of(key) if key is not None else None
    if key is not None and key_id is None:
        raise bad("key", "expected the id of a key")
    filters = Filters(
        since=moment_of(query.get("since")),
        key_id=key_id,
        domain=domain,
        status=_one_of("status", query.get("status"), STATUSES),
        rule=_one_of("rule", query.get("rule"), [one.value for one in Rule]),
        courier=_one_of("courier", query.get("courier"), get_args(CourierName)),
    )
    return asked, filters, _place(query.get("before"))


def _one_of(name: str, asked: str | None, known: Sequence[T]) -> T | None:
    if asked is None:
        return None
    for one in known:
        if one == asked:
            return one
    raise bad(name, f"expected one of {', '.join(map(str, known))}")


def _place(text: str | None) -> Place | None:
    if text is None:
        return None
    match = _PLACE.fullmatch(text)
    if not match:
        raise bad("before", "expected the `next` of the page before")
    return Place(_EPOCH + timedelta(microseconds=int(match[1])), match[2])


def spelled(place: Place) -> str:
    """Write where a page ends, for the one that follows."""
    return f"{(place.at - _EPOCH) // timedelta(microseconds=1)}-{place.id}"


def _row(found: Hit) -> dict[str, object]:
    return {
        "kind": found.kind,
        "id": found.id,
        "at": shown(found.at),
        "status": found.status,
        "rule": found.rule,
        "sender": found.sender,
        "recipients": list(found.recipients),
        "subject": found.subject,
        "queue_id": found.queue_id,
        "key_name": found.key_name,
        "ref": found.ref,
    }


def _said(at: datetime) -> str:
    return shown(at) or ""


def _plain(value: object) -> object:
    match value:
        case datetime():
            return shown(value)
        case dict():
            return {name: _plain(one) for name, one in value.items()}
        case list() | tuple():
            return [_plain(one) for one in value]
        case _:
            return value
