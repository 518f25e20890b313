"""`make bench`: ours beside Postfix alone and beside milters that do nothing, and the table of goals."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import against
from bench.figures import Figures, Spread, spread, together
from bench.goals import (
    ALONE,
    BEFORE,
    BESIDE,
    C_MILTER,
    OURS,
    PYMILTER,
    STATIC_AUTH,
    Goal,
    Results,
    goals,
    rate_ratio,
    table,
)
from bench.load import Load
from bench.loads import WISHES, named
from bench.measuring import GENERATOR, measure
from bench.picture import Bar, Group, draw
from bench.processes import MB, memory_bytes, tree
from bench.systems import Stand, System, await_true, machine_program, running_stand
from opensend_milter.host import requirements
from opensend_milter.host.sandbox.programs import greets_as_smtp

RESULTS = Path(__file__).parent / "results"
ALL = (ALONE, C_MILTER, PYMILTER, OURS)
MANY_ROWS = 1_000_000


@dataclasses.dataclass(frozen=True, slots=True)
class Part:
    """A load, on some systems, for some rounds."""

    load: str
    rounds: int
    seconds: float
    systems: Sequence[str] = ALL


FULL = (
    Part("many_20", 6, 5),
    Part("one_20", 6, 5),
    Part("login_20", 6, 4, (C_MILTER, STATIC_AUTH)),
    Part("many_1", 3, 3),
    Part("many_100", 3, 3),
    Part("one_1", 3, 3),
    Part("one_100", 3, 3),
    Part("recipients_50", 3, 3),
    Part("attachment_1mb", 3, 3),
    Part("attachment_30mb", 2, 0),
)
FULL_S, QUICK_S = 780.0, 100.0
"""After that no round is begun: a slow machine is not to take for ever."""
BESIDE_TAKES = 5 / 4
"""One system more than four."""
QUICK = (
    Part("many_20", 3, 1.5),
    Part("one_20", 3, 1.5),
    Part("login_20", 3, 1.5, (C_MILTER, STATIC_AUTH)),
    Part("recipients_50", 2, 1.5, (C_MILTER, OURS)),
    Part("attachment_30mb", 1, 0, (OURS,)),
)


def rounds(stands: Sequence[Stand], systems: Mapping[str, System], parts: Sequence[Part], until: float) -> Results:
    """Measure, one system after the other under each load, and all of it again; the first to go changes."""
    found: dict[tuple[str, str], list[Figures]] = defaultdict(list)
    for name in sorted({name for part in parts for name in part.systems}):
        measure(systems[name].load(sessions=20, seconds=1), systems[name].groups)  # warm caches are not the question
    for number in range(max(part.rounds for part in parts)):
        for part in parts:
            if number >= part.rounds:
                continue
            if number and time.monotonic() > until:
                print(f"out of time: {part.load} is not measured again", flush=True)
                continue
            for stand in stands:
                stand.empty()
            first = number % len(part.systems)
            for name in (*part.systems[first:], *part.systems[:first]):
                found[part.load, name].append(once(systems[name], part))
                print(f"round {number + 1}  {_line(part.load, name, found[part.load, name][-1:])}", flush=True)
            for stand in stands:
                stand.check()
    return found


def once(system: System, part: Part) -> Figures:
    """Measure one load on one system; where it is ours and the messages are large, its memory too."""
    load = system.load(**WISHES[part.load], seconds=part.seconds)
    large = part.load == "attachment_30mb" and system.name in {OURS, BESIDE}
    watched = system.groups["milter"][0] if large else None
    return measure(load, system.groups, settled=system.settle, watched=watched)


def generator_alone(stand: Stand, seconds: float) -> Figures:
    """Send to Postfix's own sink, which reads and forgets: what the load generator could do."""
    port = requirements.free_ports(["sink"])["sink"]
    # Its fourth argument is the backlog; it drops root's rights itself.
    pid = stand.run("sink", [machine_program("smtp-sink"), "-u", "postfix", f"127.0.0.1:{port}", "200"])
    await_true("smtp-sink", lambda: greets_as_smtp(port))
    return measure(Load(port=port, sender="bench@example.org", sessions=20, seconds=seconds), {"sink": (pid,)})


def _line(load: str, system: str, figures: Sequence[Figures]) -> str:
    rate, p50, p99 = (spread(value(one) for one in figures) for value in (_per_s, _p50, _p99))
    cpu = "  ".join(f"{name} {_median_cpu(figures, name):.2f}" for name in figures[0].cpu_ms)
    errors = together(one.errors for one in figures)
    return (
        f"{load:15} {system:14} {rate!s:>18}/s  p50 {p50} ms  p99 {p99} ms  CPU ms: {cpu}"
        + (f"  memory {max(one.memory_mb for one in figures):.0f} MB" if figures[0].memory_mb else "")
        + (f"  ERRORS {errors}" if errors else "")
    )


