from __future__ import annotations

import math
from xml.etree import ElementTree as ET

import pytest

from bench.compare import FULL, QUICK, WISHES, named, picture
from bench.figures import Figures, Spread, percentile, ratios, spread, together
from bench.flame import draw, folded
from bench.goals import C_MILTER, OURS, STATIC_AUTH, Goal, goals, rate_ratio, table
from bench.load import Load, body, header
from bench.systems import overridden

A_LOAD = Load(port=25, sender="app@example.org", sessions=1)


def figures(per_s: float = 100.0, *, p99_ms: float = 10.0, milter: float = 0.0, postfix: float = 1.0) -> Figures:
    cpu_ms = {"postfix": postfix, "milter": milter, "postgres": 0.0}
    return Figures(
        messages=int(per_s * 10), seconds=10.0, p50_ms=1.0, p99_ms=p99_ms, cpu_ms=cpu_ms, errors={}, memory_mb=50.0
    )


@pytest.mark.parametrize(
    ("values", "share", "expected"),
    [([1.0], 0.99, 1.0), (list(range(1, 101)), 0.99, 99), (list(range(1, 101)), 0.5, 50), ([3.0, 1.0, 2.0], 1.0, 3.0)],
)
def test_a_percentile_is_one_of_the_values(values: list[float], share: float, expected: float) -> None:
    assert percentile(values, share) == expected


def test_nothing_measured_is_no_figure() -> None:
    assert math.isnan(percentile([], 0.5))
    assert spread([math.nan]) is None
    assert ratios([1.0, 2.0], [0.0, 4.0]) == Spread(0.5, 0.5, 0.5)
    assert figures(0).per_s == 0


def test_a_ratio_is_taken_within_each_round() -> None:
    """A machine that is slow for one round is slow for both."""
    assert ratios([80, 8, 75], [100, 10, 100]) == Spread(0.8, 0.75, 0.8)


def test_errors_add_up_by_kind() -> None:
    assert together([{"data: 451": 1}, {}, {"data: 451": 2, "auth: 454": 1}]) == {"data: 451": 3, "auth: 454": 1}


@pytest.mark.parametrize(
    ("measured", "more_is_better", "verdict"),
    [
        (None, True, "not measured"),
        (0.95, True, "aim met"),
        (0.90, True, "aim met"),
        (0.89, True, "must met"),
        (0.69, True, "MISSED"),
        (0.69, False, "aim met"),
        (0.95, False, "MISSED"),
    ],
)
def test_a_verdict_goes_by_the_median(measured: float | None, verdict: str, *, more_is_better: bool) -> None:
    must, aim = (0.7, 0.9) if more_is_better else (0.9, 0.7)
    range_ = None if measured is None else Spread(measured, 0.0, 9.0)
    goal = Goal(what="x", must=must, aim=aim, measured=range_, more_is_better=more_is_better)
    assert goal.verdict == verdict


def test_each_goal_takes_its_figures_from_its_load() -> None:
    results = {
        ("many_20", OURS): [figures(90, milter=0.4, p99_ms=12)],
        ("many_20", C_MILTER): [figures(100)],
        ("one_20", OURS): [figures(60, p99_ms=30)],
        ("one_20", C_MILTER): [figures(100)],
        ("recipients_50", OURS): [figures(milter=0.8)],
        ("attachment_30mb", OURS): [figures()],
        ("login_20", C_MILTER): [figures(90)],
        ("login_20", STATIC_AUTH): [figures(100)],
    }
    lines = goals(results, idle_mb=100.0, growth=Spread(1.2, 1.1, 1.3))
    measured = [round(line.measured.median, 6) if line.measured else None for line in lines]
    assert measured == [0.9, 0.6, 1.2, 3.0, 0.4, 1.2, 2.0, 50.0, 100.0, 0.9]
    verdicts = ["aim met", "MISSED", "aim met", "MISSED", "must met", "must met", "must met", "aim met", "must met"]
    assert [line.verdict for line in lines] == [*verdicts, "must met"]
    assert table(lines).count("\n") == len(lines) + 1


