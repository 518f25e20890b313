"""What is loaded late costs no more than it must."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest

from opensend_milter.app.loading import load


def test_the_garbage_collector_does_not_go_through_what_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "just_written.py").write_text("import gc\n\ncollects = gc.isenabled()\n")
    monkeypatch.syspath_prepend(tmp_path)
    kept = gc.get_freeze_count()
    assert not load("just_written").collects
    assert gc.get_freeze_count() > kept
    assert gc.isenabled()


def test_an_error_of_a_module_leaves_the_garbage_collector_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        load("broken")
    assert gc.isenabled()
