"""The page of a refusal, over a real socket: what it shows to whom, and to how many."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import pytest

from opensend_milter.core.errors import StoreUnavailable
from opensend_milter.core.rates import Allowance
from opensend_milter.core.refs import Refused, ref_of
from opensend_milter.core.remedies import REMEDIES, sentence
from opensend_milter.core.rules import Rule
from opensend_milter.servers.web.public import told
from opensend_milter.servers.web.server import application
from tests.asking import Answer, ask
from tests.integration.http_sites import served
from tests.waiting import await_true, patience_s

TOKEN = "7DJ0H3NH6Y4E30HVDGQ1JAXSMY"
REFUSED = Refused(rule="from-unverified", code=550, enhanced="5.7.1", from_domain="example.org")


@dataclass
class Found:
    """What is recorded; it can be told to be away."""

    refused: dict[str, Refused] = field(default_factory=lambda: {TOKEN: REFUSED})
    asked: list[str] = field(default_factory=list)
    away: bool = False
    now: float = 0
    gate: threading.Event = field(default_factory=threading.Event)
    inside: int = 0

    def find(self, token: str) -> Refused | None:
        self.asked.append(token)
        self.inside += 1
        self.gate.wait(patience_s())
        self.inside -= 1
        if self.away:
            raise StoreUnavailable("gone")
        return self.refused.get(token)

    def clock(self) -> float:
        return self.now


@pytest.fixture
def found() -> Found:
    found = Found()
    found.gate.set()
    return found


@pytest.fixture
def port(found: Found) -> Iterator[int]:
    routes = told.routes(found.find, Allowance(told.PER_MINUTE, found.clock))
    with served(application(routes, proxies=["127.0.0.0/8"])) as running:
        yield running


def told_to(port: int, token: str = TOKEN, method: str = "GET", client: str = "192.0.2.7") -> Answer:
    return ask(port, method, f"/r/{token}", X_Forwarded_For=client)


def test_it_shows_rule_cause_mend_domain_and_ref(port: int) -> None:
    answer = told_to(port)
    text = answer.body.decode()
    assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
    cause = sentence(REMEDIES[Rule.FROM_UNVERIFIED].cause).replace("'", "&#39;")
    for said in ("550 5.7.1", "from-unverified", cause, "opensend-milter domain verify", "example.org", ref_of(TOKEN)):
        assert said in text
    assert "`" not in text
    assert TOKEN not in text


@pytest.mark.parametrize("token", [TOKEN, "0" * 26, "x"])
def test_no_page_is_kept_listed_passed_on_or_scripted(port: int, token: str) -> None:
    answer = told_to(port, token)
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["x-robots-tag"] == "noindex"
    assert answer.headers["content-security-policy"].startswith("default-src 'none'; ")
    assert "set-cookie" not in answer.headers
    assert b"<script" not in answer.body


def test_head_says_the_same_and_nothing_else_is_asked(port: int) -> None:
    head, get = told_to(port, method="HEAD"), told_to(port)
    assert (head.status, head.body, head.headers["content-length"]) == (200, b"", str(len(get.body)))
    assert told_to(port, method="POST").status == 405


def test_a_token_in_any_case_is_understood(port: int, found: Found) -> None:
    assert told_to(port, TOKEN.lower().replace("0", "o")).status == 200
    assert found.asked == [TOKEN]


def test_what_is_not_there_looks_the_same_whatever_it_was(port: int, found: Found) -> None:
    tokens = ["0" * 26, "x", TOKEN[:-1], "%00" * 26, "U" * 26, "7" * 8_000, "%C3%A9" * 26]
    answers = [told_to(port, token) for token in tokens]
    assert {(answer.status, answer.body) for answer in answers} == {(404, answers[0].body)}
    names = [
        {name: value for name, value in one.headers.items() if name not in {"date", "x-request-id"}} for one in answers
    ]
    assert all(one == names[0] for one in names)
    assert found.asked == ["0" * 26]


def test_who_asks_too_often_waits_and_nobody_else_does(port: int, found: Found) -> None:
    for number in range(told.PER_MINUTE):
        assert told_to(port, f"{number:026}").status == 404
    refused = told_to(port)
    assert (refused.status, refused.headers["retry-after"]) == (429, "60")
    assert len(found.asked) == told.PER_MINUTE
    assert told_to(port, client="192.0.2.8").status == 200
    found.now += 60
    assert told_to(port).status == 200


def test_strangers_leave_connections_to_the_database_to_others(port: int, found: Found) -> None:
    found.gate.clear()
    with ThreadPoolExecutor(9) as clients:
        answers = [clients.submit(told_to, port, client=f"192.0.2.{number}") for number in range(9)]
        await_true(lambda: found.inside == told.AT_ONCE, "some are inside")
        for _ in range(9):
            assert told_to(port, "x", client="192.0.2.99").status == 404
        assert len(found.asked) == told.AT_ONCE
        found.gate.set()
        assert [answer.result().status for answer in answers] == [200] * 9


def test_while_the_database_is_away_it_is_come_again(port: int, found: Found) -> None:
    found.away = True
    answer = told_to(port)
    assert (answer.status, answer.headers["retry-after"]) == (503, "60")
    assert told_to(port, "x").status == 404


def test_a_rule_of_a_newer_version_is_told_by_its_name(port: int, found: Found) -> None:
    found.refused[TOKEN] = Refused(rule="not-known", code=554, enhanced="5.6.0", from_domain=None)
    answer = told_to(port)
    assert answer.status == 200
    assert b"not-known" in answer.body


def test_what_a_stranger_chose_is_shown_as_text(port: int, found: Found) -> None:
    found.refused[TOKEN] = Refused(rule="<i>", code=550, enhanced="5.7.1", from_domain="<script>alert(1)</script>&'\"")
    body = told_to(port).body
    assert b"<script" not in body
    assert b"<i>" not in body
    assert b"&lt;script&gt;alert(1)" in body
