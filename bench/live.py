"""`make bench-live`: how many messages a second are taken while 200 live pages of the console are open."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from datetime import UTC, datetime
from urllib.parse import urlsplit

from bench.against import EXIT_CODES, WARM_UP_S
from bench.compare import about_machine, write
from bench.figures import Figures
from bench.loads import WISHES, named
from bench.measuring import measure
from bench.paired import LEAST_PAIRS, MOST_PAIRS, Bound, Interval, Verdict, decide, interval
from bench.quiet import Watcher
from bench.systems import Stand, System, running_stand
from opensend_milter.servers.console.live import EVERY_S, MOST_LIVE, MOST_OF_ONE
from tests.integration.console_browser import Browser

LOAD = "many_20"
BOUND = Bound(0.95)
SECONDS = 2 * EVERY_S
"""All pages were opened in one moment, and are told something in one moment: so often in each turn."""


def sessions(stand: Stand) -> Sequence[Mapping[str, str]]:
    """Log in as often as it takes for all the pages; return each session's cookies."""
    found = []
    for _ in range(MOST_LIVE // MOST_OF_ONE):
        browser = Browser(_port(stand))
        browser.log_in(name=stand.env["SANDBOX_CONSOLE_USER"], password=stand.env["SANDBOX_CONSOLE_PASSWORD"])
        found.append(browser.cookies)
    return found


@contextmanager
def watched(stand: Stand, cookies: Sequence[Mapping[str, str]]) -> Iterator[None]:
    """Have all the pages open."""
    # In a session of its own, as browsers are elsewhere: it must not share with the load generator.
    process = subprocess.Popen(
        [sys.executable, "-m", "bench.watchers"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with process:
        if process.stdin and process.stdout:
            asked = {"port": _port(stand), "sessions": cookies, "of_each": MOST_OF_ONE}
            process.stdin.write(json.dumps(asked) + "\n")
            process.stdin.flush()
            if process.stdout.readline() != "ready\n":
                raise SystemExit("the live pages are not all open")
        yield


def _port(stand: Stand) -> int:
    return urlsplit(stand.env["SANDBOX_CONSOLE_URL"]).port or 0


def turn(stand: Stand, system: System, seconds: float) -> Figures:
    """Send for some time, beginning with empty tables."""
    stand.empty()
    found = measure(system.load(**WISHES[LOAD], seconds=seconds), system.groups, settled=system.settle)
    stand.check()
    if found.errors or not found.messages:
        raise SystemExit(f"messages that were not taken: {found.errors or 'all'}")
    return found


def compare(pairs: int | None, seconds: float) -> tuple[Verdict, Interval | None, Mapping[str, list[Figures]]]:
    """Measure with the pages and without, in turn and in both orders, until the bound is decided."""
    found: dict[str, list[Figures]] = {"with": [], "without": []}
    with running_stand() as stand:
        system, cookies = stand.ours(), sessions(stand)
        turn(stand, system, WARM_UP_S)
        verdict: Verdict = "go on"
        while verdict == "go on":
            for order in (("with", "without"), ("without", "with")):
                for name in order:
                    with watched(stand, cookies) if name == "with" else nullcontext():
                        found[name].append(turn(stand, system, seconds))
                rates = "   ".join(f"{name}: {found[name][-1].per_s:.0f}/s" for name in order)
                print(f"pair {len(found['with']):2}  {rates}", flush=True)
            ratio = interval(*([one.per_s for one in found[name]] for name in ("with", "without")))
            count = len(found["with"])
            verdict = (
                "go on" if pairs and count < pairs else decide(ratio, BOUND, pairs=count, most=pairs or MOST_PAIRS)
            )
    return verdict, ratio, found


def main() -> None:
    """Print the figures and keep them; the exit code is that of a comparison with a commit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, help="so many pairs, an even number of them, whatever they say")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each turn")
    arguments = parser.parse_args()
    watcher = Watcher.begin()
    verdict, ratio, found = compare(arguments.rounds, arguments.seconds)
    quiet = watcher.end()
    for fault in quiet.faults:
        print(f"WARNING: the machine was not quiet: {fault}")
    few = f" (fewer than {LEAST_PAIRS} pairs decide nothing)" if len(found["with"]) < LEAST_PAIRS else ""
    print(f"messages per second, {named(LOAD)}, with {MOST_LIVE} live pages to without: {ratio or 'not measured'}")
    print(f"at least {BOUND.limit:g}: {verdict}{few}")
    made = {
        "machine": about_machine(),
        "verdict": verdict,
        "ratio": ratio and asdict(ratio),
        "quiet": quiet.faults,
        "rounds": {name: [asdict(one) | {"per_s": one.per_s} for one in figures] for name, figures in found.items()},
    }
    write("live.json", {"made_at": datetime.now(UTC).isoformat(timespec="seconds"), **made})
    sys.exit(EXIT_CODES[verdict])


if __name__ == "__main__":
    main()
