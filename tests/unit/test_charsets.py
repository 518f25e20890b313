"""What a label means: a charset of mail or nothing, read in time linear in the octets, to a text that is one."""

from __future__ import annotations

import codecs
import re
from base64 import b64encode
from collections.abc import Iterator, Mapping

import pytest
from hypothesis import example, given, settings, strategies as st
from webencodings import LABELS, lookup

from opensend_milter.core import charsets
from opensend_milter.core.charsets import _WAYS, codec_of, decode, decode_pieces, without_surrogates
from opensend_milter.core.message import read
from opensend_milter.core.model import Limits, Reading
from tests.linear import lines_run

CHARSETS = [codec for way in _WAYS for codec in way.codecs.split()]
EXTENDED = ["gb18030", "big5hkscs", "euc_jp", "iso2022_jp_ext"]
"""Of these we read letters that Python lacks."""
OF_UNICODE = [name for name in CHARSETS if name.startswith(("utf_7", "utf_16", "utf_32"))]
MANY = 1 << 18
NO_CHARSETS = [
    "punycode", "idna", "rot13", "rot_13", "unicode_escape", "unicode-escape", "raw_unicode_escape", "zip", "zlib",
    "bz2", "hex", "base64", "uu", "quopri", "quoted-printable", "mbcs", "ansi", "oem", "undefined", "charmap",
    "utf-8-sig", "aliases", "string_escape", "unicode_internal",
    "no-such", "", " ", "_", "\x00", "\ud800", "=?x", "koi8-r'en", "é", "٨٨٥٩", "..",
    f"{'koi8':-<39}-r", "a" * 100_000,
]  # fmt: skip

WORDS: Mapping[str, tuple[str, str | bytes]] = {
    "utf-8": ("日本 😀", "utf-8"),
    "utf-16le": ("日本 😀", "utf-16-le"),
    "utf-16be": ("日本 😀", "utf-16-be"),
    "ibm866": ("Привет ▒", "cp866"),
    "iso-8859-2": ("Příliš", "iso8859-2"),
    "iso-8859-3": ("ĝħĉ", "iso8859-3"),
    "iso-8859-4": ("ĸŧņ", "iso8859-4"),
    "iso-8859-5": ("№ Ђ", "iso8859-5"),
    "iso-8859-6": ("سلام", "iso8859-6"),
    "iso-8859-7": ("€ ώρα", "iso8859-7"),
    "iso-8859-8": ("שלום ×", "iso8859-8"),
    "iso-8859-8-i": ("שלום ×", "iso8859-8"),
    "iso-8859-10": ("Đŋ―", "iso8859-10"),
    "iso-8859-13": ("“ąčę„", "iso8859-13"),
    "iso-8859-14": ("Ŵẃŷ", "iso8859-14"),
    "iso-8859-15": ("€ Œuvre", "iso8859-15"),
    "iso-8859-16": ("€ ș ț", "iso8859-16"),
    "koi8-r": ("Ёж ╬", "koi8-r"),
    "koi8-u": ("Її ґ", "koi8-u"),
    "macintosh": ("€ ﬁ ∑", "mac-roman"),
    "x-mac-cyrillic": ("Ґґ €", "mac-cyrillic"),
    "windows-874": ("“ไทย” €…", "cp874"),
    "windows-1250": ("„Žluť” €", "cp1250"),
    "windows-1251": ("„Ґ“ € №", "cp1251"),
    "windows-1252": ("“Œuvre” €…", "cp1252"),
    "windows-1253": ("„ώρα“ €", "cp1253"),
    "windows-1254": ("“ığş” €…", "cp1254"),
    "windows-1255": ("₪ “שָׁ”", "cp1255"),
    "windows-1256": ("€ پچژ", "cp1256"),
    "windows-1257": ("„ąčę“ €", "cp1257"),
    "windows-1258": ("“ơư” ₫", "cp1258"),
    "gbk": ("€ 喆镕 グ", b"\x80 \x86\xb4\xe9F \xa5\xb0"),
    "gb18030": ("€ 𠀀 ḿ", b"\x80 \x952\x826 \xa8\xbc"),
    "big5": ("€ 嘢碁 ～⊕", b"\xa3\xe1 \x9d\xcf\xf9\xd6 \xa1\xe3\xa1\xf2"),
    "euc-jp": (
        "№㈱① 髙﨑 ｶﾅ ～ 丂",
        b"\xad\xe2\xad\xea\xad\xa1 \xfc\xe2\xf9\xf5 \x8e\xb6\x8e\xc5 \xa1\xc1 \x8f\xb0\xa1",
    ),
    "iso-2022-jp": ("№㈱① 髙﨑 ｶﾅ ～", b"\x1b$B-b-j-!\x1b(B \x1b$B|byu\x1b(B \x1b(I6E\x1b(B \x1b$@!A\x1b(B"),
    "shift_jis": ("№㈱① 髙﨑 ｶﾅ ～", "cp932"),
    "euc-kr": ("뷁 똠방각하", "cp949"),
}
"""By names of the Encoding Standard: what only it can spell, letters among it that Windows and others have added."""
OTHERWISE = {
    "gbk": "gb18030 holds it, and four octets a letter: the standard reads it so, too",
    "iso-2022-jp": "with letters that the standard reads, and JIS X 0212, which old mail has",
    "us-ascii": "what is UTF-8 is read as that; the rest is windows-1252",
    "ascii": "the same",
    "ansi_x3.4-1968": "the same",
    "csunicode": "a mark may say which octet comes first",
    "iso-10646-ucs-2": "the same",
    "ucs-2": "the same",
    "unicode": "the same",
    "unicodefeff": "the same",
    "utf-16": "the same",
    "hz-gb-2312": "the web shows nothing of it, lest a page be read in two ways; mail that says so means it",
    "iso-2022-kr": "the same",
    "csiso2022kr": "the same",
    "iso-2022-cn": "nobody reads it here: its ASCII is shown",
    "iso-2022-cn-ext": "the same",
    "replacement": "no charset",
    "x-user-defined": "a way for programs in pages to get at octets",
}
"""Labels, and names of the Encoding Standard, that mean another codec here than to webencodings, and why."""

