"""What is decided about a message beyond its key and domain: sent again, sent later, suppressed, marked."""

from __future__ import annotations

import base64
import json
import re
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from opensend_milter.adapters.admin.rows import KeyChanges
from opensend_milter.adapters.admin.store import AdminStore
from opensend_milter.adapters.postgres.intake import SQL, Habits, PostgresIntakeStore
from opensend_milter.adapters.postgres.link import connect
from opensend_milter.core.couriers import Carries
from opensend_milter.core.errors import AlreadyStored
from opensend_milter.core.intake import Gatherer, Intake
from opensend_milter.core.model import (
    Address,
    Facts,
    KeyId,
    Limits,
    Message,
    OnSuppressed,
    Outcome,
    Question,
    Refuse,
    Settlement,
)
from opensend_milter.core.policy import Policy
from opensend_milter.core.rules import Rule
from tests.integration.private_postgres import Cluster, Database
from tests.integration.serving import Account, Serving, add_key, serving
from tests.integration.working import working
from tests.milter_client import Answer, MilterClient
from tests.smtp_sink import Sink
from tests.unit.messages import decide, message
from tests.waiting import await_found, await_true, patience_s

TAKEN = Answer("d")
TRY_AGAIN = 451
WINDOW_S = 3_600
ROUNDS = 20
SESSIONS = 12


@pytest.fixture(scope="module")
def served(_shared_cluster: Cluster, _template: Path) -> Iterator[Serving]:
    """One milter by itself for all tests of this module."""
    _shared_cluster.new_database("rules", template="template_opensend")
    with serving(_shared_cluster.url("rules"), _template, policy={"duplicate_window_s": WINDOW_S}) as running:
        yield running
    _shared_cluster.drop_database("rules")


@pytest.fixture(scope="module")
def served_beside(_shared_cluster: Cluster, _beside_template: Path) -> Iterator[Serving]:
    """One milter beside OpenSend, that leaves suppressed recipients out and takes no message for a repetition."""
    url = _shared_cluster.new_database("rules_beside", template="template_beside")
    policy: dict[str, object] = {"on_suppressed": "drop-recipient", "duplicate_window_s": 0}
    with serving(url, _beside_template, profile="opensend", policy=policy) as running:
        yield running
    _shared_cluster.drop_database("rules_beside")


@pytest.fixture
def account(served: Serving) -> Account:
    """Make a user of this test's own, by itself."""
    return served.account()


@pytest.fixture
def neighbour(served_beside: Serving) -> Account:
    """Make a user of this test's own, beside OpenSend."""
    return served_beside.account()


def mail(*fields: str, text: str = "hello", subject: str = "hi", sender: str = "App <app@example.org>") -> bytes:
    """Make a message with these header fields."""
    head = "".join(f"{field}\r\n" for field in fields)
    return f"From: {sender}\r\nTo: to@example.net\r\n{head}Subject: {subject}\r\n\r\n{text}\r\n".encode()


NAMED = mail("Message-ID: <1@app>")
KEYED = mail("Idempotency-Key: order-1")


def of(account: Account, column: str) -> list[object]:
    """Return one column of this user's emails, oldest first."""
    return [value for (value,) in account.rows(f"SELECT {column} FROM emails WHERE user_id = %s ORDER BY created_at")]  # noqa: S608


def repeats(account: Account) -> list[object]:
    """Return how often each message of this user came again, oldest first."""
    query = "SELECT repeats FROM opensend_milter.submissions WHERE user_id = %s ORDER BY received_at"
    return [count for (count,) in account.rows(query)]


def refusal(account: Account) -> tuple[object, ...]:
    """Return rule, code and user of the newest record of this user's key."""
    query = "SELECT rule, code, user_id FROM opensend_milter.refusals WHERE key_id = %s ORDER BY id DESC LIMIT 1"
    return account.served.rows(query, account.key)[0]


def assert_refused(answer: Answer, start: str) -> None:
    assert (answer.command, answer.text[: len(start)]) == ("y", start), answer


def logged(served: Serving, queue_id: str) -> list[tuple[str, str]]:
    """Return email id and status of each line in the mail log, as soon as there is one."""
    line = re.compile(rf" {queue_id}: email=(\S+) .* status=(\S+) ")
    return await_found(lambda: line.findall(served.log) or None, f"a line about {queue_id}")


# ---------------------------------------------------------------------- sent again: Message-ID


@pytest.mark.case(64)
def test_a_message_sent_again_is_taken_and_stored_once(account: Account) -> None:
    assert account.send(NAMED, queue_id="4Xfirst") == TAKEN
    for number in (1, 2):
        again = NAMED.replace(b"From:", b"Date: Mon, 1 Jan 2026 00:00:0%d +0000\r\nFrom:" % number)
        assert account.send(again, queue_id=f"4Xagain{number}") == TAKEN
    (email_id,) = account.emails()
    assert logged(account.served, "4Xfirst") == [(email_id, "accepted")]
    assert logged(account.served, "4Xagain2") == [(email_id, "repeated")]
    assert account.rows(
        "SELECT s.repeats, s.repeated_at > s.received_at, (SELECT count(*) FROM opensend_milter.jobs j"
        " WHERE j.email_id = s.email_id), (SELECT count(*) FROM opensend_milter.raw_chunks c"
        " WHERE c.email_id = s.email_id) FROM opensend_milter.submissions s WHERE user_id = %s"
    ) == [(2, True, 1, 1)]
    assert account.rows("SELECT * FROM opensend_milter.refusals WHERE user_id = %s") == []


@pytest.mark.case(64)
def test_the_order_of_recipients_means_nothing(account: Account) -> None:
    for recipients in (("a@example.net", "b@example.net"), ("b@example.net", "a@example.net")):
        assert account.send(NAMED, *recipients) == TAKEN
    assert repeats(account) == [1]


@pytest.mark.case(64)
@pytest.mark.parametrize(
    "other",
    [
        mail("Message-ID: <2@app>"),
        mail("Message-ID: <1@app>", text="Hello"),
        mail("Message-ID: <1@app>", subject="Hi"),
        mail("Message-ID: <1@app>", sender="other@example.org"),
        mail("Message-ID: <1@app>", "Content-Type: text/html"),
        mail("Message-ID: <1@app>", "Content-Type: image/png"),
        mail("Message-ID: <1@app>", "Idempotency-Key: order-1"),
    ],
)
def test_another_message_is_stored(account: Account, other: bytes) -> None:
    assert account.send(NAMED) == TAKEN
    assert account.send(other) == TAKEN
    assert repeats(account) == [0, 0]


@pytest.mark.case(64)
def test_another_recipient_sender_or_key_is_another_message(account: Account) -> None:
    assert account.send(NAMED) == TAKEN
    assert account.send(NAMED, "other@example.net") == TAKEN
    assert account.send(NAMED, "to@example.net", "other@example.net") == TAKEN
    assert account.send(NAMED, key=add_key(account.served, account.user_id)) == TAKEN
    assert account.served.account().send(NAMED) == TAKEN
    with account.served.client() as client:
        client.mail("<other@example.test>", auth=account.key)
        client.rcpt("<to@example.net>")
        for name in (b"From: app@example.org", b"Message-ID: <1@app>"):
            client.header(*name.split(b":"))
        assert client.end() == TAKEN
    assert repeats(account) == [0] * 5


@pytest.mark.parametrize("fields", [[], ["Message-ID:"], ["Message-ID: \t"]])
def test_a_message_without_a_name_is_never_a_repetition(account: Account, fields: list[str]) -> None:
    for _ in range(2):
        assert account.send(mail(*fields)) == TAKEN
    assert repeats(account) == [0, 0]


def test_a_window_of_zero_takes_nothing_for_a_repetition(neighbour: Account) -> None:
    for _ in range(2):
        assert neighbour.send(NAMED) == TAKEN
    assert repeats(neighbour) == [0, 0]
    assert neighbour.served.rows("SELECT * FROM opensend_milter.fingerprints") == []
    for _ in range(2):
        assert neighbour.send(KEYED) == TAKEN
    assert repeats(neighbour) == [0, 0, 1], "an Idempotency-Key is its own window"


