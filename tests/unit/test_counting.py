"""What is counted, and that what is logged is counted."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import pytest
from prometheus_client.parser import text_string_to_metric_families as parsed

from opensend_milter.adapters import prometheus
from opensend_milter.adapters.prometheus import PrometheusBook
from opensend_milter.core import counting, maillog
from opensend_milter.core.counting import AT_THE_DOOR, IN_DELIVERY, OVER_HTTP, Measure, count_in
from opensend_milter.core.model import EmailId, JobState, Refuse, Route, Sent
from opensend_milter.core.rules import Rule
from tests.jobs import job
from tests.unit.messages import message

ALL = tuple({one.name: one for one in (*AT_THE_DOOR, *IN_DELIVERY, *OVER_HTTP)}.values())
REFUSAL = Refuse(code=550, enhanced="5.7.1", text="no", rule=Rule.FROM_UNVERIFIED)
SENT = Sent(courier="ses", reply="ok")


@dataclass
class Notes:
    """A book that a test can read."""

    notes: list[tuple[str, float, tuple[str, ...]]] = field(default_factory=list)

    def note(self, measure: Measure, value: float, *labels: str) -> None:
        assert measure.takes(labels) == labels, "every value is one that the measure knows"
        self.notes.append((measure.name, value, labels))


@pytest.fixture
def notes() -> Iterator[Notes]:
    book = Notes()
    count_in(book)
    yield book
    count_in(counting.NOWHERE)


@pytest.fixture
def _forgotten() -> Iterator[None]:
    yield
    count_in(counting.NOWHERE)


forgotten = pytest.mark.usefixtures("_forgotten")


def test_what_the_mail_log_says_of_a_message_is_counted(notes: Notes) -> None:
    one = message()
    maillog.accepted(one, EmailId("e"), 12.5)
    maillog.repeated(one, EmailId("e"), 10)
    maillog.refused(one, REFUSAL, 1000)
    assert notes.notes == [
        ("opensend_messages_accepted_total", 1, ("smtp",)),
        ("opensend_message_bytes_total", one.size, ()),
        ("opensend_accept_seconds", 0.0125, ()),
        ("opensend_messages_repeated_total", 1, ()),
        ("opensend_accept_seconds", 0.01, ()),
        ("opensend_messages_refused_total", 1, ("smtp", "from-unverified")),
        ("opensend_accept_seconds", 1.0, ()),
    ]


def test_what_the_mail_log_says_of_an_attempt_is_counted(notes: Notes) -> None:
    by_plunk = job(route=Route(courier="plunk"))
    maillog.sent(job(), SENT)
    maillog.partly(job(), SENT, 60)
    maillog.deferred(job(), "later", 60, "smtp")
    maillog.failed(by_plunk, "no")
    maillog.uncertain(by_plunk, "who knows", "file")
    assert notes.notes == [
        ("opensend_attempts_total", 1, labels)
        for labels in (
            ("ses", "sent"),
            ("ses", "partly"),
            ("smtp", "deferred"),
            ("plunk", "failed"),
            ("file", "uncertain"),
        )
    ]


def test_the_backlog_names_every_state(notes: Notes) -> None:
    """A state that has none is 0, not what it was before."""
    counting.backlog({JobState.WAITING: 3}, 1.5)
    assert notes.notes == [
        ("opensend_jobs", 3, ("waiting",)),
        ("opensend_jobs", 0, ("claimed",)),
        ("opensend_jobs", 0, ("attempting",)),
        ("opensend_jobs", 0, ("uncertain",)),
        ("opensend_oldest_due_seconds", 1.5, ()),
    ]


def test_other_events(notes: Notes) -> None:
    counting.batch(3)
    counting.reading_given_up("parts")
    counting.not_spooled()
    counting.store_unavailable()
    counting.announced(10)
    counting.search_lag(1.5)
    with suppress(ValueError), counting.timed_attempt("smtp"):
        raise ValueError
    counting.courier_paused("smtp", is_paused=True)
    counting.webhook("dead_letter")
    counting.feedback("bounced")
    counting.queue_malformed()
    counting.http_request("/v1/send", "POST", 202, 0.1)
    counting.http_connection_cut()
    assert {name for name, *_ in notes.notes} == {
        one.name for one in ALL
    } - {
        "opensend_messages_accepted_total", "opensend_messages_refused_total", "opensend_messages_repeated_total",
        "opensend_message_bytes_total", "opensend_accept_seconds", "opensend_attempts_total", "opensend_jobs",
        "opensend_oldest_due_seconds",
    }  # fmt: skip


@pytest.mark.parametrize("measure", ALL, ids=lambda one: one.name)
def test_names_say_kind_and_unit(measure: Measure) -> None:
    assert re.fullmatch(r"opensend_[a-z_]+", measure.name)
    assert measure.name.endswith("_total") == (measure.kind == "counter")
    assert bool(measure.buckets) == (measure.kind == "histogram")
    assert not set(measure.labels) & {"key", "domain", "address", "user", "email", "queue_id"}


@pytest.mark.parametrize(
    ("measure", "given", "counted"),
    [
        (counting.HTTP_REQUESTS, ("/v1/send", "POST", "202"), ("/v1/send", "POST", "202")),
        (counting.HTTP_REQUESTS, ("/v1/send", "BREW", "405"), ("/v1/send", "other", "405")),
        (counting.REFUSED, ("smtp", "made-up"), ("smtp", "other")),
        (counting.ATTEMPTS, ("other", "sent"), ("other", "sent")),
        (counting.FEEDBACK, ("to@example.net",), ("other",)),
    ],
)
def test_a_strangers_word_makes_no_series(measure: Measure, given: tuple[str, ...], counted: tuple[str, ...]) -> None:
    assert measure.takes(given) == counted


@forgotten
def test_every_page_can_be_read_and_begins_at_zero() -> None:
    """A rate needs the zero before the first event."""
    text = prometheus.alone(IN_DELIVERY)().decode()
    samples = {(one.name, *one.labels.values()): one.value for family in parsed(text) for one in family.samples}
    assert samples["opensend_attempts_total", "smtp", "uncertain"] == 0
    assert samples["opensend_jobs", "waiting"] == 0
    assert samples["opensend_build_info", "0.1.0"] == 1
    assert samples["process_resident_memory_bytes",] > 1_000_000
    assert not any("_created" in name for name, *_ in samples)


@forgotten
def test_a_process_shows_only_what_is_its_own() -> None:
    page = prometheus.alone(IN_DELIVERY)
    counting.accepted("smtp", 10, 0.1)
    counting.http_request("/", "GET", 200, 0.1)
    assert b"accepted" not in page()
    assert b"http_request" not in page()


@forgotten
def test_methods_that_a_stranger_makes_up_are_one_series() -> None:
    page = prometheus.alone(OVER_HTTP)
    for number in range(100):
        counting.http_request("/v1/send", f"M{number}", 405, 0.1)
    lines = [line for line in page().decode().splitlines() if line.startswith("opensend_http_requests_total{")]
    assert lines == ['opensend_http_requests_total{code="405",method="other",route="/v1/send"} 100.0']


@forgotten
def test_what_cannot_be_counted_hurts_no_message(caplog: pytest.LogCaptureFixture) -> None:
    written = PrometheusBook([counting.ACCEPTED, counting.BATCH_SIZE], None)
    written.note(counting.ACCEPTED, -1, "smtp")
    written.note(counting.ACCEPTED, 1, "smtp", "one too many")
    written.note(counting.REFUSED, 1, "smtp", "ours")
    assert caplog.messages == ["opensend_messages_accepted_total not counted"] * 2
