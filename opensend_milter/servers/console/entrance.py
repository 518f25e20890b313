"""Who asks: whose session a cookie names, or whom a trusted proxy vouches for; and the page where people log in."""

from __future__ import annotations

import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol, TypeVar
from weakref import WeakValueDictionary

from anyio import CapacityLimiter, to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from opensend_milter.config import Console
from opensend_milter.core import maillog
from opensend_milter.core.passwords import MOST_CHARACTERS, NOBODYS, Verifier, is_right
from opensend_milter.core.policy import is_within
from opensend_milter.core.rates import Allowance
from opensend_milter.core.visitors import SESSION_LASTS, Visitor
from opensend_milter.servers.console.forms import sent, token_of
from opensend_milter.servers.console.kept import Kept
from opensend_milter.servers.pages.answering import HEADERS, Pages, Tab, root_of
from opensend_milter.servers.web.server import believed

T = TypeVar("T")
LOGINS_AT_ONCE = 2
"""Each takes 32 MB."""
_ANSWERS_AT_ONCE = 16
_WATCHER_GOOD_FOR_S = 1.0
_LONGEST_NAME = 200
_LONGEST_PATH = 2_000
_HOW = "console"
_TOO_MANY = 429
_HERE = re.compile(r"(localhost|127\.\d{1,3}\.\d{1,3}\.\d{1,3}|\[::1\])(:\d{1,5})?", re.ASCII)
_BOTH = (Tab("messages", "messages", "Messages"), Tab("refusals", "messages?status=refused", "Refusals"))
TABS = (
    Tab("now", "now", "Now"),
    Tab("volume", "volume", "Volume"),
    *_BOTH,
    Tab("domains", "domains", "Domains"),
    Tab("keys", "keys", "Keys"),
    Tab("suppressions", "suppressions", "Suppressions"),
    Tab("webhooks", "webhooks", "Webhooks"),
)


class VisitorStore(Protocol):
    """Who may look, and who is looking. Raises StoreUnavailable."""

    def verifier(self, name: str) -> Verifier | None: ...

    def key_of(self, secret: str) -> Visitor | None: ...

    def begin(self, token: str, visitor: Visitor, client_address: str) -> None: ...

    def visitor(self, token: str) -> Visitor | None: ...

    def end(self, token: str) -> None: ...


Page = Callable[[Request, Visitor], Awaitable[Response]]


