"""What no log may hold: API keys, passwords, lines of a message's body and, where they are masked, addresses."""

from __future__ import annotations

import base64
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from opensend_milter.core.logline import formatter

Kind = Literal["key", "secret", "body", "address"]
Place = tuple[int, Kind]

SHORTEST_LINE = 20
"""A line of a body that is shorter says nothing, and may be anybody's."""
SHOWN_BYTES = 200
_KEY_BEGINS = (b"os_", b"whsec_")
_KEY = re.compile(rb"os_[0-9a-f]{32}|whsec_[A-Za-z0-9+/]{32}")
_ADDRESS = re.compile(rb"""[^\s<>(),:;=\[\]@]@[^\s<>"'(),:;=@]""")
"""One byte on either side: a pattern for the whole of it would take for ever over a long word."""
_LOCAL_PART = re.compile(rb"""[^\s<>(),:;=\[\]@]{0,64}\Z""")
_WORD = re.compile(rb"(?<!\w)\w")
_NO_BODY = re.compile(rb"--|[A-Za-z][A-Za-z0-9-]*:[ \t]")
"""Boundaries, and the headers of parts and of messages inside."""
_HEX = re.compile(rb"(?:[0-9a-fA-F]{2}){20,}")
_BASE64 = re.compile(rb"[A-Za-z0-9+/]{27,}")
_ESCAPED = re.compile(rb"\\(?:r|n|t|0(?:00)?|x0[0-9a-f])")


@dataclass(frozen=True, slots=True)
class Finding:
    """Something that should not be there; its text is left out."""

    source: str
    line: int
    kind: Kind
    before: str

    def __str__(self) -> str:
        return f"{self.source}:{self.line}: {self.kind} after {self.before!r}"


@dataclass(frozen=True, kw_only=True)
class Forbidden:
    """What is looked for besides all that has a key's form."""

    secrets: frozenset[bytes] = frozenset()
    body_starts: frozenset[bytes] = frozenset()
    """The first `SHORTEST_LINE` bytes of lines, from a line's first word on."""
    addresses: bool = False

    @cached_property
    def _secret(self) -> re.Pattern[bytes]:
        return re.compile(b"|".join(re.escape(one) for one in sorted(self.secrets)) or rb"(?!)")

    @cached_property
    def _telling(self) -> tuple[bytes, ...]:
        """What is in all that is looked for, but for bodies and addresses: whether it is there is known at once."""
        return (*_KEY_BEGINS, *self.secrets)

    def places(self, log: bytes) -> Iterator[Place]:
        """Yield where something is and what; bytes that are encoded are looked into."""
        yield from self._plain(log)
        for found in _HEX.finditer(log):
            yield from self._inside(found.start(), bytes.fromhex(found[0].decode()))
        for found in _BASE64.finditer(log):
            for skipped in range(4):  # what stands before it may be of its alphabet
                word = found[0][skipped:]
                yield from self._inside(found.start(), base64.b64decode(word + b"A" * (-len(word) % 4)))

    def _plain(self, log: bytes) -> Iterator[Place]:
        yield from ((found.start(), "key") for found in _KEY.finditer(log))
        yield from ((found.start(), "secret") for found in self._secret.finditer(log))
        if self.addresses and b"@" in log:
            yield from ((_begin_of_address(log, found.start()), "address") for found in _ADDRESS.finditer(log))
        if self.body_starts:
            # As long as what it stands for, so that a place stays a place.
            spread = _ESCAPED.sub(lambda found: b" " * len(found[0]), log)
            for found in _WORD.finditer(spread):
                if spread[found.start() : found.start() + SHORTEST_LINE] in self.body_starts:
                    yield found.start(), "body"

    def _inside(self, start: int, decoded: bytes) -> Iterator[Place]:
        if self.body_starts or any(one in decoded for one in self._telling):
            yield from ((start, kind) for _, kind in self._plain(decoded) if kind != "address")


def _begin_of_address(log: bytes, place: int) -> int:
    local_part = _LOCAL_PART.search(log[max(place - 64, 0) : place])
    return place - len(local_part[0]) if local_part else place


def body_starts(raw: bytes, *, is_body: bool = False) -> set[bytes]:
    """Return how the lines of a message begin by which they are known again."""
    body = raw if is_body else re.split(rb"\r?\n\r?\n", raw, maxsplit=1)[-1]
    found = set[bytes]()
    for line in body.splitlines():
        word = _WORD.search(line)
        if word and not _NO_BODY.match(line):
            start = line[word.start() : word.start() + SHORTEST_LINE]
            if len(start) == SHORTEST_LINE:
                found.add(start)
    return found


def findings(log: bytes, forbidden: Forbidden, source: str) -> list[Finding]:
    """Look through a log once; of each line tell the first thing that is wrong."""
    found: dict[int, tuple[int, Kind]] = {}
    for start, kind in forbidden.places(log):
        begins = log.rfind(b"\n", 0, start) + 1
        if begins not in found or start < found[begins][0]:
            found[begins] = start, kind
    return [
        Finding(
            source, log.count(b"\n", 0, begins) + 1, kind, log[begins:start][-SHOWN_BYTES:].decode(errors="replace")
        )
        for begins, (start, kind) in sorted(found.items())
    ]


def look_through(paths: Iterable[Path], forbidden: Forbidden) -> list[Finding]:
    """Return what is found in these files; one that is not there holds nothing."""
    return [one for path in paths if path.is_file() for one in findings(path.read_bytes(), forbidden, str(path))]


def assert_clean(found: Iterable[Finding]) -> None:
    """Fail with all of it."""
    told = [str(one) for one in found]
    assert not told, "\n".join(["logs hold what they must not:", *told])


class Heard(logging.Handler):
    """Keeps what this process logs, as a daemon would write it, until it is looked through."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(formatter("text"))
        self._lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record))

    def taken(self) -> bytes:
        """Return what was heard since the last time."""
        lines, self._lines = self._lines, []
        return "\n".join(lines).encode(errors="replace")


class Grown:
    """Reads what was added to files since the last time."""

    def __init__(self) -> None:
        self._read_bytes: dict[Path, int] = {}

    def since_last(self, path: Path) -> bytes:
        """Return it; nothing, where there is no such file."""
        if not path.is_file():
            return b""
        with path.open("rb") as file:
            file.seek(self._read_bytes.get(path, 0))
            added = file.read()
            self._read_bytes[path] = file.tell()
        return added
