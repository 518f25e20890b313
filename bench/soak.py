"""`make soak`: mail through all doors for an hour, at a part of what the machine can take, and what grows meanwhile."""

from __future__ import annotations

import argparse
import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from multiprocessing.pool import Pool
from pathlib import Path
from threading import Thread

import psycopg
import yaml
from psycopg import sql
from psycopg.rows import TupleRow

from bench.compare import RESULTS, about_machine, write
from bench.figures import together
from bench.load import Load, Session, all_at_once, workers
from bench.processes import MB, tree
from bench.smtp_client import TIMEOUT_S
from bench.systems import FILLED, PATIENCE_S, PAUSE_S, Stand, await_true, sandbox
from bench.trends import Held, Line, Sample, judged
from opensend_milter.host.sandbox.keeper import heir
from opensend_milter.host.sandbox.lifecycle import status
from tests.smtp_sink import Sink

LEAST_OF_RATE = 0.95
"""A load that was not kept up proves nothing."""
CAPACITY_S = MINUTE_S = 60.0
SAMPLE_S = 10.0
LONGEST_WARM_UP_S = 600.0
LEAST_MINUTES = 2.0
WAL_BYTES = 2_000_000_000
"""Postgres's max_wal_size, and as much again while VACUUM FULL writes."""
LOGS = RESULTS / "soak-log"
"""Of the last run that missed something."""
DOORS: Mapping[str, Mapping[str, object]] = {
    "SMTP, kept": {"sessions": 6},
    "SMTP, one": {"sessions": 4, "kept": False},
    "HTTP": {"kind": "http", "sessions": 4},
}
EACH = ("serve", "worker", "http", "auth-gate")
TOGETHER = ("dovecot", "postfix", "postgres")
"""Their processes come and go."""
_ANONYMOUS = ("Pss_Anon:", "SwapPss:")
_CLUSTER = "/postgres/"
_NAME = re.compile(rb"\r\nSubject: measured (\S+)\r\n")
_forked = multiprocessing.get_context("fork")
say = partial(print, file=sys.stderr, flush=True)


@dataclass(slots=True)
class NextHop:
    """Counts what came to a sink."""

    sink: Sink
    copies: Counter[bytes] = field(default_factory=Counter)

    def count(self) -> int:
        """Let go of what came since the last time; return how many different messages there were so far."""
        while self.sink.delivered:  # one by one: its threads go on adding to it
            found = _NAME.search(self.sink.delivered.pop().wire)
            self.copies[found[1] if found else b""] += 1
        self.sink.commands.clear()
        return len(self.copies)

    def await_count(self, wanted: int) -> None:
        """Wait until so many have come, or none comes any more."""
        last, last_at = self.count(), time.monotonic()
        while last < wanted and time.monotonic() - last_at < PATIENCE_S:
            time.sleep(PAUSE_S)
            if (fresh := self.count()) > last:
                last, last_at = fresh, time.monotonic()


def _leave_signals_to_parent(inherit: Callable[[], None]) -> None:
    inherit()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


@dataclass(slots=True)
class Paced:
    """A session that waits for its turn: before a message on a kept connection, else before a connection."""

    session: Session
    kept: bool
    every_s: float
    next_at: float

    def open(self) -> float:
        if not self.kept:
            self._await_turn()
        return self.session.open()

    def send(self, number: int) -> float:
        if self.kept:
            self._await_turn()
        return self.session.send(number)

    def close(self) -> None:
        self.session.close()

    def _await_turn(self) -> None:
        time.sleep(max(0.0, self.next_at - time.monotonic()))
        self.next_at += self.every_s


@dataclass(frozen=True, slots=True)
class Sent:
    """What came of a load."""

    accepted: int
    errors: Mapping[str, int]


def send(load: Load, per_s: float) -> Sent:
    """Send at a steady rate; 0: as fast as answers come."""
    began = time.monotonic()
    every_s = load.sessions / per_s if per_s else 0.0
    made = workers(load)
    for number, worker in enumerate(made):
        worker.session = Paced(worker.session, load.kept, every_s, began + number * every_s / load.sessions)
    all_at_once([Thread(target=worker.run, args=(began + load.seconds,)) for worker in made])
    errors = sum((worker.errors for worker in made), Counter[str]())
    return Sent(sum(len(worker.latencies_s) for worker in made), errors)


