"""Small pages for people who have no key: without script or cookie, and of no use to anybody who is not shown them."""

from __future__ import annotations

from starlette.responses import HTMLResponse, Response

HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex",
}
_PAGE_HEADERS = HEADERS | {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'"
}
_COME_AGAIN = {429, 503}
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"><title>{title}</title>
<style>body{{font:1rem/1.5 sans-serif;margin:3rem auto;max-width:34rem;padding:0 1rem;overflow-wrap:anywhere}}
h1{{font-size:1.6rem;line-height:1.2}}dt{{margin-top:1rem;opacity:.75}}dd{{margin:0}}
code{{font:.95em monospace}}</style></head>
<body><h1>{title}</h1>{content}</body></html>
"""


def page(status: int, title: str, content: str) -> Response:
    """Answer with a page; `content` is HTML."""
    headers = _PAGE_HEADERS | ({"Retry-After": "60"} if status in _COME_AGAIN else {})
    return HTMLResponse(_PAGE.format(title=title, content=content), status, headers)
