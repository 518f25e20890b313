"""What some mail program reads in a From field otherwise than we do: another address, another line."""

from __future__ import annotations

import re

from opensend_milter.core.model import Address
from opensend_milter.core.words import undone

_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\u2028\u2029]")
"""Not U+0080 to U+009F: much mail has windows-1250 there and calls it ISO-8859-2."""
_DELIMITER = re.compile("[@<>]")
_LOOKS = str.maketrans("\uff20\ufe6b\uff1c\ufe64\uff1e\ufe65\uff0e\ufe52\u2024\u3002\uff61", "@@<<>>.....")
"""Wide and small ones. Not by normalize, whose work on a long field is the square of it."""
_BETWEEN_ADDRESSES = re.compile(r"""[\s"'(),:;<>\[\\\]]+""")


def misleading(field: str, address: Address) -> str | None:
    """Say why a From field may be shown as something else than the address that was found in it; None: it is not."""
    local = address.rpartition("@")[0]
    if _DELIMITER.search(_plain(local)):
        return "the part before its @ holds another @, < or >"
    if "=?" not in field:
        return None
    shown = undone(field)
    if undone(local) != local:
        return "the part before its @ is an encoded word"
    if _CONTROL.search(shown):
        return "an encoded word in it holds a line end or another control character"
    if _addresses(shown) - _addresses(field):
        return "an encoded word in it holds another address"
    return None


def _plain(text: str) -> str:
    """Return a text with delimiters as they look: a wide @ is an @."""
    return text if text.isascii() else text.translate(_LOOKS)


def _addresses(text: str) -> set[str]:
    """Find whatever a reader takes for an address."""
    words = (word.strip(".").lower() for word in _BETWEEN_ADDRESSES.split(_plain(text)))
    return {word for word in words if word.find("@") > 0 and "." in word.rpartition("@")[2]}
