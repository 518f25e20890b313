"""A connection to Postgres: given up when the network is dead."""

from __future__ import annotations

import os
import socket

import pytest

from opensend_milter.adapters.postgres.link import connect, conninfo_for
from tests.integration.private_postgres import Database

PATIENCE_MS = 60_000


@pytest.mark.parametrize(("more", "patience_ms"), [("", 5_000), (f"?tcp_user_timeout={PATIENCE_MS}", PATIENCE_MS)])
def test_a_network_that_has_died_is_noticed_by_the_kernel(database: Database, more: str, patience_ms: int) -> None:
    info = conninfo_for(database.url + more, database.password_dir, "opensend_milter")
    with connect(info, application_name="t") as connection, socket.socket(fileno=os.dup(connection.fileno())) as end:
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 5
        assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == patience_ms
