"""The console over a real socket: who is let in, what is shown to whom, and what a stranger's words do there."""

from __future__ import annotations

import hmac
import re
from base64 import b32encode
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import timedelta
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest

from opensend_milter.adapters.admin.console_users import ConsoleUsers
from opensend_milter.adapters.admin.findings import keep
from opensend_milter.adapters.admin.store import AdminStore
from opensend_milter.adapters.postgres.link import connect
from opensend_milter.adapters.postgres.lookup import messages as looked_up, search
from opensend_milter.app.showing import shown
from opensend_milter.config import Config, Console, Database as DatabaseSettings
from opensend_milter.core.errors import ConfigError
from opensend_milter.core.findings import Finding, Result
from opensend_milter.core.model import KeyId
from opensend_milter.core.passwords import verifier_of
from opensend_milter.servers.console.entrance import TABS
from opensend_milter.servers.console.live import MOST_OF_ONE
from tests.integration.console_browser import Browser, Shown, hidden
from tests.integration.console_site import (
    HOSTILE,
    KEYS,
    MESSAGES,
    NAME,
    NOWHERE,
    PASSWORD,
    SECRET_TEXT,
    add_message,
    console,
    seed,
)
from tests.integration.outbox import rows
from tests.integration.private_postgres import Database
from tests.integration.test_domain_verify import Zone, running
from tests.waiting import await_true


@pytest.fixture
def seeded(database: Database) -> Database:
    return seed(database)


@pytest.fixture
def port(seeded: Database) -> Iterator[int]:
    with console(seeded) as found:
        yield found


@pytest.fixture
def ann(port: int) -> Browser:
    """Somebody of this host, who has logged in."""
    browser = Browser(port)
    assert browser.log_in(name=NAME, password=PASSWORD).status == 200
    return browser


def holder(port: int, name: str) -> Browser:
    browser = Browser(port)
    assert browser.log_in(key=f"os_{name}").status == 200
    return browser


def refusal_of(database: Database, name: str) -> str:
    ((found,),) = rows(database, "SELECT id::text FROM opensend_milter.refusals WHERE key_id = %s", KEYS[name][0])
    return str(found)


# ---------------------------------------------------------------------- who is let in


PAGES = ["/", "/messages", f"/messages/{MESSAGES['own']}", *(f"/{tab.path}" for tab in TABS)]
SAYINGS = [f"/messages/{MESSAGES['own']}/{what}" for what in ("text", "html", "raw")]


def test_nothing_is_shown_before_somebody_has_logged_in(port: int) -> None:
    for path in [*PAGES, *SAYINGS]:
        found = Browser(port).get(path)
        assert found.status == 401, path
        assert "Log in" in found.words
        for told in ("example.org", "parcel", SECRET_TEXT, "shop"):
            assert told not in found.text.replace("messages?domain=example.org", ""), path


def test_a_user_logs_in_and_is_led_to_the_page_that_was_asked_for(port: int) -> None:
    browser = Browser(port)
    asked = browser.get(f"/messages/{MESSAGES['own']}")
    found = browser.send(asked, "/login", name=NAME, password=PASSWORD)
    assert (found.status, found.path) == (200, f"/messages/{MESSAGES['own']}")
    assert "a parcel from own" in found.words
    for told in browser.told:
        assert "HttpOnly" in told
        assert "SameSite=strict" in told


@pytest.mark.parametrize("way", ["//evil.example", "https://evil.example/", "/\\evil.example", "javascript:alert(1)"])
def test_nobody_is_led_elsewhere(port: int, way: str) -> None:
    browser = Browser(port)
    found = browser.post(
        "/login", **(hidden(browser.get("/login")) | {"name": NAME, "password": PASSWORD, "next": way})
    )
    assert found.status in {200, 404}


