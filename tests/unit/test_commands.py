"""The command line knows all its commands, whether one of them is named or none."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from opensend_milter.cli import COMMANDS, GROUPS, app_of, exits, main

NAMES = [*COMMANDS, *GROUPS]


def test_help_lists_all_commands() -> None:
    result = CliRunner().invoke(app_of(NAMES), ["--help"])
    assert result.exit_code == 0
    for name in NAMES:
        assert f" {name} " in result.stdout


def test_no_help_has_a_word_in_brackets() -> None:
    """They are markup where the help is drawn: what stands in them is not shown."""
    left: list[tuple[str, Any]] = [("", get_command(app_of(NAMES)))]
    while left:
        path, command = left.pop()
        left += [(f"{path} {name}", one) for name, one in getattr(command, "commands", {}).items()]
        helps = [command.help or "", *(getattr(option, "help", None) or "" for option in command.params)]
        assert [text for text in helps if "[" in text] == [], path


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
    assert ended.value.code == 2
    assert "No such command 'sevre'" in capsys.readouterr().err


@pytest.fixture
def _signals() -> Iterator[None]:
    """Those who stay block SIGHUP until they can follow it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    yield
    signal.pthread_sigmask(signal.SIG_SETMASK, before)


STAYING = [name for name, module in COMMANDS.items() if module == "daemons"]


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
