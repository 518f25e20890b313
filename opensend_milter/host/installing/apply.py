"""A plan carried out and taken back: each step is in the journal before it is taken."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from textwrap import indent
from typing import Literal

from opensend_milter.core.errors import OpensendError
from opensend_milter.host import requirements
from opensend_milter.host.installing import journal as journals, snapshot
from opensend_milter.host.installing.journal import STATE_DIR, Journal, Record
from opensend_milter.host.installing.plan import (
    Action,
    Argv,
    Command,
    Directory,
    File,
    Gone,
    Outlook,
    Plan,
    Root,
    Step,
    SymbolicLink,
    is_done,
    look,
    name_of,
    wanted,
)
from opensend_milter.host.installing.snapshot import ABSENT, Snapshot, Surroundings

COMMAND_S = 120.0
OUTPUT_CHARACTERS = 2_000
_GONE = {"userdel": 6, "groupdel": 6}
"""What each says where there is no such account any more."""
Say = Callable[[str], None]


class StepFailed(OpensendError):  # noqa: N818  # the tree reads as mail says it
    """A step of the installation failed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What `apply` did."""

    steps: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Undone:
    """What `undo` did."""

    steps: tuple[str, ...]
    left: tuple[str, ...]
    """What it left on purpose, with the reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """One thing that an installation put down, as it is now."""

    name: str
    state: Literal["as installed", "changed since", "gone", "interrupted"]


def outlooks(plan: Plan) -> list[Outlook]:
    """Say of each step how far it is from what is there; change nothing."""
    journal = journals.read(plan.root.at(STATE_DIR))
    return [look(step, plan.root, _ran(plan, step, journal)) for step in plan.steps if not _only_back(step)]


def apply(plan: Plan, say: Say) -> Applied:
    """Take the steps that are to be taken; at the first that fails take back what this run did, and raise."""
    state_dir = plan.root.at(STATE_DIR)
    with journals.alone(state_dir):
        journal = journals.read(state_dir)
        if all(_only_back(step) or is_done(step, plan.root, _ran(plan, step, journal)) for step in plan.steps):
            return Applied(steps=())
        journal = journal or journals.create(state_dir)
        begun_with, taken = len(journal.records), list[str]()
        try:
            for step in plan.steps:
                if not is_done(step, plan.root, _ran(plan, step, journal)):
                    taken.append(name_of(step))
                    if not _only_back(step):
                        say(name_of(step))
                    if isinstance(step, Action) and step.diff:
                        say(indent(step.diff, "  "))
                    _take(step, plan, journal)
        except BaseException as error:
            say(f"failed: {error or type(error).__name__}; taking back what was done")
            _roll_back(journal, begun_with, say)
            raise
        return Applied(steps=tuple(taken))


def undo(root: Root, say: Say) -> Undone:
    """Take back all that was ever applied, latest first; what cannot be taken back now can be by another undo."""
    state_dir = root.at(STATE_DIR)
    with journals.alone(state_dir):
        journal = journals.read(state_dir)
        if not journal:
            journals.clear_strays(state_dir)
            return Undone(steps=(), left=())
        steps = tuple(record.step for record in journal.open_records())
        left, failed = _take_back(journal, 0, say)
        if failed:
            raise StepFailed("\n".join([*failed, "the rest is taken back: mend this and run `install --undo` again"]))
        journal.discard()
        return Undone(steps=steps, left=tuple(left))


def status(root: Root) -> list[Placed]:
    """Say of all that was put down how it is now."""
    journal = journals.read(root.at(STATE_DIR))
    seen, found = set[str](), list[Placed]()
    for record in journal.open_records() if journal else ():
        if record.left is None and not record.before:
            found.append(Placed(name=record.step, state="interrupted"))
        for path in record.before:
            is_there = not record.left or record.left[path].kind != "absent"
            if path not in seen and is_there:
                found.append(Placed(name=path, state=_placed(path, record)))
            seen.add(path)
    return found[::-1]


def _placed(path: str, record: Record) -> Literal["as installed", "changed since", "gone", "interrupted"]:
    if record.left is None:
        return "interrupted"
    now, left = snapshot.take(Path(path)), record.left[path]
    if now.kind == "absent":
        return "gone"
    return "as installed" if now.same_as(left) else "changed since"


# ---------------------------------------------------------------------- forwards


def _only_back(step: Step) -> bool:
    return isinstance(step, Command) and not step.run


def _ran(plan: Plan, step: Step, journal: Journal | None) -> Callable[[str], bool]:
    earlier = {name_of(one) for one in plan.steps[: plan.steps.index(step)]}
    stamp = plan.stamp
    return lambda name: journal is not None and journal.ran(name, stamp, earlier)


