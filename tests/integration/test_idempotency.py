"""The table of docs/sending.md: what a message hears under an Idempotency-Key that was used before."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from opensend_milter.adapters.postgres.intake import Habits, PostgresIntakeStore
from opensend_milter.core.couriers import Carries
from opensend_milter.core.identity import row_digest
from opensend_milter.core.intake import Intake
from opensend_milter.core.message import read
from opensend_milter.core.model import KeyId, Limits, Message, Reading
from opensend_milter.core.policy import Policy
from tests.integration.private_postgres import Cluster
from tests.integration.serving import Account, Serving, add_key, serving
from tests.milter_client import Answer
from tests.unit.messages import decide, message
from tests.waiting import patience_s

TAKEN = Answer("d")
GOLDEN = Path(__file__).parent.parent / "golden"
NAME = "order-1"
TEXT = "hello\r\nworld"
PICTURE = bytes(range(256)) * 3


@pytest.fixture(scope="module", params=["standalone", "opensend"])
def served(
    request: pytest.FixtureRequest, _shared_cluster: Cluster, _template: Path, _beside_template: Path
) -> Iterator[Serving]:
    """A milter by itself, and one on OpenSend's own tables: the answers are the same."""
    name, template = f"names_{request.param}", {"standalone": "template_opensend", "opensend": "template_beside"}
    url = _shared_cluster.new_database(name, template=template[request.param])
    with serving(url, _template, profile=request.param) as running:
        yield running
    _shared_cluster.drop_database(name)


@pytest.fixture
def account(served: Serving) -> Account:
    return served.account()


def mail(*fields: str, text: str = TEXT, subject: str = "hi", to: str = "to@example.net", file: bool = True) -> bytes:
    head = "".join(f"{field}\r\n" for field in (f"Idempotency-Key: {NAME}", *fields))
    start = f"From: App <app@example.org>\r\nTo: {to}\r\nCc: cc@example.net\r\n{head}Subject: {subject}\r\n"
    if not file:
        return f"{start}\r\n{text}\r\n".encode()
    parts = [
        f"Content-Type: text/plain\r\n\r\n{text}",
        "Content-Type: text/html\r\n\r\n<p>hello</p>",
        "Content-Type: image/png; name=a.png\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        + base64.encodebytes(PICTURE).decode().replace("\n", "\r\n"),
    ]
    body = "".join(f"--b\r\n{part}\r\n" for part in parts)
    return f"{start}Content-Type: multipart/mixed; boundary=b\r\n\r\n{body}--b--\r\n".encode()


RECIPIENTS = ("to@example.net", "cc@example.net", "bcc@example.net")


def send(account: Account, raw: bytes, key: str = "") -> Answer:
    return account.send(raw, *RECIPIENTS, key=key)


def by_rest(account: Account, **columns: object) -> str:
    """Put down what OpenSend's REST API would for the message of `mail()`; return its id."""
    attachment = {"id": str(uuid4()), "filename": "a.png", "content": base64.b64encode(PICTURE).decode()}
    row: dict[str, object] = {
        "from": "app@example.org",
        "to": json.dumps(["to@example.net"]),
        "cc": json.dumps(["cc@example.net"]),
        "bcc": json.dumps(["bcc@example.net"]),
        "subject": "hi",
        "text": "hello\nworld",
        "html": "<p>hello</p>",
        "attachments": json.dumps([attachment]),
        "idempotency_key": NAME,
        **columns,
    }
    names = ", ".join(f'"{name}"' for name in row)
    places = ", ".join(["%s"] * len(row))
    ((found,),) = account.rows(
        f"INSERT INTO emails (user_id, {names}) VALUES (%s, {places}) RETURNING id::text",  # noqa: S608  # ours
        *row.values(),
    )
    return str(found)


def is_duplicate(answer: Answer) -> bool:
    return answer.code == 550 and "Idempotency-Key" in answer.text


def stored(account: Account) -> int:
    return len(account.emails())


OTHERS = {
    "text": mail(text="bye"),
    "subject": mail(subject="bye"),
    "attachment": mail(file=False),
}


@pytest.mark.case(65)
@pytest.mark.parametrize("status", ["queued", "scheduled", "processing", "sent", "delivered", "bounced", "complained"])
@pytest.mark.parametrize("holder", ["key", "rest"])
def test_what_waits_or_is_out_is_repeated_and_nothing_else(account: Account, holder: str, status: str) -> None:
    if holder == "rest":
        by_rest(account)
    else:
        assert send(account, mail()) == TAKEN
    # What bounced without ever having left is nobody's, and so a new message.
    account.rows(f"UPDATE emails SET status = '{status}', sent_at = now() WHERE user_id = %s")  # noqa: S608  # ours
    assert send(account, mail()) == TAKEN
    assert stored(account) == 1
    for what, raw in OTHERS.items():
        answer = send(account, raw)
        assert is_duplicate(answer), (what, answer)
        assert account.emails()[0] in answer.text
    assert stored(account) == 1