def _per_s(one: Figures) -> float:
    return one.per_s


def _p50(one: Figures) -> float:
    return one.p50_ms


def _p99(one: Figures) -> float:
    return one.p99_ms


def _median_cpu(figures: Sequence[Figures], group: str) -> float:
    found = spread(one.cpu_ms[group] for one in figures)
    return found.median if found else 0.0


def picture(results: Results) -> str:
    """Draw each load's messages per second as a ratio to the empty C milter."""
    groups = []
    for load in dict.fromkeys(load for load, _ in results):
        bars = []
        for system in ALL:
            ratio = rate_ratio(results, load, system, C_MILTER) if (load, system) in results else None
            rate = spread(one.per_s for one in results.get((load, system), ()))
            if ratio and rate:
                bars.append(Bar(system, ratio, f"{ratio.median:.2f}, {rate.median:.3g}/s"))
        if len(bars) > 1:
            groups.append(Group(named(load), bars))
    return draw("Messages per second, ratio to an empty C milter behind the same Postfix", groups)


def document(results: Results, lines: Sequence[Goal], sink: Figures, idle_mb: float) -> dict[str, object]:
    """Return what latest.json holds."""
    made: dict[str, object] = {"made_at": datetime.now(UTC).isoformat(timespec="seconds"), "machine": about_machine()}
    for name in ("many_20", "one_20"):
        ratio = rate_ratio(results, name, OURS, C_MILTER)
        made[f"{name}_ratio"] = ratio and round(ratio.median, 3)
        made[f"{name}_ratio_range"] = ratio and [round(ratio.low, 3), round(ratio.high, 3)]
    made["goals"] = [{**dataclasses.asdict(goal), "verdict": goal.verdict} for goal in lines]
    made["idle_mb"] = round(idle_mb, 1)
    made["generator_alone"] = dataclasses.asdict(sink) | {"per_s": sink.per_s}
    made["loads"] = {
        load: {
            system: [dataclasses.asdict(one) | {"per_s": one.per_s} for one in figures]
            for (of, system), figures in results.items()
            if of == load
        }
        for load in dict.fromkeys(load for load, _ in results)
    }
    return made


def about_machine() -> dict[str, object]:
    """Say where the figures come from."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    postfix = subprocess.run(
        [machine_program("postconf"), "-d", "-h", "mail_version"], check=False, capture_output=True, text=True
    )
    return {
        "cores": os.cpu_count(),
        "processor": model,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "postfix": postfix.stdout.strip(),
        "load_average_before": [round(load, 2) for load in os.getloadavg()],
    }


def last_growth() -> Spread | None:
    """Return what `make bench-growth` found the last time, if it had rows enough."""
    found = last("growth.json")
    return Spread(*found["cost_ratio"]) if found and found["rows"] >= MANY_ROWS and found["cost_ratio"] else None


def last_attachments() -> Spread | None:
    """Return what `--against` found the last time, if it was with attachments and with the commit of the goal."""
    found = last("against.json")
    if not found or found["load"] != "attachment_1mb" or not found["commits"][1].startswith(BEFORE):
        return None
    rate = found["ratios"]["rate"]
    return rate and Spread(rate["ratio"], rate["low"], rate["high"])


def last(name: str) -> dict[str, Any] | None:
    """Read the figures that were kept last, or None."""
    try:
        found: dict[str, Any] = json.loads((RESULTS / name).read_text())
    except FileNotFoundError:
        return None
    return found


def write(name: str, made: object) -> None:
    """Keep figures for others to read."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(json.dumps(made, indent=1) + "\n")


def report(results: Results, lines: Sequence[Goal], sink: Figures) -> None:
    """Print all of it: medians, and the range of the rounds in parentheses."""
    print("\nMedian (range) of the rounds; CPU in ms per message:")
    for (load, system), figures in results.items():
        print(_line(load, system, figures))
    print("\nRatio of messages per second to the empty C milter:")
    for load, system in results:
        if system not in {C_MILTER, STATIC_AUTH} and (load, C_MILTER) in results:
            print(f"{load:15} {system:14} {rate_ratio(results, load, system, C_MILTER)}")
    if any(system == BESIDE for _, system in results):
        print("\nRatio of messages per second on OpenSend's tables to those on our own:")
        for load in dict.fromkeys(load for load, system in results if system == BESIDE):
            print(f"{load:15} {rate_ratio(results, load, BESIDE, OURS)}")
    most = max((one.per_s for figures in results.values() for one in figures), default=0)
    print(
        f"\nThe load generator by itself, without TLS, to smtp-sink: {sink.per_s:.0f}/s,"
        f" {sink.cpu_ms[GENERATOR]:.3f} ms a message; the most asked of it was {most:.0f}/s.\n\n{table(lines)}"
    )


