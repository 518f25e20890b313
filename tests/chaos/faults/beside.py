"""Two of what is usually one: another worker, another serve, and such with a clock that jumps."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random

import yaml

from opensend_milter.host.sandbox.programs import WRITTEN_AT, accepts
from tests.chaos.faults.harm import Blow, Harm, once, state
from tests.chaos.faults.processes import send
from tests.chaos.stand import NotRun, Stand
from tests.waiting import await_true

JUMPS = ("+1h", "-1h", "+400d", "+0")
HOSTS = "two hosts need namespaces of mounts and networks, which a sandbox has not"


@contextmanager
def second_worker(stand: Stand) -> Iterator[None]:
    with stand.another("worker", stand.config, {}):
        yield


@contextmanager
def worker_comes_and_dies(stand: Stand, _: Random) -> Iterator[Blow]:
    """Start another worker for a while, and kill it with what it has in hand."""
    with stand.another("worker", stand.config, {}) as worker:
        yield once
        send(worker.pid, signal.SIGKILL)


@contextmanager
def second_serve(stand: Stand, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Start another serve, and let Postfix go over to it and back, as in an exchange of versions."""
    socket = stand.directory / "run" / "another.sock"
    content = yaml.safe_load(stand.config.read_text())
    content["milter"]["socket"] = str(socket)
    config = stand.directory / "another.yaml"
    config.write_text(yaml.safe_dump(content))
    main = stand.directory / "postfix" / "main.cf"
    before = main.read_text()
    with stand.another("serve", config, environment) as serve:
        await_true(partial(accepts, socket), "the other serve answers")
        try:
            _ask(stand, main, before.replace("/milter.sock", "/another.sock"))
            yield serve
        finally:
            _ask(stand, main, before)


def _ask(stand: Stand, main: Path, content: str) -> None:
    """Give Postfix another main.cf."""
    main.write_text(content)
    os.utime(main, (WRITTEN_AT, WRITTEN_AT))
    stand.signal("postfix", signal.SIGHUP)


def other_clock(name: str) -> Harm:
    """Let another process of ours work beside, whose clock jumps at each blow."""

    @contextmanager
    def harm(stand: Stand, chance: Random) -> Iterator[Blow]:
        offset = stand.directory / "clock"

        def jump() -> None:
            offset.write_text(f"{chance.choice(JUMPS)}\n")

        jump()
        environment = {
            "LD_PRELOAD": str(_faketime()), "FAKETIME_TIMESTAMP_FILE": str(offset), "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }  # fmt: skip
        started = (
            second_serve(stand, environment) if name == "serve" else stand.another(name, stand.config, environment)
        )
        with started:
            yield jump

    return harm


def _faketime() -> Path:
    found = [*Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")]
    if not found:
        raise NotRun("no libfaketime: apt-get install faketime")
    return found[0]


@contextmanager
def two_hosts(_: Stand) -> Iterator[None]:
    raise NotRun(HOSTS)
    yield


FAULTS: dict[str, Harm] = {
    "two-workers": state(second_worker),
    "two-workers-one-killed": worker_comes_and_dies,
    "two-serves": state(lambda stand: second_serve(stand, {})),
    "clock-jumps-worker": other_clock("worker"),
    "clock-jumps-serve": other_clock("serve"),
    "two-hosts": state(two_hosts),
}
