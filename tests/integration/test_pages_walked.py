"""Chromium walks every page in light and dark, on a telephone and on a screen.

With `UPDATE_PICTURES=1 .venv/bin/pytest tests/integration/test_pages_walked.py` what it saw lies in build/pictures/.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from opensend_milter.core.rates import Allowance
from opensend_milter.core.refs import Refused
from opensend_milter.core.request import RequestLimits
from opensend_milter.core.story import Moment
from opensend_milter.servers.pages import files
from opensend_milter.servers.pages.answering import Pages, Tab
from opensend_milter.servers.pages.charts import Series
from opensend_milter.servers.web.openapi import openapi
from opensend_milter.servers.web.public import front, reference, told
from opensend_milter.servers.web.server import application
from tests.browser import Browser, Scheme, browsing, is_there
from tests.integration import console_pages, many_messages
from tests.integration.emptied_database import Databases
from tests.integration.http_sites import served
from tests.integration.private_postgres import Cluster, Database
from tests.waiting import await_true

ROOT = Path(__file__).parents[2]
PICTURES = ROOT / "build" / "pictures"
AXE = ROOT / "tests" / "node" / "node_modules" / "axe-core" / "axe.min.js"
TOKEN = "7DJ0H3NH6Y4E30HVDGQ1JAXSMY"
REFUSED = Refused(rule="from-unverified", code=550, enhanced="5.7.1", from_domain="<script>alert(1)</script>.example")


class Page(NamedTuple):
    """One page to be walked: the picture's name, the site, and where it is there."""

    name: str
    site: str
    path: str


PARTS = Pages("tests.gallery", site="Gallery")
AT = datetime(2026, 11, 30, 12, tzinfo=UTC)
PAGES = (
    Page("start", "public", "/"),
    Page("api", "public", "/docs"),
    Page("refusal", "public", f"/r/{TOKEN}"),
    Page("refusal-unknown", "public", "/r/nothing"),
    Page("gallery", "gallery", "/"),
    *(Page(f"console-{name}", "ours", path) for name, path in console_pages.OURS.items()),
    *(Page(f"console-{name}", "holder", path) for name, path in console_pages.OF_A_KEY.items()),
)
SCHEMES: tuple[Scheme, ...] = ("light", "dark")
WIDTHS = (360, 1440)
VIEWS = list(product(SCHEMES, WIDTHS))
EVERY_PAGE = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)

SHOWN = "document.querySelector('[data-part] ul')"

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not is_there(), reason="there is no Chromium: tools/setup tests"),
]


@dataclass(frozen=True, slots=True)
class Site:
    """Where pages are, and as whom they are looked at."""

    url: str
    cookies: Mapping[str, str] = field(default_factory=dict)


@pytest.fixture(scope="module")
def sites(_shared_cluster: Cluster, _databases: Databases, _template: Path) -> Iterator[Mapping[str, Site]]:
    document = openapi(max_bulk_messages=100, limits=RequestLimits())
    routes = [
        *front.routes(),
        *files.routes(),
        *reference.routes(document, ""),
        *told.routes(lambda token: REFUSED if token == TOKEN else None, Allowance(1_000, time.monotonic)),
    ]
    # Beside those that are handed out one at a time.
    _shared_cluster.new_database("walked", template=_databases.template)
    with (
        served(application(routes)) as public,
        served(Starlette(routes=gallery())) as parts,
        console_pages.walked(Database("walked", _shared_cluster, _template)) as (console, ours, holder),
    ):
        yield {
            "public": Site(f"http://127.0.0.1:{public}"),
            "gallery": Site(f"http://127.0.0.1:{parts}"),
            "ours": Site(console, ours),
            "holder": Site(console, holder),
        }
    _shared_cluster.drop_database("walked")