@pytest.mark.case(64)
def test_after_the_window_the_name_begins_anew(account: Account) -> None:
    assert account.send(NAMED) == TAKEN
    ages = "UPDATE opensend_milter.fingerprints f SET received_at = now() - make_interval(secs => %s)"
    ages += " FROM opensend_milter.submissions s WHERE s.email_id = f.email_id AND s.user_id = %s"
    account.served.rows(ages, WINDOW_S - 30, account.user_id)
    assert account.send(NAMED) == TAKEN
    assert repeats(account) == [1], "still within"
    account.served.rows(ages, WINDOW_S + 1, account.user_id)
    for _ in range(2):
        assert account.send(NAMED) == TAKEN
    assert repeats(account) == [1, 1]


@pytest.mark.case(64)
@pytest.mark.parametrize(
    ("status", "again"),
    [
        *[(status, True) for status in ("failed", "canceled", "cancelled", "gone")],
        *[(status, False) for status in ("scheduled", "processing", "sent", "bounced")],
    ],
)
def test_what_was_given_up_is_stored_anew(account: Account, status: str, again: bool) -> None:  # noqa: FBT001
    assert account.send(NAMED) == TAKEN
    account.served.rows("UPDATE emails SET status = %s, sent_at = now() WHERE user_id = %s", status, account.user_id)
    account.rows("DELETE FROM emails WHERE user_id = %s AND status = 'gone'")
    assert account.send(NAMED) == TAKEN
    assert repeats(account) == ([0, 0] if again else [1])
    assert account.send(NAMED) == TAKEN
    assert repeats(account) == ([0, 1] if again else [2]), "its name works again"


LARGE = base64.encodebytes(bytes(range(256)) * 12_000).replace(b"\n", b"\r\n")
NAMES = [f"attachment-{n}.png" for n in (1, 2, 3)]


def with_attachments(boundary: bytes) -> bytes:
    """Make a message with a large one, an empty one and one that is not base64 yet."""
    part = b"--%s\r\nContent-Type: image/png\r\nContent-Transfer-Encoding: %s\r\n\r\n%s\r\n"
    head = b"Message-ID: <1@app>\r\nContent-Type: multipart/mixed; boundary=%s\r\nFrom: a@example.org\r\n\r\n"
    parts = ((b"base64", LARGE.removesuffix(b"\r\n")), (b"7bit", b""), (b"7bit", b"x" * 300))
    return head % boundary + b"".join(part % (boundary, *one) for one in parts) + b"--%s--\r\n" % boundary


def test_a_large_message_is_known_again(account: Account) -> None:
    """By itself: its row names the attachments, and what is in them stands in the raw bytes alone."""
    assert account.send(with_attachments(b"b")) == account.send(with_attachments(b"other")) == TAKEN
    assert repeats(account) == [1]
    assert of(account, "attachments") == [[{"filename": name, "content_type": "image/png"} for name in NAMES]]
    raw = """SELECT string_agg(c.bytes, NULL ORDER BY c.chunk_no) FROM opensend_milter.raw_chunks c
        JOIN emails e ON e.id = c.email_id WHERE e.user_id = %s"""
    assert account.rows(raw) == [(with_attachments(b"b"),)]


def test_a_large_message_beside_opensend_is_stored_in_pieces(neighbour: Account) -> None:
    assert neighbour.send(with_attachments(b"b")) == TAKEN
    (attachments,) = of(neighbour, "attachments")
    assert isinstance(attachments, list)
    expected = [LARGE, b"", base64.encodebytes(b"x" * 300).replace(b"\n", b"\r\n")]
    assert [attachment["content"].encode() for attachment in attachments] == expected
    assert [attachment["filename"] for attachment in attachments] == NAMES
    assert neighbour.served.rows("SELECT * FROM opensend_milter.pieces") == []


# ---------------------------------------------------------------------- sent again: Idempotency-Key


def built(number: int, *fields: str, text: str = "hello") -> bytes:
    """Build a message with an attachment as a mail library does, each time anew."""
    parts = [f"Content-Type: text/plain\r\n\r\n{text}", "Content-Type: image/png; name=a.png\r\n\r\nabc"]
    head = [f"Date: Mon, 1 Jan 2026 00:00:0{number} +0000", f"Message-ID: <{number}@app>", *fields]
    body = "".join(f"--b{number}\r\n{part}\r\n" for part in parts) + f"--b{number}--"
    return mail(*head, f"Content-Type: multipart/mixed; boundary=b{number}", text=body)


@pytest.mark.case(65)
@pytest.mark.parametrize(
    "name", ["Idempotency-Key", "RESEND-IDEMPOTENCY-KEY", "x-idempotency-key", "Resend-Idempotency-Key"]
)
def test_a_message_built_again_under_its_key_is_the_same(account: Account, name: str) -> None:
    for number in range(3):
        assert account.send(built(number, f"{name}: order-1"), queue_id=f"4Xkey{number}") == TAKEN
    assert account.send(built(3, "iDEMPOTENCY-kEY:order-1"), queue_id="4Xkey3") == TAKEN
    (email_id,) = account.emails()
    assert logged(account.served, "4Xkey3")[-1] == (email_id, "repeated")
    assert repeats(account) == [3]
    assert of(account, "idempotency_key") == ["order-1"]
    assert of(account, "headers") == [{}]
    assert account.served.rows("SELECT * FROM opensend_milter.fingerprints WHERE email_id = %s", email_id) == []


@pytest.mark.case(65)
@pytest.mark.parametrize(
    ("other", "recipients"),
    [
        (mail("Idempotency-Key: order-1", text="bye"), []),
        (mail("Idempotency-Key: order-1", subject="bye"), []),
        (mail("Idempotency-Key: order-1", sender="other@example.org"), []),
        (built(1, "Idempotency-Key: order-1"), []),
        (KEYED, ["other@example.net"]),
        (KEYED, ["to@example.net", "other@example.net"]),
    ],
)
def test_a_key_with_another_message_is_refused(account: Account, other: bytes, recipients: list[str]) -> None:
    assert account.send(KEYED) == TAKEN
    answer = account.send(other, *recipients)
    assert_refused(answer, "550 5.7.1 ")
    (email_id,) = account.emails()
    assert f"({email_id})" in answer.text
    assert refusal(account) == ("duplicate-key", 550, account.user_id)
    assert account.send(KEYED) == TAKEN
    assert repeats(account) == [1]


@pytest.mark.case(65)
@pytest.mark.parametrize("other", [KEYED, mail("Idempotency-Key: order-1", text="bye")])
def test_after_a_day_a_key_begins_anew(account: Account, other: bytes) -> None:
    ages = "UPDATE emails SET created_at = now() - make_interval(secs => %s) WHERE user_id = %s"
    assert account.send(KEYED) == TAKEN
    account.served.rows(ages, 86_400 - 30, account.user_id)
    assert account.send(KEYED) == TAKEN
    assert repeats(account) == [1]
    account.served.rows(ages, 86_400 + 1, account.user_id)
    for _ in range(2):
        assert account.send(other) == TAKEN
    assert repeats(account) == [1, 1]
    assert of(account, "idempotency_key") == [None, "order-1"]


def test_a_key_is_one_of_its_user(account: Account) -> None:
    assert account.send(KEYED) == TAKEN
    assert account.served.account().send(KEYED) == TAKEN
    assert_refused(account.send(KEYED, key=add_key(account.served, account.user_id)), "550 5.7.1 ")
    assert repeats(account) == [0]


@pytest.mark.parametrize(
    "fields",
    [
        ["Idempotency-Key:"],
        ["Idempotency-Key: \t"],
        ["X-Idempotency-Key: " + "x" * 257],
        ["Resend-Idempotency-Key: a\x07b"],
        ["Idempotency-Key: a", "Idempotency-Key: b"],
        ["Idempotency-Key: a", "x-idempotency-key: b"],
        ["Idempotency-Key: a", "Idempotency-Key:"],
    ],
)
def test_a_key_that_is_none_refuses_the_message(account: Account, fields: list[str]) -> None:
    answer = account.send(mail(*fields))
    assert_refused(answer, "554 5.6.0 Idempotency-Key: ")
    assert refusal(account)[:2] == ("control-field", 554)
    assert account.emails() == []


