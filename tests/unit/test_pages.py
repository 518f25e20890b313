"""Pages: the dress, its parts, its files; and nothing that a stranger wrote is more than text in them."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest
from jinja2 import UndefinedError
from starlette.requests import Request

from opensend_milter.core.story import Moment
from opensend_milter.servers.pages import files
from opensend_milter.servers.pages.answering import HEADERS, Pages, Tab, root_of
from opensend_milter.servers.pages.charts import Series
from opensend_milter.servers.pages.marks import mark_of
from opensend_milter.servers.pages.shown import MOST_CHARACTERS, lasted, rate, shown

Show = Callable[..., str]
NIGHT = datetime(2026, 11, 30, 23, 59, 1, tzinfo=UTC)
HOSTILE = [
    "<script>alert(1)</script>",
    "\"' onmouseover=alert(1) x='",
    "</title></style><svg onload=alert(1)>",
    "{{ 7777 * 7777 }}",
]
_PACKAGES = count()


def asked(path: bytes = b"/a/page") -> Request:
    return Request({"type": "http", "method": "GET", "path": path.decode(), "raw_path": path, "headers": []})


@pytest.fixture
def show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Show:
    """Answer with a template that is given as its text."""
    package = f"pages_of_a_test_{next(_PACKAGES)}"
    templates = tmp_path / package / "templates"
    templates.mkdir(parents=True)
    (tmp_path / package / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)

    def shown(content: str, title: str = "A page", **values: object) -> str:
        (templates / "it.html").write_text(
            '{% extends "base.html" %}{% set here = "second" %}'
            f"{{% block title %}}{title}{{% endblock %}}{{% block content %}}{content}{{% endblock %}}"
        )
        tabs = (Tab("first", "", "First"), Tab("second", "second/", "Second"))
        return bytes(Pages(package, site="A site").answer(asked(), "it.html", values, tabs=tabs).body).decode()

    return shown


def test_how_often_and_how_long_are_said_in_few_digits() -> None:
    assert [rate(count, 60) for count in (0, 1, 24, 59, 600, 123_456)] == ["0", "0.017", "0.4", "0.98", "10", "2,058"]
    spans = (0.0, 0.0421, 1.0, 9.94, 59.0, 90.0, 3_600.0, 100_000.0, 86_400.0 * 30, -1.0)
    assert [lasted(timedelta(seconds=one)) for one in spans] == [
        "0 ms", "42 ms", "1 s", "9.9 s", "59 s", "1.5 min", "1 h", "1.2 d", "30 d", "0 ms"
    ]  # fmt: skip


def test_the_frame(show: Show) -> None:
    """Language, title, one heading, landmarks, and a way past them; which page it is stands in the navigation."""
    page = show("Words")
    assert page.lstrip().startswith('<!doctype html>\n<html lang="en">')
    assert "<title>A page · A site</title>" in page
    assert page.count("<h1>") == page.count("<main ") == 1
    assert '<a class="skip" href="#main">' in page
    assert re.findall(r'<a href="([^"]*)"( aria-current="page")?>(\w+)</a>', page) == [
        ("../", "", "First"),
        ("../second/", ' aria-current="page"', "Second"),
    ]


def test_there_is_no_script_or_style_in_a_page(show: Show) -> None:
    series = [Series("sent", "good", [1, 2])]
    page = show('{{ parts.bars("Volume", ["1", "2"], series) }}{{ parts.listing("curl", "x") }}', series=series)
    assert re.findall(r"<script(?! src=)|<style|\sstyle=|\son\w+=", page) == []
    assert "'unsafe" not in HEADERS["Content-Security-Policy"]


@pytest.mark.parametrize("hostile", HOSTILE)
def test_what_strangers_wrote_is_text_in_every_part(show: Show, hostile: str) -> None:
    page = show(
        "{{ parts.badge(it) }}{{ parts.notice('bad', it) }}{{ parts.empty(it) }}{{ parts.definitions([(it, it)]) }}"
        "{% call parts.table(it, [it]) %}<tr><td>{{ it }}</td></tr>{% endcall %}{{ parts.timeline(moments) }}"
        "{{ parts.field('name', it, it, help=it, error=it, more={'placeholder': it}) }}{{ parts.copyable(it) }}"
        "{{ parts.listing(it, it) }}{{ parts.pager(it, it) }}{{ parts.bars(it, [it], series) }}",
        title="{{ it }}",
        it=hostile,
        moments=[Moment(at=NIGHT, what=hostile, who=hostile, text=hostile)],
        series=[Series(hostile, "good", [1])],
    )
    assert hostile not in page or hostile == "{{ 7777 * 7777 }}"
    assert "60481729" not in page
    assert page.count("<script") == 1
    assert re.findall(r"<[^>]*\son\w+=", re.sub(r'"[^"]*"', '""', page)) == []


def test_a_part_that_is_given_nothing_shows_nothing(show: Show) -> None:
    page = show("{{ parts.definitions([('Kept', 0), ('Gone', none), ('Empty', '')]) }}{{ parts.pager(none, none) }}")
    assert "Kept" in page
    assert "Gone" not in page
    assert "Empty" not in page
    assert "pager" not in page


def test_a_value_that_a_template_does_not_get_is_a_fault(show: Show) -> None:
    with pytest.raises(UndefinedError):
        show("{{ forgotten }}")


def test_a_time_is_said_for_people_and_for_programs(show: Show) -> None:
    said = '<time datetime="2026-11-30T23:59:01Z">2026-11-30 23:59:01</time>'
    assert said in show("{{ parts.when(at) }}", at=NIGHT)


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("Grüße, 你好 👩‍👩‍👧", "Grüße, 你好 👩‍👩‍👧"),
        ("a\r\nb\tc\x00d\x7f", "a␍␊b␉c␀d␡"),
        ("invoice\u202efdp.exe", "invoice[U+202E]fdp.exe"),
        ("a\u200bb\u2028c\ufeffd\x85e", "a[U+200B]b[U+2028]c[U+FEFF]d[U+0085]e"),
        ("x" * MOST_CHARACTERS, "x" * MOST_CHARACTERS),
        ("x" * (MOST_CHARACTERS + 1), "x" * MOST_CHARACTERS + "…"),
        (None, ""),
    ],
    ids=["honest", "controls", "turned", "hidden", "long", "too long", "none"],
)
def test_what_would_hide_or_turn_is_seen(text: str | None, seen: str) -> None:
    assert shown(text) == seen


def test_a_state_has_a_mark() -> None:
    assert [mark_of(state) for state in ("delivered", "bounced", "queued", "uncertain", "canceled", "no such")] == [
        "good", "bad", "wait", "unsure", "off", "off",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "root"),
    [(b"/", "./"), (b"/docs", "./"), (b"/r/TOKEN", "../"), (b"/a/b/c?d=/e/", "../../"), (b"/a%2Fb", "./")],
)
def test_the_way_to_the_root_is_relative(path: bytes, root: str) -> None:
    """So that a proxy may have the site anywhere."""
    assert root_of(asked(path)) == root


def test_files_are_named_after_what_is_in_them(show: Show) -> None:
    asked_for = re.findall(r'(?:href|src)="\.\./files/([^"]+)"', show(""))
    assert sorted(asked_for) == sorted(one.name for one in files.FILES.values())
    assert all(re.fullmatch(r"[a-z]+-[0-9a-f]{16}\.(css|js|svg)", name) for name in asked_for)
