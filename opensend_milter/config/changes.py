"""What is different between two configurations, and what of it a running process can go on with."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Sequence, Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from opensend_milter.config.keys import KEYS, Key
from opensend_milter.config.sections import Config
from opensend_milter.config.values import MASK, Value, mask

_RENDERED_FOR_DOVECOT = frozenset({"database", "auth.dovecot_socket"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One key whose value is another one now."""

    key: Key
    before: Value
    after: Value

    def __str__(self) -> str:
        return f"{self.key.path}: {self._shown(self.before)} -> {self._shown(self.after)}"

    def _shown(self, value: Value) -> str:
        if self.key.option.secret:
            return MASK
        if value is None:
            return "none"
        return json.dumps(value if isinstance(value, bool | int | float) else mask(str(value)), ensure_ascii=False)


@dataclass(frozen=True, slots=True)
class Reads:
    """The keys that a process reads; the name of a section stands for all of its keys."""

    live: AbstractSet[str]
    """It goes on with another value at once."""
    at_start: AbstractSet[str]

    def is_live(self, key: Key) -> bool:
        """Tell whether a new value holds without a restart."""
        return _is_in(key, self.live)

    def effect(self, key: Key) -> str:
        """Say what comes of a new value."""
        effects = []
        if self.is_live(key):
            effects.append("in force")
        elif _is_in(key, self.at_start):
            effects.append("needs a restart")
        if key.option.renders:
            whose = "Dovecot" if _is_in(key, _RENDERED_FOR_DOVECOT) else "Postfix"
            effects.append(f"{whose} must be rendered again")
        return "; ".join(effects) or "not for this process"


def changes(old: Config, new: Config) -> Sequence[Change]:
    """List the keys whose values differ, in the order of the sections."""
    pairs = ((key, key.of(old), key.of(new)) for key in KEYS)
    return [Change(key=key, before=before, after=after) for key, before, after in pairs if before != after]


def with_changes(config: Config, made: Iterable[Change]) -> Config:
    """Return the configuration after these changes."""
    for change in made:
        value: dict[str, Any] = {change.key.name: change.after}
        if change.key.section:
            section = dataclasses.replace(getattr(config, change.key.section), **value)
            value = {change.key.section: section}
        config = dataclasses.replace(config, **value)
    return config


def _is_in(key: Key, names: AbstractSet[str]) -> bool:
    return key.path in names or key.section in names