@pytest.mark.parametrize("key", ["x" * 256, "é" * 256, "with a space", "0"])
def test_a_key_may_be_any_printable_text(account: Account, key: str) -> None:
    for _ in range(2):
        assert account.send(mail(f"Idempotency-Key: {key}", f"X-Idempotency-Key: {key}")) == TAKEN
    assert of(account, "idempotency_key") == [key]


# ---------------------------------------------------------------------- sent at the same time


def sockets(pid: int) -> int:
    """Count the connections of a process."""
    return sum(str(entry.readlink()).startswith("socket:") for entry in Path(f"/proc/{pid}/fd").iterdir())


def sessions(served: Serving, stack: ExitStack) -> list[MilterClient]:
    """Open connections until both processes have several."""
    before = {pid: sockets(pid) for pid in served.children()}
    found: list[MilterClient] = []
    while len(found) < SESSIONS or min(sockets(pid) - count for pid, count in before.items()) < 3:
        found.append(stack.enter_context(served.client()))
        assert len(found) < 200
    assert len(before) == 2
    return found


@pytest.mark.case(64)
@pytest.mark.case(65)
@pytest.mark.parametrize("name", ["Message-ID: <{}@app>", "Idempotency-Key: {}"])
def test_a_race_of_one_message_is_won_once_and_harms_no_neighbour(account: Account, name: str) -> None:
    with ExitStack() as stack:
        clients = sessions(account.served, stack)
        start = threading.Barrier(len(clients), timeout=patience_s())
        pool = stack.enter_context(ThreadPoolExecutor(len(clients)))

        def send(client: MilterClient, what: str, queue_id: str) -> Answer:
            start.wait()
            return client.message(account.key, mail(name.format(what), subject=what), queue_id=queue_id)

        for number in range(ROUNDS):
            what = [f"{number}-{at if (at + number) % 3 == 0 else 'same'}" for at in range(len(clients))]
            answers = list(pool.map(send, clients, what, [f"4Xrace{number}"] * len(clients)))
            for subject, answer in zip(what, answers, strict=True):
                assert answer == TAKEN or (subject.endswith("same") and answer.code == TRY_AGAIN), (subject, answer)
            stored = account.rows("SELECT subject, count(*) FROM emails WHERE user_id = %s GROUP BY 1")
            assert {subject: count for subject, count in stored if str(subject).startswith(f"{number}-")} == (
                dict.fromkeys(what, 1)
            )
            assert TAKEN in [answer for subject, answer in zip(what, answers, strict=True) if subject.endswith("same")]
    told = set(re.findall(r"mail\[(\d+)\]: 4Xrace\d+: .* status=repeated", account.served.log))
    assert told == {str(pid) for pid in account.served.children()}, "both processes took part"
    assert "Traceback" not in account.served.log


@pytest.mark.case(65)
def test_a_race_of_many_messages_under_one_key_is_won_by_one(account: Account) -> None:
    with ExitStack() as stack:
        clients = sessions(account.served, stack)
        start = threading.Barrier(len(clients), timeout=patience_s())
        pool = stack.enter_context(ThreadPoolExecutor(len(clients)))

        def send(client: MilterClient, number: int, text: str) -> Answer:
            start.wait()
            return client.message(account.key, mail(f"Idempotency-Key: {number}", text=text))

        for number in range(ROUNDS):
            texts = [f"{number}-{at}" for at in range(len(clients))]
            answers = list(pool.map(send, clients, [number] * len(clients), texts))
            (won,) = (text for text, answer in zip(texts, answers, strict=True) if answer == TAKEN)
            assert of(account, "text")[-1] == f"{won}\r\n"
            assert {answer.code for answer in answers if answer != TAKEN} <= {550, TRY_AGAIN}
        assert len(account.emails()) == ROUNDS


@dataclass(frozen=True)
class Between:
    """A store between whose two calls something happens."""

    store: PostgresIntakeStore
    happen: Callable[[], object]

    def facts_for(self, questions: Sequence[Question]) -> list[Facts]:
        found = self.store.facts_for(questions)
        self.happen()
        return found

    def settle(self, settlements: Sequence[Settlement]) -> None:
        self.store.settle(settlements)


class Rival:
    """Another process of ours on the same database."""

    def __init__(self, database: Database, name: str = "rival") -> None:
        habits = Habits(duplicate_window=timedelta(seconds=WINDOW_S), beside_opensend=False, billing=False)
        self.policy = Policy(limits=Limits(), carries=Carries(), sender_domains="restricted-only")
        self.store = PostgresIntakeStore(database.url_for("opensend_milter"), habits, name=name, timeout_s=patience_s())
        self.intake = Intake(self.store, self.policy)

    def while_(self, happen: Callable[[], object]) -> Intake:
        """Take messages in, and let something happen between the question and the answer."""
        return Intake(Between(self.store, happen), self.policy)


@pytest.fixture
def rivals(database: Database) -> Iterator[tuple[Rival, Rival]]:
    """Two processes of ours; three keys are there, each of another user."""
    with database.connect() as connection:
        connection.execute(
            "INSERT INTO api_keys (id, name, token_hash, user_id)"
            " SELECT id, 't', id, 'u' || number FROM unnest(%s::uuid[]) WITH ORDINALITY AS k (id, number)",
            [KEYS],
        )
    found = Rival(database, "rival-0"), Rival(database, "rival-1")
    yield found
    for rival in found:
        rival.store.close()


KEYS = [KeyId(f"3f0f8f3e-5f0e-4c57-9d5c-0b8f5f1d9a1{number}") for number in (1, 2, 3)]


def received(raw: bytes, key: KeyId = KEYS[0]) -> Message:
    found = message(raw, "to@example.net")
    return replace(found, received_at=datetime.now(UTC), session=replace(found.session, key_id=key))


def stored(database: Database) -> int:
    with database.connect() as connection:
        return len(connection.execute("SELECT id FROM emails").fetchall())


@pytest.mark.case(64)
@pytest.mark.case(65)
@pytest.mark.parametrize("raw", [NAMED, KEYED])
@pytest.mark.parametrize("rename", ["", "ALTER INDEX emails_user_id_idempotency_key_idx RENAME TO other"])
def test_a_name_taken_since_it_was_asked_for(
    database: Database, rivals: tuple[Rival, Rival], raw: bytes, rename: str
) -> None:
    """Also where OpenSend calls its index otherwise one day."""
    with database.connect() as connection:
        connection.execute(rename.encode())
    one, other = rivals
    first = received(raw)
    late = one.while_(lambda: decide(other.intake, [first]))
    with pytest.raises(AlreadyStored):
        decide(late, [received(raw)])
    assert stored(database) == 1
    (outcome,) = decide(one.intake, [received(raw)])
    assert getattr(outcome, "email_id", None) == first.id


@pytest.mark.parametrize("wrong", [timedelta(hours=-25), timedelta(hours=25)])
def test_a_host_whose_clock_is_wrong_goes_by_that_of_the_database(
    database: Database, rivals: tuple[Rival, Rival], wrong: timedelta
) -> None:
    """By which names end: else one that has just been taken would be free, and the message be stored twice."""
    one, _ = rivals
    in_an_hour = datetime.now(UTC) + timedelta(hours=1)
    later = KEYED.replace(b"From:", f"X-OpenSend-Send-At: {in_an_hour.isoformat()}\r\nFrom:".encode(), 1)
    first, again = (replace(received(later), received_at=datetime.now(UTC) + wrong) for _ in range(2))
    assert decide(one.intake, [first]) == [first.id]
    (outcome,) = decide(one.intake, [again])
    assert getattr(outcome, "email_id", None) == first.id
    with database.connect() as connection:
        query = (
            "SELECT e.created_at, s.received_at FROM emails e JOIN opensend_milter.submissions s ON s.email_id = e.id"
        )
        times = connection.execute(query).fetchall()
    assert all(abs(time - datetime.now(UTC)) < abs(wrong) for row in times for time in row)


