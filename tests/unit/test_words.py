"""Encoded words are read as mail clients read them, in one pass, to a text that can be shown and written."""

from __future__ import annotations

from email.header import Header

import pytest
from hypothesis import given, settings, strategies as st

from opensend_milter.core.words import decode_words
from tests.linear import assert_linear

pieces = st.sampled_from([
    "=?", "?=", "?q?", "?B?", "utf-8", "=?utf-8?q?", "=?utf-8?b?", "=?utf-7?q?", "=?utf-16?b?", "=?a?q?", "=41", "=C3",
    "=", "?", "_", " ", "YQ==", "2AA=", "+2AA-", "é", "日", "\ud800", "\x00", "\r", "\x85", "\u2028", "\u00a0",
])  # fmt: skip
soups = st.lists(st.one_of(pieces, st.text(max_size=5)), max_size=30).map("".join)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain =? text ?= a=b?", "plain =? text ?= a=b?"),
        ("=?utf-8?q?J=C3=BCrgen?=", "Jürgen"),
        ("=?UTF-8?Q?a_b=5Fc?= d_e", "a b_c d_e"),
        ("=?iso-8859-1?q?caf=e9?=", "café"),
        ("=?iso-2022-jp?B?GyRCOzNFRBsoQg==?=", "山田"),
        ("=?no-such-charset?q?caf=C3=A9?=", "café"),
        ("=?us-ascii?q?caf=C3=A9?=", "café"),
        ("=?us-ascii?q?caf=E9_=80?=", "café €"),
        ("=?no-such-charset?b?k2NhZumU?=", "“café”"),
        ("=?iso-8859-1?q?=93Zitat=94_=80?=", "“Zitat” €"),
        ("=?punycode?q?a-cia?=", "a-cia"),
        ("=?utf-8?q??=", ""),
        ("=?utf-8?q?" + "a" * 200 + "?=", "a" * 200),
    ],
)
def test_a_word_is_decoded(value: str, text: str) -> None:
    assert decode_words(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a =?utf-8?q?b?= c", "a b c"),
        ("a=?utf-8?q?b?=c", "abc"),
        ("=?utf-8?q?a?= =?utf-8?q?b?=", "ab"),
        ("=?utf-8?q?a?= \t\r\n =?koi8-r?q?b?=", "ab"),
        ("=?utf-8?q?a?==?utf-8?q?b?=", "ab"),
        ("=?utf-8?b?YQ==?=?q?b?=", "a?q?b?="),
        (" \t=?utf-8?q?a?= ", "a"),
        ("=?utf-8?q?a_?= =?utf-8?q?_b?=", "a  b"),
        ("=?utf-8?q?a?= _ =?utf-8?q?b?=", "a _ b"),
        ("=?utf-8?q?a?=  b  =?utf-8?q?c?=", "a  b  c"),
        ("=?utf-8?q?a?= =?utf-8?q? ?= =?utf-8?q?b?=", "a b"),
        ("é 日 =?utf-8?q?=C3=A9?= 日", "é 日 é 日"),
    ],
)
def test_blanks_between_words_are_none_and_all_else_stays(value: str, text: str) -> None:
    assert decode_words(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("=?utf-8?q?=C3?= =?utf-8?q?=A9?=", "é"),
        ("=?utf-8?q?=E6=97?= =?UTF-8?B?pQ==?=", "日"),
        ("=?utf-8*fr?q?=C3?= =?utf-8?q?=A9?=", "é"),
        ("=?utf-8?q?=C3?= a =?utf-8?q?=A9?=", "\ufffd a \ufffd"),
        ("=?utf-8?q?=C3?= =?koi8-r?q?=A9?=", "\ufffd╘"),
    ],
)
def test_a_letter_may_be_spread_over_words_of_one_charset(value: str, text: str) -> None:
    assert decode_words(value) == text


def test_a_word_may_name_its_language() -> None:
    assert decode_words("=?iso-8859-1*de-AT?q?Gr=FC=DFe?=") == "Grüße"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("=?utf-8?q?Is it caf=C3=A9? Yes?=", "Is it café? Yes"),
        ("=?utf-8?q?1 =? 2?=", "1 =? 2"),
        ("=?utf-8?q?a=?=", "a="),
        ("=?utf-8?q?100=zz=4?=", "100=zz=4"),
        ("=?utf-8?q?caf\u00e9 \u65e5?=", "café 日"),
        ("=?koi8-r?q?\u00f0=D2\u00c9?=", "При"),
        ("=?iso-8859-1?q?\u201cZitat\u201d?=", "“Zitat”"),
        ("=?utf-8?b?w6k?=", "é"),
        ("=?utf-8?b?w6k==?=", "é"),
        ("=?utf-8?b?w6k====?=", "é"),
        ("=?utf-8?b?w 6\t k?=", "é"),
        ("=?utf-8?b?!w6k!?=", "é"),
    ],
)
def test_words_are_read_as_broken_mailers_write_them(value: str, text: str) -> None:
    assert decode_words(value) == text