def loads_table(results: Results) -> str:
    """Return all loads as a table in Markdown."""
    rows = [
        "| load | system | msgs/s (range) | ratio (range) | p50 ms | p99 ms | CPU ms: Postfix, milter, SQL, AUTH |",
        "|---|---|---|---|---|---|---|",
    ]
    for (load, system), figures in results.items():
        rate, p50, p99 = (spread(value(one) for one in figures) for value in (_per_s, _p50, _p99))
        ratio = rate_ratio(results, load, system, C_MILTER)
        cpu = ", ".join(f"{_median_cpu(figures, name):.2f}" for name in ("postfix", "milter", "postgres", "auth"))
        rows.append(f"| {named(load)} | {system} | {rate} | {ratio or ''} | {p50} | {p99} | {cpu} |")
    return "\n".join(rows)


def chosen(arguments: argparse.Namespace) -> list[Part]:
    """Return the parts that the command line asks for."""
    parts: Sequence[Part] = QUICK if arguments.quick else FULL
    if arguments.load:
        parts = [part for part in FULL if part.load in arguments.load]
    return [
        dataclasses.replace(
            part,
            seconds=arguments.seconds or part.seconds,
            rounds=arguments.rounds or part.rounds,
            systems=with_beside(part.systems) if arguments.profile else part.systems,
        )
        for part in parts
    ]


def with_beside(systems: Sequence[str]) -> Sequence[str]:
    """Measure ours on OpenSend's tables, too, wherever ours is measured."""
    return (*systems, BESIDE) if OURS in systems else systems


def asked() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="what matters most, in two minutes")
    parser.add_argument("--load", action="append", choices=list(WISHES), help="only this load; may be given again")
    parser.add_argument("--seconds", type=float, help="of each measurement")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--profile", choices=["opensend"], help="ours on OpenSend's own tables, too")
    against.options(parser)
    arguments = parser.parse_args()
    if arguments.against and arguments.profile:
        parser.error("--against compares sandboxes of the profile standalone")
    return arguments


def main() -> None:
    """Print the figures and keep them; exit 1 where a message was not taken."""
    arguments = asked()
    if arguments.against:
        machine = about_machine()
        sys.exit(against.run(arguments, lambda made: write("against.json", made | {"machine": machine})))
    parts = chosen(arguments)
    if os.getloadavg()[0] > (os.cpu_count() or 1) / 2:
        print(f"The machine is busy (load {os.getloadavg()[0]:.1f}): ratios will scatter, and rates mean nothing.")
    began = time.monotonic()
    with ExitStack() as stack:
        stand = stack.enter_context(running_stand())
        beside = stack.enter_context(running_stand("opensend")) if arguments.profile else None
        idle_mb = memory_bytes(tree(stand.pids["serve"])) / MB
        wanted = {name for part in parts for name in part.systems}
        makers = {
            ALONE: stand.alone, C_MILTER: stand.c_milter, PYMILTER: stand.pymilter, OURS: stand.ours,
            STATIC_AUTH: stand.static_auth,
        }  # fmt: skip
        systems = {name: make() for name, make in makers.items() if name in wanted}
        if beside and BESIDE in wanted:
            systems[BESIDE] = beside.ours(BESIDE)
        sink = generator_alone(stand, 1.0)
        until = began + (QUICK_S if arguments.quick else FULL_S) * (BESIDE_TAKES if beside else 1)
        results = rounds([stand, *([beside] if beside else [])], systems, parts, until)
    lines = goals(results, idle_mb=idle_mb, growth=last_growth(), attachments=last_attachments())
    report(results, lines, sink)
    # Figures of a trial do not take the place of measured ones.
    measured = "opensend" if arguments.profile else "latest"
    name = "trial" if arguments.load or arguments.seconds or arguments.rounds else measured
    write(f"{name}.json", document(results, lines, sink, idle_mb))
    (RESULTS / f"{name}.svg").write_text(picture(results))
    (RESULTS / f"{name}.md").write_text(f"{table(lines)}\n\n{loads_table(results)}\n")
    print(f"\n{RESULTS / name}.json, .md and .svg are written, after {time.monotonic() - began:.0f} s.")
    sys.exit(any(one.errors for figures in results.values() for one in figures))


if __name__ == "__main__":
    main()
