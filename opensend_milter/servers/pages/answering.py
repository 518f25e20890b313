"""A page as it is answered: a template of the caller's, in the dress that all share, under a strict policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

from opensend_milter.servers.pages.charts import stacked_bars
from opensend_milter.servers.pages.files import FILES, PATH
from opensend_milter.servers.pages.marks import mark_of
from opensend_milter.servers.pages.shown import instant, lasted, moment, rate, shown, typed

HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; frame-ancestors 'none'; base-uri 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Robots-Tag": "noindex",
}
"""Of every page; what is neither ours nor in a file of ours is not run, shown or asked for."""
_NOTHING: Mapping[str, str] = MappingProxyType({})


class Tab(NamedTuple):
    """One entry of the navigation."""

    key: str
    """By which a template says, with `here`, that it is the page of this one."""
    path: str
    """Below the root of the site."""
    label: str


class Pages:
    """Makes pages of the templates in one package."""

    def __init__(self, package: str, *, site: str) -> None:
        """`site`: what the pages are of, as every page says at its head and in its title."""
        self._package = package
        self._site = site

    @cached_property
    def _environment(self) -> Environment:
        """Made for the first page: to read the parts takes a tenth of a start, and most doors show no page."""
        environment = Environment(
            loader=ChoiceLoader([PackageLoader(self._package), PackageLoader(__package__)]),
            autoescape=True,
            undefined=StrictUndefined,
            finalize=lambda value: "" if value is None else value,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
        )
        environment.filters |= {
            "instant": instant,
            "lasted": lasted,
            "moment": moment,
            "rate": rate,
            "shown": shown,
            "typed": typed,
        }
        environment.globals |= {
            "site": self._site,
            "files": {name: PATH + file.name for name, file in FILES.items()},
            "mark_of": mark_of,
            "stacked_bars": stacked_bars,
        }
        environment.globals["parts"] = environment.get_template("parts.html").module
        return environment

    def answer(
        self,
        request: Request,
        template: str,
        values: Mapping[str, object] = _NOTHING,
        *,
        status: int = 200,
        tabs: Sequence[Tab] = (),
        headers: Mapping[str, str] = _NOTHING,
    ) -> Response:
        """Answer with a page; `values` are the template's, and `headers` go over those of every page."""
        text = self.text(template, values, root=root_of(request), tabs=tabs)
        return HTMLResponse(text, status, {**HEADERS, **headers})

    def text(self, template: str, values: Mapping[str, object], *, root: str, tabs: Sequence[Tab] = ()) -> str:
        """Write a page."""
        return self._environment.get_template(template).render({**values, "root": root, "tabs": tabs})


def root_of(request: Request) -> str:
    """Return the way from the address of this request to the root of the site, wherever a proxy has put that."""
    path: bytes = request.scope.get("raw_path") or request.url.path.encode()
    return "../" * (path.partition(b"?")[0].count(b"/") - 1) or "./"
