"""The command line knows all its commands, whether one of them is named or none."""

from __future__ import annotations

import sys

import pytest
from typer.testing import CliRunner

from opensend_milter.cli import COMMANDS, GROUPS, app_of, main

NAMES = [*COMMANDS, *GROUPS]


def test_help_lists_all_commands() -> None:
    result = CliRunner().invoke(app_of(NAMES), ["--help"])
    assert result.exit_code == 0
    for name in NAMES:
        assert f" {name} " in result.stdout


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
