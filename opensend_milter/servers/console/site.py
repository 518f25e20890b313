"""All routes of the console, and how it says that something is not there or cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute

from opensend_milter.core.actions import Act
from opensend_milter.servers.console.actions import ActionPages, Actions, AskTaken
from opensend_milter.servers.console.contents import ContentPages, ContentStore, Views
from opensend_milter.servers.console.domains import DomainPage, LookUp
from opensend_milter.servers.console.entrance import Entrance
from opensend_milter.servers.console.listings import ListPages, Lists
from opensend_milter.servers.console.live import Places
from opensend_milter.servers.console.messages import MessagePages
from opensend_milter.servers.console.now import AskFlow, NowPage
from opensend_milter.servers.console.volume import AskVolume, VolumePage
from opensend_milter.servers.pages import files
from opensend_milter.servers.pages.answering import Pages
from opensend_milter.servers.web.messages import MessageStore

PAGES = Pages(__package__, site="opensend-milter")
_SAID = {
    404: "There is nothing at this address, or nothing that you may see.",
    503: "This cannot be looked up just now. Please try again in a minute.",
}


def routes(
    entrance: Entrance,
    *,
    messages: MessageStore,
    views: Views,
    contents: ContentStore,
    lists: Lists,
    flow: AskFlow,
    volume: AskVolume,
    look_up: LookUp,
    actions: Actions | None,
    acts: Sequence[Act],
    taken: AskTaken,
) -> Sequence[BaseRoute]:
    """Return the routes of all pages; without `actions` of those that change nothing."""
    acting = (
        ActionPages(entrance=entrance, store=messages, actions=actions, taken=taken, acts=acts) if actions else None
    )
    places = Places()
    return [
        *files.routes(),
        *entrance.routes(),
        *ContentPages(entrance=entrance, views=views, store=contents).routes(),
        *MessagePages(entrance=entrance, store=messages, places=places, actions=acting).routes(),
        *(acting.routes() if acting else ()),
        *ListPages(entrance=entrance, lists=lists).routes(),
        *DomainPage(entrance=entrance, look_up=look_up).routes(),
        *NowPage(entrance=entrance, flow=flow, places=places).routes(),
        *VolumePage(entrance=entrance, ask=volume).routes(),
    ]


def refuse(request: Request, refused: HTTPException) -> Response:
    """Answer with an error."""
    status = refused.status_code
    phrase = HTTPStatus(status).phrase
    text = _SAID.get(status) or (refused.detail if refused.detail != phrase else "")
    headers = {**(refused.headers or {}), "X-Request-Id": request.state.request_id}
    return PAGES.answer(request, "error.html", {"phrase": phrase, "text": text}, status=status, headers=headers)
