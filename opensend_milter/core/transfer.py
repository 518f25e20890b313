"""Transfer encodings, undone and written piece by piece: a large part is never held as a whole."""

from __future__ import annotations

import binascii
import mmap
import re
from base64 import encodebytes
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Self

Buffer = bytes | mmap.mmap
"""Bytes of a message: in memory, or mapped from the spool when it is large."""
PIECE_BYTES = 1_048_576
LINE_LETTERS = 76
_LETTERS = rb"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
_NOT_LETTERS = bytes(octet for octet in range(256) if octet not in _LETTERS)
_LAST_LINE = re.compile(rb"[A-Za-z0-9+/]{2,76}={0,2}")
# Lines are compared many at a time, each letter made an A: half of what a pattern takes.
_ANY_LETTER = bytes.maketrans(_LETTERS, b"A" * len(_LETTERS))
_LINES = (b"A" * LINE_LETTERS + b"\r\n") * 840
_LONGEST_LINE = 65_536
"""Of quoted-printable, that is waited for as a whole."""
_LAST_OCTETS = 64
"""How far line ends behind the last line are looked for."""
_OCTETS_A_LINE = LINE_LETTERS // 4 * 3


def slices(raw: Buffer, start: int, end: int) -> Iterator[bytes]:
    """Yield copies of a stretch of a message piece by piece."""
    return map(bytes, views(raw, start, end))


def views(raw: Buffer, start: int, end: int) -> Iterator[memoryview]:
    """Yield a stretch of a message piece by piece; what was read of a mapped one does not stay in memory."""
    whole = memoryview(raw)
    for at in range(start, end, PIECE_BYTES):
        yield whole[at : min(at + PIECE_BYTES, end)]
        if isinstance(raw, mmap.mmap):
            raw.madvise(mmap.MADV_DONTNEED)


def decoded(raw: Buffer, start: int, end: int, encoding: str) -> Iterator[bytes]:
    """Undo a transfer encoding, dropping what does not belong into it, as mail clients do."""
    pieces = slices(raw, start, end)
    match encoding:
        case "base64":
            return _from_base64(pieces)
        case "quoted-printable":
            return _from_quoted_printable(pieces)
        case _:
            return pieces


def _from_base64(pieces: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        letters = rest + piece.translate(None, _NOT_LETTERS)
        whole = len(letters) // 4 * 4
        yield binascii.a2b_base64(letters[:whole])
        rest = letters[whole:]
    if len(rest) > 1:
        yield binascii.a2b_base64(rest + b"=" * (4 - len(rest)))


def _from_quoted_printable(pieces: Iterable[bytes]) -> Iterator[bytes]:
    rest = b""
    for piece in pieces:
        octets = rest + piece
        cut = octets.rfind(b"\n") + 1
        if not cut and len(octets) > _LONGEST_LINE:
            cut = _within_line(octets)
        yield binascii.a2b_qp(octets[:cut])
        rest = octets[cut:]
    yield binascii.a2b_qp(rest)


def _within_line(octets: bytes) -> int:
    """Tell where a line without end may be cut: not within an escaped octet."""
    escape = octets.rfind(b"=", -2)
    return len(octets) if escape < 0 else escape


@dataclass(frozen=True, slots=True)
class Base64:
    """Content of a part as OpenSend's row carries it: base64 in lines of 76, ended by CRLF."""

    raw: Buffer
    start: int
    end: int
    encoding: str
    as_sent: bool
    """The message has it like this already: it is taken over octet by octet."""

    @classmethod
    def of(cls, raw: Buffer, start: int, end: int, encoding: str) -> Self:
        """Look at a part; what is not wrapped base64 yet is decoded and written anew."""
        if encoding == "base64":
            last = raw[max(end - _LAST_OCTETS, start) : end]
            stop = end - len(last) + len(last.rstrip(b"\r\n"))
            if _is_wrapped(raw, start, stop):
                return cls(raw, start, stop, encoding, as_sent=True)
        return cls(raw, start, end, encoding, as_sent=False)

    @property
    def letters(self) -> int:
        """Length without line ends."""
        if self.as_sent:
            octets = self.end - self.start
            return octets - 2 * _full_lines(octets)
        return (sum(map(len, self._decoded())) + 2) // 3 * 4

    def pieces(self) -> Iterator[bytes]:
        """Yield it piece by piece."""
        return map(bytes, self.views())

    def views(self) -> Iterator[bytes | memoryview]:
        """Yield it piece by piece, without a copy of what is as it was sent."""
        if self.as_sent:
            yield from views(self.raw, self.start, self.end)
            yield b"\r\n"
            return
        rest = b""
        for piece in self._decoded():
            octets = rest + piece
            whole = len(octets) // _OCTETS_A_LINE * _OCTETS_A_LINE
            yield _written(octets[:whole])
            rest = octets[whole:]
        yield _written(rest)

    def _decoded(self) -> Iterator[bytes]:
        return decoded(self.raw, self.start, self.end, self.encoding)


def _written(octets: bytes) -> bytes:
    return encodebytes(octets).replace(b"\n", b"\r\n")


def _is_wrapped(raw: Buffer, start: int, stop: int) -> bool:
    """Tell whether it is lines of 76 letters and a last one, and nothing else."""
    last = stop - _last_line(stop - start)
    return (
        stop > start
        and (stop - last) % 4 == 0
        and _LAST_LINE.fullmatch(raw, last, stop) is not None
        and all(
            raw[at : min(at + len(_LINES), last)].translate(_ANY_LETTER) == _LINES[: last - at]
            for at in range(start, last, len(_LINES))
        )
    )


def _full_lines(octets: int) -> int:
    return (octets - 1) // (LINE_LETTERS + 2)


def _last_line(octets: int) -> int:
    """Length of the last line, its padding included; padding beyond 76 never fills a group of four."""
    return octets - _full_lines(octets) * (LINE_LETTERS + 2)
