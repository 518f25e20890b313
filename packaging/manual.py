"""The manual pages and the shells' completion, made from what the program itself says."""

# ruff: noqa: INP001  # a program of its own

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping

from typer.core import TyperArgument, TyperCommand, TyperGroup, TyperOption
from typer.main import get_command

from opensend_milter import cli
from opensend_milter.config import DEFAULT_PATH, KEYS, PATH_VARIABLE, Key

NAME = "opensend-milter"
_SECTIONS = {
    "serve": "answers Postfix",
    "auth-gate": "stands between Postfix and Dovecot",
    "worker": "delivers",
    "http": "answers HTTP",
}

EXAMPLES = {
    "What is wrong on this host, and what mends it:": "opensend-milter doctor",
    "A key for one application, which sends from one domain only:":
        "opensend-milter key create --name shop --domain example.org",
    "She says that it never came:": "opensend-milter why carol@example.net",
    "What became of a message, by the queue id that its 250 had:": "opensend-milter why 4jWsvd0CmyzJYqK",
    "The same by either end of its id, as lists show it:": "opensend-milter why 01a1fe48-e8a4",
    "What fails from now on, as it happens:": "opensend-milter why --status failed --follow",
    "What was refused in the last hour, for a script:": "opensend-milter email refusals --since 1h --json",
    "What failed since yesterday, again:": "opensend-milter email retry --failed --since 24h",
    "Addresses that bounced, from another service's list:": "opensend-milter suppression import bounces.csv",
    "All of the product in one directory; afterwards every command means it:":
        'opensend-milter sandbox up && eval "$(opensend-milter sandbox env)"',
}  # fmt: skip
"""What somebody may want, with the command."""
_SMALLEST = """\
smtp:
  hostname: relay.example.org
tls:
  folder: /etc/letsencrypt/live/relay.example.org"""


def pages(version: str) -> Mapping[str, str]:
    """Return file names and their content in roff."""
    return {f"{NAME}.8": _program_page(version), f"{NAME}.yaml.5": _configuration_page(version)}


def completion(shell: str) -> str:
    """Return what the shell sources to complete our command line."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv = ['{NAME}']; from opensend_milter.cli import main; main()"],
        env={**os.environ, "_OPENSEND_MILTER_COMPLETE": f"source_{shell}"}, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return done.stdout


def _program_page(version: str) -> str:
    root = get_command(cli.app_of([*cli.COMMANDS, *cli.GROUPS]))
    assert isinstance(root, TyperGroup)  # noqa: S101  # app_of() has more than one command
    lines = [*_head(f"{NAME} 8", version, f"{NAME} \\- {_plain(root.help or '')}")]
    lines += [".SH SYNOPSIS", f".B {NAME}", "COMMAND [OPTIONS] [ARGUMENTS]", ".SH DESCRIPTION"]
    lines += ["These commands stay, each a service of its own:"]
    for name, what in _SECTIONS.items():
        lines += [".TP", f".B {_plain(name)}", what]
    lines += [".PP", "The others are for the administrator and end at once.", ".SH COMMANDS"]
    lines += [line for path, command in _commands("", root) for line in _command_lines(path, command)]
    lines += [
        ".SH EXIT STATUS", "0: done. 1: something is not as it should be. 64: cannot be done as asked.",
        "69: a server does not answer. 75: try again later. 78: the configuration is wrong.",
        ".SH ENVIRONMENT", ".TP", f".B {_plain(PATH_VARIABLE)}", "Names the configuration file.",
        ".SH FILES", ".I " + _plain(str(DEFAULT_PATH)),
        ".SH EXAMPLES", *(line for what, command in EXAMPLES.items() for line in _example(what, command)),
        ".SH SEE ALSO", f".BR {NAME}.yaml (5),", ".BR postfix (1),",
        ".BR dovecot (1)",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


def _commands(path: str, group: TyperGroup) -> Iterator[tuple[str, TyperCommand]]:
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from _commands(f"{path}{name} ", command)
        elif isinstance(command, TyperCommand) and not command.hidden:
            yield f"{path}{name}", command


def _command_lines(path: str, command: TyperCommand) -> Iterator[str]:
    arguments = [one for one in command.params if isinstance(one, TyperArgument)]
    names = " ".join(_value(one) for one in arguments)
    yield f".SS {_plain(f'{path} {names}'.strip())}"
    yield _text(command.help or "")
    for one in command.params:
        if isinstance(one, TyperOption) and not one.hidden:
            yield ".TP"
            value = "" if one.is_flag else " " + _value(one)
            yield f"\\fB{_plain(', '.join([*one.opts, *one.secondary_opts]))}\\fR{_plain(value)}"
            yield _text(one.help or "")


def _value(one: TyperArgument | TyperOption) -> str:
    return one.metavar or (one.name or "").upper()


def _configuration_page(version: str) -> str:
    lines = [*_head(f"{NAME}.yaml 5", version, f"{NAME}.yaml \\- configuration of {NAME}(8)"), ".SH DESCRIPTION"]
    lines += [
        _text(
            f"One YAML file, {DEFAULT_PATH} unless --config or {PATH_VARIABLE} names another; environment variables "
            "win over it. An unknown key, a wrong type or a value out of range stops every command with exit code 78. "
            f"`{NAME} check-config` prints what is in force."
        )
    ]
    section = None
    for key in KEYS:
        if key.section != section:
            section = key.section
            lines.append(f".SH {_plain(section.upper() or 'KEYS OUTSIDE OF ALL SECTIONS')}")
        lines += _key_lines(key)
    lines += [".SH EXAMPLES", *_example("The least that a host needs; the defaults do for the rest:", _SMALLEST)]
    lines += [".SH SEE ALSO", f".BR {NAME} (8)"]
    return "\n".join(lines) + "\n"


def _key_lines(key: Key) -> list[str]:
    default = (
        "none"
        if key.default is None
        else str(key.default).lower()
        if isinstance(key.default, bool)
        else f"{key.default}"
    )
    variables = ", ".join(filter(None, (key.variable, key.option.env)))
    return [
        ".TP", f"\\fB{_plain(key.path)}\\fR", _text(key.option.help), ".br",
        _text(f"Expected: {key.expected}. Default: {default or 'empty'}. Environment: {variables}."),
    ]  # fmt: skip


def _example(what: str, text: str) -> list[str]:
    return [".PP", _plain(what), ".PP", ".RS 4", ".nf", *map(_plain, text.splitlines()), ".fi", ".RE"]


def _head(title: str, version: str, summary: str) -> list[str]:
    return [f'.TH {title} "" "{NAME} {_plain(version)}"', ".SH NAME", summary]


def _text(text: str) -> str:
    paragraphs = [_plain(" ".join(one.split())) for one in re.split(r"\n\s*\n", text.strip())]
    return "\n.br\n".join(paragraphs)


def _plain(text: str) -> str:
    """Write text of which roff makes nothing else."""
    escaped = text.replace("\\", "\\e").replace("-", "\\-")
    return "\\&" + escaped if escaped.startswith((".", "'")) else escaped