@pytest.mark.case(64)
@pytest.mark.parametrize("raw", [NAMED, KEYED])
@pytest.mark.parametrize(
    "ends",
    [
        "UPDATE opensend_milter.fingerprints SET received_at = received_at - interval '2 hours'",
        "UPDATE emails SET created_at = created_at - interval '25 hours'",
        "UPDATE emails SET status = 'failed'",
    ],
)
def test_a_name_whose_time_is_over_goes_to_one_of_two(
    database: Database, rivals: tuple[Rival, Rival], raw: bytes, ends: str
) -> None:
    """Both have seen that the name is free: who comes second must not free it once more."""
    one, other = rivals
    decide(one.intake, [received(raw)])
    with database.connect() as connection:
        connection.execute(ends.encode())
    is_free = "failed" in ends or (raw is KEYED) == ("created_at" in ends)
    late = one.while_(lambda: decide(other.intake, [received(raw)]))
    if is_free:
        with pytest.raises(AlreadyStored):
            decide(late, [received(raw)])
        assert stored(database) == 2
    else:
        decide(late, [received(raw)])
        assert stored(database) == 1


@pytest.mark.case(64)
@pytest.mark.case(65)
@pytest.mark.parametrize(
    "batch",
    [
        [("Message-ID: <3@app>", 0), ("Message-ID: <1@app>", 0), ("Message-ID: <2@app>", 0)],
        [("Idempotency-Key: 3", 0), ("Idempotency-Key: 1", 0), ("Idempotency-Key: 2", 0)],
        [("Idempotency-Key: 1", 0), ("Idempotency-Key: 1", 2), ("Idempotency-Key: 1", 1)],
    ],
)
def test_batches_that_hold_the_same_messages_in_another_order(
    database: Database, rivals: tuple[Rival, Rival], batch: list[tuple[str, int]]
) -> None:
    """One wins, the other is told so: a deadlock would tempfail all that share its batch."""
    messages = [(mail(field), KEYS[key]) for field, key in batch]
    outcomes: list[list[Outcome] | Exception] = []

    def accept(rival: Rival, batch: Sequence[tuple[bytes, KeyId]]) -> None:
        try:
            outcomes.append(decide(rival.intake, [received(raw, key) for raw, key in batch]))
        except Exception as error:  # noqa: BLE001  # which it is, is the test
            outcomes.append(error)

    with database.connect() as holder, database.connect() as watcher:
        threads = [
            threading.Thread(target=accept, args=(rival, batch))
            for rival, batch in zip(rivals, (messages, messages[::-1]), strict=True)
        ]
        with holder.transaction(force_rollback=True):
            hold(holder, rivals[0], received(*messages[1]))
            for thread in threads:
                thread.start()
            waiting = b"SELECT pid FROM pg_stat_activity WHERE application_name ~ 'rival' AND wait_event_type = 'Lock'"
            await_true(lambda: watcher.execute(waiting).rowcount == len(rivals), lambda: f"both wait: {outcomes}")
        for thread in threads:
            thread.join()
    kinds = sorted(type(outcome).__name__ for outcome in outcomes)
    assert kinds == ["AlreadyStored", "list"], outcomes
    assert stored(database) == 3


def hold(holder: psycopg.Connection[tuple[object, ...]], rival: Rival, mail: Message) -> None:
    """Take a message's name in a transaction that is not committed."""
    settled: list[Settlement] = []

    class Listening(PostgresIntakeStore):
        def settle(self, settlements: Sequence[Settlement]) -> None:
            settled.extend(settlements)

    store = Listening(rival.store._link._info, rival.store._habits, name="listening", timeout_s=patience_s())
    decide(Intake(store, rival.policy), [mail])
    store.close()
    (settlement,) = settled
    identity = getattr(settlement.verdict, "identity", None)
    assert identity is not None
    holder.execute(
        'INSERT INTO emails (id, "from", "to", subject, user_id, idempotency_key) VALUES (%s, %s, %s, %s, %s, %s)',
        [mail.id, "", "[]", "", settlement.user_id, identity.idempotency_key],
    )
    if identity.fingerprint:
        holder.execute(
            "INSERT INTO opensend_milter.fingerprints VALUES (%s, %s, %s, now())",
            [mail.session.key_id, identity.fingerprint, mail.id],
        )


# ---------------------------------------------------------------------- control fields


def test_tags_and_metadata_are_in_the_row_and_not_in_its_headers(account: Account) -> None:
    fields = [
        "X-OpenSend-Tag: campaign=spring",
        "x-opensend-tag: plain",
        "X-OPENSEND-TAG: a_b-C = 1_2-3",
        "X-OpenSend-Metadata-Order: 4711",
        "X-OpenSend-Metadata-customer_name: Jürgen\r\n Müller",
        "X-OpenSend-Metadata-Empty:",
        "X-OpenSend-Unknown: yes",
        "X-Other: kept",
    ]
    assert account.send(mail(*fields)) == TAKEN
    expected = [("campaign", "spring"), ("plain", ""), ("a_b-C", "1_2-3")]
    assert of(account, "tags") == [[{"name": name, "value": value} for name, value in expected]]
    assert of(account, "document") == [
        {"metadata": {"order": "4711", "customer_name": "Jürgen Müller", "empty": ""}}
    ]  # fmt: skip
    assert of(account, "headers") == [{"x-other": "kept"}]
    assert of(account, "status") == ["queued"]
    assert account.send(mail()) == TAKEN
    assert of(account, "tags")[-1] == []
    assert of(account, "document")[-1] is None


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (["X-OpenSend-Tag: a b"], "X-OpenSend-Tag"),
        (["X-OpenSend-Tag:"], "X-OpenSend-Tag"),
        (["X-OpenSend-Tag: =value"], "X-OpenSend-Tag"),
        (["X-OpenSend-Tag: a=b=c"], "X-OpenSend-Tag"),
        (["X-OpenSend-Tag: é=1"], "X-OpenSend-Tag"),
        (["X-OpenSend-Tag: " + "n" * 257], "X-OpenSend-Tag"),
        (["X-OpenSend-Tag: n=" + "v" * 257], "X-OpenSend-Tag"),
        (["X-OpenSend-Tag: t"] * 76, "X-OpenSend-Tag"),
        (["X-OpenSend-Metadata-: 1"], "X-OpenSend-Metadata-"),
        (["X-OpenSend-Metadata-a.b: 1"], "X-OpenSend-Metadata-a.b"),
        (["X-OpenSend-Metadata-" + "n" * 65 + ": 1"], "X-OpenSend-Metadata-nnn"),
        (["X-OpenSend-Metadata-a: " + "v" * 1_001], "X-OpenSend-Metadata-a"),
        (["X-OpenSend-Metadata-a: 1", "X-OpenSend-Metadata-A: 2"], "X-OpenSend-Metadata-a"),
        ([f"X-OpenSend-Metadata-{number}: 1" for number in range(51)], "X-OpenSend-Metadata-"),
        (["X-OpenSend-Send-At: 2026-01-31T08:00:00"], "X-OpenSend-Send-At"),
        (["X-OpenSend-Send-At: 2000-01-31T08:00:00Z"], "X-OpenSend-Send-At"),
        (["X-OpenSend-Send-At: 2500-01-31T08:00:00Z"], "X-OpenSend-Send-At"),
        (["X-OpenSend-Send-At: in 31 days"], "X-OpenSend-Send-At"),
        (["X-OpenSend-Send-At: in 721 hours"], "X-OpenSend-Send-At"),
        (["X-OpenSend-Send-At: in 0 minutes"], "X-OpenSend-Send-At"),
        (["X-OpenSend-Send-At: in 999999 days"], "X-OpenSend-Send-At"),
        (["X-OpenSend-Send-At: in -5 minutes"], "X-OpenSend-Send-At"),
        (["X-OpenSend-Send-At: in 5 weeks"], "X-OpenSend-Send-At"),
        (["X-OpenSend-Send-At: tomorrow"], "X-OpenSend-Send-At"),
        (["X-OpenSend-Send-At:"], "X-OpenSend-Send-At"),
        (["X-OpenSend-Send-At: in 5 minutes", "X-OpenSend-Send-At: in 5 minutes"], "X-OpenSend-Send-At"),
        (["X-OpenSend-Send-At: 9999-12-31T23:59:59-01:00"], "X-OpenSend-Send-At"),
        (["X-OpenSend-Send-At: 0001-01-01T00:00:00+01:00"], "X-OpenSend-Send-At"),
        (["X-OpenSend-Send-At: in 5 m\u0131nutes"], "X-OpenSend-Send-At"),
    ],
)
def test_a_control_field_that_cannot_be_followed_is_named(account: Account, fields: list[str], named: str) -> None:
    answer = account.send(mail(*fields))
    assert_refused(answer, f"554 5.6.0 {named}")
    assert refusal(account)[:2] == ("control-field", 554)
    assert account.emails() == []