@pytest.mark.case(76)
@pytest.mark.parametrize("raw", [mail(), *OTHERS.values()])
@pytest.mark.parametrize("status", ["queued", "sent"])
def test_another_key_of_the_account_never_hears_250_for_a_message_of_the_first(
    account: Account, status: str, raw: bytes
) -> None:
    assert send(account, mail()) == TAKEN
    account.rows(f"UPDATE emails SET status = '{status}' WHERE user_id = %s")  # noqa: S608  # ours
    other = add_key(account.served, account.user_id)
    answer = send(account, raw, key=other)
    assert is_duplicate(answer)
    assert "another API key of this account" in answer.text
    assert account.emails()[0] not in answer.text
    assert stored(account) == 1


@pytest.mark.case(76)
@pytest.mark.parametrize("ends", ["status = 'failed'", "status = 'canceled'", "status = 'cancelled'",
                                  "status = 'suppressed'", "status = 'bounced'",
                                  "created_at = now() - interval '25 hours'"])  # fmt: skip
@pytest.mark.parametrize("holder", ["key", "account", "rest"])
@pytest.mark.parametrize("raw", [mail(), mail(text="bye")])
def test_what_was_given_up_or_is_old_gives_its_name_to_the_next(
    account: Account, holder: str, ends: str, raw: bytes
) -> None:
    """Else a 250 would stand for a message that never goes out."""
    first = by_rest(account) if holder == "rest" else None
    if not first:
        assert send(account, mail()) == TAKEN
    account.rows(f"UPDATE emails SET {ends} WHERE user_id = %s")  # noqa: S608  # ours
    key = add_key(account.served, account.user_id) if holder == "account" else ""
    assert send(account, raw, key=key) == TAKEN
    names = account.rows("SELECT status, idempotency_key FROM emails WHERE user_id = %s ORDER BY created_at")
    assert len(names) == 2
    assert [name for _, name in names] == [None, NAME]
    assert names[1][0] == "queued"
    assert send(account, raw, key=key) == TAKEN
    assert stored(account) == 2


@pytest.mark.case(76)
def test_a_message_put_off_for_a_month_does_not_swallow_the_one_of_today(account: Account) -> None:
    assert send(account, mail("X-OpenSend-Send-At: in 29 days")) == TAKEN
    assert send(account, mail("X-OpenSend-Send-At: in 29 days")) == TAKEN
    for other in (mail(), mail("X-OpenSend-Send-At: in 2 days")):
        answer = send(account, other)
        assert is_duplicate(answer)
        assert "at another time" in answer.text
    assert stored(account) == 1


@pytest.mark.case(76)
@pytest.mark.parametrize("later", [mail(), mail("X-OpenSend-Send-At: in 29 days"), mail(text="bye")])
def test_a_name_that_a_limited_key_put_off_for_a_month_swallows_no_mail_of_another(
    account: Account, later: bytes
) -> None:
    limited, other = (add_key(account.served, account.user_id, domain) for domain in ("example.org", None))
    assert send(account, mail("X-OpenSend-Send-At: in 29 days"), key=limited) == TAKEN
    answer = send(account, later, key=other)
    assert is_duplicate(answer)
    assert account.emails()[0] not in answer.text
    assert stored(account) == 1
    account.rows("UPDATE emails SET status = 'canceled' WHERE user_id = %s")
    assert send(account, later, key=other) == TAKEN
    assert stored(account) == 2
    assert is_duplicate(send(account, mail("X-OpenSend-Send-At: in 29 days"), key=limited))


@pytest.mark.case(76)
@pytest.mark.parametrize("ends", ["failed", "canceled", "cancelled", "suppressed", "bounced"])
def test_by_its_message_id_what_was_given_up_is_sent_again(account: Account, ends: str) -> None:
    raw = mail().replace(f"Idempotency-Key: {NAME}".encode(), b"Message-ID: <1@app>")
    for count in (1, 2):
        assert send(account, raw) == TAKEN
        assert send(account, raw) == TAKEN
        assert stored(account) == count
        account.rows(f"UPDATE emails SET status = '{ends}' WHERE user_id = %s")  # noqa: S608  # ours


