"""The charsets of mail: one table of labels and what reads each, in place of all that Python calls a codec."""

from __future__ import annotations

import re
from codecs import charmap_decode, getincrementaldecoder, register_error
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from encodings.aliases import aliases
from functools import cache, lru_cache
from threading import local

_LONGEST_LABEL = 40
_BETWEEN_WORDS = re.compile(r"[^A-Za-z0-9]+")
_SURROGATE = re.compile(r"[\ud800-\udfff]")
_LETTERS_AT_ONCE = 10_000
_FREE_FAULTS = 4
_OCTETS_A_FAULT = 256
_FEW_FAULTS = "opensend-milter.few-faults"


@dataclass(frozen=True, slots=True)
class _Way:
    """How octets are read, in time linear in them. What means nothing is U+FFFD, half of a surrogate pair too."""

    whole: Callable[[str, bytes], str]
    in_pieces: Callable[[str, Iterable[bytes]], Iterator[str]]
    codecs: str
    """Python's names."""


@dataclass(frozen=True, slots=True)
class _Charset:
    codec: str
    way: _Way


class _Patience(local):
    """How many faults more are borne in what this thread is reading."""

    faults = 0


_patience = _Patience()


def decode(octets: bytes, label: str) -> str:
    """Read octets in the charset of that label, or in UTF-8 where it is no charset of mail.

    The text can be written as UTF-8, whatever the octets are.
    """
    charset = _charset(label)
    return charset.way.whole(charset.codec, octets)


def decode_pieces(pieces: Iterable[bytes], label: str) -> Iterator[str]:
    """Read what comes piece by piece as it would be read whole."""
    charset = _charset(label)
    return charset.way.in_pieces(charset.codec, pieces)


def _charset(label: str) -> _Charset:
    label = label.strip()
    return _known(label) if len(label) <= _LONGEST_LABEL else _CHARSETS["utf_8"]


@lru_cache(maxsize=256)
def _known(label: str) -> _Charset:
    return _CHARSETS.get(_normal(label)) or _CHARSETS["utf_8"]


def codec_of(label: str) -> str | None:
    """Return Python's name of a charset of mail; None where mail knows none of that name."""
    found = _CHARSETS.get(_normal(label)) if len(label) <= _LONGEST_LABEL else None
    return found.codec if found else None


def without_surrogates(text: str) -> str:
    """Return a text that can be written as UTF-8."""
    if len(text) <= _LETTERS_AT_ONCE:
        return _SURROGATE.sub("\ufffd", text)
    # One expression holds the interpreter to its end.
    return "".join(map(without_surrogates, _cut(text)))


def _cut(text: str) -> Iterator[str]:
    return (text[at : at + _LETTERS_AT_ONCE] for at in range(0, len(text), _LETTERS_AT_ONCE))


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


def _read_while_faults_are_few(codec: str, octets: bytes) -> str:
    return "".join(_read_few_faults_together(codec, (octets,)))


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

_WAYS = (
    _Way(
        _read,
        _read_pieces,
        """
        utf_8 latin_1 shift_jis shift_jis_2004 shift_jisx0213 cp932 euc_jp euc_jis_2004 euc_jisx0213
        gb2312 gbk gb18030 hz big5 big5hkscs cp950 euc_kr cp949 johab
        """,
    ),
    _Way(
        _read,
        _read_together,
        "iso2022_jp iso2022_jp_1 iso2022_jp_2 iso2022_jp_2004 iso2022_jp_3 iso2022_jp_ext iso2022_kr",
    ),
    _Way(
        _look_up,
        _look_up_pieces,
        """
        iso8859_2 iso8859_3 iso8859_4 iso8859_5 iso8859_6 iso8859_7 iso8859_8 iso8859_9 iso8859_10 iso8859_11
        iso8859_13 iso8859_14 iso8859_15 iso8859_16 tis_620 koi8_r koi8_t koi8_u kz1048 ptcp154 hp_roman8 palmos
        cp1250 cp1251 cp1252 cp1253 cp1254 cp1255 cp1256 cp1257 cp1258 cp874 cp1006
        cp437 cp720 cp737 cp775 cp850 cp852 cp855 cp856 cp857 cp858 cp860 cp861 cp862 cp863 cp864 cp865 cp866 cp869
        cp1125 cp037 cp273 cp424 cp500 cp875 cp1026 cp1140 mac_arabic mac_croatian mac_cyrillic mac_farsi mac_greek
        mac_iceland mac_latin2 mac_roman mac_romanian mac_turkish
        """,
    ),
    _Way(
        _read_while_faults_are_few,
        _read_few_faults_together,
        "utf_7 utf_16 utf_16_be utf_16_le utf_32 utf_32_be utf_32_le",
    ),
)
_CHARSETS = {codec: _Charset(codec, way) for way in _WAYS for codec in way.codecs.split()}
_CHARSETS["ascii"] = _CHARSETS["utf_8"]  # whoever sends more than ASCII under its name most often means UTF-8
_CHARSETS |= {_normal(alias): _CHARSETS[codec] for alias, codec in aliases.items() if codec in _CHARSETS}
