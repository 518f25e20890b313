"""The suppression list in whatever spelling: what it has otherwise than it is compared is noted, and so is found."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace

import pytest

from opensend_milter.adapters.postgres import spellings
from opensend_milter.adapters.postgres.intake import Habits, PostgresIntakeStore
from opensend_milter.adapters.postgres.spellings import PostgresSpellings
from opensend_milter.core.model import Address, Identity, KeyId, Question
from tests.integration.outbox import rows
from tests.integration.private_postgres import Database
from tests.waiting import patience_s

KEY = KeyId("0198c5a2-7f00-7abc-8def-0123456789ab")
PLAIN = ["plain@example.net", "a-b+c@sub.example.net", "{x}~@xn--exmple-cua.net"]
ODD = {
    "ſuppressed@example.net": "suppressed@example.net",
    "two@ｅxample.net": "two@example.net",
    "th\u200bree@example.net": "three@example.net",
    "FOUR@Example.net": "four@example.net",
    " five@example.net ": "five@example.net",
    '"six"@example.net': "six@example.net",
    "seven@EXÄMPLE.net": "seven@xn--exmple-cua.net",
}


@pytest.fixture
def noting(database: Database) -> Iterator[PostgresSpellings]:
    """As the worker has it."""
    opened = PostgresSpellings(database.url_for("opensend_worker"), name="opensend-spellings", timeout_s=patience_s())
    yield opened
    opened.close()


def put(database: Database, *emails: str, user: str = "u1") -> None:
    """As OpenSend does, or a person in its tables."""
    rows(
        database,
        "INSERT INTO email_suppressions (user_id, email, reason) SELECT %s, unnest(%s::text[]), 'manual'",
        user,
        list(emails),
    )


def noted(database: Database) -> dict[str, str]:
    return dict(rows(database, "SELECT email, folded FROM opensend_milter.odd_spellings"))


def suppressed(database: Database, *recipients: str) -> set[str]:
    """Ask as serve does before it takes a message of u1."""
    rows(
        database,
        "INSERT INTO api_keys (id, name, token_hash, user_id) VALUES (%s, 'k', 'h', 'u1') ON CONFLICT DO NOTHING",
        KEY,
    )
    habits = Habits(duplicate_window=timedelta(0), beside_opensend=False, billing=False)
    store = PostgresIntakeStore(database.url_for("opensend_milter"), habits, name="t", timeout_s=patience_s())
    question = Question(
        key_id=KEY,
        sender_domains=("x.net", "x.net"),
        recipients=tuple(map(Address, recipients)),
        identity=Identity(content_digest=b"", fingerprint=None, idempotency_key=None),
    )
    try:
        (facts,) = store.facts_for([question])
    finally:
        store.close()
    return {str(address) for address, _ in facts.suppressed}


@pytest.mark.case(36)
@pytest.mark.case(75)
def test_an_odd_spelling_of_the_list_is_found(database: Database, noting: PostgresSpellings) -> None:
    put(database, *PLAIN, *ODD)
    put(database, "OTHER@example.net", user="u2")
    noting.step()
    assert noted(database) == ODD | {"OTHER@example.net": "other@example.net"}
    meant = {*PLAIN, *ODD.values()}
    assert suppressed(database, *meant, "other@example.net", "eight@example.net") == meant
    assert suppressed(database, "SUPPRESSED@ＥＸＡＭＰＬＥ.net", "ſeven@exämple.net") == {
        "SUPPRESSED@ＥＸＡＭＰＬＥ.net",
        "ſeven@exämple.net",
    }


def test_however_long_the_list_all_of_it_is_gone_through(
    database: Database, noting: PostgresSpellings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spellings, "AT_ONCE", 3)
    for user in ("u1", "u2"):
        put(database, *(f"{letter}{number}@example.net" for letter in "aB" for number in range(5)), user=user)
    for _ in range(2):
        noting.step()
        assert noted(database) == {f"B{number}@example.net": f"b{number}@example.net" for number in range(5)}
    assert rows(database, "SELECT count(*) FROM opensend_milter.odd_spellings") == [(10,)]


def test_what_is_no_address_is_nobody(database: Database, noting: PostgresSpellings) -> None:
    put(database, "Jane <jane@example.net>", "Everybody")
    noting.step()
    assert noted(database) == {email: email for email in ("Jane <jane@example.net>", "Everybody")}


def test_what_is_on_the_list_no_more_holds_nobody_back(database: Database, noting: PostgresSpellings) -> None:
    put(database, *ODD)
    noting.step()
    rows(database, "DELETE FROM email_suppressions WHERE email <> 'FOUR@Example.net'")
    assert suppressed(database, *ODD.values()) == {"four@example.net"}
    noting.step()
    assert noted(database) == {"FOUR@Example.net": "four@example.net"}


def test_a_short_list_is_gone_through_soon_again_however_long_it_took(
    database: Database, noting: PostgresSpellings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A long one takes long each time; a short one was kept waiting."""
    times = iter((0, 60, 100, 160))
    monkeypatch.setattr(spellings, "time", SimpleNamespace(monotonic=lambda: next(times)))
    put(database, *PLAIN)
    assert noting.step() == spellings.EVERY_S
    monkeypatch.setattr(spellings, "AT_ONCE", 2)
    assert noting.step() == 60 * spellings.SHARE
