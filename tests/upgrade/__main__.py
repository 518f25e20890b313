"""`make upgrade-test`: upgrades a used installation of an earlier commit to this tree, under load, and counts."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict

import pytest

from tests.upgrade.upgrading import Outcome, upgrade

FROM = "8ff7e84"
MESSAGES = 10_000
SHOWN = 5
_ROW = "{:40} {:>8} {:>9} {:>8} {:>9}"


def main() -> None:
    """Upgrade; exit 1 where anything is lost, twice, refused for good, not told any more, or left behind."""
    parser = argparse.ArgumentParser(prog="make upgrade-test", description=__doc__)
    parser.add_argument("--from", dest="commit", default=FROM, metavar="COMMIT", help="what is installed at first")
    parser.add_argument("--messages", type=int, default=MESSAGES, help="that lie there, in all states")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    given = parser.parse_args()
    try:
        outcome = upgrade(given.commit, given.messages, _say)
    except pytest.skip.Exception as missing:
        sys.exit(f"not run: {missing}")
    shown = json.dumps(asdict(outcome), indent=2) if given.json else "\n".join(_table(outcome))
    sys.stdout.write(f"{shown}\n")
    sys.exit(0 if outcome.is_good else 1)


def _say(text: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {text}\n")


def _table(outcome: Outcome) -> Iterator[str]:
    yield _ROW.format("step", "seconds", "accepted", "put off", "longest s")
    for name, span in outcome.spans.items():
        yield _ROW.format(name, f"{span.took_s:.1f}", span.accepted, span.put_off, f"{span.longest_s:.1f}")
    yield ""
    yield f"there before      {_counts(outcome.filled)}"
    yield f"migrations        {', '.join(outcome.applied) or 'none'}"
    yield f"sent meanwhile    {outcome.sent_meanwhile}"
    yield f"delivered by      {_counts(outcome.delivered)}"
    yield f"put off with      {sum(outcome.put_off_with.values())}"
    yield from (f"    {count:4} {said}" for said, count in sorted(outcome.put_off_with.items()))
    for name, cases in asdict(outcome.findings).items():
        yield f"{name.replace('_', ' '):17} {len(cases)}"
        yield from (f"    {case}" for case in cases[:SHOWN])


def _counts(counted: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counted.items()))


if __name__ == "__main__":
    main()
