"""A whole product to test against.

`sandbox` is one running sandbox per test process: `sandbox["SANDBOX_SMTP_PORT"]` and the other names that
`opensend-milter sandbox env` prints, `sandbox.smtp()` for a logged-in connection, `sandbox.run(...)` for a
subcommand. It is shared: a test that stops something takes `rough`, shared as well by those who do, without mail at
the beginning and whole again at the end. One that needs another configuration, or counts restarts, makes its own with
`make_sandbox()`, which takes it down at the end. The logs of each are looked through then: see tests/log_scan.py.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.acceptance.running_sandbox import MakeSandbox, Sandbox, new_directory
from tests.log_scan import Finding, assert_clean

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


def _running() -> Iterator[Sandbox]:
    if os.geteuid() != 0:
        pytest.skip("a sandbox needs root")
    sandbox = Sandbox(new_directory())
    found: list[Finding] = []
    try:
        _shared.append(sandbox.up())
        yield sandbox
        _tell_workers(signal.SIGCONT)
        _shared.remove(sandbox)
    finally:
        found = sandbox.take_down()
    assert_clean(found)


@pytest.fixture(scope="session")
def sandbox() -> Iterator[Sandbox]:
    """Share one running sandbox among the tests of this process."""
    yield from _running()


@pytest.fixture
def resend_at(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Sandbox:
    """Point Resend's package for Python at us: nothing but the base URL and the key."""
    monkeypatch.setattr("resend.api_url", sandbox["SANDBOX_HTTP_URL"])
    monkeypatch.setattr("resend.api_key", sandbox["SANDBOX_API_KEY"])
    return sandbox


@pytest.fixture(scope="session")
def _rough() -> Iterator[Sandbox]:
    yield from _running()


@pytest.fixture
def rough(_rough: Sandbox) -> Iterator[Sandbox]:
    """Share a sandbox that may be hit: it has no mail at the beginning."""
    _rough.clear()
    yield _rough
    _rough.await_good()


@pytest.fixture
def make_sandbox() -> Iterator[MakeSandbox]:
    """Return a function that makes a sandbox of the test's own: `make_sandbox("--queue", "sqs")`, `directory=...`."""
    if os.geteuid() != 0:
        pytest.skip("a sandbox needs root")
    made: list[Sandbox] = []

    def make(*options: str, directory: Path | None = None) -> Sandbox:
        sandbox = Sandbox(directory or new_directory())
        made.append(sandbox)
        return sandbox.up(*options)

    yield make
    assert_clean([found for sandbox in made for found in sandbox.take_down()])
