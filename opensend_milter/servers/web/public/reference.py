"""The API as a page that a person reads, made of the OpenAPI document that programs read."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import cast

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from opensend_milter.core.remedies import REMEDIES
from opensend_milter.core.rules import Rule
from opensend_milter.servers.pages.answering import HEADERS
from opensend_milter.servers.web.public.examples import EXAMPLES, call_of, in_curl, in_node, in_python
from opensend_milter.servers.web.public.fields import Field, Reader, Schema
from opensend_milter.servers.web.public.page import PAGES, TABS
from opensend_milter.servers.web.refusals import CODES, RETRYABLE

_BASE = "https://reader.invalid"
"""Stands in the page for what this reader calls us; the page is written once."""
_HOST = re.compile(r"(?:[A-Za-z0-9](?:[A-Za-z0-9.-]{0,251}[A-Za-z0-9])?|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """One request that can be made."""

    name: str
    method: str
    path: str
    summary: str
    needs_key: bool
    parameters: Sequence[Field]
    asked: Sequence[Field]
    lists: tuple[str, ...]
    """Objects of which the body is a list."""
    status: str
    answered: Sequence[Field]
    errors: Sequence[str]
    examples: Sequence[tuple[str, str]]


def routes(document: Schema, public_url: str) -> list[Route]:
    """Return the route of the page; `public_url` is shown where the reader's own word on our name is of no use."""

    @cache
    def page() -> str:
        return PAGES.text("reference.html", described(document), root="./", tabs=TABS)

    async def docs(request: Request) -> Response:
        return HTMLResponse(page().replace(_BASE, base_of(request, public_url)), 200, HEADERS)

    return [Route("/docs", docs, methods=["GET"])]


def base_of(request: Request, public_url: str) -> str:
    """Return what the reader calls us. A proxy may speak TLS for us, which only `public_url` tells."""
    host = request.headers.get("host", "")
    known = public_url.rstrip("/")
    if not _HOST.fullmatch(host) or known.partition("://")[2].partition("/")[0].lower() == host.lower():
        return known or "https://HOST"
    return f"{request.scope['scheme']}://{host}"


def described(document: Schema) -> Mapping[str, object]:
    """Return what the page is made of."""
    schemas = cast("Mapping[str, Schema]", cast("Schema", document["components"])["schemas"])
    paths = cast("Mapping[str, Mapping[str, Schema]]", document["paths"])
    reader = Reader(schemas)
    endpoints = [
        _endpoint(reader, method.upper(), path, said)
        for path, methods in paths.items()
        for method, said in methods.items()
    ]
    return {
        "endpoints": endpoints,
        "objects": [(name, list(reader.fields(schemas[name]))) for name in _objects(reader, endpoints)],
        "statuses": [_status(one) for one in sorted({status for one in endpoints for status in one.errors})],
        "error": list(reader.fields(schemas["Error"])),
        "rules": [(rule.value, rule.http, rule.field.rele, REMEDIES[rule]) for rule in Rule],
    }


def _endpoint(reader: Reader, method: str, path: str, said: Schema) -> Endpoint:
    name = str(said["operationId"])
    parameters = cast("list[Schema]", said.get("parameters", []))
    responses = cast("Mapping[str, Schema]", said["responses"])
    body = reader.resolved(_content(cast("Schema", said.get("requestBody", {}))))
    status = min(responses)
    needs_key = said.get("security") != []
    call = call_of(_BASE, method, path, EXAMPLES[name], has_key=needs_key)
    return Endpoint(
        name=name,
        method=method,
        path=path,
        summary=str(said["summary"]),
        needs_key=needs_key,
        parameters=[_parameter(reader, one) for one in parameters],
        asked=list(reader.fields(body)),
        lists=tuple(reader.objects(body)),
        status=status,
        answered=list(reader.fields(reader.resolved(_content(responses[status])))),
        errors=sorted(responses.keys() - {status}),
        examples=[("curl", in_curl(call)), ("Python", in_python(call)), ("Node.js", in_node(call))],
    )


def _parameter(reader: Reader, said: Schema) -> Field:
    schema, place = cast("Schema", said["schema"]), {"path": "in the path", "header": "a header field"}
    about = "; ".join(filter(None, [place.get(str(said["in"])), str(said["description"])]))
    return reader.field(str(said["name"]), schema, required=bool(said.get("required")), about=about)


def _content(said: Schema) -> Schema:
    """Return the schema of a body."""
    return (
        cast("Mapping[str, Mapping[str, Schema]]", said.get("content", {}))
        .get("application/json", {})
        .get("schema", {})
    )


def _objects(reader: Reader, endpoints: Sequence[Endpoint]) -> list[str]:
    """Return the names of all objects that fields of endpoints are made of, and fields of those."""
    waiting = [name for one in endpoints for name in one.lists]
    waiting += [name for one in endpoints for field in (*one.asked, *one.answered) for name in field.objects]
    found: dict[str, None] = {}
    while waiting:
        name = waiting.pop(0)
        if name not in found:
            found[name] = None
            waiting += [inner for field in reader.fields(reader.named(name)) for inner in field.objects]
    return list(found)


def _status(status: str) -> tuple[str, Sequence[str], bool]:
    """Return a status, the words that stand in `code`, and whether the same request may be made again."""
    number = int(status)
    words = [CODES.get(number), *(rule.http.code for rule in Rule if rule.http.status == number)]
    return status, list(dict.fromkeys(filter(None, words))), number in RETRYABLE
