"""The charsets of mail: one table of labels and what reads each, in place of all that Python calls a codec."""

from __future__ import annotations

import re
from codecs import charmap_decode, getincrementaldecoder, register_error
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from encodings.aliases import aliases
from functools import cache, lru_cache
from itertools import chain, product
from threading import local

_LONGEST_LABEL = 40
_BETWEEN_WORDS = re.compile(r"[^A-Za-z0-9]+")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_STRAY = re.compile(r"[\udc80-\udcff]+")
"""Octets that are no UTF-8, as Python's surrogateescape writes them."""
_LETTERS_AT_ONCE = 10_000
_FREE_FAULTS = 4
_OCTETS_A_FAULT = 256
_FEW_FAULTS = "opensend-milter.few-faults"
_STRETCH_OCTETS = 1_048_576
_FREE_LETTERS = 256
"""That Python lacks, in each stretch; besides one in _OCTETS_A_FAULT."""
_LACKING = "opensend-milter.lacking"
_ALIKE_IN_BIG5 = ("•､‾∼♁☉¥¢£", "‧﹑¯～⊕⊙￥￠￡")  # noqa: RUF001
_ALIKE_IN_JIS = ("〜‖−¢£¬", "～∥－￠￡￢")  # noqa: RUF001
"""What Python reads, and what Windows and the Encoding Standard do."""


@dataclass(frozen=True, slots=True)
class _Way:
    """How octets are read, in time linear in them. What means nothing is U+FFFD, half of a surrogate pair too."""

    in_pieces: Callable[[str, Iterable[bytes]], Iterator[str]]
    codecs: str
    """Python's names."""
    whole: Callable[[str, bytes], str] | None = None
    """Where that is faster than in one piece."""


@dataclass(frozen=True, slots=True)
class _Charset:
    codec: str
    way: _Way


@dataclass(frozen=True, slots=True)
class _Extension:
    """What programs read where Python's codec does not."""

    letters: Mapping[bytes, str] = field(default_factory=dict)
    """That it lacks."""
    not_so: str = ""
    but_so: str = ""
    """Letters for those that it has."""
    errors: str = _LACKING
    """By which Python puts them in."""


class _Patience(local):
    """How many faults more are borne in what this thread is reading."""

    faults = 0


_patience = _Patience()


def decode(octets: bytes, label: str) -> str:
    """Read octets in the charset of that label; where it is no charset of mail, in UTF-8 or windows-1252.

    The text can be written as UTF-8, whatever the octets are.
    """
    charset = _charset(label)
    way = charset.way
    return way.whole(charset.codec, octets) if way.whole else "".join(way.in_pieces(charset.codec, (octets,)))


def decode_pieces(pieces: Iterable[bytes], label: str) -> Iterator[str]:
    """Read what comes piece by piece as it would be read whole."""
    charset = _charset(label)
    return charset.way.in_pieces(charset.codec, pieces)


def codec_of(label: str) -> str | None:
    """Return Python's name of a charset of mail; None where mail knows none of that name."""
    charset = _charset(label)
    return None if charset is _UNKNOWN else charset.codec


def without_surrogates(text: str) -> str:
    """Return a text that can be written as UTF-8."""
    if len(text) <= _LETTERS_AT_ONCE:
        return _SURROGATE.sub("\ufffd", text)
    # One expression holds the interpreter to its end.
    return "".join(map(without_surrogates, _cut(text)))


def _cut(text: str) -> Iterator[str]:
    return (text[at : at + _LETTERS_AT_ONCE] for at in range(0, len(text), _LETTERS_AT_ONCE))


def _charset(label: str) -> _Charset:
    label = label.strip()
    return _known(label) if len(label) <= _LONGEST_LABEL else _UNKNOWN


@lru_cache(maxsize=256)
def _known(label: str) -> _Charset:
    name = _normal(label)
    return _CHARSETS.get(name) or _CHARSETS.get(name.removeprefix("x_"), _UNKNOWN)


def _normal(label: str) -> str:
    """Spell a label as Python spells the names of its codecs."""
    return _BETWEEN_WORDS.sub("_", label).strip("_").lower()


def _read(codec: str, octets: bytes) -> str:
    return str(octets, codec, "replace")


def _read_pieces(codec: str, pieces: Iterable[bytes]) -> Iterator[str]:
    reader = getincrementaldecoder(codec)("replace")
    yield from map(reader.decode, pieces)
    yield reader.decode(b"", final=True)


def _read_together(codec: str, pieces: Iterable[bytes]) -> Iterator[str]:
    """Python's readers of pieces raise where a border parts an escape sequence of more than eight octets."""
    return _cut(_read(codec, b"".join(pieces)))


@cache
def _letters(codec: str) -> str:
    return _read(codec, bytes(range(256)))


def _look_up(codec: str, octets: bytes) -> str:
    """Read an octet a letter. Python has each asked about that means nothing, which takes fifty times as long."""
    return charmap_decode(octets, "strict", _letters(codec))[0]


