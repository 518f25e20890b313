"""The installer's journal: what stood at each place before a step, on the disk before the step is taken."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from opensend_milter.core.errors import UsageError
from opensend_milter.host.installing import snapshot
from opensend_milter.host.installing.plan import Argv
from opensend_milter.host.installing.snapshot import Snapshot, Surroundings

STATE_DIR = Path("/var/lib/opensend-milter")
FOLDER, NAME = "install", "journal.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One step that was begun."""

    number: int
    step: str
    stamp: str
    before: Mapping[str, Snapshot]
    around: Mapping[str, Surroundings]
    """The directories that hold these paths."""
    back: tuple[Argv, ...] = ()
    whole: bool = False
    stays: str = ""
    left: Mapping[str, Snapshot] | None = None
    """What the step left behind, without contents; None: it did not come to its end."""
    undone: bool = False

    def as_json(self) -> dict[str, object]:
        """Return what JSON can hold."""
        return {
            "number": self.number,
            "step": self.step,
            "stamp": self.stamp,
            "before": {path: one.as_json() for path, one in self.before.items()},
            "around": {path: [one.mtime_ns, one.names_sha256] for path, one in self.around.items()},
            "back": self.back,
            "whole": self.whole,
            "stays": self.stays,
        }

    @classmethod
    def from_json(cls, read: Mapping[str, object]) -> Record:
        """Return what `as_json` wrote."""
        before: Mapping[str, Mapping[str, object]] = read["before"]  # type: ignore[assignment]  # as_json's own
        around: Mapping[str, tuple[int, str]] = read["around"]  # type: ignore[assignment]
        back: Sequence[Sequence[str]] = read["back"]  # type: ignore[assignment]
        return cls(
            number=int(str(read["number"])),
            step=str(read["step"]),
            stamp=str(read["stamp"]),
            before={path: Snapshot.from_json(one) for path, one in before.items()},
            around={path: Surroundings(mtime_ns=one[0], names_sha256=one[1]) for path, one in around.items()},
            back=tuple(tuple(argv) for argv in back),
            whole=bool(read["whole"]),
            stays=str(read["stays"]),
        )


@dataclass(slots=True)
class Journal:
    """Lines of JSON, each on the disk before what it tells of happens; a line cut short was never acted on."""

    path: Path
    made: tuple[str, ...] = ()
    """Directories that were made for it."""
    around: dict[str, Surroundings] = field(default_factory=dict)
    records: list[Record] = field(default_factory=list)

    def begin(self, record: Record) -> Record:
        """Put down what stands there; return the record with its number."""
        numbered = replace(record, number=len(self.records) + 1)
        self._write(numbered.as_json())
        self.records.append(numbered)
        return numbered

    def finish(self, number: int, left: Mapping[str, Snapshot]) -> None:
        """Put down that a step came to its end, and what it left."""
        bare = {path: one.bare() for path, one in left.items()}
        self._write({"finished": number, "left": {path: one.as_json() for path, one in bare.items()}})
        self.records[number - 1] = replace(self.records[number - 1], left=bare)

    def undone(self, number: int) -> None:
        """Put down that a step is taken back."""
        self._write({"undone": number})
        self.records[number - 1] = replace(self.records[number - 1], undone=True)

    def ran(self, step: str, stamp: str, earlier: Collection[str]) -> bool:
        """Tell whether a step came to its end for the plan with this stamp, and none of those before it ran since."""
        for record in self.open_records():
            if record.step == step:
                return record.stamp == stamp and record.left is not None
            if record.step in earlier:
                return False
        return False

    def open_records(self) -> list[Record]:
        """List what is not taken back yet, latest first."""
        return [record for record in reversed(self.records) if not record.undone]

    def discard(self) -> None:
        """Remove it with what was made for it, once nothing is left to take back."""
        top = Path(self.made[0])
        stray = _stray(top)
        top.rename(stray)
        shutil.rmtree(stray)
        for place, known in self.around.items():
            known.put_back(Path(place))

    def _write(self, line: Mapping[str, object]) -> None:
        _append(self.path, json.dumps(line))


def _append(path: Path, line: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        # What a power cut left of a line must not spoil the next.
        cut_short = path.stat().st_size and path.read_bytes()[-1:] != b"\n"
        os.write(descriptor, (("\n" if cut_short else "") + line + "\n").encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(state_dir: Path) -> Journal | None:
    """Return the journal, None where there is none; change nothing."""
    path = state_dir / FOLDER / NAME
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        return None
    journal: Journal | None = None
    for line in _whole_lines(text):
        if journal is None:
            times: Mapping[str, tuple[int, str]] = line["around"]  # type: ignore[assignment]  # create's own
            around = {place: Surroundings(mtime_ns=one[0], names_sha256=one[1]) for place, one in times.items()}
            journal = Journal(path, tuple(line["made"]), around)  # type: ignore[arg-type]
        elif "finished" in line:
            left: Mapping[str, Mapping[str, object]] = line["left"]  # type: ignore[assignment]
            _amend(journal, line["finished"], left={place: Snapshot.from_json(one) for place, one in left.items()})
        elif "undone" in line:
            _amend(journal, line["undone"], undone=True)
        else:
            journal.records.append(Record.from_json(line))
    return journal


def _amend(journal: Journal, number: object, **changes: object) -> None:
    place = int(str(number)) - 1
    journal.records[place] = replace(journal.records[place], **changes)  # type: ignore[arg-type]  # the caller's names are Record's


def _whole_lines(text: str) -> Iterator[Mapping[str, object]]:
    for line in text.splitlines():
        # A line that was cut short by a power cut is the last, unless a later run went on after it.
        with suppress(json.JSONDecodeError):
            yield json.loads(line)


def create(state_dir: Path) -> Journal:
    """Make an empty journal; it is there as a whole or not at all, wherever this is cut off."""
    top = state_dir if not state_dir.exists() else state_dir / FOLDER
    fresh = _stray(top)
    shutil.rmtree(fresh, ignore_errors=True)
    known = Surroundings.of(top.parent)
    around = {str(top.parent): known} if known else {}
    fresh.mkdir(mode=0o700)
    folder = fresh if top.name == FOLDER else fresh / FOLDER
    folder.mkdir(mode=0o700, exist_ok=True)
    header = {"made": [str(top)], "around": {place: [one.mtime_ns, one.names_sha256] for place, one in around.items()}}
    _append(folder / NAME, json.dumps(header))
    fresh.chmod(0o755 if top == state_dir else 0o700)
    snapshot.fsync_directory(fresh)
    fresh.rename(top)
    snapshot.fsync_directory(top.parent)
    return Journal(state_dir / FOLDER / NAME, (str(top),), around)


def clear_strays(state_dir: Path) -> None:
    """Remove what an installation leaves that was cut off before its first step."""
    for top in (state_dir, state_dir / FOLDER):
        shutil.rmtree(_stray(top), ignore_errors=True)


def _stray(top: Path) -> Path:
    return top.with_name(f".{top.name}.opensend-new")


@contextmanager
def alone(state_dir: Path) -> Iterator[None]:
    """Keep out a second installer; the kernel forgets the lock with us."""
    descriptor = os.open(state_dir.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise UsageError("another `install` is at work") from None
    else:
        yield
    finally:
        os.close(descriptor)