@dataclass(slots=True, kw_only=True)
class Entrance:
    """Lets visitors in, for one process."""

    settings: Console
    store: VisitorStore
    pages: Pages
    failed_per_minute: int
    logins: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(LOGINS_AT_ONCE))
    threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(_ANSWERS_AT_ONCE))
    by_client: Allowance = field(init=False)
    by_name: Allowance = field(init=False)
    _watchers: WeakValueDictionary[str, Kept[Visitor | None]] = field(init=False, default_factory=WeakValueDictionary)
    """By session; its live pages hold it."""

    def __post_init__(self) -> None:
        self.by_client = Allowance(self.failed_per_minute, time.monotonic)
        self.by_name = Allowance(self.failed_per_minute, time.monotonic, who=str)

    def routes(self) -> list[Route]:
        """Return the routes of logging in and out."""
        return [
            Route("/login", self._asked_to_log_in, methods=["GET"]),
            Route("/login", self._log_in, methods=["POST"]),
            Route("/logout", self._log_out, methods=["POST"]),
        ]

    # ------------------------------------------------------------------ pages

    def open_to_all(self, page: Page) -> Callable[[Request], Awaitable[Response]]:
        """Return what answers everybody who has logged in with this page, and others with the one where they do."""

        async def answer(request: Request) -> Response:
            visitor = await self.visitor(request)
            return await page(request, visitor) if visitor else self._login_page(request, 401)

        return answer

    def open_to_us(self, page: Page) -> Callable[[Request], Awaitable[Response]]:
        """Return the same, but to the holder of a key there is no such page."""

        async def ours(request: Request, visitor: Visitor) -> Response:
            if not visitor.sees_everything:
                raise HTTPException(404)
            return await page(request, visitor)

        return self.open_to_all(ours)

    def answer(self, request: Request, visitor: Visitor, template: str, **values: object) -> Response:
        """Answer with a page of the console."""
        session = request.cookies.get(self._cookie)
        # Whom a proxy vouches for has no session to end.
        known = {"visitor": visitor, "form_token": token_of(session) if session else ""}
        return self.pages.answer(
            request, template, {**values, **known}, tabs=TABS if visitor.sees_everything else _BOTH
        )

    async def in_thread(self, call: Callable[[], T]) -> T:
        """Have the database asked."""
        return await to_thread.run_sync(call, limiter=self.threads)

    # ------------------------------------------------------------------ who

    async def visitor(self, request: Request) -> Visitor | None:
        """Return who asks, as it stands now; None: nobody who may look."""
        return await self._who(request, lambda token: self.in_thread(lambda: self.store.visitor(token)))

    def watching(self, request: Request) -> Callable[[], Awaitable[Visitor | None]]:
        """Return what says so again and again, for a live page: all that one session has open asks once together."""
        token = self.session_of(request)
        asked = Kept(
            lambda: self.store.visitor(token), good_for_s=_WATCHER_GOOD_FOR_S, share=lambda: 0, threads=self.threads
        )
        kept = self._watchers.setdefault(token, asked)
        return lambda: self._who(request, lambda _: kept.get())

    async def _who(self, request: Request, ask: Callable[[str], Awaitable[Visitor | None]]) -> Visitor | None:
        if vouched := self._vouched_for(request):
            return Visitor(name=vouched)
        token = request.cookies.get(self._cookie)
        visitor = await ask(token) if token else None
        return visitor if visitor and _may_come_from(visitor, client_of(request)) else None

    def session_of(self, request: Request) -> str:
        """Return what stands for all that one visitor has open."""
        return self._vouched_for(request) or request.cookies.get(self._cookie, "")

    def secret_of(self, request: Request) -> str:
        """Return what this browser alone knows, as far as it was told something; forms are made for it."""
        return request.cookies.get(self._form_cookie if self._vouched_for(request) else self._cookie, "")

    def with_form(self, request: Request, page: Callable[[str], Response]) -> Response:
        """Answer with a page that has a form for what this browser alone knows."""
        if secret := self.secret_of(request):
            return page(secret)
        # Whom a proxy vouches for has no session.
        secret = secrets.token_urlsafe(32)
        answer = page(secret)
        self._set(answer, self._form_cookie, secret)
        return answer

    def _vouched_for(self, request: Request) -> str:
        """Return the name in the proxy's field; from anybody else, or said twice, it is nobody's."""
        if not self.settings.user_header or not request.client:
            return ""
        if not is_within(request.client.host, believed(self.settings)):
            return ""
        names = request.headers.getlist(self.settings.user_header)
        name = names[0].strip() if len(names) == 1 else ""
        return name if name.isprintable() and len(name) <= _LONGEST_NAME else ""

    @property
    def _cookie(self) -> str:
        """With a name that only this very host can set, and only over TLS, where browsers come by that."""
        return "__Host-console" if self.settings.is_secure else "console"

    @property
    def _form_cookie(self) -> str:
        return f"{self._cookie}-form"

    # ------------------------------------------------------------------ in and out

    async def _asked_to_log_in(self, request: Request) -> Response:
        return self._login_page(request)

    async def _log_in(self, request: Request) -> Response:
        form = await sent(request, request.cookies.get(self._form_cookie, ""))
        if not self._is_private(request):
            return self._login_page(request)
        address, way = client_of(request), form.get("next", "")[:_LONGEST_PATH]
        name = form.get("name", "")[:_LONGEST_NAME]
        began = time.monotonic()
        async with self.logins:
            if self._wait_s(address, name):
                maillog.login("throttled", client=address, mechanism=_HOW, took_ms=_since_ms(began))
                return self._login_page(request, _TOO_MANY, way, "Too many wrong logins. Please try again in a minute.")
            visitor = await to_thread.run_sync(partial(self._known, form, name))
            if visitor is None or not _may_come_from(visitor, address):
                self._note_failure(address, name)
                maillog.login("refused", client=address, mechanism=_HOW, took_ms=_since_ms(began))
                return self._login_page(request, 403, way, "This is not right: nobody is known by it.")
        token = secrets.token_urlsafe(32)
        await self.in_thread(lambda: self.store.begin(token, visitor, address))
        maillog.login("accepted", client=address, mechanism=_HOW, took_ms=_since_ms(began))
        answer = self._led_to(request, way)
        self._set(answer, self._cookie, token, lasts_s=int(SESSION_LASTS.total_seconds()))
        return answer

    async def _log_out(self, request: Request) -> Response:
        token = request.cookies.get(self._cookie, "")
        await sent(request, token)
        await self.in_thread(lambda: self.store.end(token))
        answer = self._led_to(request, "/login")
        self._set(answer, self._cookie, "", lasts_s=0)
        return answer

    def _known(self, form: Mapping[str, str], name: str) -> Visitor | None:
        """Return whose words these are: a name and a password, or a key."""
        if key := form.get("key", "").strip():
            return self.store.key_of(key) if len(key) <= MOST_CHARACTERS else None
        known = self.store.verifier(name) if name.isprintable() else None
        is_he = is_right(form.get("password", ""), known or NOBODYS)
        return Visitor(name=name) if known and is_he else None

    def _wait_s(self, address: str, name: str) -> float:
        return max(self.by_client.wait_s(address), self.by_name.wait_s(name) if name else 0)

    def _note_failure(self, address: str, name: str) -> None:
        self.by_client.note(address)
        if name:
            self.by_name.note(name)

    def _is_private(self, request: Request) -> bool:
        """Tell whether nobody else can hear what this browser says: under TLS, or on this very host."""
        return self.settings.is_secure or bool(_HERE.fullmatch(request.headers.get("host", "")))

    def _login_page(self, request: Request, status: int = 200, way: str = "", error: str = "") -> Response:
        cookie = request.cookies.get(self._form_cookie) or secrets.token_urlsafe(32)
        here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        values = {
            "next": way or ("" if request.url.path in {"/login", "/logout"} else here),
            "error": error,
            "is_private": self._is_private(request),
            "form_token": token_of(cookie),
        }
        headers = {"Retry-After": "60"} if status == _TOO_MANY else {}
        answer = self.pages.answer(request, "login.html", values, status=status, headers=headers)
        self._set(answer, self._form_cookie, cookie)
        return answer

    def _led_to(self, request: Request, way: str) -> Response:
        """Lead on to a page of ours: whatever the way says, it stays below our root."""
        return RedirectResponse(root_of(request) + way.lstrip("/"), 303, HEADERS)

    def _set(self, answer: Response, name: str, value: str, *, lasts_s: int | None = None) -> None:
        answer.set_cookie(
            name, value, max_age=lasts_s, path="/", secure=self.settings.is_secure, httponly=True, samesite="strict"
        )


def client_of(request: Request) -> str:
    """Return from where it is asked."""
    address: str = request.state.visit.client_address
    return address


def _since_ms(began: float) -> float:
    return (time.monotonic() - began) * 1000


def _may_come_from(visitor: Visitor, address: str) -> bool:
    return visitor.networks is None or is_within(address, visitor.networks)
