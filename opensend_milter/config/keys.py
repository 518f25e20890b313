"""All keys of the configuration, by the names people write."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import get_type_hints

from opensend_milter.config.option import Option
from opensend_milter.config.sections import Config
from opensend_milter.config.values import Value, ValueKind, kind_of

VARIABLE_PREFIX = "OPENSEND_MILTER_"


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key: where it stands and what it takes."""

    section: str
    """Empty for a key outside of all sections."""
    name: str
    kind: ValueKind
    default: Value
    option: Option

    @property
    def path(self) -> str:
        """As error texts name it."""
        return f"{self.section}.{self.name}" if self.section else self.name

    @property
    def variable(self) -> str:
        """The environment variable that every key has."""
        return VARIABLE_PREFIX + self.path.replace(".", "_").upper()

    @property
    def expected(self) -> str:
        """What may stand here."""
        check = self.option.check
        return check.expected if check else self.kind.expected

    def of(self, config: Config) -> Value:
        """Return its value in a configuration."""
        value: Value = getattr(getattr(config, self.section) if self.section else config, self.name)
        return value

    def read(self, text: str) -> Value:
        """Parse and check; raise ValueError when it is not what is expected."""
        value = self.kind.parse(text)
        if self.option.check and not self.option.check.passes(value):
            raise ValueError(text)
        return value


def _keys(section: str, cls: type) -> Iterator[Key]:
    hints = get_type_hints(cls)
    standard = cls()
    for one in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[one.name]):
            yield from _keys(one.name, hints[one.name])
        else:
            yield Key(
                section=section,
                name=one.name,
                kind=kind_of(hints[one.name]),
                default=getattr(standard, one.name),
                option=one.metadata["option"],
            )


KEYS = tuple(_keys("", Config))
BY_PATH = {key.path: key for key in KEYS}
SECTIONS = tuple(dict.fromkeys(key.section for key in KEYS if key.section))


def known(kind: str, name: str, choices: Iterable[str]) -> str:
    """Say what was expected instead of an unknown name, with the nearest one."""
    elsewhere = [key.path for key in KEYS if key.name == name]
    near = difflib.get_close_matches(name, list(choices), n=1) or elsewhere[:1]
    return f"a known {kind}" + (f" (did you mean {near[0]}?)" if near else "")
