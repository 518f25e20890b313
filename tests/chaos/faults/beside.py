"""Two of what is usually one: another worker, another serve."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from random import Random

import yaml

from opensend_milter.host.sandbox.programs import WRITTEN_AT, accepts
from tests.chaos.faults.harm import Blow, Harm, once, state
from tests.chaos.faults.processes import send
from tests.chaos.stand import Stand
from tests.waiting import await_true


@contextmanager
def second_worker(stand: Stand) -> Iterator[None]:
    with stand.another("worker", stand.config):
        yield


@contextmanager
def worker_comes_and_dies(stand: Stand, _: Random) -> Iterator[Blow]:
    """Start another worker for a while, and kill it with what it has in hand."""
    with stand.another("worker", stand.config) as worker:
        yield once
        send(worker.pid, signal.SIGKILL)


@contextmanager
def second_serve(stand: Stand) -> Iterator[None]:
    """Start another serve, and let Postfix go over to it and back, as in an exchange of versions."""
    socket = stand.directory / "run" / "another.sock"
    content = yaml.safe_load(stand.config.read_text())
    content["milter"]["socket"] = str(socket)
    config = stand.directory / "another.yaml"
    config.write_text(yaml.safe_dump(content))
    main = stand.directory / "postfix" / "main.cf"
    before = main.read_text()
    with stand.another("serve", config):
        await_true(partial(accepts, socket), "the other serve answers")
        try:
            _ask(stand, main, before.replace("/milter.sock", "/another.sock"))
            yield
        finally:
            _ask(stand, main, before)


def _ask(stand: Stand, main: Path, content: str) -> None:
    """Give Postfix another main.cf."""
    main.write_text(content)
    os.utime(main, (WRITTEN_AT, WRITTEN_AT))
    stand.signal("postfix", signal.SIGHUP)


FAULTS: dict[str, Harm] = {
    "two-workers": state(second_worker),
    "two-workers-one-killed": worker_comes_and_dies,
    "two-serves": state(second_serve),
}
