"""What main.cf and master.cf say, read back."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

COLUMNS = 8
PROCESSES = 6
_CHROOT, _COMMAND = 4, 7
_ADDRESS = re.compile(r"(?:.+:)?(?P<port>\d+)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """One entry of master.cf."""

    columns: tuple[str, ...]
    overrides: Mapping[str, str]
    arguments: str = ""
    """What its program is given beside its `-o`."""

    @property
    def name(self) -> str:
        """Return what it is reached by."""
        return self.columns[0]

    @property
    def kind(self) -> str:
        """Return inet, unix, or another."""
        return self.columns[1]

    @property
    def key(self) -> str:
        """Return what postconf calls it."""
        return f"{self.name}/{self.kind}"

    @property
    def chroot(self) -> bool:
        """Tell whether it sees the queue directory only."""
        return self.columns[_CHROOT] == "y"

    @property
    def command(self) -> str:
        """Return the program."""
        return self.columns[_COMMAND]

    @property
    def port(self) -> int:
        """Where it listens; 0: at no port."""
        address = _ADDRESS.fullmatch(self.name) if self.kind == "inet" else None
        return int(address["port"]) if address else 0

    def line(self) -> str:
        """Return the entry as one logical line."""
        return " ".join((*self.columns, *(f"-o {{{name} = {value}}}" for name, value in self.overrides.items())))

    def text(self) -> str:
        """Return the entry as people read it."""
        return "\n".join((" ".join(self.columns), *(f"  -o {name}={value}" for name, value in self.overrides.items())))


def settings(main_cf: str) -> Mapping[str, str]:
    """Return the parameters of a main.cf."""
    return pairs(_logical_lines(main_cf))


def services(master_cf: str) -> list[Service]:
    """Return the services of a master.cf of ours, whose values hold no white space."""
    split = (line.split() for line in _logical_lines(master_cf))
    return [
        Service(columns=tuple(words[:COLUMNS]), overrides=pairs(word for word in words[COLUMNS:] if word != "-o"))
        for words in split
    ]


def pairs(lines: Iterable[str]) -> Mapping[str, str]:
    """Split lines of `name = value`; others are left out."""
    split = (line.partition("=") for line in lines if "=" in line)
    return {name.strip(): value.strip() for name, _, value in split}


def _logical_lines(text: str) -> list[str]:
    kept = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return re.sub(r"\n[ \t]+", " ", "\n".join(kept)).splitlines()
