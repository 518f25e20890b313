"""The whole product, privately, under one directory: up, down, and how it fares."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from opensend_milter.config import Tls
from opensend_milter.core.errors import OpensendError, TemporaryError, UsageError
from opensend_milter.host import requirements
from opensend_milter.host.rendering.certificates import find_certificate, make_certificate
from opensend_milter.host.sandbox import state as state_file
from opensend_milter.host.sandbox.keeper import Keeper
from opensend_milter.host.sandbox.keeper_death import start_clock
from opensend_milter.host.sandbox.programs import (
    Programs,
    accepts,
    greets_as_dovecot,
    greets_as_smtp,
    make_database,
)
from opensend_milter.host.sandbox.state import (
    Layout,
    Profile,
    QueueKind,
    SandboxSeed,
    SandboxState,
    layout_of,
)

DEFAULT_DIR = Path("/tmp/opensend-sandbox")  # noqa: S108  # made exclusively; refused when another's
HOSTNAME = "mail.sandbox.test"
GRACE_S = 15.0
"""For children whose keeper is gone."""
STOP_S = 120.0

Prepare = Callable[[str, Path, Profile], SandboxSeed]
"""Takes the database's URL (superuser), the directory for the roles' passwords, and whose the tables are to be."""
Say = Callable[[str], None]


class NotUp(TemporaryError):  # noqa: N818  # the tree reads as mail says it
    """The sandbox did not come up."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramStatus:
    """How one program fares."""

    name: str
    pid: int | None
    state: str
    restarts: int
    answers: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """How a sandbox fares."""

    directory: Path
    keeper_pid: int | None
    programs: tuple[ProgramStatus, ...]

    @property
    def good(self) -> bool:
        """All run, and all answer."""
        running = all(program.state == "running" and program.answers for program in self.programs)
        return self.keeper_pid is not None and bool(self.programs) and running


def absolute(directory: Path) -> Path:
    """Return the one name of a directory; its last part is kept, so that a symbolic link is seen as one."""
    spelled = Path(os.path.abspath(directory))  # noqa: PTH100  # resolve() would follow the link
    found = spelled.parent.resolve() / spelled.name
    if set(str(found)) & set(" $,;#{}\"'\\@") or not str(found).isascii() or not str(found).isprintable():
        raise UsageError(f"{found}: the path of a sandbox holds no spaces and no special characters")
    return found


def up(directory: Path, *, queue: QueueKind | None, profile: Profile | None, fast: bool, say: Say) -> bool:
    """Bring a sandbox up, new or known, and return when all of it answers; False: it ran already."""
    requirements.require(queue=queue == "sqs")
    os.umask(0o022)  # servers of other users are to read what holds no secret
    _make_directory(directory)
    with _alone(directory):
        known = state_file.load(directory) if state_file.is_sandbox(directory) else None
        if known and profile not in {None, known.profile}:
            raise UsageError(
                f"the sandbox in {directory} has --profile {known.profile}, and its database keeps it: "
                f"remove it (`sandbox down --purge --dir {directory}`) or choose another --dir"
            )
        if state_file.keeper_pid(directory):
            if known and queue not in {None, known.queue}:
                raise UsageError(f"the sandbox runs with --queue {known.queue}: take it down first")
            return False
        state = known or state_file.make(directory, queue or "postgres", profile=profile or "standalone", fast=fast)
        new = requirements.free_ports([name for name in state_file.PORTS if name not in state.ports])
        state = dataclasses.replace(state, queue=queue or state.queue, fast=fast, ports=state.ports | new)
        state_file.save(directory, state)
        _clear(directory)
        with requirements.held(state.ports):
            state = state_file.with_short_path(directory, state)
            try:
                _write_files(layout_of(directory, state), state)
                _start_keeper(directory, say)
            except BaseException:
                state_file.remove_short_path(directory, state_file.load(directory))
                raise
        return True


