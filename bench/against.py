"""`make bench-quick ARGS="--against COMMIT"`: this checkout beside another commit, until a bound is decided."""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from typing import Literal

from bench.checkouts import HERE, resolved, running, system, temporary_directory, worktree
from bench.figures import Figures
from bench.loads import WISHES, named
from bench.measuring import measure
from bench.paired import LEAST_PAIRS, MOST_PAIRS, Bound, Interval, Verdict, decide, interval
from bench.quiet import Quiet, Watcher
from bench.systems import Stand, System

Figure = Literal["rate", "cpu"]
FIGURES: Mapping[Figure, str] = {"rate": "messages per second", "cpu": "CPU ms of serve + Postgres per message"}
EXIT_CODES: Mapping[Verdict, int] = {"kept": 0, "not kept": 1, "undecided": 3}
"""2 is for wrong arguments."""
EXIT_FAILED, EXIT_INTERRUPTED = 4, 130
SECONDS = 2.0
WARM_UP_S = 2.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What is asked for."""

    commit: str
    load: str = "many_20"
    figure: Figure = "rate"
    limit: float | None = None
    seconds: float = SECONDS
    pairs: int | None = None
    """So many, whatever they say; None: until they say yes or no."""

    @property
    def bound(self) -> Bound:
        """Return the one named, or what is 3 % worse."""
        if self.figure == "rate":
            return Bound(self.limit or 0.97)
        return Bound(self.limit or 1.03, more_is_better=False)

    def describe(self) -> str:
        most = "at least" if self.bound.more_is_better else "at most"
        return f"{FIGURES[self.figure]}, {named(self.load)}: {most} {self.bound.limit:g}"


@dataclasses.dataclass(frozen=True, slots=True)
class Side:
    """One of the two."""

    stand: Stand
    system: System
    figures: list[Figures] = dataclasses.field(default_factory=list)

    def measure(self, wish: Wish, seconds: float) -> Figures:
        load = self.system.load(**WISHES[wish.load], seconds=seconds)
        found = measure(load, self.system.groups, settled=self.system.settle)
        if found.errors or not found.messages:
            raise SystemExit(f"{self.system.name}: messages that were not taken: {found.errors or 'all'}")
        return found

    def values(self, figure: Figure) -> list[float]:
        return [value(one, figure) for one in self.figures]


@dataclasses.dataclass(frozen=True, slots=True)
class Compared:
    """What came of it."""

    wish: Wish
    verdict: Verdict
    intervals: Mapping[Figure, Interval | None]
    sides: Mapping[str, Sequence[Figures]]
    quiet: Quiet
    seconds: float


def value(one: Figures, figure: Figure) -> float:
    return one.per_s if figure == "rate" else one.cpu_of("milter", "postgres")


def compare(wish: Wish, say: Callable[[str], None]) -> Compared:
    """Bring both up, measure them in turn until the bound is decided, take both down."""
    watcher, began = Watcher.begin(), time.monotonic()
    with both(wish.commit) as (ours, theirs):
        for side in (ours, theirs):
            side.measure(wish, WARM_UP_S)
        verdict: Verdict = "go on"
        while verdict == "go on":
            # Twice, the other way round: of both orders there are as many.
            one_pair(wish, (ours, theirs), say)
            one_pair(wish, (theirs, ours), say)
            verdict = decided(wish, ours, theirs)
        quiet = watcher.end()
    return Compared(
        wish=wish, verdict=verdict, intervals=intervals(ours, theirs), quiet=quiet,
        sides={side.system.name: side.figures for side in (ours, theirs)}, seconds=time.monotonic() - began,
    )  # fmt: skip


@contextmanager
def both(commit: str) -> Iterator[tuple[Side, Side]]:
    """Yield this checkout, as it is, and the other commit; each with all of its servers."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    full = resolved(commit)
    with ExitStack() as stack:
        directory = stack.enter_context(temporary_directory())
        other = stack.enter_context(worktree(full, directory))
        stands = (
            stack.enter_context(running(HERE, directory / "this")),
            stack.enter_context(running(other, directory / "other")),
        )
        # Called first: who is impatient would leave servers and a worktree behind.
        stack.callback(ignore_signals)
        yield Side(stands[0], system(stands[0], "this")), Side(stands[1], system(stands[1], full[:10]))


def ignore_signals() -> None:
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, signal.SIG_IGN)


def one_pair(wish: Wish, order: tuple[Side, Side], say: Callable[[str], None]) -> None:
    """Measure one after the other, both with empty tables."""
    for side in order:
        side.stand.empty()
    for side in order:
        side.figures.append(side.measure(wish, wish.seconds))
    for side in order:
        side.stand.check()
    say(f"pair {len(order[0].figures):2}  " + "   ".join(_measured(side) for side in order))


