"""`why`: find a message by anything that one knows of it, and tell what became of it."""

from __future__ import annotations

import getpass
import os
import socket
import sys
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from opensend_milter.adapters.admin.explaining import explained
from opensend_milter.adapters.postgres.link import Connection, Role, connect, conninfo_for
from opensend_milter.adapters.postgres.lookup.contents import Contents, contents_of
from opensend_milter.adapters.postgres.lookup.search import find
from opensend_milter.adapters.postgres.lookup.story import keys_named, story_of
from opensend_milter.cli import admin
from opensend_milter.cli.exits import configured
from opensend_milter.cli.output import (
    GAP,
    ID_START,
    AsJson,
    ConfigPath,
    Utc,
    broken,
    plain,
    progress,
    show,
    table_of,
    terminal_width,
)
from opensend_milter.cli.records.story_page import MOST_LINES, clock, line_of, page_of, said_by
from opensend_milter.config import Config
from opensend_milter.core.couriers import CourierName
from opensend_milter.core.errors import UsageError
from opensend_milter.core.lookup import Filters, Hit, Hits, Place
from opensend_milter.core.model import KeyId
from opensend_milter.core.rules import Rule
from opensend_milter.core.story import Moment, Story

Status = Literal[
    "queued", "scheduled", "processing", "uncertain", "sent", "delivered", "bounced", "complained", "suppressed",
    "failed", "canceled", "refused",
]  # fmt: skip
READER: Role = "opensend_reader"
BODY_READER: Role = "opensend_body_reader"
FOUND_AT_ONCE = 1_000
LOOK_EVERY_S = 1.0
SHARE = 10
"""Never more than this part of the time: who follows for days is nobody's burden."""
MOST_FOLLOWED = 10
"""Messages whose story is followed at once, the newest; of others a change of their status is told."""
MOST_REMEMBERED = 1_000
_SHOWN = 60
X = Annotated[
    str | None,
    typer.Argument(
        metavar="[X]",
        help="An id or either end of it, a queue id, a Message-ID, an address, @domain, words of a subject, or the ref"
        " of a refusal; nothing: the newest.",
    ),
]


def why(
    x: X = None,
    *,
    since: admin.Since = None,
    key: Annotated[
        str | None,
        typer.Option("--key", metavar="KEY", help="Only by this key: its id, either end of it, or its name."),
    ] = None,
    domain: Annotated[str | None, typer.Option("--domain", metavar="NAME", help="Only from this domain.")] = None,
    status: Annotated[
        Status | None, typer.Option("--status", metavar="STATUS", help="Only with this one, such as failed or refused.")
    ] = None,
    rule: Annotated[
        Rule | None, typer.Option("--rule", metavar="RULE", help="Only what this rule refused, such as too-large.")
    ] = None,
    courier: Annotated[
        CourierName | None, typer.Option("--courier", metavar="NAME", help="Only what this courier has tried.")
    ] = None,
    limit: admin.Limit = 50,
    every: admin.All = False,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with what comes in, until Ctrl-C.")] = False,
    body: Annotated[
        bool, typer.Option("--body", help="Also show what the one message says; that is noted in the database's log.")
    ] = False,
    utc: Utc = False,
    config: ConfigPath = None,
    as_json: AsJson = False,
) -> None:
    """Tell what became of a message, and what to do next.

    It is found by anything that is known of it. Where several are, they are listed, newest first.
    """
    for option, is_said in (("--body", body), ("--all", every)):
        if is_said and follow:
            raise typer.BadParameter("not with --follow", param_hint=option)
    with _reading(config, READER) as (settings, connection):
        filters = Filters(
            since=admin.moment(since),
            key_id=_key(connection, key),
            domain=domain,
            status=status,
            rule=rule.value if rule else None,
            courier=courier,
        )
        asked = _Asked(connection=connection, x=x, filters=filters, beside=settings.profile == "opensend", utc=utc)
        found = asked.everything() if every else asked.find(limit)
        if follow:
            _follow(asked, found, limit=limit, as_json=as_json)
            return
        one = asked.story(found.rows[0]) if len(found.rows) == 1 and not found.more else None
    contents = _contents(config, found.rows[0]) if body and one else None
    _show(asked, found, one, contents, as_json=as_json)
    if not found.rows:
        raise typer.Exit(1)


@contextmanager
def _reading(path: Path | None, reader: Role) -> Iterator[tuple[Config, Connection]]:
    """Connect as who may read that and no more, where there are roles; else as the URL says."""
    with configured(path) as settings:
        folder = settings.database.password_dir
        role = reader if folder and (folder / reader).exists() else None
        info = conninfo_for(settings.database.url, folder, role)
        with connect(info, application_name="opensend-milter-why") as connection, explained():
            yield settings, connection


def _contents(path: Path | None, hit: Hit) -> Contents | None:
    asking = os.environ.get("SUDO_USER")
    reader = f"{getpass.getuser()}{f' ({asking})' if asking else ''} at {socket.gethostname()}"
    with _reading(path, BODY_READER) as (_, connection):
        if hit.kind == "refusal":
            raise UsageError("--body: of a message that was refused nothing is kept")
        return contents_of(connection, hit.id, reader)


