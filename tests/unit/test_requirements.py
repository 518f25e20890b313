"""Ports that a sandbox keeps for itself."""

from __future__ import annotations

import errno
import socket

import pytest

from opensend_milter.host import requirements
from tests.waiting import patience_s

LOOPBACK = "127.0.0.1"


def test_a_held_port_is_no_free_one_and_still_serves() -> None:
    """Between a server's end and its next start nobody else's search finds its port."""
    ports = requirements.free_ports(("smtp",))
    with requirements.held(ports):
        with socket.socket() as seeker, pytest.raises(OSError, match="in use") as raised:
            seeker.bind((LOOPBACK, ports["smtp"]))
        assert raised.value.errno == errno.EADDRINUSE
        with requirements.held(ports), socket.create_server((LOOPBACK, ports["smtp"])) as server:
            socket.create_connection(server.getsockname(), timeout=patience_s()).close()


def test_a_port_that_somebody_just_looks_at_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sandboxes that start at once look for free ports among each other's."""
    ports = requirements.free_ports(("smtp",))
    with socket.socket() as seeker:
        seeker.bind((LOOPBACK, ports["smtp"]))
        monkeypatch.setattr("time.sleep", lambda _: seeker.close())
        with requirements.held(ports):
            assert seeker.fileno() < 0, "it is gone now"


def test_a_port_that_somebody_else_serves_is_named() -> None:
    """Found out before anything is started."""
    with socket.create_server((LOOPBACK, 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(requirements.Lacking, match=f"port {port}, this sandbox's for smtp") as raised,
            requirements.held({"smtp": port}),
        ):
            pytest.fail("not reached")
    assert raised.value.exit_code == 69
