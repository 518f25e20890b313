"""Whatever a message is known by finds it, and reading what a stranger asks for takes time in line with its length."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from opensend_milter.core.terms import MOST_ASKED, Known, Meant, names, readable, ways
from tests.linear import assert_linear

ID = "01a22a0c-f6a0-4d1e-9651-279c9f1ee060"
MESSAGE = Known(
    id=ID,
    addresses=[
        "Shop <orders@Shop.example>",
        "Bounce+1@shop.example",
        "ANN@example.net",
        '"a b"@example.net',
        "x@bücher.example",
    ],
    message_id="<4711.ABC@shop.example>",
    subject="Your  order 4711: Straße, ＡＢＣ and 注文の確認",
)


def finds(asked: str, known: Known = MESSAGE) -> bool:
    return Meant(ways(asked)).is_known_by(known)


@pytest.mark.parametrize(
    "asked",
    [
        *(
            "orders@shop.example",
            " ORDERS@SHOP.EXAMPLE ",
            "bounce+1@shop.example",
            "ann@example.net",
            "<ann@example.net>",
        ),
        *(
            '"a b"@example.net',
            "x@bücher.example",
            "x@xn--bcher-kva.example",
            "@example.net",
            "@bücher.example",
            "@SHOP.example",
        ),
        *("4711.ABC@shop.example", "<4711.abc@shop.example>", ID[-12:], ID[-12:].upper()),
        *("order", "ORDER 4711", "4711 your", "strasse", "abc", "注文", "確認"),
    ],
)
def test_it_is_found_by(asked: str) -> None:
    assert finds(asked)


@pytest.mark.parametrize(
    "asked",
    [
        *(
            "order 4712",
            "orde",
            "example.net",
            "n@example.net",
            "@net",
            "ann@example.org",
            "4711@shop.example",
            ID[-11:],
        ),
        *("", " ", "%", "_", "*", "'; DROP TABLE emails; --", "\x00", "\ud800", "\u202e", "注文文"),
    ],
)
def test_it_is_not_found_by(asked: str) -> None:
    assert not finds(asked)


@given(st.text(max_size=40))
def test_each_address_message_id_and_subject_finds_its_own(text: str) -> None:
    known = Known(id=None, addresses=[f"{text}@example.net"], message_id=f"<{text}>", subject=text)
    for asked in (text, f"<{text}>"):
        assert all(name.text.encode() for way in ways(asked) for name in way)
    if readable(text) == text and ways(text):
        assert finds(text, known)


LETTERS = 'aB1.@<>"\\ -_(),:;[]%+\tİßﬁΣ‑注ä'


@given(st.lists(st.text(LETTERS, max_size=30), max_size=3), st.text(LETTERS, max_size=30))
def test_what_is_looked_at_in_short_is_known_by_all_its_names(addresses: list[str], text: str) -> None:
    known = Known(id=None, addresses=addresses, message_id=text, subject=text)
    for name in names(known):
        assert Meant([frozenset({name})]).is_known_by(known), name


@pytest.mark.parametrize(
    "address", ["x@XN--BCHER-KVA.example", "x@Bücher.Example", '"a\\b"@example.net', "<a@b.example>"]
)
def test_an_address_is_known_by_all_its_names_however_it_is_spelled(address: str) -> None:
    known = Known(id=None, addresses=["other@example.org", address], message_id=None, subject="")
    for name in names(known):
        assert Meant([frozenset({name})]).is_known_by(known), name


def test_what_is_asked_is_bounded() -> None:
    assert len(readable("x" * 10_000)) == MOST_ASKED
    assert len(names(Known(id=None, addresses=[], message_id=None, subject="word " * 9))) == 1
    assert_linear(lambda size: ways("é@" * size), 200)
    assert_linear(
        lambda size: names(Known(id=None, addresses=["a" * size], message_id="<" * size, subject="é " * size)), 100
    )