FAULTS = [
    b"\xff", b"\x81", b"\x00\xd8", b"\x1b(", b"~{\xff", b"+A!", b"\x84\x31\xff", b"\xff" + b"\x00a" * 40,
]  # fmt: skip
RARE = [letter.ljust(253) for letter in (b"\xff", b"\x80", b"\xad\xa1", b"\x1b$B-!\x1b(B")]
"""Letters that Python lacks, about as close as they may be."""

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
        ("iso-8859-1", b"caf\xe9 \x93 \x81", "café “ \ufffd"),
        ("ISO_8859-1:1987", b"caf\xe9", "café"),
        ("windows-1252", b"\x80 \x93x\x94 \x81", "€ “x” \ufffd"),
        ("koi8-r", b"\xf0\xd2\xc9", "При"),
        ("ibm866", b"\x8f\xe0", "Пр"),
        ("macintosh", b"\x8e", "é"),
        ("csHPRoman8", b"\xc5", "é"),
        ("iso-2022-jp", b"\x1b$B;3ED\x1b(B.", "山田."),
        ("Shift_JIS", b"\x8eR\x93c", "山田"),
        ("gb2312", b"\xc4\xe3\xba\xc3 10 \x80", "你好 10 €"),
        ("x-gbk", b"\x800 \x80", "€0 €"),
        ("cp936", b"\xff \x80\xff", "\ufffd €\ufffd"),
        ("GB18030", b"\x95\x32\x82\x36", "𠀀"),
        ("hz-gb-2312", b"~{VPND~} x", "中文 x"),
        ("big5", b"\xa7A\xa6n", "你好"),
        ("ks_c_5601-1987", b"\xbe\xc8", "안"),
        ("x-windows-949", b"\x94\xee", "뷁"),
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


