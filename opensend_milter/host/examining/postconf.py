"""A Postfix instance as Postfix itself reads it: values, services, and what a service has of its own."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from opensend_milter.config import Smtp
from opensend_milter.core.errors import OpensendError
from opensend_milter.host import requirements

_CHROOT, _PROCESSES, _COMMAND = 4, 6, 7
_FIELDS = 8
_ADDRESS = re.compile(r"(?:(?P<host>.+):)?(?P<port>\d+)")
POSTCONF_S = 30.0


class PostfixUnreadable(OpensendError):  # noqa: N818  # the tree reads as mail says it
    """Postfix cannot read its configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One line of master.cf with its `-o`."""

    name: str
    kind: str
    chroot: bool
    processes: int
    """How many there may be; 0: any number."""
    command: str
    own: Mapping[str, str]

    @property
    def port(self) -> int:
        """Where it listens; 0: at no port."""
        address = _ADDRESS.fullmatch(self.name) if self.kind == "inet" else None
        return int(address["port"]) if address else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A configuration directory, read."""

    directory: Path
    values: Mapping[str, str]
    services: tuple[Service, ...]

    def value(self, name: str, service: Service | None = None) -> str | None:
        """Return what holds for a service; None: this Postfix knows no such parameter."""
        own = service.own.get(name) if service else None
        return self.values.get(name) if own is None else own

    def doors(self, smtp: Smtp) -> dict[int, Service]:
        """Return the services at our ports."""
        wanted = {smtp.relay_port, smtp.submission_port, smtp.smtps_port} - {0}
        return {service.port: service for service in self.services if service.port in wanted}

    def cleanup_of(self, door: Service) -> Service | None:
        """Return the cleanup service that a door hands its messages to."""
        name = self.value("cleanup_service_name", door)
        return next((one for one in self.services if one.name == name and one.kind == "unix"), None)

    def path(self, name: str) -> Path:
        """Return a directory or file that a parameter names."""
        return Path(self.values.get(name, "/nonexistent"))


def read_instance(directory: Path) -> Instance:
    """Ask postconf; raise PostfixUnreadable with what it says."""
    values = dict(_pair(line, " =") for line in _ask(directory, "-x"))
    own: dict[str, dict[str, str]] = {}
    for line in _ask(directory, "-P"):
        name, value = _pair(line, " =")
        service, _, parameter = name.rpartition("/")
        own.setdefault(service, {})[parameter] = value
    services = []
    for line in _ask(directory, "-M"):
        fields = line.split(None, _COMMAND)
        if len(fields) == _FIELDS:
            services.append(
                Service(
                    name=fields[0],
                    kind=fields[1],
                    chroot=fields[_CHROOT] == "y",
                    processes=int(fields[_PROCESSES].replace("-", values["default_process_limit"])),
                    command=fields[_COMMAND].split()[0],
                    own=own.get(f"{fields[0]}/{fields[1]}", {}),
                )
            )
    return Instance(directory=directory, values=values, services=tuple(services))


def _pair(line: str, separator: str) -> tuple[str, str]:
    name, _, value = line.partition(separator)
    return name.strip(), value.strip()


def _ask(directory: Path, option: str) -> list[str]:
    postconf = shutil.which("postconf", path=requirements.search_path())
    if not postconf:
        raise PostfixUnreadable("postconf is not installed: install the package postfix")
    done = subprocess.run(
        [postconf, "-c", str(directory), option],
        check=False,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=POSTCONF_S,
    )
    if done.returncode:
        raise PostfixUnreadable((done.stderr.strip() or f"postconf {option} failed").splitlines()[-1])
    return done.stdout.splitlines()
