"""A connection to Postgres: given up with its network, with others that were open then; and of use behind a pooler."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from opensend_milter.adapters.postgres.jobs import PostgresJobStore
from opensend_milter.adapters.postgres.link import Link, connect, conninfo_for, is_pooled
from opensend_milter.adapters.schema import migrations
from opensend_milter.core.errors import StoreUnavailable, UsageError
from opensend_milter.core.model import Sent
from tests.chaos.cable import Cable
from tests.integration.gate_sides import Gate, Real, needs_dovecot
from tests.integration.outbox import LANE, add_email, job_store, rows, state
from tests.integration.pooler import pooled
from tests.integration.private_postgres import Database
from tests.integration.serving import serving
from tests.milter_client import Answer
from tests.waiting import patience_s, scaled_s

PATIENCE_MS = 60_000
IMPATIENCE_S = 1.0
TAKEN = Answer("d")
MAIL = b"From: app@example.org\r\nSubject: hi\r\n\r\nhi\r\n"
OFTEN = 8
"""After five times psycopg would have Postgres keep a statement."""


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


# ---------------------------------------------------------------------- PgBouncer


@pytest.fixture
def directory() -> Iterator[Path]:
    """Sockets have short names, and the user postgres must be able to enter."""
    place = Path(tempfile.mkdtemp(prefix="os-pool-", dir="/tmp"))
    place.chmod(0o755)
    yield place
    shutil.rmtree(place)


@pytest.fixture
def pool(database: Database, directory: Path) -> Iterator[Database]:
    if not shutil.which("pgbouncer", path="/usr/sbin:/usr/bin"):
        pytest.skip("there is no pgbouncer: tools/setup tests")
    with pooled(database, directory) as there:
        yield there


def test_a_pooler_is_told_from_the_server(database: Database, pool: Database) -> None:
    for there, expected in ((database, False), (pool, True)):
        with connect(conninfo_for(there.url, None, None), application_name="t") as connection:
            assert is_pooled(connection) == expected
            assert (connection.prepare_threshold is None) == expected


def test_all_processes_of_serve_share_a_session(pool: Database) -> None:
    with serving(pool.url, pool.password_dir) as served, served.client() as one, served.client() as other:
        for number in range(OFTEN):
            for client in (one, other):
                raw = b"Message-ID: <%d.%d@example.org>\r\n" % (number, client is one) + MAIL
                assert client.message(served.key, raw, "to@example.net") == TAKEN
        assert served.counts() == (2 * OFTEN,) * 3
        assert "Error" not in served.log


def test_the_threads_of_a_worker_share_a_session(database: Database, pool: Database) -> None:
    with closing(job_store(pool, worker="one")) as one, closing(job_store(pool, worker="other")) as other:
        for number in range(OFTEN):
            for store in (one, other):
                deliver(database, store, f"{number}")
    assert rows(database, "SELECT count(*) FROM pg_stat_activity WHERE usename = 'opensend_worker'") == [(1,)]


def deliver(database: Database, store: PostgresJobStore, reply: str) -> None:
    email_id = add_email(database)
    assert [one.email_id for one in store.due_announcements(1)] == [email_id]
    job = store.claim_due(LANE)
    assert job
    assert store.begin(job)
    store.record_sent(job, Sent(courier="smtp", reply=reply))
    assert state(database, email_id) == ("sent", None)


@needs_dovecot
def test_dovecot_asks_by_a_pooler(pool: Database, directory: Path) -> None:
    gate = Gate(directory)
    gate.write_config(database={"password_dir": str(pool.password_dir)})
    real = Real(gate, pool)
    with gate.running(), real.dovecot(), closing(gate.client()) as client:
        assert client.plain(real.key.token) == f"OK\t1\tuser={real.key.id}"


@pytest.mark.parametrize("run", [migrations.init, migrations.migrate])
def test_a_migration_wants_the_server_itself(pool: Database, run: Callable[[str, Path], object]) -> None:
    """Its lock belongs to a session."""
    with pytest.raises(UsageError, match="pooler"):
        run(pool.url, pool.password_dir)
