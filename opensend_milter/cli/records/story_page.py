"""The story of one message on one screen."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from opensend_milter.adapters.postgres.lookup.contents import Contents
from opensend_milter.cli.output import broken, plain, table_of, terminal_width
from opensend_milter.core.story import Moment, Standing, Story

MOST_LINES = 3
"""Of what one line of the story may take of a terminal."""
FIRST, LAST = 5, 30
"""Of a long story, what a terminal shows of its beginning and of its end."""
MOST_RECIPIENTS = 20
_INDENT = "  "
_COLUMNS = ("RECIPIENT", "STATE", "SINCE", "WHAT WAS SAID", "SUPPRESSED")


def clock(at: datetime, *, utc: bool) -> str:
    """Say a time as it is said within a sentence: of today the minute."""
    local = at.astimezone()
    if utc or terminal_width() is None:
        return plain(at, utc=utc)
    return f"{local:%H:%M}" if local.date() == datetime.now().astimezone().date() else f"{local:%Y-%m-%d %H:%M}"


def page_of(story: Story, *, utc: bool) -> str:
    """Lay it out; on a terminal what is long is cut."""
    return "\n".join(_lines(story, utc=utc))


def line_of(moment: Moment, *, utc: bool) -> str:
    """Lay out one line of the story by itself."""
    return " ".join(filter(None, [plain(moment.at, utc=utc), moment.what, _said(moment)]))


def said_by(contents: Contents) -> Iterator[str]:
    """Lay out what a message says; nothing in it moves the cursor."""
    yield ""
    yield from (f"{name}: {plain(value)}" for name, value in sorted((contents.headers or {}).items()))
    yield from (f"attachment: {plain(name)}" for name in contents.attachments)
    said = contents.text or contents.html or ""
    yield ""
    yield from map(plain, said.replace("\r\n", "\n").split("\n"))


def _lines(story: Story, *, utc: bool) -> Iterator[str]:
    width = terminal_width()
    yield from broken(plain(story.verdict), width, MOST_LINES)
    if story.cause:
        yield from broken(story.cause, width, MOST_LINES)
    yield ""
    about = {
        "id": story.id,
        "ref": story.ref,
        "queue id": story.queue_id,
        "Message-ID": story.message_id,
        "from": story.sender,
        "subject": story.subject,
    }
    yield from _beside([(name, plain(text)) for name, text in about.items() if text], width)
    yield ""
    yield from _timeline(story, width, utc=utc)
    yield ""
    yield from _recipients(story, width, utc=utc)
    for step in story.next_steps:
        yield ""
        whom = f" ({', '.join(step.about[:2])}{', ...' if len(step.about) > 2 else ''})" if step.about else ""  # noqa: PLR2004
        yield from broken(plain(f"Next: {step.text}{whom}"), width, MOST_LINES)
        if step.command:
            yield f"{_INDENT}{plain(step.command)}"


def _timeline(story: Story, width: int | None, *, utc: bool) -> Iterator[str]:
    moments, left = story.timeline, len(story.timeline) - FIRST - LAST
    if width is None or left <= 0:
        yield from _beside([_row(one, utc=utc) for one in moments], width)
    else:
        yield from _beside([_row(one, utc=utc) for one in moments[:FIRST]], width)
        yield f"... {left:,} more; --json has them all"
        yield from _beside([_row(one, utc=utc) for one in moments[-LAST:]], width)


def _row(moment: Moment, *, utc: bool) -> tuple[str, str]:
    return plain(moment.at, utc=utc), " ".join(filter(None, [moment.what, _said(moment)]))


def _said(moment: Moment) -> str:
    return plain(": ".join(filter(None, [moment.who, moment.text])))


def _beside(rows: list[tuple[str, str]], width: int | None) -> Iterator[str]:
    """Set texts beside their names, broken under themselves."""
    margin = max(len(name) for name, _ in rows)
    room = max(width - margin - len(_INDENT), 1) if width else None
    for name, text in rows:
        first, *more = broken(text, room, MOST_LINES)
        yield f"{name:<{margin}}{_INDENT}{first}".rstrip()
        yield from (f"{'':<{margin}}{_INDENT}{line}" for line in more)


def _recipients(story: Story, width: int | None, *, utc: bool) -> Iterator[str]:
    shown = story.recipients if width is None else story.recipients[:MOST_RECIPIENTS]
    cells = [_cells(one) for one in shown]
    told = [at for at in range(len(_COLUMNS)) if any(row[at] for row in cells)]
    columns, rows = [_COLUMNS[at] for at in told], [[row[at] for at in told] for row in cells]
    yield table_of(columns, rows, drop=[name for name in ("SINCE", "SUPPRESSED") if name in columns], utc=utc)
    if len(shown) < len(story.recipients):
        yield f"... {len(story.recipients) - len(shown):,} more; --json has them all"


def _cells(one: Standing) -> tuple[object, ...]:
    return one.email, one.status, one.at, one.reason, one.suppressed
