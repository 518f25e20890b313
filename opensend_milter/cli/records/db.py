"""`db`: make the database ready, keep it ready, say how it stands."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Annotated

import typer

from opensend_milter import app as app_, config as configuration
from opensend_milter.adapters.schema import migrations
from opensend_milter.cli.exits import configured
from opensend_milter.cli.output import AsJson, ConfigPath, Utc, plain, progress, show, table_of
from opensend_milter.core.errors import UsageError

app = typer.Typer(help="Make the database ready and keep it so.", no_args_is_help=True)

NewPasswords = Annotated[
    bool,
    typer.Option("--new-passwords", help="Also for roles whose password other hosts have: those cannot log in then."),
]


@app.command()
def init(new_passwords: NewPasswords = False, config: ConfigPath = None, as_json: AsJson = False) -> None:
    """Make a database without OpenSend ready.

    It gets tables, roles, rights and passwords. Run it again at any time: what is there is left alone, rights and
    passwords are set anew. The database must exist and database.url must name its owner with CREATEROLE, or a
    superuser.
    """
    with configured(config) as settings:
        if settings.profile == "opensend":
            raise UsageError("profile is opensend, and OpenSend makes its own tables: use `db migrate`")
        _run(partial(migrations.init, new_passwords=new_passwords), settings, as_json=as_json)


@app.command()
def migrate(new_passwords: NewPasswords = False, config: ConfigPath = None, as_json: AsJson = False) -> None:
    """Put our tables beside OpenSend's, or bring them up to date.

    They live in a schema of their own. OpenSend's tables stay as they are: our roles get rights on them, nothing else.
    """
    with configured(config) as settings:
        _run(partial(migrations.migrate, new_passwords=new_passwords), settings, as_json=as_json)


@app.command()
def status(utc: Utc = False, config: ConfigPath = None, as_json: AsJson = False) -> None:
    """List the migrations: applied, pending, changed or unknown. Exit code 1: not all of them are applied."""
    with configured(config) as settings:
        found = migrations.status(settings.database.url, actions=settings.console.actions)
    show(
        found,
        as_json=as_json,
        table=lambda: table_of(
            ["MIGRATION", "STATE", "APPLIED"], [(one.name, one.state, one.applied_at) for one in found], utc=utc
        ),
    )
    if any(one.state != "applied" for one in found):
        raise typer.Exit(1)


@app.command()
def prune(config: ConfigPath = None, as_json: AsJson = False) -> None:
    """Delete at once what is kept for a time only.

    The worker does so every ten minutes.
    """
    counts: Counter[str] = Counter()
    with configured(config) as settings, progress() as say:

        def count(what: str, number: int) -> None:
            counts[what] += number
            say(f"{what}: {counts[what]:,}")

        store = app_.job_store(settings, "opensend-prune")
        while store.prune(count):
            pass
        store.close()
    lines = [f"{count} {what}" for what, count in counts.items()] or ["nothing to delete"]
    show(counts, as_json=as_json, table=lambda: "\n".join(lines))


@app.command()
def fill_search(
    anew: Annotated[
        bool, typer.Option("--anew", help="Empty it first: after rows were put into the tables from elsewhere.")
    ] = False,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """Fill up the table in which `why` looks, at full speed.

    The worker does so all the time, and sparingly. What was begun is gone on with, by the worker or by this command
    again. Until all is noted, only the newest of the other messages are looked at.
    """
    count = 0
    with configured(config) as settings, progress() as say:
        table = app_.search_table(settings, "opensend-fill-search")
        if anew:
            table.empty()
        is_behind = True
        while is_behind:
            batch = table.fill(wait=True)
            is_behind = batch.is_full if batch else False
            if batch:
                count += batch.looked_at
                say(f"{count:,} messages, up to {plain(batch.last.at)}")
        table.close()
    show({"looked_at": count}, as_json=as_json, table=lambda: f"{count:,} messages looked at: all are noted")


def _run(command: Callable[..., list[str]], settings: configuration.Config, *, as_json: bool) -> None:
    database = settings.database
    if warning := migrations.warning(database.url):
        typer.echo(warning, err=True)
    with progress() as say:
        applied = command(database.url, database.password_dir, actions=settings.console.actions, say=say)
    lines = [f"applied {name}" for name in applied] or ["nothing to apply: the tables are up to date"]
    lines.append(
        f"roles are ready, their passwords in {database.password_dir}"
        if database.password_dir
        else "roles are ready, without passwords: database.password_dir is not set"
    )
    show({"applied": applied, "password_dir": database.password_dir}, as_json=as_json, table=lambda: "\n".join(lines))