def shown(label: str, octets: bytes) -> tuple[str, str]:
    """Return subject and text of a message in that charset."""
    content = b64encode(octets)
    found = read(
        b"From: a@example.org\r\nSubject: =?%(label)b?B?%(content)b?=\r\nContent-Transfer-Encoding: base64\r\n"
        b'Content-Type: text/plain; charset="%(label)b"\r\n\r\n%(content)b\r\n'
        % {b"label": label.encode(), b"content": content},
        Limits(),
    )
    assert isinstance(found, Reading)
    return found.subject, found.text


@pytest.mark.parametrize("name", sorted(set(LABELS.values()) - {"replacement", "x-user-defined"}))
def test_a_word_of_each_charset_is_read_in_a_body_and_in_a_header_field(name: str) -> None:
    text, written = WORDS[name]
    octets = text.encode(written) if isinstance(written, str) else written
    for label in (label for label, meant in LABELS.items() if meant == name):
        assert shown(label, octets) == (text, text), label


def test_a_label_means_what_it_means_on_the_web() -> None:
    """A new label of the standard's, or a new reading of one, is seen with a new webencodings."""
    otherwise = {label for label in LABELS if codecs.lookup(codec_of(label) or "undefined").name != on_the_web(label)}
    assert {label for label, name in LABELS.items() if OTHERWISE.keys() & {label, name}} == otherwise
    assert OTHERWISE.keys() <= {*LABELS, *LABELS.values()}


def on_the_web(label: str) -> str:
    """Return the name of the codec that webencodings has for it."""
    return str(lookup(label).codec_info.name)


@pytest.mark.parametrize("label", ["us-ascii", "ASCII", "ansi_x3.4-1968", "646", "", "unknown-8bit", "no-such"])
@pytest.mark.parametrize(
    ("octets", "text"),
    [
        ("Grüße \x7f".encode(), "Grüße \x7f"),
        ("Grüße".encode("latin-1"), "Grüße"),
        (b"\x93caf\xe9\x94 \x80 \x81", "“café” € \ufffd"),
        ("café ".encode() + b"caf\xe9", "café café"),
        ("Grüß".encode()[:-1] + b" und " + "Grüße".encode(), "GrüÃ und Grüße"),
        (b"\xe9 " * 10_000, "é " * 10_000),
        (b"\xe2\x80", "â€"),
        (b"\xed\xa0\x80", "í\xa0€"),
    ],
)
def test_without_a_charset_it_is_utf_8_or_else_windows_1252(label: str, octets: bytes, text: str) -> None:
    assert decode(octets, label) == text


@pytest.mark.parametrize("label", NO_CHARSETS)
def test_what_is_no_charset_of_mail_is_read_as_if_it_had_none(label: str) -> None:
    assert codec_of(label) is None
    for octets in (b"\xef\xbb\xbfcaf\xc3\xa9 \xe9", b"\\u0041 =41 %41 xn--a", b"68656c6c6f", b"aGVsbG8=", b"a-cia"):
        assert decode(octets, label) == decode(octets, "")


@pytest.mark.parametrize("charset", sorted({*CHARSETS} - {*OF_UNICODE, *EXTENDED}))
def test_octets_mean_what_python_says_they_do(charset: str) -> None:
    every_pair = b"".join(bytes([one, other, 0x0A]) for one in range(256) for other in range(256))
    assert decode(every_pair, charset) == every_pair.decode(charset, "replace")


@pytest.mark.parametrize("charset", EXTENDED)
def test_octets_mean_what_python_says_they_do_and_some_that_it_lacks(charset: str) -> None:
    """Some symbols are those that Windows shows: they look alike, and only few of them."""
    by_python, others = 0, 0
    before = b"\x1b$B" if charset.startswith("iso2022") else b""
    for one in range(0x21, 0xFF):
        for other in range(0x21, 0xFF):
            octets = before + bytes([one, other])
            expected, found = octets.decode(charset, "replace"), decode(octets, charset)
            if "\ufffd" not in expected:
                by_python += 1
                others += found != expected
    assert by_python > 6_000
    assert others < 20


