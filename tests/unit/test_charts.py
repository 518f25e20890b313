"""Charts: what is drawn of names and numbers, whatever they are."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest

from opensend_milter.servers.pages.charts import HEIGHT, WIDTH, Series, short, stacked_bars


def drawn(labels: list[str], *counts: list[int], name: str = "sent") -> ET.Element:
    series = [Series(f"{name}{nth or ''}", "good" if nth == 0 else "bad", of_one) for nth, of_one in enumerate(counts)]
    return ET.fromstring(stacked_bars("Volume", labels, series))  # noqa: S314  # our own


def rectangles(chart: ET.Element) -> list[tuple[float, ...]]:
    return [tuple(float(one.attrib[name]) for name in ("x", "y", "width", "height")) for one in chart.iter("rect")]


def texts(chart: ET.Element) -> list[str]:
    return [one.text or "" for one in chart.iter("text")]


def test_bars_stand_one_on_another_from_the_ground() -> None:
    chart = drawn(["a", "b"], [3, 0], [2, 5])
    (x, y, width, height), (x2, y2, width2, height2), (x3, _, _, height3) = rectangles(chart)
    assert (x, width) == (x2, width2)
    assert y2 + height2 == pytest.approx(y, abs=0.2)
    assert height3 == pytest.approx(height + height2, abs=0.2)
    assert x3 > x + width


def test_it_is_told_in_words_too() -> None:
    chart = drawn(["a", "b"], [3_000, 0], [2, 5])
    assert chart.attrib["role"] == "img"
    assert [one.text for one in chart.iter("title")] == ["Volume", "a: sent 3,000; sent1 2", "b: sent 0; sent1 5"]
    assert [one.text for one in chart.iter("desc")] == ["sent 3,000, sent1 7"]


@pytest.mark.parametrize("labels", [[], ["a"], ["a", "b", "c"]])
def test_without_counts_there_is_a_ground_and_no_bar(labels: list[str]) -> None:
    chart = drawn(labels, [0] * len(labels))
    assert rectangles(chart) == []
    assert texts(chart)[:2] == ["0", "1"]


def test_one_bar_stays_within_the_chart() -> None:
    ((x, y, width, height),) = rectangles(drawn(["only"], [7]))
    assert 0 < x < x + width < WIDTH
    assert 0 < y < y + height < HEIGHT


def test_the_largest_numbers_are_drawn_as_others_are() -> None:
    huge = 2**63 - 1
    chart = drawn(["a", "b"], [huge, 1], [huge, 0])
    assert all(0 <= y <= y + height < HEIGHT for _, y, _, height in rectangles(chart))
    assert "2e+19" in texts(chart)


@pytest.mark.parametrize("hostile", ["</svg><script>alert(1)</script>", '" onload="alert(1)', "<!--", "&bogus;", "]]>"])
def test_names_are_text(hostile: str) -> None:
    chart = drawn([hostile], [1], name=hostile)
    assert {one.tag for one in chart.iter()} <= {"svg", "title", "desc", "line", "text", "g", "rect"}
    assert not [key for one in chart.iter() for key in one.attrib if key.startswith("on")]
    assert hostile in texts(chart)


def test_a_month_of_hours_has_few_labels() -> None:
    labels = [str(at) for at in range(720)]
    said = texts(drawn(labels, [1] * 720))
    assert len([one for one in said if one in labels[1:]]) <= 9
    assert len(re.findall("second", stacked_bars("x", labels, [Series("y", "good", [1] * 720)]))) == 4


@pytest.mark.parametrize(
    ("count", "top"), [(1, "1"), (23, "30"), (42, "60"), (99, "100"), (4_100, "6k"), (7_001, "8k")]
)
def test_the_axis_ends_a_little_above_the_highest(count: int, top: str) -> None:
    assert texts(drawn(["a"], [count]))[2 if count > 1 else 1] == top


def test_labels_at_the_edges_stay_within_them() -> None:
    anchors = [one.attrib["text-anchor"] for one in drawn(["a", "b", "c"], [1, 1, 1]).iter("text")][-3:]
    assert anchors == ["start", "middle", "end"]


def test_series_of_other_lengths_are_a_fault() -> None:
    with pytest.raises(ValueError, match="a count for each label"):
        drawn(["a", "b"], [1])


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0"), (999, "999"), (1_000, "1k"), (1_500, "1.5k"), (2_000_000, "2M"), (5 * 10**12, "5T"), (10**15, "1e+15")],
)
def test_an_axis_has_few_letters(count: int, said: str) -> None:
    assert short(count) == said
