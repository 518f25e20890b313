"""Another commit's sandbox beside ours: its own code, asked for by its command line alone."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import yaml

from bench.processes import Groups
from bench.systems import FILLED, Stand, System, await_true

HERE = Path(__file__).resolve().parent.parent
_OURS = ["-m", "opensend_milter"]
_WHOSE = "import opensend_milter; print(opensend_milter.__file__)"
_FILLED_THERE = "SELECT name FROM unnest(%s::text[]) AS name WHERE to_regclass(name) IS NOT NULL"


def resolved(commit: str) -> str:
    """Return the full name of a commit."""
    asked = ["rev-parse", "--quiet", "--verify", "--end-of-options", f"{commit}^{{commit}}"]
    done = subprocess.run(["git", *asked], check=False, capture_output=True, text=True, cwd=HERE)
    if done.returncode:
        raise SystemExit(f"{commit}: no such commit {done.stderr.strip()}".rstrip())
    return done.stdout.strip()


@contextmanager
def temporary_directory() -> Iterator[Path]:
    """Make one that the servers' users may enter."""
    with tempfile.TemporaryDirectory(prefix="os-against-", dir="/tmp") as made:
        directory = Path(made)
        directory.chmod(0o755)
        yield directory


@contextmanager
def worktree(commit: str, directory: Path) -> Iterator[Path]:
    """Check a commit out, for a while."""
    # No hook of the repository is to run, and a terminal's Ctrl-C is for us alone.
    git = partial(subprocess.run, check=True, cwd=HERE, stdout=subprocess.DEVNULL, start_new_session=True)
    program, place = ["git", "-c", "core.hooksPath=/dev/null", "worktree"], directory / "checkout"
    try:
        with uninterrupted():
            git([*program, "add", "--quiet", "--detach", str(place), commit])
        yield place
    finally:
        if place.exists():
            git([*program, "remove", "--force", str(place)])


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Let a signal wait: a git that is killed leaves half a worktree, which no command of its removes."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def sandbox(checkout: Path, command: str, directory: Path, *options: str, check: bool = True) -> str:
    """Run a sandbox command of a checkout's code; return what it printed."""
    asked = [sys.executable, "-P", *_OURS, "sandbox", command, "--dir", str(directory), *options]
    done = subprocess.run(
        asked, check=check, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)}, start_new_session=True,
        stderr=None if check else subprocess.DEVNULL,
    )  # fmt: skip
    return done.stdout


@contextmanager
def running(checkout: Path, directory: Path) -> Iterator[Stand]:
    """Bring up a checkout's sandbox with durable commits and `serve` as it is shipped; stop its worker."""
    with ExitStack() as stack:
        # Before `up`: where that is interrupted, its keeper lives on.
        stack.callback(sandbox, checkout, "down", directory, check=False)
        sandbox(checkout, "up", directory)
        stand = Stand(directory=directory, env=json.loads(sandbox(checkout, "env", directory, "--json")), stack=stack)
        _as_shipped(stand)
        stand.pids = stand.program_pids()
        prove(stand.pids, checkout)
        with stand.connect() as connection:
            found = connection.execute(_FILLED_THERE, [list(FILLED)]).fetchall()
        stand.filled = [str(name) for (name,) in found]
        stand.stop_worker()
        yield stand


def system(stand: Stand, name: str) -> System:
    """Return all of a sandbox: its own Postfix, too, is as that commit writes it."""
    pids = stand.pids
    groups: Groups = {
        "postfix": (pids["postfix"],),
        "milter": (pids["serve"],),
        "postgres": (pids["postgres"],),
        "auth": (pids["dovecot"], pids["auth-gate"]),
    }
    return stand.at(name, int(stand.env["SANDBOX_SMTP_PORT"]), groups)


def _as_shipped(stand: Stand) -> None:
    """Let the keeper start `serve` again with as many processes as it has by itself: a sandbox's has two."""
    path = stand.directory / "opensend-milter.yaml"
    content = yaml.safe_load(path.read_text())
    content["milter"]["processes"] = 0
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    before = _serve(stand)["pid"]
    os.kill(int(str(before)), signal.SIGTERM)
    await_true("serve", lambda: _serve(stand)["state"] == "running" and _serve(stand)["pid"] not in {before, None})


def _serve(stand: Stand) -> Mapping[str, object]:
    rows: list[dict[str, object]] = json.loads((stand.directory / "run" / "children.json").read_text())
    return next(row for row in rows if row["name"] == "serve")


def prove(pids: Mapping[str, int], checkout: Path) -> None:
    """End where a program does not run the checkout's code: one commit would be compared with itself."""
    ours = {name: pid for name, pid in pids.items() if is_ours(_words(pid, "cmdline"))}
    for name in ("serve", "auth-gate", "worker", "http"):
        if name not in ours:
            raise SystemExit(f"{name}: not among the programs of {checkout}")
    for name, pid in ours.items():
        found = code_of(pid)
        if found != checkout / "opensend_milter":
            raise SystemExit(f"{name} (pid {pid}) runs the code of {found}, not of {checkout}: nothing is compared")


def is_ours(command: Sequence[str]) -> bool:
    """Tell whether a command is Python's with our package."""
    return any(list(command[at : at + 2]) == _OURS for at in range(len(command)))


def code_of(pid: int) -> Path:
    """Return the package that a running program has: asked by its Python, options, directory and environment."""
    command = _words(pid, "cmdline")
    before = command[: command.index("-m")]
    environment = dict(word.partition("=")[::2] for word in _words(pid, "environ"))
    asked = subprocess.run(
        [*before, "-c", _WHOSE], check=True, capture_output=True, text=True, cwd=f"/proc/{pid}/cwd", env=environment
    )
    return Path(asked.stdout.strip()).resolve().parent


def _words(pid: int, name: str) -> list[str]:
    return Path(f"/proc/{pid}/{name}").read_text().rstrip("\0").split("\0")
