"""`suppression`: the addresses that a user's mail must not reach."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import IO, Annotated, Literal

import typer

from opensend_milter import config as configuration
from opensend_milter.adapters.admin.rows import Reason
from opensend_milter.adapters.admin.store import AdminStore
from opensend_milter.adapters.admin.suppression_files import export_entries, import_entries
from opensend_milter.adapters.postgres.link import Connection, connect, conninfo_for
from opensend_milter.cli import admin
from opensend_milter.cli.exits import configured
from opensend_milter.cli.output import AsJson, ConfigPath, Utc, counting, plain, progress, show, table_of
from opensend_milter.core.errors import UsageError
from opensend_milter.core.model import UserId
from opensend_milter.core.suppression_list import HEADER, Bad, read, sorted_out

app = typer.Typer(help="Addresses that a user's mail must not reach.", no_args_is_help=True)

EX_DATAERR = 65
SHOWN_LINES = 20

Email = Annotated[str, typer.Argument(metavar="ADDRESS", help="The address; upper and lower case are the same.")]
Why = Annotated[Reason, typer.Option("--reason", help="Why: by hand, or what the address did.")]


@app.command("add")
def add(
    email: Email,
    reason: Why = "manual",
    user: admin.Owner = admin.DEFAULT_USER,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """Suppress an address.

    One that is suppressed already gets the new reason.
    """
    with admin.opened(config) as (_, store):
        row = store.add_suppression(store.ensure_user(user), email, reason)
    show(row, as_json=as_json, table=lambda: f"suppressed {row.email} ({row.reason}) for user {row.user_id}")


@app.command("list")
def list_(
    *,
    user: admin.OnlyOf = None,
    limit: admin.Limit = 100,
    every: admin.All = False,
    utc: Utc = False,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """List suppressed addresses, newest first."""
    with admin.opened(config) as (_, store), progress() as say:
        most = None if every else limit
        found = store.list_suppressions(user, limit=most, progress=counting("found", say))
    show(
        found.rows,
        as_json=as_json,
        table=lambda: table_of(
            ["ADDRESS", "USER", "REASON", "SINCE"],
            [(row.email, row.user_id, row.reason, row.suppressed_at) for row in found.rows],
            drop=["USER"],
            utc=utc,
        ),
        more=admin.left_out(found),
    )


@app.command("remove")
def remove(
    *,
    email: Annotated[
        str | None, typer.Argument(metavar="ADDRESS", help="The address; upper and lower case are the same.")
    ] = None,
    via: Annotated[
        Literal["inline"] | None,
        typer.Option(
            "--via", help="All whom a next hop has refused as unknown: a broken relay does that. With --since."
        ),
    ] = None,
    since: admin.Since = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say whom it would be; change nothing.")] = False,
    user: Annotated[
        str | None,
        typer.Option("--user", "-u", metavar="ID", help="User it belongs to; with --via all users, unless named."),
    ] = None,
    yes: admin.Yes = False,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """Let a user's mail reach an address again.

    Or all that a broken relay has suppressed: --via inline --since WHEN.
    """
    with admin.opened(config) as (_, store):
        moment = admin.moment(since)
        if (email is None) == (via is None) or (via is None) != (moment is None) or (dry_run and not via):
            raise UsageError("name one address, or say --via inline --since WHEN, and perhaps --dry-run")
        if email is None and moment:
            _remove_inline(store, user, moment, dry_run=dry_run, yes=yes, as_json=as_json)
        elif email:
            _remove_one(store, email, user or admin.DEFAULT_USER, yes=yes, as_json=as_json)


def _remove_one(store: AdminStore, email: str, user: str, *, yes: bool, as_json: bool) -> None:
    admin.confirm(f"Let mail of user {user} reach {plain(email)} again?", yes=yes)
    row, *others = store.remove_suppression(user, email)
    also = f", listed as {plain(', '.join(one.email for one in others))} too" if others else ""
    show(
        {"removed": row, "other_spellings": others},
        as_json=as_json,
        table=lambda: f"{row.email} is no longer suppressed for user {row.user_id}{also}",
    )


def _remove_inline(
    store: AdminStore, user: str | None, since: datetime, *, dry_run: bool, yes: bool, as_json: bool
) -> None:
    with progress() as say:
        say("looking for whom next hops have refused")
        found = store.bounced_inline(user, since)
    removed = 0
    if found and not dry_run:
        admin.confirm(f"Let mail reach {len(found):,} address(es) again that next hops have refused?", yes=yes)
        with progress() as say:
            say(f"letting mail reach {len(found):,} address(es)")
            removed = store.remove_bounced_inline(found)
    lines = [f"{plain(row.email)} of user {plain(row.user_id)}" for row in found[:SHOWN_LINES]]
    if len(found) > SHOWN_LINES:
        lines.append(f"... and {len(found) - SHOWN_LINES:,} more")
    lines.append(f"{len(found):,} would be" if dry_run else f"{removed:,} are")
    lines[-1] += " no longer suppressed"
    told = {"dry_run": dry_run, "found": found, "removed": removed}
    show(told, as_json=as_json, table=lambda: "\n".join(lines))


@app.command("import")
def import_(
    *,
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE", help="CSV of ours, Postmark or SendGrid, CSV or JSON of SES; -: standard input."
        ),
    ],
    reason: Annotated[
        Reason | None, typer.Option("--reason", help="Why all of them are suppressed, whatever the file says.")
    ] = None,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Import the good lines although there are bad ones.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would happen; change nothing.")] = False,
    user: admin.Owner = admin.DEFAULT_USER,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """Suppress all addresses of a file.

    In one transaction; those that are suppressed already stay as they are. With a bad line nothing is imported,
    unless --skip-bad. Exit code 65: there are bad lines.
    """
    with _connected(config) as (settings, connection):
        store = AdminStore(connection, makes_users=settings.profile == "standalone")
        with _reading(file) as content, progress() as say:
            name, lines = read(content, reason)
            entries, bad, again = sorted_out(lines, counting("read", say))
        halted = bool(bad) and not skip_bad
        added = 0
        if not halted:
            owner = UserId(user) if dry_run else store.ensure_user(user)
            with progress() as say:
                stored = counting("stored", say)
                added = import_entries(connection, owner, entries.values(), dry_run=dry_run, progress=stored)
    report: dict[str, object] = {
        "format": name,
        "dry_run": dry_run,
        "imported": not halted and not dry_run,
        "addresses": len(entries),
        "added": added,
        "known": 0 if halted else len(entries) - added,
        "duplicate_lines": [entry.line for entry in again],
        "bad_lines": [{"line": one.line, "why": one.why} for one in bad],
    }
    show(report, as_json=as_json, table=lambda: "\n".join(_told(report, bad, halted=halted)))
    if bad:
        raise typer.Exit(EX_DATAERR)


@app.command("export")
def export(
    *,
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to; -: standard output.")] = Path("-"),
    user: admin.Owner = admin.DEFAULT_USER,
    config: ConfigPath = None,
) -> None:
    """Write a user's suppressed addresses as CSV.

    Address, reason, since; `import` reads it.
    """
    with _connected(config) as (_, connection):
        owner = AdminStore(connection, makes_users=False).ensure_user(user)
        with _writing(file) as output, progress() as say:
            # A terminal that shows the addresses sees how far it is.
            count = counting("written", (lambda _: None) if output.isatty() else say)
            writer = csv.writer(output, lineterminator="\n")
            writer.writerow(HEADER)
            for number, (address, why, since) in enumerate(export_entries(connection, owner), start=1):
                writer.writerow((address, why, since.isoformat()))
                count(number)


@contextmanager
def _connected(path: Path | None) -> Iterator[tuple[configuration.Config, Connection]]:
    with configured(path) as settings:
        info = conninfo_for(settings.database.url, None, None)
        with connect(info, application_name="opensend-milter-admin") as connection:
            yield settings, connection


@contextmanager
def _reading(file: Path) -> Iterator[IO[bytes]]:
    if str(file) == "-":
        yield sys.stdin.buffer
        return
    try:
        content = file.open("rb")
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error
    with content:
        yield content


@contextmanager
def _writing(file: Path) -> Iterator[IO[str]]:
    """Open a file for its owner alone, whole or not at all."""
    if str(file) == "-":
        yield sys.stdout
        return
    new = file.with_name(f".{file.name}.new")
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8", newline="") as output:
            yield output
        new.replace(file)
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error
    finally:
        new.unlink(missing_ok=True)


def _told(report: dict[str, object], bad: list[Bad], *, halted: bool) -> Iterator[str]:
    for one in bad[:SHOWN_LINES]:
        yield f"line {one.line}: {plain(one.why)}"
    if len(bad) > SHOWN_LINES:
        yield f"... and {len(bad) - SHOWN_LINES} more bad lines"
    again = report["duplicate_lines"]
    if isinstance(again, list) and again:
        more = " ..." if len(again) > SHOWN_LINES else ""
        yield f"the same address again in {len(again)} line(s): {', '.join(map(str, again[:SHOWN_LINES]))}{more}"
    if halted:
        yield f"nothing imported: {len(bad)} bad line(s); mend them, or use --skip-bad"
        return
    would = "would be " if report["dry_run"] else ""
    left = f", {len(bad)} bad line(s) left out" if bad else ""
    yield f"{report['format']}: {report['added']} {would}added, {report['known']} suppressed already{left}"