@pytest.mark.parametrize("row", range(1, 95))
def test_jis_is_the_same_in_each_of_its_encodings(row: int) -> None:
    """What Windows has where the standard has nothing, too."""
    for cell in range(1, 95):
        lead = (row + 1) // 2 + (0x80 if row <= 62 else 0xC0)
        trail = cell + (0x9E if row % 2 == 0 else 0x3F if cell < 64 else 0x40)
        text = bytes([lead, trail]).decode("cp932", "replace")
        if len(text) == 1 and text != "\ufffd":
            assert decode(bytes([lead, trail]), "shift_jis") == text
            assert decode(bytes([0xA0 + row, 0xA0 + cell]), "euc-jp") == text
            assert decode(b"\x1b$B%c%c" % (0x20 + row, 0x20 + cell), "iso-2022-jp") == text


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
@pytest.mark.parametrize("charset", ["", *CHARSETS])
def test_faults_by_the_thousand_are_not_asked_about_one_by_one(charset: str, asked: list[str]) -> None:
    """That takes ten times and more as long as to read as many letters, and no other thread runs meanwhile."""
    decode(b"", charset)  # its letters are looked up once
    asked.clear()
    for unit in [*FAULTS, *RARE] if charset in {"", *EXTENDED} else FAULTS:
        octets = (unit * (MANY // len(unit) + 1))[:MANY]
        texts: list[str] = []
        assert lines_run(lambda octets=octets, texts=texts: texts.append(decode(octets, charset))) < MANY // 20  # type: ignore[misc]
        assert len(texts[0]) <= MANY
        assert len(asked) == 0


@given(octets=hostile | st.text(max_size=60).map(lambda text: text.encode()), size=st.integers(1, 7))
@example(octets=b"\x1b" + b"(" * 20, size=7)
@settings(deadline=None, max_examples=100)
def test_what_comes_in_pieces_is_read_as_it_is_whole(octets: bytes, size: int) -> None:
    """In each charset: octets take longer to be made up than to be read in all of them."""
    pieces = [octets[at : at + size] for at in range(0, len(octets), size)]
    for codec in ("", *CHARSETS):
        assert "".join(decode_pieces(pieces, codec)) == decode(octets, codec), codec


@pytest.mark.parametrize("size", range(1, 9))
def test_a_border_between_stretches_parts_no_letter(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charsets, "_STRETCH_OCTETS", size)
    for name in ("gb18030", "big5", "euc-jp"):
        text, octets = WORDS[name]
        assert isinstance(octets, bytes)
        assert decode(octets * 9, name) == text * 9
    assert decode("Grüße, 日本 😀 ".encode() + b"caf\xe9 \x80", "") == "Grüße, 日本 😀 café €"


@pytest.mark.parametrize("size", range(1, 9))
def test_a_stretch_that_has_many_faults_is_windows_1252(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(charsets, "_STRETCH_OCTETS", size)
    monkeypatch.setattr(charsets, "_FREE_LETTERS", 0)
    text = "“Grüße aus Köln, à bientôt à Besançon” é"
    assert decode(text.encode("cp1252"), "") == text


def test_more_letters_than_a_stretch_may_have_are_left_as_python_reads_them() -> None:
    assert decode(b"\x80 " * 250, "gbk") == "€ " * 250
    assert decode(b"\x80 " * 500, "gbk") == "\ufffd " * 500
    few, many = b"\x80".ljust(charsets._STRETCH_OCTETS), b"\x80" * charsets._STRETCH_OCTETS
    assert [text[:1] for text in decode_pieces([few, many, few], "gbk")] == ["€", "\ufffd", "€", ""]


def test_halves_of_pairs_in_a_long_text_are_each_replaced() -> None:
    long = "\ud800" + "a" * 9_998 + "\udc00\ud800" + "é" * 9_999 + "\udfff"
    assert without_surrogates(long) == re.sub("[\ud800-\udfff]", "\ufffd", long)
    assert without_surrogates("a" * 25_000) == "a" * 25_000
