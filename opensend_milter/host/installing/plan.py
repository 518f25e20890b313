"""What is to be on a host, step by step, and how far each step is from what is there; nothing is changed here."""

from __future__ import annotations

import difflib
import grp
import hashlib
import pwd
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from opensend_milter.config import MASK
from opensend_milter.host import requirements
from opensend_milter.host.installing import snapshot
from opensend_milter.host.installing.snapshot import Snapshot

Argv = tuple[str, ...]
StepState = Literal["as it should be", "to be done"]
HERE = Path("/")
_LONG_CHARACTERS = 120


@dataclass(frozen=True, slots=True)
class Root:
    """The system that is installed into: this one, or one that lies below a directory."""

    path: Path = HERE

    @property
    def is_here(self) -> bool:
        """Tell whether it is the running system."""
        return self.path == HERE

    def at(self, place: Path) -> Path:
        """Return where a path of that system is for us."""
        return place if self.is_here else self.path / place.relative_to("/")

    def uid(self, name: str) -> int | None:
        """Return a user's number, None where there is no such user yet."""
        if self.is_here:
            try:
                return pwd.getpwnam(name).pw_uid
            except KeyError:
                return None
        return self._number("passwd", name)

    def gid(self, name: str) -> int | None:
        """Return a group's number, None where there is no such group yet."""
        if self.is_here:
            try:
                return grp.getgrnam(name).gr_gid
            except KeyError:
                return None
        return self._number("group", name)

    def _number(self, table: str, name: str) -> int | None:
        path = self.path / "etc" / table
        for line in path.read_text(errors="replace").splitlines() if path.is_file() else ():
            fields = line.split(":")
            if fields[0] == name:
                return int(fields[2])
        return None


def program(name: str) -> str:
    """Return where a program of this host is."""
    return shutil.which(name, path=requirements.search_path()) or name


@dataclass(frozen=True, slots=True, kw_only=True)
class Directory:
    """A directory that is to be there."""

    path: Path
    why: str
    mode: int = 0o755
    owner: str = "root"
    group: str = "root"
    whole: bool = False
    """Where we made it, all that ever comes into it is ours, and goes with it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file that is to be there."""

    path: Path
    content: bytes = field(repr=False)
    why: str
    mode: int = 0o644
    owner: str = "root"
    group: str = "root"
    secrets: tuple[str, ...] = field(default=(), repr=False)
    """What no output shows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SymbolicLink:
    """A symbolic link that is to be there."""

    path: Path
    target: str
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Gone:
    """A file of ours that is not to be there any more."""

    path: Path
    why: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Programs to run, and those that take it back."""

    name: str
    why: str
    run: tuple[Argv, ...] = ()
    back: tuple[Argv, ...] = ()
    """Run at undo, unless what it touched can be put back byte for byte; none may mind that there is nothing to do.

    A command with nothing but these runs when all steps after it are taken back.
    """
    touches: tuple[Path, ...] = ()
    """Files that it changes."""
    keeps_content: bool = True
    """The journal may hold what was in them."""
    done: Callable[[], bool] | None = None
    """None: it is done when it ran to its end for this very plan."""
    diff: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What this program does itself, and no undo takes back."""

    name: str
    why: str
    call: Callable[[], object]
    stays: str
    """What undo says of it."""
    wants: tuple[str, ...] = ()
    """What it brings about: whoever wants more than was there the last time takes the step again."""
    diff: str = ""


PathStep = Directory | File | SymbolicLink | Gone
Step = PathStep | Command | Action


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why it cannot be applied, and what mends it."""

    what: str
    mend: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All steps in order."""

    root: Root
    steps: tuple[Step, ...]
    faults: tuple[Fault, ...] = ()
    notes: tuple[str, ...] = ()
    """What a sysadmin should know of it."""
    edition: str = ""

    @property
    def stamp(self) -> str:
        """Know this plan again: what it wants, not how far it is."""
        wanted = hashlib.sha256(self.edition.encode())
        for step in self.steps:
            parts = (getattr(step, "content", b""), getattr(step, "run", ()), getattr(step, "wants", ()))
            wanted.update(repr((name_of(step), *parts)).encode())
        return wanted.hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """One step as people read it."""

    name: str
    state: StepState
    why: str
    diff: str = ""


def name_of(step: Step) -> str:
    """Return what a step is called, in the plan as in the journal."""
    match step:
        case Directory():
            return f"directory {step.path}"
        case File():
            return f"file {step.path}"
        case SymbolicLink():
            return f"link {step.path} -> {step.target}"
        case Gone():
            return f"no {step.path}"
        case Command() | Action():
            return step.name


def wanted(step: PathStep, root: Root) -> Snapshot | None:
    """Return what is to stand at the step's path; None while its owner is not known here."""
    if isinstance(step, SymbolicLink):
        return snapshot.link(step.target)
    if isinstance(step, Gone):
        return snapshot.ABSENT
    uid, gid = root.uid(step.owner), root.gid(step.group)
    if uid is None or gid is None:
        return None
    if isinstance(step, Directory):
        return snapshot.directory(mode=step.mode, uid=uid, gid=gid)
    return snapshot.file(step.content, mode=step.mode, uid=uid, gid=gid)


