"""What a label means: a charset of mail or nothing, read in time linear in the octets, to a text that is one."""

from __future__ import annotations

import codecs
import re
from collections.abc import Iterator

import pytest
from hypothesis import example, given, settings, strategies as st

from opensend_milter.core.charsets import _WAYS, decode, decode_pieces, without_surrogates
from tests.linear import lines_run

CHARSETS = [codec for way in _WAYS for codec in way.codecs.split()]
OF_UNICODE = [name for name in CHARSETS if name.startswith(("utf_7", "utf_16", "utf_32"))]
MANY = 1 << 18
NO_CHARSETS = [
    "punycode", "idna", "rot13", "rot_13", "unicode_escape", "unicode-escape", "raw_unicode_escape", "zip", "zlib",
    "bz2", "hex", "base64", "uu", "quopri", "quoted-printable", "mbcs", "ansi", "oem", "undefined", "charmap",
    "utf-8-sig", "aliases", "string_escape", "unicode_internal",
    "no-such", "", " ", "_", "\x00", "utf-8\x00", "\ud800", "=?x", "koi8-r'en", "é", "٨٨٥٩", "..",
    f"{'koi8':-<39}-r", "a" * 100_000,
]  # fmt: skip

pieces = st.sampled_from([
    b"\x1b", b"$B", b"$A", b"(J", b"$(D", b"$)C", b"\x0e", b"\x0f", b"~{", b"~}", b"+", b"-", b"2AA", b"/", b"\xff\xfe",
    b"\x00\xd8", b"\xd8\x00", b"\x00\xdc", b"\xed\xa0\x80", b"\x81\x30", b"\x84\x31", b"\xa4\x37", b"\x8f", b"\x8e",
    b"\x88\x62", b"\n", b"a", b"\x00",
])  # fmt: skip
hostile = st.lists(st.one_of(pieces, st.binary(max_size=8)), max_size=40).map(b"".join)


@pytest.mark.parametrize(
    ("label", "octets", "text"),
    [
        ("utf-8", "é日😀".encode(), "é日😀"),
        ("iso-8859-1", b"caf\xe9 \x93", "café \x93"),
        ("ISO_8859-1:1987", b"caf\xe9", "café"),
        ("windows-1252", b"\x80 \x93x\x94 \x81", "€ “x” \ufffd"),
        ("koi8-r", b"\xf0\xd2\xc9", "При"),
        ("ibm866", b"\x8f\xe0", "Пр"),
        ("macintosh", b"\x8e", "é"),
        ("csHPRoman8", b"\xc5", "é"),
        ("iso-2022-jp", b"\x1b$B;3ED\x1b(B.", "山田."),
        ("Shift_JIS", b"\x8eR\x93c", "山田"),
        ("gb2312", b"\xc4\xe3\xba\xc3", "你好"),
        ("GB18030", b"\x95\x32\x82\x36", "𠀀"),
        ("hz-gb-2312", b"~{VPND~} x", "中文 x"),
        ("big5", b"\xa7A\xa6n", "你好"),
        ("ks_c_5601-1987", b"\xbe\xc8", "안"),
        ("iso-2022-kr", b"\x1b$)C\x0e>H\x0f", "안"),
        ("utf-16", b"\xff\xfee\x00=\xd8\x00\xde", "e😀"),
        ("utf-16be", b"\x00e", "e"),
        ("utf-7", b"caf+AOk- 1+-1", "café 1+1"),
        ("utf-7", b"caf\xe9 +AOk-", "caf\ufffd é"),
    ],
)
def test_a_charset_of_mail_is_read(label: str, octets: bytes, text: str) -> None:
    assert decode(octets, label) == text


@pytest.mark.parametrize(
    "label",
    [
        "koi8-r", "KOI8-R", " koi8-r\t", "koi8_r", "koi8 r", "koi8--r", '"koi8-r"', "(koi8-r)", "koi8.r", "cskoi8r",
        f"{'koi8':-<38}-r", " " * 40 + "koi8-r",
    ],
)  # fmt: skip
def test_a_label_is_known_in_any_spelling(label: str) -> None:
    assert decode(b"\xf0\xd2\xc9", label) == "При"


@pytest.mark.parametrize("label", ["us-ascii", "ASCII", "ansi_x3.4-1968", "646"])
def test_ascii_that_is_more_is_utf_8(label: str) -> None:
    assert decode("Grüße \x7f".encode(), label) == "Grüße \x7f"


@pytest.mark.parametrize("label", NO_CHARSETS)
def test_what_is_no_charset_of_mail_is_read_as_utf_8(label: str) -> None:
    for octets in (b"\xef\xbb\xbfcaf\xc3\xa9 \xe9", b"\\u0041 =41 %41 xn--a", b"68656c6c6f", b"aGVsbG8=", b"a-cia"):
        assert decode(octets, label) == octets.decode("utf-8", "replace")


