"""The files that every page asks for: named after what is in them, so that a browser keeps them for good."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

PATH = "files/"
"""Below the root of the site."""
_TYPES = {"css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
_DIGITS = 16
_HEADERS = {
    "Cache-Control": "public, max-age=31536000, immutable",
    # What stands in an SVG is run where somebody opens it by itself.
    "Content-Security-Policy": "default-src 'none'",
    "X-Content-Type-Options": "nosniff",
}


@dataclass(frozen=True, slots=True)
class File:
    """One file, as it is answered."""

    name: str
    """With a digest of what is in it."""
    content: bytes
    media_type: str


def _read() -> Mapping[str, File]:
    found = {}
    for one in files(__package__).joinpath("files").iterdir():
        content = one.read_bytes()
        stem, _, kind = one.name.rpartition(".")
        digest = hashlib.sha256(content).hexdigest()[:_DIGITS]
        found[one.name] = File(f"{stem}-{digest}.{kind}", content, _TYPES[kind])
    return found


FILES = _read()
"""By the name that a template calls each."""
_BY_NAME = {file.name: file for file in FILES.values()}


def routes() -> list[Route]:
    """Return the route of the files."""

    async def file(request: Request) -> Response:
        found = _BY_NAME.get(request.path_params["name"])
        if found is None:
            raise HTTPException(404)
        return Response(found.content, 200, _HEADERS, found.media_type)

    return [Route(f"/{PATH}{{name}}", file, methods=["GET"])]
