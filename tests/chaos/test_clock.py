"""The clock that `make chaos` gives to a program jumps while it runs, and nothing else does."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.chaos.clock import Clock

DAY = timedelta(days=1)
PROGRAM = """
import datetime, sys, time
for _ in sys.stdin:
    time.sleep(0.001)
    print(datetime.datetime.now(datetime.UTC).isoformat(), time.clock_gettime(time.CLOCK_BOOTTIME), flush=True)
"""


@pytest.fixture
def clock(tmp_path: Path) -> Clock:
    return Clock.made(tmp_path)


def test_a_clock_jumps_while_its_program_runs(clock: Clock) -> None:
    command = [sys.executable, "-c", PROGRAM]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=dict(clock.environment)
    ) as program:
        assert program.stdin
        assert program.stdout
        seen, up = [], []
        for jump in (timedelta(), DAY, -DAY, timedelta()):
            clock.jump(int(jump.total_seconds()))
            program.stdin.write("\n")
            program.stdin.flush()
            said, up_s = program.stdout.readline().split()
            seen.append(round((datetime.fromisoformat(said) - datetime.now(UTC)) / DAY))
            up.append(float(up_s))
        program.stdin.close()
    assert seen == [0, 1, -1, 0]
    assert up == sorted(up)
