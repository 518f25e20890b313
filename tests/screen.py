"""The program on a terminal of a certain width, and what is then to be read there."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

SOURCE = str(Path(__file__).parents[1])
_ROWS = 50
_PIECE_BYTES = 65_536


@dataclass(frozen=True, slots=True)
class Screen:
    """What a command has left there, its octets as they came, and its exit code."""

    text: str
    octets: bytes
    code: int


def on_screen(*words: str, columns: int, env: Mapping[str, str] | None = None) -> Screen:
    """Run one command whose output, errors included, goes to a terminal of so many columns."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", _ROWS, columns, 0, 0))
    surroundings = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
    process = subprocess.Popen(
        [sys.executable, "-m", "opensend_milter", *words],
        env=surroundings | {"PYTHONPATH": SOURCE, "TERM": "xterm"} | dict(env or {}),
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    octets = _read_all(ours)
    os.close(ours)
    return Screen(_left(octets.decode()), octets, process.wait())


def _read_all(terminal: int) -> bytes:
    """Read until nobody writes there any more, which Linux calls an error."""
    pieces: list[bytes] = []
    while True:
        select.select([terminal], [], [])
        try:
            piece = os.read(terminal, _PIECE_BYTES)
        except OSError:
            return b"".join(pieces)
        if not piece:
            return b"".join(pieces)
        pieces.append(piece)


def _left(text: str) -> str:
    """Return what is left of it: of a line that was written over, the last."""
    lines = (line.rpartition("\r\x1b[K")[2] for line in text.replace("\r\n", "\n").split("\n"))
    return "\n".join(lines)
