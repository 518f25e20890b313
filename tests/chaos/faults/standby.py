"""The database moves to another host: a standby is promoted, and later the first host again."""

from __future__ import annotations

import pwd
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import LiteralString

import psycopg
from psycopg import conninfo

from opensend_milter.host import requirements
from tests.chaos.faults.harm import Harm, needed, state
from tests.chaos.faults.processes import send
from tests.chaos.stand import Stand
from tests.waiting import await_true

_SYNCHRONOUS: LiteralString = "ALTER SYSTEM SET synchronous_standby_names = '*'"
"""What was answered 250 is on both: a standby that lags would lose it."""


def _programs() -> Path:
    return needed(requirements.postgres_programs(), "PostgreSQL")


def _as_postgres(*command: str | Path) -> subprocess.Popen[bytes]:
    account = pwd.getpwnam("postgres")
    return subprocess.Popen(
        [str(word) for word in command], user=account.pw_uid, group=account.pw_gid, extra_groups=[],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
    )  # fmt: skip


def _copy(url: str, place: Path) -> None:
    """Make a standby's directory of a running server."""
    copied = _as_postgres(_programs() / "pg_basebackup", "-d", url, "-D", place, "-R", "-c", "fast", "-X", "stream")
    assert copied.wait() == 0, "pg_basebackup"


def _answers(url: str, *, standby: bool) -> bool:
    with suppress(psycopg.OperationalError), psycopg.connect(url, connect_timeout=5) as connection:
        return connection.execute("SELECT pg_is_in_recovery()").fetchall() == [(standby,)]
    return False


def _follows(url: str) -> bool:
    """Tell whether a server has a standby that a commit waits for."""
    with suppress(psycopg.OperationalError), psycopg.connect(url, connect_timeout=5) as connection:
        query = (
            "SELECT count(*) FROM pg_stat_replication WHERE sync_state IN ('sync', 'quorum') AND state = 'streaming'"
        )
        return connection.execute(query).fetchall() == [(1,)]
    return False


def _synchronous(url: str, wish: LiteralString) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(wish)
        connection.execute("SELECT pg_reload_conf()")


def _promote(url: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("SELECT pg_promote()")


@contextmanager
def moved(stand: Stand) -> Iterator[None]:
    """Kill the first, promote the second; then the same the other way round."""
    port = needed(stand.standby_port, "second host")
    first = stand.sandbox["SANDBOX_DATABASE_URL"]
    second = conninfo.make_conninfo(first, port=port)
    place = stand.directory / "standby"
    place.mkdir(mode=0o700)
    shutil.chown(place, "postgres", "postgres")
    _copy(first, place)
    options = (f"port={port}", "listen_addresses=127.0.0.1", f"unix_socket_directories={stand.directory}/run/pg")
    settings = [word for option in (*options, "max_connections=150") for word in ("-c", option)]
    standby = _as_postgres(_programs() / "postgres", "-D", place, *settings)
    try:
        await_true(lambda: _answers(second, standby=True), "the standby answers")
        _synchronous(first, _SYNCHRONOUS)
        await_true(lambda: _follows(first), "the standby follows")
        with stand.keeper_asleep():
            server = stand.pid("postgres")
            send(server, signal.SIGQUIT)
            await_true(lambda: ") Z " in Path(f"/proc/{server}/stat").read_text(), "the first has ended")
            _promote(second)
            yield
            _begin_anew(stand, second)
        await_true(lambda: _answers(first, standby=True), "the first is a standby now")
        _synchronous(second, _SYNCHRONOUS)
        await_true(lambda: _follows(second), "it follows the second")
        send(standby.pid, signal.SIGINT)
        standby.wait()
        _promote(first)
        await_true(lambda: _answers(first, standby=False), "the first is itself again")
    finally:
        if standby.poll() is None:
            standby.kill()
        standby.wait()
        with suppress(psycopg.OperationalError):  # or each commit waits for a standby that is gone
            _synchronous(first, "ALTER SYSTEM RESET synchronous_standby_names")
        shutil.rmtree(place)


def _begin_anew(stand: Stand, source: str) -> None:
    """Make the first host's cluster anew from the second's; its directory is a mount and stays."""
    cluster = stand.directory / "postgres"
    for path in cluster.iterdir():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    _copy(source, cluster)


FAULTS: dict[str, Harm] = {"standby-promoted": state(moved)}
