"""What a sandbox remembers, and where its files are."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from opensend_milter.config import PATH_VARIABLE
from opensend_milter.core.errors import UsageError
from opensend_milter.host import requirements
from opensend_milter.host.sandbox.keeper_death import start_clock

QueueKind = Literal["postgres", "sqs"]
Profile = Literal["standalone", "opensend"]
STATE_FILE = "sandbox.json"
LOCK_FILE = "keeper.lock"
LOCK_TRIES, LOCK_PAUSE_S = 50, 0.02
LONGEST_SOCKET = "/run/dovecot/replication-notify-fifo.with-some-room"
MAX_SOCKET_PATH_BYTES = 107
PORTS = ("smtp", "submission", "smtps", "http", "console", "postgres", "inbox", "sqs")
QUEUE_NAME = "opensend-sandbox"
QUEUE_ACCOUNT = "123456789012"
DATABASE = "opensend"
SUPERUSER = "postgres"
CONSOLE_USER = "sandbox"


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxSeed:
    """What is in the database from the beginning."""

    api_key: str
    """May send from any verified domain of its user."""
    restricted_api_key: str
    """May send from `from_domain` only."""
    from_domain: str
    unverified_domain: str
    other_domain: str
    """Verified, and not the restricted key's."""
    suppressed: str
    """An address on the suppression list."""
    console_password: str
    """Of the one user of the console."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SandboxState:
    """Kept in the directory, mode 0600: it holds the demo keys."""

    ports: dict[str, int]
    superuser_password: str
    queue: QueueKind
    profile: Profile = "standalone"
    """Whose the tables are; for the life of the database."""
    fast: bool = False
    short_dir: str | None = None
    """A symbolic link to the directory, where its own path is too long for sockets."""
    seed: SandboxSeed | None = None


@dataclass(frozen=True, slots=True)
class Layout:
    """The files of a sandbox; `sockets` is the directory by a path short enough for them."""

    directory: Path
    sockets: Path

    @property
    def run(self) -> Path:
        """Sockets, process ids: worthless once all is down."""
        return self.sockets / "run"

    @property
    def logs(self) -> Path:
        """One file per program."""
        return self.directory / "log"

    @property
    def config(self) -> Path:
        """The configuration of our own processes."""
        return self.directory / "opensend-milter.yaml"

    @property
    def passwords(self) -> Path:
        """One file per database role."""
        return self.directory / "passwords"

    @property
    def superuser_password(self) -> Path:
        """For libpq: with it the configuration's URL is good for all commands."""
        return self.directory / "pgpass"

    @property
    def inbox(self) -> Path:
        """A Maildir."""
        return self.directory / "inbox"

    @property
    def tls(self) -> Path:
        """ca.pem and the pair that it signed."""
        return self.directory / "tls"


def layout_of(directory: Path, state: SandboxState) -> Layout:
    """Tell where things are."""
    return Layout(directory, Path(state.short_dir) if state.short_dir else directory)


def is_sandbox(directory: Path) -> bool:
    """Tell whether somebody made a sandbox here."""
    return (directory / STATE_FILE).is_file()


def load(directory: Path) -> SandboxState:
    """Read what is remembered; raise UsageError where there is no sandbox, or none that can be read."""
    path = directory / STATE_FILE
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        seed = content.pop("seed")
        return SandboxState(**content, seed=SandboxSeed(**seed) if seed else None)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"{directory} is no sandbox: `sandbox up` makes one") from None
    except PermissionError:
        raise requirements.Lacking(f"{path} cannot be read: run it as root", requirements.EX_NOPERM) from None
    except (ValueError, KeyError, TypeError) as error:
        raise UsageError(f"{path} is damaged: remove the directory and make a new sandbox") from error


def save(directory: Path, state: SandboxState) -> None:
    """Write it as a whole, readable by its owner only."""
    fresh = directory / f"{STATE_FILE}.new"
    descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(dataclasses.asdict(state), file, indent=2)
        file.flush()
        os.fsync(descriptor)
    fresh.rename(directory / STATE_FILE)


def make(directory: Path, queue: QueueKind, *, profile: Profile = "standalone", fast: bool) -> SandboxState:
    """Remember a new sandbox in an existing, empty directory."""
    state = SandboxState(
        ports=requirements.free_ports(PORTS),
        superuser_password=secrets.token_urlsafe(24),
        queue=queue,
        profile=profile,
        fast=fast,
    )
    save(directory, state)
    return state


def with_short_path(directory: Path, state: SandboxState) -> SandboxState:
    """Make, or mend, the symbolic link that a directory of a long path needs for its sockets."""
    if len(os.fsencode(directory)) + len(LONGEST_SOCKET) <= MAX_SOCKET_PATH_BYTES:
        return state
    if state.short_dir and _points_to(Path(state.short_dir), directory):
        return state
    while True:
        link = Path(f"/tmp/os-{secrets.token_hex(4)}")  # noqa: S108  # made exclusively, and owned by root
        try:
            link.symlink_to(directory)
        except FileExistsError:
            continue
        changed = dataclasses.replace(state, short_dir=str(link))
        save(directory, changed)
        return changed


