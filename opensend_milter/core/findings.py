"""What an examination of a host finds: checks with a name and a reason, each with what was seen and the mend."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

from opensend_milter.core.errors import OpensendError, UsageError


class Result(Enum):
    """How a check ended."""

    GOOD = "good"
    WARNING = "warning"
    PROBLEM = "problem"
    SKIPPED = "skipped"


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look found."""

    result: Result
    text: str
    mend: str = ""
    """Where there is one, a command to paste."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that is looked at."""

    name: str
    """`part.thing`; the part alone names all of its checks."""
    why: str
    look: Callable[[], Seen]
    security: bool = False
    """Stands on the security checklist."""
    needs: str = ""
    """The check without which this one could not see anything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What became of a check."""

    name: str
    result: Result
    seen: str
    why: str
    mend: str
    security: bool


def good(text: str) -> Seen:
    """As it should be."""
    return Seen(Result.GOOD, text)


def warning(text: str, mend: str = "") -> Seen:
    """Mail flows, and somebody should look at it."""
    return Seen(Result.WARNING, text, mend)


def problem(text: str, mend: str = "") -> Seen:
    """Mail is lost, late, refused or open to others."""
    return Seen(Result.PROBLEM, text, mend)


def skipped(reason: str) -> Seen:
    """Not looked at."""
    return Seen(Result.SKIPPED, reason)


def chosen(checks: Sequence[Check], only: Sequence[str]) -> list[Check]:
    """Return those of these names or parts, all where none is named; raise UsageError for a name of none."""
    for wanted in only:
        if not any(_is_named(check, wanted) for check in checks):
            parts = ", ".join(dict.fromkeys(check.name.partition(".")[0] for check in checks))
            raise UsageError(f"--only: no check is called {wanted!r}; the parts are {parts}")
    return [check for check in checks if not only or any(_is_named(check, wanted) for wanted in only)]


def _is_named(check: Check, wanted: str) -> bool:
    return wanted in {check.name, check.name.partition(".")[0]}


def examine(checks: Sequence[Check], selected: Sequence[Check]) -> Iterator[Finding]:
    """Look at the selected ones in turn; one that cannot be looked at is a finding too, never the end."""
    by_name = {check.name: check for check in checks}
    looked: dict[str, Seen] = {}

    def seen(check: Check) -> Seen:
        if check.name not in looked:
            needed = by_name.get(check.needs)
            if needed and seen(needed).result in {Result.PROBLEM, Result.SKIPPED}:
                looked[check.name] = skipped(f"needs {needed.name}")
            else:
                looked[check.name] = _look(check)
        return looked[check.name]

    for check in selected:
        found = seen(check)
        yield Finding(
            name=check.name,
            result=found.result,
            seen=found.text,
            why=check.why,
            mend=found.mend,
            security=check.security,
        )


def _look(check: Check) -> Seen:
    try:
        return check.look()
    except OpensendError as error:
        if isinstance(error.__cause__, PermissionError):
            return skipped(f"{error}: run it as root")
        return problem(str(error))
    except PermissionError as error:
        return skipped(f"{error.filename or 'something'} may not be looked at: run it as root")
    except Exception as error:  # noqa: BLE001  # a broken host must not keep the other checks from being made
        return problem(f"could not be looked at: {type(error).__name__}: {error}")