def _measured(side: Side) -> str:
    last = side.figures[-1]
    return f"{side.system.name}: {last.per_s:.0f}/s, {value(last, 'cpu'):.3f} ms"


def intervals(ours: Side, theirs: Side) -> dict[Figure, Interval | None]:
    return {figure: interval(ours.values(figure), theirs.values(figure)) for figure in FIGURES}


def decided(wish: Wish, ours: Side, theirs: Side) -> Verdict:
    """Look at what is there so far."""
    pairs = len(ours.figures)
    if wish.pairs and pairs < wish.pairs:
        return "go on"
    return decide(intervals(ours, theirs)[wish.figure], wish.bound, pairs=pairs, most=wish.pairs or MOST_PAIRS)


def text(compared: Compared) -> str:
    """Return it for people."""
    _, other = compared.sides
    lines = [
        f"{what}, {named(compared.wish.load)}, this to {other}: {compared.intervals[figure] or 'not measured'}"
        for figure, what in FIGURES.items()
    ]
    pairs = len(compared.sides[other])
    few = f" (fewer than {LEAST_PAIRS} pairs decide nothing)" if pairs < LEAST_PAIRS else ""
    lines.append(f"{pairs} pairs in {compared.seconds:.0f} s; geometric mean and 95 % interval of the ratio")
    lines += [f"WARNING: the machine was not quiet: {fault}" for fault in compared.quiet.faults]
    return "\n".join([*lines, f"{compared.wish.describe()}: {compared.verdict}{few}"])


def document(compared: Compared) -> dict[str, object]:
    """Return it for programs."""
    bound = compared.wish.bound
    return {
        "made_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "commits": list(compared.sides),
        "load": compared.wish.load,
        "bound": {"figure": compared.wish.figure, **dataclasses.asdict(bound)},
        "verdict": compared.verdict,
        "pairs": len(next(iter(compared.sides.values()))),
        "ratios": {figure: found and dataclasses.asdict(found) for figure, found in compared.intervals.items()},
        "quiet": {**dataclasses.asdict(compared.quiet), "faults": compared.quiet.faults},
        "rounds": {
            name: [dataclasses.asdict(one) | {"per_s": one.per_s} for one in figures]
            for name, figures in compared.sides.items()
        },
    }


def options(parser: argparse.ArgumentParser) -> None:
    """Add what a comparison with a commit takes."""
    more = parser.add_argument_group(
        "another commit", "exit code: 0 kept, 1 not kept, 3 undecided, 4 it could not be compared"
    )
    more.add_argument("--against", metavar="COMMIT", help="this checkout beside that commit, nothing else")
    more.add_argument("--bound", type=float, help="the least ratio, 0.97; of --bound-of cpu the most, 1.03")
    more.add_argument("--bound-of", choices=list(FIGURES), default="rate", help="what it bounds (default: %(default)s)")
    more.add_argument("--json", action="store_true", help="the outcome as JSON; what is measured goes to stderr")


def wish(arguments: argparse.Namespace) -> Wish:
    """Return what the command line asks for; --rounds are pairs, an even number of them."""
    loads = arguments.load or ["many_20"]
    if len(loads) > 1:
        raise SystemExit("--against: a bound is on one --load")
    if arguments.rounds is not None and (arguments.rounds < 2 or arguments.rounds % 2):  # noqa: PLR2004  # both orders
        raise SystemExit("--against: --rounds are pairs, an even number of them")
    if arguments.bound is not None and arguments.bound <= 0:
        raise SystemExit("--bound: more than 0")
    return Wish(
        commit=arguments.against, load=loads[0], figure=arguments.bound_of, limit=arguments.bound,
        seconds=arguments.seconds or SECONDS, pairs=arguments.rounds,
    )  # fmt: skip


def run(arguments: argparse.Namespace, keep: Callable[[dict[str, object]], None]) -> int:
    """Compare, print, keep; return the exit code."""

    def say(line: str) -> None:
        print(line, flush=True, file=sys.stderr if arguments.json else sys.stdout)

    try:
        compared = compare(wish(arguments), say)
    except SystemExit as ended:
        if not isinstance(ended.code, str):
            raise
        print(ended.code, file=sys.stderr)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except Exception:  # noqa: BLE001  # by itself it would end with 1, and that is an answer
        traceback.print_exc()
        return EXIT_FAILED
    made = document(compared)
    keep(made)
    say(text(compared))
    if arguments.json:
        print(json.dumps(made, indent=1))
    return EXIT_CODES[compared.verdict]
