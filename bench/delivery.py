"""What delivery costs us: jobs announced a second, and CPU per message without what the provider takes."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from opensend_milter.adapters.schema import migrations
from opensend_milter.core.ids import new_email_id
from tests.integration import private_postgres
from tests.integration.private_postgres import Database, running_cluster
from tests.integration.sqs_server import CREDENTIALS, new_queue, running_sqs
from tests.smtp_sink import Sink

GOAL_JOBS_PER_S = 2_000
GOAL_CPU_MS = 2.0
USERS = 10
PATIENCE_S = 120.0
_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
# As a production server: the tests' own settings trade durability for speed.
_DURABLE = {"fsync": "on", "synchronous_commit": "on", "full_page_writes": "on", "log_statement": "none"}
_LINE = b"What an application says to somebody, in a line of seventy-two octets.\r\n"
_HEADER = b"From: App <app@example.org>\r\nTo: to@example.net\r\nSubject: measured\r\nMIME-Version: 1.0\r\n"
MESSAGE = (_HEADER + b"Message-ID: <1@example.org>\r\n\r\n" + _LINE * 30)[:2_048]


@dataclass(frozen=True, slots=True)
class Bench:
    """A database with durable commits, and a place for what the worker leaves behind."""

    database: Database
    directory: Path

    def fill(self, count: int) -> None:
        """Store so many messages in one transaction, as front doors would one by one."""
        ids = [new_email_id() for _ in range(count)]
        with self.database.connect() as connection, connection.transaction():
            connection.execute(
                'INSERT INTO emails (id, "from", "to", subject, status, user_id)'
                " SELECT id::uuid, 'app@example.org', '[]', 'measured', 'queued', 'user-' || n %% %s"
                " FROM unnest(%s::text[]) WITH ORDINALITY AS i (id, n)",
                [USERS, ids],
            )
            connection.execute(
                "INSERT INTO opensend_milter.submissions (email_id, received_at, user_id, key_id, front_door,"
                " queue_id, client_address, tls, sender, from_address, recipients, size_bytes, sha256)"
                " SELECT id::uuid, now(), 'user-' || n %% %s, gen_random_uuid(), 'smtp', '4X' || n, '192.0.2.7',"
                " 'TLSv1.3', 'app@example.org', 'app@example.org', ARRAY['to@example.net'], %s, sha256(%s)"
                " FROM unnest(%s::text[]) WITH ORDINALITY AS i (id, n)",
                [USERS, len(MESSAGE), MESSAGE, ids],
            )
            connection.execute(
                "INSERT INTO opensend_milter.raw_chunks SELECT id::uuid, 0, %s FROM unnest(%s::text[]) AS i (id)",
                [MESSAGE, ids],
            )
            connection.execute(
                "INSERT INTO opensend_milter.jobs (email_id, user_id) SELECT id::uuid, 'user-' || n %% %s"
                " FROM unnest(%s::text[]) WITH ORDINALITY AS i (id, n)",
                [USERS, ids],
            )

    def await_empty(self) -> float:
        """Wait until no job is left; return how long that took."""
        began = time.monotonic()
        with self.database.connect() as connection:
            while connection.execute("SELECT 1 FROM opensend_milter.jobs LIMIT 1").fetchone():
                if time.monotonic() - began > PATIENCE_S:
                    raise SystemExit(f"jobs are left after {PATIENCE_S:.0f} s:\n{self.log[-2_000:]}")
                time.sleep(0.05)
        return time.monotonic() - began

    def sessions(self) -> list[int]:
        """Return the pids of Postgres that serve the worker."""
        with self.database.connect() as connection:
            found = connection.execute("SELECT pid FROM pg_stat_activity WHERE usename = 'opensend_worker'")
            return [int(pid) for (pid,) in found]

    @property
    def log(self) -> str:
        return (self.directory / "worker.log").read_text()

    @contextmanager
    def worker(self, **sections: object) -> Iterator[int]:
        """Run the worker with a configuration; its pid."""
        config = {"database": {"password_dir": str(self.database.password_dir)}, **sections}
        path = self.directory / "worker.yaml"
        path.write_text(json.dumps(config))
        environ = os.environ | CREDENTIALS | {"DATABASE_URL": self.database.url}
        with (self.directory / "worker.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "opensend_milter", "worker", "--config", str(path)], env=environ, stderr=log
            )
        try:
            yield process.pid
        finally:
            process.terminate()
            process.wait(60)


def cpu_s(*pids: int) -> float:
    """Return user and system time that processes have used."""
    # The second field, a name in parentheses, may hold spaces.
    rows = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids)
    return sum(int(row[11]) + int(row[12]) for row in rows) / _TICKS_PER_S


def announce(bench: Bench, endpoint: str, queue_url: str, count: int) -> dict[str, float]:
    """Measure the announcer: beside OpenSend the worker does nothing else."""
    sections = {"profile": "opensend", "queue": {"url": queue_url}, "aws": {"endpoint_url": endpoint}}
    with bench.worker(**sections, delivery={"poll_interval_s": 0.05}) as pid:
        bench.fill(10)
        bench.await_empty()  # connections are open, boto3 has read its models
        before_s = cpu_s(pid)
        bench.fill(count)
        seconds = bench.await_empty()
        cpu_ms = (cpu_s(pid) - before_s) * 1_000 / count
    return {"jobs_per_s": round(count / seconds), "worker_cpu_ms_per_job": round(cpu_ms, 3)}


class CheapSqs(BaseHTTPRequestHandler):
    """Answers as SQS does, and keeps nothing."""

    protocol_version = "HTTP/1.1"
    # The answer goes out as a whole and at once: in two pieces the second waits 40 ms for the first one's ACK.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = json.dumps({"Successful": [self._taken(entry) for entry in asked["Entries"]], "Failed": []}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/x-amz-json-1.0")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _taken(self, entry: dict[str, str]) -> dict[str, str]:
        digest = hashlib.md5(entry["MessageBody"].encode(), usedforsecurity=False).hexdigest()
        return {"Id": entry["Id"], "MessageId": entry["Id"], "MD5OfMessageBody": digest}

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def cheap_sqs() -> Iterator[str]:
    """Serve it; return its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), CheapSqs) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def deliver(bench: Bench, count: int, **sections: object) -> dict[str, float]:
    """Measure what a delivered message costs the worker, and its sessions in Postgres."""
    with bench.worker(profile="standalone", **sections) as pid:
        bench.fill(100)
        bench.await_empty()
        sessions = bench.sessions()
        worker_s, postgres_s = cpu_s(pid), cpu_s(*sessions)
        bench.fill(count)
        seconds = bench.await_empty()
        worker_ms, postgres_ms = (cpu_s(pid) - worker_s) * 1_000, (cpu_s(*sessions) - postgres_s) * 1_000
    return {
        "messages_per_s": round(count / seconds),
        "worker_cpu_ms": round(worker_ms / count, 2),
        "postgres_cpu_ms": round(postgres_ms / count, 2),
    }