def _make_directory(directory: Path) -> None:
    with contextlib.suppress(FileExistsError):
        try:
            directory.mkdir(mode=0o755)
        except FileNotFoundError:
            raise UsageError(f"{directory.parent} does not exist") from None
        directory.chmod(0o755)
    requirements.require_directory(directory)
    names = {path.name for path in directory.iterdir()} - {"up.lock", f"{state_file.STATE_FILE}.new"}
    if names and not state_file.is_sandbox(directory):
        raise UsageError(f"{directory} is not empty and no sandbox: choose another --dir")


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Let one `up` or `down` happen at a time."""
    with (directory / "up.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _write_files(layout: Layout, state: SandboxState) -> None:
    for place in (layout.run, layout.logs, layout.tls):
        place.mkdir(mode=0o755, exist_ok=True)
    _make_certificate(layout)
    content = yaml.safe_dump(_settings(layout, state), sort_keys=False)
    state_file.write_superuser_password(state, layout.superuser_password)
    layout.config.write_text(f"# Written by `sandbox up`, each time.\n{content}")


def _settings(layout: Layout, state: SandboxState) -> Mapping[str, object]:
    """Return the configuration of our own programs."""
    ports = state.ports
    content: dict[str, object] = {
        "profile": state.profile,
        "database": {
            "url": f"postgresql://{state_file.SUPERUSER}@/{state_file.DATABASE}"
            f"?host={layout.run / 'pg'}&port={ports['postgres']}&passfile={layout.superuser_password}",
            "password_dir": str(layout.passwords),
        },
        "smtp": {
            "host": "127.0.0.1",
            "hostname": HOSTNAME,
            "relay_port": ports["smtp"],
            "submission_port": ports["submission"],
            "smtps_port": ports["smtps"],
            "client_logins_per_minute": 0,
            "client_messages_per_minute": 0,
        },
        "tls": {"folder": str(layout.tls)},
        "milter": {
            "socket": str(layout.run / "milter.sock"),
            "socket_group": "postfix",
            "processes": 2,
            "drain_s": 5,
            "spool_dir": str(layout.directory / "spool"),
        },
        "auth": {
            "socket": str(layout.run / "auth.sock"),
            "socket_group": "postfix",
            "dovecot_socket": str(layout.run / "dovecot-auth.sock"),
        },
        "delivery": {"poll_interval_s": 0.25},
        "http": {"host": "127.0.0.1", "port": ports["http"], "public_url": state_file.http_url(state)},
        "console": {"port": ports["console"]},
        "webhooks": {"allow_private": True},
        "limits": {"client_per_minute": 0, "key_per_minute": 0, "failed_per_minute": 0},
    }
    if state.profile == "standalone":
        content["relay"] = {"host": "127.0.0.1", "port": ports["inbox"]}
        content["maildir"] = {"folder": str(layout.inbox)}
    if state.queue == "sqs":
        content["queue"] = {"url": state_file.queue_url(state)}
        content["aws"] = {"endpoint_url": state_file.service_url(state)}
    return content


def _make_certificate(layout: Layout) -> None:
    """Make one that a client on this machine can check, or keep the one that is good for a month more."""
    now = dt.datetime.now(dt.UTC)
    if not (layout.tls / "ca.pem").exists() or _expires_at(layout) < now + dt.timedelta(days=30):
        names = dict.fromkeys(("localhost", "127.0.0.1", HOSTNAME, socket.gethostname()))
        make_certificate(layout.tls, list(names), now=now)


def _expires_at(layout: Layout) -> dt.datetime:
    try:
        pair = find_certificate(Tls(folder=layout.tls))
    except OpensendError:
        pair = None
    return pair.expires_at if pair else dt.datetime.min.replace(tzinfo=dt.UTC)


def _start_keeper(directory: Path, say: Say) -> None:
    command = [sys.executable, "-P", "-m", "opensend_milter", "sandbox", "keep", "--dir", str(directory)]
    with (
        (directory / "log" / "keeper.log").open("ab") as output,
        subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=output,
            cwd=directory,
            env=requirements.environment({}),
            start_new_session=True,
            text=True,
        ) as keeper,
    ):
        try:
            _follow(keeper, directory, say)
        except BaseException:
            keeper.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                keeper.wait(STOP_S)
            raise
        # It lives on; the warning of one that is not waited for is not meant for us.
        keeper.returncode = 0


def _follow(keeper: subprocess.Popen[str], directory: Path, say: Say) -> None:
    """Pass on what the keeper says until all is up; raise NotUp when it gives up."""
    failure: list[str] = []
    for line in keeper.stdout or ():
        text = line.rstrip("\n")
        if text == "ready":
            return
        if text.startswith("! "):
            failure.append(text.removeprefix("! "))
        else:
            say(text)
    keeper.wait(STOP_S)
    raise NotUp("\n".join(failure) or f"the keeper ended: see {directory / 'log' / 'keeper.log'}")


def keep(directory: Path, prepare: Prepare) -> None:
    """Run as the keeper: the process that all others are children of."""
    os.umask(0o022)
    state = state_file.load(directory)
    layout = layout_of(directory, state)
    with state_file.kept(directory):
        programs = Programs(layout, state, partial(_prepare, directory, prepare))
        keeper = Keeper(programs=tuple(programs), run_dir=layout.run, log_dir=layout.logs, report=_report)
        try:
            with requirements.held(state.ports):
                keeper.run()
        except OpensendError as error:
            for line in str(error).splitlines():
                _report(f"! {line}")


def _report(text: str) -> None:
    """Tell whoever waits for us to be up; afterwards, only the log."""
    logging.getLogger(__name__).info("%s", text)
    # Ours alone: nobody reads any more once `up` has gone.
    with contextlib.suppress(OSError):
        os.write(sys.stdout.fileno(), f"{text}\n".encode())


def _prepare(directory: Path, prepare: Prepare) -> None:
    """Fill the database, once in its life."""
    state = state_file.load(directory)
    if not state.seed:
        make_database(state)
        layout = layout_of(directory, state)
        seed = prepare(state_file.database_url(state), layout.passwords, state.profile)
        state_file.save(directory, dataclasses.replace(state, seed=seed))


def down(directory: Path, *, purge: bool, say: Say) -> None:
    """Stop all of it; the data stays unless purged."""
    state = state_file.load(directory)
    requirements.require_directory(directory)
    with _alone(directory):
        pid = state_file.keeper_pid(directory)
        if pid:
            say("stopping")
            # The lock is free a moment before the process is gone.
            os.kill(pid, signal.SIGTERM)
            if not _until(lambda: start_clock(pid) is None, STOP_S):
                os.kill(pid, signal.SIGKILL)
        _clear(directory)
        state_file.remove_short_path(directory, state)
        if purge:
            shutil.rmtree(directory)


def _clear(directory: Path) -> None:
    """See that no child of a former keeper is left, then remove its sockets and process ids."""
    left = {int(row["pid"]): row["clock"] for row in _rows(directory) if row["pid"]}

    def living() -> list[int]:
        return [pid for pid, clock in left.items() if start_clock(pid) == clock]

    if not _until(lambda: not living(), GRACE_S):
        for pid in living():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        _until(lambda: not living(), GRACE_S)
    for name in ("run", "queue/pid", "queue/public", "queue/private"):
        state_file.wipe(directory / name)


def _until(condition: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def _rows(directory: Path) -> list[dict[str, int | str | None]]:
    try:
        rows: list[dict[str, int | str | None]] = json.loads((directory / "run" / "children.json").read_text())
    except (FileNotFoundError, ValueError):
        return []
    return rows


def status(directory: Path) -> Status:
    """Ask every program whether it answers."""
    state = state_file.load(directory)
    pid = state_file.keeper_pid(directory)
    probes = _probes(layout_of(directory, state), state)
    return Status(
        directory=directory,
        keeper_pid=pid,
        programs=tuple(
            ProgramStatus(
                name=str(row["name"]),
                pid=int(row["pid"]) if pid and row["pid"] else None,
                state=str(row["state"]) if pid else "stopped",
                restarts=int(row["restarts"] or 0),
                answers=bool(pid) and probes.get(str(row["name"]), lambda: True)(),
            )
            for row in _rows(directory)
        ),
    )


def _probes(layout: Layout, state: SandboxState) -> Mapping[str, Callable[[], bool]]:
    programs = {program.name: program.answers for program in Programs(layout, state, lambda: None)}
    return {
        **{name: answers for name, answers in programs.items() if answers},
        "auth-gate": partial(greets_as_dovecot, layout.run / "auth.sock"),
        "serve": partial(accepts, layout.run / "milter.sock"),
        "inbox": partial(greets_as_smtp, state.ports["inbox"]),
    }
