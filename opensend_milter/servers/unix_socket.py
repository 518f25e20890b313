"""A unix socket that a group may use; one that nobody listens on any more is replaced, one that is in use is not."""

from __future__ import annotations

import contextlib
import grp
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from opensend_milter.config.option import MAX_SOCKET_PATH_BYTES
from opensend_milter.core.errors import ConfigError

BACKLOG = 512


def group_of(name: str, *, key: str) -> int | None:
    """Return whom the socket is given to, None for whom its directory's set-group-id bit says.

    Only root may give a socket to a group it is not in. `key` is the group's name in the configuration.
    """
    if os.geteuid() != 0:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError:
        raise ConfigError(f"{key}: expected a group of this system, got {name!r}") from None


@contextmanager
def listening_on(path: Path, group: int | None, *, key: str) -> Iterator[socket.socket]:
    """Listen; at the end the socket is taken away if it is still ours. `key` is its name in the configuration."""
    endpoint = _opened(path, group, key)
    inode = path.stat().st_ino
    try:
        with endpoint:
            yield endpoint
    finally:
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino == inode:
                path.unlink()


@contextmanager
def usable_by(path: Path, group: int | None) -> Iterator[None]:
    """Let owner and group connect, and nobody else, to what is bound to the path meanwhile."""
    before = os.umask(0o117)
    try:
        yield
    finally:
        os.umask(before)
    if group is not None:
        os.chown(path, -1, group)


def _opened(path: Path, group: int | None, key: str) -> socket.socket:
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(f"{key}: {path}: longer than {MAX_SOCKET_PATH_BYTES} bytes")
    endpoint = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _remove_stale(path, key)
        with usable_by(path, group):
            endpoint.bind(str(path))
        endpoint.listen(BACKLOG)
    except OSError as error:
        endpoint.close()
        raise ConfigError(f"{key}: {path}: {error.strerror}") from error
    except ConfigError:
        endpoint.close()
        raise
    return endpoint


def _remove_stale(path: Path, key: str) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"{key}: {path}: exists and is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()
            return
    raise ConfigError(f"{key}: {path}: another program listens there")