def gallery(events: str = "retry: 3600000\n\n", refresh_s: int = 3_600) -> list[Route]:
    """Show every part that pages are put together of; what is live hears these events."""
    values = {
        "hostile": "<script>alert(1)</script> \u202e" + "W" * 200,
        "at": AT,
        "moments": [
            Moment(at=AT, what=state, who="mx.example.net", text="250 ok") for state in ("queued", "delivered")
        ],
        "hours": [f"{hour:02}:00" for hour in range(24)],
        "series": [
            Series("delivered", "good", [hour * 97 % 31 for hour in range(24)]),
            Series("bounced", "bad", [hour * 41 % 7 for hour in range(24)]),
        ],
        "live": "live",
        "refresh_s": refresh_s,
    }
    tabs = (Tab("gallery", "", "Gallery"), Tab("other", "other", "Other"))

    async def page(request: Request) -> Response:
        return PARTS.answer(request, "gallery.html", values, tabs=tabs)

    async def heard(_: Request) -> Response:
        return Response(events, media_type="text/event-stream")

    return [Route("/", page), Route("/live", heard), *files.routes()]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One for the whole walk: to start takes it longer than a page."""
    with browsing(tmp_path_factory.mktemp("chromium")) as begun:
        yield begun


def opened(browser: Browser, sites: Mapping[str, Site], page: Page) -> None:
    site = sites[page.site]
    browser.open(site.url + page.path, site.cookies)


def viewed(browser: Browser, sites: Mapping[str, Site], page: Page) -> Iterator[tuple[Scheme, int]]:
    """Open it, and turn it to each view: nothing of a page asks how it is looked at but its style."""
    browser.look_as(*VIEWS[0])
    opened(browser, sites, page)
    for view in VIEWS:
        browser.look_as(*view)
        browser.settle()
        yield view


@EVERY_PAGE
def test_a_page_is_whole_asks_for_nothing_elsewhere_and_fits(
    browser: Browser, sites: Mapping[str, Site], page: Page
) -> None:
    for view in viewed(browser, sites, page):
        is_whole(browser, sites, page, *view)


def is_whole(browser: Browser, sites: Mapping[str, Site], page: Page, scheme: Scheme, width: int) -> None:
    """See that nothing was wrong with the open page so far."""
    if os.environ.get("UPDATE_PICTURES"):
        browser.picture(PICTURES / f"{page.name}-{scheme}-{width}.png")
    wide = browser.evaluate("document.documentElement.scrollWidth")
    said = [one for one in browser.complaints() if not is_of_the_page_itself(one, sites, page)]
    assert said == [], (page, scheme, width)
    assert [url for url in browser.asked_for() if not url.startswith(sites[page.site].url + "/")] == []
    assert wide <= width, (page, scheme, width)


def is_of_the_page_itself(complaint: str, sites: Mapping[str, Site], page: Page) -> bool:
    """Tell whether it is only that the page's status is 404, which a browser calls an error."""
    return complaint.startswith("Failed to load") and complaint.endswith(sites[page.site].url + page.path)


@EVERY_PAGE
@pytest.mark.skipif(not AXE.is_file(), reason="there is no package `axe-core` of Node.js: tools/setup tests")
def test_a_page_is_for_everybody(browser: Browser, sites: Mapping[str, Site], page: Page) -> None:
    """By all rules of axe-core, its best practices included."""
    for _ in viewed(browser, sites, page):
        is_for_everybody(browser, page)


def is_for_everybody(browser: Browser, page: Page) -> None:
    """Have axe-core look at what is open."""
    if not browser.evaluate("'axe' in window"):
        browser.evaluate(AXE.read_text())
    found = browser.evaluate("axe.run({resultTypes: ['violations']})")["violations"]
    told = [(one["id"], one["help"], [node["html"][:200] for node in one["nodes"]][:3]) for one in found]
    assert told == [], (page, json.dumps(told, indent=1))


def test_the_page_of_a_message_of_any_fate_is_whole_and_for_everybody(
    browser: Browser, sites: Mapping[str, Site]
) -> None:
    """In one view each, with another hostile word each: it is one page."""
    for number, fate in enumerate(many_messages.FATES, start=1):
        page = Page(f"console-fate-{fate}", "ours", f"/messages/{many_messages.id_of(fate, number)}")
        browser.look_as("light", 360)
        opened(browser, sites, page)
        is_whole(browser, sites, page, "light", 360)
        assert browser.evaluate("document.querySelector('.verdict').innerText")
        if AXE.is_file():
            is_for_everybody(browser, page)


@EVERY_PAGE
def test_a_page_tells_the_same_without_script(browser: Browser, sites: Mapping[str, Site], page: Page) -> None:
    browser.look_as("light", 1440)
    opened(browser, sites, page)
    # A button that copies is of no use without it; and when it was asked is another time.
    told = (
        "document.querySelectorAll('[data-copy], [data-pause], time').forEach((it) => it.remove());"
        "document.body.innerText"
    )
    with_script = browser.evaluate(told)
    browser.run_scripts(does=False)
    try:
        opened(browser, sites, page)
        without = browser.evaluate(told)
    finally:
        browser.run_scripts(does=True)
    assert without.split() == with_script.split()


