"""The sandbox as its users meet it: one command up, one down, and nothing left."""

from __future__ import annotations

import json
import os
import shutil
import signal
import smtplib
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from email.message import EmailMessage
from functools import partial
from pathlib import Path

import pytest

from opensend_milter.host.sandbox import state as sandbox_state
from tests.acceptance.running_sandbox import Sandbox, new_directory, program, typed
from tests.log_scan import assert_clean
from tests.waiting import await_true

NAMES = {
    "SANDBOX_SMTP_HOST",
    "SANDBOX_SMTP_PORT",
    "SANDBOX_SUBMISSION_PORT",
    "SANDBOX_SMTPS_PORT",
    "SANDBOX_HTTP_URL",
    "SANDBOX_CONSOLE_URL",
    "SANDBOX_CONSOLE_USER",
    "SANDBOX_CONSOLE_PASSWORD",
    "SANDBOX_TLS_CA",
    "SANDBOX_API_KEY",
    "SANDBOX_RESTRICTED_API_KEY",
    "SANDBOX_FROM_DOMAIN",
    "SANDBOX_UNVERIFIED_DOMAIN",
    "SANDBOX_OTHER_DOMAIN",
    "SANDBOX_SUPPRESSED",
    "SANDBOX_DATABASE_URL",
    "SANDBOX_INBOX",
    "SANDBOX_DIR",
    "OPENSEND_MILTER_CONFIG",
}
PROGRAMS = ("postgres", "dovecot", "auth-gate", "serve", "inbox", "worker", "http", "console", "postfix")
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a sandbox needs root")


def processes_of(directory: Path) -> list[str]:
    """List the living processes that have to do with a directory: by command, place or environment."""
    wanted, found = str(directory).encode(), []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
                command = (entry / "cmdline").read_bytes()
                traces = (command, (entry / "environ").read_bytes(), os.fsencode((entry / "cwd").readlink()))
                if state != "Z" and any(wanted in trace for trace in traces):
                    found.append(f"{entry.name} {command.decode(errors='replace')}")
    return found


def await_gone(directory: Path) -> None:
    await_true(lambda: not processes_of(directory), lambda: processes_of(directory), pause_s=0.1)


@pytest.fixture
def directory() -> Iterator[Path]:
    directory = new_directory()
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="module")
def deep_sandbox() -> Iterator[Sandbox]:
    """Make room for a sandbox whose path is too long for sockets; it may be up, down or not yet made."""
    directory = new_directory()
    sandbox = Sandbox(directory / ("d" * 60) / ("e" * 60) / "sandbox")
    sandbox.directory.parent.mkdir(parents=True)
    yield sandbox
    found = sandbox.take_down()
    shutil.rmtree(directory, ignore_errors=True)
    assert_clean(found)


@pytest.fixture
def second(deep_sandbox: Sandbox) -> Sandbox:
    """Share that one: it is up at the beginning, and may be taken down and purged."""
    return deep_sandbox.up()


# ---------------------------------------------------------------------- what it says


def test_all_runs_and_answers(sandbox: Sandbox) -> None:
    found = json.loads(sandbox.run("status", "--json").stdout)
    assert found["good"]
    assert {one["name"] for one in found["programs"]} == set(PROGRAMS)
    assert all(one["answers"] and one["state"] == "running" for one in found["programs"])


def test_a_shell_can_source_the_names(sandbox: Sandbox, tmp_path: Path) -> None:
    assert set(sandbox.values) == NAMES
    (tmp_path / "env").write_text(program("sandbox", "env", "--dir", str(sandbox.directory)).stdout)
    script = "set -eu; . ./env; " + "; ".join(f'printf "%s\\n" "{name}=${name}"' for name in sorted(NAMES))
    said = subprocess.run(["sh", "-c", script], cwd=tmp_path, check=True, capture_output=True, text=True).stdout
    assert dict(line.split("=", 1) for line in said.splitlines()) == sandbox.values


