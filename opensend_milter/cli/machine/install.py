"""`install`: show what an installation would change, change it, take it back."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import version
from pathlib import Path
from types import FrameType
from typing import Annotated, Literal

import typer
from psycopg import conninfo

from opensend_milter import config as configuration
from opensend_milter.adapters.postgres.link import Role, connect, conninfo_for, store_errors
from opensend_milter.adapters.schema import migrations
from opensend_milter.adapters.schema.roles import KEEP, LOGIN_ROLES, OF_PROCESSES, locked_out
from opensend_milter.cli import exits
from opensend_milter.cli.output import AsJson, ConfigPath, plain, show, table_of
from opensend_milter.core.errors import OpensendError, StoreUnavailable, UsageError
from opensend_milter.host.installing import apply as installer, preflight, remains
from opensend_milter.host.installing.blueprint import PASSWORDS, Choice, Dovecot, Mode
from opensend_milter.host.installing.plan import HERE, Action, Fault, Outlook, Plan, Root
from opensend_milter.host.requirements import EX_NOPERM, Lacking

EX_FAULTS, EX_TERMINATED = 1, 143

What = Literal["plan", "apply", "undo", "status"]
Below = Annotated[Path, typer.Option("--root", help="The directory of another system, instead of this one.")]
NewPasswords = Annotated[
    bool,
    typer.Option("--new-passwords", help="Also for roles whose password other hosts have: those cannot log in then."),
]
Force = Annotated[bool, typer.Option("--force", help="With --undo: also where messages lie in the queue.")]


def install(  # noqa: PLR0917  # typer calls it by name
    plan: Annotated[bool, typer.Option("--plan", help="Show every step; change nothing (the default).")] = False,
    apply: Annotated[bool, typer.Option("--apply", help="Take the steps; a second time changes nothing.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Take back all that was applied, byte for byte.")] = False,
    status: Annotated[bool, typer.Option("--status", help="Say of each thing how it is now.")] = False,
    root: Below = HERE,
    mode: Annotated[
        Mode, typer.Option("--mode", help="A Postfix instance of our own, or services in yours.")
    ] = "instance",
    dovecot: Annotated[Dovecot, typer.Option("--dovecot", help="A Dovecot of our own, or yours.")] = "own",
    new_passwords: NewPasswords = False,
    force: Force = False,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """Install beside what is there, or take it back.

    --plan shows it, --apply does it, --undo takes it back. --plan exits with 1 where --apply would refuse.
    """
    asked = {"plan": plan, "apply": apply, "undo": undo, "status": status}
    chosen = [name for name, is_asked in asked.items() if is_asked] or ["plan"]
    if len(chosen) > 1:
        exits.fail(f"--{chosen[0]} and --{chosen[1]} do not go together", exits.EX_USAGE)
    with _exits():
        place = Root(root.resolve() if root != HERE else HERE)
        choice = Choice(mode=mode, dovecot=dovecot)
        match chosen[0]:
            case "undo":
                _undo(place, force=force, as_json=as_json)
            case "status":
                _status(place, as_json=as_json)
            case "apply":
                _apply(_drawn_up(place, choice, config, new_passwords=new_passwords), as_json=as_json)
            case _:
                _show(_drawn_up(place, choice, config, new_passwords=new_passwords), as_json=as_json)


@contextmanager
def _exits() -> Iterator[None]:
    with exits.exits():
        try:
            yield
        except Lacking as error:
            exits.fail(str(error), error.exit_code)
        except OSError as error:
            raise UsageError(str(error)) from error


def _drawn_up(root: Root, choice: Choice, path: Path | None, *, new_passwords: bool) -> Plan:
    place = path or root.at(configuration.DEFAULT_PATH)
    if not place.is_file():
        mend = "write it: docs/opensend-milter.example.yaml has every key with its default"
        return Plan(root=root, steps=(), faults=(Fault(what=f"{place}: is not there", mend=mend),))
    # As the units will read it: nothing of this shell's environment, but for who makes the tables.
    config = configuration.load(place, {})
    database = _database(place, config.database.url, new_passwords=new_passwords) if root.is_here else None
    faults = list(_locked_out(place)) if root.is_here and not new_passwords else []
    edition = version("opensend-milter")
    return preflight.draw_up(
        config, place.read_bytes(), choice, root, database=database, faults_of_database=faults, edition=edition
    )


def _locked_out(place: Path) -> Iterator[Fault]:
    """Look before a file has the new passwords: the step of the database would not find them missing."""
    info = conninfo_for(configuration.load(place).database.url, None, None)
    # A database that is out says so when its step is taken; until then no password is changed.
    with suppress(StoreUnavailable), store_errors(), connect(info, application_name="opensend-install") as connection:
        if what := locked_out(connection, PASSWORDS):
            yield Fault(what=what, mend=KEEP)


def _database(place: Path, units_url: str, *, new_passwords: bool) -> Action:
    """Return the step that makes the tables: as whom this shell says, for those whom the units will be."""
    settings = configuration.load(place)
    opensend, actions = settings.profile == "opensend", settings.console.actions
    command = migrations.migrate if opensend else migrations.init

    def prepare() -> None:
        command(settings.database.url, PASSWORDS, actions=actions, new_passwords=new_passwords)
        for role in OF_PROCESSES:
            _log_in(units_url, role)

    warning = ""
    with suppress(StoreUnavailable):  # the step itself says so
        warning = migrations.warning(settings.database.url)
    return Action(
        name=f"db {'migrate' if opensend else 'init'}",
        why="tables and roles, each of which must get in; run again at any time",
        call=prepare,
        wants=migrations.shipped(beside=opensend, actions=actions),
        diff=warning,
        stays="the database stays as it is. To remove it with all its data: dropdb, then DROP ROLE for each role",
    )


def _log_in(url: str, role: Role) -> None:
    try:
        connect(conninfo_for(url, PASSWORDS, role), application_name="opensend-install").close()
    except StoreUnavailable as error:
        name = conninfo.conninfo_to_dict(url).get("dbname", "DATABASE")
        raise StoreUnavailable(
            f"role {role} cannot log in at database.url: {error}\n"
            "over a unix socket pg_hba.conf needs a line of ours before `local all all peer`:\n"
            f"local {name} {','.join(LOGIN_ROLES)} scram-sha-256\n"
            "where the passwords were made just now they are gone with the rest: then --apply --new-passwords"
        ) from error


# ---------------------------------------------------------------------- plan


def _show(plan: Plan, *, as_json: bool) -> None:
    steps = [] if plan.faults and not plan.steps else installer.outlooks(plan)
    show(
        {"faults": plan.faults, "steps": steps, "notes": plan.notes},
        as_json=as_json,
        table=lambda: "\n".join(_plan_text(plan, steps)),
    )
    if plan.faults:
        raise typer.Exit(EX_FAULTS)


def _plan_text(plan: Plan, steps: list[Outlook]) -> Iterator[str]:
    for fault in plan.faults:
        yield f"ERROR {fault.what}\n      mend: {fault.mend}"
    done = [step for step in steps if step.state == "as it should be"]
    for step in steps:
        if step.state != "as it should be":
            yield f"\n{step.name}\n  # {step.why}"
            yield from (f"  {plain(line)}" for line in step.diff.splitlines())
    if done:
        yield "\nAs it should be:"
        yield from (f"  {step.name}" for step in done)
    yield from (f"\nNote: {note}" for note in plan.notes)
    changes = len(steps) - len(done)
    yield f"\n{changes} of {len(steps)} steps to be done; nothing was changed." if steps else ""


# ---------------------------------------------------------------------- apply, undo, status


def _apply(plan: Plan, *, as_json: bool) -> None:
    _require_root()
    if plan.faults:
        lines = [f"{fault.what}\n  mend: {fault.mend}" for fault in plan.faults]
        exits.fail("\n".join(lines), EX_FAULTS)
    with _ended_by_signals():
        applied = installer.apply(plan, _say)
    lines = [f"{len(applied.steps)} steps done" if applied.steps else "nothing to do: all is as it should be"]
    lines += [f"Note: {note}" for note in plan.notes]
    show({"steps": applied.steps, "notes": plan.notes}, as_json=as_json, table=lambda: "\n".join(lines))


def _undo(root: Root, *, force: bool, as_json: bool) -> None:
    _require_root()
    if not force:
        remains.refuse_what_would_be_lost(root)
    with _ended_by_signals():
        undone = installer.undo(root, _say)
    lines = [f"{len(undone.steps)} steps taken back" if undone.steps else "nothing to undo"]
    lines += [f"left: {text}" for text in undone.left]
    show(undone, as_json=as_json, table=lambda: "\n".join(lines))


def _status(root: Root, *, as_json: bool) -> None:
    found = installer.status(root)
    show(
        {"installed": bool(found), "things": found},
        as_json=as_json,
        table=lambda: (
            table_of(["STATE", "THING"], [(one.state, one.name) for one in found])
            if found
            else "not installed by `install --apply`"
        ),
    )
    if not found or any(one.state != "as installed" for one in found):
        raise typer.Exit(EX_FAULTS)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _require_root() -> None:
    if os.geteuid() != 0:
        raise Lacking("this changes the system: run it as root", EX_NOPERM)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let a signal end us as an error does, so that what was begun is taken back."""

    def end(number: int, _: FrameType | None) -> None:
        raise OpensendError(f"ended by {signal.Signals(number).name}")

    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
