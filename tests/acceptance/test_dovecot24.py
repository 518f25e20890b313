"""The whole product on Dovecot 2.4, as Debian 13 has it; all other tests ask the Dovecot of this system."""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from opensend_milter.config import load
from opensend_milter.core.findings import Result
from opensend_milter.host.examining.host_checks import Site
from tests.acceptance.running_sandbox import Sandbox, standing
from tests.acceptance.submitting import MAIL, TAKEN, Account, Mechanism, delivered, log_in, revoke, stored, submit
from tests.acceptance.test_doctor_sandbox import ON_PURPOSE, examined, mended
from tests.acceptance.test_faults import NO_LOGIN, await_login, postgres_stopped
from tests.acceptance.test_submission import BAD, GOOD, authenticated
from tests.integration.debian13 import programs_of_debian13

pytestmark = pytest.mark.case(68)


@pytest.fixture(scope="module")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sandbox]:
    """One sandbox for all, made while `dovecot` is another program than usual."""
    programs = programs_of_debian13(tmp_path_factory.mktemp("programs"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
        with standing() as sandbox:
            yield sandbox


@pytest.fixture
def site(newer: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv("DATABASE_URL", newer["SANDBOX_DATABASE_URL"])
    path = newer.directory / "opensend-milter.yaml"
    postfix, dovecot = (newer.directory / name for name in ("postfix", "dovecot"))
    return Site(config=load(path), config_path=path, postfix_dir=postfix, dovecot_dir=dovecot)


def test_what_is_taken_is_delivered(newer: Sandbox) -> None:
    assert "Dovecot v2.4." in newer.log("dovecot")
    with newer.smtp() as client:
        queue_id = submit(client, MAIL).queue_id
    assert stored(newer, queue_id).raw == MAIL
    assert delivered(newer, queue_id).content.endswith(MAIL)


MECHANISMS: tuple[Mechanism, ...] = ("PLAIN", "LOGIN")
USERS_AND_KEYS = [
    (b"apikey", "{}"),
    (b"", "{}"),
    (b"jane@example.org", " {}\r\n"),
    (b"' OR 1=1 --%{user}", "\t{} "),
]


def test_a_key_is_good_whoever_shows_it(newer: Sandbox) -> None:
    key = newer["SANDBOX_API_KEY"]
    for mechanism in MECHANISMS:
        for user, around in USERS_AND_KEYS:
            told = authenticated(newer, mechanism, user, around.format(key).encode())
            assert told.codes == GOOD, (mechanism, user, around)


NO_KEYS: list[tuple[Mechanism, bytes]] = [
    ("PLAIN", b"os_00000000000000000000000000000000"),
    ("LOGIN", b"') OR true --%{user}"),
    ("PLAIN", "%{password}\\'\u20ac".encode()),
]


def test_what_is_no_key_is_refused(newer: Sandbox) -> None:
    """All at once: each is answered after two seconds."""
    with ThreadPoolExecutor(len(NO_KEYS)) as threads:
        told = threads.map(lambda given: authenticated(newer, given[0], b"apikey", given[1]).codes, NO_KEYS)
        assert list(told) == [BAD] * len(NO_KEYS)


def test_a_revoked_key_is_refused_at_once(newer: Sandbox) -> None:
    account = Account.make(newer)
    key = account.key()
    with account.logged_in(key) as client:
        assert submit(client, account.message()).codes == TAKEN
    revoke(newer, key)
    with newer.connect() as client:
        assert log_in(client, key).codes == BAD


def test_doctor_finds_nothing_wrong(site: Site) -> None:
    findings = examined(site)
    wrong = {name for name, one in findings.items() if one.result in {Result.PROBLEM, Result.WARNING}}
    assert wrong <= ON_PURPOSE, [findings[name] for name in wrong]
    assert findings["dovecot.version"].seen.startswith("Dovecot 2.4.")
    asked = {name: one.result for name, one in findings.items() if name.startswith(("dovecot", "auth"))}
    assert set(asked.values()) == {Result.GOOD}, asked


SETTINGS = [
    ("dovecot.verbose-passwords", "auth_verbose_passwords = no", "auth_verbose_passwords = plain"),
    ("dovecot.debug", "auth_verbose = yes", "auth_debug = yes"),
    ("dovecot.debug-passwords", "auth_debug_passwords = no", "auth_debug_passwords = yes"),
    ("dovecot.cache-size", "auth_cache_size = 0", "auth_cache_size = 10 M"),
]


def test_doctor_finds_what_is_wrong(site: Site, tmp_path: Path) -> None:
    shutil.copytree(site.dovecot_dir, tmp_path / "dovecot", ignore=shutil.ignore_patterns("state"))
    main = tmp_path / "dovecot" / "dovecot.conf"
    spoiled = dataclasses.replace(site, dovecot_dir=main.parent)
    for check, right, wrong in SETTINGS:
        content = main.read_text()
        assert f"\n{right}\n" in content
        main.write_text(content.replace(f"\n{right}\n", f"\n{wrong}\n"))
        found = examined(spoiled, check)[check]
        assert found.result is Result.PROBLEM, found
        mended(spoiled, found)
        assert examined(spoiled, check)[check].result is Result.GOOD, check
    main.chmod(0o644)
    assert examined(spoiled, "dovecot.file-mode")["dovecot.file-mode"].result is Result.PROBLEM
    main.write_text("protocols =\n")
    assert examined(spoiled, "dovecot.configuration")["dovecot.configuration"].result is Result.PROBLEM


@pytest.mark.case(56)
def test_without_the_database_a_login_is_put_off_and_good_again_by_itself(newer: Sandbox) -> None:
    with newer.connect() as client:
        with postgres_stopped(newer, signal.SIGINT):
            assert log_in(client, newer["SANDBOX_API_KEY"]).codes == NO_LOGIN
        await_login(newer, client)
        assert submit(client, MAIL).codes == TAKEN
