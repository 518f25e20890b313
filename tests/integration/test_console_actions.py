"""Acting from the console: what is said before, what is done then, who is put down for it, and who may not."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from html import unescape
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import pytest

from opensend_milter.adapters.admin.console_users import ConsoleUsers
from opensend_milter.adapters.admin.store import AdminStore
from opensend_milter.adapters.schema import migrations
from opensend_milter.core.actions import WORDS, Act
from opensend_milter.core.model import Lane, UserId
from opensend_milter.servers.console.forms import token_of
from tests.integration.console_browser import Browser, Shown
from tests.integration.console_site import (
    HOSTILE,
    KEYS,
    MESSAGES,
    NAME,
    NOWHERE,
    PASSWORD,
    add_message,
    console,
    seed,
)
from tests.integration.emptied_database import Databases
from tests.integration.outbox import job_store, rows
from tests.integration.private_postgres import Cluster, Database
from tests.integration.test_console import assert_is_only_text, refusal_of

State = Literal["sent", "failed", "dropped", "waiting", "scheduled", "uncertain", "in hand"]
OWN = MESSAGES["own"]
USER = KEYS["own"][1]
RECIPIENT = "to@example.net"
SUPPRESS = f"/messages/{OWN}/suppress?address={RECIPIENT}"
TABLES = (
    "emails", "email_events", "email_suppressions", "webhook_deliveries", "opensend_milter.jobs",
    "opensend_milter.submissions", "opensend_milter.recipient_results", "opensend_milter.console_actions",
)  # fmt: skip


@pytest.fixture(scope="module")
def acting(_shared_cluster: Cluster, _template: Path) -> Iterator[Databases]:
    """Databases as `db init` leaves them where the console may act."""
    migrations.init(_shared_cluster.new_database("template_acting"), _template, actions=True)
    with closing(Databases(_shared_cluster, "template_acting", prefix="acting")) as databases:
        yield databases
    _shared_cluster.drop_database("template_acting")


@pytest.fixture
def seeded(_shared_cluster: Cluster, _template: Path, acting: Databases) -> Iterator[Database]:
    name, way_in = acting.take()
    database = seed(Database(name, _shared_cluster, _template, way_in))
    rows(
        database,
        """UPDATE opensend_milter.submissions s SET size_bytes = length(c.whole), sha256 = sha256(c.whole) FROM (
            SELECT email_id, string_agg(bytes, '' ORDER BY chunk_no) AS whole
            FROM opensend_milter.raw_chunks GROUP BY 1) c
        WHERE c.email_id = s.email_id""",
    )
    yield database
    acting.give_back(name)


@pytest.fixture
def port(seeded: Database) -> Iterator[int]:
    with console(seeded, actions=True) as found:
        yield found


@pytest.fixture
def ann(port: int) -> Browser:
    return in_as_ann(port)


def in_as_ann(port: int) -> Browser:
    browser = Browser(port)
    assert browser.log_in(name=NAME, password=PASSWORD).status == 200
    return browser


def stand(database: Database, state: State) -> None:
    """Have the message stand so."""
    rows(database, "DELETE FROM opensend_milter.jobs")
    status = {"dropped": "failed", "waiting": "queued", "uncertain": "processing", "in hand": "processing"}
    rows(database, "UPDATE emails SET status = %s WHERE id = %s", status.get(state, state), OWN)
    if state == "dropped":
        rows(database, "UPDATE opensend_milter.submissions SET raw_dropped_at = now() WHERE email_id = %s", OWN)
    begun = {"waiting": "waiting", "scheduled": "waiting", "uncertain": "uncertain", "in hand": "attempting"}
    if state in begun:
        rows(
            database,
            """INSERT INTO opensend_milter.jobs
            (email_id, user_id, state, attempts, not_before, uncertain_at, lease_until)
            VALUES (%s, %s, %s, 1, now() + interval '1 hour', now(), now() + interval '1 hour')""",
            OWN, USER, begun[state],
        )  # fmt: skip


def fields(page: Shown) -> dict[str, str]:
    """Return what the form of the page itself says: the first is the one to log out."""
    form = page.text.partition("<main")[2]
    found = re.findall(r'<input type="hidden" name="([^"]*)" value="([^"]*)">', form)
    return {name: unescape(value) for name, value in found}


def confirmed(browser: Browser, path: str) -> Shown:
    """Open a page that asks, and send what it has."""
    return browser.post(path, **fields(browser.get(path)))


def everything(database: Database) -> list[list[tuple[object, ...]]]:
    return [rows(database, f"SELECT t::text FROM {table} t ORDER BY 1") for table in TABLES]  # noqa: S608  # ours


def taken(database: Database) -> list[tuple[object, ...]]:
    return rows(
        database,
        "SELECT actor, action, email_id::text, address, outcome FROM opensend_milter.console_actions ORDER BY id",
    )


def stands(database: Database) -> tuple[object, ...]:
    (found,) = rows(
        database,
        """SELECT e.status, j.state, j.not_before <= now() FROM emails e
        LEFT JOIN opensend_milter.jobs j ON j.email_id = e.id WHERE e.id = %s""",
        OWN,
    )
    return found


# ---------------------------------------------------------------------- what is said, and done


@pytest.mark.parametrize("state", ["failed", "waiting", "uncertain"])
def test_trying_again_is_what_the_page_said(
    ann: Browser, seeded: Database, state: Literal["failed", "waiting", "uncertain"]
) -> None:
    """A worker takes it up."""
    stand(seeded, state)
    assert f"../messages/{OWN}/retry" in ann.get(f"/messages/{OWN}").links
    assert WORDS["retry", state] in ann.get(f"/messages/{OWN}/retry").words
    after = confirmed(ann, f"/messages/{OWN}/retry")
    assert after.path.startswith(f"/messages/{OWN}")
    assert f"{NAME} retry done" in after.words
    assert stands(seeded) == ("queued", "waiting", True)
    assert taken(seeded) == [(NAME, "retry", OWN, None, "done")]
    store = job_store(seeded)
    job = store.claim_due(Lane(UserId(USER), None))
    store.close()
    assert job
    assert job.email_id == OWN


@pytest.mark.parametrize("state", ["waiting", "scheduled"])
def test_what_is_taken_back_is_not_sent(ann: Browser, seeded: Database, state: State) -> None:
    stand(seeded, state)
    page = ann.get(f"/messages/{OWN}/cancel")
    assert WORDS["cancel", "waiting"] in page.words
    assert f"{NAME} cancel done" in confirmed(ann, f"/messages/{OWN}/cancel").words
    assert stands(seeded) == ("canceled", None, None)
    assert taken(seeded) == [(NAME, "cancel", OWN, None, "done")]


def test_a_recipient_is_suppressed_for_the_user_of_the_message(ann: Browser, seeded: Database) -> None:
    shown = ann.get(f"/messages/{OWN}")
    assert [link for link in shown.links if "suppress?" in link] == [
        f"../messages/{OWN}/suppress?address={RECIPIENT.replace('@', '%40')}"
    ]
    assert "until opensend-milter suppression remove takes the address off" in ann.get(SUPPRESS).words
    assert f"{NAME} suppress {RECIPIENT} done" in confirmed(ann, SUPPRESS).words
    listed = rows(seeded, "SELECT user_id, email, reason FROM email_suppressions")
    assert listed == [(USER, RECIPIENT, "manual")]
    assert taken(seeded) == [(NAME, "suppress", OWN, RECIPIENT, "done")]
    assert "suppress?" not in ann.get(f"/messages/{OWN}").text
    assert WORDS["suppress", "suppressed"] in ann.get(SUPPRESS).words


def test_what_cannot_be_done_is_said_in_the_words_of_the_command(ann: Browser, seeded: Database) -> None:
    cases: tuple[tuple[State, Act, str], ...] = (
        ("sent", "retry", "it is sent"),
        ("dropped", "retry", "it is failed, and its bytes are not kept any more"),
        ("in hand", "retry", "a worker has it in hand just now"),
        ("sent", "cancel", "it is sent"),
        ("failed", "cancel", "it is failed"),
        ("in hand", "cancel", "a worker has it in hand just now"),
        ("uncertain", "cancel", "its outcome is unknown"),
    )
    for state, act, why in cases:
        stand(seeded, state)
        page = ann.get(f"/messages/{OWN}/{act}")
        assert f"This cannot be done: {why}" in page.words, (state, act)
        assert fields(page) == {}


def test_what_has_changed_since_the_page_was_shown_is_said(ann: Browser, seeded: Database) -> None:
    stand(seeded, "waiting")
    page = ann.get(f"/messages/{OWN}/cancel")
    stand(seeded, "sent")
    after = ann.post(f"/messages/{OWN}/cancel", **fields(page))
    assert f"{NAME} cancel it is sent" in after.words
    assert stands(seeded) == ("sent", None, None)
    assert taken(seeded) == [(NAME, "cancel", OWN, None, "it is sent")]


def test_looking_changes_nothing(ann: Browser, seeded: Database) -> None:
    states: tuple[State, ...] = ("sent", "failed", "waiting", "scheduled", "uncertain", "in hand")
    for state in states:
        stand(seeded, state)
        before = everything(seeded)
        for path in (f"/messages/{OWN}", f"/messages/{OWN}/retry", f"/messages/{OWN}/cancel", SUPPRESS):
            assert ann.get(path).status == 200
        assert everything(seeded) == before, state


def test_who_did_what_is_put_down(ann: Browser, seeded: Database, caplog: pytest.LogCaptureFixture) -> None:
    """In the database, with from where; in the log, without the recipient."""
    stand(seeded, "failed")
    with caplog.at_level(logging.INFO, "opensend_milter.mail"):
        confirmed(ann, f"/messages/{OWN}/retry")
        confirmed(ann, SUPPRESS)
    lines = [record.getMessage() for record in caplog.records if "action=" in record.getMessage()]
    assert len(lines) == 2
    for line, act in zip(lines, ("retry", "suppress"), strict=True):
        assert re.search(rf'email={OWN} action={act} by="{NAME}" client=127.0.0.1 status=done', line), line
        assert RECIPIENT not in line
    with seeded.connect() as connection:
        found = ConsoleUsers(connection).actions(email_id=None, since=None, limit=10).rows
    assert [(one.actor, one.client_address, one.action, one.address) for one in found] == [
        (NAME, "127.0.0.1", "suppress", RECIPIENT),
        (NAME, "127.0.0.1", "retry", None),
    ]


def test_what_cannot_be_put_down_is_not_done(ann: Browser, seeded: Database) -> None:
    stand(seeded, "failed")
    page = ann.get(f"/messages/{OWN}/retry")
    rows(seeded, "REVOKE INSERT ON opensend_milter.console_actions FROM opensend_console_actor")
    assert ann.post(f"/messages/{OWN}/retry", **fields(page)).status == 503
    assert stands(seeded) == ("failed", None, None)


# ---------------------------------------------------------------------- what is not taken


def test_a_form_that_was_not_made_for_this_does_nothing(ann: Browser, port: int, seeded: Database) -> None:
    """Nor for this message, this browser, this time; and one without a token."""
    stand(seeded, "failed")
    path = f"/messages/{OWN}/retry"
    good = fields(ann.get(path))
    rows(seeded, "UPDATE emails SET status = 'failed'")
    other = fields(ann.get(f"/messages/{MESSAGES['chief']}/retry"))
    another = fields(in_as_ann(port).get(path))
    (session,) = [value for name, value in ann.cookies.items() if name == "console"]
    past = good | {"until": "1000000000"}
    past["token"] = token_of(session, f"retry\n{OWN}\n\n{NAME}\n{good['form']}\n{past['until']}")
    before = everything(seeded)
    for name, sent in {
        "nothing": {},
        "no token": good | {"token": ""},
        "made up": good | {"token": "0" * 64},
        "of logging out": good | {"token": token_of(session)},
        "of another message": other,
        "of another session": another,
        "of another time": good | {"until": "9999999999"},
        "another form": good | {"form": "00000000-0000-4000-8000-000000000000"},
        "old": past,
    }.items():
        assert ann.post(path, **sent).status == 403, name
    assert ann.post(f"/messages/{OWN}/cancel", **good).status == 403
    assert ann.post(SUPPRESS, **good | {"address": RECIPIENT}).status == 403
    assert ann.post(path, **good | {"address": RECIPIENT}).status == 404
    assert everything(seeded) == before
    assert ann.post(path, **good).status == 200
    assert stands(seeded) == ("queued", "waiting", True)


def test_who_is_not_there_any_more_does_nothing(ann: Browser, seeded: Database) -> None:
    """Who has logged out in between, or may look no more; and what was shown before is no good afterwards."""
    path = f"/messages/{OWN}/retry"

    def logs_out() -> None:
        assert ann.send(ann.get("/messages"), "/logout").status == 200

    def is_removed() -> None:
        with seeded.connect() as connection:
            assert ConsoleUsers(connection).end_sessions(user=NAME)

    stand(seeded, "failed")
    ways: tuple[Callable[[], None], ...] = (logs_out, is_removed)
    for leaves in ways:
        before = everything(seeded)
        form = fields(ann.get(path))
        leaves()
        assert ann.post(path, **form).status == 401
        assert ann.log_in(name=NAME, password=PASSWORD).status == 200
        assert ann.post(path, **form).status == 403
        assert everything(seeded) == before


def test_two_clicks_do_it_once(ann: Browser, seeded: Database) -> None:
    """Above all where a second time would send a message again."""
    stand(seeded, "uncertain")
    path = f"/messages/{OWN}/retry"
    form = fields(ann.get(path))
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: Browser(ann.port, cookies=dict(ann.cookies)).post(path, **form), range(2)))
    assert [one.status for one in found] == [200, 200]
    assert len(taken(seeded)) == 1
    stand(seeded, "uncertain")
    again = ann.post(path, **form)
    assert again.path.startswith(f"/messages/{OWN}")
    assert stands(seeded)[1] == "uncertain"
    assert len(taken(seeded)) == 1


def test_only_a_recipient_of_the_message_can_be_suppressed(ann: Browser, seeded: Database) -> None:
    form = fields(ann.get(SUPPRESS))
    path = f"/messages/{OWN}/suppress"
    for address in ("other@example.net", "", "to@example.net "):
        assert ann.get(f"{path}?address={quote(address)}").status == 404
        assert ann.post(path, **form | {"address": address}).status == 404
    assert rows(seeded, "SELECT * FROM email_suppressions") == []


def test_the_holder_of_a_key_finds_nothing_of_it(port: int, seeded: Database) -> None:
    stand(seeded, "failed")
    holder = Browser(port)
    assert holder.log_in(key="os_own").status == 200
    page = holder.get(f"/messages/{OWN}")
    assert page.status == 200
    assert not [link for link in page.links if re.search(r"/(retry|cancel|suppress)", link)]
    before = everything(seeded)
    for path in (f"/messages/{OWN}/retry", f"/messages/{OWN}/cancel", SUPPRESS):
        assert holder.get(path).status == 404
        assert holder.post(path).status == 404
        assert Browser(port).get(path).status == 401
        assert Browser(port).post(path).status == 401
    confirmed(in_as_ann(port), f"/messages/{OWN}/retry")
    assert NAME not in holder.get(f"/messages/{OWN}").words
    assert everything(seeded) != before


def test_what_is_not_there_cannot_be_acted_on(ann: Browser, seeded: Database) -> None:
    for asked in (NOWHERE, refusal_of(seeded, "own"), "nothing"):
        for act in ("retry", "cancel", f"suppress?address={RECIPIENT}"):
            assert ann.get(f"/messages/{asked}/{act}").status == 404


def test_switched_off_there_is_nothing_of_it(database: Database) -> None:
    """Neither where it was never on, nor where the rights are left of another time."""
    stand(seed(database), "failed")
    for actions in (False, True):
        migrations.init(database.url, database.password_dir, actions=actions)
        with console(database) as port:
            ann = in_as_ann(port)
            assert "/retry" not in ann.get(f"/messages/{OWN}").text
            for path in (f"/messages/{OWN}/retry", f"/messages/{OWN}/cancel", SUPPRESS):
                assert ann.get(path).status == 404
                assert ann.post(path).status == 404


def test_without_the_rights_nothing_is_done(database: Database) -> None:
    stand(seed(database), "failed")
    with console(database, actions=True) as port:
        before = everything(database)
        for path in (f"/messages/{OWN}/retry", SUPPRESS):
            assert in_as_ann(port).get(path).status == 503
        assert everything(database) == before


def test_whom_a_proxy_vouches_for_acts_under_that_name(seeded: Database) -> None:
    stand(seeded, "failed")
    path = f"/messages/{OWN}/retry"
    with console(seeded, actions=True, user_header="x-forwarded-user", trusted_proxies="127.0.0.1/32") as port:
        bob, eve = (Browser(port, {"X-Forwarded-User": name}) for name in ("bob", "eve"))
        form = fields(bob.get(path))
        eve.get(path)
        assert eve.post(path, **form).status == 403
        assert Browser(port, {"X-Forwarded-User": "bob"}).post(path, **form).status == 403
        assert Browser(port, {"X-Forwarded-User": "eve"}, cookies=dict(bob.cookies)).post(path, **form).status == 403
        assert taken(seeded) == []
        assert bob.post(path, **form).status == 200
    assert taken(seeded) == [("bob", "retry", OWN, None, "done")]


def test_beside_opensend_recipients_are_suppressed_and_that_is_all(beside: Database) -> None:
    migrations.migrate(beside.url, beside.password_dir, actions=True)
    seed(beside)
    with console(beside, actions=True, profile="opensend") as port:
        ann = in_as_ann(port)
        for act in ("retry", "cancel"):
            assert ann.get(f"/messages/{OWN}/{act}").status == 404
        confirmed(ann, SUPPRESS)
    assert rows(beside, "SELECT email, reason FROM email_suppressions") == [(RECIPIENT, "manual")]


def test_what_it_does_is_what_the_command_does(ann: Browser, seeded: Database) -> None:
    """An address that is spelled oddly is compared as the command would have it."""
    odd = "Straße@example.net"
    rows(seeded, "UPDATE opensend_milter.submissions SET recipients = %s WHERE email_id = %s", [odd], OWN)
    page = ann.get(f"/messages/{OWN}")
    (link,) = [one for one in page.links if "suppress?" in one]
    confirmed(ann, link.removeprefix(".."))
    by_console = rows(seeded, "SELECT user_id, email, reason FROM email_suppressions")
    spelled = rows(seeded, "SELECT * FROM opensend_milter.odd_spellings")
    rows(seeded, "DELETE FROM email_suppressions")
    rows(seeded, "DELETE FROM opensend_milter.odd_spellings")
    with seeded.connect() as connection:
        AdminStore(connection, makes_users=True).add_suppression(UserId(USER), odd, "manual")
    assert rows(seeded, "SELECT user_id, email, reason FROM email_suppressions") == by_console
    assert rows(seeded, "SELECT * FROM opensend_milter.odd_spellings") == spelled


# ---------------------------------------------------------------------- strangers' words


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_strangers_wrote_is_text_where_it_is_asked(ann: Browser, seeded: Database, kind: str) -> None:
    hostile = HOSTILE[kind][:900]
    key_id, user, _ = KEYS["own"]
    add_message(seeded, NOWHERE, key_id, user, HOSTILE[kind])
    rows(seeded, "UPDATE opensend_milter.submissions SET recipients = %s WHERE email_id = %s", [hostile], NOWHERE)
    rows(
        seeded,
        """INSERT INTO opensend_milter.console_actions (actor, client_address, action, email_id, address, outcome, form)
        VALUES (%s, '::1', 'retry', %s, %s, %s, gen_random_uuid())""",
        hostile, NOWHERE, hostile, hostile,
    )  # fmt: skip
    page = ann.get(f"/messages/{NOWHERE}")
    links = [one for one in page.links if "suppress?" in one]
    assert len(links) == 1
    for shown in (page, ann.get(f"/messages/{NOWHERE}/retry"), ann.get(links[0].removeprefix(".."))):
        assert shown.status == 200
        assert_is_only_text(shown)
