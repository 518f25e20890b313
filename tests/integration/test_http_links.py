"""Opens, clicks and unsubscriptions over a real socket."""

from __future__ import annotations

import logging
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from opensend_milter.core.errors import RowRefused, StoreUnavailable
from opensend_milter.core.links import PATHS, LinkKind, Links, SignedLink
from opensend_milter.core.model import EmailId
from opensend_milter.core.signing import derived, link_token
from opensend_milter.servers.web import links
from opensend_milter.servers.web.links import routes
from opensend_milter.servers.web.server import application
from tests.asking import Answer, ask
from tests.integration import http_sites
from tests.waiting import patience_s

ID = EmailId("0198c5a2-7f00-7abc-8def-0123456789ab")
KEY = derived(bytes(32), "link")
LINKS = Links(key=KEY)
NOON = datetime(2026, 1, 2, 12, 0, 1, 500_000, tzinfo=UTC)
URL = "https://example.org/a b?x=1&y=\u00fc#z"
LOCATION = "https://example.org/a%20b?x=1&y=%C3%BC#z"


@dataclass
class Box:
    """Where reports go; it can be told to fail, or to take its time."""

    reports: list[tuple[str, str, EmailId, Mapping[str, str]]] = field(default_factory=list)
    calls: int = 0
    fault: Exception | None = None
    gate: threading.Event = field(default_factory=threading.Event)
    now: datetime = NOON
    changed: threading.Condition = field(default_factory=threading.Condition)

    def put(self, kind: str, source_id: str, email_id: EmailId, payload: Mapping[str, str]) -> None:
        self.gate.wait(patience_s())
        with self.changed:
            self.calls += 1
            self.changed.notify_all()
            if self.fault:
                raise self.fault
            self.reports.append((kind, source_id, email_id, payload))

    def await_calls(self, number: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: self.calls >= number, patience_s())
            assert self.calls == number


@contextmanager
def served(box: Box, *proxies: str) -> Iterator[int]:
    """Serve the routes; return the port."""
    with http_sites.served(application(routes(LINKS.opened, box.put, lambda: box.now), proxies=proxies)) as port:
        try:
            yield port
        finally:
            box.gate.set()


@pytest.fixture
def box() -> Box:
    found = Box()
    found.gate.set()
    return found


@pytest.fixture
def port(box: Box) -> Iterator[int]:
    with served(box) as running:
        yield running


def path(kind: LinkKind, target: str = "") -> str:
    return LINKS.url("", SignedLink(kind=kind, email_id=ID, target=target))


def assert_leaks_nothing(answer: Answer) -> None:
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["referrer-policy"] == "no-referrer"


def test_an_open(box: Box, port: int) -> None:
    answer = ask(port, "GET", path("open"), User_Agent="Mail\x7f/1" + "x" * 1_000)
    assert (answer.status, answer.headers["content-type"], len(answer.body)) == (200, "image/gif", 43)
    assert answer.body.startswith(b"GIF89a\x01\x00\x01\x00")
    assert_leaks_nothing(answer)
    box.await_calls(1)
    ((kind, source_id, email_id, payload),) = box.reports
    assert (kind, email_id) == ("open", ID)
    assert re.fullmatch(r"open:[0-9a-f]{32}", source_id)
    assert payload == {
        "timestamp": "2026-01-02T12:00:01.500+00:00",
        "ipAddress": "127.0.0.1",
        "userAgent": ("Mail /1" + "x" * 1_000)[:512],
    }


@pytest.mark.parametrize(
    ("proxies", "address"), [((), "127.0.0.1"), (("127.0.0.0/8",), "192.0.2.7"), (("10.0.0.0/8",), "127.0.0.1")]
)
def test_behind_a_proxy_it_is_the_clients_address(box: Box, proxies: tuple[str, ...], address: str) -> None:
    """Else all who open a message within a minute would be one, and anybody could name another's address."""
    with served(box, *proxies) as port:
        for client in ("192.0.2.7", "192.0.2.8"):
            ask(port, "GET", path("open"), X_Forwarded_For=f"203.0.113.9, {client}")
        box.await_calls(2)
    first, second = sorted(box.reports, key=lambda report: report[3]["ipAddress"])
    assert first[3]["ipAddress"] == address
    assert (first[1] == second[1]) is (address == "127.0.0.1")


def test_a_click(box: Box, port: int) -> None:
    answer = ask(port, "GET", path("click", URL), User_Agent="Browser/1")
    assert (answer.status, answer.headers["location"], answer.body) == (302, LOCATION, b"")
    assert_leaks_nothing(answer)
    box.await_calls(1)
    ((kind, source_id, email_id, payload),) = box.reports
    assert (kind, email_id, payload["link"], payload["userAgent"]) == ("click", ID, URL, "Browser/1")
    assert source_id.startswith("click:")


@pytest.mark.parametrize(
    ("method", "body"),
    [("POST", b"List-Unsubscribe=One-Click"), ("POST", None), ("POST", b"x" * 200_000)],
)
def test_an_unsubscription(box: Box, port: int, method: str, body: bytes | None) -> None:
    answer = ask(port, method, path("unsubscribe", "to@example.net"), body)
    assert answer.status == 200
    ((kind, _, email_id, payload),) = box.reports
    assert (kind, email_id, payload["recipient"]) == ("unsubscribe", ID, "to@example.net")
    assert b"example.net" not in answer.body


