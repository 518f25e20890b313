"""`make chaos`: does harm to the whole product while mail flows, and counts what became of each message."""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tests.chaos.clients import sending
from tests.chaos.conductor import Conductor, schedule
from tests.chaos.faults import GROUPS, KINDS
from tests.chaos.ledger import Ledger, audit
from tests.chaos.report import Report
from tests.chaos.stand import Stand, whole_stand
from tests.waiting import scaled_s

FAULTS = 200
DRAIN_S = 180.0
PAUSE_S = 0.5
STILL, HASTENED_EVERY = 240, 20
"""Looks at what is on its way, after which it has stopped; and after which it is asked to hurry."""
say = partial(print, file=sys.stderr, flush=True)


def settle(stand: Stand) -> None:
    """Wait until nothing is on its way any more, as long as it becomes less."""
    still, least = 0, stand.waiting()
    while least and still < STILL:
        if still % HASTENED_EVERY == 1:
            stand.hasten()
        time.sleep(scaled_s(PAUSE_S))
        now = stand.waiting()
        still, least = (0, now) if now < least else (still + 1, least)


def attack(stand: Stand, kinds: Sequence[str], wish: argparse.Namespace) -> Report:
    """Play faults until there were enough of them and of messages, or the time is over."""
    began = time.monotonic()
    not_run: dict[str, str] = {}
    with sending(stand.sandbox, stand.senders, wish.seed, DRAIN_S) as ledger:
        conductor = Conductor(stand, ledger, wish.seed, say)
        if (whole_s := ledger.await_whole(began, DRAIN_S)) is None:
            sys.exit(f"no good answer, before any fault, for {', '.join(ledger.not_whole(began))}")
        ledger.windows[0].whole_s = whole_s
        for kind in schedule(kinds, wish.seed):
            if kind not in not_run:
                if why := conductor.play(kind):
                    not_run[kind] = why
                say(f"{minutes_since(began):5.1f} min {f'{kind}: not run: {why}' if why else progress(ledger)}")
            if len(not_run) == len(kinds) or minutes_since(began) > wish.minutes or is_enough(ledger, wish):
                break
    say("all clients are done; what was taken is let go out")
    settle(stand)
    became = stand.became()
    uncertain = sum(states.count("uncertain") for states in became.rows.values())
    return Report.of(
        ledger, [*audit(ledger, became)], seed=wish.seed, minutes=minutes_since(began), uncertain=uncertain,
        not_run=not_run,
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
    wrong = "".join(f"\n  wrong: {told.client} heard {told.answer[:200]}" for told in window.wrong)
    counts = f"{window.answers} answers, {window.accepted} accepted"
    return f"{head}: {counts}, refused {window.refused_s:.1f} s, whole {whole}{wrong}"


def listed() -> str:
    return "\n".join(f"{group}\n" + "\n".join(f"  {name}" for name in names) for group, names in GROUPS.items())


def main() -> None:
    """Attack; exit 1 where anything is lost, twice, wrong, unexplained, or not served again."""
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="of order and moments")
    parser.add_argument(
        "--only", action="append", choices=[*KINDS, *GROUPS], metavar="KIND", help="a fault, or a group"
    )
    parser.add_argument("--minutes", type=float, default=90.0, help="no fault begins later")
    parser.add_argument("--messages", type=int, default=50_000, help="go on until so many are accepted")
    parser.add_argument("--faults", type=int, default=FAULTS, help="and so many faults are over")
    parser.add_argument("--list", action="store_true", help="name all kinds")
    parser.add_argument("--json", action="store_true", help="print an object instead of a table")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table for the documentation, too")
    wish = parser.parse_args()
    if wish.list:
        print(listed())  # noqa: T201  # what was asked for
        return
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    kinds = list(dict.fromkeys(name for one in wish.only or KINDS for name in GROUPS.get(one, {one: None})))
    say(f"seed {wish.seed}")
    with whole_stand(say) as stand:
        found = attack(stand, kinds, wish)
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
