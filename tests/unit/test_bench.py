from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given, strategies as st

from bench import against
from bench.checkouts import code_of, is_ours, prove, resolved
from bench.compare import FULL, QUICK, picture, with_beside
from bench.figures import Figures, Spread, percentile, ratios, spread, together
from bench.flame import draw, folded
from bench.goals import BESIDE, C_MILTER, OURS, STATIC_AUTH, Goal, goals, rate_ratio, table
from bench.load import Load, body, header
from bench.loads import WISHES, named
from bench.paired import LEAST_PAIRS, MOST_PAIRS, Bound, Interval, Verdict, decide, interval, t_95
from bench.quiet import Quiet, Times, steal_percent, times
from bench.systems import overridden

DOCS = Path(__file__).parents[2] / "docs"
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
        ("many_20", BESIDE): [figures(70)],
        ("one_20", OURS): [figures(60, p99_ms=30)],
        ("one_20", C_MILTER): [figures(100)],
        ("recipients_50", OURS): [figures(milter=0.8)],
        ("attachment_30mb", OURS): [figures()],
        ("login_20", C_MILTER): [figures(90)],
        ("login_20", STATIC_AUTH): [figures(100)],
    }
    lines = goals(results, idle_mb=50.0, growth=Spread(1.07, 1.0, 1.1), attachments=Spread(1.7, 1.6, 1.8))
    measured = [round(line.measured.median, 6) if line.measured else None for line in lines]
    assert measured == [0.9, 0.7, 0.6, 1.2, 3.0, 0.4, 1.7, 1.07, 2.0, 50.0, 50.0, 0.9]
    rates, p99, rest = ["aim met", "must met", "MISSED"], ["aim met", "MISSED"], ["must met", "must met", "aim met"]
    assert [line.verdict for line in lines] == [*rates, *p99, "must met", "MISSED", *rest, "must met", "must met"]
    assert table(lines).count("\n") == len(lines) + 1


def test_goals_without_figures_are_not_measured() -> None:
    assert {goal.verdict for goal in goals({}, idle_mb=None, growth=None, attachments=None)} == {"not measured"}


def test_the_documentation_has_these_goals() -> None:
    lines = table(goals({}, idle_mb=None, growth=None, attachments=None)).splitlines()
    text = (DOCS / "performance.md").read_text()
    for line in lines:
        assert line.partition("|  | not measured |")[0] in text


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


def test_the_quick_round_measures_every_goal_but_growth_and_attachments() -> None:
    results = {(part.load, system): [figures(milter=0.1)] for part in QUICK for system in with_beside(part.systems)}
    lines = goals(results, idle_mb=1.0, growth=Spread(1, 1, 1), attachments=Spread(1, 1, 1))
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


RATES = st.lists(st.tuples(*[st.floats(1, 10_000)] * 2), min_size=2, max_size=70)


def rates(pairs: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [ours for ours, _ in pairs], [theirs for _, theirs in pairs]


def within(t: float, freedom: int) -> float:
    """Return the probability that Student's t lies between -t and t: its density added up by Simpson's rule."""
    log_of = math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2) - math.log(freedom * math.pi) / 2
    steps = 4_000
    total = 0.0
    for step in range(steps + 1):
        weight = 1 if step in {0, steps} else 4 if step % 2 else 2
        total += weight * math.exp(log_of - (freedom + 1) / 2 * math.log1p((t * step / steps) ** 2 / freedom))
    return 2 * total * t / steps / 3


@pytest.mark.parametrize("freedom", range(1, MOST_PAIRS))
def test_ninety_five_percent_lie_within_each_t(freedom: int) -> None:
    assert within(t_95(freedom), freedom) == pytest.approx(0.95, abs=1e-4)


def test_beyond_the_table_an_interval_is_too_wide_rather_than_too_narrow() -> None:
    assert t_95(1_000) == t_95(MOST_PAIRS - 1) > 1.96


