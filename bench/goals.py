"""The goals, and how what was measured compares with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bench.figures import Figures, Spread, ratios, spread

Results = Mapping[tuple[str, str], Sequence[Figures]]
"""By load and system: one of each round."""
ALONE, C_MILTER, PYMILTER, OURS = "postfix alone", "empty C milter", "empty pymilter", "ours"
BESIDE = "ours opensend"
"""Ours as it is shipped, on OpenSend's own tables and indexes, writing the rows of its log."""
STATIC_AUTH = "static passdb"
BEFORE = "8ff7e84"
"""The commit that attachments are compared with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One line of the table."""

    what: str
    must: float
    aim: float
    measured: Spread | None
    more_is_better: bool = False
    unit: str = ""

    @property
    def verdict(self) -> str:
        """Judged by the median."""
        if self.measured is None:
            return "not measured"
        for name, limit in (("aim met", self.aim), ("must met", self.must)):
            value = self.measured.median
            if value >= limit if self.more_is_better else value <= limit:
                return name
        return "MISSED"


def rate_ratio(results: Results, load: str, system: str, to: str) -> Spread | None:
    """Compare messages per second, round by round."""
    return _ratio(results, load, system, to, lambda one: one.per_s)


def goals(results: Results, *, idle_mb: float | None, growth: Spread | None, attachments: Spread | None) -> list[Goal]:
    """Return the table; what was not measured has no value."""
    mine = results.get(("many_20", OURS), ())
    many_recipients = results.get(("recipients_50", OURS), ())
    shared = min(len(mine), len(many_recipients))
    large = results.get(("attachment_30mb", OURS), ())
    return [
        Goal(
            what="msgs/s, many per connection, 20 sessions, to the empty C milter",
            must=0.70, aim=0.90, more_is_better=True,
            measured=rate_ratio(results, "many_20", OURS, C_MILTER),
        ),
        Goal(
            what="msgs/s, many per connection, 20 sessions, on OpenSend's tables, to the empty C milter",
            must=0.60, aim=0.80, more_is_better=True,
            measured=rate_ratio(results, "many_20", BESIDE, C_MILTER),
        ),
        Goal(
            what="msgs/s, one per connection, 20 sessions, to the empty C milter",
            must=0.85, aim=0.95, more_is_better=True,
            measured=rate_ratio(results, "one_20", OURS, C_MILTER),
        ),
        Goal(
            what="p99 dot-to-250, many per connection, 20 sessions, to the empty C milter",
            must=2.0, aim=1.3,
            measured=_ratio(results, "many_20", OURS, C_MILTER, lambda one: one.p99_ms),
        ),
        Goal(
            what="p99 dot-to-250, one per connection, 20 sessions, to the empty C milter",
            must=2.0, aim=1.3,
            measured=_ratio(results, "one_20", OURS, C_MILTER, lambda one: one.p99_ms),
        ),
        Goal(
            what="CPU per message of serve + Postgres, 2 KB, to Postfix's own",
            must=0.6, aim=0.35,
            measured=ratios([_ours_ms(one) for one in mine], [one.cpu_of("postfix") for one in mine]),
        ),
        Goal(
            what=f"msgs/s, attachments of 1 MB, to {BEFORE}",
            must=2.0, aim=4.0, more_is_better=True, measured=attachments,
        ),
        Goal(what="cost with many emails and suppressions, to empty tables", must=1.1, aim=1.05, measured=growth),
        Goal(
            what="50 recipients to 1, CPU of serve + Postgres",
            must=2.0, aim=1.5,
            measured=ratios(
                [_ours_ms(one) for one in many_recipients[:shared]], [_ours_ms(one) for one in mine[:shared]]
            ),
        ),
        Goal(
            what="ten 30 MB messages at once: peak memory of serve",
            must=110, aim=80, unit=" MB", measured=spread(one.memory_mb for one in large),
        ),
        Goal(
            what="idle memory of serve with two children",
            must=60, aim=40, unit=" MB", measured=spread([] if idle_mb is None else [idle_mb]),
        ),
        Goal(
            what="AUTH with a cold cache, sessions/s with TLS, to a static passdb",
            must=0.85, aim=0.95, more_is_better=True,
            measured=rate_ratio(results, "login_20", C_MILTER, STATIC_AUTH),
        ),
    ]  # fmt: skip


def table(lines: Sequence[Goal]) -> str:
    """Return the goals as a table in Markdown."""
    rows = ["| what | must | aim | measured (range) | |", "|---|---|---|---|---|"]
    for goal in lines:
        measured = f"{goal.measured}{goal.unit}" if goal.measured else ""
        rows.append(
            f"| {goal.what} | {goal.must:g}{goal.unit} | {goal.aim:g}{goal.unit} | {measured} | {goal.verdict} |"
        )
    return "\n".join(rows)


def _ours_ms(one: Figures) -> float:
    return one.cpu_of("milter", "postgres")


def _ratio(results: Results, load: str, system: str, to: str, value: Callable[[Figures], float]) -> Spread | None:
    mine, theirs = results.get((load, system), ()), results.get((load, to), ())
    shared = min(len(mine), len(theirs))
    return ratios([value(one) for one in mine[:shared]], [value(one) for one in theirs[:shared]])
