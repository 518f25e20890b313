"""`make fuzz`: gives each reader what a stranger might send, for some minutes, until one of them takes it badly."""

from __future__ import annotations

import argparse
import hashlib
import logging
import random
import sys
import time
import traceback
import warnings
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, seed, settings, target
from hypothesis.errors import HypothesisWarning

from tests.fuzz.measures import Check
from tests.fuzz.targets import TARGETS, Target

CORPUS = Path(__file__).parents[1] / "corpus"
INPUTS_A_ROUND = 200
MOST_CPU_S = 5.0
SHORTENED_FOR_S = 60.0
CLIMBED_EVERY = 5
"""Rounds: in one of them what costs more and more is looked for, which takes longer, too."""
TOLD_EVERY_S = 10.0
_SETTINGS = settings(
    max_examples=INPUTS_A_ROUND,
    deadline=None,
    database=None,
    phases=(Phase.generate, Phase.target),  # what is slow is shortened in a time of its own
    suppress_health_check=list(HealthCheck),
    report_multiple_bugs=False,
    print_blob=False,
)


class TooSlowError(Exception):
    """It took seconds where it takes milliseconds: the net for what is not linear within one expression or codec."""


class Found(Exception):  # noqa: N818  # mail's tools say found, too
    """Some octets were taken badly: the shortest such, as far as known."""

    def __init__(self, octets: bytes, error: BaseException) -> None:
        super().__init__(error)
        self.octets = octets
        self.error = error


def attempt(given_to: Target, check: Check, number: int) -> None:
    """Try one round of inputs; the same number makes the same ones. Raise Found."""
    worst = b""

    @seed(number)
    @_SETTINGS
    @given(given_to.inputs)
    def one(octets: bytes) -> None:
        nonlocal worst
        try:
            score = not_slow(check, octets)
            if number % CLIMBED_EVERY == 0:
                target(score)
        except Exception:
            worst = octets
            raise

    try:
        one()
    except Exception as error:
        raise Found(shortened(worst, check, type(error)), error) from error


def not_slow(check: Check, octets: bytes) -> float:
    """Try some octets; raise TooSlowError where that takes too much of the processor."""
    began = time.process_time()
    found = check(octets)
    if (spent_s := time.process_time() - began) > MOST_CPU_S:
        raise TooSlowError(f"{spent_s:.1f} s of CPU for {len(octets)} octets")
    return found


def shortened(octets: bytes, check: Check, error: type[Exception]) -> bytes:
    """Cut out what the same error does without, for a while."""
    until = time.monotonic() + SHORTENED_FOR_S
    length = len(octets) // 2
    while length:
        at = 0
        while at < len(octets):
            if time.monotonic() > until:
                return octets
            less = octets[:at] + octets[at + length :]
            if _raises(error, check, less):
                octets = less
            else:
                at += length
        length //= 2
    return octets


def _raises(error: type[Exception], check: Check, octets: bytes) -> bool:
    try:
        not_slow(check, octets)
    except Exception as raised:  # noqa: BLE001  # another finding is for another time
        return type(raised) is error
    return False


def fuzz(name: str, minutes: float, first_seed: int) -> int:
    """Try rounds for so long; return how many inputs there were."""
    began = told_at = time.monotonic()
    with TARGETS[name].opened() as check:
        number = first_seed
        while time.monotonic() - began < minutes * 60:
            attempt(TARGETS[name], check, number)
            number += 1
            if time.monotonic() - told_at > TOLD_EVERY_S:
                told_at = time.monotonic()
                inputs = (number - first_seed) * INPUTS_A_ROUND
                print(f"{name:8} {inputs:8} inputs  {(told_at - began) / 60:5.1f} min  seed {number}", flush=True)
    return (number - first_seed) * INPUTS_A_ROUND


def kept(name: str, octets: bytes) -> Path:
    """Keep a finding where the suite tries it again."""
    path = CORPUS / name / hashlib.sha256(octets).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(octets)
    return path


def replay(path: Path) -> None:
    """Try one file of the corpus; its folder says for which reader."""
    with TARGETS[path.parent.name].opened() as check:
        not_slow(check, path.read_bytes())


def main() -> None:
    """Fuzz; exit 1 at the first finding, with the command that shows it again."""
    parser = argparse.ArgumentParser(prog="make fuzz", description=__doc__)
    parser.add_argument("--target", action="append", choices=list(TARGETS), help="only this; may be given again")
    parser.add_argument("--minutes", type=float, default=1.0, help="for each target")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="of the first round")
    parser.add_argument("--replay", type=Path, metavar="FILE", help="try a finding again")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", HypothesisWarning)
    logging.disable()  # what is said of bad input is said a thousand times
    if arguments.replay:
        replay(arguments.replay)
        print("holds")
        return
    for name in arguments.target or TARGETS:
        print(f"{name:8} seed {arguments.seed}", flush=True)
        try:
            inputs = fuzz(name, arguments.minutes, arguments.seed)
        except Found as found:
            path = kept(name, found.octets)
            traceback.print_exception(found.error)
            print(f"\n{name}: {len(found.octets)} octets were taken badly. Again:")
            print(f'make fuzz ARGS="--replay {path.relative_to(CORPUS.parents[1])}"')
            sys.exit(1)
        print(f"{name:8} {inputs:8} inputs, no finding", flush=True)


if __name__ == "__main__":
    main()
