"""By what a refusal is looked up: how it is spelled, and what is understood."""

from __future__ import annotations

import hashlib
import re

import pytest

from opensend_milter.core import crockford
from opensend_milter.core.refs import new_token, read_ref, read_token, ref_of, token_hash

TOKEN = "7DJ0H3NH6Y4E30HVDGQ1JAXSMY"
REF = ref_of(TOKEN)


def test_a_token_is_128_bits_of_chance() -> None:
    tokens = {new_token() for _ in range(1_000)}
    assert len(tokens) == 1_000
    assert {len(token) for token in tokens} == {26}
    numbers = [crockford.number_of(token) for token in tokens]
    assert all(crockford.spelled(number, 26) == token for number, token in zip(numbers, tokens, strict=True))
    assert max(numbers) < 1 << 128
    ones = [sum(number >> bit & 1 for number in numbers) for bit in range(128)]
    assert min(ones) > 300
    assert max(ones) < 700


def test_a_ref_is_the_first_50_bits_of_what_is_kept_of_its_token() -> None:
    assert token_hash(TOKEN) == hashlib.sha256(TOKEN.encode()).digest()
    assert crockford.number_of(REF) == int.from_bytes(token_hash(TOKEN)) >> 206
    assert re.fullmatch(r"[0-9A-HJKMNP-TV-Z]{10}", REF)


@pytest.mark.parametrize(
    ("text", "ref"),
    [
        (REF, REF),
        (f" {REF.lower()}\n", REF),
        (TOKEN, REF),
        (TOKEN.lower(), REF),
        (TOKEN.replace("0", "o").replace("1", "l"), REF),
        (f"https://mail.example.org/r/{TOKEN}", REF),
        (REF[:-1], None),
        (f"{REF}U", None),
        (f"{TOKEN}/", None),
        ("UUUUUUUUUU", None),
        ("4jd5rb6fZCzRW0C", None),
        ("", None),
        ("\u0130" * 10, None),
        ("/" * 1_000_000, None),
        ("7" * 1_000_000, None),
    ],
)
def test_what_a_person_may_paste(text: str, ref: str | None) -> None:
    """A ref in any case, a token, an address; what is no ref may be a queue id."""
    assert read_ref(text) == ref


@pytest.mark.parametrize(
    "text", ["", TOKEN[:-1], f"{TOKEN}7", "U" * 26, "é" * 26, "ß" * 13, "\x00" * 26, TOKEN * 9_999]
)
def test_what_is_no_token(text: str) -> None:
    assert read_token(text) is None


def test_a_token_that_was_read_out_is_understood() -> None:
    assert read_token(TOKEN.lower().replace("0", "O").replace("1", "i")) == TOKEN
