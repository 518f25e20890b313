"""What a person means who gives an id, or one of its ends: the first 13 characters or more, or the last 12."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol, TypeVar

from opensend_milter.adapters.admin.explaining import explained
from opensend_milter.adapters.postgres.link import Connection, statements
from opensend_milter.core.errors import UsageError
from opensend_milter.core.ids import START, is_end, range_of
from opensend_milter.core.model import EmailId

SHORTEST_START = 4
"""Of what there are few of: keys, webhooks."""
NEWEST = 100_000
"""Emails among which an id is looked for by its end: no index knows that."""
MOST_SHOWN = 20


class Identified(Protocol):
    """A row with an id."""

    @property
    def id(self) -> str: ...


Row = TypeVar("Row", bound=Identified)


def start_of(text: str, what: str) -> str:
    """Return what ids of a few rows are compared with; `what` says in the error whose id it is."""
    start = text.strip().lower()
    if len(start) < SHORTEST_START:
        raise UsageError(
            f"an id of a {what}, or at least its first {SHORTEST_START} characters, is needed, not {start!r}"
        )
    return start


def the_one(asked: str, found: Sequence[Row], what: str, listed: str) -> Row:
    """Return the only row that was found; `listed`: the command that shows all of them."""
    if not found:
        raise UsageError(f"no {what} has an id that begins or ends with {asked!r}: see `{listed}`")
    if len(found) > 1:
        raise UsageError(_ambiguous(asked, [one.id for one in found]))
    return found[0]


def emails_named(connection: Connection, asked: Iterable[str]) -> Mapping[str, Sequence[EmailId]]:
    """Return by each name the emails that it may mean: an id or an end of one, or the latest of a queue id."""
    names = list(dict.fromkeys(asked))
    ranges = [range_of(name) or (None, None) for name in names]
    found: dict[str, list[EmailId]] = {name: [] for name in names}
    with explained():
        for name, email_id in connection.execute(
            statements("admin")["emails_beginning"],
            {
                "asked": names,
                "first": [first for first, _ in ranges],
                "last": [last for _, last in ranges],
                "most": MOST_SHOWN + 1,
            },
        ):
            found[name].append(EmailId(email_id))
        ends = {name: name.strip().lower() for name in names if not found[name] and is_end(name)}
        if ends:
            rows = connection.execute(
                statements("admin")["emails_ending"], {"ends": list(ends.values()), "newest": NEWEST}
            ).fetchall()
            found |= {name: [EmailId(email_id) for how, email_id in rows if how == end] for name, end in ends.items()}
    return found


def the_email(asked: str, found: Sequence[EmailId]) -> EmailId | None:
    """Return the only email that was found, or none; raise UsageError where there are several."""
    if len(found) > 1:
        raise UsageError(_ambiguous(asked, found))
    return found[0] if found else None


def no_email(asked: Iterable[str]) -> UsageError:
    """Say that none is known by these names."""
    names = list(asked)
    hint = (
        f" (by its end an email is found among the newest {NEWEST:,} only: give its first {START} characters)"
        if any(map(is_end, names))
        else ""
    )
    return UsageError(f"no email has the id or queue id {', '.join(names)}: see `email list`, `email refusals`{hint}")


def _ambiguous(asked: str, ids: Sequence[str]) -> str:
    more = ["..."] if len(ids) > MOST_SHOWN else []
    return "\n".join([f"{asked!r} may be any of these, name one by its whole id:", *ids[:MOST_SHOWN], *more])