def is_done(step: Step, root: Root, ran: Callable[[str], bool]) -> bool:
    """Tell whether nothing is to be done for a step; `ran`: whether one ran to its end for this plan."""
    match step:
        case Directory() | File() | SymbolicLink() | Gone():
            target = wanted(step, root)
            return target is not None and snapshot.take(root.at(step.path)).same_as(target)
        case Command():
            return step.done() if step.done else ran(step.name)
        case Action():
            return ran(step.name)


def look(step: Step, root: Root, ran: Callable[[str], bool]) -> Outlook:
    """Say how far a step is from what is there."""
    done = is_done(step, root, ran)
    state: StepState = "as it should be" if done else "to be done"
    return Outlook(name=name_of(step), state=state, why=step.why, diff="" if done else _diff(step, root))


def _diff(step: Step, root: Root) -> str:
    match step:
        case Command():
            lines = [" ".join(_quoted(word) for word in argv) for argv in step.run]
            return "\n".join([*(f"$ {line}" for line in lines), *([step.diff] if step.diff else [])])
        case Action():
            return step.diff
        case SymbolicLink():
            return ""
        case Gone():
            return unified(step.path, snapshot.take(root.at(step.path)).content or b"", b"", fresh=False)
        case Directory():
            return _rights(step, snapshot.take(root.at(step.path)), root)
        case File():
            now = snapshot.take(root.at(step.path))
            rights = _rights(step, now, root)
            text = unified(step.path, now.content or b"", step.content, step.secrets, fresh=now.kind == "absent")
            return "\n".join(part for part in (rights, text) if part)


def _rights(step: Directory | File, now: Snapshot, root: Root) -> str:
    to_be = f"{step.mode:04o} {step.owner}:{step.group}"
    if now.kind == "absent":
        return f"new, {to_be}"
    if (now.mode, now.uid, now.gid) == (step.mode, root.uid(step.owner), root.gid(step.group)):
        return ""
    return f"{now.mode:04o} {now.uid}:{now.gid} becomes {to_be}"


def unified(path: Path, before: bytes, after: bytes, secrets: Sequence[str] = (), *, fresh: bool) -> str:
    """Return a unified diff without a secret in it."""

    def lines(content: bytes) -> list[str]:
        text = content.decode(errors="replace")
        for secret in secrets:
            text = text.replace(secret, MASK)
        return text.splitlines()

    # What stood in a file with secrets may be other secrets.
    old = [] if secrets and before != after else lines(before)
    names = ("/dev/null" if fresh else str(path), str(path))
    return "\n".join(difflib.unified_diff(old, lines(after), *names, lineterm=""))


def _quoted(word: str) -> str:
    if len(word) > _LONG_CHARACTERS:
        word = f"{word[:_LONG_CHARACTERS]}..."
    return f"'{word}'" if set(word) & set(" {}$;*") else word
