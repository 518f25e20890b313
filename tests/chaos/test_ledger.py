"""The ledger of `make chaos` notices what must not be; and some faults under load leave nothing for it to notice."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import pytest

from tests.chaos.__main__ import settle
from tests.chaos.clients import sending
from tests.chaos.conductor import Conductor, schedule
from tests.chaos.ledger import Became, Ledger, Outcome, Told, audit
from tests.chaos.report import Report
from tests.chaos.stand import Stand, small_stand
from tests.waiting import patience_s

QUICK = ("worker-killed", "sessions-ended-milter", "next-hop-hangs-up")
SEED = 16


def told(outcome: Outcome, mark: str = "a.1", *, repeatable: bool = True) -> Told:
    answer = {"taken": "250", "put off": "451", "unheard": "", "wrong": "550"}[outcome]
    return Told(
        client="a", mark=mark, outcome=outcome, answer=answer, began_at=0.0, ended_at=1.0, repeatable=repeatable
    )


def found(heard: Sequence[Told], rows: Mapping[str, Sequence[str]], delivered: Mapping[str, int]) -> list[str]:
    """Return what the ledger finds."""
    ledger = Ledger("a")
    ledger.open("harm")
    for one in heard:
        ledger.note(one)
    return [one.fault for one in audit(ledger, Became(rows=rows, delivered=delivered))]


GOOD: list[tuple[list[Told], dict[str, list[str]], dict[str, int]]] = [
    ([told("taken")], {"a.1": ["sent"]}, {"a.1": 1}),
    ([told("put off"), told("unheard"), told("taken")], {"a.1": ["sent"]}, {"a.1": 1}),
    ([told("taken")], {"a.1": ["uncertain"]}, {"a.1": 1}),
    ([told("taken")], {"a.1": ["uncertain"]}, {}),
    ([told("taken")], {"a.1": ["refused"]}, {}),
    ([told("unheard", repeatable=False)], {}, {}),
    ([told("unheard", repeatable=False)], {"a.1": ["sent"]}, {"a.1": 1}),
    ([told("put off", repeatable=False), told("taken", repeatable=False)], {"a.1": ["sent", "sent"]}, {"a.1": 2}),
]
BAD: list[tuple[str, list[Told], dict[str, list[str]], dict[str, int]]] = [
    ("lost", [told("taken")], {}, {}),
    ("lost", [told("taken")], {"a.1": ["sent"]}, {}),
    ("lost", [told("taken")], {"a.1": ["queued"]}, {}),
    ("lost", [told("taken")], {"a.1": ["failed"]}, {}),
    ("lost", [told("taken")], {"a.1": ["half stored"]}, {}),
    ("twice", [told("unheard"), told("taken")], {"a.1": ["sent", "sent"]}, {"a.1": 2}),
    ("twice", [told("taken")], {"a.1": ["sent"]}, {"a.1": 2}),
    ("twice", [told("taken")], {"a.1": ["uncertain"]}, {"a.1": 2}),
    ("twice", [told("taken")], {"a.1": ["refused"]}, {"a.1": 1}),
    ("twice", [told("taken", repeatable=False)], {"a.1": ["sent", "sent"]}, {"a.1": 2}),
    ("unexplained", [], {"b.1": ["sent"]}, {}),
    ("unexplained", [], {}, {"b.1": 1}),
    ("unexplained", [told("put off")], {}, {}),
]


@pytest.mark.parametrize(("heard", "rows", "delivered"), GOOD)
def test_what_agrees_is_no_finding(heard: list[Told], rows: dict[str, list[str]], delivered: dict[str, int]) -> None:
    assert found(heard, rows, delivered) == []


@pytest.mark.parametrize(("fault", "heard", "rows", "delivered"), BAD)
def test_what_does_not_agree_is_found(
    fault: str, heard: list[Told], rows: dict[str, list[str]], delivered: dict[str, int]
) -> None:
    assert found(heard, rows, delivered) == [fault]


def test_a_wrong_answer_is_counted_for_the_fault_it_came_in() -> None:
    ledger = Ledger("a")
    ledger.note(told("taken", "a.1"))
    ledger.open("harm").whole_s = 0.0
    ledger.note(told("wrong", "a.2"))
    summed = Report.of(ledger, [], seed=0, minutes=0, uncertain=0, not_run={}, broken={})
    assert [row.wrong for row in summed.rows] == [0, 1]
    assert not summed.good


def test_a_fault_that_went_otherwise_proves_nothing() -> None:
    ledger = Ledger("a")
    for window in (ledger.window, ledger.open("harm")):
        window.whole_s = 0.0
    good = Report.of(ledger, [], seed=0, minutes=0, uncertain=0, not_run={}, broken={})
    assert good.good
    broken = replace(good, broken={"harm": "OSError: no such harm"})
    assert not broken.good
    for text in (broken.as_text(), broken.as_markdown()):
        assert "OSError: no such harm" in text


@dataclass(slots=True)
class Waiting:
    """A road on which nothing moves until it is asked to."""

    asked: int = 0
    enough: int = 1

    def on_its_way(self) -> list[str]:
        return [] if self.asked >= self.enough else ["1 waiting"]

    def hasten(self) -> None:
        self.asked += 1


def test_what_waits_is_hastened_and_named_where_it_never_goes() -> None:
    assert settle(Waiting()) == []
    assert settle(Waiting(enough=2), longest_s=0) == ["1 waiting"]


def test_the_longest_refusal_is_from_the_first_bad_answer_to_the_end_of_the_next_good_one() -> None:
    ledger = Ledger("a")
    heard: list[tuple[Outcome, float]] = [
        ("taken", 0.0), ("put off", 2.0), ("unheard", 4.0), ("taken", 8.0), ("put off", 9.0)
    ]  # fmt: skip
    for outcome, began_at in heard:
        ledger.note(
            Told(client="a", mark="a.1", outcome=outcome, answer=outcome, began_at=began_at, ended_at=began_at + 1)
        )
    assert (ledger.window.refused_s, ledger.window.refused_with) == (7.0, "a heard unheard")


def test_whole_is_when_each_client_had_a_good_answer_to_what_it_began_afterwards() -> None:
    ledger = Ledger("a", "b")
    for client, began_at in (("a", 4.0), ("b", 5.5), ("a", 6.0)):
        ledger.note(
            Told(client=client, mark=client, outcome="taken", answer="", began_at=began_at, ended_at=began_at + 1)
        )
    assert ledger.await_whole(5.0, 0) == 2.0
    assert ledger.await_whole(5.8, 0) is None
    assert ledger.not_whole(5.8) == ["b"]


def test_the_same_seed_makes_the_same_order_and_a_round_leaves_none_out() -> None:
    def first(seed: int) -> list[str]:
        return list(islice(schedule(QUICK, seed), 3 * len(QUICK)))

    assert first(1) == first(1) != first(2)
    assert set(first(1)[: len(QUICK)]) == set(QUICK)


@pytest.fixture
def stand() -> Iterator[Stand]:
    if os.geteuid() != 0:
        pytest.skip("a sandbox needs root")
    with small_stand() as made:
        yield made


@pytest.mark.long
@pytest.mark.timeout(300)
def test_some_faults_under_load_lose_and_double_nothing(stand: Stand) -> None:
    with sending(stand.sandbox, stand.entrances, stand.senders, SEED, patience_s()) as ledger:
        conductor = Conductor(stand, ledger, SEED, lambda _: None)
        assert [conductor.play(kind) for kind in QUICK] == [""] * len(QUICK)
    assert settle(stand, patience_s()) == []
    assert [*audit(ledger, stand.became())] == []
    assert [window.wrong for window in ledger.windows] == [[]] * (len(QUICK) + 1)
    assert all(window.answers for window in ledger.windows[1:])
