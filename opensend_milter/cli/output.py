"""What people and scripts see: tables and pages, or JSON; on a terminal also how far something is."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from enum import Enum
from itertools import starmap
from pathlib import Path
from typing import Annotated, Any

import typer

ConfigPath = Annotated[
    Path | None, typer.Option("--config", "-c", help="Configuration file, instead of the usual one.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]
Utc = Annotated[bool, typer.Option("--utc", help="Show times exactly, in UTC.")]
_AGES = (("s", 60), ("min", 60), ("h", 24), ("d", 30))
"""Units of an age, each with how many of it make one of the next."""
GAP = "  "
READABLE = 20
"""What a text keeps of its cells as long as there is another column to go instead."""
ID_START = 13
"""What is shown of an id, and is enough to name it by."""
MOST_PADDING = 60
"""In a file nothing is cut; a cell that is longer stands out of its column."""
MARKS_PER_CELL = 4
"""Accents take no cell, and a stranger may stack any number of them."""
SAID_EVERY = 1_000
_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
Line = Sequence[str]


def show(value: Any, *, as_json: bool, table: Callable[[], str], more: str = "") -> None:
    """Print a value as JSON, or what `table` makes of it for people; `more`: what they are told beside it."""
    if as_json:
        sys.stdout.write(json.dumps(value, default=_plain, ensure_ascii=False) + "\n")
        return
    sys.stdout.write(table().rstrip("\n") + "\n")
    if more:
        sys.stdout.flush()
        sys.stderr.write(f"{more}\n")


def table_of(
    columns: Sequence[str], rows: Iterable[Sequence[object]], *, drop: Sequence[str] = (), utc: bool = False
) -> str:
    """Draw rows of which some cells were written by strangers: nothing in them moves the cursor.

    `drop`: columns that go where the terminal is too narrow for all, the least important first.
    """
    width = terminal_width()
    aged = width is not None and not utc
    cells = [
        [_ago(cell) if aged and isinstance(cell, datetime) else plain(cell, utc=utc) for cell in row] for row in rows
    ]
    return _laid_out(columns, cells, drop=drop, width=width)


def _laid_out(columns: Line, rows: Sequence[Line], *, drop: Sequence[str], width: int | None) -> str:
    """Lay out rows under the names of their columns; `drop`: which may go, the least important first.

    Without a width nothing is left out.
    """
    lines = [columns, *rows]
    if width is None:
        return _aligned(lines, [min(wanted, MOST_PADDING) for wanted in _wanted(lines)])
    if _least(lines) > width:
        lines = [[_shortened(cell) for cell in line] for line in lines]
    for name in drop:
        if _least(lines) <= width:
            break
        at = lines[0].index(name)
        lines = [[*line[:at], *line[at + 1 :]] for line in lines]
    widths = _shared_out(_floors(lines), _wanted(lines), width - len(GAP) * (len(lines[0]) - 1))
    return _aligned([[*map(_cut, line, widths)] for line in lines], widths)


def _shortened(cell: str) -> str:
    return cell[:ID_START] if _ID.fullmatch(cell) else cell


def _least(lines: Sequence[Line]) -> int:
    return sum(_floors(lines)) + len(GAP) * (len(lines[0]) - 1)


def _floors(lines: Sequence[Line]) -> list[int]:
    """Tell how narrow each column may be: an id that is cut is none."""
    has_id = [any(map(_ID.fullmatch, column)) for column in zip(*lines, strict=True)]
    return [wanted if is_id else min(wanted, READABLE) for wanted, is_id in zip(_wanted(lines), has_id, strict=True)]


def _wanted(lines: Sequence[Line]) -> list[int]:
    return [max(map(_width_of, column)) for column in zip(*lines, strict=True)]


def _shared_out(floors: Sequence[int], wanted: Sequence[int], room: int) -> list[int]:
    """Give what is left to those that are narrowest; where it is too little, take from those that are widest."""
    widths = list(floors)
    while sum(widths) < room and (wanting := [at for at, most in enumerate(wanted) if widths[at] < most]):
        widths[min(wanting, key=widths.__getitem__)] += 1
    while sum(widths) > room and max(widths) > 1:
        widths[widths.index(max(widths))] -= 1
    return widths


def _cut(cell: str, width: int) -> str:
    bounded = cell[: width * MARKS_PER_CELL]
    if bounded == cell and _width_of(cell) <= width:
        return cell
    return _ended(bounded, width)


def _ended(text: str, width: int) -> str:
    """Say that there is more of a text than there is room for."""
    while text and _width_of(text) >= width:
        text = text[:-1]
    return f"{text}…"


def broken(text: str, width: int | None, most: int) -> list[str]:
    """Break a text that may be printed into lines of a terminal, `most` of them; without a width it is left whole."""
    if width is None:
        return [text]
    bounded = text[: width * most * MARKS_PER_CELL]
    lines, line = [], ""
    for word in bounded.split(" "):
        longer = f"{line} {word}" if line else word
        if _width_of(longer) > width and line:
            lines.append(line)
            longer = word
        while _width_of(longer) > width:
            head = _fitting(longer, width)
            lines.append(head)
            longer = longer[len(head) :]
        line = longer
        if len(lines) >= most:
            return [*lines[: most - 1], _ended(lines[most - 1], width)]
    return [*lines, line if bounded == text else _ended(line, width)]


def _fitting(text: str, width: int) -> str:
    """Return as much of a text's beginning as there is room for, one letter at least."""
    taken = text[: width * MARKS_PER_CELL]
    while len(taken) > 1 and _width_of(taken) > width:
        taken = taken[:-1]
    return taken


