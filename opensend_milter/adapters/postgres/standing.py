"""Where recipients stand, out of the rows that say so: the same for whoever asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from opensend_milter.core.fates import Fate, Result, Work, fates


class Recorded(Protocol):
    """What was recorded of a message: of `standing` in shared.sql, and of its own row."""

    @property
    def status(self) -> str: ...

    @property
    def recipients(self) -> Sequence[str]: ...

    @property
    def fared(self) -> Sequence[tuple[str, str, str]] | None:
        """Address, outcome, reason."""
        ...

    @property
    def dropped(self) -> Sequence[Mapping[str, str]] | None: ...

    @property
    def work_state(self) -> str | None:
        """None: the delivery is finished, or not ours."""
        ...

    @property
    def work_attempts(self) -> int | None: ...

    @property
    def work_left(self) -> Sequence[str] | None: ...

    @property
    def work_reason(self) -> str | None: ...


def fates_of(row: Recorded) -> tuple[Fate, ...]:
    """Say where each recipient stands, those who were left out too."""
    work = None
    if row.work_state:
        work = Work(state=row.work_state, attempts=row.work_attempts or 0, left=row.work_left, reason=row.work_reason)
    return fates(
        status=row.status,
        recipients=row.recipients,
        results={email: Result(outcome=how, reason=why) for email, how, why in row.fared or ()},
        left_out={one["email"]: one["reason"] for one in row.dropped or ()},
        work=work,
    )
