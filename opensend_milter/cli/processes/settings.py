"""`check-config`: is the configuration right, and what is in force."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from opensend_milter import app, config as configuration
from opensend_milter.cli import exits, output
from opensend_milter.cli.output import AsJson, ConfigPath
from opensend_milter.config import Setting

Database = Annotated[
    bool, typer.Option("--database", help="Also whether the database has the tables and columns that are needed.")
]


def check_config(config: ConfigPath = None, database: Database = False, as_json: AsJson = False) -> None:
    """Check the configuration and print what is in force.

    It prints YAML, each value that is no default with its source. Passwords are masked, so a value that holds
    one is printed as a comment. Exit code 78: something is wrong; 69: the database that was to be looked at does not
    answer.
    """
    with exits.exits():
        loaded, sources = configuration.load_with_sources(config, front_door=True)
        settings = configuration.effective(loaded, sources)
    misfits = _misfits(config) if database else []
    found = {"tables": {"fit": not misfits, "differences": misfits}} if database else {}
    output.show({**_as_mapping(settings), **found}, as_json=as_json, table=lambda: _as_yaml(settings))
    if misfits:
        exits.fail("\n".join(f"tables: {line}" for line in misfits), exits.EX_CONFIG)
    typer.echo("opensend-milter: ok", err=True)


def _misfits(path: Path | None) -> list[str]:
    with exits.configured(path) as settings:
        return app.misfits(settings)


def _as_mapping(settings: Sequence[Setting]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for one in settings:
        place = result.setdefault(one.section, {}) if one.section else result
        place[one.key] = {"value": one.value, "source": one.source, "renders": one.renders}
    return result


def _as_yaml(settings: Sequence[Setting]) -> str:
    lines: list[str] = []
    for section, inside in groupby(settings, key=attrgetter("section")):
        if section:
            lines.append(f"{section}:")
        lines.extend(("  " if section else "") + _line(one) for one in inside)
    return "\n".join([*lines, *_rendering(settings)])


def _line(one: Setting) -> str:
    text = yaml.safe_dump({one.key: one.value}, allow_unicode=True, width=float("inf")).rstrip()
    return ("# " if one.masked else "") + text + ("" if one.source == "default" else f"  # {one.source}")


def _rendering(settings: Sequence[Setting]) -> Iterator[str]:
    names = [f"{one.section}.{one.key}" for one in settings if one.renders and one.source != "default"]
    if names:
        yield f"# After a change of {', '.join(names)}: render Postfix and Dovecot again."
