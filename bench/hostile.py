"""`make bench-hostile`: how long an innocent client waits while three connections repeat each hostile shape."""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import re
import ssl
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from multiprocessing.sharedctypes import Synchronized

from bench.compare import about_machine, write
from bench.load import Load, body, header
from bench.smtp_client import Refused, Server, SmtpClient
from bench.systems import Stand, System, running_stand
from tests.shapes import SHAPES, Shape

GOAL_MORE_S = 2.0
ATTACKERS = 3
LEAST = 10
"""Messages of the innocent."""
PATIENCE_S = 120.0
"""For each of them to have had its answer at least once."""
TO = ("to@example.net",)
_NAME_LETTERS = 43
_forked = multiprocessing.get_context("fork")


@dataclass(frozen=True, slots=True, kw_only=True)
class Waits:
    """What an innocent client met with."""

    seconds: Sequence[float]
    """From the last byte of each message to its 250."""
    refused: int = 0
    hostile: int = 0
    """Answers that the others had meanwhile."""

    @property
    def longest_s(self) -> float:
        return max(self.seconds, default=float("inf"))


def innocent(system: System, key: str, seconds: float, answers: Sequence[Synchronized[int]] = ()) -> Waits:
    """Send small messages one after another, for some time, and until each of the others has had an answer."""
    load = Load(port=system.port, sender=system.sender, sessions=1)
    client = SmtpClient(Server(port=system.port, tls=_tls(system), key=key))
    waited: list[float] = []
    refused = number = 0
    began = time.monotonic()
    client.open()
    while (
        number < LEAST
        or time.monotonic() - began < seconds
        or (not all(one.value for one in answers) and time.monotonic() - began < PATIENCE_S)
    ):
        number += 1
        head = header(load, list(TO), f"{began}-{number}")
        try:
            waited.append(client.deliver(system.sender, TO, head, body(load, len(head))))
        except (Refused, OSError):
            refused += 1
            client.close()
            client.open()
    client.close()
    return Waits(seconds=waited, refused=refused, hostile=sum(one.value for one in answers))


@contextmanager
def beside(system: System, shape: Shape) -> Iterator[list[Synchronized[int]]]:
    """Let three connections repeat a shape; yield how many answers each has had."""
    stuffed = re.sub(rb"(?m)^\.", b"..", shape.octets()) + b".\r\n"
    with ExitStack() as stack:
        answers = [_forked.Value("i", 0) for _ in range(ATTACKERS)]
        for one in answers:
            process = _forked.Process(target=_repeat, args=(system, stuffed, one), daemon=True)
            process.start()
            stack.callback(process.join)
            stack.callback(process.kill)
        yield answers


def _repeat(system: System, content: bytes, answers: Synchronized[int]) -> None:
    client = SmtpClient(Server(port=system.port, tls=_tls(system), key=system.key))
    while True:
        with suppress(Refused, OSError):
            client.open()
            while True:
                try:
                    client.deliver(system.sender, TO, b"", content)
                finally:
                    answers.value += 1
        client.close()


def _tls(system: System) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=system.ca)


def measure(stand: Stand, shapes: Sequence[Shape], seconds: float) -> Iterator[tuple[Shape, Waits, Waits]]:
    """Measure each shape: the innocent alone, then beside three of them."""
    system = stand.ours()
    key = stand.env["SANDBOX_RESTRICTED_API_KEY"]
    innocent(system, key, 1)  # warm caches are not the question
    for shape in shapes:
        stand.empty()
        alone = innocent(system, key, seconds)
        with beside(system, shape) as answers:
            yield shape, alone, innocent(system, key, seconds, answers)
    stand.check()


def line(shape: Shape, alone: Waits, with_them: Waits) -> str:
    more_s = with_them.longest_s - alone.longest_s
    missed = "  MISSED" if more_s > GOAL_MORE_S or with_them.refused else ""
    return (
        f"{shape.name[:_NAME_LETTERS]:{_NAME_LETTERS}} {shape.finding} {with_them.hostile:5} {alone.longest_s:6.2f}"
        f" {with_them.longest_s:6.2f} {with_them.refused:4}{missed}"
    )


def main() -> None:
    """Print a line for each shape and keep the figures; exit 1 where the innocent waited too long or was refused."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", metavar="NAME", help="only shapes with this in their name")
    parser.add_argument("--seconds", type=float, default=4, help="of each measurement")
    arguments = parser.parse_args()
    shapes = [shape for shape in SHAPES if not arguments.only or any(name in shape.name for name in arguments.only)]
    made: list[dict[str, object]] = []
    missed = False
    print(f"{'':{_NAME_LETTERS}} of  hostile  longest wait, s\n{'shape':{_NAME_LETTERS}} 15  msgs   alone beside  451")
    with running_stand() as stand:
        for shape, alone, with_them in measure(stand, shapes, arguments.seconds):
            print(line(shape, alone, with_them), flush=True)
            missed |= with_them.longest_s - alone.longest_s > GOAL_MORE_S or with_them.refused > 0
            made.append(
                {"shape": shape.name, "alone": dataclasses.asdict(alone), "beside": dataclasses.asdict(with_them)}
            )
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    write("hostile.json", {"made_at": made_at, "machine": about_machine(), "goal_more_s": GOAL_MORE_S, "shapes": made})
    print(f"\nThe longest wait of an innocent client beside {ATTACKERS} connections: at most {GOAL_MORE_S:g} s more.")
    sys.exit(missed)


if __name__ == "__main__":
    main()