def terminal_width() -> int | None:
    """Return how wide the terminal is; None: the output goes elsewhere."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def _aligned(lines: Sequence[Line], widths: Sequence[int]) -> str:
    return "\n".join(GAP.join(starmap(_padded, zip(line, widths, strict=True))).rstrip() for line in lines)


def _padded(cell: str, width: int) -> str:
    return cell + " " * (width - _width_of(cell))


def _width_of(text: str) -> int:
    if text.isascii():
        return len(text)
    # Not before: most commands draw nothing wider, and start faster without it.
    from rich.cells import cell_len  # noqa: PLC0415

    return cell_len(text)


def plain(value: object, *, utc: bool = False) -> str:
    """Return what a person may read of a value; `utc`: times in UTC, and exactly."""
    match value:
        case None:
            return ""
        case datetime():
            return _exactly(value, utc=utc)
        case dict():
            return ", ".join(f"{plain(name)}: {plain(item, utc=utc)}" for name, item in value.items())
        case list() | tuple():
            return ", ".join(plain(item, utc=utc) for item in value)
        case _:
            return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(value))


def on_page(value: object, *, utc: bool) -> str:
    """Return the same where there is room: a time with its age."""
    text = plain(value, utc=utc)
    return f"{text} ({_ago(value)})" if isinstance(value, datetime) and not utc and sys.stdout.isatty() else text


def _exactly(at: datetime, *, utc: bool) -> str:
    if utc:
        return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return f"{at.astimezone():%Y-%m-%d %H:%M:%S}"


def _ago(at: datetime) -> str:
    """Say how long ago it was, or in how long it will be; of what is far away, the day."""
    past = datetime.now(UTC) - at
    count = abs(past) // timedelta(seconds=1)
    for unit, most in _AGES:
        if count < most:
            return f"{count} {unit} ago" if past >= timedelta() else f"in {count} {unit}"
        count //= most
    return f"{at.astimezone():%Y-%m-%d}"


@contextmanager
def progress() -> Iterator[Callable[[str], None]]:
    """Lend a way to say how far something is: one line of a terminal, gone at the end; nothing elsewhere."""
    said = False

    def say(text: str) -> None:
        nonlocal said
        if said := sys.stderr.isatty():
            sys.stderr.write(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}")
            sys.stderr.flush()

    try:
        yield say
    finally:
        if said:
            say("")


def counting(what: str, say: Callable[[str], None]) -> Callable[[int], None]:
    """Return what says of a count that goes up, now and then, how far it is."""

    def count(number: int) -> None:
        if number % SAID_EVERY == 0:
            say(f"{what}: {number:,}")

    return count


_PLAIN: tuple[tuple[type, Callable[[Any], object]], ...] = (
    (datetime, datetime.isoformat),
    (Enum, lambda member: member.value),
    (bytes, bytes.hex),
    (Mapping, dict),
    (frozenset, sorted),
)


def _plain(value: object) -> object:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return next((plain(value) for kind, plain in _PLAIN if isinstance(value, kind)), str(value))
