"""`opensend-milter serve` with a page of what it counts; as a program, it is that process."""

from __future__ import annotations

import sys
from pathlib import Path

from opensend_milter.adapters.prometheus import Together
from opensend_milter.app import serving
from opensend_milter.cli import daemons
from opensend_milter.config import load
from opensend_milter.core import counting
from opensend_milter.servers import metrics_page
from opensend_milter.servers.milter import MilterProcess
from opensend_milter.servers.supervisor import Line


def main(path: Path) -> None:
    """Count in all children, show it from a process beside them."""
    config = load(path)
    daemons._log(config.log)
    config.milter.spool_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    counts = Together(counting.AT_THE_DOOR, config.milter.spool_dir / "metrics")

    class Counting(MilterProcess):
        def run(self, line: Line) -> None:
            counts.join()
            super().run(line)

    serving.MilterProcess = Counting  # type: ignore[attr-defined]  # a child is where it joins
    with metrics_page.shown_beside(config.metrics.serve_port, counts.page, key="metrics.serve_port"):
        serving.serve(path)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
