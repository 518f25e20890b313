"""Texts of a message: mail's line ends wherever the border of a piece falls, and a bound on all of them together."""

from __future__ import annotations

import re
import tracemalloc

import pytest
from hypothesis import given, strategies as st

from opensend_milter.core.message import read
from opensend_milter.core.model import Limits, Reading, Refuse
from opensend_milter.core.rules import Rule
from opensend_milter.core.texts import Texts, TooMuchTextError, unflowed
from tests.linear import assert_linear

SMILE = "\U0001f600"


@given(st.lists(st.sampled_from(["\r", "\n", "\r\n", "a", "é", "\x00", SMILE]), max_size=30), st.integers(1, 9))
def test_line_ends_are_the_same_however_a_text_is_cut(signs: list[str], size: int) -> None:
    text = "".join(signs)
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    expected = re.sub(r"\r?\r?\n|\r", "\r\n", text).replace("\x00", "\ufffd")
    assert Texts(1_000).take(pieces) == expected


def test_a_line_that_was_ended_twice_is_one_line() -> None:
    """Ruby's mail writes `=0D` before each CRLF."""
    assert Texts(100).take(["one\r\r\ntwo\r\r", "\n\r\r\nthree\r\r"]) == "one\r\ntwo\r\n\r\nthree\r\n\r\n"


@pytest.mark.parametrize(
    ("before", "text"),
    [("", "a" * 101), ("a" * 60, "a" * 60), ("", "\n" * 60), ("", "\ufffd" * 40), ("", "\xe9" * 60)],
)
def test_what_all_texts_come_to_is_bounded_as_they_are_stored(before: str, text: str) -> None:
    room = Texts(100)
    room.take([before])
    with pytest.raises(TooMuchTextError, match="more than 100 octets"):
        room.take([text])


def test_as_much_as_may_be_is_taken() -> None:
    assert len(Texts(100).take(["a" * 50, "\n" * 25])) == 100


@pytest.mark.case(74)
@pytest.mark.parametrize(
    ("letter", "refused"), [(SMILE, "emoji .* more than 10000000"), ("€", "beyond Latin-1 .* more than 20000000")]
)
@pytest.mark.parametrize("after", ["", "a" * 1_000])
def test_one_letter_does_not_make_a_large_text_twice_or_four_times_as_large(
    letter: str, refused: str, after: str
) -> None:
    pieces = [letter + after, *["abc\r\n" * 200_000] * 30]
    tracemalloc.start()
    try:
        with pytest.raises(TooMuchTextError, match=refused):
            Texts(100_000_000).take(pieces)
        assert tracemalloc.get_traced_memory()[1] < 60_000_000
    finally:
        tracemalloc.stop()


def test_letters_of_latin_1_are_as_many_as_fit() -> None:
    assert len(Texts(60_000_000).take(["é", *["abc\r\n" * 200_000] * 30])) == 30_000_001


def test_a_message_of_too_much_text_is_beyond_the_limits() -> None:
    raw = b"From: a@example.org\r\nContent-Type: text/plain; charset=iso-8859-1\r\n\r\n" + b"\xe9" * 600
    found = read(raw, Limits(max_message_bytes=1_000))
    assert isinstance(found, Refuse)
    assert (found.code, found.rule) == (554, Rule.BEYOND_LIMITS)
    assert "1000 octets" in found.text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", ""),
        ("one", "one"),
        ("\r\none\r\n", "\r\none\r\n"),
        ("one \r\ntwo \r\nthree\r\nfour\r\n", "one two three\r\nfour\r\n"),
        ("one \r\n\r\ntwo", "one \r\n\r\ntwo"),
        (" From here\r\n  two blanks\r\n >no quote\r\n", "From here\r\n two blanks\r\n>no quote\r\n"),
        ("one \r\n two", "one two"),
        ("one \r\n> a \r\n> b\r\ntwo", "one \r\n> a \r\n> b\r\ntwo"),
        ("bye \r\n-- \r\nJane", "bye \r\n-- \r\nJane"),
        ("bye\r\n -- \r\nJane", "bye\r\n-- \r\nJane"),
        ("one ", "one "),
    ],
)
def test_lines_that_a_program_broke_are_one(text: str, shown: str) -> None:
    assert unflowed(text, without_last_blank=False) == shown


def test_a_blank_that_is_but_a_mark_is_none_of_the_text() -> None:
    flowed = "二〇二六年 \r\n第三四半期  \r\nB\r\n-- \r\nC"
    assert unflowed(flowed, without_last_blank=True) == "二〇二六年第三四半期 B\r\n-- \r\nC"
    head = 'From: a@example.org\r\nContent-Type: {}; charset=utf-8; Format="Flowed"; DelSp=YES\r\n\r\n'
    for kind, text in (("text/plain", "二〇二六年第三四半期 B\r\n-- \r\nC"), ("text/html", "")):
        found = read((head.format(kind) + flowed).encode(), Limits())
        assert isinstance(found, Reading)
        assert (found.text, found.html) == (text, "" if text else flowed)


def flowed(octets: int) -> Reading:
    found = read(
        b"From: a@example.org\r\nContent-Type: text/plain; format=flowed\r\n\r\n" + b"a \r\n" * (octets // 4), Limits()
    )
    assert isinstance(found, Reading)
    return found


def test_lines_are_joined_in_one_pass() -> None:
    assert_linear(flowed, 20_000)
    assert flowed(1_000_000).text == "a " * 250_000 + "\r\n"


def test_a_large_text_keeps_its_lines() -> None:
    assert flowed(1_100_000).text == "a \r\n" * 275_000
