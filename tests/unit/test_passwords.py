"""Passwords of people: known again, and by nobody else."""

from __future__ import annotations

import hashlib

import pytest

from opensend_milter.core.errors import UsageError
from opensend_milter.core.passwords import MOST_CHARACTERS, NOBODYS, check, is_right, verifier_of

PASSWORD = "correct horse é"


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a guess cost nothing."""
    monkeypatch.setattr("opensend_milter.core.passwords._COST", 2)


def test_a_guess_costs_32_mb_and_two_goes() -> None:
    made = hashlib.scrypt(PASSWORD.encode(), salt=b"salt", n=32_768, r=8, p=2, maxmem=67_108_864, dklen=32)
    assert verifier_of(PASSWORD, b"salt").digest == made


@pytest.mark.usefixtures("cheap")
def test_it_is_known_again_and_no_other_is() -> None:
    """From a keyboard that writes é in two, too."""
    verifier = verifier_of(PASSWORD, b"salt")
    assert is_right(PASSWORD, verifier)
    assert is_right("correct horse e\u0301", verifier)
    for other in ("", "correct horse", PASSWORD + " ", PASSWORD.upper(), "\ud800", "x" * 100_000):
        assert not is_right(other, verifier)
        assert not is_right(other, NOBODYS)


@pytest.mark.usefixtures("cheap")
def test_what_is_longer_than_any_is_not_taken_for_its_beginning() -> None:
    verifier = verifier_of("x" * MOST_CHARACTERS, b"salt")
    assert is_right("x" * MOST_CHARACTERS, verifier)
    assert not is_right("x" * (MOST_CHARACTERS + 1), verifier)


def test_two_users_of_one_password_have_nothing_in_common() -> None:
    assert verifier_of(PASSWORD, b"one").digest != verifier_of(PASSWORD, b"other").digest


@pytest.mark.parametrize("password", ["", "short", "x" * (MOST_CHARACTERS + 1)])
def test_what_is_too_short_or_too_long_is_none(password: str) -> None:
    with pytest.raises(UsageError, match="12 to 1,000 characters"):
        check(password)
