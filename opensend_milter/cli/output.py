"""What people and scripts see on standard output: tables, or JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opensend_milter.config import DEFAULT_PATH

if TYPE_CHECKING:
    from rich.table import Table

ConfigPath = Annotated[
    Path | None, typer.Option("--config", "-c", help=f"Configuration file; {DEFAULT_PATH} unless given.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for scripts.")]


def show(value: Any, *, as_json: bool, table: Callable[[], Table | str]) -> None:
    """Print a value as JSON, or what `table` makes of it for people."""
    if as_json:
        sys.stdout.write(json.dumps(value, default=_plain, ensure_ascii=False) + "\n")
        return
    drawn = table()
    if isinstance(drawn, str):
        sys.stdout.write(drawn.rstrip("\n") + "\n")
    else:
        # Not before: most commands draw nothing, and start faster without it.
        from rich.console import Console  # noqa: PLC0415

        Console(soft_wrap=not sys.stdout.isatty(), width=None if sys.stdout.isatty() else 200).print(drawn)


def table_of(columns: Sequence[str], rows: Iterator[Sequence[object]] | Sequence[Sequence[object]]) -> Table:
    """Draw rows of which some cells were written by strangers: nothing in them is markup or moves the cursor."""
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    drawn = Table(*columns, box=None, pad_edge=False)
    for row in rows:
        drawn.add_row(*(Text(plain(cell)) for cell in row))
    return drawn


def plain(value: object) -> str:
    """Return what a person may read of a value."""
    match value:
        case None:
            return ""
        case datetime():
            return f"{value.astimezone():%Y-%m-%d %H:%M:%S}"
        case list() | tuple():
            return ", ".join(plain(item) for item in value)
        case _:
            return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in str(value))


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