def _look_up_pieces(codec: str, pieces: Iterable[bytes]) -> Iterator[str]:
    return (_look_up(codec, piece) for piece in pieces)


def _read_few_faults_together(codec: str, pieces: Iterable[bytes]) -> Iterator[str]:
    """Read what costs ten times as much at a fault; who sends many of them does not write that charset."""
    octets = b"".join(pieces)
    _patience.faults = _FREE_FAULTS + len(octets) // _OCTETS_A_FAULT
    try:
        text = str(octets, codec, _FEW_FAULTS)
    except UnicodeDecodeError:
        text = _read("utf_8", octets)
    return map(without_surrogates, _cut(text))


def _bear(fault: UnicodeError) -> tuple[str, int]:
    if not isinstance(fault, UnicodeDecodeError) or not _patience.faults:
        raise fault
    _patience.faults -= 1
    return "\ufffd", fault.end


register_error(_FEW_FAULTS, _bear)


def _read_utf_8_or_windows(codec: str, octets: bytes) -> str:
    try:
        return str(octets, codec)
    except UnicodeDecodeError:
        return "".join(_read_extended_pieces(codec, (octets,)))


def _read_extended_pieces(codec: str, pieces: Iterable[bytes]) -> Iterator[str]:
    return _extended(codec, _stretches(pieces))


def _read_extended_together(codec: str, pieces: Iterable[bytes]) -> Iterator[str]:
    return chain.from_iterable(map(_cut, _extended(codec, ((b"".join(pieces), True),))))


