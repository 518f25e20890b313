"""What a message says: asked for by a role of its own, and each time noted in the log of the database's server."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import count
from typing import Any

from psycopg import sql

from opensend_milter.adapters.postgres.link import Connection, statements

SQL = statements("contents")
MOST_CHARACTERS = 1_000_000
"""Of each text."""
_ODD = re.compile(r"[^\w.@:() -]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What was read in a message when it was taken."""

    headers: Mapping[str, Any] | None
    text: str | None
    html: str | None
    attachments: tuple[str, ...]
    """Their names."""


def contents_of(connection: Connection, email_id: str, reader: str) -> Contents | None:
    """Note that `reader` reads it, and return what it says; None where it is gone."""
    _note(connection, email_id, reader)
    for headers, text, html, names in connection.execute(SQL["contents"], {"id": email_id, "most": MOST_CHARACTERS}):
        return Contents(
            headers=headers if isinstance(headers, dict) else None,
            text=text,
            html=html,
            attachments=tuple(str(name) for name in names or ()),
        )
    return None


@dataclass(frozen=True, slots=True)
class PostgresContents:
    """The same for any number of threads, and the message as it was handed in."""

    lend: Callable[[], AbstractContextManager[Connection]]

    def contents(self, email_id: str, reader: str) -> Contents | None:
        """Note that `reader` reads it, and return what it says; None where it is gone."""
        with self.lend() as connection:
            return contents_of(connection, email_id, reader)

    def pieces(self, email_id: str, reader: str) -> Iterator[bytes]:
        """Note that `reader` reads it, and return its bytes, as far as they are kept; who takes long holds nothing."""
        with self.lend() as connection:
            _note(connection, email_id, reader)
        return self._pieces(email_id)

    def _pieces(self, email_id: str) -> Iterator[bytes]:
        for number in count():
            with self.lend() as connection:
                row = connection.execute(SQL["piece"], {"id": email_id, "chunk_no": number}).fetchone()
            if row is None:
                return
            yield row[0]


def _note(connection: Connection, email_id: str, reader: str) -> None:
    note = f"opensend-milter: contents of email {email_id} read by {_ODD.sub('?', reader)}"
    # LOG is above all that a server usually leaves out of its log; a parameter cannot be handed to DO.
    connection.execute(sql.SQL("DO $$ BEGIN RAISE LOG USING MESSAGE = {}; END $$").format(sql.Literal(note)))