def test_adeep_sandbox_up_changes_nothing(sandbox: Sandbox) -> None:
    before = sandbox.pids()
    said = sandbox.run("up", "--fast")
    assert "runs already" in said.stderr
    assert sandbox.pids() == before


def test_a_message_is_followed_to_the_inbox(sandbox: Sandbox) -> None:
    said = sandbox.run("send", "--to", "a@example.net", "--subject", "Followed", "--text", "Body", "--json")
    sent = json.loads(said.stdout)
    assert sent["reply"].startswith("250 2.0.0 Ok: queued as ")
    assert sent["reply"].endswith(sent["queue_id"])
    assert sent["record"].endswith(" sent")
    delivered = Path(sent["delivered"]).read_bytes()
    assert delivered.startswith(b"Return-Path: <")
    assert b"\r\nDelivered-To: a@example.net\r\n" in delivered
    assert b"\r\nSubject: Followed\r\n" in delivered


def test_nobody_else_reads_what_was_delivered(sandbox: Sandbox) -> None:
    assert stat.S_IMODE(Path(sandbox["SANDBOX_INBOX"]).stat().st_mode) == 0o700


def test_a_refused_message_says_why(sandbox: Sandbox) -> None:
    said = sandbox.run("send", "--from", f"a@{sandbox['SANDBOX_UNVERIFIED_DOMAIN']}", check=False)
    assert said.returncode == 64
    assert "refused: 550 5.7.1" in said.stderr


def test_the_demo_is_shown_with_commands_that_work(sandbox: Sandbox) -> None:
    shown = json.loads(sandbox.run("demo", "--json").stdout)
    count = len(sandbox.inbox())
    subprocess.run(["sh", "-c", shown["swaks"]], check=True, capture_output=True)
    subprocess.run([sys.executable, "-c", shown["python"]], check=True)
    await_true(lambda: len(sandbox.inbox()) >= count + 2, "both arrive", pause_s=0.1)


def test_every_port_takes_mail_with_either_key(sandbox: Sandbox) -> None:
    message = EmailMessage()
    message["From"] = f"a@{sandbox['SANDBOX_FROM_DOMAIN']}"
    for port in ("SANDBOX_SMTP_PORT", "SANDBOX_SUBMISSION_PORT", "SANDBOX_SMTPS_PORT"):
        for key in ("SANDBOX_API_KEY", "SANDBOX_RESTRICTED_API_KEY"):
            with sandbox.smtp(key, port) as client:
                assert client.send_message(message, to_addrs=["a@example.net"]) == {}


def test_secrets_are_for_their_owner_only(sandbox: Sandbox) -> None:
    secrets = [sandbox["SANDBOX_API_KEY"], sandbox["SANDBOX_RESTRICTED_API_KEY"]]
    secrets.append(sandbox["SANDBOX_DATABASE_URL"].split(":")[2].split("@")[0])
    secrets += [path.read_text().strip() for path in (sandbox.directory / "passwords").iterdir()]
    for path in sandbox.directory.rglob("*"):
        open_to_others = path.is_file() and path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH)
        if open_to_others and not any(parent.stat().st_mode & 0o005 == 0 for parent in path.parents):
            content = path.read_bytes()
            assert not [secret for secret in secrets if secret.encode() in content], path
    for line in processes_of(sandbox.directory):
        assert not [secret for secret in secrets if secret in line]


# ---------------------------------------------------------------------- what it survives


def test_what_dies_is_started_again(rough: Sandbox) -> None:
    before = rough.pids()
    for name in PROGRAMS:
        os.kill(before[name], signal.SIGKILL)
        await_true(partial(started_again, rough, name, before[name]), f"{name} is started again")
        rough.await_good()
    assert rough.pids()["keeper"] == before["keeper"]
    rough.run("send")


def started_again(sandbox: Sandbox, name: str, before: int) -> bool:
    with suppress(StopIteration):  # it has none between the two
        return sandbox.pid(name) != before
    return False