def test_as_much_as_is_allowed(account: Account) -> None:
    tags = ["X-OpenSend-Tag: " + "n" * 256 + "=" + "v" * 256] * 75
    metadata = [f"X-OpenSend-Metadata-{number:064d}: {'v' * 499}\r\n {'v' * 500}" for number in range(50)]
    assert account.send(mail(*tags, *metadata)) == TAKEN
    ((tag_count, metadata_count),) = account.rows(
        "SELECT jsonb_array_length(tags), (SELECT count(*) FROM jsonb_object_keys(document -> 'metadata'))"
        " FROM emails WHERE user_id = %s"
    )
    assert (tag_count, metadata_count) == (75, 50)


@pytest.mark.parametrize(
    ("wish", "delay"),
    [
        ("in 10 minutes", timedelta(minutes=10)),
        ("In 1 Minute", timedelta(minutes=1)),
        ("in 2 hours", timedelta(hours=2)),
        ("in 3 days", timedelta(days=3)),
        ("in 30 days", timedelta(days=30)),
        ("%Y-%m-%dT%H:%M:%SZ", timedelta(hours=1)),
        ("%Y-%m-%dT%H:%M:%S+00:00", timedelta(hours=1)),
        ("%Y%m%dT%H%M%S.5-00:30", timedelta(hours=1, minutes=30, seconds=0.5)),
    ],
)
def test_a_message_for_later_waits(account: Account, wish: str, delay: timedelta) -> None:
    named = datetime.now(UTC).replace(microsecond=0)
    at = (named + timedelta(hours=1)).strftime(wish)
    assert account.send(mail(f"X-OpenSend-Send-At: {at}")) == TAKEN
    ((status, scheduled_at, received_at, not_before, announce_at),) = account.rows(
        "SELECT e.status, e.scheduled_at, e.created_at, j.not_before, j.announce_at"
        " FROM emails e JOIN opensend_milter.jobs j ON j.email_id = e.id WHERE e.user_id = %s"
    )
    assert status == "scheduled"
    assert scheduled_at == not_before == announce_at
    assert isinstance(received_at, datetime)
    assert isinstance(scheduled_at, datetime)
    if wish.lower().startswith("in"):
        assert named + delay <= scheduled_at <= received_at + delay, "it counts from when it is judged"
    else:
        assert scheduled_at == named + delay


def test_the_worker_sends_it_when_its_time_has_come_and_not_before(database: Database, tmp_path: Path) -> None:
    with (
        serving(database.url, database.password_dir) as served,
        Sink() as sink,
        working(database, tmp_path, relay_port=sink.port) as worker,
    ):
        account = served.account()
        at = datetime.now(UTC) + timedelta(seconds=3)
        assert account.send(mail(f"X-OpenSend-Send-At: {at.isoformat()}", "X-OpenSend-Tag: later")) == TAKEN
        assert account.send(mail(subject="now")) == TAKEN
        sink.await_delivered(1)
        assert b"Subject: now" in sink.delivered[0].raw
        assert of(account, "status")[0] == "scheduled"
        await_true(lambda: len(sink.delivered) > 1, "the other leaves at its time")
        assert datetime.now(UTC) >= at
        assert b"X-OpenSend" not in sink.delivered[1].raw
        assert worker.stop() == 0
        assert of(account, "status") == ["sent", "sent"]


# ---------------------------------------------------------------------- suppressed recipients


def set_rule(account: Account, rule: OnSuppressed | None) -> None:
    """Do as `key set` does."""
    with connect(account.served.url, application_name="test") as connection:
        store = AdminStore(connection, makes_users=False)
        store.set_key(store.find_key(account.key), KeyChanges(on_suppressed=rule or ""))


def webhook(account: Account, types: Sequence[str], status: str = "active") -> object:
    ((webhook_id,),) = account.rows(
        "INSERT INTO webhooks (user_id, url, event_types, status) VALUES (%s, 'https://x', %s, %s) RETURNING id",
        json.dumps(types),
        status,
    )
    return webhook_id


def deliveries(account: Account) -> list[tuple[object, ...]]:
    return account.rows(
        "SELECT d.webhook_id, d.status, d.attempt, d.next_retry_at, e.user_id = w.user_id FROM webhook_deliveries d"
        " JOIN webhooks w ON w.id = d.webhook_id JOIN email_events e ON e.id = d.event_id WHERE w.user_id = %s"
    )


BAD = {"email": "bad@example.net", "reason": "bounced"}


@pytest.mark.case(36)
@pytest.mark.case(37)
@pytest.mark.case(71)
def test_a_suppressed_recipient_is_left_out(neighbour: Account) -> None:
    asked = webhook(neighbour, ["email.sent", "email.suppressed"])
    webhook(neighbour, ["email.sent"])
    webhook(neighbour, ["email.suppressed"], "disabled")
    other = neighbour.served.account()
    webhook(other, ["email.suppressed"])
    neighbour.suppress("bad@example.net", "worse@example.net", "cc@example.net")
    raw = mail("Cc: cc@example.net, cc2@example.net").replace(b"To:", b"To: BAD@Example.Net,")
    to = ["BAD@Example.Net", "to@example.net", "cc@example.net", "cc2@example.net", "worse@example.net", "x@y.example"]
    assert neighbour.send(raw, *to) == TAKEN
    assert [of(neighbour, column) for column in ('"to"', "cc", "bcc")] == [
        [["to@example.net"]],
        [["cc2@example.net"]],
        [["x@y.example"]],
    ]
    ((recipients, dropped, email_id),) = neighbour.rows(
        "SELECT recipients, dropped, email_id FROM opensend_milter.submissions WHERE user_id = %s"
    )
    assert recipients == ["to@example.net", "cc2@example.net", "x@y.example"]
    assert isinstance(dropped, list)
    left_out = ["BAD@Example.Net", "cc@example.net", "worse@example.net"]
    assert sorted(one["email"] for one in dropped) == left_out
    assert {one["reason"] for one in dropped} == {"bounced"}
    ((kind, of_email, payload, source_id),) = neighbour.rows(
        "SELECT type, email_id, payload, source_id FROM email_events WHERE user_id = %s"
    )
    assert (kind, of_email, source_id) == ("suppressed", email_id, None)
    assert isinstance(payload, dict)
    assert sorted(payload) == ["reason", "recipient_count", "recipients", "submitted_at"]
    assert (payload["reason"], payload["recipient_count"]) == ("recipient_suppressed", 3)
    assert BAD in payload["recipients"]
    assert datetime.fromisoformat(payload["submitted_at"]).tzinfo
    assert deliveries(neighbour) == [(asked, "pending", 0, None, True)]
    assert deliveries(other) == []