def test_wrong_words_let_nobody_in(port: int) -> None:
    for words in (
        {"name": NAME, "password": "wrong"},
        {"name": NAME, "password": ""},
        {"name": "nobody", "password": PASSWORD},
        {"name": "a\x00b", "password": PASSWORD},
        {"name": NAME.upper(), "password": PASSWORD},
        {"key": "os_nobodys"},
        {"key": KEYS["own"][0]},
        {"key": "x" * 5_000},
        {},
    ):
        browser = Browser(port)
        assert browser.log_in(**words).status == 403, words
        assert browser.get("/messages").status == 401


def test_guessing_ends_for_the_client_and_for_the_name(seeded: Database) -> None:
    """However many addresses guess one name, and however many names one address guesses."""
    with console(seeded, failed_per_minute=1, trusted_proxies="127.0.0.1/32") as port:
        one = Browser(port, {"X-Forwarded-For": "192.0.2.1"})
        statuses = [one.log_in(name=f"guess{number}", password="wrong").status for number in range(3)]
        assert statuses == [403, 429, 429]
        assert one.log_in(name=NAME, password=PASSWORD).status == 429
        found = [
            Browser(port, {"X-Forwarded-For": f"198.51.100.{number}"}).log_in(name="bob", password="wrong").status
            for number in range(3)
        ]
        assert found == [403, 429, 429]
        assert Browser(port, {"X-Forwarded-For": "203.0.113.9"}).log_in(name=NAME, password=PASSWORD).status == 200


def test_a_form_that_this_browser_was_not_shown_does_nothing(port: int, seeded: Database) -> None:
    browser = Browser(port)
    page = browser.get("/login")
    other = Browser(port)
    assert other.send(page, "/login", name=NAME, password=PASSWORD).status == 403
    other.get("/login")
    assert other.send(page, "/login", name=NAME, password=PASSWORD).status == 403
    assert other.post("/login", name=NAME, password=PASSWORD).status == 403
    assert rows(seeded, "SELECT count(*) FROM opensend_milter.console_sessions") == [(0,)]
    assert browser.send(page, "/login", name=NAME, password=PASSWORD).status == 200
    assert browser.post("/logout").status == 403
    assert browser.get("/messages").status == 200


def test_who_is_not_at_this_host_and_not_under_tls_is_asked_for_no_password(port: int) -> None:
    browser = Browser(port, {"Host": "console.example.org"})
    page = browser.get("/login")
    assert "password" not in page.text
    assert "others could read along" in page.words


def test_behind_a_proxy_with_tls_cookies_are_sent_under_tls_only(seeded: Database) -> None:
    with console(seeded, public_url="https://console.example.org") as port:
        browser = Browser(port, {"Host": "console.example.org"})
        assert browser.log_in(name=NAME, password=PASSWORD).status == 200
        assert all("Secure" in told and told.startswith("__Host-") for told in browser.told)


# ---------------------------------------------------------------------- how a session ends


def test_who_logs_out_is_out_at_once(ann: Browser, port: int) -> None:
    stolen = dict(ann.cookies)
    assert ann.send(ann.get("/messages"), "/logout").status == 200
    assert ann.get("/messages").status == 401
    assert Browser(port, cookies=stolen).get("/messages").status == 401


def test_a_session_ends_with_its_user_its_password_and_its_time(ann: Browser, seeded: Database) -> None:
    with seeded.connect() as connection:
        users = ConsoleUsers(connection)
        users.put(NAME, verifier_of("another password", b"pepper"))
        assert ann.get("/messages").status == 401
        assert ann.log_in(name=NAME, password="another password").status == 200
        rows(seeded, "UPDATE opensend_milter.console_sessions SET expires_at = now()")
        assert ann.get("/messages").status == 401
        assert ann.log_in(name=NAME, password="another password").status == 200
        assert [row.sessions for row in users.list_users()] == [1]
        assert users.end_sessions() == 1
        assert ann.get("/messages").status == 401
        assert ann.log_in(name=NAME, password="another password").status == 200
        users.remove(NAME)
    assert ann.get("/messages").status == 401


