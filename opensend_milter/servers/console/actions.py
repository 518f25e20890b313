"""Retrying, canceling and suppressing: each a page that says what will happen, and what is done when that is sent."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Protocol
from uuid import UUID, uuid4

from anyio import CapacityLimiter, to_thread
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from opensend_milter.core import maillog
from opensend_milter.core.actions import WORDS, Act, Action, Outcome
from opensend_milter.core.lookup import EVERYTHING, REFUSED
from opensend_milter.core.story import Story
from opensend_milter.core.visitors import Visitor
from opensend_milter.servers.console.entrance import Entrance, client_of
from opensend_milter.servers.console.forms import NO_LONGER_GOOD, check, fields_of, token_of
from opensend_milter.servers.pages.answering import HEADERS, root_of
from opensend_milter.servers.pages.shown import moment
from opensend_milter.servers.web.messages import MessageStore

LASTS_S = 900
"""How long a page may be looked at before what it says is done."""
_NAMES: Mapping[Act, str] = {"retry": "Try it again", "cancel": "Take it back", "suppress": "Suppress a recipient"}
_LINKED: Mapping[Act, frozenset[str]] = {
    "retry": frozenset({"queued", "processing", "uncertain", "failed", "bounced"}),
    "cancel": frozenset({"queued", "scheduled", "processing"}),
}
"""In which states of a message there is a link; whether it can be done is said by who does it."""


class Taken(Protocol):
    """What somebody did."""

    @property
    def done_at(self) -> datetime: ...

    @property
    def actor(self) -> str: ...

    @property
    def action(self) -> str: ...

    @property
    def address(self) -> str | None: ...

    @property
    def outcome(self) -> str: ...


class Actions(Protocol):
    """What somebody may do. Raises StoreUnavailable."""

    def foretell(self, action: Action) -> Outcome:
        """Say what would come of it; nothing is changed."""
        ...

    def take(self, action: Action, *, form: str, visitor: Visitor, client_address: str) -> Outcome | None:
        """Do it, and put down who did; None: nothing, for this form was sent before."""
        ...


AskTaken = Callable[[str], Sequence[Taken]]
"""What was done about a message, the latest first. Raises StoreUnavailable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionPages:
    """Open to who sees everything."""

    entrance: Entrance
    store: MessageStore
    actions: Actions
    taken: AskTaken
    acts: Sequence[Act]
    turns: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(1))

    def routes(self) -> list[Route]:
        """Return the routes; to the holder of a key there are none."""
        return [route for act in self.acts for route in self._of(act)]

    def _of(self, act: Act) -> list[Route]:
        async def asked(request: Request, visitor: Visitor) -> Response:
            return await self._asked(request, visitor, act)

        async def confirmed(request: Request, visitor: Visitor) -> Response:
            return await self._confirmed(request, visitor, act)

        path, ours = f"/messages/{{id}}/{act}", self.entrance.open_to_us
        return [Route(path, ours(asked), methods=["GET"]), Route(path, ours(confirmed), methods=["POST"])]

    async def beside(self, story: Story) -> Mapping[str, object]:
        """Return what the page of a message shows of them: which are offered, and what was done."""
        if story.status == REFUSED:
            return {}
        offered = [(act, _NAMES[act]) for act in self.acts if story.status in _LINKED.get(act, ())]
        taken = await self.entrance.in_thread(lambda: self.taken(story.id))
        return {"offered": offered, "may_suppress": "suppress" in self.acts, "taken": taken}

    async def _asked(self, request: Request, visitor: Visitor, act: Act) -> Response:
        story, action = await self._found(request, act, request.query_params.get("address", ""))
        outcome = await to_thread.run_sync(self.actions.foretell, action, limiter=self.turns)
        form, until = str(uuid4()), str(int(time.time()) + LASTS_S)

        def page(secret: str) -> Response:
            return self.entrance.answer(
                request,
                visitor,
                "action.html",
                here="messages",
                name=_NAMES[act],
                story=story,
                action=action,
                what=WORDS[act, outcome.was] if outcome.was else "",
                why_not=outcome.why_not,
                fields={"form": form, "until": until, "address": action.address},
                action_token=token_of(secret, _about(action, visitor, form, until)),
            )

        return self.entrance.with_form(request, page)

    async def _confirmed(self, request: Request, visitor: Visitor, act: Act) -> Response:
        fields = await fields_of(request)
        form, until = fields.get("form", ""), fields.get("until", "")
        _, action = await self._found(request, act, fields.get("address", ""))
        check(fields, self.entrance.secret_of(request), _about(action, visitor, form, until))
        if int(until) < time.time():
            raise HTTPException(403, NO_LONGER_GOOD)
        address = client_of(request)
        take = partial(self.actions.take, action, form=str(UUID(form)), visitor=visitor, client_address=address)
        if outcome := await to_thread.run_sync(take, limiter=self.turns):
            maillog.acted(request.state.request_id, action, visitor.name, address, outcome)
        return RedirectResponse(f"{root_of(request)}messages/{action.email_id}#taken", 303, HEADERS)

    async def _found(self, request: Request, act: Act, address: str) -> tuple[Story, Action]:
        """Return the message, and what is to be done; raise HTTPException where there is no such one, or recipient."""
        asked: str = request.path_params["id"]
        story = await self.entrance.in_thread(lambda: self.store.story(EVERYTHING, asked, moment))
        if story is None or story.status == REFUSED:
            raise HTTPException(404)
        is_known = address in {one.email for one in story.recipients} if act == "suppress" else not address
        if not is_known:
            raise HTTPException(404)
        return story, Action(act=act, email_id=story.id, address=address)


def _about(action: Action, visitor: Visitor, form: str, until: str) -> str:
    return f"{action.act}\n{action.email_id}\n{action.address}\n{visitor.name}\n{form}\n{until}"
