"""The programs of a sandbox in the order they are started, each with how it is asked whether it answers."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import smtplib
import socket
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPException
from pathlib import Path
from signal import SIGINT, SIGTERM
from typing import Any

import psycopg
from psycopg import sql

from opensend_milter import config as configuration
from opensend_milter.host import requirements
from opensend_milter.host.rendering.certificates import find_certificate
from opensend_milter.host.rendering.dovecot import DovecotSite, Version, greeting, render_dovecot
from opensend_milter.host.rendering.postfix import PostfixSite, render_postfix
from opensend_milter.host.sandbox.keeper import NotStarted, Program, heir, tail
from opensend_milter.host.sandbox.state import (
    DATABASE,
    QUEUE_NAME,
    SUPERUSER,
    Layout,
    SandboxState,
    service_url,
)

PROBE_S = 5.0
PROGRAM_S = 60.0
WRITTEN_AT = 0
_AWS = {"AWS_ACCESS_KEY_ID": "sandbox", "AWS_SECRET_ACCESS_KEY": "sandbox", "AWS_EC2_METADATA_DISABLED": "true"}
_FAST = ("fsync=off", "synchronous_commit=off", "full_page_writes=off")


@dataclass(frozen=True, slots=True)
class Programs:
    """Makes the list; `prepare` is called once, when Postgres answers for the first time."""

    layout: Layout
    state: SandboxState
    prepare: Callable[[], None]
    environment: Mapping[str, str] = field(default_factory=lambda: requirements.environment({}))

    def __iter__(self) -> Iterator[Program]:
        """In the order of starting."""
        yield self._postgres()
        if self.state.queue == "sqs":
            yield self._sqs()
        yield self._dovecot()
        yield self._ours("auth-gate")
        yield self._ours("serve")
        if self.state.profile == "standalone":
            yield self._inbox()
        yield self._ours("worker")
        yield self._ours("http")
        yield self._ours("console")
        yield self._postfix()

    def _program(
        self, name: str, command: Callable[[], Sequence[str]], answers: Callable[[], bool] | None, **more: object
    ) -> Program:
        return Program(name=name, command=command, environment=self.environment, answers=answers, **more)  # type: ignore[arg-type]  # the caller's names are Program's

    # ------------------------------------------------------------------ Postgres

    def _postgres(self) -> Program:
        return self._program(
            "postgres",
            self._postgres_command,
            self._postgres_answers,
            user="postgres",
            before=self._make_cluster,
            after=self.prepare,
            alone=True,
            stop_signal=SIGINT,
            stop_s=30.0,
        )

    @property
    def _cluster(self) -> Path:
        return self.layout.directory / "postgres"

    def _postgres_command(self) -> Sequence[str]:
        version = (self._cluster / "PG_VERSION").read_text().strip()
        programs = requirements.postgres_programs(version)
        if not programs:
            raise requirements.Lacking(
                f"the database was made by PostgreSQL {version}, which is not installed any more"
            )
        settings = [
            "listen_addresses=127.0.0.1",
            f"port={self.state.ports['postgres']}",
            f"unix_socket_directories={self.layout.run / 'pg'}",
            # Otherwise its shared memory would be outside of our directory.
            "dynamic_shared_memory_type=mmap",
            "shared_buffers=64MB",
            "max_connections=150",
            # DETAIL would show rows: addresses, and the bytes of messages.
            "log_error_verbosity=terse",
            *(_FAST if self.state.fast else ()),
        ]
        options = [part for setting in settings for part in ("-c", setting)]
        return [str(programs / "postgres"), "-D", str(self._cluster), *options]

    def _make_cluster(self) -> None:
        account = pwd.getpwnam("postgres")
        for place in (self._cluster, self.layout.run / "pg"):
            place.mkdir(mode=0o700, exist_ok=True)
            os.chown(place, account.pw_uid, account.pw_gid)
        (self.layout.run / "pg").chmod(0o755)
        if (self._cluster / "PG_VERSION").exists():
            return
        programs = requirements.postgres_programs()
        if not programs:
            raise requirements.Lacking("missing: initdb: install the package postgresql")
        for leftover in list(self._cluster.iterdir()):  # an initdb that was interrupted
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
        password = self.layout.run / "pg" / "password"
        descriptor = os.open(password, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(self.state.superuser_password)
        os.chown(password, account.pw_uid, account.pw_gid)
        command = [
            str(programs / "initdb"), f"--pgdata={self._cluster}", f"--username={SUPERUSER}", f"--pwfile={password}",
            "--auth=scram-sha-256", "--encoding=UTF8", "--locale=C.UTF-8", *(["--no-sync"] if self.state.fast else []),
        ]  # fmt: skip
        try:
            self._run(command, "postgres", user="postgres")
        finally:
            password.unlink()

    def _postgres_answers(self) -> bool:
        try:
            with connect(self.state):
                return True
        except psycopg.OperationalError:
            return False

    # ------------------------------------------------------------------ others

    def _sqs(self) -> Program:
        port = str(self.state.ports["sqs"])
        command = [sys.executable, "-P", "-m", "moto.server", "-H", "127.0.0.1", "-p", port]
        # Its queues are gone when it dies.
        return self._program("sqs", lambda: command, self._sqs_answers, after=self._make_queue, alone=True)

    def _sqs_answers(self) -> bool:
        try:
            page = f"{service_url(self.state)}/moto-api/"
            with urllib.request.urlopen(page, timeout=PROBE_S) as response:  # noqa: S310  # http, to ourselves
                return bool(response.status == 200)  # noqa: PLR2004  # HTTP's own
        except (OSError, HTTPException):
            return False

    def _make_queue(self) -> None:
        ask_sqs(service_url(self.state), "CreateQueue", {"QueueName": QUEUE_NAME})

    def _dovecot(self) -> Program:
        folder, socket_path = self.layout.directory / "dovecot", self.layout.run / "dovecot-auth.sock"

        def command() -> Sequence[str]:
            dovecot = shutil.which("dovecot", path=requirements.search_path()) or "dovecot"
            return [dovecot, "-F", "-c", str(folder / "dovecot.conf")]

        return self._program(
            "dovecot", command, partial(greets_as_dovecot, socket_path), before=partial(self._write_dovecot, folder)
        )

    def _write_dovecot(self, folder: Path) -> None:
        version: Version = "2.3" if requirements.dovecot_version().startswith("2.3") else "2.4"
        site = DovecotSite(
            config_dir=folder,
            base_dir=self.layout.run / "dovecot",
            state_dir=folder / "state",
            log_file=self.layout.logs / "dovecot.log",
            version=version,
        )
        for place in (folder, site.base_dir, site.state_dir):
            place.mkdir(mode=0o755, exist_ok=True)
        for name, content in render_dovecot(configuration.load(self.layout.config, {}), site).items():
            write_private(folder / name, content)

    def _ours(self, name: str) -> Program:
        command = [sys.executable, "-P", "-m", "opensend_milter", name, "--config", str(self.layout.config)]
        extra = _AWS if self.state.queue == "sqs" else {}
        return Program(
            name=name,
            command=lambda: command,
            environment={**self.environment, "PYTHONUNBUFFERED": "1", **extra},
            stop_s=40.0,
        )

    def _inbox(self) -> Program:
        port = self.state.ports["inbox"]
        command = [sys.executable, "-P", "-m", "opensend_milter.host.sandbox.inbox"]
        command += ["--port", str(port), "--maildir", str(self.layout.inbox)]
        return self._program("inbox", lambda: command, partial(greets_as_smtp, port))

    def _postfix(self) -> Program:
        folder = self.layout.sockets / "postfix"

        def command() -> Sequence[str]:
            # `start-fg` would put a shell between, and master would outlive it and us.
            asked = [self._which("postconf"), "-c", str(folder), "-h", "daemon_directory"]
            place = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.strip()
            return [f"{place}/master", "-c", str(folder), "-s"]

        return self._program(
            "postfix",
            command,
            self._postfix_answers,
            before=partial(self._write_postfix, folder),
            own_session=False,
            # An smtpd that finds no auth socket ends, and master makes no other for a while.
            alone=True,
        )

    def _write_postfix(self, folder: Path) -> None:
        config = configuration.load(self.layout.config, {})
        queue, cache = self.layout.sockets / "queue", self.layout.sockets / "postfix-data"
        site = PostfixSite(
            config_dir=folder,
            queue_dir=queue,
            data_dir=cache,
            log_file=self.layout.sockets / "log" / "postfix.log",
            certificate=find_certificate(config.tls),
            hostname=config.smtp.hostname,
            syslog_name="postfix-sandbox",
        )
        for place in (folder, queue, cache):
            place.mkdir(mode=0o755, exist_ok=True)
        os.chown(cache, pwd.getpwnam("postfix").pw_uid, -1)
        for name, content in render_postfix(config, site).items():
            (folder / name).write_text(content)
            # What was written within the last second Postfix takes for half written: each of its programs would wait.
            os.utime(folder / name, (WRITTEN_AT, WRITTEN_AT))
        self._run([self._which("postfix"), "-c", str(folder), "check"], "postfix")

    def _postfix_answers(self) -> bool:
        ports, ca = self.state.ports, self.layout.tls / "ca.pem"
        smtp = greets_as_smtp(ports["smtp"]) and greets_as_smtp(ports["submission"])
        return smtp and greets_as_smtp(ports["smtps"], ca)

    # ------------------------------------------------------------------ helpers

    @staticmethod
    def _which(name: str) -> str:
        return shutil.which(name, path=requirements.search_path()) or name

    def _run(self, command: Sequence[str], log_name: str, user: str | None = None) -> None:
        """Run to its end what prepares a program; raise NotStarted with what it said."""
        path = self.layout.logs / f"{log_name}.log"
        account = pwd.getpwnam(user) if user else None
        with path.open("ab") as output:
            done = subprocess.run(
                list(command),
                check=False,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.layout.directory,
                env=dict(self.environment),
                timeout=PROGRAM_S,
                user=account.pw_uid if account else None,
                group=account.pw_gid if account else None,
                extra_groups=os.getgrouplist(account.pw_name, account.pw_gid) if account else None,
                preexec_fn=heir(SIGTERM),  # we have one thread
            )
        if done.returncode:
            raise NotStarted(f"{Path(command[0]).name} failed ({done.returncode}): {tail(path)}")


def connect(state: SandboxState, database: str = "postgres") -> psycopg.Connection[tuple[object, ...]]:
    """Open a connection as superuser."""
    return psycopg.connect(
        host="127.0.0.1",
        port=state.ports["postgres"],
        dbname=database,
        user=SUPERUSER,
        password=state.superuser_password,
        connect_timeout=int(PROBE_S),
        autocommit=True,
    )


def make_database(state: SandboxState) -> None:
    """Make the database anew: one that was not prepared to the end is worth nothing."""
    name = sql.Identifier(DATABASE)
    with connect(state) as connection:
        connection.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(name))
        connection.execute(sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING 'UTF8'").format(name))


def ask_sqs(endpoint: str, action: str, values: Mapping[str, object]) -> dict[str, Any]:
    """Ask our own SQS; return its answer."""
    scope = "Credential=sandbox/20200101/us-east-1/sqs/aws4_request, SignedHeaders=host, Signature=0"
    request = urllib.request.Request(  # noqa: S310  # http, to ourselves
        endpoint,
        data=json.dumps(values).encode(),
        headers={
            "Authorization": f"AWS4-HMAC-SHA256 {scope}",
            "Content-Type": "application/x-amz-json-1.0",
            "X-Amz-Target": f"AmazonSQS.{action}",
        },
    )
    # Not by the caller's proxy.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with direct.open(request, timeout=PROBE_S) as response:
        answer: dict[str, Any] = json.loads(response.read() or b"{}")
    return answer


def greets_as_smtp(port: int, ca: Path | None = None) -> bool:
    """Tell whether an SMTP server answers; with `ca`, by implicit TLS."""
    try:
        if ca:
            context = ssl.create_default_context(cafile=str(ca))
            with smtplib.SMTP_SSL("127.0.0.1", port, timeout=PROBE_S, context=context) as client:
                return bool(client.noop()[0] == 250)  # noqa: PLR2004  # SMTP's own
        with smtplib.SMTP("127.0.0.1", port, timeout=PROBE_S) as client:
            return bool(client.noop()[0] == 250)  # noqa: PLR2004
    except (OSError, smtplib.SMTPException):
        return False


def greets_as_dovecot(path: Path) -> bool:
    """Tell whether Dovecot, or our gate, greets on an auth socket."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as endpoint:
            endpoint.settimeout(PROBE_S)
            endpoint.connect(str(path))
            return bool(greeting(endpoint))
    except OSError:
        return False


def accepts(path: Path) -> bool:
    """Tell whether somebody listens on a unix socket."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as endpoint:
            endpoint.settimeout(PROBE_S)
            endpoint.connect(str(path))
    except OSError:
        return False
    return True


def write_private(path: Path, content: str) -> None:
    """Write a file that holds a secret."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        os.fchmod(descriptor, 0o600)
        file.write(content)
