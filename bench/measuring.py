"""Sends a load from several processes at once, and takes down what it cost whom."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack, nullcontext
from pathlib import Path
from signal import SIGTERM
from typing import Self

from bench.figures import Figures, percentile, together
from bench.load import Load
from bench.processes import MB, Groups, Watch, cpu_by_group, since
from opensend_milter.host.sandbox.keeper import heir

GENERATORS = 4
GENERATOR = "generator"
_CHECKOUT = Path(__file__).parent.parent


def _nothing() -> None:
    """Stand where there is nothing to wait for."""


def measure(
    load: Load, groups: Groups, *, settled: Callable[[], None] = _nothing, watched: int | None = None
) -> Figures:
    """Run one load; `settled` waits for work that the last answer leaves behind, `watched` is whose memory counts."""
    with ExitStack() as stack:
        generators = [stack.enter_context(_Generator(part)) for part in _shares(load, GENERATORS)]
        for generator in generators:
            generator.await_ready()
        with Watch(watched) if watched else nullcontext() as watching:
            before = cpu_by_group(groups)
            for generator in generators:
                generator.go()
            done = [generator.result() for generator in generators]
            settled()
            after = cpu_by_group(groups)
    latencies_ms = [latency * 1_000 for one in done for latency in one.latencies_s]
    messages = len(latencies_ms)
    spent = since(before, after, messages)
    spent[GENERATOR] = sum(one.cpu_s for one in done) * 1_000 / messages if messages else 0.0
    return Figures(
        messages=messages,
        seconds=max(one.seconds for one in done),
        p50_ms=percentile(latencies_ms, 0.50),
        p99_ms=percentile(latencies_ms, 0.99),
        cpu_ms=spent,
        errors=together(one.errors for one in done),
        memory_mb=watching.peak_bytes / MB if watching else 0.0,
    )


def _shares(load: Load, processes: int) -> list[Load]:
    """Divide the sessions among processes, the more the earlier."""
    each, more = divmod(load.sessions, processes)
    sizes = [each + (number < more) for number in range(processes)]
    return [dataclasses.replace(load, sessions=size) for size in sizes if size]


@dataclasses.dataclass(frozen=True, slots=True)
class _Done:
    seconds: float
    latencies_s: list[float]
    cpu_s: float
    errors: dict[str, int]


class _Generator:
    """One process that sends."""

    def __init__(self, load: Load) -> None:
        self._load = load

    def __enter__(self) -> Self:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.load"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=_CHECKOUT,
            text=True,
            preexec_fn=heir(SIGTERM),  # noqa: PLW1509  # no thread of ours holds a lock
        )
        # By standard input: the key is not to be seen in a list of processes.
        self._say(json.dumps(dataclasses.asdict(self._load)))
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self._process.terminate()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                stream.close()

    def await_ready(self) -> None:
        self._line()

    def go(self) -> None:
        self._say("go")

    def result(self) -> _Done:
        return _Done(**json.loads(self._line()))

    def _say(self, text: str) -> None:
        if self._process.stdin:
            self._process.stdin.write(f"{text}\n")
            self._process.stdin.flush()

    def _line(self) -> str:
        line = self._process.stdout.readline() if self._process.stdout else ""
        if not line:
            raise SystemExit("a load generator ended before its time")
        return line
