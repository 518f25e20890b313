"""Sockets that systemd passes: ours where they are meant for us, a clear error where they are not."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from opensend_milter.core.errors import ConfigError
from opensend_milter.servers.activation import passed_or
from tests.waiting import patience_s

ROOT = Path(__file__).resolve().parents[2]
OWN = str(os.getpid())
_PROGRAM = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1", LISTEN_FDNAMES="auth")
from opensend_milter.servers.activation import passed_or
with passed_or("auth", None) as listener:
    assert not os.get_inheritable(3) and not [name for name in os.environ if name.startswith("LISTEN_")]
    listener.setblocking(True)
    with listener.accept()[0] as client:
        client.sendall(b"here")
"""


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def _environ(**changes: str) -> dict[str, str]:
    return {"LISTEN_PID": OWN, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "auth", "PATH": "x", **changes}


def test_a_program_answers_on_the_socket_it_was_given(listener: socket.socket) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, str(listener.fileno())], pass_fds=[listener.fileno()], cwd=ROOT
    )
    with socket.create_connection(listener.getsockname(), timeout=patience_s()) as client:
        assert client.recv(10) == b"here"
    assert process.wait(patience_s()) == 0


@pytest.mark.parametrize(
    "environ",
    [
        pytest.param({}, id="started by hand"),
        pytest.param(_environ(LISTEN_PID="1"), id="meant for another process"),
        pytest.param(_environ(LISTEN_PID=""), id="no process named"),
    ],
)
def test_without_a_socket_for_us_we_open_our_own(listener: socket.socket, environ: dict[str, str]) -> None:
    own = socket.create_server(("127.0.0.1", 0))
    with passed_or("auth", lambda: closing(own), environ=environ, first=listener.fileno()) as given:
        assert given is own
    assert own.fileno() == -1
    assert listener.fileno() > 0
    assert set(environ) <= {"PATH"}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"LISTEN_FDS": "2", "LISTEN_FDNAMES": "auth:http"}, "expected one socket, got 2"),
        ({"LISTEN_FDS": "0"}, "expected one socket, got 0"),
        ({"LISTEN_FDS": ""}, "expected one socket, got none"),
        ({"LISTEN_FDS": "1e9"}, "expected one socket, got 1e9"),
        ({"LISTEN_FDNAMES": "http"}, "expected FileDescriptorName=auth, got 'http'"),
    ],
)
def test_a_wrong_socket_unit_is_a_clear_error(listener: socket.socket, changes: dict[str, str], text: str) -> None:
    with (
        pytest.raises(ConfigError, match=text),
        passed_or("auth", lambda: closing(listener), environ=_environ(**changes), first=listener.fileno()),
    ):
        pass


def test_what_is_no_listening_socket_is_a_clear_error() -> None:
    one, other = socket.socketpair()
    with one, other, Path(__file__).open("rb") as file, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as datagrams:
        for descriptor in (one.fileno(), file.fileno(), datagrams.fileno()):
            with (
                pytest.raises(ConfigError, match="socket unit of auth"),
                passed_or("auth", lambda: closing(one), environ=_environ(), first=descriptor),
            ):
                pass


def test_a_given_socket_stays_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "auth.sock"
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))
        server.listen()
        duplicate = os.dup(server.fileno())
        with passed_or("auth", lambda: closing(server), environ=_environ(), first=duplicate) as given:
            assert given.getsockname() == str(path)
        assert path.exists()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
