"""The dashboard and the alert rules ask for what we show, and for nothing else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families as parsed

from opensend_milter.adapters import prometheus
from opensend_milter.adapters.prometheus import Together
from opensend_milter.core import counting

DOCS = Path(__file__).parents[2] / "docs"
DASHBOARD: dict[str, Any] = json.loads((DOCS / "grafana-dashboard.json").read_text())
RULES: dict[str, Any] = yaml.safe_load((DOCS / "alert-rules.yml").read_text())
OF_THE_SCRAPE = {"job", "instance"}
WORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "offset", "bool", "group_left", "group_right"}
DURATION = r"(?:\d+[smhdwy])+"


def panels() -> Iterator[dict[str, Any]]:
    for panel in DASHBOARD["panels"]:
        yield panel
        yield from panel.get("panels", [])


PANELS = [panel for panel in panels() if panel["type"] != "row"]
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
EXPRESSIONS = [
    *((f"{panel['title']}", target["expr"]) for panel in PANELS for target in panel["targets"]),
    *((rule["alert"], rule["expr"]) for rule in ALERTS),
]


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, set[str]]]:
    """All that our processes show: name -> label -> values."""
    together = Together(counting.AT_THE_DOOR, tmp_path_factory.mktemp("counts") / "metrics")
    pages = [together.page()]
    for measures in (counting.IN_DELIVERY, counting.OVER_HTTP, counting.AT_AUTH):
        page = prometheus.alone(measures)
        counting.http_request("/v1/send", "POST", 503, 0.1)
        pages.append(page())
    counting.count_in(counting.NOWHERE)
    found: dict[str, dict[str, set[str]]] = {"up": {}}
    for text in pages:
        for family in parsed(text.decode()):
            for sample in family.samples:
                labels = found.setdefault(sample.name, {})
                for name, value in sample.labels.items():
                    labels.setdefault(name, set()).add(value)
    return found


@cache
def asked(expression: str) -> tuple[set[str], list[tuple[str, str, str, str]], set[str]]:
    """Return the metrics of an expression, its matchers (metric, label, operator, value), and the labels it keeps."""
    matchers = [
        (metric, *matcher)
        for metric, inside in re.findall(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}", expression)
        for matcher in re.findall(r'(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)"', inside)
    ]
    kept = {
        label.strip()
        for inside in re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", expression)
        for label in inside.split(",")
    }
    bare = re.sub(r"\{[^}]*\}|\[[^]]*\]|\b(?:by|without|on|ignoring)\s*\([^)]*\)", " ", expression)
    bare = re.sub(rf"\b{DURATION}\b", " ", bare)
    names = {name for name, call in re.findall(r"\b([a-zA-Z_:][\w:]*)\b(\s*\()?", bare) if not call} - WORDS
    return names, matchers, kept


def test_the_reader_of_expressions_reads() -> None:
    expression = 'sum by (le, a) (rate(one_bucket{b=~"x.*", c="d"}[5m] offset 1h30m)) > 5 * two and count(three) == 1e3'
    assert asked(expression) == (
        {"one_bucket", "two", "three"},
        [("one_bucket", "b", "=~", "x.*"), ("one_bucket", "c", "=", "d")],
        {"le", "a"},
    )


@pytest.mark.parametrize(("title", "expression"), EXPRESSIONS)
def test_every_expression_asks_for_what_is_shown(
    title: str, expression: str, shown: dict[str, dict[str, set[str]]]
) -> None:
    names, matchers, kept = asked(expression)
    assert names
    assert names <= set(shown), title
    for metric, label, operator, value in matchers:
        if label in OF_THE_SCRAPE:
            continue
        assert label in shown[metric], (title, metric, label)
        values = shown[metric][label]
        assert value in values if operator in {"=", "!="} else any(re.fullmatch(value, one) for one in values)
    assert kept <= {label for name in names for label in shown[name]} | OF_THE_SCRAPE, title
    assert expression.count("(") == expression.count(")")


@pytest.mark.parametrize(
    "measure", [*counting.OVER_HTTP, *counting.IN_DELIVERY, *counting.AT_AUTH], ids=lambda one: one.name
)
def test_every_measure_is_on_the_dashboard(measure: counting.Measure) -> None:
    drawn = " ".join(target["expr"] for panel in PANELS for target in panel["targets"])
    assert re.search(rf"\b{measure.name}(_bucket|_sum|_count)?\b", drawn)


@pytest.mark.parametrize(
    "measure", [*counting.OVER_HTTP, *counting.IN_DELIVERY, *counting.AT_AUTH], ids=lambda one: one.name
)
def test_every_measure_is_documented(measure: counting.Measure) -> None:
    labels = ", ".join(f"`{name}`" for name in measure.labels)
    shown_by = [
        name
        for name, measures in (
            ("serve", counting.AT_THE_DOOR),
            ("http", counting.OVER_HTTP),
            ("worker", counting.IN_DELIVERY),
            ("auth-gate", counting.AT_AUTH),
        )
        if measure in measures
    ]
    line = f"| `{measure.name}` | {measure.kind} | {labels} | {', '.join(shown_by)} | {measure.text} |"
    assert line in (DOCS / "metrics.md").read_text().splitlines()


def test_the_dashboard_is_one_that_grafana_loads() -> None:
    assert DASHBOARD["schemaVersion"] >= 36
    assert DASHBOARD["title"]
    assert DASHBOARD["uid"]
    assert [one["name"] for one in DASHBOARD["templating"]["list"]] == ["datasource"]
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["datasource"]["uid"] == "${datasource}"
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) > 0


def test_no_two_panels_lie_on_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


@pytest.mark.parametrize("panel", PANELS, ids=lambda one: one["title"])
def test_legends_name_labels_that_are_there(panel: dict[str, Any], shown: dict[str, dict[str, set[str]]]) -> None:
    for target in panel["targets"]:
        names, _, kept = asked(target["expr"])
        assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels_left(
            names, kept, shown, target["expr"]
        )


@pytest.mark.parametrize("rule", ALERTS, ids=lambda one: one["alert"])
def test_alerts_say_what_they_mean(rule: dict[str, Any], shown: dict[str, dict[str, set[str]]]) -> None:
    assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert rule["annotations"]["summary"]
    assert re.fullmatch(DURATION, rule.get("for", "1m"))
    names, _, kept = asked(rule["expr"])
    used = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
    assert used <= labels_left(names, kept, shown, rule["expr"])


def labels_left(names: set[str], kept: set[str], shown: dict[str, dict[str, set[str]]], expression: str) -> set[str]:
    """Return the labels of a result: what an aggregation keeps, or all there are."""
    if re.search(r"\b(sum|max|min|avg|count)\b\s*(by\b|\()", expression):
        return kept
    return {label for name in names for label in shown[name]} | OF_THE_SCRAPE


def test_alerts_have_names_of_their_own() -> None:
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS) > 5
