"""`console`: the process that shows pages, who may look at them, and who read or did what there."""

from __future__ import annotations

import getpass
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from opensend_milter.adapters.admin.console_users import ConsoleUsers
from opensend_milter.adapters.postgres.link import connect, conninfo_for
from opensend_milter.cli import admin
from opensend_milter.cli.exits import configured
from opensend_milter.cli.output import AsJson, ConfigPath, Utc, counting, progress, show, table_of
from opensend_milter.cli.processes import daemons
from opensend_milter.core import passwords
from opensend_milter.core.errors import UsageError
from opensend_milter.core.ids import key_id
from opensend_milter.core.model import EmailId

app = typer.Typer(help="Show people in a browser what became of messages.")
user = typer.Typer(help="Who may look at the console, and see everything there.", no_args_is_help=True)
app.add_typer(user, name="user")
GENERATED_BYTES = 18

OfEmail = Annotated[str | None, typer.Option("--email", metavar="ID", help="Only of this message.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="By which somebody logs in.", show_default=False)]


@app.callback(invoke_without_command=True)
def run(context: typer.Context, config: ConfigPath = None) -> None:
    """Show people in a browser what became of messages.

    Without a further word it is the process that does so.
    """
    if context.invoked_subcommand is None:
        daemons.console(config)


@user.command("add")
def add(
    name: Name,
    *,
    generate: Annotated[bool, typer.Option("--generate", help="Make a password, and show it once.")] = False,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """Let somebody look who has this password.

    It is asked for, or read from standard input. Whoever is there already has the new one then, and logs in again.
    """
    with _users(config) as users:
        password = secrets.token_urlsafe(GENERATED_BYTES) if generate else passwords.check(_asked_for())
        added = users.put(name, passwords.verifier_of(password, os.urandom(passwords.SALT_BYTES)))
    told = {"name": added} | ({"password": password} if generate else {})
    text = f"{added} may look at the console" + (f"; the password, shown only here: {password}" if generate else "")
    show(told, as_json=as_json, table=lambda: text)


@user.command("list")
def list_(*, utc: Utc = False, config: ConfigPath = None, as_json: AsJson = False) -> None:
    """List who may look."""
    with _users(config) as users:
        rows = users.list_users()
    show(
        rows,
        as_json=as_json,
        table=lambda: table_of(
            ["NAME", "SESSIONS", "ADDED"], [(row.name, row.sessions, row.created_at) for row in rows], utc=utc
        ),
    )


@user.command("remove")
def remove(name: Name, *, config: ConfigPath = None, as_json: AsJson = False) -> None:
    """Let somebody look no more, from the next request on."""
    with _users(config) as users:
        users.remove(name)
    show({"name": name}, as_json=as_json, table=lambda: f"{name} may look at the console no more")


@app.command("log-out")
def log_out(
    *,
    name: Annotated[str | None, typer.Option("--user", metavar="NAME", help="Only this user.")] = None,
    key: Annotated[str | None, typer.Option("--key", metavar="ID", help="Only who logged in with this key.")] = None,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """End sessions: of a user, of a key, or all."""
    if key and not key_id(key):
        raise typer.BadParameter("not the id of a key", param_hint="--key")
    with _users(config) as users:
        count = users.end_sessions(user=name, key_id=key_id(key) if key else None)
    show({"sessions": count}, as_json=as_json, table=lambda: f"{count} sessions ended")


@app.command("views")
def views(
    *,
    email: OfEmail = None,
    since: admin.Since = None,
    limit: admin.Limit = 100,
    every: admin.All = False,
    utc: Utc = False,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """List who was shown what a message says."""
    with _users(config) as users, progress() as say:
        found = users.views(
            email_id=_id_of(email),
            since=admin.moment(since),
            limit=None if every else limit,
            progress=counting("found", say),
        )
    show(
        found.rows,
        as_json=as_json,
        table=lambda: table_of(
            ["AT", "WHO", "FROM", "MESSAGE", "WHAT"],
            [(row.viewed_at, row.viewer, row.client_address, row.email_id, row.what) for row in found.rows],
            drop=["FROM", "AT"],
            utc=utc,
        ),
        more=admin.left_out(found),
    )


@app.command("actions")
def actions(
    *,
    email: OfEmail = None,
    since: admin.Since = None,
    limit: admin.Limit = 100,
    every: admin.All = False,
    utc: Utc = False,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """List who retried, canceled or suppressed what from there."""
    with _users(config) as users, progress() as say:
        found = users.actions(
            email_id=_id_of(email),
            since=admin.moment(since),
            limit=None if every else limit,
            progress=counting("found", say),
        )
    show(
        found.rows,
        as_json=as_json,
        table=lambda: table_of(
            ["AT", "WHO", "FROM", "ACTION", "MESSAGE", "ADDRESS", "OUTCOME"],
            [
                (row.done_at, row.actor, row.client_address, row.action, row.email_id, row.address, row.outcome)
                for row in found.rows
            ],
            drop=["FROM", "AT"],
            utc=utc,
        ),
        more=admin.left_out(found),
    )


def _id_of(email: str | None) -> EmailId | None:
    asked = key_id(email) if email else None
    if email and not asked:
        raise typer.BadParameter("not the id of a message", param_hint="--email")
    return EmailId(asked) if asked else None


@contextmanager
def _users(path: Path | None) -> Iterator[ConsoleUsers]:
    with configured(path) as settings:
        info = conninfo_for(settings.database.url, None, None)
        with connect(info, application_name="opensend-milter-admin") as connection:
            yield ConsoleUsers(connection)


def _asked_for() -> str:
    """Return the password that a person types twice, or a script sends as a line."""
    if not sys.stdin.isatty():
        return sys.stdin.readline().rstrip("\r\n")
    first, second = getpass.getpass("Password: "), getpass.getpass("Again: ")
    if first != second:
        raise UsageError("these were two different passwords")
    return first