def remove_short_path(directory: Path, state: SandboxState) -> SandboxState:
    """Undo `with_short_path`."""
    if state.short_dir and _points_to(Path(state.short_dir), directory):
        Path(state.short_dir).unlink()
    changed = dataclasses.replace(state, short_dir=None)
    if changed != state:
        save(directory, changed)
    return changed


def _points_to(link: Path, directory: Path) -> bool:
    return link.is_symlink() and link.readlink() == directory and link.lstat().st_uid == os.geteuid()


@contextmanager
def kept(directory: Path) -> Iterator[None]:
    """Be the keeper: hold the lock, with our pid in it, that tells everybody so."""
    with (directory / LOCK_FILE).open("a+") as file:
        for _ in range(LOCK_TRIES):
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # somebody looks whether there is a keeper, or there is one
                time.sleep(LOCK_PAUSE_S)
        else:
            raise UsageError(f"the sandbox in {directory} has a keeper already")
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def keeper_pid(directory: Path) -> int | None:
    """Return the living keeper's process id: whoever holds the lock."""
    try:
        with (directory / LOCK_FILE).open("r") as file:
            for _ in range(LOCK_TRIES):
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    file.seek(0)
                    pid = file.read()
                    # Empty, or of the last one, for as long as a keeper has the lock and has not yet written.
                    if pid and start_clock(int(pid)):
                        return int(pid)
                    time.sleep(LOCK_PAUSE_S)
                else:
                    return None
    except FileNotFoundError:
        return None
    return None


def wipe(folder: Path) -> None:
    """Remove sockets and other leftovers of processes that are gone; directories stay."""
    for path in folder.rglob("*"):
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)


def service_url(state: SandboxState) -> str:
    """Return where SQS is."""
    return f"http://127.0.0.1:{state.ports['sqs']}"


def queue_url(state: SandboxState) -> str:
    """Return the queue's URL."""
    return f"{service_url(state)}/{QUEUE_ACCOUNT}/{QUEUE_NAME}"


def http_url(state: SandboxState) -> str:
    """Return the address of our HTTP process."""
    return f"http://127.0.0.1:{state.ports['http']}"


def console_url(state: SandboxState) -> str:
    """Return the address of the console."""
    return f"http://127.0.0.1:{state.ports['console']}"


def write_superuser_password(state: SandboxState, path: Path) -> None:
    """Write it for libpq, which reads a file of its owner only."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(f"*:*:*:{SUPERUSER}:{state.superuser_password}\n")


def database_url(state: SandboxState) -> str:
    """Return the superuser's way in, by TCP."""
    password = state.superuser_password
    return f"postgresql://{SUPERUSER}:{password}@127.0.0.1:{state.ports['postgres']}/{DATABASE}"


def variables(directory: Path, state: SandboxState) -> dict[str, str]:
    """Return what `sandbox env` prints; the names are a public interface."""
    if not state.seed:
        raise UsageError(f"the sandbox in {directory} never came up: run `sandbox up`")
    seed, ports, layout = state.seed, state.ports, Layout(directory, directory)
    found = {
        "SANDBOX_SMTP_HOST": "127.0.0.1",
        "SANDBOX_SMTP_PORT": str(ports["smtp"]),
        "SANDBOX_SUBMISSION_PORT": str(ports["submission"]),
        "SANDBOX_SMTPS_PORT": str(ports["smtps"]),
        "SANDBOX_HTTP_URL": http_url(state),
        "SANDBOX_CONSOLE_URL": console_url(state),
        "SANDBOX_CONSOLE_USER": CONSOLE_USER,
        "SANDBOX_CONSOLE_PASSWORD": seed.console_password,
        "SANDBOX_TLS_CA": str(layout.tls / "ca.pem"),
        "SANDBOX_API_KEY": seed.api_key,
        "SANDBOX_RESTRICTED_API_KEY": seed.restricted_api_key,
        "SANDBOX_FROM_DOMAIN": seed.from_domain,
        "SANDBOX_UNVERIFIED_DOMAIN": seed.unverified_domain,
        "SANDBOX_OTHER_DOMAIN": seed.other_domain,
        "SANDBOX_SUPPRESSED": seed.suppressed,
        "SANDBOX_DATABASE_URL": database_url(state),
        **({"SANDBOX_INBOX": str(layout.inbox)} if state.profile == "standalone" else {}),
        "SANDBOX_DIR": str(directory),
        PATH_VARIABLE: str(layout.config),
    }
    if state.queue == "sqs":
        found |= {"SANDBOX_QUEUE_URL": queue_url(state), "SANDBOX_AWS_ENDPOINT": service_url(state)}
    return found
