"""Encoded words in header fields (RFC 2047; RFC 2231, 5 for the language), read in one pass."""

from __future__ import annotations

import re
from binascii import a2b_base64, unhexlify
from collections.abc import Iterator
from dataclasses import dataclass

from opensend_milter.core.charsets import decode, without_surrogates

_BEGIN = re.compile(r"=\?([^?]*)\?([BbQq])\?")
_ESCAPED = re.compile(rb"=([0-9A-Fa-f]{2})")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")


@dataclass(frozen=True, slots=True)
class _Word:
    start: int
    end: int
    charset: str
    octets: bytes


def decode_words(value: str) -> str:
    """Decode encoded words; what cannot be decoded stays as it is. No control character and no surrogate survives."""
    if value.isascii() and value.isprintable() and "=?" not in value:
        return value.strip()
    return without_surrogates(_CONTROL.sub(" ", undone(value))).strip()


def undone(value: str) -> str:
    """Decode encoded words and leave whatever they say, line ends too."""
    return "".join(_texts(value)) if "=?" in value else value


def _texts(value: str) -> Iterator[str]:
    """Yield what stands between words, and what neighbours of one charset say: a letter's octets may be in both."""
    charset = ""
    octets: list[bytes] = []
    done = 0
    for word in _words(value):
        between = value[done : word.start]
        if between.isspace():
            between = ""
        if between or word.charset != charset:
            yield decode(b"".join(octets), charset)
            yield between
            charset = word.charset
            octets = []
        octets.append(word.octets)
        done = word.end
    yield decode(b"".join(octets), charset)
    yield value[done:]


def _words(value: str) -> Iterator[_Word]:
    at = 0
    while begin := _BEGIN.search(value, at):
        at = begin.end()
        # Some write blanks and question marks in a word, but none goes on where the next begins.
        following = _BEGIN.search(value, at)
        end = value.find("?=", at, following.start() + len("=?=") if following else len(value))
        if end < 0:
            continue
        charset = begin[1].partition("*")[0].lower()
        try:
            octets = _octets(value[at:end], begin[2], charset)
        except ValueError:
            continue
        at = end + len("?=")
        yield _Word(begin.start(), at, charset, octets)


def _octets(text: str, encoding: str, charset: str) -> bytes:
    if encoding in "Bb":
        return a2b_base64(text.encode("ascii") + b"===")  # padding is often wrong; what is too much is passed over
    # Letters beyond ASCII should not be in it. A field that holds some was read as UTF-8, or else as windows-1252.
    octets = text.encode("utf-8" if charset in {"utf-8", "utf8"} else "cp1252")
    return _ESCAPED.sub(lambda escaped: unhexlify(escaped[1]), octets.replace(b"_", b" "))