@pytest.mark.case(36)
@pytest.mark.case(71)
def test_a_message_to_suppressed_recipients_only_is_refused(neighbour: Account) -> None:
    asked = webhook(neighbour, ["email.suppressed"])
    neighbour.suppress("bad@example.net", "worse@example.net")
    answer = neighbour.send(mail(), "bad@example.net", "Worse@example.net")
    assert_refused(answer, "550 5.7.1 ")
    assert "bad@example.net (bounced)" in answer.text
    assert refusal(neighbour) == ("recipient-suppressed", 550, neighbour.user_id)
    assert neighbour.emails() == []
    ((of_email, payload),) = neighbour.rows("SELECT email_id, payload FROM email_events WHERE user_id = %s")
    assert of_email is None
    assert isinstance(payload, dict)
    ((queue_id, key_id),) = neighbour.rows("SELECT queue_id, key_id FROM opensend_milter.refusals WHERE user_id = %s")
    assert (payload["queue_id"], payload["key_id"]) == (queue_id, key_id), "nothing else says whose it was"
    assert {"message_id", "from", "subject"} <= payload.keys()
    assert (payload["recipient_count"], sorted(one["email"] for one in payload["recipients"])) == (
        2,
        ["bad@example.net", "worse@example.net"],
    )
    assert deliveries(neighbour) == [(asked, "pending", 0, None, True)]


@pytest.mark.case(37)
def test_a_domain_that_is_suppressed_in_both_spellings_is_one_recipient(neighbour: Account) -> None:
    neighbour.suppress("jane@exämple.net", "jane@xn--exmple-cua.net")
    neighbour.rows("UPDATE email_suppressions SET reason = 'manual' WHERE user_id = %s AND email ~ 'xn--'")
    assert neighbour.send(mail(), "jane@exämple.net", "to@example.net") == TAKEN
    assert of(neighbour, '"to"') == [["to@example.net"]]
    ((payload,),) = neighbour.rows("SELECT payload FROM email_events WHERE user_id = %s")
    assert isinstance(payload, dict)
    assert payload["recipient_count"] == 1


@pytest.mark.case(36)
def test_a_key_has_a_rule_of_its_own(account: Account, neighbour: Account) -> None:
    """Both ways, and from the next message on."""
    for one, own in ((account, "drop-recipient"), (neighbour, "reject-message")):
        one.suppress("bad@example.net")
        other = add_key(one.served, one.user_id)
        rules: list[tuple[OnSuppressed | None, bool]] = [
            (None, one is neighbour),
            ("reject-message", False),
            ("drop-recipient", True),
        ]
        for rule, taken in rules:
            set_rule(one, rule)
            answer = one.send(mail(), "bad@example.net", "to@example.net")
            assert (answer == TAKEN) == taken, (rule, answer)
        set_rule(one, "drop-recipient" if own == "drop-recipient" else "reject-message")
        answer = one.send(mail(), "bad@example.net", "to@example.net", key=other)
        assert (answer == TAKEN) == (one is neighbour), "the other key goes by the configuration"


@pytest.mark.case(36)
def test_what_is_left_out_makes_no_other_message(account: Account) -> None:
    """The client does not know who was left out: what it sends again is the same."""
    account.suppress("bad@example.net")
    set_rule(account, "drop-recipient")
    for raw in (NAMED, NAMED, KEYED, KEYED):
        assert account.send(raw, "bad@example.net", "to@example.net") == TAKEN
    assert repeats(account) == [1, 1]
    events = account.rows("SELECT count(*) FROM email_events WHERE user_id = %s")
    assert events == [(2,)], "one for each message, none for a repetition"


def test_other_refusals_are_no_event(neighbour: Account) -> None:
    neighbour.suppress("bad@example.net")
    assert neighbour.send(mail(sender="a@other.example"), "bad@example.net", "to@example.net").code == 550
    assert neighbour.send(mail("Idempotency-Key:"), "bad@example.net").code == 554
    assert neighbour.rows("SELECT id FROM email_events WHERE user_id = %s") == []


# ---------------------------------------------------------------------- what else is written


def test_the_use_of_a_key_is_noted_once_a_minute(account: Account) -> None:
    def last_used_at() -> datetime | None:
        ((found,),) = account.rows("SELECT last_used_at FROM api_keys WHERE user_id = %s")
        assert found is None or isinstance(found, datetime)
        return found

    before = datetime.now(UTC)
    assert account.send(mail(sender="a@other.example")).code == 550
    assert account.send(mail()) == TAKEN
    first = last_used_at()
    assert first
    assert before <= first <= datetime.now(UTC)
    assert account.send(mail()) == TAKEN
    assert last_used_at() == first
    account.rows("UPDATE api_keys SET last_used_at = now() - interval '30 seconds' WHERE user_id = %s")
    nearly = last_used_at()
    assert account.send(mail()) == TAKEN
    assert last_used_at() == nearly
    account.rows("UPDATE api_keys SET last_used_at = now() - interval '61 seconds' WHERE user_id = %s")
    assert account.send(mail()) == TAKEN
    again = last_used_at()
    assert again
    assert again >= first


def logs(account: Account) -> list[tuple[object, ...]]:
    return account.rows(
        "SELECT endpoint, method, status, request_body, response_body, document, api_key_id::text"
        " FROM logs WHERE user_id = %s ORDER BY created_at"
    )


@pytest.mark.case(71)
def test_beside_opensend_each_message_of_a_known_key_is_logged(neighbour: Account) -> None:
    assert neighbour.send(mail(), queue_id="4Xlog") == TAKEN
    (email_id,) = neighbour.emails()
    size = len(mail())
    request = {"mail_from": "app@example.test", "recipients": ["to@example.net"], "size": size, "queue_id": "4Xlog"}
    ids = {"apiKeyId": neighbour.key, "emailId": email_id}
    assert logs(neighbour) == [("smtp", "SMTP", 200, request, {"id": email_id}, ids, neighbour.key)]
    assert neighbour.send(mail(sender="a@other.example")).code == 550
    *_, status, _, response, document, key = logs(neighbour)[1]
    assert (status, document, key) == (403, {"apiKeyId": neighbour.key, "emailId": None}, neighbour.key)
    assert isinstance(response, dict)
    assert response["code"] == "from-unverified"
    assert response["message"].startswith("550 5.7.1 the From domain other.example ")


@pytest.mark.case(71)
def test_a_log_is_whole_however_long_it_is(neighbour: Account) -> None:
    """The dashboard parses it: a part of it would be nothing."""
    recipients = [f"{number:02}{'x' * 60}@{'y' * 60}.example" for number in range(45)]
    assert neighbour.send(mail(), *recipients) == TAKEN
    assert neighbour.send(mail(sender=f"a@{'z' * 60}.{'z' * 60}.{'z' * 60}.example"), *recipients).code == 550
    for _, _, _, request, response, *_ in logs(neighbour):
        assert isinstance(request, dict)
        assert request["recipients"] == recipients
        assert isinstance(response, dict)


@pytest.mark.case(71)
@pytest.mark.parametrize("odd", ["", "\x00", "\ud83d", '"\\u0000', "\u2028"], ids=ascii)
@pytest.mark.parametrize(
    ("session", "expected"),
    [
        ({}, ("smtp", "SMTP")),
        ({"front_door": "http", "endpoint": "/v1/send"}, ("/v1/send", "POST")),
        ({"front_door": "http", "endpoint": "/v1/send/bulk"}, ("/v1/send/bulk", "POST")),
    ],
)
def test_a_log_says_which_way_a_message_came(
    beside: Database, session: dict[str, Any], expected: tuple[str, str], odd: str
) -> None:
    """Whatever stands in it: what jsonb does not take must not cost the message."""
    with beside.connect() as connection:
        connection.execute("INSERT INTO api_keys (id, name, token_hash, user_id) VALUES (%s, 't', 't', 'u')", [KEYS[0]])
        connection.execute("INSERT INTO domains (name, status, user_id) VALUES ('example.org', 'verified', 'u')")
    habits = Habits(duplicate_window=timedelta(), beside_opensend=True, billing=False)
    policy = Policy(limits=Limits(), carries=Carries(), sender_domains="verified")
    asked = received(mail(sender="a@other.example"))
    envelope = replace(asked.envelope, sender=Address(f"{odd}@example.org"))
    asked = replace(asked, session=replace(asked.session, **session), envelope=envelope)
    with closing(
        PostgresIntakeStore(beside.url_for("opensend_milter"), habits, name="t", timeout_s=patience_s())
    ) as store:
        (outcome,) = decide(Intake(store, policy), [asked])
    assert isinstance(outcome, Refuse)
    with beside.connect() as connection:
        ((endpoint, method, request, response),) = connection.execute(
            "SELECT endpoint, method, request_body, response_body FROM logs"
        ).fetchall()
    assert (endpoint, method) == expected
    assert request["recipients"] == ["to@example.net"]
    assert response["code"] == "from-unverified"


