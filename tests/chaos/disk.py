"""A disk of its own under a directory: a file with a file system in it, so that it can be full, slow or hang."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import ENOSPC
from pathlib import Path

_FREEZE, _THAW = 0xC0045877, 0xC0045878
"""FIFREEZE and FITHAW of linux/fs.h: whoever writes waits."""
_BALLAST = "ballast"
_PIECE_BYTES = 1_048_576


@dataclass(frozen=True, slots=True)
class Disk:
    """A mounted one."""

    place: Path

    @contextmanager
    def full(self) -> Iterator[None]:
        """Leave no room on it."""
        ballast = self.place / _BALLAST
        try:
            with ballast.open("wb") as file:
                piece, at = _PIECE_BYTES * 64, 0
                while piece >= 1_024:
                    try:
                        os.posix_fallocate(file.fileno(), at, piece)
                        at += piece
                    except OSError as error:
                        if error.errno != ENOSPC:
                            raise
                        piece //= 4
            yield
        finally:
            ballast.unlink(missing_ok=True)

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Let whoever writes wait."""
        descriptor = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(descriptor, _FREEZE, 0)
            try:
                yield
            finally:
                fcntl.ioctl(descriptor, _THAW, 0)
        finally:
            os.close(descriptor)


@contextmanager
def mounted(place: Path, megabytes: int) -> Iterator[Disk | str]:
    """Put a directory with all that is in it onto a disk of its own, or say why that cannot be done."""
    image = place.parent / f"{place.name}.disk"
    with image.open("wb") as file:
        file.truncate(megabytes * _PIECE_BYTES)
    beside = place.with_suffix(".mount")
    beside.mkdir()
    try:
        subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image)], check=True, capture_output=True)
        subprocess.run(["mount", "-o", "loop", str(image), str(beside)], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        yield f"no file system can be mounted from a file: {error}"
        return
    (beside / "lost+found").rmdir()
    shutil.copystat(place, beside)
    os.chown(beside, place.stat().st_uid, place.stat().st_gid)
    subprocess.run(["cp", "-a", f"{place}/.", str(beside)], check=True)
    subprocess.run(["umount", str(beside)], check=True)
    beside.rmdir()
    subprocess.run(["mount", "-o", "loop", str(image), str(place)], check=True)
    try:
        yield Disk(place)
    finally:
        # Lazily where somebody still looks at it: it goes when he does.
        if subprocess.run(["umount", str(place)], check=False, capture_output=True).returncode:
            with suppress(OSError):
                subprocess.run(["umount", "-l", str(place)], check=False)
