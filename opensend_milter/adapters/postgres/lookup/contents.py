"""What a message says: asked for by a role of its own, and each time noted in the log of the database's server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
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
    note = f"opensend-milter: contents of email {email_id} read by {_ODD.sub('?', reader)}"
    # LOG is above all that a server usually leaves out of its log; a parameter cannot be handed to DO.
    connection.execute(sql.SQL("DO $$ BEGIN RAISE LOG USING MESSAGE = {}; END $$").format(sql.Literal(note)))
    for headers, text, html, names in connection.execute(SQL["contents"], {"id": email_id, "most": MOST_CHARACTERS}):
        return Contents(
            headers=headers if isinstance(headers, dict) else None,
            text=text,
            html=html,
            attachments=tuple(str(name) for name in names or ()),
        )
    return None
