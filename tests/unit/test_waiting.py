"""Waiting for a condition: how long, what is said in vain, and that no test makes a deadline of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests import waiting
from tests.waiting import MOST_SLOWNESS, PATIENCE_S, await_found, await_of, await_true, patience_s, scaled_s, slowness

TESTS = Path(__file__).parents[1]
DEADLINE = "monotonic() " + "+"
THEIR_OWN = {
    "chaos/__main__.py": "a run has so many minutes, and its end as many as stand there; what is left is told",
    "chaos/amazon.py": "for how long a notice is hidden is what it was asked for",
    "chaos/clients.py": "its clients have so long to get rid of what they have; the account says what is left",
    "integration/private_postgres.py": "one for all starts and their answers together, and it scales",
    "integration/debian13.py": "how long a fetch from a network may take is its caller's, and no wait for a condition",
    "integration/debian_packages.py": "so it is here",
    "foreign/making/others.py": "it makes messages, once and by hand, and is no test",
    "fuzz/__main__.py": "it is told for how many minutes to go on, and is no test",
}
"""Which files may make a deadline, each with the reason."""


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "PATIENCE_S", 0.0)


@pytest.mark.parametrize(
    ("load", "times"),
    [
        ("0.00 0.00 0.00 1/96 351", 1.0),
        ("3.00 9.00 9.00 1/96 351", 1.5),
        ("0.00 9.00 9.00 8/96 351", 4.0),
        ("99.0 9.00 9.00 8/96 351", MOST_SLOWNESS),
    ],
)
def test_patience_grows_with_the_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, load: str, times: float) -> None:
    """That of the last minute or of now, whichever is more; an idle machine is no faster than one core."""
    (tmp_path / "loadavg").write_text(load + "\n")
    monkeypatch.setattr(waiting, "_LOAD", tmp_path / "loadavg")
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    assert (slowness(), patience_s(), scaled_s(2)) == (times, times * PATIENCE_S, times * 2)


def test_what_is_so_is_not_waited_for() -> None:
    assert await_found(lambda: 0, "a number") == 0, "found, though it counts as false"
    await_true(lambda: [1], "a list")


def test_it_is_asked_until_it_is_so() -> None:
    answers = iter([None, None, "there"])
    assert await_found(lambda: next(answers), "it", pause_s=0) == "there"
    truths = iter([False, 0, "", 1])
    await_true(lambda: next(truths), "it", pause_s=0)


@pytest.mark.usefixtures("_impatient")
def test_what_was_waited_for_in_vain_is_said() -> None:
    """Also where it is only known at the end."""
    with pytest.raises(AssertionError, match=r"^not within \d+ s: the cows come home$"):
        await_true(lambda: False, "the cows come home")
    states = []
    with pytest.raises(AssertionError, match=r"^not within \d+ s: \['asked'"):
        await_found(lambda: states.append("asked"), lambda: states)


def test_a_process_that_has_ended_is_not_waited_for() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
        with pytest.raises(AssertionError, match="its log"):
            await_of(process, lambda: False, lambda: "its log")


@pytest.mark.usefixtures("_impatient")
def test_a_process_that_never_gets_there_shows_its_log() -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        with pytest.raises(AssertionError, match="its log"):
            await_of(process, lambda: False, lambda: "its log")
        await_of(process, lambda: True, lambda: "its log")
        process.kill()


def test_no_test_makes_a_deadline_of_its_own() -> None:
    """One that a busy machine would not meet: tests/waiting.py has those that scale."""
    own = {str(path.relative_to(TESTS)) for path in TESTS.rglob("*.py") if DEADLINE in path.read_text(encoding="utf-8")}
    assert own == set(THEIR_OWN)
