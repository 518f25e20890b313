"""What is counted: every measure with its labels, and one function per event that counts it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal, Protocol, get_args

from opensend_milter.core.budget import PLACES
from opensend_milter.core.couriers import CourierName
from opensend_milter.core.feedback import KINDS
from opensend_milter.core.model import FrontDoor, JobState
from opensend_milter.core.rules import Rule

MeasureKind = Literal["counter", "gauge", "histogram"]
AttemptOutcome = Literal["sent", "partly", "deferred", "failed", "uncertain"]
WebhookFate = Literal["success", "pending", "dead_letter", "superseded"]
LoginOutcome = Literal["accepted", "refused", "outage", "throttled"]

OTHER = "other"
"""Stands for a label's value that nobody foresaw: a stranger's word must not make a series of its own."""
_FREE = ("",)
_COURIERS = get_args(CourierName)
_DOORS = get_args(FrontDoor)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0)
_PATIENT_SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measure:
    """One metric."""

    name: str
    kind: MeasureKind
    text: str
    labels: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """All values that each may have; `_FREE` where the caller bounds them."""
    buckets: tuple[float, ...] = ()

    def takes(self, values: tuple[str, ...]) -> tuple[str, ...]:
        """Return the values as they may be counted."""
        allowed = zip(values, self.labels.values(), strict=True)
        return tuple(value if known == _FREE or value in known else OTHER for value, known in allowed)

    @property
    def is_closed(self) -> bool:
        """Tell whether all its series are known beforehand."""
        return _FREE not in self.labels.values()


class Book(Protocol):
    """Where counts are kept."""

    def note(self, measure: Measure, value: float, *labels: str) -> None:
        """Add to a counter, observe for a histogram, set a gauge. Never raise."""
        ...


ACCEPTED = Measure(
    name="opensend_messages_accepted_total",
    kind="counter",
    text="Messages that are ours: stored and answered 250 or 202.",
    labels={"front_door": _DOORS},
)
REFUSED = Measure(
    name="opensend_messages_refused_total",
    kind="counter",
    text="Messages not taken, by rule; rule ours is a fault of ours, answered 451 or 503.",
    labels={"front_door": _DOORS, "rule": tuple(rule.value for rule in Rule)},
)
REPEATED = Measure(
    name="opensend_messages_repeated_total",
    kind="counter",
    text="Messages that were ours already: answered as accepted, and not stored again.",
)
MESSAGE_BYTES = Measure(
    name="opensend_message_bytes_total", kind="counter", text="Octets of the messages that were accepted."
)
ACCEPT_SECONDS = Measure(
    name="opensend_accept_seconds",
    kind="histogram",
    text="From the end of a message to our decision, whatever it is.",
    buckets=_SECONDS,
)
BATCH_SIZE = Measure(
    name="opensend_batch_size",
    kind="histogram",
    text="Messages that share one transaction.",
    buckets=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0),
)
READING_GIVEN_UP = Measure(
    name="opensend_reading_given_up_total",
    kind="counter",
    text="Messages that took too much work to read, by what was read, answered 554; time: too long, answered 451.",
    labels={"where": (*PLACES, "time")},
)
NOT_SPOOLED = Measure(
    name="opensend_not_spooled_total",
    kind="counter",
    text="Large messages put off with 451 because the spool could not hold them: its disk is full, or gone.",
)
STORE_UNAVAILABLE = Measure(
    name="opensend_store_unavailable_total", kind="counter", text="Calls that the database did not answer."
)
JOBS = Measure(
    name="opensend_jobs",
    kind="gauge",
    text="Deliveries that are not finished, by state; a waiting one may be scheduled.",
    labels={"state": tuple(state.value for state in JobState)},
)
OLDEST_DUE = Measure(
    name="opensend_oldest_due_seconds",
    kind="gauge",
    text="For how long the delivery that waits longest has been due.",
)
SEARCH_LAG = Measure(
    name="opensend_search_lag_seconds",
    kind="gauge",
    text="For how long the message has waited that the search table is to have next.",
)
ANNOUNCED = Measure(name="opensend_announced_total", kind="counter", text="Jobs that the queue took.")
ATTEMPTS = Measure(
    name="opensend_attempts_total",
    kind="counter",
    text="Attempts to deliver.",
    labels={"courier": _COURIERS, "outcome": get_args(AttemptOutcome)},
)
ATTEMPT_SECONDS = Measure(
    name="opensend_attempt_seconds",
    kind="histogram",
    text="How long the next hop had a message in hand.",
    labels={"courier": _COURIERS},
    buckets=_PATIENT_SECONDS,
)
COURIER_PAUSED = Measure(
    name="opensend_courier_paused",
    kind="gauge",
    text="1 from when a courier is left alone because its next hop is out, until that answers.",
    labels={"courier": _COURIERS},
)
WEBHOOKS = Measure(
    name="opensend_webhooks_total",
    kind="counter",
    text="Calls of webhooks.",
    labels={"fate": get_args(WebhookFate)},
)
FEEDBACK = Measure(
    name="opensend_feedback_total",
    kind="counter",
    text="Reports taken up, by kind.",
    labels={"kind": tuple(sorted(KINDS))},
)
QUEUE_MALFORMED = Measure(
    name="opensend_queue_malformed_total",
    kind="counter",
    text="Messages on a queue that nobody could read.",
)
HTTP_REQUESTS = Measure(
    name="opensend_http_requests_total",
    kind="counter",
    text="Requests answered.",
    labels={"route": _FREE, "method": _METHODS, "code": _FREE},
)
HTTP_SECONDS = Measure(
    name="opensend_http_request_seconds",
    kind="histogram",
    text="From a request's head to the end of its answer.",
    labels={"route": _FREE},
    buckets=_SECONDS,
)
HTTP_CUT = Measure(
    name="opensend_http_connections_cut_total",
    kind="counter",
    text="Connections without a request that were closed to make room for others.",
)

LOGINS = Measure(
    name="opensend_logins_total",
    kind="counter",
    text="Logins over SMTP; outage and throttled were put off with 454, refused is a wrong key and 535.",
    labels={"outcome": get_args(LoginOutcome)},
)
LOGIN_SECONDS = Measure(
    name="opensend_login_seconds",
    kind="histogram",
    text="From the key in hand to our answer; Dovecot lets a wrong key wait for about two seconds.",
    labels={"outcome": get_args(LoginOutcome)},
    buckets=_SECONDS,
)
AUTH_CONNECTIONS = Measure(
    name="opensend_auth_connections", kind="gauge", text="Connections of Postfix to the gate that are open."
)

AT_THE_DOOR = (
    ACCEPTED, REFUSED, REPEATED, MESSAGE_BYTES, ACCEPT_SECONDS, BATCH_SIZE, READING_GIVEN_UP, NOT_SPOOLED,
    STORE_UNAVAILABLE,
)  # fmt: skip
OVER_HTTP = (*AT_THE_DOOR, HTTP_REQUESTS, HTTP_SECONDS, HTTP_CUT)
IN_DELIVERY = (
    JOBS, OLDEST_DUE, SEARCH_LAG, ANNOUNCED, ATTEMPTS, ATTEMPT_SECONDS, COURIER_PAUSED, WEBHOOKS, FEEDBACK,
    QUEUE_MALFORMED, STORE_UNAVAILABLE,
)  # fmt: skip
AT_AUTH = (LOGINS, LOGIN_SECONDS, AUTH_CONNECTIONS)


class _Nowhere:
    def note(self, measure: Measure, value: float, *labels: str) -> None: ...


NOWHERE: Book = _Nowhere()
_book = NOWHERE


def count_in(book: Book) -> None:
    """Keep the counts of this process there from now on; until then they are not kept."""
    global _book  # noqa: PLW0603  # one for the process, as the log is
    _book = book


def accepted(front_door: FrontDoor, size_bytes: int, waited_s: float) -> None:
    _book.note(ACCEPTED, 1, front_door)
    _book.note(MESSAGE_BYTES, size_bytes)
    _book.note(ACCEPT_SECONDS, waited_s)


def repeated(waited_s: float) -> None:
    _book.note(REPEATED, 1)
    _book.note(ACCEPT_SECONDS, waited_s)


def refused(front_door: FrontDoor, rule: Rule, waited_s: float) -> None:
    _book.note(REFUSED, 1, front_door, rule.value)
    _book.note(ACCEPT_SECONDS, waited_s)


def batch(size: int) -> None:
    _book.note(BATCH_SIZE, size)


def reading_given_up(where: str) -> None:
    _book.note(READING_GIVEN_UP, 1, where)


def not_spooled() -> None:
    _book.note(NOT_SPOOLED, 1)


def store_unavailable() -> None:
    _book.note(STORE_UNAVAILABLE, 1)


def backlog(jobs: Mapping[JobState, int], oldest_due_s: float) -> None:
    """Set what the database holds; a state that is not named has none."""
    for state in JobState:
        _book.note(JOBS, jobs.get(state, 0), state.value)
    _book.note(OLDEST_DUE, oldest_due_s)


def search_lag(lag_s: float) -> None:
    _book.note(SEARCH_LAG, lag_s)


def announced(count: int) -> None:
    _book.note(ANNOUNCED, count)


def attempt(courier: CourierName | None, outcome: AttemptOutcome) -> None:
    _book.note(ATTEMPTS, 1, courier or OTHER, outcome)


@contextmanager
def timed_attempt(courier: CourierName) -> Iterator[None]:
    """Count how long it takes, whatever comes of it."""
    began = time.monotonic()
    try:
        yield
    finally:
        _book.note(ATTEMPT_SECONDS, time.monotonic() - began, courier)


def courier_paused(courier: CourierName, *, is_paused: bool) -> None:
    _book.note(COURIER_PAUSED, is_paused, courier)


def webhook(fate: WebhookFate) -> None:
    _book.note(WEBHOOKS, 1, fate)


def feedback(kind: str) -> None:
    _book.note(FEEDBACK, 1, kind)


def login(outcome: LoginOutcome, took_s: float) -> None:
    _book.note(LOGINS, 1, outcome)
    _book.note(LOGIN_SECONDS, took_s, outcome)


def auth_connections(count: int) -> None:
    _book.note(AUTH_CONNECTIONS, count)


def queue_malformed() -> None:
    _book.note(QUEUE_MALFORMED, 1)


def http_request(route: str, method: str, code: int, took_s: float) -> None:
    """Count an answer; `route` is the path as it was declared, never as it was asked for."""
    _book.note(HTTP_REQUESTS, 1, route, method, str(code))
    _book.note(HTTP_SECONDS, took_s, route)


def http_connection_cut() -> None:
    _book.note(HTTP_CUT, 1)