@contextmanager
def new_bench() -> Iterator[Bench]:
    """Start a Postgres of our own, as `db init` leaves it."""
    private_postgres.SETTINGS.update(_DURABLE)
    with running_cluster() as cluster, tempfile.TemporaryDirectory(prefix="os-bench-", dir="/tmp") as place:
        passwords = Path(place) / "passwords"
        migrations.init(cluster.new_database("bench"), passwords)
        yield Bench(Database("bench", cluster, passwords), Path(place))


def measure(jobs: int, messages: int) -> Iterator[tuple[str, dict[str, float]]]:
    """Measure one after the other; moto knows all of SQS, but is far slower than what is measured."""
    with new_bench() as bench:
        with cheap_sqs() as endpoint:
            yield "announcer", announce(bench, endpoint, f"{endpoint}/000000000000/bench", jobs)
        with running_sqs() as endpoint:
            yield "announcer, to moto", announce(bench, endpoint, new_queue(endpoint, "bench"), jobs // 20)
        with Sink() as sink:
            yield "smtp", deliver(bench, messages, relay={"host": "127.0.0.1", "port": sink.port})
        maildir = {"folder": str(bench.directory / "maildir")}
        yield "file", deliver(bench, messages, delivery={"courier": "file"}, maildir=maildir)


def main() -> None:
    """Print the figures; exit 1 where a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=10_000)
    parser.add_argument("--messages", type=int, default=5_000)
    arguments = parser.parse_args()
    os.environ.update(CREDENTIALS)
    missed = False
    for what, figures in measure(arguments.jobs, arguments.messages):
        print(json.dumps({"what": what, **figures}), flush=True)
        missed |= what == "announcer" and figures["jobs_per_s"] < GOAL_JOBS_PER_S
        missed |= figures.get("worker_cpu_ms", 0) > GOAL_CPU_MS
    print(json.dumps({"goal_jobs_per_s": GOAL_JOBS_PER_S, "goal_worker_cpu_ms": GOAL_CPU_MS}))
    sys.exit(missed)


if __name__ == "__main__":
    main()