def test_a_session_ends_with_its_key(port: int, seeded: Database) -> None:
    """When the key is revoked, is over, has another secret, or may not be used from here any more."""
    changes = {
        "own": "INSERT INTO opensend_milter.key_settings (key_id, expires_at) VALUES ('{id}', now())",
        "chief": "INSERT INTO opensend_milter.key_settings (key_id, networks) VALUES ('{id}', '{{192.0.2.0/24}}')",
        "stranger": "DELETE FROM api_keys WHERE id = '{id}'",
    }
    for name, change in changes.items():
        browser = holder(port, name)
        assert browser.get("/messages").status == 200
        with seeded.connect() as connection:
            connection.execute(change.format(id=KEYS[name][0]).encode())
        assert browser.get("/messages").status == 401, name
        assert browser.log_in(key=f"os_{name}").status == 403


def test_another_secret_of_a_key_ends_what_was_begun_with_the_one_before(port: int, seeded: Database) -> None:
    browser = holder(port, "own")
    with seeded.connect() as connection:
        store = AdminStore(connection, makes_users=True)
        store.rotate_key(store.find_key(KeyId(KEYS["own"][0])), timedelta())
    assert browser.get("/messages").status == 401


def test_neither_a_key_nor_a_token_is_in_the_database(ann: Browser, port: int, seeded: Database) -> None:
    tokens = [*ann.cookies.values(), *holder(port, "own").cookies.values(), "os_own", PASSWORD]
    kept = str(rows(seeded, "SELECT s::text FROM opensend_milter.console_sessions s"))
    kept += str(rows(seeded, "SELECT u::text FROM opensend_milter.console_users u"))
    assert [one for one in tokens if one in kept or one.encode().hex() in kept] == []


# ---------------------------------------------------------------------- whom a proxy vouches for


def test_a_name_in_a_field_is_believed_of_a_trusted_proxy_only(seeded: Database) -> None:
    vouched = {"X-Forwarded-User": "bob"}
    with console(seeded, user_header="x-forwarded-user", trusted_proxies="127.0.0.1/32") as port:
        assert Browser(port, vouched).get("/keys").status == 200
        assert Browser(port).get("/keys").status == 401
        assert Browser(port, {"X-Forwarded-User": "  "}).get("/keys").status == 401
    with console(seeded, user_header="x-forwarded-user", trusted_proxies="10.0.0.0/8") as port:
        assert Browser(port, vouched).get("/keys").status == 401
    with console(seeded, trusted_proxies="127.0.0.1/32") as port:
        assert Browser(port, vouched).get("/keys").status == 401


# ---------------------------------------------------------------------- what is shown to whom


def test_a_key_sees_its_own_and_nothing_else(port: int, seeded: Database) -> None:
    """By address, by search and in the list: what is another's is told as what is not there."""
    may_read = {"own": {"own"}, "chief": {"own", "chief"}, "stranger": {"stranger"}}
    for reader, readable in may_read.items():
        browser = holder(port, reader)
        unknown = browser.get(f"/messages/{NOWHERE}")
        assert unknown.status == 404
        for owner, email_id in MESSAGES.items():
            for asked in (email_id, refusal_of(seeded, owner)):
                found = browser.get(f"/messages/{asked}")
                assert found.status == (200 if owner in readable else 404), (reader, owner)
                if owner not in readable:
                    assert found.body == unknown.body
            for asked in (email_id, email_id[:13], f"parcel {owner}", f"refused{owner}"):
                assert (f"messages/{email_id}" in browser.get(f"/messages?q={asked.replace(' ', '+')}").text) <= (
                    owner in readable
                )
        listed = browser.get("/messages").words
        assert {name for name in KEYS if f"parcel from {name}" in listed} == readable
        for tab in TABS:
            expected = 200 if tab.path.startswith("messages") else 404
            assert browser.get(f"/{tab.path}").status == expected, tab.path
        for path in SAYINGS:
            assert browser.get(path).status == 404
    assert rows(seeded, "SELECT count(*) FROM opensend_milter.console_views") == [(0,)]


