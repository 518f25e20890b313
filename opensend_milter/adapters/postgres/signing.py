"""The one secret from which every key that we sign with is derived."""

from __future__ import annotations

from opensend_milter.adapters.postgres.link import Connection, statements
from opensend_milter.core.errors import StoreUnavailable

SQL = statements("feedback")


def signing_secret(connection: Connection) -> bytes:
    """Return it; `db migrate` has made it."""
    row = connection.execute(SQL["secret"]).fetchone()
    if row is None:
        raise StoreUnavailable("opensend_milter.secrets is empty: `db migrate` fills it")
    return bytes(row[0])
