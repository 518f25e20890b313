"""The second host of `make chaos` reaches the first over a wire, and nothing else."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator

import pytest

from tests.chaos.cable import Cable
from tests.chaos.wire import HOST, MOVED, SWITCH, Wire, wired
from tests.waiting import patience_s


@pytest.fixture
def wire() -> Iterator[Wire]:
    if os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("network namespaces need root and iproute2")
    with wired() as made:
        yield made


def test_a_host_is_reached_by_its_wire_alone(wire: Wire) -> None:
    """What listens here is there only by a cable; and another address is another host."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with wire.host.entered(), pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        with Cable(port, address=SWITCH, near=wire.switch.entered) as cable:
            for address in (HOST, MOVED):
                if address == MOVED:
                    wire.move()
                with wire.host.entered():
                    client = socket.create_connection((SWITCH, cable.port), timeout=patience_s())
                with client, server.accept()[0] as accepted:
                    client.sendall(b"hello")
                    assert accepted.recv(5) == b"hello"
                    assert client.getsockname()[0] == address
