"""A Postfix instance as Postfix itself reads it: values, services, and what a service has of its own."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from opensend_milter.config import Smtp
from opensend_milter.core.errors import OpensendError
from opensend_milter.host import requirements
from opensend_milter.host.rendering.postfix_files import COLUMNS, PROCESSES, Service, pairs

_OPTION = re.compile(r"-o\s*(?:\{(?:[^{}]|\{[^{}]*\})*\}|\S+)")
POSTCONF_S = 30.0


class PostfixUnreadable(OpensendError):  # noqa: N818  # the tree reads as mail says it
    """Postfix cannot read its configuration."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A configuration directory, read."""

    directory: Path
    values: Mapping[str, str]
    given: Mapping[str, str]
    """What main.cf itself says."""
    services: tuple[Service, ...]

    def value(self, name: str, service: Service | None = None) -> str | None:
        """Return what holds for a service; None: this Postfix knows no such parameter."""
        own = service.overrides.get(name) if service else None
        return self.values.get(name) if own is None else own

    def doors(self, smtp: Smtp) -> list[Service]:
        """Return the services at our ports."""
        wanted = {smtp.relay_port, smtp.submission_port, smtp.smtps_port} - {0}
        return [service for service in self.services if service.port in wanted]

    def cleanup_of(self, door: Service) -> Service | None:
        """Return the cleanup service that a door hands its messages to."""
        name = self.value("cleanup_service_name", door)
        return next((one for one in self.services if one.name == name and one.kind == "unix"), None)

    def processes(self, service: Service) -> int:
        """Return how many of a service there may be; 0: any number."""
        return int(service.columns[PROCESSES].replace("-", self.values["default_process_limit"]))

    def path(self, name: str) -> Path:
        """Return a directory or file that a parameter names."""
        return Path(self.values.get(name, "/nonexistent"))


def read_instance(directory: Path) -> Instance:
    """Ask postconf; raise PostfixUnreadable with what it says."""
    values, given, overrides = (pairs(_ask(directory, option)) for option in ("-x", "-n", "-P"))
    return Instance(
        directory=directory,
        values=values,
        given=given,
        services=tuple(_services(_ask(directory, "-M"), overrides)),
    )


def _services(lines: Iterable[str], overrides: Mapping[str, str]) -> Iterator[Service]:
    own: dict[str, dict[str, str]] = {}
    for name, value in overrides.items():
        key, _, parameter = name.rpartition("/")
        own.setdefault(key, {})[parameter] = value
    for line in lines:
        words = line.split(None, COLUMNS)
        yield Service(
            columns=tuple(words[:COLUMNS]),
            overrides=own.get("/".join(words[:2]), {}),
            arguments=" ".join(_OPTION.sub("", "".join(words[COLUMNS:])).split()),
        )


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
