"""How a line of the log looks: text for people and grep, or one JSON object; neither shows an address or a key."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

Plain = str | int | float
_TEXT = "%(asctime)s %(levelname)s %(name)s[%(process)d]: %(message)s"
_ADDRESS = re.compile(
    r"""(?:"[^"\n]*"|(?<![^\s<>"(),:;\[\]])[^\s<>"(),:;@\[\]]+)"""  # a long word is looked at once, from its start
    r"""@(?:\[[^\[\]\s]{0,64}\]|[^\s<>"'(),:;=\[\]]+)"""
)
_KEY = re.compile(r"os_[0-9a-f]{32}|whsec_[A-Za-z0-9+/]{16,}=*")
"""Nothing of ours logs one, but a stranger may put it where it does not belong."""


class Said(str):
    """Somebody else's words, in a line one quoted word."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Pairs:
    """Values with their names: `key=value key=value` in a line, fields in JSON."""

    values: Mapping[str, Plain]
    queue_id: str = ""
    """First in the line, so that a grep shows Postfix and us together."""

    def __str__(self) -> str:
        pairs = " ".join(
            f'{name}="{value}"' if isinstance(value, Said) else f"{name}={value}" for name, value in self.values.items()
        )
        return f"{self.queue_id}: {pairs}" if self.queue_id else pairs

    def fields(self) -> Mapping[str, Plain]:
        """Return them for JSON, without addresses and keys."""
        named = {"queue_id": self.queue_id} if self.queue_id else {}
        return named | {name: masked(value) if isinstance(value, str) else value for name, value in self.values.items()}


def masked(text: str) -> str:
    """Return a text without addresses and keys, wherever it came from."""
    if "os_" in text or "whsec_" in text:
        text = _KEY.sub("<key>", text)
    return _ADDRESS.sub("<address>", text) if "@" in text else text


class TextLines(logging.Formatter):
    """What people read."""

    def __init__(self) -> None:
        super().__init__(_TEXT)

    def format(self, record: logging.LogRecord) -> str:
        return masked(super().format(record))


class JsonLines(logging.Formatter):
    """What programs read."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Plain | None] = {
            "time": at.replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": masked(record.getMessage()),
        }
        for given in record.args if isinstance(record.args, tuple) else ():
            if isinstance(given, Pairs):
                line |= {name: value for name, value in given.fields().items() if name not in line}
        if record.exc_info:
            line["exception"] = masked(self.formatException(record.exc_info))
        if record.stack_info:
            line["stack"] = masked(record.stack_info)
        return json.dumps(line)


def formatter(form: Literal["text", "json"]) -> logging.Formatter:
    """Return what the configuration asks for."""
    return JsonLines() if form == "json" else TextLines()