@pytest.mark.case(76)
def test_what_has_no_digest_is_not_taken_for_the_same(account: Account) -> None:
    assert send(account, mail()) == TAKEN
    account.rows("UPDATE opensend_milter.submissions SET content_digest = NULL WHERE user_id = %s")
    assert is_duplicate(send(account, mail()))
    assert stored(account) == 1


@pytest.mark.case(76)
def test_by_its_message_id_a_message_for_another_time_is_another_one(account: Account) -> None:
    plain = mail().replace(f"Idempotency-Key: {NAME}".encode(), b"Message-ID: <1@app>")
    later = plain.replace(b"Subject:", b"X-OpenSend-Send-At: in 29 days\r\nSubject:")
    for raw, count in ((later, 1), (later, 1), (plain, 2), (plain, 2)):
        assert send(account, raw) == TAKEN
        assert stored(account) == count


@pytest.mark.parametrize(
    "columns",
    [
        {"text": "x" * 500_001},
        {"attachments": json.dumps([{"filename": "a.png", "content": "A" * 4_000_000}])},
        {"attachments": json.dumps([{"filename": "a.png", "path": "https://example.net/a.png"}])},
        {"to": json.dumps("to@example.net")},
        {"attachments": json.dumps({"filename": "a.png"})},
        {"attachments": json.dumps(["a.png", None, 7])},
        {"html": None},
        {"from": "other@example.org"},
        {"bcc": None},
        {"cc": json.dumps([])},
        {"scheduled_at": "2030-01-01T00:00:00Z", "status": "scheduled"},
    ],
)
def test_a_row_of_rest_that_differs_or_cannot_be_compared_is_not_taken_for_the_same(
    account: Account, columns: dict[str, object]
) -> None:
    found = by_rest(account, **columns)
    for _ in range(2):
        answer = send(account, mail())
        assert is_duplicate(answer)
        assert found in answer.text
    assert account.emails() == [found]


@pytest.mark.parametrize(
    "columns",
    [
        {"from": "App of ours <app@EXAMPLE.org>"},
        {"text": "hello\r\nworld\r\n"},
        {"subject": " hi "},
        {"html": "<p>hello</p>\n"},
        {"to": json.dumps(["TO@example.net"])},
        {"to": json.dumps(["to@example.net", "cc@example.net"]), "cc": None},
    ],
)
def test_what_the_doors_write_otherwise_is_the_same(account: Account, columns: dict[str, object]) -> None:
    found = by_rest(account, **columns)
    assert send(account, mail()) == TAKEN
    assert account.emails() == [found]


def test_a_row_of_rest_is_read_once_and_nobody_sees_what_it_says(account: Account) -> None:
    found = by_rest(account)
    for _ in range(3):
        assert send(account, mail()) == TAKEN
    ((digest, first),) = account.served.rows(
        "SELECT digest, xmin::text FROM opensend_milter.row_digests WHERE email_id = %s", found
    )
    assert isinstance(digest, bytes)
    assert send(account, mail(text="bye")).code == 550
    ((_, again),) = account.served.rows(
        "SELECT digest, xmin::text FROM opensend_milter.row_digests WHERE email_id = %s", found
    )
    assert again == first


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.eml")), ids=lambda path: path.stem)
def test_the_database_names_a_content_as_we_do(served: Serving, path: Path) -> None:
    """The rule stands twice, in SQL and in Python: of every golden message both make the same."""
    raw = path.read_bytes()
    account = served.account()
    reading = read(raw, Limits())
    assert isinstance(reading, Reading)
    shown = [mailbox.address for mailbox in (*reading.to, *reading.cc)]
    info = served.url
    store = PostgresIntakeStore(
        info,
        Habits(duplicate_window=timedelta(), beside_opensend=False, billing=False),
        name="t",
        timeout_s=patience_s(),
    )
    try:
        policy = Policy(limits=Limits(), carries=Carries(max_line_octets=None), sender_domains="restricted-only")
        one = _message(raw, account.key, tuple(dict.fromkeys([*shown, "bcc@example.net"])))
        assert decide(Intake(store, policy), [one]) == [one.id]
    finally:
        store.close()
    ((digest,),) = served.rows("SELECT opensend_milter.row_digest(%s)", one.id)
    assert digest == row_digest(one, reading)


def _message(raw: bytes, key: str, recipients: tuple[str, ...]) -> Message:
    found = message(raw, *recipients)
    return replace(found, session=replace(found.session, key_id=KeyId(key)))