@contextmanager
def running_product(next_hop: int) -> Iterator[Stand]:
    """Bring up a sandbox with durable commits whose worker delivers to that port, and take all down again."""
    with tempfile.TemporaryDirectory(prefix="os-bench-", dir="/tmp") as made, ExitStack() as stack:
        directory = Path(made)
        directory.chmod(0o755)
        sandbox("up", directory)
        stack.callback(sandbox, "down", directory)
        stand = Stand(directory=directory, env=json.loads(sandbox("env", directory, "--json")), stack=stack)
        path = directory / "opensend-milter.yaml"
        relay = {"relay": {"host": "127.0.0.1", "port": next_hop}}
        path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | relay, sort_keys=False))
        first = stand.program_pids()["worker"]
        os.kill(first, signal.SIGTERM)
        await_true(
            "a worker that knows its next hop",
            lambda: stand.program_pids()["worker"] != first and status(directory).good,
        )
        stand.pids = stand.program_pids()
        yield stand


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was found."""

    minutes: float
    capacity_per_s: float
    rates_per_s: Mapping[str, float]
    lines: Sequence[Line]
    bloat: Sequence[str]
    samples: Sequence[Sample]

    @property
    def is_good(self) -> bool:
        return all(line.is_good for line in self.lines)

    def __str__(self) -> str:
        return "\n".join([*map(str, self.lines), "", *self.bloat])


@dataclass(slots=True)
class Soak:
    """One run."""

    stand: Stand
    next_hop: NextHop
    pool: Pool
    """A process for each door."""
    seconds: float
    samples: list[Sample] = field(default_factory=list)

    def send(self, seconds: float, rates: Mapping[str, float], meanwhile: Callable[[], None]) -> dict[str, Sent]:
        """Send through all doors at once."""
        env = self.stand.env
        ports = {"smtp": int(env["SANDBOX_SUBMISSION_PORT"]), "http": int(env["SANDBOX_HTTP_URL"].rpartition(":")[2])}
        sending = {}
        for name, wishes in DOORS.items():
            system = self.stand.at(name, ports[str(wishes.get("kind", "smtp"))], {})
            load = system.load(**wishes, seconds=seconds)
            sending[name] = self.pool.apply_async(send, (load, rates.get(name, 0.0)))
        meanwhile()
        return {name: one.get(seconds + 2 * TIMEOUT_S) for name, one in sending.items()}

    def connect(self) -> psycopg.Connection[TupleRow]:
        return psycopg.connect(self.stand.env["SANDBOX_DATABASE_URL"], autocommit=True)

    def look(self, each: Mapping[str, int]) -> None:
        """Take samples of our own processes and of all others, and tell each minute how it goes."""
        began = said_at = time.monotonic()
        delivered = self.next_hop.count()
        with self.connect() as connection:
            while (now := time.monotonic()) < began + self.seconds:
                sample = self._sample(connection, each, now - began)
                self.samples.append(sample)
                if now - said_at >= MINUTE_S:
                    fresh = self.next_hop.count() - delivered
                    say(
                        f"{sample.at_s / MINUTE_S:4.0f} min {fresh / (now - said_at):6.1f}/s delivered; {sample.queue}"
                        f" wait, the oldest for {sample.oldest_s:.1f} s; {sample.memory_mb:.0f} MB"
                    )
                    said_at, delivered = now, delivered + fresh
                time.sleep(max(0.0, min(now + SAMPLE_S, began + self.seconds) - time.monotonic()))

    def _sample(self, connection: psycopg.Connection[TupleRow], each: Mapping[str, int], at_s: float) -> Sample:
        connected = "SELECT usename, count(*) FROM pg_stat_activity WHERE usename LIKE 'opensend%' GROUP BY 1"
        due = (
            "SELECT count(*), coalesce(extract(epoch FROM now() - min(not_before)), 0)::float"
            " FROM opensend_milter.jobs WHERE not_before <= now()"
        )
        ((queue, oldest_s),) = connection.execute(due).fetchall()
        pids = {name: [pid] for name, pid in each.items()}
        pids |= {name: tree(self.stand.pids[name]) for name in TOGETHER}
        return Sample(
            at_s=at_s, held={name: held(those) for name, those in pids.items()},
            connections=dict(connection.execute(connected).fetchall()), oldest_s=oldest_s, queue=queue,
        )  # fmt: skip

    def bloat(self) -> list[str]:
        """Return what tables and indexes take, and what VACUUM FULL leaves of it: measured rather than estimated."""
        lines = [f"{'MB, and after VACUUM FULL':28} {'rows':>8} {'dead':>7}  {'table':>15}  {'indexes':>15}"]
        sizes = "SELECT pg_table_size(%(table)s::regclass) / 1e6, pg_indexes_size(%(table)s::regclass) / 1e6"
        rows = "SELECT n_live_tup, n_dead_tup FROM pg_stat_user_tables WHERE relid = %(table)s::regclass"
        with self.connect() as connection:
            for table in FILLED:
                ((live, dead),) = connection.execute(rows, {"table": table}).fetchall()
                (before,) = connection.execute(sizes, {"table": table}).fetchall()
                connection.execute(sql.SQL("VACUUM (FULL) {}").format(sql.Identifier(*table.split("."))))
                (after,) = connection.execute(sizes, {"table": table}).fetchall()
                taken = "  ".join(f"{one:6.1f} ({least:6.1f})" for one, least in zip(before, after, strict=True))
                lines.append(f"{table:28} {live:8} {dead:7}  {taken}")
        return lines


def held(pids: Sequence[int]) -> Held:
    """Look at processes; who has gone holds nothing."""
    found: list[tuple[int, int]] = []
    for pid in pids:
        with suppress(FileNotFoundError, ProcessLookupError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            memory_kb = sum(int(line.split()[1]) for line in lines if line.startswith(_ANONYMOUS))
            found.append((memory_kb, sum(map(_counts, Path(f"/proc/{pid}/fd").iterdir()))))
    return Held(len(found), sum(kb for kb, _ in found) * 1024 / MB, sum(count for _, count in found))


def _counts(descriptor: Path) -> bool:
    """Leave out the files of Postgres: each of its processes keeps open what it has used, as many as it may."""
    with suppress(FileNotFoundError):
        return _CLUSTER not in str(descriptor.readlink())
    return False


def disk_bytes(directory: Path) -> int:
    """Return what a directory takes, without Postgres's log of changes, whose files are used again."""
    total = 0
    for place, _, names in os.walk(directory):
        for name in names if "pg_wal" not in place else ():
            with suppress(FileNotFoundError):
                total += (Path(place) / name).lstat().st_blocks * 512
    return total