@pytest.mark.parametrize("charset", sorted(set(CHARSETS) - set(OF_UNICODE)))
def test_octets_mean_what_python_says_they_do(charset: str) -> None:
    every_pair = b"".join(bytes([one, other, 0x0A]) for one in range(256) for other in range(256))
    assert decode(every_pair, charset) == every_pair.decode(charset, "replace")


@pytest.mark.parametrize("charset", OF_UNICODE)
def test_a_text_with_a_few_faults_is_read_to_its_end(charset: str) -> None:
    texts = ["Grüße, 日本 😀\r\n" * 100] * 6
    octets = "\ud800".join(texts).encode(charset, "surrogatepass")
    assert decode(octets, charset) == "\ufffd".join(texts)


@pytest.mark.parametrize("charset", OF_UNICODE)
def test_what_is_full_of_faults_is_not_in_that_charset(charset: str) -> None:
    """Such as a page in UTF-8 that says UTF-7."""
    text = "aظ" * 100
    assert decode(text.encode(), charset) == text


@pytest.mark.case(77)
@pytest.mark.parametrize(
    ("label", "octets", "text"),
    [
        ("utf-7", b"a +2AA-_b", "a \ufffd_b"),
        ("utf-7", b"+2D0-+3gA-", "\ufffd\ufffd"),
        ("utf-7", b"+2D3eAA-", "\U0001f600"),
        ("utf-16le", b"a\x00\x00\xd8b\x00", "a\ufffdb"),
        ("utf-16be", b"\x00a\xdc\x00\x00b", "a\ufffdb"),
        ("utf-16", b"\xff\xfea\x00\x00\xd8", "a\ufffd"),
        ("utf-32le", b"\x00\xd8\x00\x00a\x00\x00\x00", "\ufffda"),
        ("utf-8", b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),
        ("utf-8", b"\xed\xa0\xbd\xed\xb8\x80", "\ufffd" * 6),
        ("us-ascii", b"\xed\xa0\x80", "\ufffd\ufffd\ufffd"),
    ],
)
def test_half_of_a_surrogate_pair_becomes_a_replacement_character(label: str, octets: bytes, text: str) -> None:
    assert decode(octets, label) == text


@pytest.mark.case(77)
@settings(max_examples=300, deadline=None)
@given(st.one_of(st.sampled_from([*CHARSETS, *NO_CHARSETS]), st.text(max_size=50)), hostile)
@example("big5hkscs", b"\x88\x62")
@example("utf-7", b"+2AA-" * 9)
def test_any_octets_under_any_label_are_a_text(label: str, octets: bytes) -> None:
    """One that can be written, and of no more letters than there were octets."""
    text = decode(octets, label)
    text.encode()
    assert len(text) <= len(octets)


@pytest.fixture
def asked() -> Iterator[list[str]]:
    """What Python was asked for as it came upon faults; what answers that by itself asks for nothing."""
    found: list[str] = []

    def replaced(fault: UnicodeError) -> tuple[str | bytes, int]:
        found.append(str(fault.args[0]))
        return codecs.replace_errors(fault)

    codecs.register_error("replace", replaced)
    yield found
    codecs.register_error("replace", codecs.replace_errors)


@pytest.mark.case(73)
@pytest.mark.parametrize("charset", CHARSETS)
def test_faults_by_the_thousand_are_not_asked_about_one_by_one(charset: str, asked: list[str]) -> None:
    """That takes ten times and more as long as to read as many letters, and no other thread runs meanwhile."""
    decode(b"", charset)  # its letters are looked up once
    asked.clear()
    for unit in (b"\xff", b"\x81", b"\x00\xd8", b"\x1b(", b"~{\xff", b"+A!", b"\x84\x31\xff", b"\xff" + b"\x00a" * 40):
        octets = (unit * MANY)[:MANY]
        texts: list[str] = []
        assert lines_run(lambda octets=octets, texts=texts: texts.append(decode(octets, charset))) < MANY // 50  # type: ignore[misc]
        assert len(texts[0]) <= MANY
        assert len(asked) == 0


@pytest.mark.parametrize("codec", CHARSETS)
@given(octets=hostile | st.text(max_size=60).map(lambda text: text.encode()), size=st.integers(1, 7))
@example(octets=b"\x1b" + b"(" * 20, size=7)
@settings(deadline=None, max_examples=20)
def test_what_comes_in_pieces_is_read_as_it_is_whole(codec: str, octets: bytes, size: int) -> None:
    pieces = [octets[at : at + size] for at in range(0, len(octets), size)]
    assert "".join(decode_pieces(pieces, codec)) == decode(octets, codec)


def test_halves_of_pairs_in_a_long_text_are_each_replaced() -> None:
    long = "\ud800" + "a" * 9_998 + "\udc00\ud800" + "é" * 9_999 + "\udfff"
    assert without_surrogates(long) == re.sub("[\ud800-\udfff]", "\ufffd", long)
    assert without_surrogates("a" * 25_000) == "a" * 25_000
