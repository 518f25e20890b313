"""What one message says: shown to somebody of this host who asks for it, and each time noted who that was."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route

from opensend_milter.core.ids import key_id as id_of
from opensend_milter.core.visitors import Visitor
from opensend_milter.servers.console.entrance import Entrance, client_of
from opensend_milter.servers.pages.answering import HEADERS

MOST_HTML_BYTES = 1_000_000
_ALONE = "sandbox; default-src 'none'; form-action 'none'; frame-ancestors 'none'; base-uri 'none'"
"""What a stranger wrote runs nothing, asks for nothing, leads nowhere, and is of no origin."""
What = Literal["text", "html", "raw"]


class Contents(Protocol):
    """What was read in a message when it was taken."""

    @property
    def headers(self) -> Mapping[str, Any] | None: ...

    @property
    def text(self) -> str | None: ...

    @property
    def html(self) -> str | None: ...

    @property
    def attachments(self) -> tuple[str, ...]: ...


class Views(Protocol):
    """Where it is put down who was shown what. Raises StoreUnavailable."""

    def note_view(self, visitor: Visitor, client_address: str, email_id: str, what: What) -> None: ...


class ContentStore(Protocol):
    """What messages say. Raises StoreUnavailable."""

    def contents(self, email_id: str, reader: str) -> Contents | None: ...

    def pieces(self, email_id: str, reader: str) -> Iterator[bytes]:
        """Return the bytes as they were handed in, as far as they are kept, piece by piece."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ContentPages:
    """What a message says, in three ways."""

    entrance: Entrance
    views: Views
    store: ContentStore

    def routes(self) -> list[Route]:
        """Return the routes; to the holder of a key there are none."""
        ours = self.entrance.open_to_us
        return [
            Route("/messages/{id}/text", ours(self._text), methods=["GET"]),
            Route("/messages/{id}/html", ours(self._html), methods=["GET"]),
            Route("/messages/{id}/raw", ours(self._raw), methods=["GET"]),
        ]

    async def _text(self, request: Request, visitor: Visitor) -> Response:
        email_id = await self._noted(request, visitor, "text")
        found = await self._contents(email_id, visitor)
        return self.entrance.answer(request, visitor, "contents.html", here="messages", id=email_id, contents=found)

    async def _html(self, request: Request, visitor: Visitor) -> Response:
        email_id = await self._noted(request, visitor, "html")
        html = (await self._contents(email_id, visitor)).html
        if not html:
            raise HTTPException(404)
        content = html.encode("utf-8", "replace")
        if len(content) >= MOST_HTML_BYTES:
            raise HTTPException(413, f"This is more than {MOST_HTML_BYTES:,} octets: download the message instead.")
        return HTMLResponse(content, 200, {**HEADERS, "Content-Security-Policy": _ALONE})

    async def _raw(self, request: Request, visitor: Visitor) -> Response:
        email_id = await self._noted(request, visitor, "raw")
        pieces = await self.entrance.in_thread(lambda: self.store.pieces(email_id, visitor.name))
        first = await self.entrance.in_thread(lambda: next(pieces, None))
        if first is None:
            raise HTTPException(404)
        headers = {
            **HEADERS,
            "Content-Security-Policy": _ALONE,
            "Content-Disposition": f'attachment; filename="{email_id}.eml"',
        }
        return StreamingResponse(_all(first, pieces), 200, headers, "application/octet-stream")

    async def _noted(self, request: Request, visitor: Visitor, what: What) -> str:
        """Return the id of the message, once it is put down who asks for it."""
        email_id = id_of(request.path_params["id"])
        if email_id is None or request.method != "GET":
            raise HTTPException(404)
        address = client_of(request)
        await self.entrance.in_thread(lambda: self.views.note_view(visitor, address, email_id, what))
        return email_id

    async def _contents(self, email_id: str, visitor: Visitor) -> Contents:
        found = await self.entrance.in_thread(lambda: self.store.contents(email_id, visitor.name))
        if found is None:
            raise HTTPException(404)
        return found


def _all(first: bytes, pieces: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from pieces
