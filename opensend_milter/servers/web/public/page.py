"""Small pages of a sentence or two: without script or cookie, and of no use to anybody who is not shown them."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from opensend_milter.servers.pages.answering import Pages, Tab

HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex",
}
"""Of answers that are no pages, and have no more to tell than these."""
PAGES = Pages("opensend_milter.servers.web.public", site="Mail gateway")
TABS = (Tab("front", "", "Start"), Tab("docs", "docs", "API"))
_COME_AGAIN = {429, 503}


def page(request: Request, status: int, title: str, text: str, *, button: str = "") -> Response:
    """Answer with a sentence, and with a button that posts to the same address."""
    headers = {"Retry-After": "60"} if status in _COME_AGAIN else {}
    values = {"title": title, "text": text, "button": button}
    return PAGES.answer(request, "sentence.html", values, status=status, headers=headers)
