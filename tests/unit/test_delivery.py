"""One attempt: what is recorded after what the courier says."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from opensend_milter.core.breaker import OUTAGES, Breaker
from opensend_milter.core.couriers import CourierName
from opensend_milter.core.delivery import RECORD_PAUSES_S, Delivery
from opensend_milter.core.errors import (
    DeliveryDeferred,
    DeliveryRefused,
    DeliveryUncertain,
    PermanentError,
    QueueUnavailable,
    StoreUnavailable,
)
from opensend_milter.core.model import Address, Announcement, Answers, EmailId, Job, Lane, Parcel, Route, Sent
from opensend_milter.core.outgoing import parcel
from tests.jobs import job

YES = Sent(courier="file", reply="250 ok")


@dataclass
class FakeStore:
    """Notes what is called; fails as often as it is told."""

    calls: list[str] = field(default_factory=list)
    begins: bool = True
    failures: dict[str, int] = field(default_factory=dict)
    reasons: list[str] = field(default_factory=list)
    wait_s: float | None = None
    sent: Sent | None = None
    answers: Answers | None = None

    def _note(self, call: str) -> None:
        self.calls.append(call)
        if self.failures.get(call, 0):
            self.failures[call] -= 1
            raise StoreUnavailable("cut")

    def begin(self, job: Job) -> bool:
        assert job
        self._note("begin")
        return self.begins

    def give_back(self, job: Job) -> None:
        assert job
        self._note("give_back")

    def record_sent(self, job: Job, sent: Sent) -> None:
        assert job
        self.sent = sent
        self._note("sent")

    def record_partly(self, job: Job, sent: Sent, wait_s: float) -> None:
        assert job
        self.sent = sent
        self.wait_s = wait_s
        self._note("partly")

    def record_deferred(self, job: Job, reason: str, wait_s: float) -> None:
        assert job
        self.reasons.append(reason)
        self.wait_s = wait_s
        self._note("deferred")

    def record_failed(self, job: Job, reason: str, answers: Answers | None = None) -> None:
        assert job
        self.answers = answers
        self.reasons.append(reason)
        self._note("failed")

    def record_uncertain(self, job: Job, reason: str) -> None:
        assert job
        self.reasons.append(reason)
        self._note("uncertain")

    def due_announcements(self, limit: int) -> list[Announcement]:
        raise NotImplementedError

    def announced(self, email_ids: object) -> None:
        raise NotImplementedError

    def announce_again(self, email_ids: object, after_s: float) -> None:
        raise NotImplementedError

    def claim(self, email_id: EmailId) -> Job | None:
        raise NotImplementedError

    def due_lanes(self) -> list[Lane]:
        raise NotImplementedError

    def claim_due(self, lane: Lane, *, waits: bool = False) -> Job | None:
        raise NotImplementedError

    def extend(self, jobs: object) -> None:
        raise NotImplementedError

    def make_whole(self) -> int:
        return 0

    def end_moved_on(self) -> int:
        raise NotImplementedError

    def release_expired(self) -> int:
        raise NotImplementedError

    def set_right(self) -> int:
        raise NotImplementedError

    def prune(self) -> int:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


@dataclass
class FakeCourier:
    """Answers as told."""

    outcome: Callable[[], Sent]
    sent: int = 0

    def send(self, parcel: Parcel) -> Sent:
        assert parcel.content
        self.sent += 1
        return self.outcome()

    def rest(self) -> None:
        raise NotImplementedError

    def abort(self) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


@dataclass
class Bench:
    """A delivery with all its ends in hand."""

    store: FakeStore = field(default_factory=FakeStore)
    courier: FakeCourier = field(default_factory=lambda: FakeCourier(lambda: YES))
    slept: list[float] = field(default_factory=list)
    now_s: float = 0.0
    breaker: Breaker = field(init=False)

    def __post_init__(self) -> None:
        self.breaker = Breaker(lambda: self.now_s)

    def says(self, outcome: Sent | Exception) -> Bench:
        def answer() -> Sent:
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        self.courier.outcome = answer
        return self

    def attempt(self, job: Job) -> list[str]:
        delivery = Delivery(
            store=self.store,
            compose=lambda job: parcel(job, hostname="mx", sender=job.from_address),
            couriers={"file": self.courier},
            default="file",
            breaker=self.breaker,
            max_attempts=12,
            jitter=lambda: 1.0,
            sleep=self.slept.append,
        )
        delivery.attempt(job)
        return self.store.calls


@pytest.mark.parametrize(
    ("outcome", "record"),
    [
        (YES, "sent"),
        (DeliveryDeferred("450 later"), "deferred"),
        (DeliveryRefused("550 no"), "failed"),
        (PermanentError("5.4.6 loop"), "failed"),
        (DeliveryUncertain("timed out"), "uncertain"),
        (QueueUnavailable("odd, and temporary"), "deferred"),
        (RuntimeError("a bug"), "deferred"),
        (MemoryError(), "deferred"),
    ],
)
def test_each_outcome_has_its_record(outcome: Sent | Exception, record: str) -> None:
    """An exception nobody knows is temporary: we would rather try again than lose mail."""
    assert Bench().says(outcome).attempt(job()) == ["begin", record]


def test_nothing_is_sent_before_begin_is_committed() -> None:
    """A claim that is lost sends nothing."""
    bench = Bench(FakeStore(begins=False))
    assert bench.attempt(job()) == ["begin"]
    assert bench.courier.sent == 0


def test_begin_without_an_answer_is_given_back() -> None:
    """The commit may have come through: left alone, a message never sent would turn uncertain."""
    bench = Bench(FakeStore(failures={"begin": 1, "give_back": 2}))
    with pytest.raises(StoreUnavailable):
        bench.attempt(job())
    assert bench.store.calls == ["begin", "give_back", "give_back", "give_back"]
    assert bench.courier.sent == 0


def test_a_deferred_message_waits_longer_each_time() -> None:
    """The number of the attempt decides."""
    for attempts, wait_s in ((0, 10), (1, 20), (4, 160), (10, 600)):
        bench = Bench().says(DeliveryDeferred("450 later"))
        bench.attempt(job(attempts=attempts))
        assert bench.store.wait_s == wait_s


def test_a_next_hop_that_asks_for_more_time_gets_it() -> None:
    """And not less than it would have had: a second is no pause for a message that has failed ten times."""
    for asked_s, wait_s in ((300.0, 300), (1.0, 10), (10**9, 4 * 3_600)):
        bench = Bench().says(DeliveryDeferred("429", retry_after_s=asked_s))
        bench.attempt(job())
        assert bench.store.wait_s == wait_s


A, B, C = Address("a@example.net"), Address("b@example.net"), Address("c@example.net")


def test_who_was_deferred_alone_is_tried_again() -> None:
    partly = Sent(courier="file", reply="250 ok", refused=((B, "550 no"),), deferred=((C, "450 full"),))
    bench = Bench().says(partly)
    assert bench.attempt(job(recipients=(A, B, C))) == ["begin", "partly"]
    assert bench.store.sent == partly
    assert bench.store.wait_s == 10


def test_at_the_last_attempt_the_deferred_are_given_up_and_the_message_is_sent() -> None:
    bench = Bench().says(Sent(courier="file", reply="250 ok", deferred=((C, "450 full"),)))
    assert bench.attempt(job(recipients=(A, C), attempts=11)) == ["begin", "sent"]
    assert bench.store.sent
    assert bench.store.sent.refused == ((C, "given up after 12 attempts: 450 full"),)
    assert not bench.store.sent.deferred


@pytest.mark.parametrize("outcome", [DeliveryRefused("550 no"), DeliveryDeferred("450 full")])
def test_a_message_that_some_have_is_never_called_failed(outcome: Exception) -> None:
    """Whatever becomes of the last recipients."""
    bench = Bench().says(outcome)
    rest = job(recipients=(C,), attempts=11, some_have_it=True, refused=((B, "550 no"),))
    assert bench.attempt(rest) == ["begin", "sent"]
    assert bench.store.sent
    assert [who for who, _ in bench.store.sent.refused] == [B, C]


@pytest.mark.parametrize("deferred", [False, True])
def test_what_single_recipients_heard_is_recorded(caplog: pytest.LogCaptureFixture, *, deferred: bool) -> None:
    """Where nobody got it, at once or in the end; an answer of its own goes before that to the message."""
    answers = Answers(courier="file", host="mx:25", refused=((A, "550 5.1.1 no such user"),))
    kind = DeliveryDeferred if deferred else DeliveryRefused
    bench = Bench().says(kind("no recipient taken: 450 full", answers=answers))
    with caplog.at_level(logging.INFO):
        assert bench.attempt(job(recipients=(A, B), attempts=11)) == ["begin", "failed"]
    assert bench.store.answers == answers
    assert "status=bounced" in caplog.text
    bench = Bench().says(kind("no recipient taken: 450 full", answers=answers))
    assert bench.attempt(job(recipients=(A, B), attempts=11, some_have_it=True)) == ["begin", "sent"]
    assert bench.store.sent
    assert bench.store.sent.host == "mx:25"
    (_, first), (_, second) = bench.store.sent.refused
    assert (first, second.endswith("450 full")) == ("550 5.1.1 no such user", True)


def test_the_domain_chooses_the_courier() -> None:
    """One that is not set up here waits: another worker, or the operator, may have it."""
    bench = Bench()
    assert bench.attempt(job(route=Route(courier="ses"))) == ["begin", "deferred"]
    assert bench.courier.sent == 0
    assert bench.store.reasons == ["courier ses is not set up here"]
    assert Bench().attempt(job(route=Route(courier="file"))) == ["begin", "sent"]


def test_a_next_hop_that_is_out_is_left_alone() -> None:
    """And asked again by one message after the pause."""
    bench = Bench().says(DeliveryDeferred("connection refused", outage=True))
    name: CourierName = "file"
    for _ in range(OUTAGES):
        assert bench.breaker.allows(name)
        bench.attempt(job())
    assert not bench.breaker.allows(name)
    assert bench.breaker.is_open
    bench.now_s = 5.0
    assert bench.breaker.allows(name)
    assert not bench.breaker.allows(name), "one at a time"
    bench.attempt(job())
    bench.now_s = 5.0 + 9.9
    assert not bench.breaker.allows(name), "longer each time"
    bench.now_s = 5.0 + 10.0
    assert bench.breaker.allows(name)
    bench.says(DeliveryRefused("550 no")).attempt(job())
    assert bench.breaker.allows(name), "it answers"
    assert not bench.breaker.is_open


def test_those_who_began_together_count_once() -> None:
    """Many threads find out at the same moment; the pause is not doubled for each."""
    bench = Bench().says(DeliveryDeferred("connection refused", outage=True))
    for _ in range(OUTAGES + 20):
        bench.attempt(job())
    bench.now_s = 5.0
    assert bench.breaker.allows("file")


def test_a_throttled_courier_waits_as_long_as_it_was_told() -> None:
    bench = Bench().says(DeliveryDeferred("429", outage=True, retry_after_s=30.0))
    bench.attempt(job())
    bench.now_s = 29.9
    assert not bench.breaker.allows("file")
    bench.now_s = 30.0
    assert bench.breaker.allows("file")


def test_the_last_attempt_fails_with_its_reason() -> None:
    """Not for ever, and not without saying why."""
    bench = Bench().says(DeliveryDeferred("450 later"))
    assert bench.attempt(job(attempts=10)) == ["begin", "deferred"]
    bench = Bench().says(DeliveryDeferred("450 later"))
    assert bench.attempt(job(attempts=11)) == ["begin", "failed"]
    assert bench.store.reasons == ["given up after 12 attempts: 450 later"]


@pytest.mark.case(58)
def test_a_yes_is_recorded_as_soon_as_the_database_is_back() -> None:
    """The message goes out once, however often the record is tried."""
    bench = Bench(FakeStore(failures={"sent": 3}))
    assert bench.attempt(job()) == ["begin", "sent", "sent", "sent", "sent"]
    assert bench.courier.sent == 1
    assert bench.slept == list(RECORD_PAUSES_S[:3])


@pytest.mark.case(58)
def test_a_yes_that_cannot_be_recorded_is_left_to_the_lease(caplog: pytest.LogCaptureFixture) -> None:
    """Bounded; the lease ends in `attempting`, so nobody sends it again."""
    bench = Bench(FakeStore(failures={"sent": 10_000}))
    with caplog.at_level(logging.INFO):
        calls = bench.attempt(job())
    assert calls == ["begin", *["sent"] * (len(RECORD_PAUSES_S) + 1)]
    assert bench.courier.sent == 1
    assert sum(bench.slept) < 900
    assert "status=sent" in caplog.text, "the mail log knows"
    assert "outcome not recorded" in caplog.text


def test_the_mail_log_shows_no_address(caplog: pytest.LogCaptureFixture) -> None:
    """What the next hop says may quote one."""
    with caplog.at_level(logging.INFO, logger="opensend_milter.mail"):
        Bench().says(DeliveryRefused("550 <to@example.net> unknown")).attempt(job())
    assert "status=failed" in caplog.text
    assert "to@example.net" not in caplog.text
