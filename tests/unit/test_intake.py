"""Taking messages in: batches, outcomes, and what happens when something of ours breaks."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from opensend_milter.core import maillog, message as message_module
from opensend_milter.core.budget import Budget, OutOfTimeError
from opensend_milter.core.couriers import Carries
from opensend_milter.core.errors import AlreadyStored, StoreUnavailable
from opensend_milter.core.ids import new_email_id
from opensend_milter.core.intake import Gatherer, Intake, Known
from opensend_milter.core.model import (
    Accept,
    Address,
    Earlier,
    EmailId,
    Facts,
    KeyFacts,
    KeyId,
    KeyScope,
    Limits,
    Message,
    Outcome,
    Question,
    Refuse,
    Repeat,
    Settlement,
    UserId,
)
from opensend_milter.core.policy import NOT_A_KEY, OURS, Policy
from opensend_milter.core.refs import read_ref
from opensend_milter.core.rules import Rule
from tests.unit.messages import PLAIN, RECEIVED_AT, decide, message
from tests.waiting import NEVER_S, await_true, patience_s, scaled_s

POLICY = Policy(limits=Limits(), carries=Carries(), sender_domains="verified")
KNOWN = Facts(
    now=RECEIVED_AT,
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


def made(store: Store, *, window_s: float = 0.02, soft_s: float | None = None, hard_s: float | None = None) -> Gatherer:
    """Make one that is patient where no limit is named: whoever is forgotten is told so in the end."""
    soft_s, hard_s = (patience_s() if limit is None else limit for limit in (soft_s, hard_s))
    return Gatherer(Intake(store, POLICY), name="test", window_s=window_s, at_most=10, soft_s=soft_s, hard_s=hard_s)


@contextmanager
def begun(opened: Gatherer) -> Iterator[Gatherer]:
    opened.start()
    yield opened
    opened.stop()


def await_release(release: threading.Event) -> None:
    await_true(release.is_set, "the store is let go")


def taken_together(opened: Gatherer, messages: Sequence[Message]) -> list[Outcome]:
    """Hand all of them in before it begins, so that they come in batches."""
    with ThreadPoolExecutor(len(messages)) as sessions:
        outcomes = sessions.map(opened.accept, messages)
        await_true(lambda: opened.waiting == len(messages), "all of them wait")
        with begun(opened):
            return list(outcomes)


def test_an_id_is_given_only_after_it_was_stored() -> None:
    store = Store()
    mail = message()
    assert decide(Intake(store, POLICY), [mail]) == [mail.id]
    assert [s.message.id for s in store.batches[0] if isinstance(s.verdict, Accept)] == [mail.id]


def test_good_and_bad_messages_share_a_batch_in_order() -> None:
    store = Store()
    good, bad = message(), message(b"To: b@example.net\r\n\r\nno from")
    outcomes = decide(Intake(store, POLICY), [bad, good])
    assert isinstance(outcomes[0], Refuse)
    assert outcomes[1] == good.id
    assert [type(s.verdict).__name__ for s in store.batches[0]] == ["Refuse", "Accept"]


@pytest.mark.case(15)
def test_what_the_front_door_knows_is_recorded_without_asking() -> None:
    store = Store()
    (refusal,) = decide(Intake(store, POLICY), [replace(message(), fault=NOT_A_KEY)])
    assert isinstance(refusal, Refuse)
    assert replace(refusal, token="") == NOT_A_KEY
    assert store.questions == []
    assert [s.verdict for s in store.batches[0]] == [refusal]


def test_each_refusal_of_a_batch_is_answered_by_the_name_under_which_it_is_recorded() -> None:
    store = Store()
    bad, worse = message(b"To: b@example.net\r\n\r\nno from"), message(b"From: a@b@c\r\n\r\n")
    refused = decide(Intake(store, POLICY), [bad, worse, message()])[:2]
    assert [s.verdict for s in store.batches[0]][:2] == refused
    refs = [one.ref for one in refused if isinstance(one, Refuse)]
    assert len(set(refs)) == 2
    assert all(read_ref(ref) == ref for ref in refs)


def test_what_was_not_recorded_has_no_name() -> None:
    def lost(_: Sequence[Settlement]) -> None:
        raise StoreUnavailable("gone")

    bad = message(b"To: b@example.net\r\n\r\nno from")
    (outcome,) = taken_together(made(Store(lost)), [bad])
    assert isinstance(outcome, Refuse)
    assert (outcome.rule, outcome.token, outcome.ref) == (Rule.OURS, "", "")


def test_a_message_that_trips_our_reader_is_451_and_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store()
    trap, good = message(b"From: trap@example.org\r\n\r\n"), message()

    def read(raw: bytes, limits: Limits, budget: Budget) -> object:
        if b"trap" in raw:
            raise RuntimeError("a fault of ours")
        return message_module.read(raw, limits, budget)

    monkeypatch.setattr("opensend_milter.core.intake.read", read)
    assert decide(Intake(store, POLICY), [trap, good]) == [OURS, good.id]
    assert [s.message.id for s in store.batches[0]] == [good.id]


def test_sessions_share_batches() -> None:
    store = Store()
    messages = [message() for _ in range(40)]
    assert taken_together(made(store), messages) == [m.id for m in messages]
    assert list(map(len, store.batches)) == [10] * 4


def test_a_lone_session_does_not_wait_for_company() -> None:
    store = Store()
    with begun(made(store, window_s=NEVER_S)) as opened:
        for _ in range(20):
            opened.accept(message())
    assert list(map(len, store.batches)) == [1] * 20


def test_a_lost_database_is_451_for_the_batch_and_not_tried_again() -> None:
    calls = []

    def lost(settlements: Sequence[Settlement]) -> None:
        calls.append(len(settlements))
        raise StoreUnavailable("gone")

    assert set(taken_together(made(Store(lost)), [message() for _ in range(5)])) == {OURS}
    assert calls == [5]


def test_one_bad_row_does_not_tempfail_its_neighbours() -> None:
    def picky(settlements: Sequence[Settlement]) -> None:
        if any(b"poison" in bytes(s.message.raw) for s in settlements):
            raise ValueError("a value that the database does not take")

    store = Store(picky)
    messages = [message(PLAIN + (b"poison" if n == 3 else b"")) for n in range(12)]
    outcomes = taken_together(made(store), messages)
    assert outcomes[3] == OURS
    assert [o for n, o in enumerate(outcomes) if n != 3] == [m.id for n, m in enumerate(messages) if n != 3]
    stored = [s.message.id for batch in store.batches for s in batch]
    assert len(stored) == len(set(stored)) == 11


@pytest.mark.case(56)
def test_a_message_withdrawn_after_the_soft_limit_is_never_stored() -> None:
    """What is under way then is waited for."""
    in_hand, release = threading.Event(), threading.Event()

    def held(_settlements: Sequence[Settlement]) -> None:
        in_hand.set()
        await_release(release)

    store = Store(held)
    first, second = message(), message()
    with begun(made(store, soft_s=scaled_s(0.2))) as opened, ThreadPoolExecutor(1) as session:
        waiting = session.submit(opened.accept, first)
        await_true(in_hand.is_set, "the first is taken up")
        outcome = opened.accept(second)
        release.set()
        assert waiting.result() == first.id
    assert isinstance(outcome, Refuse)
    assert (outcome.code, outcome.rule) == (451, Rule.OURS)
    assert [s.message.id for batch in store.batches for s in batch] == [first.id]


@pytest.mark.case(56)
def test_the_hard_limit_ends_a_wait_for_a_hung_store(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    release = threading.Event()
    with begun(made(Store(lambda _: await_release(release)), soft_s=scaled_s(0.1), hard_s=scaled_s(0.3))) as opened:
        assert opened.accept(message()) == OURS
        release.set()
    (line,) = caplog.messages
    assert "status=refused code=451" in line, "what the client was told, though it is stored after all"


def test_a_line_that_cannot_be_written_stops_nobody(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no space")

    with begun(made(Store())) as opened:
        monkeypatch.setattr(maillog, "accepted", fail)
        first, second = message(), message()
        assert [opened.accept(first), opened.accept(second)] == [first.id, second.id]
    assert [line.partition(":")[0] for line in caplog.messages] == [first.queue_id, second.queue_id]


def test_stopping_finishes_what_was_handed_in() -> None:
    """The store has the first of them in hand until the word to stop waits behind the last."""
    release = threading.Event()
    store = Store(lambda _: await_release(release))
    opened = made(store)
    messages = [message() for _ in range(30)]
    with ThreadPoolExecutor(31) as threads:
        outcomes = threads.map(opened.accept, messages)
        await_true(lambda: opened.waiting == 30, "all of them wait")
        opened.start()
        await_true(lambda: opened.waiting == 20, "the first ten are in hand")
        stopping = threads.submit(opened.stop)
        await_true(lambda: opened.waiting == 21, "it is told to stop")
        release.set()
        stopping.result()
        assert list(outcomes) == [m.id for m in messages]


@pytest.mark.case(60)
def test_after_stopping_the_answer_is_451_at_once() -> None:
    store = Store()
    with begun(made(store, soft_s=0)) as opened:
        pass
    assert opened.accept(message()) == OURS
    assert opened.waiting == 0, "it has not queued behind nobody"
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
    outcomes = taken_together(made(store), messages)
    (first,) = {outcome.email_id for outcome in outcomes if isinstance(outcome, Repeat)}
    assert sum(isinstance(outcome, Repeat) for outcome in outcomes) == 4
    assert first in outcomes
    assert sorted(store.stored()) == sorted(str(outcome) for outcome in outcomes if not isinstance(outcome, Repeat))


@pytest.mark.case(64)
def test_who_loses_a_race_is_told_what_the_winner_was_and_its_neighbours_are_stored() -> None:
    winner, late, neighbour = named("same"), named("same"), named("other")
    store = Named()

    def race() -> None:
        assert decide(Intake(store, POLICY), [winner]) == [winner.id]

    store._race = [race]
    assert taken_together(made(store), [late, neighbour]) == [Repeat(email_id=winner.id), neighbour.id]
    assert store.stored() == [winner.id, neighbour.id]


@pytest.mark.case(64)
def test_a_race_that_is_lost_for_ever_is_451_and_is_not_run_for_ever() -> None:
    calls = []

    def lost(settlements: Sequence[Settlement]) -> None:
        calls.append([one.message.id for one in settlements])
        if any(b"unlucky" in bytes(one.message.raw) for one in settlements):
            raise AlreadyStored

    unlucky, lucky = named("unlucky"), named("lucky")
    assert taken_together(made(Store(lost)), [unlucky, lucky]) == [OURS, lucky.id]
    assert sorted(map(len, calls)) == [1, 1, 2]
    assert [ids for ids in calls if unlucky.id in ids][-1] == [unlucky.id]


def test_a_repetition_has_a_line_of_its_own_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "opensend_milter.mail")
    store = Named()
    first, again = named("same"), named("same")
    with begun(made(store)) as opened:
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
    (outcome,) = decide(Intake(store, POLICY), [named("1")])
    assert isinstance(outcome, Refuse)
    (settlement,) = store.batches[0]
    assert (settlement.user_id, settlement.suppressed, settlement.message_id) == ("u1", suppressed, "<1@app>")


def slow_to_read(first: Message, until: threading.Event) -> Callable[..., object]:
    """Read a message only when that has happened, as one would that takes long."""

    def read(raw: bytes, limits: Limits, budget: Budget) -> object:
        if raw == first.raw:
            await_release(until)
        return message_module.read(raw, limits, budget)

    return read


LONG = b"a\r\n" * 10_000
"""What might take long to read."""


@pytest.mark.case(73)
def test_one_that_takes_long_to_read_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    slow, until = message(b"From: slow@example.org\r\n\r\n" + LONG), threading.Event()
    monkeypatch.setattr("opensend_milter.core.intake.read", slow_to_read(slow, until))
    with begun(made(Store())) as opened, ThreadPoolExecutor(1) as other:
        waits = other.submit(opened.accept, slow)
        for _ in range(3):
            neighbour = message()
            assert opened.accept(neighbour) == neighbour.id
        assert not waits.done()
        until.set()
        assert waits.result() == slow.id


@pytest.mark.case(74)
def test_where_messages_are_decided_one_at_a_time_one_is_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    at_once, most = 0, 0

    def read(raw: bytes, limits: Limits, budget: Budget) -> object:
        nonlocal at_once, most
        at_once += 1
        most = max(most, at_once)
        return message_module.read(raw, limits, budget)

    def stored(_: Sequence[Settlement]) -> None:
        nonlocal at_once
        at_once -= 1

    monkeypatch.setattr("opensend_milter.core.intake.read", read)
    large = Gatherer(Intake(Store(stored), POLICY), name="t", window_s=0, at_most=1, soft_s=NEVER_S, hard_s=NEVER_S)
    messages = [message() for _ in range(5)]
    assert taken_together(large, messages) == [one.id for one in messages]
    assert most == 1


def test_where_messages_are_decided_one_at_a_time_keys_take_turns() -> None:
    store = Store()
    large = Gatherer(Intake(store, POLICY), name="t", window_s=0, at_most=1, soft_s=NEVER_S, hard_s=NEVER_S)
    of_one, of_another = [message() for _ in range(5)], of_key(message(), "another")
    with ThreadPoolExecutor(6) as sessions:
        answers = [sessions.submit(large.accept, one) for one in of_one]
        await_true(lambda: large.waiting == len(of_one), "those of one key wait")
        answers.append(sessions.submit(large.accept, of_another))
        await_true(lambda: large.waiting == len(answers), "the other's waits behind them")
        with begun(large):
            assert [answer.result() for answer in answers] == [one.id for one in (*of_one, of_another)]
    stored = [settlement.message.id for batch in store.batches for settlement in batch]
    assert stored.index(of_another.id) == 1


def of_key(mail: Message, key: str) -> Message:
    return replace(mail, session=replace(mail.session, key_id=KeyId(key)))


def out_of_time(*_: object) -> object:
    raise OutOfTimeError


def test_one_that_was_out_of_time_is_put_off_and_not_read_again_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    slow, other = message(b"From: slow@example.org\r\n\r\n"), message()
    with begun(made(Store())) as opened:
        monkeypatch.setattr("opensend_milter.core.intake.read", out_of_time)
        assert opened.accept(slow) == OURS
        assert caplog.text.count("status=reading-given-up") == caplog.text.count("where=time") == 1
        monkeypatch.setattr("opensend_milter.core.intake.read", message_module.read)
        assert opened.accept(replace(slow, id=new_email_id())) == OURS
        assert opened.accept(other) == other.id
        now = time.monotonic()
        monkeypatch.setattr("opensend_milter.core.intake.time", SimpleNamespace(monotonic=lambda: now + 3_600))
        assert opened.accept(slow) == slow.id, "the machine may be quicker by then"


def test_one_over_its_budget_is_told_so_and_noted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    many = message(b"From: a@example.org\r\nCc: " + b"(" * 1_000 + b"\r\n\r\n")
    found = Intake(Store(), POLICY).read(many, Budget(500))
    assert isinstance(found, Refuse)
    assert (found.code, found.rule) == (554, Rule.BEYOND_LIMITS)
    assert "where=addresses" in caplog.text


# ---------------------------------------------------------------------- all or not at all

NO_FROM = b"To: b@example.net\r\n\r\nno from"


def test_of_a_lot_all_are_stored_together() -> None:
    store = Store()
    lot = [message() for _ in range(3)]
    with begun(made(store)) as opened:
        assert opened.accept_all(lot) == [one.id for one in lot]
    assert [[settlement.message.id for settlement in batch] for batch in store.batches] == [[one.id for one in lot]]


def test_one_of_a_lot_that_is_refused_is_recorded_and_keeps_out_the_others() -> None:
    """A neighbour in the same batch has nothing to do with it."""
    store = Store()
    good, bad, neighbour = message(), message(NO_FROM), message()
    opened = made(store)
    with ThreadPoolExecutor(2) as sessions:
        of_lot, of_neighbour = (
            sessions.submit(opened.accept_all, [good, bad, good]),
            sessions.submit(opened.accept, neighbour),
        )
        await_true(lambda: opened.waiting == 2, "both wait")
        with begun(opened):
            outcomes = of_lot.result()
            assert of_neighbour.result() == neighbour.id
    assert [type(one).__name__ for one in outcomes] == ["NoneType", "Refuse", "NoneType"]
    stored = [settlement.message.id for batch in store.batches for settlement in batch]
    assert sorted(stored) == sorted([bad.id, neighbour.id])


def test_a_fault_of_ours_with_one_of_a_lot_stores_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(raw: bytes, limits: Limits, budget: Budget) -> object:
        if b"no from" in raw:
            raise RuntimeError("a fault of ours")
        return message_module.read(raw, limits, budget)

    monkeypatch.setattr("opensend_milter.core.intake.read", read)
    store = Store()
    with begun(made(store)) as opened:
        assert opened.accept_all([message(), message(NO_FROM)]) == [None, OURS]
    assert [one for batch in store.batches for one in batch] == []


def test_a_lot_that_cannot_be_stored_is_none_of_ours() -> None:
    def fail(_: Sequence[Settlement]) -> None:
        raise StoreUnavailable("gone")

    with begun(made(Store(fail))) as opened:
        assert opened.accept_all([message(), message()]) == [OURS, OURS]


@pytest.mark.parametrize(("left", "refused"), [(3, []), (2, [2]), (1, [1, 2])])
def test_those_of_a_lot_count_for_the_day_one_after_the_other(left: int, refused: list[int]) -> None:
    class Limited(Store):
        def facts_for(self, questions: Sequence[Question]) -> list[Facts]:
            scope = KeyScope(per_day=10, sent_today=10 - left)
            return [replace(KNOWN, key=replace(KNOWN.key, scope=scope)) for _ in questions if KNOWN.key]

    lot = [message() for _ in range(3)]
    with begun(made(Limited())) as opened:
        outcomes = opened.accept_all(lot)
    rules = {index: one.rule for index, one in enumerate(outcomes) if isinstance(one, Refuse)}
    assert rules == dict.fromkeys(refused, Rule.DAILY_QUOTA)
    assert [one for one in outcomes if isinstance(one, str)] == ([] if refused else [one.id for one in lot])


def test_a_lot_that_somebody_else_stored_meanwhile_is_asked_for_again_as_a_whole() -> None:
    store = Named(lambda: store.taken.update({fingerprint(first): first.id}))
    first, second = named("first"), named("second")
    with begun(made(store)) as opened:
        assert opened.accept_all([second, first]) == [second.id, Repeat(email_id=first.id)]
    assert store.stored() == [second.id]


def test_a_batch_of_lots_has_as_many_messages_as_one_of_messages() -> None:
    store = Store()
    opened = made(store)
    with ThreadPoolExecutor(5) as sessions:
        outcomes = [sessions.submit(opened.accept_all, [message() for _ in range(4)]) for _ in range(5)]
        await_true(lambda: opened.waiting == 5, "all of them wait")
        with begun(opened):
            assert all(len(one.result()) == 4 for one in outcomes)
    assert list(map(len, store.batches)) == [12, 8], "begun with fewer than ten"


def fingerprint(mail: Message) -> bytes:
    known = Intake(Store(), POLICY).read(mail, Budget.of(mail.size))
    assert isinstance(known, Known)
    return known.identity.fingerprint or b""
