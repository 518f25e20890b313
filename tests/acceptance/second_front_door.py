"""Another HTTP process beside a sandbox's own, with settings of a test's choice."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.error import URLError
from urllib.request import urlopen

import yaml

from tests.acceptance.running_sandbox import Sandbox
from tests.acceptance.submitting import unique
from tests.waiting import await_of, patience_s


@contextmanager
def front_door(sandbox: Sandbox, **settings: object) -> Iterator[str]:
    """Start it with these settings of the section http; yield its base URL."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    content = yaml.safe_load((sandbox.directory / "opensend-milter.yaml").read_text())
    content["http"] |= {"port": port, **settings}
    path = sandbox.directory / f"{unique('front')}.yaml"
    path.write_text(yaml.safe_dump(content))
    command = [sys.executable, "-m", "opensend_milter", "http", "--config", str(path)]
    url = f"http://127.0.0.1:{port}"
    with (
        (sandbox.directory / "log" / f"{path.stem}.log").open("wb") as log,
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log) as process,
    ):
        try:
            await_of(process, lambda: _answers(url), lambda: sandbox.log(path.stem))
            yield url
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(patience_s())


def _answers(url: str) -> bool:
    try:
        with urlopen(f"{url}/readyz", timeout=patience_s()):  # noqa: S310  # http, to ourselves
            return True
    except (URLError, ConnectionError):
        return False