def test_goals_without_figures_are_not_measured() -> None:
    assert {goal.verdict for goal in goals({}, idle_mb=None, growth=None)} == {"not measured"}


def test_systems_measured_in_fewer_rounds_are_compared_in_those() -> None:
    results = {("one_20", OURS): [figures(50)] * 3, ("one_20", C_MILTER): [figures(100)]}
    assert rate_ratio(results, "one_20", OURS, C_MILTER) == Spread(0.5, 0.5, 0.5)


@pytest.mark.parametrize("size_bytes", [1, 300, 2_048, 100_000])
@pytest.mark.parametrize("attachment", [False, True])
def test_a_message_is_mail_of_the_size_asked_for(size_bytes: int, *, attachment: bool) -> None:
    load = Load(port=25, sender="a@example.org", sessions=1, size_bytes=size_bytes, attachment=attachment)
    head = header(load, ["to@example.net"], "name")
    made = head + body(load, len(head))
    assert made.endswith(b"\r\n.\r\n")
    assert made.count(b"\r\n.") == 1
    assert b"\n" not in made.replace(b"\r\n", b"")
    assert max(map(len, made.split(b"\r\n"))) <= 78
    assert size_bytes < 500 or abs(len(made) - size_bytes) < 100


def test_no_two_messages_are_alike() -> None:
    """Else the second would be a repeat, and not stored."""
    assert header(A_LOAD, ["to@example.net"], "a-1") != header(A_LOAD, ["to@example.net"], "a-2")


def test_a_parameter_is_replaced_with_the_lines_that_continue_it() -> None:
    main = "a = 1\nsmtpd_milters = x,\n  y\n\tz\nb = 2\n"
    assert overridden(main, "smtpd_milters", "") == "a = 1\nsmtpd_milters = \nb = 2\n"


@pytest.mark.parametrize("main", ["", "# smtpd_milters = x\n", "smtpd_milters = x\nsmtpd_milters = y\n"])
def test_a_parameter_that_is_not_there_once_ends_the_measurement(main: str) -> None:
    with pytest.raises(SystemExit, match="smtpd_milters"):
        overridden(main, "smtpd_milters", "")


@pytest.mark.parametrize("load", WISHES)
def test_every_load_is_measured_and_has_a_name(load: str) -> None:
    assert load in {part.load for part in FULL}
    assert named(load)


def test_the_quick_round_measures_every_goal_but_growth() -> None:
    results = {(part.load, system): [figures(milter=0.1)] for part in QUICK for system in part.systems}
    lines = goals(results, idle_mb=1.0, growth=Spread(1, 1, 1))
    assert "not measured" not in {goal.verdict for goal in lines}


def test_the_picture_is_svg_with_a_bar_for_each_system() -> None:
    results = {("many_20", system): [figures()] for system in (OURS, C_MILTER)}
    root = ET.fromstring(picture(results))  # noqa: S314  # our own
    rectangles = root.findall("{http://www.w3.org/2000/svg}rect")
    assert len(rectangles) == 1 + 2 + 2  # background, legend, bars


def test_a_frame_is_as_wide_as_its_share() -> None:
    root = folded(
        ["run (a.py:1);read (opensend_milter/core/message.py:2) 30", "run (a.py:1) 69", "seldom (b.py:1);<x> 1", ""]
    )
    assert (root.samples, root.depth) == (100, 3)
    drawing = ET.fromstring(draw(root, "a & b"))  # noqa: S314  # ours
    drawn = {
        frame[0].text: (frame[1].get("fill"), float(frame[1].get("width", "0")))
        for frame in drawing
        if frame.tag.endswith("}g")
    }
    assert drawn["run (a.py:1): 99.0%"][1] == pytest.approx(1187)
    assert drawn["read (opensend_milter/core/message.py:2): 30.0%"] == ("#f0803c", 359.0)
    assert "<x>: 1.0%" in drawn
    assert len(drawn) == 5


def test_a_frame_too_narrow_to_read_is_left_out() -> None:
    assert "seldom" not in draw(folded(["often 999", "seldom 1"]), "")
