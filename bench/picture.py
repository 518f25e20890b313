"""Bars beside bars, as SVG: how the systems compare under each load."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from bench.figures import Spread

WIDTH, LEFT, RIGHT, TOP = 760, 230, 110, 56
BAR, GAP = 13, 14
COLOURS = ("#9aa5b1", "#52606d", "#4098d7", "#f0803c")


@dataclass(frozen=True, slots=True)
class Bar:
    """One system under one load."""

    label: str
    ratio: Spread
    note: str
    """What stands at its end."""


@dataclass(frozen=True, slots=True)
class Group:
    """One load."""

    label: str
    bars: Sequence[Bar]


def draw(title: str, groups: Sequence[Group]) -> str:
    """Return an SVG document; the length of a bar is its ratio, the line across it the range."""
    names = list(dict.fromkeys(bar.label for group in groups for bar in group.bars))
    colours = {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}
    most = max((bar.ratio.high for group in groups for bar in group.bars), default=1.0)
    unit = (WIDTH - LEFT - RIGHT) / max(most, 1.0)
    parts = [_text(12, 20, title, size=14)]
    for number, name in enumerate(names):
        x = LEFT + number * 125
        parts += [f'<rect x="{x}" y="32" width="10" height="10" fill="{colours[name]}"/>', _text(x + 14, 41, name)]
    y = TOP
    for group in groups:
        parts.append(_text(12, y + BAR, group.label))
        for bar in group.bars:
            parts += _drawn(bar, y, unit, colours[bar.label])
            y += BAR
        y += GAP
    parts.append(f'<path d="M{LEFT + unit:.1f} {TOP - 4}V{y}" stroke="#52606d" stroke-dasharray="3 3"/>')
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" height="{y}" '
        'font-family="sans-serif" font-size="11" fill="#323f4b">'
    )
    return "\n".join([head, f'<rect width="{WIDTH}" height="{y}" fill="#ffffff"/>', *parts, "</svg>", ""])


def _drawn(bar: Bar, y: int, unit: float, colour: str) -> list[str]:
    low, high, end = (LEFT + value * unit for value in (bar.ratio.low, bar.ratio.high, bar.ratio.median))
    middle = y + BAR / 2
    return [
        f'<rect x="{LEFT}" y="{y}" width="{end - LEFT:.1f}" height="{BAR - 2}" fill="{colour}"/>',
        f'<path d="M{low:.1f} {middle - 1:.1f}H{high:.1f}" stroke="#1f2933"/>',
        _text(max(high, end) + 6, y + BAR - 3, bar.note),
    ]


def _text(x: float, y: float, text: str, *, size: int = 11) -> str:
    return f'<text x="{x:.1f}" y="{y}" font-size="{size}">{escape(text)}</text>'
