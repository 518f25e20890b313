"""Values as a page shows them: times in UTC, and what strangers wrote without what would turn or hide it."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from markupsafe import Markup, escape

MOST_CHARACTERS = 1_000
"""Of one text that somebody else wrote, where its place is a line."""
_HIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]")
_TYPED = re.compile(r"`([^`]*)`")
_PICTURES = 0x2400
_DELETE = "\x7f"
_FEW = 10
_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def shown(text: str | None, most: int = MOST_CHARACTERS) -> str:
    """Return a text on one line, with a sign for whatever would not be seen; more than `most` is cut."""
    if not text:
        return ""
    cut = text if len(text) <= most else text[:most] + "…"
    return _HIDDEN.sub(_seen, cut)


def typed(text: str) -> Markup:
    """Set apart what somebody would type, which our texts have in backticks."""
    return Markup(_TYPED.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704  # escaped


def moment(at: datetime) -> str:
    """Say a time to the second."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"


def rate(count: int, seconds: int) -> str:
    """Say how many that is each second, by two digits at most where it is few."""
    each = count / seconds
    return f"{each:,.0f}" if each >= _FEW else f"{each:.2g}"


def lasted(span: timedelta) -> str:
    """Say how long it was, in the largest unit that there is at least one of."""
    seconds = max(span.total_seconds(), 0)
    for name, size in _UNITS:
        if seconds >= size:
            return f"{seconds / size:.0f} {name}" if seconds >= _FEW * size else f"{seconds / size:.2g} {name}"
    return f"{seconds * 1000:.0f} ms"


def instant(at: datetime) -> str:
    """Say a time for programs."""
    return f"{at.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _seen(hidden: re.Match[str]) -> str:
    sign = hidden[0]
    if sign <= "\x1f":
        return chr(_PICTURES + ord(sign))
    return "\u2421" if sign == _DELETE else f"[U+{ord(sign):04X}]"
