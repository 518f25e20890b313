"""A YAML file as a list of what is written where; nothing is constructed, so nothing is guessed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

from opensend_milter.config.keys import BY_PATH, KEYS, SECTIONS, known
from opensend_milter.config.values import SHOWN_CHARACTERS, shown

_TAG_PREFIX = "tag:yaml.org,2002:"


class Unreadable(Exception):  # noqa: N818  # it is a finding; the loader words the error
    """The file as a whole is no configuration."""

    def __init__(self, expected: str, got: str, origin: str = "") -> None:
        super().__init__(expected)
        self.expected = expected
        self.got = got
        self.origin = origin


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """One value as somebody wrote it, or the reason why it cannot be one."""

    path: str
    origin: str
    text: str = ""
    yaml_type: str = ""
    fault: tuple[str, str] | None = None
    """What was expected, and what was there."""


def read_file(path: Path, *, optional: bool) -> Iterator[Written]:
    """Return the values of a file in order; raise Unreadable when there is none to speak of."""
    try:
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except FileNotFoundError as error:
        if optional:
            return
        raise _unreadable(path, error) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise _unreadable(path, error) from error
    except RecursionError as error:
        raise Unreadable("sections with keys", "things within things without end", str(path)) from error
    if root is None or _is_empty(root):
        return
    if not isinstance(root, yaml.MappingNode):
        raise Unreadable("sections with keys", _kind(root), str(path))
    yield from _top(root, path)


def _unreadable(path: Path, error: Exception) -> Unreadable:
    if isinstance(error, OSError):
        return Unreadable("a file that can be read", f"{str(path)!r}: {error.strerror}")
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
        # Not the whole error: it quotes the line, and who knows what is in it.
        mark = error.problem_mark
        return Unreadable("YAML", f"line {mark.line + 1}, column {mark.column + 1}: {error.problem}", str(path))
    return Unreadable("YAML in UTF-8", "other bytes", str(path))


def _top(root: yaml.MappingNode, path: Path) -> Iterator[Written]:
    for name, node, origin, repeated in _pairs(root, path):
        if repeated:
            yield Written(path=name, origin=origin, fault=("it once", "it again"))
        elif name in BY_PATH:
            yield _scalar(name, node, origin)
        elif name not in SECTIONS:
            choices = (*SECTIONS, *(key.name for key in KEYS if not key.section))
            yield Written(path=name, origin=origin, fault=(known("section", name, choices), shown(name)))
        elif isinstance(node, yaml.MappingNode):
            yield from _section(name, node, path)
        elif not _is_empty(node):
            yield Written(path=name, origin=origin, fault=("a section with keys", _kind(node)))


def _section(section: str, node: yaml.MappingNode, path: Path) -> Iterator[Written]:
    for name, value, origin, repeated in _pairs(node, path):
        full = f"{section}.{name}"
        if repeated:
            yield Written(path=full, origin=origin, fault=("it once", "it again"))
        elif full in BY_PATH:
            yield _scalar(full, value, origin)
        else:
            choices = [key.name for key in KEYS if key.section == section]
            yield Written(path=full, origin=origin, fault=(known("key", name, choices), shown(name)))


def _pairs(node: yaml.MappingNode, path: Path) -> Iterator[tuple[str, yaml.Node, str, bool]]:
    seen: set[str] = set()
    for key, value in node.value:
        name = key.value if isinstance(key, yaml.ScalarNode) and _is_name(key.value) else _kind(key)
        yield name, value, f"{path}:{key.start_mark.line + 1}", name in seen
        seen.add(name)


def _is_name(text: str) -> bool:
    return text.isprintable() and len(text) <= SHOWN_CHARACTERS


def _scalar(name: str, node: yaml.Node, origin: str) -> Written:
    if isinstance(node, yaml.ScalarNode):
        return Written(path=name, origin=origin, text=node.value, yaml_type=node.tag.removeprefix(_TAG_PREFIX))
    return Written(path=name, origin=origin, fault=(BY_PATH[name].expected, _kind(node)))


def _is_empty(node: yaml.Node) -> bool:
    return node.tag == f"{_TAG_PREFIX}null"


def _kind(node: yaml.Node) -> str:
    match node:
        case yaml.MappingNode():
            return "a mapping"
        case yaml.SequenceNode():
            return "a list"
        case _:
            return shown(str(node.value))
