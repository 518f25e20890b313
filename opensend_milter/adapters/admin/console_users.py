"""ConsoleUsers: who may look at the console, who was shown what a message says, and who did what from there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

from psycopg.rows import class_row

from opensend_milter.adapters.admin.explaining import explained
from opensend_milter.adapters.admin.listing import Listed, listed, unwatched
from opensend_milter.adapters.admin.typed import printable_name
from opensend_milter.adapters.postgres.link import Connection, statements
from opensend_milter.core.errors import UsageError
from opensend_milter.core.model import EmailId, KeyId
from opensend_milter.core.passwords import Verifier


@dataclass(frozen=True, slots=True, kw_only=True)
class UserRow:
    """Somebody who may look."""

    name: str
    created_at: datetime
    sessions: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ViewRow:
    """Somebody was shown what a message says: its text, its html, or its bytes."""

    viewed_at: datetime
    viewer: str
    client_address: str
    email_id: str
    what: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionRow:
    """Somebody retried or canceled a message, or suppressed a recipient, or tried to."""

    done_at: datetime
    actor: str
    client_address: str
    action: str
    email_id: str
    address: str | None
    outcome: str


class ConsoleUsers:
    """The administrator's view, over one connection that it does not close."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def put(self, name: str, verifier: Verifier) -> str:
        """Let somebody look who has this password; one who is there already has a new one then. Return the name."""
        user = printable_name(name, "user of the console")
        self._execute("put", name=user, salt=verifier.salt, digest=verifier.digest)
        return user

    def list_users(self) -> list[UserRow]:
        """List who may look, by name."""
        with explained(), self._connection.cursor(row_factory=class_row(UserRow)) as cursor:
            return cursor.execute(_sql("list")).fetchall()

    def remove(self, name: str) -> None:
        """Let somebody look no more, from his next request on."""
        if not self._execute("remove", name=name):
            raise UsageError(f"the console has no user {name!r}: see `console user list`")

    def end_sessions(self, *, user: str | None = None, key_id: KeyId | None = None) -> int:
        """Have a user, the holders of a key, or all log in again; return how many sessions that were."""
        return self._execute("end", user_name=user, key_id=key_id)

    def views(
        self,
        *,
        email_id: EmailId | None,
        since: datetime | None,
        limit: int | None,
        progress: Callable[[int], None] = unwatched,
    ) -> Listed[ViewRow]:
        """List who was shown what a message says, latest first."""
        asked = {"email_id": email_id, "since": since}
        return listed(self._connection, _sql("views"), ViewRow, limit, asked, progress=progress)

    def actions(
        self,
        *,
        email_id: EmailId | None,
        since: datetime | None,
        limit: int | None,
        progress: Callable[[int], None] = unwatched,
    ) -> Listed[ActionRow]:
        """List who did what from the console, latest first."""
        asked = {"email_id": email_id, "since": since}
        return listed(self._connection, _sql("actions"), ActionRow, limit, asked, progress=progress)

    def _execute(self, name: str, /, **values: object) -> int:
        with explained():
            return self._connection.execute(_sql(name), values).rowcount


def _sql(name: str) -> LiteralString:
    return statements("console_users")[name]
