"""VisitorStore over psycopg: who may look at the console, who is looking, and who read what a message says."""

from __future__ import annotations

import hashlib
from datetime import datetime
from typing import Literal, NamedTuple

from opensend_milter.adapters.postgres.link import statements
from opensend_milter.adapters.postgres.pool import Pool
from opensend_milter.core.model import KeyId
from opensend_milter.core.passwords import Verifier
from opensend_milter.core.visitors import SESSION_LASTS, Visitor

SQL = statements("console")
MOST_SESSIONS = 20
"""Of one user or key, the newest."""
MOST_TAKEN = 20
"""The newest; `console actions` lists all."""


class SessionRow(NamedTuple):
    """Whose a session is."""

    user_name: str | None
    key_id: str | None
    key_name: str | None
    networks: list[str] | None


class TakenRow(NamedTuple):
    """What somebody did about a message."""

    done_at: datetime
    actor: str
    action: str
    address: str | None
    outcome: str


class PostgresVisitors:
    """For any number of threads."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def verifier(self, name: str) -> Verifier | None:
        """Return what a user's password is known by; None: there is no such user."""
        for salt, digest in self._pool.all(SQL["verifier"], name=name):
            return Verifier(salt, digest)
        return None

    def key_of(self, secret: str) -> Visitor | None:
        """Return the holder of the key that this is a secret of, while it is good."""
        digest = hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()
        for key_id, name, networks in self._pool.all(SQL["key"], token_hash=digest):
            return _holder(key_id, name, networks)
        return None

    def begin(self, token: str, visitor: Visitor, client_address: str) -> None:
        """Begin a session that this token is shown for."""
        with self._pool.lend() as connection:
            connection.execute(
                SQL["begin"],
                {
                    "token_hash": _hash(token),
                    "user_name": visitor.name if visitor.sees_everything else None,
                    "key_id": visitor.key_id,
                    "client_address": client_address,
                    "lasts": SESSION_LASTS,
                    "kept": MOST_SESSIONS - 1,
                },
            )

    def visitor(self, token: str) -> Visitor | None:
        """Return whose session it is; None: nobody's, or nobody's any more."""
        for row in map(SessionRow._make, self._pool.all(SQL["visitor"], token_hash=_hash(token))):
            if row.user_name is not None:
                return Visitor(name=row.user_name)
            return _holder(row.key_id or "", row.key_name or "", row.networks)
        return None

    def end(self, token: str) -> None:
        """End a session."""
        with self._pool.lend() as connection:
            connection.execute(SQL["end"], {"token_hash": _hash(token)})

    def note_view(
        self, visitor: Visitor, client_address: str, email_id: str, what: Literal["text", "html", "raw"]
    ) -> None:
        """Note who is shown what a message says, before it is."""
        with self._pool.lend() as connection:
            connection.execute(
                SQL["note_view"],
                {"viewer": visitor.name, "client_address": client_address, "email_id": email_id, "what": what},
            )

    def taken(self, email_id: str) -> list[TakenRow]:
        """Return what was done about a message, the latest first."""
        return [TakenRow._make(row) for row in self._pool.all(SQL["taken"], email_id=email_id, most=MOST_TAKEN)]


def _holder(key_id: str, name: str, networks: list[str] | None) -> Visitor:
    return Visitor(name=name, key_id=KeyId(key_id), networks=None if networks is None else tuple(networks))


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()