@EVERY_PAGE
def test_a_keyboard_reaches_the_content_first_and_is_seen_there(
    browser: Browser, sites: Mapping[str, Site], page: Page
) -> None:
    browser.look_as("light", 1440)
    opened(browser, sites, page)
    browser.press("Tab")
    assert browser.evaluate("document.activeElement.getAttribute('href')") == "#main"
    assert browser.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
    browser.press("Tab")
    assert browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_what_is_live_shows_what_it_hears(browser: Browser) -> None:
    rows = '<ul><li data-row="2">the second</li><li data-row="1">the first</li></ul>'
    button = '<button type="button" id="new" data-copy hidden>Copy</button>'
    events = f"event: messages\ndata: {rows}{button}\n\nretry: 3600000\n\n"
    browser.look_as("light", 1440)
    with served(Starlette(routes=gallery(events))) as port:
        browser.open(f"http://127.0.0.1:{port}")
        await_true(lambda: browser.evaluate(f"{SHOWN}.children.length") == 2, "a row comes")
        assert browser.evaluate(f"{SHOWN}.innerText") == "the second\nthe first"
        assert browser.evaluate("[...document.querySelectorAll('.new')].map((it) => it.innerText)") == ["the second"]
        assert browser.evaluate("document.querySelector('#new').hidden") is False
        browser.open("about:blank")


def test_what_is_live_can_be_told_to_stand_still(browser: Browser) -> None:
    """By keyboard; and it does where somebody walks through it by that."""
    asked: list[str] = []

    async def heard(request: Request) -> Response:
        asked.append(request.url.path)
        data = f'<ul><li data-row="{len(asked)}"><a href="#x">heard {len(asked)}</a></li></ul>'
        return Response(f"event: messages\ndata: {data}\n\nretry: 50\n\n", media_type="text/event-stream")

    page, _, *others = gallery()
    browser.look_as("light", 1440)
    with served(Starlette(routes=[page, Route("/live", heard), *others])) as port:
        browser.open(f"http://127.0.0.1:{port}")
        await_true(lambda: len(asked) > 2 and "heard" in browser.evaluate(f"{SHOWN}.innerText"), "it is live")
        browser.evaluate("document.querySelector('[data-pause] input').focus()")
        browser.press("Tab")
        (shown, before) = browser.evaluate(f"{SHOWN}.innerText"), len(asked)
        await_true(lambda: browser.evaluate("1") and len(asked) > before + 2, "it goes on to be told")
        assert browser.evaluate(f"{SHOWN}.innerText") == shown
        browser.evaluate("document.querySelector('[data-pause] input').focus()")
        await_true(lambda: browser.evaluate(f"{SHOWN}.innerText") != shown, "it goes on to show it")
        browser.press(" ")
        assert browser.evaluate("document.querySelector('[data-pause] input').checked") is False
        shown = browser.evaluate(f"{SHOWN}.innerText")
        browser.press(" ")
        await_true(lambda: browser.evaluate(f"{SHOWN}.innerText") != shown, "it is live again")
        browser.open("about:blank")


def test_where_nothing_is_live_the_page_comes_again(browser: Browser) -> None:
    asked: list[str] = []

    async def noted(request: Request) -> Response:
        asked.append(request.url.path)
        return Response(status_code=404)

    page, _, *others = gallery(refresh_s=1)
    with served(Starlette(routes=[page, Route("/live", noted), *others])) as port:
        browser.open(f"http://127.0.0.1:{port}")
        await_true(lambda: browser.evaluate("1") and len(asked) > 1, "it is asked for again")
        browser.open("about:blank")


def test_a_button_copies(browser: Browser, sites: Mapping[str, Site]) -> None:
    browser.look_as("light", 1440)
    browser.open(sites["gallery"].url)
    browser.ask("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    browser.evaluate("document.querySelector('.listing [data-copy]').click()")
    await_true(
        lambda: browser.evaluate("document.querySelector('.listing [data-copy]').innerText") == "Copied", "a word"
    )
    copied = browser.evaluate("navigator.clipboard.readText()")
    assert copied == browser.evaluate("document.querySelector('.listing code').innerText")
