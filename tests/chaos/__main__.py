"""`make chaos`: does harm to the whole product while mail flows, and counts what became of each message."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Protocol

import psycopg

from tests.chaos.clients import sending
from tests.chaos.conductor import Conductor
from tests.chaos.faults import GROUPS, KINDS
from tests.chaos.ledger import Ledger, audit
from tests.chaos.report import Report
from tests.chaos.stand import Stand, whole_stand

FAULTS, MINUTES = 200, 75.0
LAST_FAULT_S, DRAIN_S, SETTLED_S = 360.0, 180.0, 300.0
"""For what is still on when the minutes are over: a fault, what clients have, and what was taken and has not left; a
courier that was left alone is tried again after two minutes."""
PAUSE_S, HASTENED_EVERY = 0.5, 20
LONG_S = 10.0
"""Of who was refused for longer it is said what he heard."""
say = partial(print, file=sys.stderr, flush=True)


class Road(Protocol):
    """What was taken and has not left."""

    def on_its_way(self) -> list[str]: ...
    def hasten(self) -> None: ...


class TimeIsOver(BaseException):  # nobody who mends a fault is to take it for one
    """It was to be done by now."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Leave the body where it is after so long."""

    def end(*_: object) -> None:
        raise TimeIsOver

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except TimeIsOver:
        say(f"left where it was, after {seconds / 60:.0f} minutes")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def heed_interrupts() -> threading.Event:
    """Let the first Ctrl-C, or SIGTERM, make this fault the last, so that all is counted; the second ends the run."""
    enough = threading.Event()

    def note(number: int, _: object) -> None:
        if enough.is_set():
            sys.exit(128 + number)
        enough.set()
        say("this fault is the last, and what was done is counted; once more to leave at once")

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, note)
    return enough


def settle(road: Road, longest_s: float = SETTLED_S) -> list[str]:
    """Wait until nothing is on its way any more, for so long at most; return what still is, and what it waits for."""
    looks, until = 0, time.monotonic() + longest_s
    while (left := _left(road)) and time.monotonic() < until:
        if looks % HASTENED_EVERY == 0:
            with suppress(psycopg.Error):
                road.hasten()
        looks += 1
        time.sleep(PAUSE_S)
    return left


def _left(road: Road) -> list[str]:
    try:
        return road.on_its_way()
    except psycopg.Error as error:
        return [f"the database does not say: {error}"]


def attack(stand: Stand, kinds: Sequence[str], wish: argparse.Namespace, enough: threading.Event) -> Report:
    """Play faults until there were enough of them and of messages, or the time is over."""
    began = time.monotonic()
    with sending(stand.sandbox, stand.entrances, stand.senders, wish.seed, DRAIN_S) as ledger:
        conductor = Conductor(stand, ledger, wish.seed, say)
        if (whole_s := ledger.await_whole(began, DRAIN_S)) is None:
            sys.exit(f"no good answer, before any fault, for {', '.join(ledger.not_whole(began))}")
        ledger.windows[0].whole_s = whole_s
        with at_most(wish.minutes * 60 + LAST_FAULT_S):
            for kind in conductor.kinds(kinds):
                why = conductor.play(kind)
                say(f"{minutes_since(began):5.1f} min {f'{kind}: {why}' if why else progress(ledger)}")
                if enough.is_set() or minutes_since(began) > wish.minutes or is_enough(ledger, wish):
                    break
    say("all clients are done; what was taken is let go out")
    for line in settle(stand):
        say(f"still on its way: {line}")
    became = stand.became()
    uncertain = sum(states.count("uncertain") for states in became.rows.values())
    return Report.of(
        ledger, [*audit(ledger, became)], seed=wish.seed, minutes=minutes_since(began), uncertain=uncertain,
        not_run=conductor.not_run, broken=conductor.broken,
    )  # fmt: skip


def minutes_since(began: float) -> float:
    return (time.monotonic() - began) / 60


def is_enough(ledger: Ledger, wish: argparse.Namespace) -> bool:
    accepted = sum(window.accepted for window in ledger.windows)
    return bool(len(ledger.windows) > wish.faults and accepted >= wish.messages)


def progress(ledger: Ledger) -> str:
    window = ledger.window
    head = f"{len(ledger.windows) - 1:4} {window.kind}{' (long)' if window.is_long else ''}"
    whole = "never" if window.whole_s is None else f"{window.whole_s:.1f} s"
    heard = "".join(f"\n  wrong: {told.client} heard {told.answer[:200]}" for told in window.wrong)
    if window.refused_s > LONG_S and window.refused_with:
        heard += f"\n  longest: {window.refused_with[:200]}"
    counts = f"{window.answers} answers, {window.accepted} accepted"
    return f"{head}: {counts}, refused {window.refused_s:.1f} s, whole {whole}{heard}"


def listed() -> str:
    return "\n".join(f"{group}\n" + "\n".join(f"  {name}" for name in names) for group, names in GROUPS.items())


def main() -> None:
    """Attack; exit 1 where anything is lost, twice, wrong, unexplained, or not served again."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="of order and moments")
    parser.add_argument(
        "--only", action="append", choices=[*KINDS, *GROUPS], metavar="KIND", help="a fault, or a group"
    )
    parser.add_argument("--minutes", type=float, default=MINUTES, help="no fault begins later")
    parser.add_argument("--messages", type=int, default=50_000, help="go on until so many are accepted")
    parser.add_argument("--faults", type=int, default=FAULTS, help="and so many faults are over")
    parser.add_argument("--list", action="store_true", help="name all kinds")
    parser.add_argument("--json", action="store_true", help="print an object instead of a table")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table for the documentation, too")
    wish = parser.parse_args()
    if wish.list:
        print(listed())  # noqa: T201  # what was asked for
        return
    enough = heed_interrupts()
    kinds = list(dict.fromkeys(name for one in wish.only or KINDS for name in GROUPS.get(one, {one: None})))
    say(f"seed {wish.seed}")
    with whole_stand(say) as stand:
        found = attack(stand, kinds, wish, enough)
        if not found.good:
            logs = Path(f"/tmp/chaos-{wish.seed}-logs")
            shutil.copytree(stand.directory / "log", logs, dirs_exist_ok=True)
            say(f"the logs are kept in {logs}")
    print(json.dumps(found.as_json(), indent=1) if wish.json else found.as_text())  # noqa: T201
    if wish.markdown:
        wish.markdown.write_text(found.as_markdown())
    sys.exit(not found.good)


if __name__ == "__main__":
    main()
