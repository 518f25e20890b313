"""Where other mail programs may find other parts in a message than we do: there a rule about parts cannot be held."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from opensend_milter.core.mime import PartHeader
from opensend_milter.core.transfer import Buffer

_OF_STRUCTURE = ("content-type", "content-transfer-encoding", "content-disposition")
_AS_IS = frozenset({"", "7bit", "8bit", "binary"})
_ENCODINGS = _AS_IS | {"base64", "quoted-printable"}
_SHOWN = frozenset({"", "inline"})
_WRAPPED = (
    *("application/pkcs7-mime", "application/x-pkcs7-mime", "application/pgp-encrypted"),
    *("application/ms-tnef", "application/vnd.ms-tnef"),
)
_BOUNDARY = re.compile(r"[ !#-\[\]-~]{0,69}[!#-\[\]-~]")
"""RFC 2046, 5.1.1, and the signs that are in use besides."""
_BARE_CR = re.compile(rb"\r(?!\n)")
_BEGINS_A_FILE = "a text that begins a file (uuencode)"
_FILE_IN_TEXT = re.compile(r"^(?:begin(?:-base64)? [0-7]{3,4}|=ybegin) \S", re.MULTILINE)


@dataclass(slots=True)
class Doubts:
    """The first place of a message that can be read in several ways."""

    place: str = ""
    _boundaries: set[str] = field(default_factory=set)

    def note(self, place: str) -> None:
        """Take a place down, in words that go on after `in`."""
        self.place = self.place or place

    def weigh_multipart(self, header: PartHeader, boundary: str) -> None:
        """Look whether everybody splits it where we do."""
        if header.kind == "multipart/digest":
            self.note("a multipart/digest")
        elif header.filename or header.disposition not in _SHOWN:
            self.note("a multipart that may be shown as a file")
        elif header.encoding not in _AS_IS:
            self.note("a multipart that is encoded as a whole")
        elif not _BOUNDARY.fullmatch(boundary):
            self.note("a multipart with an odd boundary, or none")
        elif boundary in self._boundaries:
            self.note("a multipart with the boundary of another")
        self._boundaries.add(boundary)
        if header.unclear:
            self._weigh_fields(header, _OF_STRUCTURE)

    def weigh_body(self, header: PartHeader) -> None:
        """Look whether everybody shows it as a text."""
        if header.filename or header.disposition not in _SHOWN:
            self.note("a text that may be shown as a file")
        elif header.encoding not in _ENCODINGS:
            self.note("a text with an unknown transfer encoding")
        if header.unclear:
            self._weigh_fields(header, _OF_STRUCTURE)

    def weigh_lines(self, text: str) -> None:
        """Look at lines that will be joined: others may read them as they came."""
        if _FILE_IN_TEXT.search(text):
            self.note(_BEGINS_A_FILE)

    def weigh_file(self, header: PartHeader) -> None:
        """Look whether everybody takes it for a file of that type."""
        if header.kind.startswith("message/"):
            self.note("an attached message, which is not looked into")
        elif header.kind in _WRAPPED:
            self.note("a part that mail programs unwrap (S/MIME, PGP/MIME, winmail.dat)")
        if header.unclear:
            self._weigh_fields(header, _OF_STRUCTURE[:1])

    def _weigh_fields(self, header: PartHeader, names: tuple[str, ...]) -> None:
        for name in header.unclear:
            if name in names:
                self.note(f"a {name.title()} field that is odd, too long or there twice")


def outside_of_mime(raw: Buffer, text: str) -> str:
    """Return such a place that no structure shows: line ends that only some know, files within a text."""
    if _BARE_CR.search(raw):
        return "a line that ends in CR alone"
    return _BEGINS_A_FILE if _FILE_IN_TEXT.search(text) else ""