def test_nothing_outlives_a_killed_keeper_and_all_comes_back(rough: Sandbox) -> None:
    values = dict(rough.values)
    client = rough.smtp()  # an smtpd in the middle of something
    os.kill(rough.pids()["keeper"], signal.SIGKILL)
    await_gone(rough.directory)
    client.close()
    status = rough.run("status", check=False)
    assert status.returncode == 1
    assert rough.up().values == values
    rough.run("send")


def test_variables_of_the_caller_change_nothing(deep_sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    if deep_sandbox.directory.exists():
        deep_sandbox.run("down", "--purge")
    monkeypatch.setenv("SMTP_RELAY_PORT", "1")
    monkeypatch.setenv("DATABASE_URL", "postgresql://nobody@nowhere.invalid/none")
    monkeypatch.setenv("OPENSEND_MILTER_CONFIG", "/nonexistent")
    before = os.umask(0o077)
    try:
        program("sandbox", "up", "--fast", "--dir", str(deep_sandbox.directory))
        program("sandbox", "send", "--dir", str(deep_sandbox.directory))
    finally:
        os.umask(before)


def test_two_stand_side_by_side(second: Sandbox, sandbox: Sandbox) -> None:
    assert sandbox["SANDBOX_API_KEY"] != second["SANDBOX_API_KEY"]
    with pytest.raises(smtplib.SMTPAuthenticationError), sandbox.connect() as client:
        client.login("apikey", second["SANDBOX_API_KEY"])
    before = [len(one.inbox()) for one in (second, sandbox)]
    second.run("send")
    assert [len(one.inbox()) for one in (second, sandbox)] == [before[0] + 1, before[1]]


def test_down_leaves_nothing_and_up_finds_everything(second: Sandbox) -> None:
    values = dict(second.values)
    second.run("send")
    count = len(second.inbox())
    assert "/dev/shm" not in Path(f"/proc/{second.pid('postgres')}/maps").read_text(), "it would outlive us there"
    second.run("down")
    assert processes_of(second.directory) == []
    assert not [path for path in second.directory.rglob("*") if path.is_socket() or path.is_fifo()]
    assert not list((second.directory / "queue" / "pid").iterdir())
    assert second.run("down").returncode == 0
    assert len(second.inbox()) == count
    assert second.up().values == values


def test_a_deep_directory_gets_a_short_way_in(second: Sandbox, sandbox: Sandbox) -> None:
    deep = second.directory
    links = links_to(deep)
    assert len(links) == 1
    assert second["SANDBOX_DIR"] == str(deep)
    second.run("send")
    os.kill(second.pids()["keeper"], signal.SIGKILL)
    await_gone(deep)
    second.up().run("send")
    second.run("down")
    assert not links[0].is_symlink()
    assert links_to(deep) == []
    second.run("down", "--purge")
    assert not deep.exists()
    sandbox.run("status")


def links_to(directory: Path) -> list[Path]:
    found = []
    for path in Path("/tmp").iterdir():
        with suppress(OSError):  # others come and go there
            if path.readlink() == directory:
                found.append(path)
    return found


@pytest.mark.parametrize(("name", "how"), [("dovecot", signal.SIGKILL), ("postgres", signal.SIGQUIT)])
@pytest.mark.case(56)
def test_a_login_while_a_server_is_down_is_put_off(rough: Sandbox, name: str, how: int) -> None:
    pids = rough.pids()
    client = rough.connect()
    os.kill(pids["keeper"], signal.SIGSTOP)  # it would start what we kill
    os.kill(pids[name], how)
    await_true(
        lambda: not any(line.startswith(f"{pids[name]} ") for line in processes_of(rough.directory)), f"{name} is gone"
    )
    with pytest.raises(smtplib.SMTPAuthenticationError) as caught:
        client.login("apikey", rough["SANDBOX_API_KEY"])
    assert (caught.value.smtp_code, caught.value.smtp_error[:5]) == (454, b"4.7.0")
    os.kill(pids["keeper"], signal.SIGCONT)
    rough.await_good()
    client.login("apikey", rough["SANDBOX_API_KEY"])
    client.quit()


# ---------------------------------------------------------------------- what it refuses


def refusal(*arguments: str) -> tuple[int, str]:
    done = typed("sandbox", *arguments, check=False)
    assert len(done.stderr.splitlines()) == 1, done.stderr
    return done.returncode, done.stderr


@needs_root
def test_a_directory_of_something_else_is_not_touched(directory: Path) -> None:
    (directory / "precious").write_text("x")
    code, text = refusal("up", "--dir", str(directory))
    assert code == 64
    assert "is not empty and no sandbox" in text
    assert [path.name for path in directory.iterdir()] == ["precious"]


@needs_root
def test_a_symbolic_link_is_not_followed(directory: Path) -> None:
    (directory / "real").mkdir()
    (directory / "link").symlink_to(directory / "real")
    code, text = refusal("up", "--dir", str(directory / "link"))
    assert (code, list((directory / "real").iterdir())) == (64, [])
    assert "is no directory" in text


@needs_root
def test_a_directory_of_somebody_else_is_not_used(directory: Path) -> None:
    os.chown(directory, 65534, -1)
    code, text = refusal("up", "--dir", str(directory))
    assert code == 64
    assert "belongs to somebody else" in text


@needs_root
def test_a_directory_that_others_can_write_to_is_not_used(directory: Path) -> None:
    directory.chmod(0o777)
    assert "can be written to by others" in refusal("up", "--dir", str(directory))[1]


@needs_root
def test_a_parent_that_servers_cannot_enter_is_named(directory: Path) -> None:
    closed = directory / "closed"
    closed.mkdir(mode=0o700)
    code, text = refusal("up", "--dir", str(closed / "sandbox"))
    assert code == 64
    assert f"cannot enter {closed}:" in text


@needs_root
@pytest.mark.parametrize("subcommand", ["down", "status", "env", "send"])
def test_what_is_no_sandbox_is_told_so(directory: Path, subcommand: str) -> None:
    code, text = refusal(subcommand, "--dir", str(directory / "none"))
    assert code == 64
    assert "is no sandbox" in text


def test_a_path_with_spaces_is_refused(directory: Path) -> None:
    assert "no spaces" in refusal("up", "--dir", str(directory / "a b"))[1]


@needs_root
def test_who_is_not_root_is_told_so(directory: Path) -> None:
    # Imported before: the interpreter may be where only root can read.
    script = "import os; from opensend_milter.cli import main; os.setgid(65534); os.setuid(65534); main()"
    done = subprocess.run(
        [sys.executable, "-c", script, "sandbox", "up", "--dir", str(directory / "x")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 77, done.stderr
    assert "needs root" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@needs_root
def test_a_port_that_is_taken_is_named(directory: Path) -> None:
    port = sandbox_state.make(directory, "postgres", fast=True).ports["smtp"]
    with socket.create_server(("127.0.0.1", port)):
        code, text = refusal("up", "--dir", str(directory))
    assert code == 69
    assert f"port {port}" in text
    assert "smtp" in text


def test_what_does_not_come_up_says_so_and_leaves_nothing(sandbox: Sandbox, directory: Path) -> None:
    sandbox_state.make(directory, "postgres", fast=True)
    # A cluster that has lost what a start needs first: it is as big as it has to be.
    (directory / "postgres" / "global").mkdir(parents=True)
    for name in ("PG_VERSION", "postgresql.conf", "pg_hba.conf", "pg_ident.conf"):
        shutil.copy(sandbox.directory / "postgres" / name, directory / "postgres")
    for path in (directory / "postgres", *(directory / "postgres").rglob("*")):
        shutil.chown(path, "postgres", "postgres")
    (directory / "postgres").chmod(0o700)
    done = typed("sandbox", "up", "--dir", str(directory), check=False)
    assert done.returncode == 75
    assert "postgres ended (" in done.stderr
    assert "pg_control" in done.stderr
    assert processes_of(directory) == []
