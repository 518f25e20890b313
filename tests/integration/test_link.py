"""A connection to Postgres: given up when the network is dead, as are others that were open then."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest

from opensend_milter.adapters.postgres.link import Link, connect, conninfo_for
from opensend_milter.core.errors import StoreUnavailable
from tests.chaos.cable import Cable
from tests.integration.private_postgres import Database
from tests.waiting import patience_s, scaled_s

PATIENCE_MS = 60_000
IMPATIENCE_S = 1.0


@pytest.mark.parametrize(("more", "patience_ms"), [("", 5_000), (f"?tcp_user_timeout={PATIENCE_MS}", PATIENCE_MS)])
def test_a_network_that_has_died_is_noticed_by_the_kernel(database: Database, more: str, patience_ms: int) -> None:
    info = conninfo_for(database.url + more, database.password_dir, "opensend_milter")
    with connect(info, application_name="t") as connection, socket.socket(fileno=os.dup(connection.fileno())) as end:
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 5
        assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == patience_ms


@contextmanager
def linked(info: str, timeout_s: float) -> Iterator[Link]:
    """Open a connection, and keep it."""
    with closing(Link(info, name="t", timeout_s=timeout_s)) as link:
        session_of(link)
        yield link


def session_of(link: Link) -> int:
    with link.lend() as connection:
        ((session,),) = connection.execute("SELECT pg_backend_pid()")
        return int(session)


def test_who_loses_a_connection_trusts_no_other_that_was_open(database: Database) -> None:
    """A firewall forgets all of them at once, and each would keep a message waiting."""
    with Cable(database.cluster.port) as cable:
        info = conninfo_for(database.url, database.password_dir, "opensend_milter", port=cable.port)
        with linked(info, scaled_s(IMPATIENCE_S)) as first, linked(info, patience_s()) as second:
            before = session_of(second)
            cable.turn_open("silent")
            with pytest.raises(StoreUnavailable):
                session_of(first)
            assert session_of(second) != before


def test_what_the_database_refuses_is_no_loss(database: Database) -> None:
    info = conninfo_for(database.url, database.password_dir, "opensend_milter")
    with linked(info, patience_s()) as first, linked(info, patience_s()) as second:
        before = session_of(second)
        with pytest.raises(StoreUnavailable), first.lend() as connection:
            connection.execute("SELECT token_hash FROM public.api_keys")
        assert session_of(second) == before