def test_looking_at_the_page_does_not_unsubscribe(box: Box, port: int) -> None:
    for method in ("GET", "HEAD"):
        answer = ask(port, method, path("unsubscribe", "to@example.net"))
        assert (answer.status, answer.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
        assert_leaks_nothing(answer)
    assert b'<form method="post">' in ask(port, "GET", path("unsubscribe", "to@example.net")).body
    assert box.calls == 0


def test_head_is_not_counted(box: Box, port: int) -> None:
    assert ask(port, "HEAD", path("open")).status == 200
    answer = ask(port, "HEAD", path("click", URL))
    assert (answer.status, answer.headers["location"]) == (302, LOCATION)
    ask(port, "GET", path("open"))
    box.await_calls(1)


def tokens() -> Iterator[str]:
    """Yield tokens that are not ours, and ours for something else."""
    yield from ("x", "%00", "A" * 60, "..", "%C3%A9", "A" * 8_000, path("open")[:-1].rpartition("/")[2])
    for said in (b"", b"cjavascript:alert(1)", b"chttps://x/\r\nSet-Cookie: a=b", b"c//x", b"ox", b"ux"):
        yield link_token(KEY, ID, said)
    yield (
        Links(key=derived(b"1" * 32, "link"))
        .url("", SignedLink(kind="click", email_id=ID, target=URL))
        .rpartition("/")[2]
    )


@pytest.mark.parametrize("token", [*tokens()])
def test_what_is_not_ours_opens_nothing(box: Box, port: int, token: str) -> None:
    assert ask(port, "GET", PATHS["open"] + token).status == 200
    click = ask(port, "GET", PATHS["click"] + token)
    assert click.status == 404
    assert "location" not in click.headers
    for method in ("GET", "POST"):
        assert ask(port, method, PATHS["unsubscribe"] + token).status == 404
    ask(port, "GET", path("open"))
    box.await_calls(1)


def test_a_token_is_good_for_its_own_purpose_only(box: Box, port: int) -> None:
    targets: dict[LinkKind, str] = {"open": "", "click": URL, "unsubscribe": "to@example.net"}
    for kind, target in targets.items():
        token = path(kind, target).removeprefix(PATHS[kind])
        for other in targets:
            if other != kind:
                method = "POST" if other == "unsubscribe" else "GET"
                assert ask(port, method, PATHS[other] + token).status == (200 if other == "open" else 404)
    ask(port, "GET", path("open"))
    box.await_calls(1)


def test_other_methods_and_paths(box: Box, port: int) -> None:
    assert ask(port, "POST", path("click", URL), b"").status == 405
    assert ask(port, "POST", path("open"), b"").status == 405
    assert ask(port, "PUT", path("unsubscribe", "to@example.net"), b"").status == 405
    assert ask(port, "GET", PATHS["click"]).status == 404
    assert ask(port, "GET", PATHS["click"] + "..%2f..").status == 404
    assert ask(port, "GET", PATHS["click"] + "?url=https://evil.example/").status == 404
    assert box.calls == 0


def test_what_a_client_does_twice_in_a_minute_counts_once(box: Box, port: int) -> None:
    """The names are equal; the store counts what has the same name once."""
    later = NOON + timedelta(minutes=1)
    steps: list[tuple[datetime, str]] = [
        (NOON, path("open")), (NOON + timedelta(seconds=58), path("open")), (later, path("open")),
        (NOON, path("click", URL)), (NOON, path("click", URL)), (NOON, path("click", "https://example.org/")),
    ]  # fmt: skip
    for number, (now, url) in enumerate(steps, 1):
        box.now = now
        ask(port, "GET", url)
        box.await_calls(number)
    names = [source_id for _, source_id, *_ in box.reports]
    assert names[0] == names[1]
    assert names[3] == names[4]
    assert len(set(names)) == 4
    assert not any("127.0.0.1" in name for name in names)


@pytest.mark.parametrize("fault", [StoreUnavailable("gone"), RowRefused("no"), ValueError("bug")])
def test_nobodys_click_fails_because_of_us(
    box: Box, port: int, fault: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    box.fault = fault
    for number in range(1, 4):
        assert ask(port, "GET", path("click", URL)).status == 302
        box.await_calls(2 * number - 1)
        assert ask(port, "GET", path("open")).status == 200
        box.await_calls(2 * number)
    unsubscribed = ask(port, "POST", path("unsubscribe", "to@example.net"))
    assert (unsubscribed.status, unsubscribed.headers["retry-after"]) == (503, "60")
    ours = [record for record in caplog.records if record.name == links.__name__]
    assert len(ours) == (1 if isinstance(fault, StoreUnavailable) else 7)
    box.fault = None
    assert ask(port, "POST", path("unsubscribe", "to@example.net")).status == 200
    assert "example.net" not in caplog.text
    assert "127.0.0.1" not in "".join(record.getMessage() for record in ours)


def test_a_failure_is_logged_again_after_it_had_worked(box: Box, port: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, links.__name__)
    for fault in (StoreUnavailable(), StoreUnavailable(), None, StoreUnavailable()):
        box.fault = fault
        ask(port, "POST", path("unsubscribe", "to@example.net"))
    assert caplog.text.count("are not recorded") == 2


def test_a_stuck_database_makes_no_click_wait(
    box: Box, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """More clicks than there are threads, all answered; those over the limit are not counted."""
    clicks, most = 60, 50
    monkeypatch.setattr(links, "MOST_UNREPORTED", most)
    box.gate.clear()
    with served(box) as port:
        for _ in range(clicks):
            assert ask(port, "GET", path("click", URL)).status == 302
        assert (box.calls, box.reports) == (0, [])
        box.gate.set()
        box.await_calls(most)
    assert caplog.text.count("are not recorded") == 1


def test_a_client_that_hangs_up_is_no_error(box: Box, port: int, caplog: pytest.LogCaptureFixture) -> None:
    with socket.create_connection(("127.0.0.1", port)) as raw:
        raw.sendall(f"GET {path('click', URL)} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    box.await_calls(1)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