def require_disk(directory: Path, messages: float, bytes_each: float) -> None:
    """Say how much will be needed; end where there is not so much."""
    # Twice: in the end VACUUM FULL writes each table anew beside the old one.
    needed, free = 2 * messages * bytes_each + WAL_BYTES, shutil.disk_usage(directory).free
    said = f"{messages:.0f} messages of {bytes_each / 1e3:.1f} kB each on disk need {needed / 1e9:.1f} GB"
    say(f"{said}; {free / 1e9:.1f} GB are free")
    if needed > free:
        raise SystemExit("not enough room: fewer --minutes need less")


def own_processes(stand: Stand) -> dict[str, int]:
    """Return names and pids of all processes that run our code."""
    found: dict[str, int] = {}
    for name in EACH:
        first, *children = tree(stand.pids[name])
        found |= {name: first, **{f"{name}, child {number}": pid for number, pid in enumerate(children, 1)}}
    return found


def became(sent: Sequence[Sent], copies: Mapping[bytes, int]) -> Iterator[Line]:
    """Judge what became of each message."""
    accepted, errors = sum(one.accepted for one in sent), together(one.errors for one in sent)
    yield Line("not taken", f"{sum(errors.values()):7} {', '.join(errors)}"[:38], not errors)
    again = sum(copies.values()) - len(copies)
    yield Line("accepted and delivered", f"{len(copies):7} of {accepted}", len(copies) == accepted)
    yield Line("delivered again", f"{again:7}", not again)


