"""From what people wrote to a Config, or to one error with every fault."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

from opensend_milter.config.clashes import Clash, clashes, front_door_clashes
from opensend_milter.config.keys import BY_PATH, KEYS, VARIABLE_PREFIX, Key, known
from opensend_milter.config.sections import Config
from opensend_milter.config.values import Value, mask, shown
from opensend_milter.config.yaml_file import Unreadable, Written, read_file
from opensend_milter.core.errors import ConfigError

DEFAULT_PATH = Path("/etc/opensend-milter/opensend-milter.yaml")
PATH_VARIABLE = "OPENSEND_MILTER_CONFIG"

Sources = Mapping[str, str]
"""Where each key's value is from: `default`, `file`, or the name of an environment variable."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One key as it is in force, for people to see."""

    section: str
    key: str
    value: bool | int | float | str | None
    source: str
    renders: bool
    masked: bool
    """The value shown is not the whole value."""


@dataclass(slots=True)
class _Loading:
    """What is known so far."""

    values: dict[str, Value] = field(default_factory=dict)
    sources: dict[str, str] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    unsure: set[str] = field(default_factory=set)
    """Keys whose value is not known, because what was given is wrong."""

    def fault(self, name: str, expected: str, got: str, origin: str) -> None:
        self.faults.append(f"{name}: expected {expected}, got {got}" + (f" ({origin})" if origin else ""))
        self.unsure.add(name)

    def set(self, key: Key, value: Value, source: str, origin: str) -> None:
        self.values[key.path] = value
        self.sources[key.path] = source
        self.origins[key.path] = origin


def load(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """Read the file and the environment; raise ConfigError with every fault found, one per line.

    Without a path: the file that OPENSEND_MILTER_CONFIG names, else the default file where it exists.
    """
    return load_with_sources(path, environ)[0]


def load_with_sources(
    path: Path | None = None, environ: Mapping[str, str] | None = None, *, front_door: bool = False
) -> tuple[Config, Sources]:
    """Load, and tell where each value is from; with `front_door`, also ask what `check_front_door` asks."""
    environ = os.environ if environ is None else environ
    loading = _Loading(sources=dict.fromkeys(BY_PATH, "default"))
    _read_files(loading, path, environ)
    _read_environment(loading, environ)
    config = _build(loading.values)
    _add_clashes(loading, chain(clashes(config), front_door_clashes(config) if front_door else ()))
    if loading.faults:
        raise ConfigError("\n".join(loading.faults))
    return config, loading.sources


def path_in_force(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Path:
    """Return the file that is read: the one that was named, here or in the environment, else the default."""
    named = (os.environ if environ is None else environ).get(PATH_VARIABLE, "").strip()
    return path or Path(named or DEFAULT_PATH)


def is_configured(path: Path | None = None) -> bool:
    """Tell whether anybody has said anything: there is a file, or a variable of ours is set."""
    return path_in_force(path).exists() or any(source != "default" for source in load_with_sources(path)[1].values())


def effective(config: Config, sources: Sources) -> list[Setting]:
    """List every key as it is in force, passwords masked."""
    return [_setting(key, key.of(config), sources[key.path]) for key in KEYS]


def _setting(key: Key, value: Value, source: str) -> Setting:
    plain = str(value) if isinstance(value, Path) else value
    safe = mask(plain) if isinstance(plain, str) else plain
    return Setting(
        section=key.section,
        key=key.name,
        value=safe,
        source=source,
        renders=key.option.renders,
        masked=safe != plain,
    )


def _read_files(loading: _Loading, path: Path | None, environ: Mapping[str, str]) -> None:
    named = environ.get(PATH_VARIABLE, "").strip()
    origin = f"environment: {PATH_VARIABLE}" if named and path is None else ""
    try:
        for written in read_file(path_in_force(path, environ), optional=path is None and not named):
            _take_written(loading, written)
    except Unreadable as error:
        loading.fault("configuration file", error.expected, error.got, error.origin or origin)
        loading.unsure.update(BY_PATH)


def _take_written(loading: _Loading, written: Written) -> None:
    if written.fault:
        loading.fault(written.path, *written.fault, written.origin)
        return
    key = BY_PATH[written.path]
    if written.yaml_type == "null" and "null" in key.kind.yaml_types:
        loading.set(key, None, "file", written.origin)
    elif written.yaml_type not in key.kind.yaml_types:
        hint = "; mind the quotes" if written.text and _is_right(key, written.text) else ""
        loading.fault(key.path, key.expected, _got(key, written.text) + hint, written.origin)
    elif key.path == "database.url" and mask(written.text) != written.text:
        expected = "a URL without a password, which belongs in DATABASE_URL or in a file of database.password_dir"
        loading.fault(key.path, expected, _got(key, written.text), written.origin)
    else:
        _take_text(loading, key, written.text, "file", written.origin)


def _take_text(loading: _Loading, key: Key, text: str, source: str, origin: str) -> None:
    try:
        loading.set(key, key.read(text), source, origin)
    except ValueError:
        loading.fault(key.path, key.expected, _got(key, text), origin)


def _is_right(key: Key, text: str) -> bool:
    try:
        key.read(text)
    except ValueError:
        return False
    return True


def _got(key: Key, text: str) -> str:
    return shown(text, secret=key.option.secret) if text else "nothing"


def _read_environment(loading: _Loading, environ: Mapping[str, str]) -> None:
    given = {name: text.strip() for name, text in environ.items() if text.strip()}
    for key in KEYS:
        # Only the name that wins is read: the short one may mean something else on this host.
        for name in (key.variable, key.option.env):
            if name in given:
                _take_text(loading, key, given[name], name, f"environment: {name}")
                break
    variables = {key.variable for key in KEYS} | {PATH_VARIABLE}
    for name in sorted(given):
        if name.startswith(VARIABLE_PREFIX) and name not in variables:
            loading.fault(name, known("variable", name, variables), shown(name), "environment")


def _build(values: Mapping[str, Value]) -> Config:
    changes: dict[str, dict[str, Any]] = {}
    for path, value in values.items():
        key = BY_PATH[path]
        changes.setdefault(key.section, {})[key.name] = value
    config = dataclasses.replace(Config(), **changes.pop("", {}))
    sections = {name: dataclasses.replace(getattr(config, name), **inner) for name, inner in changes.items()}
    return dataclasses.replace(config, **sections)


def _add_clashes(loading: _Loading, found: Iterable[Clash]) -> None:
    for clash in found:
        if not loading.unsure.intersection(clash.keys):
            origins = [loading.origins[key] for key in clash.keys if key in loading.origins]
            loading.fault(clash.keys[0], clash.expected, clash.got, ", ".join(origins))
