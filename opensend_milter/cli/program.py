"""The command line as a whole: what it says of itself, and how it ends where it is not understood."""

from __future__ import annotations

import sys
from importlib.metadata import version
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from opensend_milter.cli.exits import EX_USAGE
from opensend_milter.config import DEFAULT_PATH, PATH_VARIABLE

NAME = "opensend-milter"
USUAL_CONFIGURATION = f"\b\nConfiguration: --config FILE, else what {PATH_VARIABLE} names, else\n{DEFAULT_PATH}"
_NOT_UNDERSTOOD = 2
"""What the library ends with then."""


class Program(TyperGroup):
    """All commands: one that is not understood ends as sysexits has it, like one that cannot be done as asked."""

    def main(self, *args: Any, **more: Any) -> NoReturn:
        """Run it."""
        try:
            super().main(*args, **more)
        except SystemExit as ended:
            if ended.code == _NOT_UNDERSTOOD:
                ended.code = EX_USAGE
            raise
        sys.exit()


def _say_version(*, asked: bool) -> None:
    if asked:
        typer.echo(f"{NAME} {version(NAME)}")
        raise typer.Exit


def root(
    _version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", callback=_say_version, is_eager=True)
    ] = False,
) -> None:
    """API-key mail gateway: Postfix and Dovecot in front, a milter that records, a worker that delivers."""
