"""The commands: one module per noun, the only place that prints or exits."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from opensend_milter.app.loading import load

if TYPE_CHECKING:
    import typer

GROUPS = {
    "db": "records.db",
    "key": "records.keys",
    "domain": "records.domains",
    "suppression": "records.suppressions",
    "email": "records.emails",
    "webhook": "records.webhooks",
    "feedback": "records.feedback",
    "console": "records.console",
    "sandbox": "machine.sandbox",
}
COMMANDS = {
    "serve": "processes.daemons",
    "worker": "processes.daemons",
    "http": "processes.daemons",
    "console": "processes.daemons",
    "auth-gate": "processes.daemons",
    "why": "records.why",
    "check-config": "processes.settings",
    "install": "machine.install",
    "doctor": "machine.doctor",
    "selftest": "machine.selftest",
    "certificate": "machine.certificate",
}
"""Each name with its module; a command is its function of the same name. Said alone, a group of that name is it too."""
STAYING = "processes.daemons"


def main() -> None:
    """Run the command line; only what it names is loaded: it starts in half the time."""
    match sys.argv[1:]:
        case [name] if COMMANDS.get(name) == STAYING:
            _stay(name, None)
        case [name, "--config", path] if COMMANDS.get(name) == STAYING:
            _stay(name, Path(path))
        case [name, *_] if name in GROUPS or name in COMMANDS:
            app_of([name])()
        case _:
            app_of([*COMMANDS, *GROUPS])()


def _stay(name: str, config: Path | None) -> None:
    """Start as a service manager does, without what reads options: half of the start, and 10 MB of each process."""
    getattr(load(f"{__name__}.{STAYING}"), name.replace("-", "_"))(config)


def app_of(names: Iterable[str]) -> typer.Typer:
    """Return the command line that knows these commands."""
    import typer  # noqa: PLC0415  # see _stay

    from opensend_milter.cli.output import ConfigPath  # noqa: PLC0415
    from opensend_milter.cli.program import USUAL_CONFIGURATION, Program, root  # noqa: PLC0415

    app = typer.Typer(
        cls=Program,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        # Its boxes cut words on 80 columns, and take what stands in brackets for orders of theirs.
        rich_markup_mode=None,
        epilog=USUAL_CONFIGURATION,
        context_settings={"help_option_names": ["-h", "--help"]},
        callback=root,
    )
    for name in dict.fromkeys(names):
        module = load(f"{__name__}.{GROUPS.get(name) or COMMANDS[name]}")
        if name not in GROUPS:
            command = getattr(module, name.replace("-", "_"))
            if COMMANDS[name] == STAYING:
                command.__annotations__["config"] = ConfigPath
            app.command(name)(command)
        else:
            app.add_typer(module.app, name=name)
    return app