def soak(run: Soak, rate_percent: float) -> Outcome:
    """Measure what it can take, send a part of that for the time, and judge."""
    say(f"what it can take is measured for {CAPACITY_S:.0f} s")
    directory, began = run.stand.directory, time.monotonic()
    disk = disk_bytes(directory)
    fast = run.send(CAPACITY_S, {}, lambda: None)
    accepted = sum(one.accepted for one in fast.values())
    run.next_hop.await_count(accepted)
    # What is delivered only afterwards was not done in that minute.
    lasted_s = time.monotonic() - began
    rates = {name: one.accepted / lasted_s * rate_percent / 100 for name, one in fast.items()}
    if not all(rates.values()):
        raise SystemExit(f"a door takes nothing: {fast}")
    asked_per_s = sum(rates.values())
    say(f"{accepted / lasted_s:.0f}/s are taken and delivered; {asked_per_s:.0f}/s for {run.seconds / MINUTE_S:g} min")
    require_disk(directory, asked_per_s * run.seconds, (disk_bytes(directory) - disk) / accepted)
    each = own_processes(run.stand)
    slow = run.send(run.seconds, rates, partial(run.look, each))
    ended = [name for name, pid in each.items() if not Path(f"/proc/{pid}").exists()]
    sent = [*fast.values(), *slow.values()]
    run.next_hop.await_count(sum(one.accepted for one in sent))
    per_s = sum(one.accepted for one in slow.values()) / run.seconds
    warm_up_s = min(LONGEST_WARM_UP_S, run.seconds / 10)
    lines = [
        *judged([sample for sample in run.samples if sample.at_s >= warm_up_s]),
        Line("accepted", f"{per_s:7.1f}/s of {asked_per_s:.1f} asked", per_s >= LEAST_OF_RATE * asked_per_s),
        *became(sent, run.next_hop.copies),
        Line("processes of ours that ended", f"{len(ended):7} {', '.join(ended)}"[:38], not ended),
    ]
    return Outcome(
        minutes=run.seconds / MINUTE_S, capacity_per_s=accepted / lasted_s, rates_per_s=rates, lines=lines,
        bloat=run.bloat(), samples=run.samples,
    )  # fmt: skip


def asked() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rate-percent", type=float, default=60, help="of what it takes in the first minute")
    parser.add_argument("--json", action="store_true", help="all of it as an object, instead of the table")
    arguments = parser.parse_args()
    if arguments.minutes < LEAST_MINUTES:
        parser.error(f"--minutes: at least {LEAST_MINUTES:g}, or there is nothing to judge")
    return arguments


def main() -> None:
    """Print the table and keep the figures; exit 1 where a line is missed."""
    arguments = asked()
    # What a caller stops us with is to take the servers down, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    made: dict[str, object] = {"made_at": datetime.now(UTC).isoformat(timespec="seconds")}
    made["machine"] = about_machine()
    with (
        _forked.Pool(len(DOORS), _leave_signals_to_parent, (heir(signal.SIGTERM),)) as pool,
        Sink() as sink,  # its threads come after the fork
        running_product(sink.port) as stand,
    ):
        run = Soak(stand, NextHop(sink), pool, arguments.minutes * MINUTE_S)
        outcome = soak(run, arguments.rate_percent)
        if not outcome.is_good:
            shutil.copytree(stand.directory / "log", LOGS, dirs_exist_ok=True)
            say(f"what it logged is in {LOGS}")
    made |= dataclasses.asdict(outcome)
    write("soak.json", made)
    print(json.dumps(made) if arguments.json else outcome)
    sys.exit(not outcome.is_good)


if __name__ == "__main__":
    main()
