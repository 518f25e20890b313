"""What the administrator's commands share: the store, the options, the ways to ask and to show."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from opensend_milter import config
from opensend_milter.adapters.admin.deliveries import DeliveryAdmin
from opensend_milter.adapters.admin.listing import MOST_COUNTED, Listed
from opensend_milter.adapters.admin.store import AdminStore
from opensend_milter.adapters.postgres.link import connect, conninfo_for
from opensend_milter.cli.exits import configured
from opensend_milter.core.errors import UsageError

Row = TypeVar("Row")
DEFAULT_USER = "default"
UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

Owner = Annotated[
    str,
    typer.Option("--user", "-u", metavar="ID", help="User it belongs to; beside OpenSend: an id of its users."),
]
OnlyOf = Annotated[str | None, typer.Option("--user", "-u", metavar="ID", help="Only of this user.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask. Without a terminal nothing is asked anyway.")]
Limit = Annotated[int, typer.Option("--limit", "-n", metavar="N", min=1, help="Show at most so many, the newest.")]
All = Annotated[bool, typer.Option("--all", help="Show all, whatever --limit says.")]
Since = Annotated[
    str | None,
    typer.Option(
        "--since", metavar="WHEN", help="Not older than this: 30m, 12h, 7d, 2w, or a date or time (ISO 8601)."
    ),
]


@contextmanager
def opened(path: Path | None) -> Iterator[tuple[config.Config, AdminStore]]:
    """Connect as the configured URL says; errors of ours end the program with their exit code."""
    with configured(path) as settings:
        info = conninfo_for(settings.database.url, None, None)
        with connect(info, application_name="opensend-milter-admin") as connection:
            yield settings, AdminStore(connection, makes_users=settings.profile == "standalone")


@contextmanager
def delivering(path: Path | None) -> Iterator[tuple[AdminStore, DeliveryAdmin]]:
    """Connect for what only our own worker heeds."""
    with configured(path) as settings:
        if settings.profile == "opensend":
            raise UsageError("profile is opensend, and OpenSend's ingester delivers: use its dashboard")
        info = conninfo_for(settings.database.url, None, None)
        with connect(info, application_name="opensend-milter-admin") as connection:
            yield AdminStore(connection, makes_users=True), DeliveryAdmin(connection)


def left_out(found: Listed[Row]) -> str:
    """Say what a list does not show; nothing, where it shows all."""
    if found.total == len(found.rows):
        return ""
    total = f"more than {MOST_COUNTED:,}" if found.total is None else f"{found.total:,}"
    return f"{len(found.rows):,} of {total}, newest first; see --limit and --all"


def confirm(question: str, *, yes: bool) -> None:
    """Ask a person; a script has decided already."""
    if not yes and sys.stdin.isatty():
        typer.confirm(question, abort=True)


def moment(text: str | None) -> datetime | None:
    """Read a point in time, or an age."""
    if text is None:
        return None
    age = re.fullmatch(r"(\d{1,6})([mhdw])", text.strip())
    try:
        if age:
            return datetime.now(UTC) - timedelta(**{UNITS[age[2]]: int(age[1])})
        return datetime.fromisoformat(text.strip()).astimezone()
    except (ValueError, OverflowError) as error:
        raise UsageError(
            f"--since: {text!r} is neither an age such as 12h or 7d nor a date such as 2025-01-31"
        ) from error
