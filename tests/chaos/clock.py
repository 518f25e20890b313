"""A wall clock for one program: loaded before its libraries, and moved while it runs.

Not libfaketime: with Debian 12's (0.9.10) a sleep of Python 3.11 fails, or lasts for the hour that the clock was moved.
"""

from __future__ import annotations

import struct
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.stand import NotRun

_SOURCE = Path(__file__).with_name("clock.c")
_SECONDS = struct.Struct("q")


@dataclass(frozen=True, slots=True)
class Clock:
    """What a program's environment has is `environment`."""

    file: Path
    library: Path

    @classmethod
    def made(cls, directory: Path) -> Clock:
        """Make one that is right."""
        clock = cls(directory / "clock", directory / "clock.so")
        clock.file.write_bytes(_SECONDS.pack(0))
        command = ["cc", "-O2", "-shared", "-fPIC", "-o", str(clock.library), str(_SOURCE)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise NotRun(f"no C compiler: {error}") from error
        return clock

    @property
    def environment(self) -> Mapping[str, str]:
        return {"LD_PRELOAD": str(self.library), "CHAOS_CLOCK": str(self.file)}

    def jump(self, seconds: int) -> None:
        """Go to so long before or behind the time that it is."""
        with self.file.open("r+b") as file:  # in place: it is mapped
            file.write(_SECONDS.pack(seconds))
