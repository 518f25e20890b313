"""Counts over prometheus-client: of one process, or of a process and those it forks."""

from __future__ import annotations

import logging
import os
import shutil
from collections import Counter as Sums
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.metadata import version
from itertools import product
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
    values,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from opensend_milter.core.counting import NOWHERE, Measure, count_in

log = logging.getLogger(__name__)
_FILES = ("counter", "histogram")
_FILE_BYTES = 1 << 16
"""As prometheus-client makes them, and more than our measures fill."""
_SUMMED = {
    "process_resident_memory_bytes": "Memory of all processes; pages that they share count for each.",
    "process_open_fds": "Descriptors that all processes have open.",
}


def alone(measures: Sequence[Measure]) -> Callable[[], bytes]:
    """Count in this process; return what writes its page."""
    disable_created_metrics()  # type: ignore[no-untyped-call]  # theirs
    values.ValueClass = values.MutexValue
    registry = CollectorRegistry()
    count_in(PrometheusBook(measures, registry))
    registry.register(_Build())
    ProcessCollector(registry=registry)
    return partial(generate_latest, registry)


class Together:
    """Counts of a process and of all that it forks, kept in a directory for whoever writes the page."""

    def __init__(self, measures: Sequence[Measure], directory: Path) -> None:
        """Delete what an earlier run left in the directory, and begin at zero."""
        disable_created_metrics()  # type: ignore[no-untyped-call]  # theirs
        self._measures = measures
        self._directory = directory
        self._book: PrometheusBook | None = None
        shutil.rmtree(directory, ignore_errors=True)
        self.join()

    def join(self) -> None:
        """Count in this process too: to be called in each child."""
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(self._directory)
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            for kind in _FILES:
                _reserve(self._directory / f"{kind}_{os.getpid()}.db")
        except OSError as error:
            log.warning("this process does not count: %s", error)
            count_in(NOWHERE)
            return
        if self._book is None:
            values.ValueClass = values.MultiProcessValue()  # type: ignore[no-untyped-call]  # theirs
            self._book = PrometheusBook(self._measures, None)
        count_in(self._book)

    def page(self) -> bytes:
        """Write the page; to be called in a process that is our child."""
        registry = CollectorRegistry()
        if self._directory.is_dir():
            MultiProcessCollector(registry, str(self._directory))  # type: ignore[no-untyped-call]  # theirs
        registry.register(_Build())
        registry.register(_Family(os.getppid()))
        return generate_latest(registry)


def _reserve(path: Path) -> None:
    """Take the room on disk now: a mapped page that finds none later ends the process with SIGBUS."""
    with path.open("ab") as file:
        os.posix_fallocate(file.fileno(), 0, _FILE_BYTES)


class PrometheusBook:
    """Keeps counts as prometheus-client does."""

    def __init__(self, measures: Iterable[Measure], registry: CollectorRegistry | None) -> None:
        self._metrics = {measure.name: _metric(measure, registry) for measure in measures}
        self._series: dict[tuple[str, ...], Callable[[float], None]] = {}
        for measure in measures:
            # What is to be seen at all must be seen before it happens first: a rate needs the zero.
            for labels in _combinations(measure):
                self._opened(measure, labels)

    def note(self, measure: Measure, value: float, *labels: str) -> None:
        """Count; what this process does not show is nothing to it, and no message is lost for a count."""
        if measure.name not in self._metrics:
            return
        try:
            write = self._series.get((measure.name, *labels)) or self._opened(measure, measure.takes(labels))
            write(value)
        except Exception:
            log.exception("%s not counted", measure.name)

    def _opened(self, measure: Measure, labels: tuple[str, ...]) -> Callable[[float], None]:
        place = (measure.name, *labels)
        if place not in self._series:
            metric = self._metrics[measure.name]
            self._series[place] = _write_of(metric.labels(*labels) if labels else metric)
        return self._series[place]


def _metric(measure: Measure, registry: CollectorRegistry | None) -> Counter | Gauge | Histogram:
    match measure.kind:
        case "counter":
            return Counter(measure.name, measure.text, measure.labels, registry=registry)
        case "gauge":
            return Gauge(measure.name, measure.text, measure.labels, registry=registry)
        case "histogram":
            return Histogram(measure.name, measure.text, measure.labels, registry=registry, buckets=measure.buckets)


def _write_of(series: Counter | Gauge | Histogram) -> Callable[[float], None]:
    match series:
        case Counter():
            return series.inc
        case Histogram():
            return series.observe
        case Gauge():
            return series.set


def _combinations(measure: Measure) -> Sequence[tuple[str, ...]]:
    return list(product(*measure.labels.values())) if measure.is_closed else []


class _Build(Collector):
    """Which version runs."""

    def collect(self) -> Iterable[Metric]:
        build = GaugeMetricFamily("opensend_build_info", "Always 1, with the version.", labels=["version"])
        build.add_metric([version("opensend-milter")], 1)
        return [build]


def _name_of(pid: int | str) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text()
    except OSError:  # it has ended
        return ""


class _Family(Collector):
    """What a process and its children take of the machine."""

    def __init__(self, parent: int) -> None:
        self._parent = parent

    def collect(self) -> Iterable[Metric]:
        children = Path(f"/proc/{self._parent}/task/{self._parent}/children").read_text().split()
        sums = Sums[str]()
        for pid in (self._parent, *children):
            for family in ProcessCollector(pid=partial(str, pid), registry=None).collect():
                sums.update({sample.name: sample.value for sample in family.samples})
        # Whoever does something else than answer has a name of its own, or is the one that asks.
        answering = [pid for pid in children if pid != str(os.getpid()) and _name_of(pid) == _name_of(self._parent)]
        return [
            GaugeMetricFamily("opensend_processes", "Processes that answer Postfix.", value=len(answering)),
            *(GaugeMetricFamily(name, text, value=sums[name]) for name, text in _SUMMED.items()),
        ]
