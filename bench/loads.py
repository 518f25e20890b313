"""The loads by name."""

from __future__ import annotations

from collections.abc import Mapping

LARGE_BYTES = 41_060_000
"""An attachment of 30 MB, as base64 in lines."""
WISHES: Mapping[str, Mapping[str, object]] = {
    "many_1": {"sessions": 1},
    "many_20": {"sessions": 20},
    "many_100": {"sessions": 100},
    "one_1": {"sessions": 1, "kept": False},
    "one_20": {"sessions": 20, "kept": False},
    "one_100": {"sessions": 100, "kept": False},
    "recipients_50": {"sessions": 20, "recipients": 50},
    "attachment_1mb": {"sessions": 4, "size_bytes": 1_370_000, "attachment": True},
    "attachment_30mb": {"sessions": 10, "per_session": 1, "size_bytes": LARGE_BYTES, "attachment": True},
    "login_20": {"kind": "login", "sessions": 20, "kept": False},
}
LOAD_NAMES = {
    "many": "many messages per connection, {} sessions",
    "one": "one message per connection, {} sessions",
    "recipients": "{} recipients, 20 sessions",
    "attachment": "attachments of {}",
    "login": "TLS and AUTH alone, {} sessions",
}


def named(load: str) -> str:
    """Return a load's name for people."""
    kind, _, what = load.partition("_")
    return LOAD_NAMES[kind].format(what.replace("mb", " MB"))
