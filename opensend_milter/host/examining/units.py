"""What stands in the systemd units we ship: how a process of one is confined."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from opensend_milter.host.installing import shipped_units

CONFINING = frozenset(
    {
        *("User", "Group", "SupplementaryGroups", "UMask", "ReadWritePaths", "NoExecPaths", "ExecPaths"),
        *("CapabilityBoundingSet", "NoNewPrivileges", "ProtectSystem", "ProtectHome", "ProtectProc", "ProcSubset"),
        *("ProtectHostname", "ProtectClock", "ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs"),
        *("ProtectControlGroups", "PrivateTmp", "PrivateDevices", "PrivateUsers", "PrivateIPC", "PrivateMounts"),
        *("PrivateNetwork", "DevicePolicy", "LockPersonality", "MemoryDenyWriteExecute", "RestrictNamespaces"),
        *("RestrictRealtime", "RestrictSUIDSGID", "RestrictAddressFamilies", "RemoveIPC", "KeyringMode"),
        *("LimitCORE", "IPAddressDeny", "IPAddressAllow"),
        *("SystemCallArchitectures", "SystemCallFilter", "SystemCallErrorNumber"),
    }
)
"""The directives that take something away from a process, or say whose it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Directive:
    """One line of a unit."""

    section: str
    name: str
    value: str


@dataclass(frozen=True, slots=True)
class Unit:
    """What a unit file says, in its order."""

    directives: Sequence[Directive]

    def values(self, name: str) -> list[str]:
        """Return what a directive was given; as in systemd, an empty value forgets those before it."""
        found: list[str] = []
        for one in self.directives:
            if one.name == name:
                found = [*found, one.value] if one.value else []
        return found

    def words(self, name: str) -> list[str]:
        """Return the same as single words."""
        return [word for value in self.values(name) for word in value.split()]

    def last(self, name: str) -> str:
        """Return what a directive was given last, empty where it was not."""
        return next(iter(reversed(self.values(name))), "")

    def names(self, section: str) -> set[str]:
        """Return which directives a section has."""
        return {one.name for one in self.directives if one.section == section}


def read(name: str, *drop_ins: Path) -> Unit:
    """Read a unit of ours by its file name, with drop-ins over it."""
    texts = (shipped_units.read(name), *(path.read_text(encoding="utf-8") for path in drop_ins))
    return Unit([one for text in texts for one in _directives(text)])


def confining(unit: Unit) -> list[str]:
    """Return what confines a process of the unit, as `systemd-run --property` takes it."""
    return [f"{one.name}={one.value}" for one in unit.directives if one.name in CONFINING]


def _directives(text: str) -> Iterator[Directive]:
    section = ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith(("#", ";")):
            name, _, value = line.partition("=")
            yield Directive(section=section, name=name.strip(), value=value.strip())