def test_an_interval_is_that_of_the_logarithms() -> None:
    """Logs 0, 0.1 and 0.2: mean 0.1, deviation 0.1, t 4.303 by two degrees of freedom."""
    found = interval([math.exp(0.0), math.exp(0.1), math.exp(0.2)], [1.0, 1.0, 1.0])
    reach = 4.303 * 0.1 / math.sqrt(3)
    assert found
    assert [math.log(value) for value in (found.ratio, found.low, found.high)] == pytest.approx(
        [0.1, 0.1 - reach, 0.1 + reach]
    )
    assert found.pairs == 3


@pytest.mark.parametrize(("ours", "theirs"), [([], []), ([1.0], [1.0]), ([1.0, 0.0], [1.0, 1.0])])
def test_what_has_no_ratio_or_no_deviation_has_no_interval(ours: list[float], theirs: list[float]) -> None:
    assert interval(ours, theirs) is None


@given(RATES)
def test_the_other_way_round_the_interval_is_the_reciprocal(pairs: list[tuple[float, float]]) -> None:
    ours, theirs = rates(pairs)
    one, other = interval(ours, theirs), interval(theirs, ours)
    assert one
    assert other
    reciprocal = (1 / other.ratio, 1 / other.high, 1 / other.low)
    assert (one.ratio, one.low, one.high) == pytest.approx(reciprocal, rel=1e-6)


@given(RATES)
def test_the_ratio_lies_in_its_interval_and_among_the_pairs(pairs: list[tuple[float, float]]) -> None:
    found = interval(*rates(pairs))
    each = [ours / theirs for ours, theirs in pairs]
    assert found
    assert found.low <= found.ratio <= found.high
    assert min(each) * (1 - 1e-9) <= found.ratio <= max(each) * (1 + 1e-9)


@given(RATES)
def test_pairs_that_are_there_both_ways_round_say_that_nothing_differs(pairs: list[tuple[float, float]]) -> None:
    found = interval(*rates([*pairs, *((theirs, ours) for ours, theirs in pairs)]))
    assert found
    assert found.ratio == pytest.approx(1)
    assert found.low <= 1 + 1e-9
    assert found.high >= 1 - 1e-9


@given(st.lists(st.floats(1, 10_000), min_size=2, max_size=70))
def test_a_system_beside_itself_is_equal(values: list[float]) -> None:
    assert interval(values, values) == Interval(1, 1, 1, len(values))


@pytest.mark.parametrize(
    ("low", "high", "pairs", "verdict"),
    [
        (0.98, 1.02, 12, "kept"),
        (0.97, 1.02, 12, "kept"),
        (0.90, 0.96, 12, "not kept"),
        (0.90, 0.97, 12, "go on"),
        (0.90, 1.02, 12, "go on"),
        (0.90, 1.02, 58, "go on"),
        (0.90, 1.02, 60, "undecided"),
        (0.98, 1.02, 60, "kept"),
        (0.98, 1.02, 10, "go on"),
        (0.10, 0.11, 10, "go on"),
    ],
)
def test_a_bound_is_decided_when_the_interval_is_on_one_side_of_it(
    low: float, high: float, pairs: int, verdict: Verdict
) -> None:
    assert decide(Interval((low + high) / 2, low, high, pairs), Bound(0.97), pairs=pairs) == verdict


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [(0.9, 1.02, "kept"), (1.04, 1.1, "not kept"), (1.0, 1.1, "go on"), (0.9, 0.95, "kept")],
)
def test_of_what_less_is_better_the_upper_end_is_the_bound(low: float, high: float, verdict: Verdict) -> None:
    bound = Bound(1.03, more_is_better=False)
    assert decide(Interval((low + high) / 2, low, high, 12), bound, pairs=12) == verdict


@pytest.mark.parametrize(("pairs", "most", "verdict"), [(2, 2, "undecided"), (4, 20, "go on"), (60, 60, "undecided")])
def test_few_pairs_or_no_interval_decide_nothing(pairs: int, most: int, verdict: Verdict) -> None:
    found = Interval(1, 1, 1, pairs) if pairs < LEAST_PAIRS else None
    assert decide(found, Bound(0.97), pairs=pairs, most=most) == verdict


