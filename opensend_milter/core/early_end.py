"""Says where a header section ended before its From field: at a line that is no header field."""

from __future__ import annotations

import re

from opensend_milter.core.transfer import Buffer

_LINE = re.compile(rb"[^\r\n]*")
_FIELD = re.compile(rb"[!-9;-~]++[ \t]*+:")
_FROM = re.compile(rb"^From[ \t]*+:", re.MULTILINE | re.IGNORECASE)
_EMPTY_LINE = re.compile(rb"^\r?\n", re.MULTILINE)
_INSIDE_A_WORD = re.compile(r"(?<=\w)\w")
_SHOWN = 40


def early_end(raw: Buffer, body: int, *, at_most: int) -> str | None:
    """Say which line ended the header section of a message without From; None: there is no From behind it either.

    Postfix hands over as body what begins with the first line that is no header field.
    """
    end = min(len(raw), body + at_most)
    if empty := _EMPTY_LINE.search(raw, body, end):
        end = empty.start()
    if not _FROM.search(raw, body, end):
        return None
    number = bytes(raw[:body]).count(b"\n")
    line = _LINE.match(raw, body, end)
    content = line[0] if line else b""
    if _FIELD.match(content):
        return f"line {number} is empty and ends the header section"
    if not content.strip():
        return f"line {number} holds only blanks and ends the header section"
    return f"line {number} is no header field ({_masked(content)}) and ends the header section"


def _masked(content: bytes) -> str:
    """Show the shape of a line, by which its author knows it, and not what it says."""
    return f"'{_INSIDE_A_WORD.sub('x', content[:_SHOWN].decode('ascii', 'replace').replace(chr(0xFFFD), '?'))}'"