def test_somebody_of_this_host_sees_every_page(ann: Browser, seeded: Database) -> None:
    for path in PAGES:
        assert ann.get(path).status == 200, path
    listed = ann.get("/messages").words
    assert all(f"parcel from {name}" in listed for name in KEYS)
    assert "example.org" in ann.get("/domains").words
    assert "os_123...wxyz" in ann.get("/keys").words
    suppressed = """INSERT INTO email_suppressions (user_id, email, reason, source_email_id) VALUES
        ('shop', 'to@example.net', 'bounced', %s), ('shop', 'by-hand@example.net', 'manual', NULL)"""
    rows(seeded, suppressed, MESSAGES["own"])
    suppressions = ann.get("/suppressions")
    assert "to@example.net" in suppressions.words
    assert [link for link in suppressions.links if "messages/" in link] == [f"./messages/{MESSAGES['own']}"]
    refused = ann.get(f"/messages/{refusal_of(seeded, 'own')}")
    assert "refused by rule too-large: 552 5.3.4 too large" in refused.words
    assert "Send less, or raise the limit." in refused.words
    now = ann.get("/now").words
    assert "In 0.05/s 3 in the last hour" in now
    assert "Accepted 50.0% 3 refused in the last hour" in now
    assert "too-large 3" in now


def test_what_goes_out_is_told_and_what_does_not(ann: Browser, seeded: Database) -> None:
    """How much, how late, and why it waits; of a message that was to wait, from then on."""
    now = ann.get("/now").words
    assert "Out 0/s 0 in the last hour Accepted" in now
    assert "No worker is connected" in now
    rows(
        seeded,
        """UPDATE emails SET created_at = now() - interval '3 hours', sent_at = now(), scheduled_at = CASE id::text
        WHEN %s THEN now() - interval '2 seconds' WHEN %s THEN now() - interval '4 seconds' END""",
        MESSAGES["own"], MESSAGES["chief"],
    )  # fmt: skip
    rows(
        seeded,
        """INSERT INTO opensend_milter.jobs (email_id, user_id, courier, last_error, not_before, state) VALUES
        (%s, 'shop', 'smtp', '<script>alert(1)</script> connection refused', now() + interval '1 hour', 'waiting'),
        (%s, 'shop', 'smtp', NULL, now() - interval '2 hours', 'waiting')""",
        MESSAGES["own"], MESSAGES["chief"],
    )  # fmt: skip
    rows(
        seeded,
        """WITH event AS (INSERT INTO email_events (type, payload) VALUES ('sent', '{}') RETURNING id),
        webhook AS (INSERT INTO webhooks (url, event_types) VALUES ('https://hooks.example.org', '[]') RETURNING id)
        INSERT INTO webhook_deliveries (webhook_id, event_id, status, attempt)
        SELECT webhook.id, event.id, 'pending', attempt FROM webhook, event, generate_series(0, 2) AS attempt""",
    )
    with console(seeded) as port, connect(seeded.url_for("opensend_worker"), application_name="opensend-worker-1"):
        other = Browser(port)
        other.log_in(name=NAME, password=PASSWORD)
        page = other.get("/now")
        assert_is_only_text(page)
        assert "Out 0.05/s 3 in the last hour" in page.words
        assert "Delay 4 s at most 3 h" in page.words
        assert "Waiting 2 0 uncertain" in page.words
        assert "smtp 1 <script>alert(1)</script> connection refused" in page.words
        assert "shop smtp 2 0 2 h" in page.words
        assert "Webhooks that do not take what they are told: 1" in page.words
        assert "No worker is connected" not in page.words


