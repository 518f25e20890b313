"""What fuzzing found once is tried again, and a fault that is there is found."""

from __future__ import annotations

from contextlib import nullcontext

import pytest

from tests.fuzz.__main__ import CORPUS, Found, attempt
from tests.fuzz.grammar import ADDRESSES
from tests.fuzz.targets import TARGETS, Target


@pytest.mark.parametrize("name", sorted(path.name for path in CORPUS.glob("*")))
def test_what_was_once_taken_badly_is_taken_well(name: str) -> None:
    with TARGETS[name].opened() as check:
        for path in sorted((CORPUS / name).iterdir()):
            check(path.read_bytes())


def test_a_fault_is_found_and_shortened() -> None:
    def check(octets: bytes) -> float:
        if b'"' in octets and octets.count(b"(") > 10:
            raise ValueError
        return 0.0

    def look_for_it() -> None:
        for number in range(100):
            attempt(Target(ADDRESSES, lambda: nullcontext(check)), check, number)

    with pytest.raises(Found) as found:
        look_for_it()
    assert found.value.octets.strip(b'"') == b"(" * 11
