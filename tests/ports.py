"""Ports that stay free until a server listens."""

from __future__ import annotations

from opensend_milter.host.requirements import free_ports


def free_port() -> int:
    """Return one that no outgoing connection is given meanwhile: those begin above ours."""
    return free_ports(["test"])["test"]