@pytest.mark.case(71)
@pytest.mark.parametrize(
    ("raw", "rule"),
    [(mail("Idempotency-Key:"), "control-field"), (mail().replace(b"From:", b"X:"), "from-missing")],
)
def test_what_could_not_be_read_is_logged_too(neighbour: Account, raw: bytes, rule: str) -> None:
    assert neighbour.send(raw).command == "y"
    assert refusal(neighbour)[0] == rule
    assert [status for _, _, status, *_ in logs(neighbour)] == [422]


def test_a_repetition_is_not_logged(neighbour: Account) -> None:
    for _ in range(2):
        assert neighbour.send(KEYED) == TAKEN
    assert len(logs(neighbour)) == 1


def test_who_is_not_known_is_not_logged(neighbour: Account, account: Account) -> None:
    before = neighbour.served.rows("SELECT count(*) FROM logs")
    for key in ("", "nobody", "3f0f8f3e-5f0e-4c57-9d5c-0b8f5f1d9a12"):
        with neighbour.served.client() as client:
            assert client.message(key, mail()).command == "y"
    neighbour.rows("UPDATE api_keys SET user_id = NULL WHERE user_id = %s")
    assert neighbour.send(mail()).code == 550
    assert neighbour.served.rows("SELECT count(*) FROM logs") == before
    assert account.send(mail()) == TAKEN
    assert account.send(mail(sender="a@other.example")).code == 550
    assert account.served.rows("SELECT * FROM logs") == [], "only beside OpenSend"


@pytest.mark.parametrize(
    ("raw", "recipient", "rule"),
    [
        (mail(sender="a@other.example"), "to@example.net", "from-unverified"),
        (mail(), "bad@example.net", "recipient-suppressed"),
        (mail("X-OpenSend-Send-At: in 31 days"), "to@example.net", "control-field"),
        (mail("Idempotency-Key:"), "to@example.net", "control-field"),
        (mail().replace(b"From:", b"X:"), "to@example.net", "from-missing"),
        (mail(), "nobody", "recipient-malformed"),
        (mail(text="x" * 1_000 + "\r\n"), "to@example.net", "cannot-carry"),
    ],
)
def test_a_refusal_is_recorded_with_its_user(account: Account, raw: bytes, recipient: str, rule: str) -> None:
    account.suppress("bad@example.net")
    assert account.send(raw, recipient).command == "y"
    assert refusal(account) == (rule, refusal(account)[1], account.user_id)


# ---------------------------------------------------------------------- OpenSend's sandbox


@pytest.mark.parametrize(
    ("recipients", "taken"),
    [
        (["delivered@resend.dev"], True),
        (["Delivered+label@Resend.dev", "delivered@resend.dev"], True),
        (["bounced@resend.dev", "bounced+1@resend.dev"], True),
        (["suppressed@resend.dev"], True),
        (["delivered@resend.dev", "to@example.net"], False),
        (["to@example.net", "complained+x@resend.dev"], False),
        (["delivered@resend.dev", "bounced@resend.dev"], False),
        (["anybody@resend.dev", "to@example.net"], True),
        (["suppressed+label@resend.dev", "to@example.net"], True),
        (["delivered@sub.resend.dev", "to@example.net"], True),
    ],
)
def test_addresses_of_the_sandbox_go_alone(
    account: Account,
    neighbour: Account,
    recipients: list[str],
    taken: bool,  # noqa: FBT001
) -> None:
    answer = neighbour.send(mail(), *recipients)
    if taken:
        assert answer == TAKEN
    else:
        assert_refused(answer, "550 5.7.1 ")
        assert refusal(neighbour) == ("sandbox-mixed", 550, neighbour.user_id)
    assert account.send(mail(), *recipients) == TAKEN, "without OpenSend they are addresses like any other"


# ---------------------------------------------------------------------- what a key may do

ATTACHED = mail("Content-Type: application/pdf", "Content-Disposition: attachment; filename=a.pdf")


def change(account: Account, changes: KeyChanges) -> None:
    """Do as `key set` does."""
    with connect(account.served.url, application_name="test") as connection:
        store = AdminStore(connection, makes_users=False)
        store.set_key(store.find_key(account.key), changes)


@pytest.mark.parametrize(
    ("changes", "undone", "raw", "recipients", "rule"),
    [
        (
            KeyChanges(allowed_senders=["other@example.org", "@bücher.example"]),
            KeyChanges(allowed_senders=["@EXAMPLE.org."]),
            mail(),
            ["to@example.net"],
            "sender-not-allowed",
        ),
        (
            KeyChanges(allowed_recipients=["@example.net", "jane@bücher.example"]),
            KeyChanges(allowed_recipients=[]),
            mail(),
            ["to@example.net", "jane@xn--bcher-kva.example", "other@bücher.example"],
            "recipient-not-allowed",
        ),
        (
            KeyChanges(networks=["10.0.0.0/8", "2001:db8::/32"]),
            KeyChanges(networks=["10.0.0.0/8", "::ffff:192.0.2.0/120"]),
            mail(),
            ["to@example.net"],
            "network-not-allowed",
        ),
        (
            KeyChanges(may_attach=False),
            KeyChanges(may_attach=True),
            ATTACHED,
            ["to@example.net"],
            "attachments-not-allowed",
        ),
        (
            KeyChanges(may_attach=False),
            KeyChanges(may_attach=True),
            mail("Content-Type: multipart/digest; boundary=b"),
            ["to@example.net"],
            "attachments-not-allowed",
        ),
        (
            KeyChanges(may_html=False),
            KeyChanges(may_html=True),
            mail("Content-Type: text/html"),
            ["to@example.net"],
            "html-not-allowed",
        ),
    ],
)
def test_a_key_is_held_to_its_own_rules(
    *, account: Account, changes: KeyChanges, undone: KeyChanges, raw: bytes, recipients: list[str], rule: str
) -> None:
    """From the next message on, and no other key of the same user."""
    other = add_key(account.served, account.user_id)
    assert account.send(raw, *recipients) == TAKEN
    change(account, changes)
    assert_refused(account.send(raw, *recipients), "550 5.7.1 ")
    assert refusal(account) == (rule, 550, account.user_id)
    assert account.send(raw, *recipients, key=other) == TAKEN
    change(account, undone)
    assert account.send(raw, *recipients) == TAKEN


def test_a_key_expires_at_its_time(account: Account) -> None:
    change(account, KeyChanges(expires_at=datetime.now(UTC) + timedelta(hours=1)))
    assert account.send(mail()) == TAKEN
    account.served.rows("UPDATE opensend_milter.key_settings SET expires_at = now() WHERE key_id = %s", account.key)
    assert_refused(account.send(mail()), "550 5.7.1 the API key expired at ")
    assert refusal(account) == ("key-expired", 550, account.user_id)
    change(account, KeyChanges(expires_at=""))
    assert account.send(mail()) == TAKEN


def test_a_list_that_nobody_can_read_lets_nobody_pass(account: Account) -> None:
    """Somebody wrote it by hand: that is no reason to be out of order."""
    for column, rule in [
        ("networks", "network-not-allowed"),
        ("allowed_senders", "sender-not-allowed"),
        ("allowed_recipients", "recipient-not-allowed"),
    ]:
        query = "INSERT INTO opensend_milter.key_settings (key_id, {}) VALUES (%s, '{{nonsense,\"\",@,10.0.0.1/8}}')"
        account.served.rows(query.format(column), account.key)
        assert_refused(account.send(mail()), "550 5.7.1 ")
        assert refusal(account)[0] == rule
        account.served.rows("DELETE FROM opensend_milter.key_settings WHERE key_id = %s", account.key)


