"""`suppression`: the addresses that a user's mail must not reach."""

from __future__ import annotations

from typing import Annotated

import typer

from opensend_milter.adapters.admin_rows import Reason
from opensend_milter.cli import admin
from opensend_milter.cli.output import AsJson, ConfigPath, plain, show, table_of

app = typer.Typer(help="Addresses that a user's mail must not reach.", no_args_is_help=True)

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
    """Suppress an address; one that is suppressed already gets the new reason."""
    with admin.opened(config) as (_, store):
        row = store.add_suppression(store.ensure_user(user), email, reason)
    show(row, as_json=as_json, table=lambda: f"suppressed {row.email} ({row.reason}) for user {row.user_id}")


@app.command("list")
def list_(
    user: admin.OnlyOf = None, limit: admin.Limit = 100, config: ConfigPath = None, as_json: AsJson = False
) -> None:
    """List suppressed addresses, latest first."""
    with admin.opened(config) as (_, store):
        rows = store.list_suppressions(user, limit=limit)
    show(
        rows,
        as_json=as_json,
        table=lambda: table_of(
            ["ADDRESS", "USER", "REASON", "SINCE"],
            [(row.email, row.user_id, row.reason, row.suppressed_at) for row in rows],
        ),
    )


@app.command("remove")
def remove(
    email: Email,
    user: admin.Owner = admin.DEFAULT_USER,
    yes: admin.Yes = False,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """Let a user's mail reach an address again."""
    with admin.opened(config) as (_, store):
        admin.confirm(f"Let mail of user {user} reach {plain(email)} again?", yes=yes)
        row = store.remove_suppression(user, email)
    show({"removed": row}, as_json=as_json, table=lambda: f"{row.email} is no longer suppressed for user {row.user_id}")