def test_what_the_doctor_of_each_host_found_is_shown_with_its_age(ann: Browser, seeded: Database) -> None:
    assert "No doctor has looked yet" in ann.get("/now").words
    bad = [
        Finding(
            name=f"part.{result.value}", result=result, seen=f"<b>{result.value}</b>", why="", mend="ls", security=False
        )
        for result in Result
    ]
    with seeded.connect("opensend_worker") as worker:
        for found in (bad, bad[:3]):
            keep(worker, "one.example.org", found)
        keep(worker, "two.example.org", bad)
    rows(seeded, "UPDATE opensend_milter.findings SET checked_at = now() - interval '2 hours' WHERE host LIKE 'two%%'")
    with console(seeded) as port:
        other = Browser(port)
        other.log_in(name=NAME, password=PASSWORD)
        page = other.get("/now")
    assert_is_only_text(page)
    assert re.search(r"one\.example\.org , \S+ m?s ago: 1 good, 0 not looked at", page.words)
    assert "two.example.org , 2 h ago, which is old: does its timer run? 1 good, 1 not looked at" in page.words
    assert re.findall(r"part\.(\w+) \w+ <b>\w+</b> ls Copy (\w+)", page.words) == [
        ("problem", "one"), ("problem", "two"), ("warning", "one"), ("warning", "two")
    ]  # fmt: skip


def test_a_page_is_told_what_is_new_while_its_session_lasts(ann: Browser, port: int, seeded: Database) -> None:
    """Also that there is no more, as soon as it has ended; to a key, and without a session, nothing is told."""
    with ann.hearing("/now/live") as events:
        assert "too-large" in events.next_of("now")
        rows(seeded, "DELETE FROM opensend_milter.console_sessions")
        assert events.rest() == []
    assert ann.get("/now/live").status == 401
    assert holder(port, "own").get("/now/live").status == 404


def test_the_newest_messages_are_told_as_they_come(ann: Browser, port: int, seeded: Database) -> None:
    """To each visitor what he may see, by the filters of his page, and nothing more once his session has ended."""
    key_id, user, _ = KEYS["stranger"]
    own, chief = holder(port, "own"), holder(port, "chief")
    with (
        ann.hearing("/messages/live?status=sent") as heard,
        ann.hearing("/messages/live?status=refused") as refused,
        own.hearing("/messages/live") as heard_by_own,
        chief.hearing("/messages/live") as heard_by_chief,
    ):
        assert "a parcel from own" in (first := heard.next_of("messages"))
        assert "a parcel" not in refused.next_of("messages")
        assert "a parcel from chief" in heard_by_chief.next_of("messages")
        told = heard_by_own.next_of("messages")
        assert "a parcel from own" in told
        assert "a parcel from chief" not in told
        assert "a parcel from stranger" not in told
        add_message(seeded, NOWHERE, key_id, user, HOSTILE["script"])
        told = heard.next_of("messages")
        assert f'data-row="{NOWHERE}"' in told
        assert f'data-row="{NOWHERE}"' not in first
        assert "<script" not in told
        rows(seeded, "DELETE FROM opensend_milter.console_sessions")
        assert heard_by_own.rest() == []
    assert ann.get("/messages/live").status == 401


def test_what_is_looked_for_is_not_live(ann: Browser) -> None:
    """It costs more than the newest do."""
    assert "messages/live" in ann.get("/messages?status=sent").text
    for query in ("q=nothing", "before=1-1"):
        assert "messages/live" not in ann.get(f"/messages?{query}").text
        assert ann.get(f"/messages/live?{query}").status == 400