def _key(connection: Connection, asked: str | None) -> KeyId | None:
    if asked is None:
        return None
    found = keys_named(connection, asked)
    if len(found) != 1:
        shown = "".join(f"\n{key_id} {plain(name)}" for key_id, name in found)
        raise UsageError(f"--key: {len(found)} keys have an id that begins or ends so, or this name: {asked!r}{shown}")
    return found[0][0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What is looked for, and how it is told."""

    connection: Connection
    x: str | None
    filters: Filters
    beside: bool
    utc: bool

    def find(self, limit: int, before: Place | None = None) -> Hits:
        """Look once."""
        return find(self.connection, self.x, self.filters, limit=limit, before=before)

    def everything(self) -> Hits:
        """Look until there is no more."""
        rows: list[Hit] = []
        with progress() as say:
            while True:
                found = self.find(FOUND_AT_ONCE, rows[-1].place if rows else None)
                rows += found.rows
                if not found.more:
                    return Hits(rows=rows, further=found.further)
                say(f"found: {len(rows):,}, back to {plain(rows[-1].at)}")

    def story(self, hit: Hit) -> Story | None:
        """Tell of one; None: it is gone since."""
        return story_of(self.connection, hit, partial(clock, utc=self.utc), beside=self.beside)


def _show(asked: _Asked, found: Hits, one: Story | None, contents: Contents | None, *, as_json: bool) -> None:
    if as_json:
        show({**_as_object(found, one), **({"contents": contents} if contents else {})}, as_json=True, table=str)
    elif one:
        pages = [page_of(one, utc=asked.utc), *(said_by(contents) if contents else ())]
        show(None, as_json=False, table=lambda: "\n".join(pages), more=_left(found))
    elif found.rows:
        show(None, as_json=False, table=lambda: _table(found.rows, utc=asked.utc), more=_left(found))
    else:
        for line in filter(None, [*_nothing(asked), *_left(found).splitlines()]):
            sys.stderr.write("\n".join(broken(line, terminal_width(), MOST_LINES)) + "\n")


def _as_object(found: Hits, one: Story | None) -> dict[str, object]:
    return {
        "messages": found.rows,
        "more": found.more,
        "searched_back_to": found.searched_back_to,
        "noted_to": found.noted_to,
        "story": one,
    }


def _table(rows: list[Hit], *, utc: bool) -> str:
    columns = ["ID", "AT", "STATUS", "FROM", "TO", "SUBJECT"]
    cells = [(hit.ref or hit.id, hit.at, _standing(hit), hit.sender, hit.recipients, hit.subject or "") for hit in rows]
    return table_of(columns, cells, drop=["FROM", "SUBJECT", "AT"], utc=utc)


def _standing(hit: Hit) -> str:
    return f"{hit.status}: {hit.rule}" if hit.rule else hit.status


def _left(found: Hits) -> str:
    """Say what was not looked at, or is not shown; nothing, where all is."""
    said = []
    if found.more:
        said.append(f"{len(found.rows):,}, newest first, and there are more; see --all, --limit and the filters")
    if found.searched_back_to:
        but = f", and before {plain(found.noted_to)}: nothing else is noted yet" if found.noted_to else " only"
        said.append(f"searched back to {plain(found.searched_back_to)}{but}; a whole id finds what is older")
    return "\n".join(said)


def _nothing(asked: _Asked) -> Iterator[str]:
    if asked.x is None:
        yield "nothing is recorded that these filters let through"
        return
    shown = plain(asked.x[:_SHOWN]) + ("…" if len(asked.x) > _SHOWN else "")
    yield f"nothing is known by '{shown}'"
    yield (
        "looked for among ids, queue ids, request ids, Message-IDs, addresses, refs and words of subjects, of messages"
        " and of refusals; what Postfix itself refused is in its log"
    )


@dataclass(slots=True)
class _Memory:
    """What a follower has been told."""

    moments: OrderedDict[str, set[Moment]] = field(default_factory=OrderedDict)
    statuses: OrderedDict[str, str] = field(default_factory=OrderedDict)

    def new_moments(self, story: Story) -> list[Moment]:
        """Return what was not told of a message yet."""
        told = self.moments.setdefault(story.id, set())
        new = [one for one in story.timeline if one not in told]
        told.update(new)
        _forget(self.moments)
        return new

    def is_new(self, hit: Hit) -> bool:
        """Tell whether it is new, or stands otherwise than before."""
        before, self.statuses[hit.id] = self.statuses.get(hit.id), hit.status
        _forget(self.statuses)
        return before != hit.status


def _forget(remembered: OrderedDict[str, Any]) -> None:
    while len(remembered) > MOST_REMEMBERED:
        remembered.popitem(last=False)


def _follow(asked: _Asked, found: Hits, *, limit: int, as_json: bool) -> None:
    """Tell what comes in, until somebody has seen enough: Ctrl-C, or the other end of a pipe that closes."""
    memory = _Memory()
    took_s = 0.0
    try:
        while True:
            for value, line in _news(asked, found, memory):
                show(value, as_json=as_json, table=partial(str, line))
            sys.stdout.flush()
            time.sleep(max(LOOK_EVERY_S, took_s * SHARE))
            began = time.monotonic()
            found = asked.find(limit)
            took_s = time.monotonic() - began
    except KeyboardInterrupt:
        return
    except BrokenPipeError:
        # What is left in the buffer must not be tried again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _news(asked: _Asked, found: Hits, memory: _Memory) -> Iterator[tuple[object, str]]:
    """Return what was not told yet, the oldest first, as an object and as a line."""
    followed = found.rows[:MOST_FOLLOWED] if asked.x else []
    for hit in reversed(found.rows):
        changed = memory.is_new(hit)
        if hit not in followed:
            if changed:
                yield hit, _line(hit, utc=asked.utc)
        elif story := asked.story(hit):
            for moment in memory.new_moments(story):
                yield {"id": story.id, **asdict(moment)}, f"{hit.id[:ID_START]} {line_of(moment, utc=asked.utc)}"


def _line(hit: Hit, *, utc: bool) -> str:
    cells = (
        hit.ref or hit.id,
        plain(hit.at, utc=utc),
        _standing(hit),
        hit.sender,
        ", ".join(hit.recipients),
        hit.subject,
    )
    return GAP.join(plain(cell) for cell in cells if cell)