def test_steal_is_a_share_of_all_that_passed() -> None:
    before = times("cpu  100 0 50 800 10 0 5 35 20 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
    assert before == Times(1_000, 35)
    assert steal_percent(before, Times(2_000, 65)) == 3.0
    assert steal_percent(before, before) == 0.0


@pytest.mark.parametrize(("load", "steal", "faults"), [(0.5, 2.0, 0), (0.51, 2.0, 1), (0.0, 2.1, 1), (11.92, 30.0, 2)])
def test_a_machine_that_was_not_quiet_is_named(load: float, steal: float, faults: int) -> None:
    assert len(Quiet(load, steal).faults) == faults


@pytest.mark.parametrize(
    ("options", "limit", "more_is_better"),
    [
        ([], 0.97, True),
        (["--bound", "0.9"], 0.9, True),
        (["--bound-of", "cpu"], 1.03, False),
        (["--bound-of", "cpu", "--bound", "1.1"], 1.1, False),
    ],
)
def test_a_bound_is_on_the_rate_unless_another_is_named(
    options: list[str], limit: float, *, more_is_better: bool
) -> None:
    assert asked(options).bound == Bound(limit, more_is_better=more_is_better)
    assert asked(options).load == "many_20"


def asked(options: list[str]) -> against.Wish:
    parser = argparse.ArgumentParser()
    for name, kind in (("--seconds", float), ("--rounds", int)):
        parser.add_argument(name, type=kind)
    parser.add_argument("--load", action="append")
    against.options(parser)
    return against.wish(parser.parse_args(["--against", "HEAD", *options]))


@pytest.mark.parametrize("options", [["--load", "many_20", "--load", "one_20"], ["--bound", "0"], ["--rounds", "3"]])
def test_what_cannot_be_asked_for_is_refused(options: list[str]) -> None:
    with pytest.raises(SystemExit, match="--"):
        asked(options)


@pytest.mark.parametrize("verdict", ["kept", "not kept", "undecided"])
def test_the_outcome_names_the_verdict_the_bound_and_a_machine_that_was_not_quiet(verdict: Verdict) -> None:
    sides = {"this": [figures(100, milter=0.5)] * 12, "abc": [figures(200, milter=0.5)] * 12}
    compared = against.Compared(
        wish=asked([]), verdict=verdict, intervals={"rate": Interval(0.5, 0.4, 0.6, 12), "cpu": None}, sides=sides,
        quiet=Quiet(1.5, 0.0), seconds=60.0,
    )  # fmt: skip
    told = against.text(compared)
    assert told.endswith(f"at least 0.97: {verdict}")
    assert "0.500 (0.400-0.600)" in told
    assert "not quiet: load 1.50" in told
    made = against.document(compared)
    assert (made["verdict"], made["pairs"], made["commits"]) == (verdict, 12, ["this", "abc"])
    assert verdict in against.EXIT_CODES


def test_a_running_program_is_asked_whose_code_it_has(tmp_path: Path) -> None:
    """As it was started: by its environment, not by ours."""
    package = tmp_path / "opensend_milter"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text("print(flush=True); input()")
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "opensend_milter", "serve"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    ) as program:  # fmt: skip
        assert program.stdout
        program.stdout.readline()
        assert code_of(program.pid) == package
        programs = dict.fromkeys(("serve", "auth-gate", "worker", "http"), program.pid)
        prove(programs, tmp_path)
        with pytest.raises(SystemExit, match="nothing is compared"):
            prove(programs, tmp_path / "other")
        with pytest.raises(SystemExit, match="worker: not among"):
            prove({name: pid for name, pid in programs.items() if name != "worker"}, tmp_path)
        program.communicate(b"\n")


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["python", "-P", "-m", "opensend_milter", "serve"], True),
        (["python", "-P", "-m", "opensend_milter.host.sandbox.inbox"], False),
        (["postgres", "-D", "opensend_milter"], False),
        ([""], False),
    ],
)
def test_our_programs_are_known_by_their_command(command: list[str], *, expected: bool) -> None:
    assert is_ours(command) == expected


@pytest.mark.parametrize("commit", ["no-such-thing", "--all", ""])
def test_what_is_no_commit_is_refused(commit: str) -> None:
    with pytest.raises(SystemExit, match="no such commit"):
        resolved(commit)
