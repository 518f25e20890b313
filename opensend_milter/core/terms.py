"""By what a message is known: the same for what is stored as for what somebody asks for."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import blake2b
from itertools import pairwise
from typing import Literal, NamedTuple

from opensend_milter.core.address import envelope_address, folded, normal_domain
from opensend_milter.core.ids import is_end

Kind = Literal["end", "address", "domain", "message-id", "word", "user", "key"]
"""Of a user and of a key nobody can ask: these say whose it is."""
MOST_WORDS = 32
"""Of a subject, from its beginning."""
MOST_ASKED = 2_000
"""Characters of what somebody asks for: no address, no Message-ID and no subject has more that counts."""
_MOST_OF_A_SUBJECT = 1_000
_MOST_OF_A_WORD = 40
_MOST_OF_A_NAME = 1_000
_END = 12
"""Characters of an id."""
TERM_BITS = 44
"""What is left of 63 by the number of a stretch of time, of which there may be half a million."""
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff"
_RUN = re.compile(rf"([{_UNSPACED}]+)|[^\W_{_UNSPACED}]+")


class Name(NamedTuple):
    """One thing by which a message is known, in the one spelling that we have for it."""

    kind: Kind
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """What one knows a message by, or a refusal."""

    id: str | None
    """Of an email."""
    addresses: Sequence[str]
    """Of those who sent it and those who were to get it, as they are stored."""
    message_id: str | None
    subject: str
    user_id: str | None = None
    key_id: str | None = None


def names(known: Known) -> frozenset[Name]:
    """Return all names that something is known by."""
    found = _words(known.subject)
    for written in {*known.addresses}:
        found |= _of_address(written)
    if known.message_id and (inner := bare(known.message_id)):
        found.add(Name("message-id", inner.lower()))
    if known.id:
        found.add(Name("end", known.id[-_END:]))
    if known.user_id:
        found.add(Name("user", known.user_id))
    if known.key_id:
        found.add(Name("key", known.key_id))
    return frozenset(found)


@dataclass(slots=True)
class Meant:
    """What is looked for: whatever is known by all names of one of these ways."""

    ways: Sequence[frozenset[Name]]
    _parts: list[list[str]] = field(init=False)
    """What stands in all that is meant in some way, unless something is spelled otherwise."""

    def __post_init__(self) -> None:
        self._parts = [[part for name in way for part in name.text.split("@")] for way in self.ways]

    def is_known_by(self, known: Known) -> bool:
        """Tell whether this is looked for."""
        # Nearly all that is looked at is not, and to see that takes a tenth of the time.
        text = f"{' '.join(known.addresses)} {known.message_id} {known.subject} {known.id}".lower()
        if text.isascii() and "\\" not in text:
            for parts in self._parts:
                if all(map(text.__contains__, parts)):
                    break
            else:
                return False
        its_names = names(known)
        return any(way <= its_names for way in self.ways)


def term_of(name: Name) -> int:
    """Return the number under which it is noted; two may have the same, so what it finds is looked at again."""
    digest = blake2b(f"{name.kind}\0{name.text}".encode("utf-8", "replace"), digest_size=8).digest()
    return int.from_bytes(digest) >> (64 - TERM_BITS)


def ways(asked: str) -> tuple[frozenset[Name], ...]:
    """Return what may be meant: whatever is known by all the names of one of these."""
    text = readable(asked)
    one = len(text.split()) == 1
    found = []
    if is_end(text):
        found.append({Name("end", text.lower())})
    if text.startswith("@"):
        found.append({Name("domain", _domain(text[1:]))} if text[1:] else set())
    elif "@" in text:
        found.append({name for name in _of_address(text) if name.kind == "address"})
    if one and bare(text):
        found.append({Name("message-id", bare(text).lower())})
    if not (one and "@" in text):
        found.append(_words(text))
    return tuple(frozenset(some) for some in found if some)


def readable(asked: str) -> str:
    """Return what a database can be asked of what somebody typed or sent."""
    return asked[:MOST_ASKED].encode("utf-8", "replace").decode().replace("\x00", "\ufffd").strip()


def bare(message_id: str) -> str:
    """Return a Message-ID without its brackets."""
    text = message_id.strip()
    return (text[1:-1] if text.startswith("<") and text.endswith(">") else text)[:_MOST_OF_A_NAME]


def _words(text: str) -> set[Name]:
    """Return the first words, in lower case and in one width and style."""
    shown = unicodedata.normalize("NFKC", text.strip()[:_MOST_OF_A_SUBJECT]).casefold()
    words: dict[str, None] = {}
    for word in _pieces(unicodedata.normalize("NFKC", shown)):
        if len(words) == MOST_WORDS:
            break
        words[word] = None
    return {Name("word", word) for word in words}


def _pieces(text: str) -> Iterator[str]:
    for run in _RUN.finditer(text):
        if run[1] and len(run[1]) > 1:
            # No blanks stand between words of Chinese, Japanese and often Korean: any two letters are one.
            yield from map("".join, pairwise(run[1]))
        else:
            yield run[0][:_MOST_OF_A_WORD]


@lru_cache(maxsize=4096)
def _of_address(written: str) -> frozenset[Name]:
    """Return an address and its domain; nothing of what is none."""
    text = written.strip()
    inner = text[text.rindex("<") + 1 : -1] if "<" in text and text.endswith(">") else text
    address = envelope_address(inner)
    spelled = folded(address) if address else inner[:_MOST_OF_A_NAME].lower()
    local, at, domain = spelled.rpartition("@")
    return frozenset({Name("address", spelled), Name("domain", _domain(domain))}) if local and at else frozenset()


def _domain(text: str) -> str:
    return normal_domain(text) or text[:_MOST_OF_A_NAME].lower()
