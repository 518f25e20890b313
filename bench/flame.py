"""`make bench-flame`: where serve's time goes while 20 sessions send, as a picture: a frame's width is its share."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.sax.saxutils import escape

from bench.compare import RESULTS
from bench.measuring import measure
from bench.systems import Stand, running_stand

SESSIONS = 20
SAMPLES_PER_S = 500
WIDTH, ROW, TOP = 1200, 17, 44
LEAST_SHARE = 0.004
"""What is narrower is left out: it could not be read."""
_OURS, _DRIVER, _OTHER = "#f0803c", "#4098d7", "#9aa5b1"


@dataclass(slots=True)
class Frame:
    """A function, as it was called from where it stands."""

    name: str
    samples: int = 0
    callees: dict[str, Frame] = field(default_factory=dict)

    def add(self, stack: Iterable[str], samples: int) -> None:
        """Count one stack, outermost function first."""
        frame = self
        frame.samples += samples
        for name in stack:
            frame = frame.callees.setdefault(name, Frame(name))
            frame.samples += samples

    @property
    def depth(self) -> int:
        return 1 + max((callee.depth for callee in self.callees.values()), default=0)


def folded(lines: Iterable[str]) -> Frame:
    """Read `outer;inner;innermost COUNT` lines, as samplers write them."""
    root = Frame("serve")
    for line in lines:
        stack, _, count = line.strip().rpartition(" ")
        if stack:
            root.add(stack.split(";"), int(count))
    return root


def draw(root: Frame, title: str) -> str:
    """Return an SVG document, callers above those they call; a frame's whole name and share show under the pointer."""
    height = TOP + root.depth * ROW + 8
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        'font-family="sans-serif" font-size="11" fill="#1f2933">'
    )
    legend = ((_OURS, "opensend_milter"), (_DRIVER, "psycopg"), (_OTHER, "Python and others"))
    parts = [f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>', f'<text x="8" y="16">{escape(title)}</text>']
    for number, (colour, text) in enumerate(legend):
        x = 8 + number * 150
        parts.append(
            f'<rect x="{x}" y="24" width="10" height="10" fill="{colour}"/><text x="{x + 14}" y="33">{text}</text>'
        )
    return "\n".join([head, *parts, *_drawn(root, 0.0, 0, WIDTH / max(root.samples, 1), root.samples), "</svg>", ""])


def _drawn(frame: Frame, x: float, level: int, unit: float, total: int) -> Iterator[str]:
    width = frame.samples * unit
    if frame.samples < total * LEAST_SHARE:
        return
    y = TOP + level * ROW
    yield (
        f"<g><title>{escape(frame.name)}: {frame.samples / total:.1%}</title>"
        f'<rect x="{x:.1f}" y="{y}" width="{max(width - 1, 1):.1f}" height="{ROW - 1}" fill="{_colour(frame.name)}"/>'
    )
    if letters := int((width - 6) / 6):
        yield f'<text x="{x + 3:.1f}" y="{y + 12}">{escape(frame.name.partition(" (")[0][:letters])}</text>'
    yield "</g>"
    for callee in sorted(frame.callees.values(), key=lambda one: -one.samples):
        yield from _drawn(callee, x, level + 1, unit, total)
        x += callee.samples * unit


def _colour(name: str) -> str:
    return _OURS if "opensend_milter" in name else _DRIVER if "psycopg" in name else _OTHER


def sampled(stand: Stand, seconds: float) -> Frame:
    """Look at a child of serve that answers Postfix while it works."""
    sampler = shutil.which("py-spy") or shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if not sampler:
        raise SystemExit("the sampler is missing: .venv/bin/pip install py-spy")
    ours = stand.ours()
    (serve,) = ours.groups["milter"]
    # The first: the keeper of those whom a dead child leaves behind is there, too.
    child, *_ = Path(f"/proc/{serve}/task/{serve}/children").read_text().split()
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "stacks"
        options = [
            "--format",
            "raw",
            "--rate",
            str(SAMPLES_PER_S),
            "--function",
            "--gil",
            "--duration",
            str(round(seconds)),
        ]
        looking = subprocess.Popen(
            [sampler, "record", *options, "--pid", child, "--output", str(path)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        time.sleep(1)
        figures = measure(
            ours.load(sessions=SESSIONS, seconds=seconds + 1, kept=True), ours.groups, settled=ours.settle
        )
        _, said = looking.communicate()
        if looking.returncode or not path.exists():
            raise SystemExit(f"{sampler}: {said}")
        sys.stderr.write(f"{figures.per_s:.0f} messages a second while it looked\n")
        return folded(path.read_text().splitlines())


def main() -> None:
    """Sample, then draw."""
    parser = argparse.ArgumentParser(prog="make bench-flame", description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="for so long (default: %(default)s)")
    arguments = parser.parse_args()
    with running_stand() as stand:
        root = sampled(stand, arguments.seconds)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "flame.svg"
    path.write_text(draw(root, f"serve, {SESSIONS} sessions, 2 KB messages: {root.samples} samples of running threads"))
    sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
