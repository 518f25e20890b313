"""What each door tells of what is stored: asked of the old version and of the new one, then held together."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any

from opensend_milter.adapters.admin.console_users import ConsoleUsers
from opensend_milter.core.passwords import verifier_of
from tests.integration.console_browser import Browser
from tests.integration.private_postgres import Database
from tests.upgrade.filling import USER, Filled
from tests.upgrade.hosts import MailHost
from tests.waiting import patience_s

CONSOLE_PORT = 8026
CONSOLE_NAME, CONSOLE_PASSWORD = "upgrader", "a password of this test"
SHOWN = 3
"""Of each kind, by `email show`: each starts a program."""
_ALL = "1000000"
_USED = {"last_used_at", "sent_today"}
"""What changes because a key is used."""
_ONCE_UNTRUE = {"attempts", "updated_at"}
_ONCE_UNTRUE_OF_RECIPIENTS = {"status", "reason"}
"""What the versions before "Say where each recipient stands" told wrongly: over HTTP, and once a delivery was over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """All answers, by the door and what it was asked."""

    answers: Mapping[str, Any]

    def missing_in(self, later: Told) -> list[str]:
        """Name each thing that is not told any more, or told otherwise; more may be told."""
        return [
            line
            for asked, answer in self.answers.items()
            for line in _otherwise(asked, answer, later.answers.get(asked))
        ]

    def untold(self, filled: Sequence[Filled]) -> list[str]:
        """Name what is not told of each of these: by the list of all, and by HTTP."""
        asked = [f"{way}{one.email_id}" for one in filled for way in ("email list ", "GET /v1/submissions/")]
        return [f"{one}: nothing" for one in asked if one not in self.answers]


def ask(host: MailHost, key: str, filled: Sequence[Filled]) -> Told:
    """Ask the commands and HTTP for all of these."""
    listed = host.asked("email", "list", "--limit", _ALL)
    wanted = {one.email_id for one in filled}
    answers = {f"email list {row['id']}": row for row in listed if row["id"] in wanted}
    for one in some_of_each(filled):
        answers[f"email show {one.email_id}"] = host.asked("email", "show", one.email_id)
    answers["email refusals"] = host.asked("email", "refusals", "--limit", _ALL)
    for group in ("key", "suppression", "domain"):
        answers[f"{group} list"] = host.asked(group, "list", "--user", USER)
    for row in answers["key list"]:
        answers[f"key show {row['id']}"] = host.asked("key", "show", row["id"])
    return Told(answers={**answers, **dict(_by_http(host, key, filled))})


def unshown_by_console(host: MailHost, database: Database, names: Iterable[str]) -> list[str]:
    """Look for each of these subjects in the console's pages, as somebody of that host; name what is not shown."""
    with database.connect() as connection:
        ConsoleUsers(connection).put(CONSOLE_NAME, verifier_of(CONSOLE_PASSWORD, b"salt"))
    with host.network():
        browser = Browser(CONSOLE_PORT)
        browser.log_in(name=CONSOLE_NAME, password=CONSOLE_PASSWORD)
        pages = {name: browser.get(f"/messages?q={name}") for name in names}
    return [f"console of {host.name}: {name}: {page.words}" for name, page in pages.items() if name not in page.words]


def some_of_each(filled: Sequence[Filled]) -> Iterator[Filled]:
    """Return the first few of each kind."""
    for kind in sorted({one.kind for one in filled}):
        yield from [one for one in filled if one.kind == kind][:SHOWN]


def _by_http(host: MailHost, key: str, filled: Sequence[Filled]) -> Iterator[tuple[str, Any]]:
    with host.network():
        client = HTTPConnection("127.0.0.1", 8025, timeout=patience_s())
        for one in filled:
            path = f"/v1/submissions/{one.email_id}"
            client.request("GET", path, headers={"X-API-Key": key})
            answer = client.getresponse()
            text = answer.read().decode()
            if answer.status == 200:
                yield f"GET {path}", json.loads(text)
        client.close()


def _otherwise(asked: str, before: Any, after: Any) -> Iterator[str]:
    match before, after:
        case dict(), dict():
            for name in before.keys() - _USED - _mended(asked):
                yield from _otherwise(f"{asked}: {name}", before[name], after.get(name))
        case [], list():
            pass
        case list(), list() if len(before) == len(after):
            for number, (old, new) in enumerate(zip(before, after, strict=True)):
                yield from _otherwise(f"{asked}: {number}", old, new)
        case _ if before != after:
            yield f"{asked}: was {before!r}, is {after!r}"


def _mended(asked: str) -> set[str]:
    if not asked.startswith("GET "):
        return set()
    return _ONCE_UNTRUE_OF_RECIPIENTS if ": recipients: " in asked else _ONCE_UNTRUE
