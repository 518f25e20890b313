"""`selftest`: shows that this process cannot do what a process of ours must not."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from opensend_milter.cli.exits import exits
from opensend_milter.cli.output import AsJson, show
from opensend_milter.core.errors import UsageError
from opensend_milter.host.examining import confinement, units
from opensend_milter.host.examining.confinement import UNITS, Result, Service

Security = Annotated[bool, typer.Option("--security", help="Try what a unit's restrictions must deny.")]
As = Annotated[
    Service | None,
    typer.Option("--as", help="Judge this process as this one of ours. Without it: as the unit it is in, if any."),
]


def selftest(security: Security = False, as_: As = None, as_json: AsJson = False) -> None:
    """Try what must be denied and show that it is. Exit code 1: something was allowed.

    Outside of our units nothing is promised, so nothing is tried: the output then says how to run it inside.
    """
    with exits():
        if not security:
            raise UsageError("say what to test: --security")
        service = as_ or confinement.running_as()
        results = confinement.attempt_all(service)
        commands = {} if service else {one: _command(one) for one in UNITS}
    if not as_json and not service:
        typer.echo("not applicable: this process is in none of our units; as root, to see each as systemd runs it:")
        typer.echo("\n".join(f"\n{command}" for command in commands.values()))
        return
    show({"service": service, "results": results, "commands": commands}, as_json=as_json, table=lambda: _table(results))
    if any(one.outcome == "allowed" for one in results):
        raise typer.Exit(1)


def _table(results: list[Result]) -> str:
    width = max(len(one.what) for one in results)
    lines = [f"{one.outcome:<14}  {one.what:<{width}}  {one.detail}" for one in results]
    allowed = sum(one.outcome == "allowed" for one in results)
    return "\n".join(
        [*lines, f"{allowed} of {len(results)} allowed that must be denied" if allowed else "all as it must be"]
    )


def _command(service: Service) -> str:
    properties = [f"--property={one}" for one in units.confining(units.read(UNITS[service]))]
    program = str(Path(sys.argv[0]).resolve())
    return shlex.join(
        [
            "systemd-run",
            "--pipe",
            "--wait",
            "--collect",
            *properties,
            program,
            "selftest",
            "--security",
            "--as",
            service,
        ]
    )
