"""Postgres: killed in parts and as a whole, restarted, away, read-only, full, locked."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from random import Random

import psycopg
from psycopg import sql

from tests.acceptance.test_faults import postgres_hung
from tests.chaos.faults.harm import Harm, state, struck
from tests.chaos.faults.processes import send
from tests.chaos.stand import Stand
from tests.waiting import await_found, await_true

ROLES = {
    "milter": "opensend_milter", "http": "opensend_http", "worker": "opensend_worker",
    "dovecot": "opensend_dovecot_auth",
}  # fmt: skip
HOT = (
    "public.emails", "public.email_events", "public.api_keys", "public.domains", "public.email_suppressions",
    "opensend_milter.jobs", "opensend_milter.submissions", "opensend_milter.raw_chunks",
    "opensend_milter.fingerprints",
)  # fmt: skip
"""What is read or written for each message."""
MOST_CONNECTIONS = 200


def backend_of(stand: Stand, chance: Random, role: str) -> int:
    def find() -> list[int] | None:
        with suppress(psycopg.OperationalError), stand.sql() as connection:
            query = "SELECT pid FROM pg_stat_activity WHERE usename = %s OR backend_type = %s ORDER BY pid"
            return [pid for (pid,) in connection.execute(query, [role, role])] or None
        return None

    return chance.choice(await_found(find, f"{role} is connected"))


def backend_killed(role: str) -> Harm:
    """Kill one process of Postgres, which ends all others for it and recovers."""
    return struck(lambda stand, chance: send(backend_of(stand, chance, role), signal.SIGKILL))


def terminated(role: str) -> Harm:
    """End all sessions of a role, as an administrator does."""

    def blow(stand: Stand, _: Random) -> None:
        with suppress(psycopg.OperationalError), stand.sql() as connection:
            connection.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = %s", [role])

    return struck(blow)


def ended(number: signal.Signals) -> Harm:
    """Signal the postmaster; the keeper starts it again."""
    return struck(lambda stand, _: send(stand.pid("postgres"), number))


@contextmanager
def away(stand: Stand) -> Iterator[None]:
    """Stop it and keep it from being started."""
    server = stand.pid("postgres")
    with stand.keeper_asleep():
        send(server, signal.SIGINT)
        # A zombie: its parent is asleep.
        await_true(lambda: ") Z " in Path(f"/proc/{server}/stat").read_text(), "Postgres has ended")
        yield


@contextmanager
def read_only(stand: Stand) -> Iterator[None]:
    with stand.sql() as connection:
        connection.execute("ALTER SYSTEM SET default_transaction_read_only = on")
        connection.execute("SELECT pg_reload_conf()")
        try:
            yield
        finally:
            connection.execute("ALTER SYSTEM RESET default_transaction_read_only")
            connection.execute("SELECT pg_reload_conf()")


@contextmanager
def exhausted(stand: Stand) -> Iterator[None]:
    """Take every connection that there is, those of ours first."""
    with ExitStack() as held:
        with suppress(psycopg.OperationalError):
            for _ in range(MOST_CONNECTIONS):
                connection = held.enter_context(stand.sql())
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename LIKE 'opensend_%'"
                )
        yield


def locked(table: str) -> Harm:
    """Lock a table as ALTER TABLE does."""

    @contextmanager
    def change(stand: Stand) -> Iterator[None]:
        with stand.sql() as connection, connection.transaction():
            connection.execute(
                sql.SQL("LOCK TABLE {} IN ACCESS EXCLUSIVE MODE").format(sql.Identifier(*table.split(".")))
            )
            yield

    return state(change)


FAULTS: dict[str, Harm] = {
    **{f"backend-killed-{name}": backend_killed(role) for name, role in ROLES.items()},
    **{f"backend-killed-{name}": backend_killed(name) for name in ("checkpointer", "walwriter")},
    **{f"sessions-ended-{name}": terminated(role) for name, role in ROLES.items()},
    "postmaster-killed": ended(signal.SIGKILL),
    "postgres-restarted-fast": ended(signal.SIGINT),
    "postgres-restarted-immediate": ended(signal.SIGQUIT),
    "postgres-away": state(away),
    "postgres-stopped": state(lambda stand: postgres_hung(stand.sandbox)),
    "postgres-read-only": state(read_only),
    "connections-exhausted": state(exhausted),
    **{f"locked-{table.partition('.')[2]}": locked(table) for table in HOT},
}