@pytest.mark.parametrize(
    "value",
    [
        "=?utf-8?q?no end",
        "=?utf-8?q?no end ?",
        "=?utf-8?x?a?=",
        "=?utf-8?q?",
        "=?utf-8?=",
        "=?utf-8?b?A?=",
        "=?utf-8?b?é日?=",
        "=?koi8-r?q?日?=",
    ],
)
def test_what_cannot_be_decoded_stays_as_it_is(value: str) -> None:
    assert decode_words(value) == value
    assert decode_words(f"=?utf-8?q?=41?= {value} =?utf-8?q?=42?=") == f"A {value} B"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("=?utf-8?q?no end =?utf-8?q?=41?=", "=?utf-8?q?no end A"),
        ("=?utf-8?q?=?utf-8?q?=41?=", "=?utf-8?q?A"),
        ("=?utf-8?b?YQ=?koi8-r?b?YQ==?= =?utf-8?q?=41?=", "=?utf-8?b?YQaA"),
    ],
)
def test_a_word_without_an_end_hides_not_the_next(value: str, text: str) -> None:
    assert decode_words(value) == text


@pytest.mark.case(29)
def test_no_control_character_survives() -> None:
    assert decode_words("=?utf-8?q?a=0D=0ABcc:_x=00=E2=80=A8y=C2=85?=") == "a Bcc: x y"
    assert decode_words("a\r\nBcc: x\x00\u2028y\x85") == "a Bcc: x y"


@pytest.mark.case(77)
@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("=?utf-7?Q?a_+2AA-_b?=", "a \ufffd b"),
        ("=?utf-7?Q?+2D0-?= =?utf-7?Q?+3gA-?=", "\ufffd\ufffd"),
        ("=?utf-16le?B?ANgA?= =?utf-16le?B?3g==?=", "\U00010200"),
        ("=?utf-16be?B?2AA=?=", "\ufffd"),
        ("=?utf-8?q?=ED=A0=80?=", "\ufffd\ufffd\ufffd"),
        ("\ud800 =?utf-8?q?a?=", "\ufffd a"),
        ("=?utf-8?q?\ud800?=", "=?utf-8?q?\ufffd?="),
    ],
)
def test_half_of_a_surrogate_pair_becomes_a_replacement_character(value: str, text: str) -> None:
    assert decode_words(value) == text


@pytest.mark.case(77)
@settings(max_examples=300, deadline=None)
@given(soups)
def test_any_value_becomes_a_text_of_one_line(value: str) -> None:
    text = decode_words(value)
    text.encode()
    assert len(text) <= len(value)
    assert len((text + ".").splitlines()) == 1
    assert text == text.strip()


@settings(max_examples=200, deadline=None)
@given(
    st.text(
        # The last are those for which Windows reads others in JIS.
        st.characters(blacklist_categories=["Cc", "Cs", "Zl", "Zp"], blacklist_characters="¢£¬‖−〜"),
        max_size=80,
    ).map(str.strip),
    st.sampled_from(["utf-8", "utf-16be", "iso-2022-jp", "gb18030"]),
)
def test_what_python_writes_is_read_back(text: str, charset: str) -> None:
    text = text.encode(charset, "ignore").decode(charset).strip()
    assert decode_words(Header(text, charset).encode()) == text


@pytest.mark.case(73)
@pytest.mark.parametrize(
    "unit",
    [
        "=?", "=?=", "?=", "=", "?", "=41", "=?a?q?", "=?a?b?", "=?a?q?x", "=?a?q?=?", "=?a?q?=?=?q?", "=?a?b?A?=",
        "=?a?b?日?=", "=?utf-8?q?a?= ", "=?utf-8?q?a?=", "=?utf-8?q?a?= =?utf-7?q?+2AA-?= ", "=?utf-7?q?=FF=FF?= ",
        "=? ", "?q?", "\x00", " ",
    ],
)  # fmt: skip
@pytest.mark.parametrize(("before", "after"), [("", ""), ("=?utf-8?q?", ""), ("=?utf-8?q?", "?="), ("=?a?b?", "?=")])
def test_a_value_is_read_in_one_pass(unit: str, before: str, after: str) -> None:
    assert_linear(lambda size: decode_words(before + unit * size + after), 50)
    assert len(decode_words(before + unit * 20_000 + after)) <= len(before + unit * 20_000 + after)