def used(account: Account) -> list[object]:
    """Return what is counted for this key, by day."""
    query = "SELECT messages FROM opensend_milter.key_usage WHERE key_id = %s ORDER BY day"
    return [count for (count,) in account.served.rows(query, account.key)]


def test_a_day_has_so_many_messages(account: Account) -> None:
    account.suppress("bad@example.net")
    assert account.send(mail()) == TAKEN
    assert used(account) == [], "nothing is counted without a limit"
    change(account, KeyChanges(per_day=2, on_suppressed="drop-recipient"))
    assert account.send(NAMED, "a@example.net", "b@example.net", "bad@example.net") == TAKEN
    assert used(account) == [1], "a message is one, whatever the number of its recipients"
    assert account.send(NAMED, "a@example.net", "b@example.net", "bad@example.net") == TAKEN
    assert account.send(mail(sender="a@other.example")).code == 550
    assert account.send(mail(), "bad@example.net").code == 550
    assert used(account) == [1], "neither a repetition nor a refusal is counted"
    assert account.send(KEYED) == TAKEN
    assert_refused(account.send(mail()), "452 4.7.1 ")
    assert refusal(account) == ("daily-quota", 452, account.user_id)
    assert account.send(KEYED) == TAKEN, "a repetition is ours already"
    assert account.send(mail(), key=add_key(account.served, account.user_id)) == TAKEN
    assert used(account) == [2]
    account.served.rows("UPDATE opensend_milter.key_usage SET day = day - 1 WHERE key_id = %s", account.key)
    assert account.send(mail()) == TAKEN, "the next day"
    assert used(account) == [2, 1]
    change(account, KeyChanges(per_day=0))
    for _ in range(2):
        assert account.send(mail()) == TAKEN
    assert used(account) == [2, 1]


def limit(database: Database, **per_day: int) -> None:
    """Give the n-th key a daily limit."""
    with database.connect() as connection:
        for number, limit_ in per_day.items():
            connection.execute(
                "INSERT INTO opensend_milter.key_settings (key_id, per_day) VALUES (%s, %s)",
                [KEYS[int(number.removeprefix("key"))], limit_],
            )


def counted(database: Database) -> tuple[list[tuple[object, ...]], list[tuple[object, ...]]]:
    """Return what is counted by key, and what is stored."""
    with database.connect() as connection:
        return (
            connection.execute("SELECT key_id::text, messages FROM opensend_milter.key_usage ORDER BY 1").fetchall(),
            connection.execute(
                "SELECT key_id::text, count(*) FROM opensend_milter.submissions GROUP BY 1 ORDER BY 1"
            ).fetchall(),
        )


def gatherer(rival: Rival) -> Gatherer:
    found = Gatherer(rival.intake, name="test", window_s=0.02, at_most=50, soft_s=20, hard_s=20)
    found.start()
    return found


def test_a_limit_holds_within_a_batch(database: Database, rivals: tuple[Rival, Rival]) -> None:
    limit(database, key0=3)
    batch = [*(received(mail()) for _ in range(5)), received(mail(), KEYS[1])]
    with pytest.raises(AlreadyStored):
        decide(rivals[0].intake, batch)
    assert counted(database) == ([], []), "nothing of the batch"
    outcomes = [decide(rivals[0].intake, [one])[0] for one in batch]
    assert [isinstance(one, str) for one in outcomes] == [True] * 3 + [False] * 2 + [True]
    assert {one.rule for one in outcomes if isinstance(one, Refuse)} == {Rule.DAILY_QUOTA}
    assert counted(database) == ([(KEYS[0], 3)], [(KEYS[0], 3), (KEYS[1], 1)])


def test_a_limit_that_somebody_else_reaches_meanwhile(database: Database, rivals: tuple[Rival, Rival]) -> None:
    limit(database, key0=1)
    late = received(mail())
    with pytest.raises(AlreadyStored):
        decide(rivals[0].while_(lambda: decide(rivals[1].intake, [received(mail())])), [late])
    (outcome,) = decide(rivals[0].intake, [late])
    assert isinstance(outcome, Refuse)
    assert (outcome.code, outcome.rule) == (452, Rule.DAILY_QUOTA)
    assert counted(database) == ([(KEYS[0], 1)], [(KEYS[0], 1)])


def test_processes_together_keep_to_a_limit(database: Database, rivals: tuple[Rival, Rival]) -> None:
    """Two keys in one batch and in another order in the next: nobody waits for ever."""
    limit(database, key0=17, key1=30)
    gatherers = [gatherer(rival) for rival in rivals]
    with ThreadPoolExecutor(SESSIONS * 2) as pool:
        asked = [(gatherers[n % 2], received(mail(), KEYS[n // 2 % 3])) for n in range(120)]
        outcomes = list(pool.map(lambda one: one[0].accept(one[1]), asked))
    for each in gatherers:
        each.stop()
    refusals = {(one.code, one.rule) for one in outcomes if isinstance(one, Refuse)}
    assert refusals <= {(452, Rule.DAILY_QUOTA), (451, Rule.OURS)}
    assert sum(isinstance(one, str) for one in outcomes) == 17 + 30 + 40
    assert counted(database) == (
        [(KEYS[0], 17), (KEYS[1], 30)],
        [(KEYS[0], 17), (KEYS[1], 30), (KEYS[2], 40)],
    )


def test_when_opensend_deletes_a_key_all_of_ours_ends(account: Account) -> None:
    """Its dashboard knows nothing of our tables: what is left in them means nothing."""
    change(account, KeyChanges(allowed_senders=["@example.org"], per_day=5))
    second = "f" * 64
    account.served.rows(
        "INSERT INTO opensend_milter.key_secrets (token_hash, key_id) VALUES (%s, %s)", second, account.key
    )
    assert account.send(mail()) == TAKEN
    assert account.served.rows("SELECT opensend_milter.key_id(%s)", second) == [(account.key,)]
    account.rows("DELETE FROM api_keys WHERE user_id = %s")
    assert account.served.rows("SELECT opensend_milter.key_id(%s)", second) == [(None,)]
    assert_refused(account.send(mail()), "550 5.7.1 ")
    assert refusal(account)[0] == "key-revoked"
    assert used(account) == [1]


def test_what_a_key_may_do_is_found_by_its_primary_key(database: Database, rivals: tuple[Rival, Rival]) -> None:
    """However many keys have settings, a message asks for those of its own."""
    with database.connect() as connection:
        connection.execute(
            "INSERT INTO opensend_milter.key_settings (key_id, per_day)"
            " SELECT gen_random_uuid(), 9 FROM generate_series(1, 3000)"
        )
        connection.execute(
            "INSERT INTO opensend_milter.key_usage SELECT key_id, current_date - day, 1"
            " FROM opensend_milter.key_settings, generate_series(0, 9) AS d (day)"
        )
        connection.execute("INSERT INTO opensend_milter.key_settings (key_id, per_day) VALUES (%s, 9)", [KEYS[0]])
        connection.execute("ANALYZE opensend_milter.key_settings, opensend_milter.key_usage")
    asked: list[Question] = []

    class Asking(PostgresIntakeStore):
        def facts_for(self, questions: Sequence[Question]) -> list[Facts]:
            asked.extend(questions)
            return super().facts_for(questions)

    store = Asking(rivals[0].store._link._info, rivals[0].store._habits, name="asking", timeout_s=patience_s())
    decide(Intake(store, rivals[0].policy), [received(mail()), received(mail(), KEYS[1])])
    with store._link.lend() as connection:
        query = "EXPLAIN (ANALYZE, FORMAT TEXT) " + SQL["facts_for"].rstrip(";")
        plan = "\n".join(line for (line,) in connection.execute(query.encode(), store._parameters(asked)))
    store.close()
    assert "Seq Scan on key_settings" not in plan
    assert "Seq Scan on key_usage" not in plan
    assert re.search(r"Index Scan using key_usage_pkey .*loops=1\)", plan), "not for the key without a limit"
