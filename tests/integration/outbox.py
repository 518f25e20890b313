"""Fills and reads the tables that the worker lives on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from opensend_milter.adapters.postgres.jobs import Keeping, PostgresJobStore
from opensend_milter.adapters.postgres.link import conninfo_for
from opensend_milter.core.ids import new_email_id
from opensend_milter.core.model import EmailId, Lane, UserId
from tests.integration.private_postgres import Database
from tests.jobs import RAW

LANE = Lane(UserId("u1"), None)
"""Where `add_email` puts what it adds."""


def job_store(
    database: Database,
    *,
    worker: str = "w",
    lease_s: float = 60,
    hand_over: bool = False,
    timeout_s: float = 20,
    keeping: Keeping = Keeping(),  # noqa: B008  # frozen
) -> PostgresJobStore:
    """Open the store as the worker's own role."""
    info = conninfo_for(database.url, database.password_dir, "opensend_worker")
    return PostgresJobStore(
        info,
        worker=worker,
        lease_s=lease_s,
        timeout_s=timeout_s,
        hand_over=hand_over,
        keeping=keeping,
    )


def add_email(
    database: Database,
    *,
    raw: bytes = RAW,
    recipients: Sequence[str] = ("to@example.net",),
    status: str = "queued",
    chunk_bytes: int = 1_048_576,
    queue_id: str = "4Xq",
    user_id: str = "u1",
    courier: str = "",
) -> EmailId:
    """Store a message as a front door does."""
    email_id = new_email_id()
    with database.connect() as connection, connection.transaction():
        connection.execute(
            'INSERT INTO emails (id, "from", "to", subject, status, user_id)'
            " VALUES (%s, 'app@example.org', '[]', 'hi', %s, %s)",
            [email_id, status, user_id],
        )
        connection.execute(
            "INSERT INTO opensend_milter.submissions (email_id, received_at, user_id, key_id, front_door, queue_id,"
            " client_address, tls, sender, from_address, recipients, size_bytes, sha256) VALUES"
            " (%s, now(), %s, gen_random_uuid(), 'smtp', %s, '192.0.2.7', 'TLSv1.3', 'bounce@elsewhere.example',"
            " 'app@example.org', %s, %s, sha256(%s))",
            [email_id, user_id, queue_id, list(recipients), len(raw), raw],
        )
        for number, at in enumerate(range(0, len(raw), chunk_bytes)):
            connection.execute(
                "INSERT INTO opensend_milter.raw_chunks VALUES (%s, %s, %s)",
                [email_id, number, raw[at : at + chunk_bytes]],
            )
        connection.execute(
            "INSERT INTO opensend_milter.jobs (email_id, user_id, courier) VALUES (%s, %s, %s)",
            [email_id, user_id, courier],
        )
    return email_id


def add_emails(database: Database, count: int) -> list[EmailId]:
    """Store many, in one transaction; each has its id for a subject."""
    ids = [new_email_id() for _ in range(count)]
    raws = [b"From: app@example.org\r\nDate: x\r\nSubject: %s\r\n\r\nhi\r\n" % one.encode() for one in ids]
    with database.connect() as connection, connection.transaction():
        for statement in (
            """INSERT INTO emails (id, "from", "to", subject, status, user_id)
            SELECT id, 'app@example.org', '[]', 'hi', 'queued', 'u1' FROM given""",
            """INSERT INTO opensend_milter.submissions (email_id, received_at, user_id, key_id, front_door, queue_id,
                client_address, tls, sender, from_address, recipients, size_bytes, sha256)
            SELECT id, now(), 'u1', gen_random_uuid(), 'smtp', '4Xq', '192.0.2.7', '', '', 'app@example.org',
                '{to@example.net}', length(raw), sha256(raw) FROM given""",
            "INSERT INTO opensend_milter.raw_chunks SELECT id, 0, raw FROM given",
            "INSERT INTO opensend_milter.jobs (email_id, user_id) SELECT id, 'u1' FROM given",
        ):
            given = "WITH given AS (SELECT * FROM unnest(%s::uuid[], %s::bytea[]) AS g (id, raw)) "
            connection.execute((given + statement).encode(), [ids, raws])
    return ids


def rows(database: Database, query: str, *values: Any) -> list[tuple[Any, ...]]:
    """Ask as superuser."""
    with database.connect() as connection:
        cursor = connection.execute(query.encode(), values)
        return cursor.fetchall() if cursor.description else []


def state(database: Database, email_id: EmailId) -> tuple[str | None, str | None]:
    """Return the email's status and its job's state."""
    ((status, job_state),) = rows(
        database,
        "SELECT (SELECT status FROM emails WHERE id = %s),"
        " (SELECT state FROM opensend_milter.jobs WHERE email_id = %s)",
        email_id,
        email_id,
    )
    return status, job_state


def events(database: Database, email_id: EmailId) -> list[tuple[str, str]]:
    """Return type and source id of all events, oldest first."""
    found = rows(
        database, "SELECT type, source_id FROM email_events WHERE email_id = %s ORDER BY received_at", email_id
    )
    return [(kind, source_id) for kind, source_id in found]


def end_leases(database: Database) -> None:
    """Let a lease's time pass."""
    rows(
        database, "UPDATE opensend_milter.jobs SET lease_until = now() - interval '1 second' WHERE lease_id IS NOT NULL"
    )
