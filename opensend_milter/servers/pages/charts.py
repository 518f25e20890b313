"""Charts as SVG text: a pure function of names and numbers, to be shown beside a table of the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from opensend_milter.servers.pages.marks import Mark

WIDTH, HEIGHT = 640, 220
_LEFT, _RIGHT, _TOP, _BOTTOM = 48, 8, 14, 30
_ROOM_X, _ROOM_Y = WIDTH - _LEFT - _RIGHT, HEIGHT - _TOP - _BOTTOM
_GROUND = HEIGHT - _BOTTOM
_GAP = 0.2
"""Of a bar's place, what is left free."""
_MOST_LABELS = 8
_SUFFIXES = ((10**12, "T"), (10**9, "G"), (10**6, "M"), (10**3, "k"))
_ROUND = (1, 2, 3, 4, 6, 8, 10)


@dataclass(frozen=True, slots=True)
class Series:
    """One colour of a chart: a count for each bar."""

    name: str
    mark: Mark
    counts: Sequence[int]


def stacked_bars(title: str, labels: Sequence[str], series: Sequence[Series]) -> Markup:
    """Draw a bar for each label, of all series one on another, the first at the ground."""
    if any(len(one.counts) != len(labels) for one in series):
        raise ValueError("a series has a count for each label")
    stacks = [[one.counts[at] for one in series] for at in range(len(labels))]
    top = _round_up(max(map(sum, stacks), default=0))
    totals = ", ".join(f"{one.name} {sum(one.counts):,}" for one in series)
    drawn = [
        f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img">',
        f"<title>{escape(title)}</title><desc>{escape(totals)}</desc>",
        *_grid(top),
        *(piece for at, label in enumerate(labels) for piece in _bar(at, label, stacks, series, top)),
        *_labels(labels),
        "</svg>",
    ]
    return Markup("".join(drawn))  # noqa: S704  # what others wrote is escaped


def short(count: int) -> str:
    """Write a count in few letters, as an axis has room for."""
    for size, suffix in _SUFFIXES:
        if count >= size:
            return f"{count / size:.3g}{suffix}" if count < size * 1_000 else f"{count:.0e}"
    return str(count)


def _round_up(most: int) -> int:
    """Return the least number of one digit and noughts that is no less, odd ones from 5 left out."""
    power: int = 10 ** (len(str(most)) - 1)
    return next(step * power for step in _ROUND if step * power >= most)


def _grid(top: int) -> Iterator[str]:
    for count in sorted({0, top // 2, top}):
        y = _GROUND - _ROOM_Y * count / top
        yield f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        yield f'<text class="axis" x="{_LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{short(count)}</text>'


def _bar(at: int, label: str, stacks: Sequence[Sequence[int]], series: Sequence[Series], top: int) -> Iterator[str]:
    """Draw one bar; where a pointer rests on it, it tells its numbers."""
    place = _ROOM_X / len(stacks)
    x, width = _LEFT + place * (at + _GAP / 2), place * (1 - _GAP)
    said = "; ".join(f"{one.name} {count:,}" for one, count in zip(series, stacks[at], strict=True))
    yield f"<g><title>{escape(label)}: {escape(said)}</title>"
    below = 0
    for one, count in zip(series, stacks[at], strict=True):
        below += count
        if count:
            y, height = _GROUND - _ROOM_Y * (below / top), _ROOM_Y * (count / top)
            yield f'<rect class="{one.mark}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"/>'
    yield "</g>"


def _labels(labels: Sequence[str]) -> Iterator[str]:
    """Write so many labels as have room; of those a narrow screen shows every second. None goes over an edge."""
    step = -(-len(labels) // _MOST_LABELS)
    for nth, at in enumerate(range(0, len(labels), step or 1)):
        x, anchor = _LEFT + _ROOM_X / len(labels) * (at + 0.5), "middle"
        if at in {0, len(labels) - 1} and len(labels) > 1:
            x, anchor = (WIDTH - _RIGHT, "end") if at else (_LEFT, "start")
        kind = "axis second" if nth % 2 else "axis"
        yield f'<text class="{kind}" x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{escape(labels[at])}</text>'
