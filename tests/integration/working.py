"""Runs a worker in a process of its own; as a program, it is that process."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from opensend_milter.adapters.couriers.smtp import SmtpCourier
from opensend_milter.adapters.postgres.jobs import Keeping, PostgresJobStore
from opensend_milter.adapters.postgres.link import conninfo_for
from opensend_milter.config import Relay
from opensend_milter.core.couriers import CourierName
from opensend_milter.core.model import Address, Job, Parcel
from opensend_milter.core.outgoing import parcel
from opensend_milter.core.ports import Courier, JobQueue
from opensend_milter.servers.worker.delivering import Settings
from opensend_milter.servers.worker.threads import Parts, run
from tests.integration.private_postgres import Database
from tests.integration.sqs_server import CREDENTIALS
from tests.profiles import watch
from tests.waiting import NEVER_S, await_of, patience_s

ROOT = Path(__file__).parents[2]
READY = "READY"


@dataclass(slots=True)
class Working:
    """A running worker."""

    process: subprocess.Popen[bytes]
    log_path: Path

    @property
    def log(self) -> str:
        return self.log_path.read_text()

    def stop(self) -> int:
        """Stop it as a service manager does; return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(patience_s())

    def kill(self) -> None:
        """End it without a word."""
        self.process.kill()
        self.process.wait(patience_s())


@contextmanager
def working(database: Database, directory: Path, **settings: Any) -> Iterator[Working]:
    """Start a worker and wait until it runs; kill it at the end.

    Of `settings`: relay_port (none: beside OpenSend, on its own tables), queue_url, endpoint_url, lease_s, hold_begin,
    and those of worker.Settings.
    """
    if "relay_port" not in settings:
        watch.check(database.url)
    info = conninfo_for(database.url, database.password_dir, "opensend_worker")
    log_path = directory / f"worker-{len(list(directory.glob('worker-*')))}.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.working", json.dumps(settings | {"info": info})],
            env=os.environ | CREDENTIALS | {"PYTHONPATH": str(ROOT)},
            stderr=log,
            cwd=ROOT,
        )
    running = Working(process, log_path)
    try:
        await_of(process, lambda: READY in running.log, lambda: running.log)
        yield running
        assert "Traceback" not in running.log, running.log
    finally:
        running.kill()


class _HeldStore(PostgresJobStore):
    """Stays between claim and begin."""

    def begin(self, job: Job) -> bool:
        """Wait to be killed."""
        print(f"CLAIMED {job.email_id}", file=sys.stderr, flush=True)  # noqa: T201
        time.sleep(NEVER_S)
        return False


def _main(given: dict[str, Any]) -> None:
    logging.basicConfig(level=logging.INFO, format="%(threadName)s %(levelname)s %(message)s")
    info, lease_s = given.pop("info"), given.pop("lease_s", 60)
    relay_port, queue_url = given.pop("relay_port", None), given.pop("queue_url", None)
    relay = Relay(port=relay_port or 25, timeout_s=NEVER_S)
    endpoint_url = given.pop("endpoint_url", "")
    kind = _HeldStore if given.pop("hold_begin", False) else PostgresJobStore

    def store(name: str) -> PostgresJobStore:
        return kind(
            info,
            worker=name,
            lease_s=lease_s,
            timeout_s=patience_s(),
            hand_over=relay_port is None,
            keeping=Keeping(),
        )

    def couriers() -> dict[CourierName, Courier]:
        return {"smtp": SmtpCourier(relay, hostname="mx.example.com")}

    queue = _queue(queue_url, endpoint_url, lease_s) if queue_url else None
    standard: dict[str, Any] = {
        "concurrency": 4,
        "poll_interval_s": 0.05,
        "max_attempts": 12,
        "housekeeping_s": 0.1,
        "lease_s": lease_s,
    }
    run(
        Parts(store=store, couriers=couriers if relay_port else None, default="smtp", compose=_compose, queue=queue),
        Settings(**standard | given),
        ready=lambda: print(READY, file=sys.stderr, flush=True),  # noqa: T201
    )


def _queue(url: str, endpoint_url: str, lease_s: float) -> JobQueue:
    from opensend_milter.adapters.aws.sqs import SqsQueue  # noqa: PLC0415  # few tests want it, and boto3 takes its time

    return SqsQueue(url, region="us-east-1", endpoint_url=endpoint_url, lease_s=lease_s)


def _compose(job: Job) -> Parcel:
    return parcel(job, hostname="mx.example.com", sender=Address("bounces@example.com"))


if __name__ == "__main__":
    _main(json.loads(sys.argv[1]))
