"""The command line knows all its commands, whether one of them is named or none."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from opensend_milter.cli import COMMANDS, GROUPS, app_of, exits, main
from opensend_milter.config import DEFAULT_PATH

NAMES = [*COMMANDS, *GROUPS]
WHOLE = app_of(NAMES)


def test_help_lists_all_commands() -> None:
    result = CliRunner().invoke(WHOLE, ["--help"])
    assert result.exit_code == 0
    for name in NAMES:
        assert f" {name} " in result.stdout


def every_command() -> Iterator[tuple[str, ...]]:
    """Name all commands and their groups, as they are typed."""
    left: list[tuple[tuple[str, ...], Any]] = [((), get_command(WHOLE))]
    while left:
        path, command = left.pop()
        left += [((*path, name), one) for name, one in getattr(command, "commands", {}).items() if not one.hidden]
        yield path


@pytest.mark.parametrize("path", [*every_command()], ids=" ".join)
def test_each_help_is_whole_on_a_narrow_terminal(path: tuple[str, ...]) -> None:
    """No line is wider, no sentence of a list ends before its time, and no path is broken."""
    shown = CliRunner().invoke(WHOLE, [*path, "--help"], terminal_width=78).stdout.splitlines()
    assert [line for line in shown if len(line) > 80 and "<" not in line] == []
    assert [line for line in shown if line.endswith("...") and not line.startswith("Usage:")] == []
    assert [line for line in shown if line.endswith("opensend-")] == []


def test_help_shows_what_stands_in_brackets() -> None:
    shown = CliRunner().invoke(WHOLE, ["domain", "verify", "--help"]).stdout
    assert "ADDRESS[:PORT]" in shown
    assert "[default: 50" in CliRunner().invoke(WHOLE, ["email", "list", "--help"]).stdout


@pytest.mark.parametrize("name", NAMES)
def test_each_is_found_when_it_alone_is_loaded(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["opensend-milter", name, "--help"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert f"opensend-milter {name} [OPTIONS]" in shown.replace("\n", " ")


def test_an_unknown_command_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["opensend-milter", "sevre"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == exits.EX_USAGE
    assert "No such command 'sevre'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["email", "list", "--status", "lost"], "'lost' is not one of 'queued', 'scheduled', 'processing', 'sent'"),
        (["email", "refusals", "--rule", "none"], "'none' is not one of 'unauthenticated'"),
        (["email", "list", "--limit", "0"], "0 is not in the range"),
        (["email", "list", "--limit"], "requires an argument"),
        (["email", "list", "--statsu", "sent"], "No such option: --statsu"),
        (["email", "show"], "Missing argument 'ID'"),
        (["key", "create", "--snippet", "telnet"], "'telnet' is not one of 'swaks'"),
        (["sandbox", "up", "--queue", "kafka"], "'kafka' is not one of 'postgres', 'sqs'"),
        (["webhook"], "Commands:"),
    ],
)
def test_who_is_not_understood_hears_why(words: Sequence[str], said: str) -> None:
    """As sysexits has it, and before a configuration or a database is asked for."""
    ended = CliRunner().invoke(app_of(words[:1]), words)
    assert (ended.exit_code, said in " ".join(ended.output.split())) == (exits.EX_USAGE, True), ended.output


def test_it_says_which_version_it_is() -> None:
    ended = CliRunner().invoke(WHOLE, ["--version"])
    assert (ended.exit_code, ended.stdout) == (0, f"opensend-milter {version('opensend-milter')}\n")


@pytest.fixture
def _signals() -> Iterator[None]:
    """Those who stay block SIGHUP until they can follow it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


STAYING = [name for name, module in COMMANDS.items() if module == "processes.daemons"]


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize("name", STAYING)
@pytest.mark.parametrize("spelling", ["--config", "-c"])
def test_who_stays_says_the_same_however_it_is_started(
    name: str, spelling: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the units spell it typer is not even asked."""
    path = tmp_path / "none.yaml"
    monkeypatch.setattr(sys, "argv", ["opensend-milter", name, spelling, str(path)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == exits.EX_CONFIG
    assert str(path) in capsys.readouterr().err


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize("name", STAYING)
def test_who_stays_does_not_wait_for_a_database_that_nobody_named(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for variable in [one for one in os.environ if one.startswith("OPENSEND_MILTER_")] + ["DATABASE_URL"]:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(sys, "argv", ["opensend-milter", name])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == exits.EX_CONFIG
    assert f"nothing is configured: there is no {DEFAULT_PATH}" in capsys.readouterr().err
