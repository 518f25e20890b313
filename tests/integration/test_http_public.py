"""The public pages of `http` over a real socket: what a browser gets, what programs get, and examples that are run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from opensend_milter.core.rates import Allowance
from opensend_milter.core.refs import Refused
from opensend_milter.core.request import RequestLimits
from opensend_milter.servers.pages import files
from opensend_milter.servers.web.openapi import openapi
from opensend_milter.servers.web.public import front, reference, told
from opensend_milter.servers.web.public.examples import EXAMPLES
from opensend_milter.servers.web.server import application
from tests.asking import Answer, ask
from tests.integration.http_sites import served
from tests.waiting import patience_s

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
DOCUMENT: Mapping[str, Any] = openapi(max_bulk_messages=100, limits=RequestLimits())
REFUSED = Refused(rule="from-unverified", code=550, enhanced="5.7.1", from_domain="example.org")
FIELDS = ("authorization", "content-type", "idempotency-key")
PROGRAMS = {"curl": ["sh", "-e"], "Python": [sys.executable], "Node.js": ["node"]}
TOKEN = "7DJ0H3NH6Y4E30HVDGQ1JAXSMY"


def routes(public_url: str = "") -> Sequence[BaseRoute]:
    return [
        *front.routes(),
        *files.routes(),
        *reference.routes(DOCUMENT, public_url),
        *told.routes(lambda token: REFUSED if token == TOKEN else None, Allowance(told.PER_MINUTE, time.monotonic)),
    ]


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    with served(application(routes("https://mail.example/api"))) as running:
        yield running


def test_people_get_a_page_at_the_root_and_programs_what_they_always_got(port: int) -> None:
    page = ask(port, "GET", "/", Accept=BROWSER)
    assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    for headers in ({}, {"Accept": "*/*"}, {"Accept": "application/json"}):
        answer = ask(port, "GET", "/", **headers)
        assert (answer.status, answer.body["code"]) == (404, "not_found")
        assert answer.headers["vary"] == page.headers["vary"] == "Accept"
    assert ask(port, "POST", "/", b"{}", Accept=BROWSER).status == 405


@pytest.mark.parametrize("path", ["/", "/docs", f"/r/{TOKEN}", "/r/nothing"])
def test_no_page_asks_for_anything_elsewhere_or_leaves_something_behind(port: int, path: str) -> None:
    answer = ask(port, "GET", path, Accept=BROWSER)
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "set-cookie" not in answer.headers
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"
    page = answer.body.decode()
    assert re.findall(r'(?:src|href|action)="(?!\.{1,2}/|#)[^"]*"', page) == []


def test_files_are_kept_for_good_and_have_no_other_type(port: int) -> None:
    page = ask(port, "GET", "/docs").body.decode()
    for address in re.findall(r'(?:href|src)="\./(files/[^"]+)"', page):
        answer = ask(port, "GET", f"/{address}")
        assert answer.status == 200
        assert "immutable" in answer.headers["cache-control"]
        assert answer.headers["x-content-type-options"] == "nosniff"
    for nothing in ("/files/style.css", "/files/..%2Ffiles.py", "/files/", "/files/%00"):
        assert ask(port, "GET", nothing).status == 404


def test_the_reference_calls_us_as_the_reader_does(port: int) -> None:
    def first(answer: Answer) -> str:
        found = re.search(r"https?://[^/]+(?:/api)?(?=/v1/send\b)", unescape(answer.body.decode()))
        assert found
        return found[0]

    assert first(ask(port, "GET", "/docs")) == f"http://127.0.0.1:{port}"
    assert first(ask(port, "GET", "/docs", Host="inner.example:1")) == "http://inner.example:1"
    assert first(ask(port, "GET", "/docs", Host="mail.example")) == "https://mail.example/api"
    hostile = ask(port, "GET", "/docs", Host='"><script>alert(1)</script>')
    assert first(hostile) == "https://mail.example/api"
    assert b"alert(1)" not in hostile.body


@pytest.mark.parametrize("language", PROGRAMS)
def test_each_example_makes_the_request_that_it_is_about(tmp_path: Path, language: str) -> None:
    """They are run as they stand in the page, against a server that writes down what it is asked."""
    log: list[object] = []

    async def heard(request: Request) -> Response:
        fields = {name: request.headers[name] for name in FIELDS if name in request.headers}
        body = await request.body()
        log.append((request.method, request.url.path, dict(request.query_params), fields, json.loads(body or "null")))
        return JSONResponse({})

    anything = Route("/{path:path}", heard, methods=["GET", "POST", "PATCH"])
    with served(Starlette(routes=[*reference.routes(DOCUMENT, ""), anything])) as port:
        page = ask(port, "GET", "/docs").body.decode()
        found = re.findall(rf"<summary>{re.escape(language)}</summary>.*?<code>(.*?)</code>", page, re.DOTALL)
        run_all(language, [unescape(one) for one in found], tmp_path)
    assert log == list(asked_by_examples())


def run_all(language: str, programs: Sequence[str], directory: Path) -> None:
    """Run them in one process, one after another: to start takes longer than to ask."""
    script = directory / "examples.mjs"
    # In Node.js each has its own `answer`.
    script.write_text("".join(f"{{\n{one}}}\n" if language == "Node.js" else one for one in programs))
    done = subprocess.run(
        [*PROGRAMS[language], script],
        env={"PATH": os.environ["PATH"], "KEY": "os_example"},
        timeout=patience_s(),
        check=False,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    assert (done.returncode, done.stderr) == (0, b"")


def asked_by_examples() -> Iterator[object]:
    for path, methods in DOCUMENT["paths"].items():
        for method, said in methods.items():
            example = EXAMPLES[said["operationId"]]
            fields = {name.lower(): value for name, value in example.headers.items()}
            fields |= {} if said.get("security") == [] else {"authorization": "Bearer os_example"}
            fields |= {"content-type": "application/json"} if example.body else {}
            yield method.upper(), path.replace("{id}", example.id), example.query, fields, example.body