def test_what_was_not_looked_at_is_a_step_further(
    ann: Browser, seeded: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Step by step all is found, each message once, though they came in one instant."""
    monkeypatch.setattr(looked_up, "REACH", 1)
    monkeypatch.setattr(search, "PAGE", 1)
    monkeypatch.setattr(search, "MORE", 1)
    rows(seeded, "UPDATE emails SET created_at = now()")
    rows(seeded, "UPDATE opensend_milter.refusals SET refused_at = (SELECT max(created_at) FROM emails)")
    way: str | None = "?domain=example.org"
    seen: list[str] = []
    for _ in range(2 * len(MESSAGES) + 2):
        page = ann.get(f"/messages{way}")
        seen += re.findall(r'data-row="([^"]+)"', page.text)
        further = re.search(r'<a href="([^"]*)">Search further back', page.text)
        way = unescape(further[1]) if further else None
        if way is None:
            break
    assert way is None
    refused = [number for number in seen if number.isdigit()]
    assert sorted(set(seen) - set(refused)) == sorted(MESSAGES.values())
    assert len(set(refused)) == len(KEYS)


def test_live_pages_have_places_of_their_own(ann: Browser) -> None:
    """All of one session's together."""
    with ExitStack() as held:
        for what in ("now", "messages") * (MOST_OF_ONE // 2):
            held.enter_context(ann.hearing(f"/{what}/live")).next_of(what)
        assert ann.get("/messages/live").status == 204
        assert ann.get("/now/live").status == 204
        assert ann.get("/messages").status == 200
    await_true(lambda: is_free(ann), "a place is free again")


def is_free(browser: Browser) -> bool:
    with browser.hearing("/now/live") as events:
        return events.status == 200


def test_a_domain_is_shown_as_dns_has_it(seeded: Database) -> None:
    """What is there, what is not, and what a stranger's zone says is text."""
    ((domain_id,),) = rows(seeded, "SELECT id::text FROM domains WHERE name = 'example.org'")
    zone = Zone()
    with running(zone) as server, console(seeded, nameserver=server) as port:
        zone.texts["example.org"] = [["v=spf1 <script>alert(1)</script> -all"]]
        zone.texts["_dmarc.example.org"] = [["v=DMARC1; p=none"]]
        ann = Browser(port)
        ann.log_in(name=NAME, password=PASSWORD)
        page = ann.get(f"/domains/{domain_id}")
        assert page.status == 200
        assert "DMARC _dmarc.example.org" in page.words
        proof = owned_by("shop", "example.org", seeded)
        assert f"OWNERSHIP _opensend-milter.example.org missing no such record {proof}" in page.words
        zone.texts["_opensend-milter.example.org"] = [[proof.partition('"')[2].rstrip('"')]]
        assert "OWNERSHIP _opensend-milter.example.org found opensend-milter=" in ann.get(f"/domains/{domain_id}").words
        assert "v=DMARC1; p=none" in page.words
        assert_is_only_text(page)
        assert ann.get(f"/domains/{NOWHERE}").status == 404
        zone.failing["*"] = "SERVFAIL"
        assert "unknown" in ann.get(f"/domains/{domain_id}").words
        assert holder(port, "own").get(f"/domains/{domain_id}").status == 404


def owned_by(user: str, domain: str, database: Database) -> str:
    """Return the record that proves it, as it always was: made of the secret that the console cannot read."""
    ((secret,),) = rows(database, "SELECT secret FROM opensend_milter.secrets")
    key = hmac.digest(secret, f"opensend-milter:domain:{user}:{domain}".encode(), "sha256")
    token = b32encode(key[:20]).decode().lower()
    return f'_opensend-milter.{domain}. IN TXT "opensend-milter={token}"'


def test_what_came_in_is_drawn_and_told(ann: Browser, seeded: Database) -> None:
    """Of each span; with a table behind the chart, in which what is older is not counted."""
    rows(
        seeded,
        "UPDATE emails SET status = 'bounced', created_at = now() - interval '2 days' WHERE id = %s",
        MESSAGES["own"],
    )
    rows(seeded, "UPDATE emails SET status = 'suppressed' WHERE id = %s", MESSAGES["chief"])
    for span, bounced, bars in (("24h", 0, 24), ("7d", 1, 28), ("30d", 1, 30)):
        page = ann.get(f"/volume?span={span}")
        assert page.status == 200
        told = re.search(r"<desc>([^<]*)</desc>", page.text)
        assert told
        assert told[1] == (
            f"delivered or sent 1, waiting 0, failed, bounced or called spam {bounced}, refused 3, "
            "left out or taken back 1"
        )
        assert page.text.count('<th scope="row">') == bars
    assert ann.get("/volume?span=1y").status == 400


def test_pages_of_a_list_follow_each_other(ann: Browser, seeded: Database) -> None:
    key_id, user, _ = KEYS["own"]
    for number in range(60):
        add_message(seeded, f"01a22a0d-{number:04x}-4d1e-9651-279c9f1ee060", key_id, user, f"number {number}")
    first = ann.get("/messages?status=sent")
    assert len(first.body) < 60_000
    (older,) = [link for link in first.links if "before=" in link]
    second = ann.get(f"/messages{older}")
    seen = [link for page in (first, second) for link in page.links if "messages/01a" in link]
    assert len(seen) == len(set(seen)) == 63
    assert not [link for link in second.links if "before=" in link]


def test_what_is_not_understood_is_said(ann: Browser) -> None:
    for query in ("status=lost", "before=now", "key=own", f"q={'x' * 1_001}", "what=ever"):
        assert ann.get(f"/messages?{query}").status == 400, query


def test_one_that_is_found_is_shown_at_once(ann: Browser) -> None:
    found = ann.get(f"/messages?q={MESSAGES['own'][:13]}")
    assert found.path == f"/messages/{MESSAGES['own']}"


# ---------------------------------------------------------------------- what messages say


def test_who_reads_what_a_message_says_is_put_down(ann: Browser, seeded: Database) -> None:
    assert SECRET_TEXT not in ann.get(f"/messages/{MESSAGES['own']}").text
    text = ann.get(f"/messages/{MESSAGES['own']}/text")
    assert SECRET_TEXT in text.words
    assert "4711" in text.words
    html = ann.get(f"/messages/{MESSAGES['own']}/html")
    assert html.body == b"<p>hello</p>"
    raw = ann.get(f"/messages/{MESSAGES['own']}/raw")
    assert raw.body == b"Subject: hi\r\n\r\n<script>alert(1)</script>\r\n"
    assert raw.headers["content-disposition"].startswith("attachment;")
    assert raw.headers["content-type"] == "application/octet-stream"
    for alone in (html, raw):
        assert alone.headers["content-security-policy"].startswith("sandbox; default-src 'none'")
        assert alone.headers["x-content-type-options"] == "nosniff"
    with seeded.connect() as connection:
        views = ConsoleUsers(connection).views(email_id=None, since=None, limit=10).rows
    assert [(one.viewer, one.email_id, one.what) for one in reversed(views)] == [
        (NAME, MESSAGES["own"], what) for what in ("text", "html", "raw")
    ]


def test_nothing_is_shown_that_cannot_be_put_down(ann: Browser, seeded: Database) -> None:
    with seeded.connect() as connection:
        connection.execute("REVOKE INSERT ON opensend_milter.console_views FROM opensend_console")
    for path in SAYINGS:
        found = ann.get(path)
        assert found.status == 503
        assert SECRET_TEXT not in found.text


def test_html_that_is_too_large_is_not_shown(ann: Browser, seeded: Database) -> None:
    add_message(seeded, NOWHERE, *KEYS["own"][:2], "large", html="é" * 600_000)
    assert ann.get(f"/messages/{NOWHERE}/html").status == 413


def test_what_is_gone_or_was_never_there_is_404(ann: Browser) -> None:
    for asked in (NOWHERE, "nothing", "0", "..%2fkeys", "%00"):
        for what in ("", "/text", "/html", "/raw"):
            assert ann.get(f"/messages/{asked}{what}").status in {404, 503}, (asked, what)


# ---------------------------------------------------------------------- strangers' words


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_strangers_wrote_is_text(ann: Browser, seeded: Database, kind: str) -> None:
    hostile = HOSTILE[kind]
    key_id, user, _ = KEYS["own"]
    add_message(seeded, NOWHERE, key_id, user, hostile)
    rows(seeded, "UPDATE api_keys SET name = %s WHERE id = %s", hostile[:200], key_id)
    rows(seeded, "UPDATE opensend_milter.refusals SET sender = %s, recipients = %s", hostile[:900], [hostile[:900]])
    rows(seeded, 'UPDATE emails SET "from" = %s, headers = jsonb_build_object(%s::text, %s::text) WHERE id = %s',
         hostile[:250], hostile[:900], hostile, NOWHERE)  # fmt: skip
    rows(seeded, "UPDATE opensend_milter.submissions SET message_id = %s, recipients = %s WHERE email_id = %s",
         hostile[:900], [hostile[:900]], NOWHERE)  # fmt: skip
    pages = [
        ann.get(path)
        for path in (
            "/messages",
            "/messages?status=refused",
            f"/messages/{NOWHERE}",
            f"/messages/{NOWHERE}/text",
            f"/messages/{refusal_of(seeded, 'own')}",
            "/keys",
        )
    ]
    for page in pages:
        assert page.status == 200
        assert_is_only_text(page)
        assert len(page.body) < 60_000 or kind == "long"


def assert_is_only_text(page: Shown) -> None:
    """No element, attribute, script or address of a stranger is in the page, and nothing that turns a line around."""

    class Looking(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag not in {"svg", "style", "iframe", "object"}
            for name, value in attrs:
                assert not name.startswith("on"), page.path
                assert name != "style"
                if name in {"href", "src", "action"}:
                    assert not (value or "").lower().startswith(("javascript:", "data:", "http:", "https:", "//"))
                if tag == "script":
                    assert (name, value) == ("defer", None) or name == "src"

    Looking().feed(page.text)
    assert "alert(1)</script>" not in page.text
    assert not set(page.text) & set("\u202a\u202b\u202d\u202e\u2066\u2067\u2068\x00\x1b")


def test_every_answer_has_a_policy(ann: Browser, port: int) -> None:
    """Pages, files, errors, and what is led on: nothing of elsewhere, nothing inline, in no frame."""
    page = ann.get("/messages")
    files = [link for link in (*page.links, *sources(page)) if "files/" in link]
    found = [
        *(ann.get(path, follow=False) for path in (*PAGES, *SAYINGS, "/nothing", "/messages?what=ever", "/login")),
        *(Browser(port).get(path, follow=False) for path in (*PAGES, "/nothing", "/login")),
        *(ann.get("/" + link) for link in files),
        ann.post("/messages"),
        ann.post("/logout"),
        ann.post("/login", name="x" * 20_000),
    ]
    assert len(files) >= 2
    for one in found:
        policy = one.headers["content-security-policy"]
        assert "default-src 'none'" in policy, one.path
        assert "unsafe" not in policy
        assert one.headers["x-content-type-options"] == "nosniff"
        if "files/" not in one.path:
            assert "frame-ancestors 'none'" in policy, one.path
            assert one.headers["referrer-policy"] == "no-referrer"
            assert one.headers["cache-control"] == "no-store"


def sources(page: Shown) -> list[str]:
    return [one.removeprefix("./") for one in re.findall(r'(?:src|href)="([^"]*files/[^"]*)"', page.text)]


def test_an_outage_of_the_database_is_told_as_one(ann: Browser, seeded: Database) -> None:
    seeded.cluster.stop()
    try:
        assert ann.get("/messages").status == 503
        assert ann.get("/login").status == 200
    finally:
        seeded.cluster.start()
    assert ann.get("/messages").status == 200


def test_a_role_that_is_not_there_is_said_at_the_start(seeded: Database, tmp_path: Path) -> None:
    config = Config(database=DatabaseSettings(url=seeded.url, password_dir=tmp_path), console=Console(port=1))
    with pytest.raises(ConfigError, match="opensend_console"), shown(config):
        pass
