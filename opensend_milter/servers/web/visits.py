"""Each request is a visit: it has an id and a place in the room, and brings a body within bounds of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from opensend_milter.core.fields import shown
from opensend_milter.core.ids import new_email_id
from opensend_milter.core.submission import request_id
from opensend_milter.servers.web.health import HEALTH_PATH
from opensend_milter.servers.web.refusals import error
from opensend_milter.servers.web.room import LARGE_BYTES, Room, Visit

MOST_KEYLESS_BYTES = 1_048_576
"""Of a body that comes without a key."""
BODY_S = 20.0
SLOWEST_BYTES_PER_S = 65_536
"""A request that is not whole after so long, and what its size takes at this rate, is given up."""


class Visits:
    """Middleware that gives each request an id and a place; `scope["state"]["visit"]` is what it holds."""

    def __init__(
        self,
        app: ASGIApp,
        room: Room,
        max_body_bytes: int,
        client_of: Callable[[Request], str],
        refuse: Callable[[Request, HTTPException], Response] = error,
    ) -> None:
        self._app = app
        self._room = room
        self._max_body_bytes = max_body_bytes
        self._client_of = client_of
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let it in, or turn it away; a monitor is told in any case that we live."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        email_id = new_email_id()
        state = scope.setdefault("state", {})
        state["email_id"], state["request_id"] = email_id, request_id(email_id)

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["X-Request-Id"] = state["request_id"]
            await send(message)

        if scope["path"] == HEALTH_PATH:
            await self._app(scope, receive, named)
            return
        request = Request(scope)
        try:
            visit = state["visit"] = Visit(self._room, self._client_of(request))
        except HTTPException as refused:
            await self._refuse(request, refused)(scope, receive, named)
            return
        try:
            await self._app(scope, _Reader(receive, request.headers, visit, self._max_body_bytes).receive, named)
        finally:
            visit.leave()


class _Reader:
    """Reads one request's body within bounds."""

    def __init__(self, receive: Receive, headers: Headers, visit: Visit, max_body_bytes: int) -> None:
        announced = headers.get("content-length", "")
        self._announced = int(announced) if announced.isascii() and announced.isdecimal() else None
        codings = (coding.strip() for value in headers.getlist("content-encoding") for coding in value.split(","))
        self._coding = next((shown(coding) for coding in codings if coding.lower() not in {"", "identity"}), "")
        self._receive = receive
        self._visit = visit
        self._max_body_bytes = max_body_bytes
        self._has_room = False
        self._is_whole = False
        self._read_bytes = 0
        self._begun_at = asyncio.get_running_loop().time()

    async def receive(self) -> Message:
        """Receive the next piece, or what comes after the body."""
        if self._coding:
            text = f"Content-Encoding: {self._coding} is not taken; send the body as it is"
            # RFC 9110, 12.5.3 and 15.5.16.
            raise HTTPException(415, text, {"Accept-Encoding": "identity"})
        # Before the client is told to go on (RFC 9110, 10.1.1): one that is cut off in its body may not see the answer.
        await self._bound(self._announced or 0)
        # Who sends steadily may take his time; who lets a byte drip now and then may not.
        deadline = self._begun_at + BODY_S + self._read_bytes / SLOWEST_BYTES_PER_S
        try:
            async with asyncio.timeout_at(None if self._is_whole else deadline):
                message = await self._receive()
        except TimeoutError:
            raise HTTPException(408, "the request did not come to its end", {"Connection": "close"}) from None
        if message["type"] == "http.request":
            self._is_whole = not message.get("more_body", False)
            self._read_bytes += len(message.get("body", b""))
            await self._bound(self._read_bytes)
        return message

    async def _bound(self, octets: int) -> None:
        """Refuse what is too large, and wait for room for what is large."""
        most = self._max_body_bytes if self._visit.has_key else min(self._max_body_bytes, MOST_KEYLESS_BYTES)
        if octets > most:
            raise HTTPException(413, f"more than {most} octets", {"Connection": "close"})
        if octets > LARGE_BYTES and not self._has_room:
            waited_since = asyncio.get_running_loop().time()
            await self._visit.expect(most if self._announced is None else self._announced)
            self._has_room = True
            self._begun_at += asyncio.get_running_loop().time() - waited_since