def _take(step: Step, plan: Plan, journal: Journal) -> None:
    root = plan.root
    match step:
        case Directory() | File() | SymbolicLink() | Gone():
            path = root.at(step.path)
            if not path.parent.exists():
                _take(Directory(path=step.path.parent, why=f"holds {step.path.name}"), plan, journal)
            target = wanted(step, root)
            if target is None:
                raise StepFailed(f"{name_of(step)}: there is no such user or group")
            whole = isinstance(step, Directory) and step.whole
            record = _begin(journal, plan, step, [path], whole=whole)
            snapshot.put(path, target)
        case Command():
            record = _begin(
                journal, plan, step, [root.at(path) for path in step.touches], step.back, keeps=step.keeps_content
            )
            for argv in step.run:
                _run(argv)
        case Action():
            record = _begin(journal, plan, step, [], stays=step.stays)
            step.call()
    journal.finish(record.number, {path: snapshot.take(Path(path)) for path in record.before})


def _begin(
    journal: Journal,
    plan: Plan,
    step: Step,
    paths: Sequence[Path],
    back: tuple[Argv, ...] = (),
    *,
    keeps: bool = True,
    whole: bool = False,
    stays: str = "",
) -> Record:
    before = {str(path): snapshot.take(path) for path in paths}
    around = {str(path.parent): Surroundings.of(path.parent) for path in paths}
    return journal.begin(
        Record(
            number=0,
            step=name_of(step),
            stamp=plan.stamp,
            before=before if keeps else {path: one.bare() for path, one in before.items()},
            around={path: known for path, known in around.items() if known},
            back=back,
            whole=whole and all(one.kind == "absent" for one in before.values()),
            stays=stays,
        )
    )


def _run(argv: Argv) -> None:
    code, output = _outcome(argv)
    if code and code != _GONE.get(Path(argv[0]).name):
        raise StepFailed(f"{' '.join(argv[:3])} failed ({code}): {output}")


def _outcome(argv: Argv) -> tuple[int, str]:
    try:
        done = subprocess.run(
            argv,
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=COMMAND_S,
            env=requirements.environment({}),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise StepFailed(f"{argv[0]}: {error}") from error
    return done.returncode, done.stdout.decode(errors="replace").strip()[-OUTPUT_CHARACTERS:]


# ---------------------------------------------------------------------- backwards


def _roll_back(journal: Journal, begun_with: int, say: Say) -> None:
    _, failed = _take_back(journal, begun_with, say)
    for text in failed:
        say(f"not taken back: {text}")
    if failed:
        say("run `install --undo` when this is mended")
    elif not journal.open_records():
        journal.discard()


def _take_back(journal: Journal, after: int, say: Say) -> tuple[list[str], list[str]]:
    left, failed = list[str](), list[str]()
    records = [record for record in journal.open_records() if record.number > after]
    whole = {Path(path) for record in records if record.whole for path in record.before}
    for record in records:
        say(f"taking back: {record.step}")
        try:
            # A renewed certificate is no edit: what lies in a directory of ours goes with it.
            inside = record.before and all(whole.intersection(Path(path).parents) for path in record.before)
            left += [] if inside else _take_back_one(record)
            journal.undone(record.number)
        except (OSError, OpensendError) as error:
            failed.append(f"{record.step}: {error}")
    return left, failed


def _take_back_one(record: Record) -> list[str]:
    if record.stays:
        return [f"{record.step}: {record.stays}"]
    left = list[str]()
    if record.whole:
        for path in record.before:
            snapshot.remove_tree(Path(path))
    elif record.back or len(record.before) > 1:
        left += _take_back_command(record)
    else:
        left += [
            text for path, before in record.before.items() if (text := _take_back_path(Path(path), before, record))
        ]
    for path, known in record.around.items():
        known.put_back(Path(path))
    return left


def _take_back_path(path: Path, before: Snapshot, record: Record) -> str | None:
    """Put one thing back; return why it was left, if it was."""
    now, left = snapshot.take(path), record.left and record.left[str(path)]
    if left and now.kind == "file" and now.sha256 not in {left.sha256, before.sha256}:
        if left.sha256 != before.sha256:
            return f"{path}: was changed since it was installed"
        # Only its rights were ours.
        before = replace(now, mode=before.mode, uid=before.uid, gid=before.gid)
    try:
        snapshot.put(path, before)
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:
            raise
        return f"{path}: holds what is not of this program"
    return None


def _take_back_command(record: Record) -> list[str]:
    paths = {Path(path): before for path, before in record.before.items()}
    untouched = record.left is not None and all(snapshot.take(path).same_as(record.left[str(path)]) for path in paths)
    kept = all(before.kind != "file" or before.content is not None for before in paths.values())
    if paths and untouched and kept:
        for path, before in paths.items():
            snapshot.put(path, before)
        return []
    for argv in record.back:
        _run(argv)
    left = list[str]()
    for path, before in paths.items():
        if _alike(snapshot.take(path), before):
            snapshot.put(path, before)
        elif kept:
            left.append(f"{path}: was changed since; only what this program added is taken out")
        elif before == ABSENT and path.is_file() and not path.stat().st_size:
            snapshot.put(path, ABSENT)
        saved = path.with_name(f"{path.name}-")
        if not kept and saved.exists():
            left.append(f"{saved}: the system's own copy of an earlier {path.name}")
    return left


def _alike(now: Snapshot, before: Snapshot) -> bool:
    return now.kind == before.kind and now.sha256 == before.sha256 and now != ABSENT
