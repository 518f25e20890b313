"""What stands at a path, taken down so that it can be put back byte for byte."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from opensend_milter.core.errors import OpensendError

PathKind = Literal["absent", "file", "directory", "link", "other"]
_NEW = ".opensend-new"


class NotPut(OpensendError):  # noqa: N818  # the tree reads as mail says it
    """What stands there is in the way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """A file, a directory without what is in it, a symbolic link, or nothing."""

    kind: PathKind
    mode: int = 0
    uid: int = 0
    gid: int = 0
    mtime_ns: int | None = None
    """None: does not matter."""
    content: bytes | None = None
    """Of a file, or a link's target; None: not kept."""
    sha256: str = ""

    def same_as(self, other: Snapshot) -> bool:
        """Tell whether both are alike but for the time."""
        return (self.kind, self.mode, self.uid, self.gid, self.sha256) == (
            other.kind,
            other.mode,
            other.uid,
            other.gid,
            other.sha256,
        )

    def bare(self) -> Snapshot:
        """Return it without its content: enough to know it again."""
        return replace(self, content=None)

    def as_json(self) -> dict[str, object]:
        """Return what JSON can hold."""
        content = None if self.content is None else base64.b64encode(self.content).decode()
        return {
            "kind": self.kind, "mode": self.mode, "uid": self.uid, "gid": self.gid, "mtime_ns": self.mtime_ns,
            "content": content, "sha256": self.sha256,
        }  # fmt: skip

    @classmethod
    def from_json(cls, read: Mapping[str, object]) -> Snapshot:
        """Return what `as_json` wrote."""
        content = read["content"]
        kept = None if content is None else base64.b64decode(str(content))
        return cls(**{**read, "content": kept})  # type: ignore[arg-type]  # as_json's own


ABSENT = Snapshot(kind="absent")


def file(content: bytes, *, mode: int, uid: int, gid: int) -> Snapshot:
    """Return what a file is to be."""
    return Snapshot(kind="file", mode=mode, uid=uid, gid=gid, content=content, sha256=_digest(content))


def directory(*, mode: int, uid: int, gid: int) -> Snapshot:
    """Return what a directory is to be."""
    return Snapshot(kind="directory", mode=mode, uid=uid, gid=gid)


def link(target: str) -> Snapshot:
    """Return what a symbolic link is to be."""
    return Snapshot(kind="link", content=target.encode(), sha256=_digest(target.encode()))


def take(path: Path) -> Snapshot:
    """Return what stands there; change nothing."""
    try:
        state = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return ABSENT
    mode = stat.S_IMODE(state.st_mode)
    known = Snapshot(kind="other", mode=mode, uid=state.st_uid, gid=state.st_gid, mtime_ns=state.st_mtime_ns)
    if stat.S_ISLNK(state.st_mode):
        return replace(link(str(path.readlink())), mtime_ns=state.st_mtime_ns)
    if stat.S_ISDIR(state.st_mode):
        return replace(known, kind="directory")
    if stat.S_ISREG(state.st_mode):
        content = path.read_bytes()
        return replace(known, kind="file", content=content, sha256=_digest(content))
    return known


def put(path: Path, wanted: Snapshot) -> None:
    """Make the path what is wanted; whoever looks meanwhile sees the old or the new, never half of it."""
    now = take(path)
    in_the_way = wanted.kind != "absent" and now.kind != "absent" and _is_folder(now) != _is_folder(wanted)
    if wanted.kind == "other" or in_the_way:
        raise NotPut(f"{path}: is a {now.kind}, and a {wanted.kind} is to be there")
    with suppress(FileNotFoundError):
        # What was cut off while it was written.
        _beside(path).unlink()
    if wanted.kind == "absent":
        _remove(path, now)
    else:
        if _is_folder(wanted) and now.kind == "absent":
            path.mkdir(mode=0o700)
        elif not _is_folder(wanted) and (now.kind != wanted.kind or now.sha256 != wanted.sha256):
            _replace(path, wanted)
        _settle(path, wanted)
    fsync_directory(path.parent)


def _is_folder(one: Snapshot) -> bool:
    return one.kind == "directory"


def remove_tree(path: Path) -> None:
    """Remove a directory with all that is in it."""
    with suppress(FileNotFoundError):
        shutil.rmtree(path)
    fsync_directory(path.parent)


def _remove(path: Path, now: Snapshot) -> None:
    if now.kind == "directory":
        path.rmdir()
    elif now.kind != "absent":
        path.unlink()


def _replace(path: Path, wanted: Snapshot) -> None:
    if wanted.content is None:
        raise NotPut(f"{path}: what it held was not kept")
    fresh = _beside(path)
    try:
        if wanted.kind == "link":
            fresh.symlink_to(wanted.content.decode())
        else:
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as opened:
                opened.write(wanted.content)
                opened.flush()
                # Never readable for longer than what it is to be: the rights come before the name.
                os.fchown(descriptor, wanted.uid, wanted.gid)
                os.fchmod(descriptor, wanted.mode)
                os.fsync(descriptor)
        fresh.rename(path)
    except OSError:
        with suppress(OSError):
            fresh.unlink()
        raise


def _settle(path: Path, wanted: Snapshot) -> None:
    state = path.lstat()
    if wanted.kind == "link":
        _set_time(path, wanted)
        return
    if (state.st_uid, state.st_gid) != (wanted.uid, wanted.gid):
        os.chown(path, wanted.uid, wanted.gid, follow_symlinks=False)
    # A change of owner takes set-group-id away.
    if stat.S_IMODE(path.lstat().st_mode) != wanted.mode:
        path.chmod(wanted.mode)
    _set_time(path, wanted)


def _set_time(path: Path, wanted: Snapshot) -> None:
    state = path.lstat()
    if wanted.mtime_ns is not None and state.st_mtime_ns != wanted.mtime_ns:
        os.utime(path, ns=(state.st_atime_ns, wanted.mtime_ns), follow_symlinks=False)


def _beside(path: Path) -> Path:
    return path.with_name(f".{path.name}{_NEW}")


def fsync_directory(path: Path) -> None:
    """Make what was named or removed in a directory outlast a power cut."""
    with suppress(FileNotFoundError):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Surroundings:
    """When a directory was changed last, and which names were in it then."""

    mtime_ns: int
    names_sha256: str

    @classmethod
    def of(cls, path: Path) -> Surroundings | None:
        """Return those of a directory, None where there is none."""
        try:
            names = sorted(os.fsencode(entry.name) for entry in os.scandir(path))
            return cls(mtime_ns=path.stat().st_mtime_ns, names_sha256=_digest(b"\0".join(names)))
        except (FileNotFoundError, NotADirectoryError):
            return None

    def put_back(self, path: Path) -> None:
        """Give the directory its time again where it holds the names that it held."""
        now = Surroundings.of(path)
        if now and now.names_sha256 == self.names_sha256 and now.mtime_ns != self.mtime_ns:
            os.utime(path, ns=(path.stat().st_atime_ns, self.mtime_ns))
