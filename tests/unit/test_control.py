"""Control fields: what a client may ask for, and what it is told where it asks wrongly."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from opensend_milter.core import control
from opensend_milter.core.control import (
    MOST_METADATA,
    MOST_TAGS,
    NOTHING_ASKED,
    ControlFieldError,
    Wishes,
    is_control,
    wishes,
)

TAG, SEND_AT, METADATA = "x-opensend-tag", "x-opensend-send-at", "x-opensend-metadata-"
KEYS = ["idempotency-key", "resend-idempotency-key", "x-idempotency-key"]


def refusal(*fields: tuple[str, str]) -> str:
    with pytest.raises(ControlFieldError) as caught:
        wishes(fields)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        *[(name, True) for name in (*KEYS, TAG, SEND_AT, METADATA, METADATA + "a", "x-opensend-anything")],
        *[(name, False) for name in ("x-opensend", "opensend-tag", "idempotency-key-2", "message-id", "subject", "")],
    ],
)
def test_which_fields_are_for_us(name: str, ours: bool) -> None:  # noqa: FBT001
    assert is_control(name) == ours


def test_a_message_that_asks_for_nothing() -> None:
    assert wishes([]) is NOTHING_ASKED
    assert wishes([("subject", "x-opensend-tag: a"), ("x-tag", "a")]) == NOTHING_ASKED
    assert wishes([("x-opensend-unknown", "whatever")]) == NOTHING_ASKED


def test_all_at_once() -> None:
    fields = [
        ("from", "a@example.org"),
        (TAG, "one=1"),
        ("idempotency-key", "order-1"),
        (METADATA + "order", "4711"),
        (TAG, "two"),
        (SEND_AT, "in 2 hours"),
    ]
    assert wishes(fields) == Wishes(
        idempotency_key="order-1",
        tags=(("one", "1"), ("two", "")),
        metadata={"order": "4711"},
        send_at=timedelta(hours=2),
    )


@pytest.mark.case(65)
@pytest.mark.parametrize("key", ["x", "x" * 256, "é" * 256, "a b", "=?utf-8?q?a?="])
@pytest.mark.parametrize("name", KEYS)
def test_an_idempotency_key_is_taken_as_it_stands(name: str, key: str) -> None:
    assert wishes([(name, key)]).idempotency_key == key
    assert wishes([(other, key) for other in KEYS]).idempotency_key == key


@pytest.mark.case(65)
@pytest.mark.parametrize(
    "values", [[""], ["x" * 257], ["a\tb"], ["a\x00"], ["a\u2028b"], ["a", "b"], ["a", "A"], ["a", ""]]
)
@pytest.mark.parametrize("name", KEYS)
def test_an_idempotency_key_that_is_none(name: str, values: list[str]) -> None:
    assert refusal(*[(name, value) for value in values]).startswith("Idempotency-Key: ")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("a", ("a", "")),
        ("a=", ("a", "")),
        ("a=b", ("a", "b")),
        ("a \t=  b", ("a", "b")),
        ("_-_=-_-", ("_-_", "-_-")),
        ("n" * 256 + "=" + "v" * 256, ("n" * 256, "v" * 256)),
    ],
)
def test_a_tag(value: str, expected: tuple[str, str]) -> None:
    assert wishes([(TAG, value)]).tags == (expected,)


@pytest.mark.parametrize(
    "value", ["", "=", "=b", "a b", "a=b=c", "a=b c", "a;b", "é", "a=é", "n" * 257, "a=" + "v" * 257, "a\nb", "a=b\n"]
)
def test_a_tag_that_is_none(value: str) -> None:
    text = refusal((TAG, "good"), (TAG, value))
    assert text.startswith("X-OpenSend-Tag: ")
    assert text.isascii()


def test_tags_are_counted() -> None:
    assert len(wishes([(TAG, "same")] * MOST_TAGS).tags) == MOST_TAGS == 75
    assert "75" in refusal(*[(TAG, "same")] * (MOST_TAGS + 1))


def test_metadata() -> None:
    fields = [
        (METADATA + "a-b_1", "any text: ümlaut, \t=;"),
        (METADATA + "empty", ""),
        (METADATA + "n" * 64, "v" * 1_000),
    ]
    assert wishes(fields).metadata == {name.removeprefix(METADATA): value for name, value in fields}
    assert wishes([(METADATA + "a", "1"), (METADATA + "a", "1")]).metadata == {"a": "1"}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ([("", "1")], "X-OpenSend-Metadata-:"),
        ([("a.b", "1")], "X-OpenSend-Metadata-a.b:"),
        ([("a b", "1")], "X-OpenSend-Metadata-a b:"),
        ([("n" * 65, "1")], "X-OpenSend-Metadata-" + "n" * 60),
        ([("a", "v" * 1_001)], "X-OpenSend-Metadata-a:"),
        ([("a", "1"), ("a", "2")], "X-OpenSend-Metadata-a:"),
    ],
)
def test_metadata_that_cannot_be_kept(fields: list[tuple[str, str]], named: str) -> None:
    assert refusal(*[(METADATA + name, value) for name, value in fields]).startswith(named)


def test_metadata_is_counted() -> None:
    fields = [(f"{METADATA}{number}", "1") for number in range(MOST_METADATA + 1)]
    assert len(wishes(fields[:-1]).metadata) == MOST_METADATA == 50
    assert "50" in refusal(*fields)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("in 1 minute", timedelta(minutes=1)),
        ("in 10 minutes", timedelta(minutes=10)),
        ("IN 2 Hours", timedelta(hours=2)),
        ("in\t3  days", timedelta(days=3)),
        ("in 0 days", timedelta(0)),
        ("in 999999 minutes", timedelta(minutes=999_999)),
        ("2026-01-31T08:00:00Z", datetime(2026, 1, 31, 8, tzinfo=UTC)),
        ("2026-01-31T08:00:00.250+00:00", datetime(2026, 1, 31, 8, microsecond=250_000, tzinfo=UTC)),
        ("2026-01-31 08:00-0530", datetime(2026, 1, 31, 8, tzinfo=timezone(-timedelta(hours=5, minutes=30)))),
    ],
)
def test_when_to_send(value: str, expected: datetime | timedelta) -> None:
    assert wishes([(SEND_AT, value)]).send_at == expected


@pytest.mark.parametrize(
    "value",
    [
        "",
        "now",
        "tomorrow",
        "1769846400",
        "2026-01-31",
        "2026-01-31T08:00:00",
        "2026-02-30T08:00:00Z",
        "2026-01-31T25:00:00Z",
        "Sat, 31 Jan 2026 08:00:00 +0100",
        "2026-01-31T08:00:00 Europe/Berlin",
        "in 10",
        "in minutes",
        "in 5 seconds",
        "in 5 weeks",
        "in 1.5 hours",
        "in -1 days",
        "in 1000000 minutes",
        "in 5 minutes or so",
        "10 minutes",
    ],
)
def test_when_to_send_that_is_no_time(value: str) -> None:
    assert refusal((SEND_AT, value)).startswith("X-OpenSend-Send-At: expected a time with its zone ")


def test_when_to_send_said_twice() -> None:
    assert "several" in refusal((SEND_AT, "in 5 minutes"), (SEND_AT, "in 5 minutes"))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*KEYS, TAG, SEND_AT, METADATA, METADATA + "a", "x-opensend-x", "subject"]),
            st.text() | st.from_regex(control._DELAY, fullmatch=True) | st.datetimes(timezones=st.timezones()).map(str),
        )
    )
)
@example([(SEND_AT, "in 5 m\u0131nutes")])
@example([(SEND_AT, "in \u0665 minutes")])
def test_whatever_is_asked_for_is_understood_or_refused(fields: list[tuple[str, str]]) -> None:
    """No other exception: that would be our fault, and 451 for ever."""
    try:
        assert isinstance(wishes(fields), Wishes)
    except ControlFieldError as error:
        assert str(error).split(":")[0] in {  # noqa: PT017  # one of two outcomes, both right
            "Idempotency-Key",
            "X-OpenSend-Tag",
            "X-OpenSend-Send-At",
            "X-OpenSend-Metadata-",
            "X-OpenSend-Metadata-a",
        }
