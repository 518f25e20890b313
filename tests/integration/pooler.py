"""A PgBouncer in front of a database of a test, in transaction mode: each statement may meet another session."""

from __future__ import annotations

import os
import pwd
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg

from opensend_milter.host import requirements
from tests.integration.private_postgres import PASSWORD, SUPERUSER, Cluster, Database
from tests.waiting import await_of

SESSIONS = 1
"""For each role, so that all of its connections have to share."""


@contextmanager
def pooled(database: Database, directory: Path) -> Iterator[Database]:
    """Yield the database as it is reached by the pooler; `directory` is one that the user postgres can enter."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    settings, users = directory / "pgbouncer.ini", directory / "users"
    users.write_text("".join(f'"{name}" "{password}"\n' for name, password in _passwords(database).items()))
    settings.write_text(
        f"""[databases]
        {database.name} = host={database.cluster.directory} port={database.cluster.port}
        [pgbouncer]
        listen_addr = 127.0.0.1
        listen_port = {port}
        unix_socket_dir =
        auth_type = scram-sha-256
        auth_file = {users}
        pool_mode = transaction
        default_pool_size = {SESSIONS}
        server_login_retry = 1
        """.replace("        ", "")
    )
    for path in (settings, users):
        os.chown(path, pwd.getpwnam("postgres").pw_uid, -1)
        path.chmod(0o600)
    log = directory / "pgbouncer.log"
    command = ["pgbouncer", *([] if os.geteuid() else ["-u", "postgres"]), str(settings)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, env=requirements.environment({})
        )
    try:
        there = replace(database, cluster=_Behind(database.cluster, port))
        await_of(process, lambda: _answers(there.url), log.read_text)
        yield there
    finally:
        process.terminate()
        process.wait()


class _Behind(Cluster):
    """The same server at another port: whatever names its address names the pooler's."""

    def __init__(self, cluster: Cluster, port: int) -> None:
        super().__init__(cluster.directory, cluster.port)
        self._pooler = port

    def url(self, database: str, user: str = SUPERUSER, password: str = PASSWORD) -> str:
        direct = urlsplit(super().url(database, user, password))
        return urlunsplit(direct._replace(netloc=direct.netloc.replace(f":{self.port}", f":{self._pooler}")))


def _passwords(database: Database) -> dict[str, str]:
    roles = {path.name: path.read_text().strip() for path in database.password_dir.iterdir()}
    return {SUPERUSER: PASSWORD, **roles}


def _answers(url: str) -> bool:
    with suppress(psycopg.OperationalError):
        psycopg.connect(url).close()
        return True
    return False
