"""The milter conversation with the real daemon: whatever is said, it lives, stays small, and serves a neighbour."""

from __future__ import annotations

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from opensend_milter.adapters.schema import migrations
from tests.fuzz.grammar import KEY
from tests.integration.private_postgres import running_cluster
from tests.integration.serving import Serving, serving
from tests.log_scan import Grown
from tests.milter_client import Answer
from tests.peaks import Peaks
from tests.shapes import MOST_MB

_MAIL = b"From: App <app@sandbox.test>\r\nTo: to@example.net\r\nSubject: hi\r\n\r\nhello\r\n"
_TAKEN = Answer("d")
_FAULTS = (b"Traceback", b"where=time", b"database silent")
_FORGET = "TRUNCATE emails, opensend_milter.submissions, opensend_milter.raw_chunks, opensend_milter.jobs CASCADE"
_FORGET_EVERY = 200
_TICKS_A_S = os.sysconf("SC_CLK_TCK")


@contextmanager
def opened() -> Iterator[Callable[[bytes], float]]:
    """Start a Postgres and a milter of our own; yield what talks to it."""
    with running_cluster() as cluster, tempfile.TemporaryDirectory(prefix="os-fuzz-", dir="/tmp") as place:
        passwords = Path(place) / "passwords"
        url = cluster.new_database("fuzz")
        migrations.init(url, passwords)
        with serving(url, passwords) as served:
            served.rows("INSERT INTO domains (name, status, user_id) VALUES ('sandbox.test', 'verified', 'u1')")
            served.rows(
                "INSERT INTO api_keys (id, name, token_hash, user_id) VALUES (%s, 'fuzz', repeat('1', 64), 'u1')", KEY
            )
            yield _Talk(served, Peaks.from_now(served.process.pid)).check


@dataclass
class _Talk:
    served: Serving
    peaks: Peaks
    said: int = 0
    log: Grown = field(default_factory=Grown)

    def check(self, octets: bytes) -> float:
        """Say it all, hear all answers, and look at what became of the daemon."""
        before_s = self._cpu_s()
        answers = self._answers(octets)
        spent_s = self._cpu_s() - before_s
        assert b"451 4.3.0" not in answers, answers
        with self.served.client() as neighbour:
            assert neighbour.message(KEY, _MAIL) == _TAKEN
        log = self.log.since_last(self.served.directory / "serve.log")
        assert not any(fault in log for fault in _FAULTS), log.decode(errors="replace")
        peak_mb = self.peaks.mb()
        assert peak_mb < MOST_MB, f"{peak_mb} MB"
        self.said += 1
        if self.said % _FORGET_EVERY == 0:
            self.served.rows(_FORGET)
        return spent_s

    def _answers(self, octets: bytes) -> bytes:
        with self.served.client() as client:
            return all_answers(client.socket, octets)

    def _cpu_s(self) -> float:
        spent = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in self.peaks.children)
        return sum(int(fields[11]) + int(fields[12]) for fields in spent) / _TICKS_A_S


def all_answers(connection: socket.socket, octets: bytes) -> bytes:
    """Say it all, and hear until the other side hangs up."""
    answers = b""
    # It hangs up where it has heard enough.
    with suppress(BrokenPipeError, ConnectionResetError, OSError):
        connection.sendall(octets)
        connection.shutdown(socket.SHUT_WR)
    with suppress(ConnectionResetError):
        while piece := connection.recv(65_536):
            answers += piece
    return answers
