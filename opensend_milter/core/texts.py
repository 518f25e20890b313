"""The texts of a message: put together piece by piece, with mail's line ends, and no larger than they may be."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from sys import getsizeof

_MOST_LETTERS = {2: ("a letter beyond Latin-1", 20_000_000), 4: ("an emoji or the like", 10_000_000)}
"""Where each takes so many octets of memory, because of what is among them."""
_SHORT = 1_000
_SIGNATURE = "-- "
_LATIN_1_ENDS = "\xff"
_BASIC_PLANE_ENDS = "\uffff"


class TooMuchTextError(Exception):
    """The texts of a message are larger than they may be; it says how large that is."""


class Texts:
    """Takes the texts of one message while all of them together have no more octets than that.

    Counted is what goes to the database, where a text is in memory four times on its way: in UTF-8, quotes escaped.
    """

    def __init__(self, most_octets: int) -> None:
        self._most_octets = most_octets
        self._octets = 0
        self._letters = 0
        self._width = 1

    def take(self, pieces: Iterable[str]) -> str:
        """Put a text together, with CRLF at the end of each line and without NUL; raise TooMuchTextError."""
        taken: list[str] = []
        for text in _with_line_ends(pieces):
            self._count(text)
            taken.append(text)
        return "".join(taken)

    def _count(self, text: str) -> None:
        self._letters += len(text)
        for sign in ('"', "\\"):
            if sign in text:  # which is soon said
                self._octets += text.count(sign)
        if text.isascii():
            self._octets += len(text)
        else:
            self._octets += len(text.encode())
            self._width = max(self._width, _width(text))
        if self._octets > self._most_octets:
            raise TooMuchTextError(f"texts of more than {self._most_octets} octets in UTF-8")
        if self._width in _MOST_LETTERS:
            wide, most = _MOST_LETTERS[self._width]
            if self._letters > most:
                raise TooMuchTextError(f"texts with {wide} among more than {most} letters")


def unflowed(text: str, *, without_last_blank: bool) -> str:
    """Join the lines that a program broke to mark them as one (RFC 3676), and undo its indenting of others.

    Quotes stay in lines, as they are shown. `without_last_blank` is the parameter DelSp: the blank is but the mark.
    """
    pieces: list[str] = []
    is_open = True
    for line in text.split("\r\n"):
        is_quote = line.startswith(">")
        said = line if is_quote else line.removeprefix(" ")
        is_fixed = is_quote or said == _SIGNATURE
        if not is_open or (pieces and (is_fixed or not said)):
            pieces.append("\r\n")
        is_open = said.endswith(" ") and not is_fixed
        pieces.append(said[:-1] if is_open and without_last_blank else said)
    return "".join(pieces)


def _width(text: str) -> int:
    """Tell how many octets of memory its widest letter makes all letters take."""
    if len(text) >= _SHORT:  # what it takes says so at once
        return getsizeof(text) // len(text)
    widest = max(text, default="")
    return 4 if widest > _BASIC_PLANE_ENDS else 2 if widest > _LATIN_1_ENDS else 1


def _with_line_ends(pieces: Iterable[str]) -> Iterator[str]:
    held = ""
    for piece in pieces:
        text = held + piece
        # What follows may be the rest of this line end.
        held = "\r\r" if text.endswith("\r\r") else "\r" if text.endswith("\r") else ""
        text = text.removesuffix(held)
        bare = text.replace("\r\n", "")
        if "\n" in bare or "\r" in bare:
            # Twice: some programs end a line so, CR CR LF.
            text = text.replace("\r\n", "\n").replace("\r\n", "\n").replace("\r", "\n").replace("\n", "\r\n")
        yield text.replace("\x00", "\ufffd")
    if held:
        yield "\r\n" * len(held)
