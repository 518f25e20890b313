"""Taking messages in: batches, outcomes, and what happens when something of ours breaks."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from opensend_milter.core import maillog, message as message_module
from opensend_milter.core.couriers import Carries
from opensend_milter.core.errors import AlreadyStored, StoreUnavailable
from opensend_milter.core.intake import Gatherer, Intake
from opensend_milter.core.model import (
    Accept,
    Address,
    Earlier,
    EmailId,
    Facts,
    KeyFacts,
    Limits,
    Message,
    Question,
    Refuse,
    Repeat,
    Settlement,
    UserId,
)
from opensend_milter.core.policy import NOT_A_KEY, OURS, Policy
from opensend_milter.core.rules import Rule
from tests.unit.messages import PLAIN, message

POLICY = Policy(limits=Limits(), carries=Carries(), sender_domains="verified")
KNOWN = Facts(
    key=KeyFacts(user_id=UserId("u1"), restricted=False, restricted_domain=None),
    sender_domain_verified=True,
    suppressed=(),
)


class Store:
    """Records what it is asked; `trouble` may raise or wait."""

    def __init__(self, trouble: Callable[[Sequence[Settlement]], None] = lambda _: None) -> None:
        self.batches: list[list[Settlement]] = []
        self.questions: list[Question] = []
        self._trouble = trouble

    def facts_for(self, questions: Sequence[Question]) -> list[Facts]:
        self.questions += questions
        return [KNOWN for _ in questions]

    def settle(self, settlements: Sequence[Settlement]) -> None:
        self._trouble(settlements)
        self.batches.append(list(settlements))


@contextmanager
def gatherer(store: Store, soft_s: float = 5, hard_s: float = 10) -> Iterator[Gatherer]:
    opened = Gatherer(Intake(store, POLICY), name="test", window_s=0.02, at_most=10, soft_s=soft_s, hard_s=hard_s)
    opened.start()
    yield opened
    opened.stop()


def await_release(release: threading.Event) -> None:
    assert release.wait(10)


def together(take: Callable[[Message], object], messages: Sequence[Message]) -> list[object]:
    outcomes: list[object] = [None] * len(messages)

    def one(place: int) -> None:
        outcomes[place] = take(messages[place])

    threads = [threading.Thread(target=one, args=(place,)) for place in range(len(messages))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outcomes


def test_an_id_is_given_only_after_it_was_stored() -> None:
    store = Store()
    mail = message()
    assert Intake(store, POLICY).accept([mail]) == [mail.id]
    assert [s.message.id for s in store.batches[0] if isinstance(s.verdict, Accept)] == [mail.id]


def test_good_and_bad_messages_share_a_batch_in_order() -> None:
    store = Store()
    good, bad = message(), message(b"To: b@example.net\r\n\r\nno from")
    outcomes = Intake(store, POLICY).accept([bad, good])
    assert isinstance(outcomes[0], Refuse)
    assert outcomes[1] == good.id
    assert [type(s.verdict).__name__ for s in store.batches[0]] == ["Refuse", "Accept"]


@pytest.mark.case(15)
def test_what_the_front_door_knows_is_recorded_without_asking() -> None:
    store = Store()
    assert Intake(store, POLICY).accept([replace(message(), fault=NOT_A_KEY)]) == [NOT_A_KEY]
    assert store.questions == []
    assert [s.verdict for s in store.batches[0]] == [NOT_A_KEY]


def test_a_message_that_trips_our_reader_is_451_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    trap, good = message(b"From: trap@example.org\r\n\r\n"), message()

    def read(raw: bytes, limits: Limits) -> object:
        if b"trap" in raw:
            raise RuntimeError("a fault of ours")
        return message_module.read(raw, limits)

    monkeypatch.setattr("opensend_milter.core.intake.read", read)
    assert Intake(store, POLICY).accept([trap, good]) == [OURS, good.id]
    assert [s.message.id for s in store.batches[0]] == [good.id]


def test_sessions_share_batches() -> None:
    store = Store(lambda _: time.sleep(0.01))
    messages = [message() for _ in range(40)]
    with gatherer(store) as opened:
        assert together(opened.accept, messages) == [m.id for m in messages]
    assert len(store.batches) < 40
    assert max(map(len, store.batches)) <= 10


def test_a_lone_session_does_not_wait_for_company() -> None:
    with gatherer(Store()) as opened:
        began = time.monotonic()
        for _ in range(20):
            opened.accept(message())
        assert time.monotonic() - began < 20 * 0.02


def test_a_lost_database_is_451_for_the_batch_and_not_tried_again() -> None:
    calls = []

    def lost(settlements: Sequence[Settlement]) -> None:
        calls.append(len(settlements))
        raise StoreUnavailable("gone")

    with gatherer(Store(lost)) as opened:
        assert set(together(opened.accept, [message() for _ in range(5)])) == {OURS}
    assert sum(calls) == 5


def test_one_bad_row_does_not_tempfail_its_neighbours() -> None:
    def picky(settlements: Sequence[Settlement]) -> None:
        time.sleep(0.01)
        if any(b"poison" in bytes(s.message.raw) for s in settlements):
            raise ValueError("a value that the database does not take")

    store = Store(picky)
    messages = [message(PLAIN + (b"poison" if n == 3 else b"")) for n in range(12)]
    with gatherer(store) as opened:
        outcomes = together(opened.accept, messages)
    assert outcomes[3] == OURS
    assert [o for n, o in enumerate(outcomes) if n != 3] == [m.id for n, m in enumerate(messages) if n != 3]
    stored = [s.message.id for batch in store.batches for s in batch]
    assert len(stored) == len(set(stored)) == 11


@pytest.mark.case(56)
def test_a_message_withdrawn_after_the_soft_limit_is_never_stored() -> None:
    release = threading.Event()
    store = Store(lambda _: await_release(release))
    first, second = message(), message()
    with gatherer(store, soft_s=0.2, hard_s=5) as opened:
        begun = threading.Thread(target=opened.accept, args=(first,))
        begun.start()
        time.sleep(0.05)
        outcome = opened.accept(second)
        release.set()
        begun.join()
    assert isinstance(outcome, Refuse)
    assert (outcome.code, outcome.rule) == (451, Rule.OURS)
    assert [s.message.id for batch in store.batches for s in batch] == [first.id]


@pytest.mark.case(56)
def test_the_hard_limit_ends_a_wait_for_a_hung_store(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    release = threading.Event()
    with gatherer(Store(lambda _: await_release(release)), soft_s=0.1, hard_s=0.3) as opened:
        began = time.monotonic()
        assert opened.accept(message()) == OURS
        assert 0.25 < time.monotonic() - began < 3
        release.set()
    (line,) = caplog.messages
    assert "status=refused code=451" in line, "what the client was told, though it is stored after all"


def test_a_line_that_cannot_be_written_stops_nobody(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space")

    with gatherer(Store()) as opened:
        monkeypatch.setattr(maillog, "accepted", fail)
        first, second = message(), message()
        assert [opened.accept(first), opened.accept(second)] == [first.id, second.id]
    assert [line.partition(":")[0] for line in caplog.messages] == [first.queue_id, second.queue_id]


def test_stopping_finishes_what_was_handed_in() -> None:
    release, taken = threading.Event(), []

    def held(settlements: Sequence[Settlement]) -> None:
        taken.append(len(settlements))
        await_release(release)

    store = Store(held)
    messages = [message() for _ in range(30)]
    with gatherer(store) as opened:
        outcomes = threading.Thread(target=together, args=(opened.accept, messages))
        outcomes.start()
        while sum(taken) + opened.waiting < 30:
            time.sleep(0.01)
        threading.Timer(0.1, release.set).start()
    outcomes.join()
    assert sum(map(len, store.batches)) == 30


@pytest.mark.case(60)
def test_after_stopping_the_answer_is_451_at_once() -> None:
    store = Store()
    with gatherer(store) as opened:
        pass
    began = time.monotonic()
    assert opened.accept(message()) == OURS
    assert time.monotonic() - began < 1
    assert store.batches == []


# ---------------------------------------------------------------------- sent again


class Named(Store):
    """Knows messages by their Message-ID, as the database does; `race` happens once, before the first is stored."""

    def __init__(self, race: Callable[[], None] = lambda: None) -> None:
        super().__init__(self._take)
        self.taken: dict[bytes, EmailId] = {}
        self._race = [race]

    def facts_for(self, questions: Sequence[Question]) -> list[Facts]:
        super().facts_for(questions)
        return [self._facts(question) for question in questions]

    def _facts(self, question: Question) -> Facts:
        found = self.taken.get(question.identity.fingerprint or b"")
        if found is None:
            return KNOWN
        digest = question.identity.content_digest
        return replace(
            KNOWN,
            earlier=Earlier(
                email_id=found, holder="key", received_at=datetime.now(UTC), content_digest=digest, expired=False
            ),
        )

    def _take(self, settlements: Sequence[Settlement]) -> None:
        time.sleep(0.005)
        while self._race:
            self._race.pop()()
        names = [
            (verdict.identity.fingerprint, one.message.id)
            for one in settlements
            if isinstance(verdict := one.verdict, Accept) and verdict.identity.fingerprint
        ]
        if len({name for name, _ in names} | self.taken.keys()) < len(names) + len(self.taken):
            raise AlreadyStored
        self.taken.update(names)

    def stored(self) -> list[EmailId]:
        return [one.message.id for batch in self.batches for one in batch if isinstance(one.verdict, Accept)]


def named(name: object) -> Message:
    return message(f"Message-ID: <{name}@app>\r\n".encode() + PLAIN)


@pytest.mark.case(64)
def test_of_the_same_messages_in_one_batch_one_is_stored() -> None:
    store = Named()
    messages = [named("same" if number % 2 else number) for number in range(10)]
    with gatherer(store) as opened:
        outcomes = together(opened.accept, messages)
    (first,) = {outcome.email_id for outcome in outcomes if isinstance(outcome, Repeat)}
    assert sum(isinstance(outcome, Repeat) for outcome in outcomes) == 4
    assert first in outcomes
    assert sorted(store.stored()) == sorted(str(outcome) for outcome in outcomes if not isinstance(outcome, Repeat))


@pytest.mark.case(64)
def test_who_loses_a_race_is_told_what_the_winner_was_and_its_neighbours_are_stored() -> None:
    winner, late, neighbour = named("same"), named("same"), named("other")
    store = Named()

    def race() -> None:
        assert Intake(store, POLICY).accept([winner]) == [winner.id]

    store._race = [race]
    opened = Gatherer(Intake(store, POLICY), name="test", window_s=0.2, at_most=10, soft_s=5, hard_s=10)
    threading.Timer(0.05, opened.start).start()
    assert together(opened.accept, [late, neighbour]) == [Repeat(email_id=winner.id), neighbour.id]
    opened.stop()
    assert store.stored() == [winner.id, neighbour.id]


@pytest.mark.case(64)
def test_a_race_that_is_lost_for_ever_is_451_and_is_not_run_for_ever() -> None:
    calls = []

    def lost(settlements: Sequence[Settlement]) -> None:
        calls.append([one.message.id for one in settlements])
        if any(b"unlucky" in bytes(one.message.raw) for one in settlements):
            raise AlreadyStored

    unlucky, lucky = named("unlucky"), named("lucky")
    with gatherer(Store(lost)) as opened:
        outcomes = together(opened.accept, [unlucky, lucky])
    assert outcomes == [OURS, lucky.id]
    assert [ids for ids in calls if unlucky.id in ids][-1] == [unlucky.id]
    assert len(calls) <= 4


def test_a_repetition_has_a_line_of_its_own_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "opensend_milter.mail")
    store = Named()
    first, again = named("same"), named("same")
    with gatherer(store) as opened:
        assert [opened.accept(first), opened.accept(again)] == [first.id, Repeat(email_id=first.id)]
    assert [f"email={first.id} " in line for line in caplog.messages] == [True, True]
    assert ["status=accepted" in caplog.messages[0], "status=repeated" in caplog.messages[1]] == [True, True]


def test_the_store_learns_whose_message_it_was_and_what_was_suppressed() -> None:
    """Also of a refusal, for OpenSend's event and its log."""
    suppressed = ((Address("b@example.net"), "bounced"),)

    class Suppressing(Store):
        def facts_for(self, questions: Sequence[Question]) -> list[Facts]:
            return [replace(KNOWN, suppressed=suppressed) for _ in questions]

    store = Suppressing()
    (outcome,) = Intake(store, POLICY).accept([named("1")])
    assert isinstance(outcome, Refuse)
    (settlement,) = store.batches[0]
    assert (settlement.user_id, settlement.suppressed, settlement.message_id) == ("u1", suppressed, "<1@app>")
