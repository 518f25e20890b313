"""How tests are dealt out among the processes of a run: none is lost, and each slice begins and ends as it should."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tests.dealing import Module, dealt

MODULES = [
    *(Module(folder="acceptance", tests=[f"acceptance-{n}-{m}" for m in range(20)]) for n in range(4)),
    Module(folder="acceptance", tests=["acceptance-long-0"], is_long=True),
    *(Module(folder="integration", tests=[f"integration-{n}-{m}" for m in range(30)]) for n in range(6)),
    Module(folder="integration", tests=["integration-long-0", "integration-long-1"], is_long=True),
    *(Module(folder="unit", tests=[f"unit-{n}-{m}" for m in range(100)]) for n in range(9)),
]
ALL = [test for module in MODULES for test in module.tests]


def cut(tests: list[str], processes: int) -> list[list[str]]:
    """Cut it into slices as xdist does."""
    slices = []
    for left in range(processes, 0, -1):
        size = len(tests) // left
        slices.append(tests[:size])
        tests = tests[size:]
    return slices


def folders(tests: list[str]) -> list[str]:
    """Return the folders of a slice, each as often as another follows it."""
    found = [test.partition("-")[0] for test in tests]
    return found[:1] + [after for before, after in pairwise(found) if before != after]


@pytest.mark.parametrize("processes", [1, 2, 3, 4, 7, 500])
def test_each_test_is_run_once(processes: int) -> None:
    assert sorted(dealt(MODULES, processes)) == sorted(ALL)


@pytest.mark.parametrize("processes", [2, 3, 4, 6])
def test_half_of_the_processes_have_a_sandbox_and_all_end_with_what_is_light(processes: int) -> None:
    slices = cut(dealt(MODULES, processes), processes)
    half = processes // 2
    assert [folders(one) for one in slices] == [["acceptance", "unit"]] * half + [["integration", "unit"]] * (
        processes - half
    )


def test_what_takes_long_comes_first_and_a_file_stays_together() -> None:
    slices = cut(dealt(MODULES, 4), 4)
    assert [one[0] for one in slices[::2]] == ["acceptance-long-0", "integration-long-0"]
    for one in slices:
        files = [test.rpartition("-")[0] for test in one if not test.startswith("unit")]
        assert len({*files}) == 1 + sum(before != after for before, after in pairwise(files))


def test_one_process_runs_them_in_their_order() -> None:
    assert dealt([one for one in MODULES if not one.is_long], 1) == [test for test in ALL if "long" not in test]
