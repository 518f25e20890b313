"""What came of it: a table of all kinds, for a terminal, for the documentation, for scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from tests.chaos.ledger import Finding, Ledger, Window

_HEAD = ("fault", "times", "accepted", "lost", "twice", "5xx", "refused s", "whole s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One kind of fault, or all of them."""

    kind: str
    times: int
    long: int
    accepted: int
    lost: int
    twice: int
    wrong: int
    refused_s: float
    whole_s: float | None
    """The longest of its times; None: once it never came."""

    @classmethod
    def of(cls, kind: str, windows: Sequence[Window], findings: Sequence[Finding]) -> Row:
        """Sum up some windows and what was found of them."""
        wholes = [window.whole_s for window in windows]
        return cls(
            kind=kind,
            times=len(windows),
            long=sum(window.is_long for window in windows),
            accepted=sum(window.accepted for window in windows),
            lost=sum(one.fault == "lost" for one in findings),
            twice=sum(one.fault == "twice" for one in findings),
            wrong=sum(len(window.wrong) for window in windows),
            refused_s=max(window.refused_s for window in windows),
            whole_s=None if None in wholes else max(one or 0.0 for one in wholes),
        )

    def cells(self) -> tuple[str, ...]:
        numbers = (self.times, self.accepted, self.lost, self.twice, self.wrong)
        whole = "never" if self.whole_s is None else f"{self.whole_s:.1f}"
        return self.kind, *map(str, numbers), f"{self.refused_s:.1f}", whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """A whole run."""

    seed: int
    minutes: float
    rows: Sequence[Row]
    total: Row
    findings: Sequence[Finding]
    uncertain: int
    not_run: Mapping[str, str]
    broken: Mapping[str, str]
    """Faults that went otherwise than they were meant: what their lines say proves nothing."""

    @classmethod
    def of(
        cls, ledger: Ledger, findings: Sequence[Finding], *, seed: int, minutes: float, uncertain: int,
        not_run: Mapping[str, str], broken: Mapping[str, str],
    ) -> Report:  # fmt: skip
        """Sum up what the ledger has."""
        before, *faults = ledger.windows
        kinds = dict.fromkeys(window.kind for window in faults)
        rows = [
            Row.of(
                kind,
                [window for window in ledger.windows if window.kind == kind],
                [one for one in findings if one.kind == kind],
            )
            for kind in (before.kind, *kinds)
        ]
        total = replace(Row.of("all", ledger.windows, findings), times=len(faults))
        return cls(
            seed=seed, minutes=minutes, rows=rows, total=total, findings=findings, uncertain=uncertain,
            not_run=not_run, broken=broken,
        )  # fmt: skip

    @property
    def good(self) -> bool:
        return not (self.findings or self.broken or self.total.wrong) and self.total.whole_s is not None

    def summary(self) -> str:
        unexplained = sum(one.fault == "unexplained" for one in self.findings)
        faults = f"{self.total.times} faults, {self.total.long} of them long"
        return (
            f"seed {self.seed}, {self.minutes:.0f} minutes, {faults}; "
            f"{self.uncertain} uncertain, {unexplained} unexplained"
        )

    def _lines(self) -> list[tuple[str, ...]]:
        return [row.cells() for row in (*self.rows, self.total)]

    def as_text(self) -> str:
        """Return a table of at most 80 columns, then what was not run and what was found."""
        lines = [_HEAD, *self._lines()]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]

        def text() -> Iterator[str]:
            for kind, *cells in lines:
                right = (cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True))
                yield " ".join([kind.ljust(widths[0]), *right])
            yield from (f"{kind}: not run: {why}" for kind, why in self.not_run.items())
            yield from (f"{kind}: broken: {why}" for kind, why in self.broken.items())
            yield self.summary()
            yield from (f"{one.fault}: {one.mark} during {one.kind}: {one.what}" for one in self.findings)

        return "\n".join(text())

    def as_markdown(self) -> str:
        lines = [_HEAD, ("---", *["--:"] * (len(_HEAD) - 1)), *self._lines()]
        not_run = [f"Not run: {kind} ({why})." for kind, why in self.not_run.items()]
        broken = [f"Broken: {kind} ({why})." for kind, why in self.broken.items()]
        return "\n".join(
            [*(f"| {' | '.join(line)} |" for line in lines), "", f"{self.summary()}.", *not_run, *broken, ""]
        )

    def as_json(self) -> dict[str, object]:
        return {"good": self.good, **asdict(self)}