def _stretches(pieces: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Cut octets into stretches, the same whatever pieces they came in, and tell of each whether it is the last."""
    rest = b""
    for piece in pieces:
        octets = rest + piece
        whole = len(octets) // _STRETCH_OCTETS * _STRETCH_OCTETS
        for at in range(0, whole, _STRETCH_OCTETS):
            yield octets[at : at + _STRETCH_OCTETS], False
        rest = octets[whole:]
    yield rest, True


def _extended(codec: str, stretches: Iterable[tuple[bytes, bool]]) -> Iterator[str]:
    """Read a stretch once more where Python lacks letters of it: they cost ten times as much, so it may be only few.

    What has many is another charset; where it was taken for UTF-8, windows-1252.
    """
    extension = _extension(codec)
    reader = getincrementaldecoder(codec)("replace")
    for octets, is_last in stretches:
        before = reader.getstate()
        text = reader.decode(octets, is_last)
        lacking = text.count("\ufffd")
        if 0 < lacking <= _FREE_LETTERS + len(octets) // _OCTETS_A_FAULT:
            del text  # it may be large
            reader.setstate(before)
            reader.errors = extension.errors
            text = _STRAY.sub(_of_windows, reader.decode(octets, is_last))
            reader.errors = "replace"
        elif lacking and codec == "utf_8":
            reader.reset()
            text = _look_up("cp1252", before[0] + octets)
        for one, other in zip(extension.not_so, extension.but_so, strict=True):
            text = text.replace(one, other)
        yield text


def _lacking(fault: UnicodeError) -> tuple[str, int]:
    if not isinstance(fault, UnicodeDecodeError):
        raise fault
    letters = _extension(fault.encoding).letters
    pair = fault.object[fault.start : fault.start + 2]
    for octets in (pair, pair[:1]):
        if letter := letters.get(octets):
            return letter, fault.start + len(octets)
    return "\ufffd", fault.end


register_error(_LACKING, _lacking)


def _of_windows(stray: re.Match[str]) -> str:
    return _look_up("cp1252", stray[0].encode("utf_8", "surrogateescape"))


@cache
def _extension(codec: str) -> _Extension:
    match codec:
        case "gb18030":
            return _Extension({b"\x80": "€"}, "\ue5e5\ue7c7", "\u3000ḿ")
        case "big5hkscs":
            return _Extension({b"\xa3\xe1": "€"}, *_ALIKE_IN_BIG5)
        case "euc_jp":
            return _Extension(_of_windows_31j(0xA0), *_ALIKE_IN_JIS)
        case "iso2022_jp_ext":
            return _Extension(_of_windows_31j(0x20), *_ALIKE_IN_JIS)
        case _:
            # As surrogates first: nothing of ours runs for each.
            return _Extension(errors="surrogateescape")


def _of_windows_31j(before_first: int) -> Mapping[bytes, str]:
    """Return the letters of NEC's and IBM's that Windows has in rows of JIS which are empty in the standard."""
    places = product((13, 14, 89, 90, 91, 92), range(1, 95))
    codes = product((0x87, 0xED, 0xEE), (*range(0x40, 0x7F), *range(0x80, 0xFD)))
    read = {
        bytes([before_first + row, before_first + cell]): _read("cp932", bytes(code))
        for (row, cell), code in zip(places, codes, strict=True)
    }
    return {octets: letter for octets, letter in read.items() if len(letter) == 1}


_UTF_8_OR_WINDOWS = _Way(_read_extended_pieces, "", whole=_read_utf_8_or_windows)
_UNKNOWN = _Charset("utf_8", _UTF_8_OR_WINDOWS)
_WAYS = (
    _Way(
        _read_pieces,
        "utf_8 cp932 shift_jis_2004 shift_jisx0213 euc_jis_2004 euc_jisx0213 hz cp950 cp949 johab",
        whole=_read,
    ),
    _Way(_read_together, "iso2022_jp_2 iso2022_jp_2004 iso2022_jp_3 iso2022_kr", whole=_read),
    _Way(_read_extended_pieces, "gb18030 big5hkscs euc_jp"),
    _Way(_read_extended_together, "iso2022_jp_ext"),
    _Way(
        _look_up_pieces,
        """
        iso8859_2 iso8859_3 iso8859_4 iso8859_5 iso8859_6 iso8859_7 iso8859_8 iso8859_10
        iso8859_13 iso8859_14 iso8859_15 iso8859_16 koi8_r koi8_t koi8_u kz1048 ptcp154 hp_roman8 palmos
        cp1250 cp1251 cp1252 cp1253 cp1254 cp1255 cp1256 cp1257 cp1258 cp874 cp1006
        cp437 cp720 cp737 cp775 cp850 cp852 cp855 cp856 cp857 cp858 cp860 cp861 cp862 cp863 cp864 cp865 cp866 cp869
        cp1125 cp037 cp273 cp424 cp500 cp875 cp1026 cp1140 mac_arabic mac_croatian mac_cyrillic mac_farsi mac_greek
        mac_iceland mac_latin2 mac_roman mac_romanian mac_turkish
        """,
        whole=_look_up,
    ),
    _Way(_read_few_faults_together, "utf_7 utf_16 utf_16_be utf_16_le utf_32 utf_32_be utf_32_le"),
)
_CHARSETS = {codec: _Charset(codec, way) for way in _WAYS for codec in way.codecs.split()}
# Whoever names the one has long meant the other, which has more letters (the Encoding Standard of WHATWG, 4.2).
_CHARSETS |= {
    narrow: _CHARSETS[wide]
    for narrow, wide in {
        "latin_1": "cp1252",
        "iso8859_9": "cp1254",
        "iso8859_11": "cp874",
        "tis_620": "cp874",
        "shift_jis": "cp932",
        "iso2022_jp": "iso2022_jp_ext",
        "iso2022_jp_1": "iso2022_jp_ext",
        "gb2312": "gb18030",
        "gbk": "gb18030",
        "big5": "big5hkscs",
        "euc_kr": "cp949",
    }.items()
}
_CHARSETS["ascii"] = _Charset("utf_8", _UTF_8_OR_WINDOWS)  # most who send more than ASCII under its name mean UTF-8
_CHARSETS |= {_normal(alias): _CHARSETS[codec] for alias, codec in aliases.items() if codec in _CHARSETS}
_CHARSETS |= {
    label: _CHARSETS[codec]
    for codec, labels in {
        "utf_8": "unicode_1_1_utf_8 unicode11utf8 unicode20utf8",
        "utf_16": "unicode csunicode unicodefeff ucs_2 iso_10646_ucs_2",
        "utf_16_be": "unicodefffe",
        "cp1252": "iso88591",
        "cp1254": "iso88599",
        "cp874": "windows_874 dos_874 iso885911",
        "iso8859_2": "iso88592",
        "iso8859_3": "iso88593",
        "iso8859_4": "iso88594",
        "iso8859_5": "iso88595",
        "iso8859_6": "iso88596 iso_8859_6_e iso_8859_6_i csiso88596e csiso88596i",
        "iso8859_7": "iso88597 sun_eu_greek",
        "iso8859_8": "iso88598 iso_8859_8_e iso_8859_8_i csiso88598e csiso88598i visual logical",
        "iso8859_10": "iso885910",
        "iso8859_13": "iso885913",
        "iso8859_14": "iso885914",
        "iso8859_15": "iso885915 csisolatin9",
        "koi8_r": "koi koi8",
        "koi8_u": "koi8_ru",
        "mac_roman": "mac csmacintosh",
        "mac_cyrillic": "mac_ukrainian",
        "mac_latin2": "mac_ce",
        "cp932": "windows_31j windows_932",
        "euc_jp": "cseucpkdfmtjapanese cp51932 eucjp_ms",
        "iso2022_jp_ext": "cp50220 cp50221 iso_2022_jp_ms",
        "gb18030": "csgb2312 gb_2312 gb_2312_80 windows_936",
        "big5hkscs": "cn_big5 x_x_big5",
        "cp949": "cseuckr csksc56011987 iso_ir_149 ks_c_5601_1989 ksc_5601 windows_949",
    }.items()
    for label in labels.split()
}
