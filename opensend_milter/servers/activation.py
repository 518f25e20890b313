"""The sockets that systemd opened for us before we started (sd_listen_fds)."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import AbstractContextManager, contextmanager

from opensend_milter.core.errors import ConfigError

log = logging.getLogger(__name__)

FIRST = 3
_VARIABLES = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES")


@contextmanager
def passed_or(
    name: str,
    opened: Callable[[], AbstractContextManager[socket.socket]],
    *,
    environ: MutableMapping[str, str] | None = None,
    first: int = FIRST,
) -> Iterator[socket.socket]:
    """Yield the listening socket that we were given, else what `opened` makes.

    A given one is closed at the end and stays in its place: systemd goes on listening while we are restarted. More than
    one, or one with another name, is a fault of the unit: ConfigError.
    """
    environ = os.environ if environ is None else environ
    # Whoever is started by us is given nothing.
    pid, count, names = (environ.pop(variable, "") for variable in _VARIABLES)
    if pid != str(os.getpid()):
        with opened() as listener:
            yield listener
        return
    if count != "1":
        raise ConfigError(f"socket unit of {name}: expected one socket, got {count or 'none'}")
    if names not in {name, ""}:
        raise ConfigError(f"socket unit of {name}: expected FileDescriptorName={name}, got {names!r}")
    with _listening(first, name) as listener:
        log.info("listening on what systemd passed: %s", listener.getsockname())
        yield listener


def _listening(descriptor: int, name: str) -> socket.socket:
    try:
        os.set_inheritable(descriptor, False)  # noqa: FBT003  # its own signature
        listener = socket.socket(fileno=descriptor)
    except OSError as error:
        raise ConfigError(f"socket unit of {name}: what was passed is no socket: {error.strerror}") from error
    if listener.type != socket.SOCK_STREAM or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        listener.detach()
        raise ConfigError(f"socket unit of {name}: expected ListenStream=, got another kind of socket")
    listener.setblocking(False)  # noqa: FBT003
    return listener
