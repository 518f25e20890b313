"""A whole product to test against.

`sandbox` is one running sandbox per test process: `sandbox["SANDBOX_SMTP_PORT"]` and the other names that
`opensend-milter sandbox env` prints, `sandbox.smtp()` for a logged-in connection, `sandbox.run(...)` for a
subcommand. It is shared: a test that stops something takes it as `rough`, without mail at the beginning; at the end
it is whole again, and without mail. One that needs another profile or a queue makes its own with `standing()`, which
takes it down at the end. The logs of each are looked through then: see tests/log_scan.py.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.acceptance.running_sandbox import Sandbox, standing

_HERE = Path(__file__).parent
_shared: list[Sandbox] = []
"""Those that stand to the end of this process."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup() -> None:
    """Wake the workers of shared sandboxes."""
    _tell_workers(signal.SIGCONT)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(nextitem: pytest.Item | None) -> Generator[None]:
    """Let them sleep while this process runs other tests: each asks the database 25 times a second."""
    yield
    if nextitem and nextitem.path.parent != _HERE:
        _tell_workers(signal.SIGSTOP)


def _tell_workers(what: signal.Signals) -> None:
    for sandbox in _shared:
        with suppress(StopIteration, ProcessLookupError):  # started again just now
            os.kill(sandbox.pid("worker"), what)


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    """Share one running sandbox among the tests of this process."""
    with standing() as sandbox:
        _shared.append(sandbox)
        yield sandbox
        _tell_workers(signal.SIGCONT)
        _shared.remove(sandbox)


@pytest.fixture
def resend_at(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """Point Resend's package for Python at us: nothing but the base URL and the key."""
    monkeypatch.setattr("resend.api_url", sandbox["SANDBOX_HTTP_URL"])
    monkeypatch.setattr("resend.api_key", sandbox["SANDBOX_API_KEY"])
    return sandbox


@pytest.fixture
def rough(sandbox: Sandbox) -> Iterator[Sandbox]:
    """Share it as one that may be hit: it has no mail at the beginning, and is as it was at the end."""
    sandbox.clear()
    yield sandbox
    sandbox.await_good()
    sandbox.clear()
