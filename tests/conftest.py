"""What holds for every test: clean logs, `profile: opensend` on OpenSend's own tables, nothing installed here.

What a test has this process and its database log is looked through after it; the daemons' own logs are looked through
where they are started: see tests/log_scan.py. For the profile see tests/profiles.py.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
from collections.abc import Generator
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest
import pytest_timeout  # type: ignore[import-untyped]
from hypothesis import settings

from tests import profiles
from tests.dealing import Module, dealt
from tests.log_scan import Forbidden, Grown, Heard, assert_clean, findings, look_through
from tests.waiting import scaled_s

# The suite has ten minutes; who wants more asks for it: --hypothesis-profile=default.
settings.register_profile("suite", max_examples=30, deadline=None)
settings.load_profile("suite")
_heard = Heard()
_statements = Grown()
_DIRECTORIES = Path(__file__).parents[1] / "systemd" / "opensend-milter.tmpfiles.conf"
_not_there = {
    place
    for place in (Path(line.split()[1]) for line in _DIRECTORIES.read_text().splitlines() if line.startswith("d "))
    if not place.exists()
}
"""Directories of an installation that this very system does not have."""


def pytest_configure(config: pytest.Config) -> None:
    """Listen from the beginning."""
    logging.getLogger().addHandler(_heard)
    config.addinivalue_line("markers", f"{profiles.MARK}: {profiles.MARK_MEANS}")
    profiles.install()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Keep the garbage collector from all that is collected here: it stays to the end, and is a lot to go through."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        gc.freeze()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Deal them out among the processes of this run."""
    modules = []
    for path, of_one_file in groupby(items, key=lambda item: item.path):
        tests = [*of_one_file]
        is_long = any(item.get_closest_marker("long") for item in tests)
        modules.append(Module(folder=path.parent.name, tests=tests, is_long=is_long))
    items[:] = dealt(modules, int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1")))


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool:
    """Stop what never ends; on a busy machine an end takes longer."""
    return bool(pytest_timeout.pytest_timeout_set_timer(item, settings._replace(timeout=scaled_s(settings.timeout))))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Forget the test before."""
    profiles.watch.begin(may_differ=item.get_closest_marker(profiles.MARK) is not None)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call() -> Generator[None]:
    """Note what the test itself opens."""
    with profiles.watch.called():
        yield


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item: pytest.Item) -> Generator[None]:
    """Look when all that the test had is closed; a failure of the test itself stays what it is."""
    used = getattr(item, "funcargs", {})
    database = used.get("database") or used.get("beside")
    if database:  # its own faults are over
        database.cluster.resume()
        database.cluster.start()
    faults = profiles.watch.faults(used)
    yield
    secrets = frozenset[bytes]()
    found = []
    if database:
        secrets = frozenset(path.read_bytes().strip() for path in database.password_dir.glob("*"))
        # It shows every statement with its values, so addresses and bodies too.
        log: Path = database.cluster.directory / "log"
        found += findings(_statements.since_last(log), Forbidden(secrets=secrets), str(log))
    forbidden = Forbidden(secrets=secrets, addresses=True)
    found += findings(_heard.taken(), forbidden, item.nodeid)
    if directory := used.get("tmp_path"):
        found += look_through(directory.glob("*log"), forbidden)
    assert_clean(found)
    # Whatever a later test starts inherits what is blocked: a Dovecot that heeds no reload.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    assert not faults, "\n".join(faults)
    made = {place for place in _not_there if place.exists()}
    _not_there.difference_update(made)  # the next test did not make them
    assert not made, "made on this very system, not on a copy, by this test or by one beside it"
