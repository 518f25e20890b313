"""The commands: one module per noun, the only place that prints or exits."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from importlib import import_module

import typer

GROUPS = {
    "db": "db",
    "key": "keys",
    "domain": "domains",
    "suppression": "suppressions",
    "email": "emails",
    "webhook": "webhooks",
    "feedback": "feedback",
    "sandbox": "sandbox",
}
COMMANDS = {
    "serve": "daemons",
    "worker": "daemons",
    "http": "daemons",
    "auth-gate": "daemons",
    "check-config": "settings",
    "install": "install",
    "doctor": "doctor",
    "selftest": "selftest",
    "certificate": "certificate",
}
"""Each name with its module; a command is its function of the same name."""


def main() -> None:
    """Run the command line; only what it names is loaded: it starts in half the time."""
    named = sys.argv[1] if len(sys.argv) > 1 else ""
    app_of([named] if named in GROUPS or named in COMMANDS else [*COMMANDS, *GROUPS])()


def app_of(names: Iterable[str]) -> typer.Typer:
    """Return the command line that knows these commands."""
    app = typer.Typer(
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
        callback=_root,
    )
    for name in names:
        module = import_module(f"{__name__}.{COMMANDS.get(name) or GROUPS[name]}")
        if name in COMMANDS:
            app.command(name)(getattr(module, name.replace("-", "_")))
        else:
            app.add_typer(module.app, name=name)
    return app


def _root() -> None:
    """API-key mail gateway: Postfix and Dovecot in front, a milter that records, a worker that delivers."""
