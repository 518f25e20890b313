"""Composition root: a Config in, wired objects out; the only place where servers and adapters meet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opensend_milter.app.loading import load

if TYPE_CHECKING:
    from opensend_milter.app.fitting import misfits
    from opensend_milter.app.gating import guard
    from opensend_milter.app.seeding import find_email, find_log, prepare_sandbox
    from opensend_milter.app.serving import serve
    from opensend_milter.app.showing import console
    from opensend_milter.app.web import http
    from opensend_milter.app.working import job_store, search_table, work

__all__ = [
    "console", "find_email", "find_log", "guard", "http", "job_store", "misfits", "prepare_sandbox", "search_table",
    "serve", "work",
]  # fmt: skip

_HOMES = {
    "console": "showing",
    "find_email": "seeding",
    "find_log": "seeding",
    "guard": "gating",
    "http": "web",
    "job_store": "working",
    "misfits": "fitting",
    "prepare_sandbox": "seeding",
    "search_table": "working",
    "serve": "serving",
    "work": "working",
}


def __getattr__(name: str) -> object:
    """Load what a command needs when it is needed: with all of it each command would take half a second more."""
    if name not in _HOMES:
        raise AttributeError(name)
    return getattr(load(f"{__name__}.{_HOMES[name]}"), name)
