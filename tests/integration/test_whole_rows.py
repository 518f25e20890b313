"""What was taken while our own worker delivered is whole for OpenSend's, when that is to send it."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest

from opensend_milter.adapters.postgres import whole_rows
from opensend_milter.core import message
from opensend_milter.core.model import EmailId, Limits, Reading, Refuse
from tests.integration.outbox import job_store, rows
from tests.integration.private_postgres import Database
from tests.integration.serving import Serving, serving
from tests.milter_client import Answer
from tests.opensend_worker import Row, faults

TAKEN = Answer("d")
WAITING = 100
SMALL = b"QUJD\r\n"
LARGE = base64.encodebytes(bytes(range(256)) * 4_200).replace(b"\n", b"\r\n")
MEAGRE = """SELECT count(*) FROM emails WHERE jsonb_path_exists(attachments, '$[*] ? (!exists(@.content))')"""


def mail(number: int, content: bytes) -> bytes:
    """Make a message with an attachment in base64, and one that is empty."""
    part = b"--b\r\nContent-Type: image/png; name=%s\r\nContent-Transfer-Encoding: base64\r\n\r\n%s\r\n"
    return (
        b"From: app@example.org\r\nTo: to@example.net\r\nMessage-ID: <%d@app>\r\nSubject: hi\r\nMIME-Version: 1.0\r\n"
        b"Content-Type: multipart/mixed; boundary=b\r\n\r\n"
        % number
        + part % ("a\u00e9.png".encode(), content)
        + part % (b"none.png", b"")
        + b"--b--\r\n"
    )


@pytest.fixture
def alone(beside: Database) -> Iterator[Serving]:
    """Serve by itself on tables of OpenSend's, for which one day its own worker will deliver."""
    with serving(beside.url, beside.password_dir) as served:
        yield served


def taken(served: Serving, number: int, content: bytes) -> None:
    with served.client() as client:
        assert client.message(served.key, mail(number, content)) == TAKEN


def stored(database: Database) -> list[Row]:
    found = rows(database, "SELECT to_jsonb(e) FROM emails e ORDER BY id")
    return [row for (row,) in found]


def test_all_that_waits_at_a_switch_can_be_sent_by_opensend(alone: Serving, beside: Database) -> None:
    """Two that announce begin at once; each row has what is stored beside OpenSend."""
    for number in range(WAITING):
        taken(alone, number, LARGE if number % 20 == 0 else SMALL)
    later = "UPDATE opensend_milter.jobs SET not_before = now() + interval '1 h' WHERE email_id = %s RETURNING 1"
    rows(beside, later, stored(beside)[0]["id"])
    assert rows(beside, MEAGRE) == [(WAITING // 20,)]

    def announcing(_: int) -> set[EmailId]:
        with closing(job_store(beside, hand_over=True)) as store:
            return {one.email_id for one in store.due_announcements(WAITING)}

    with ThreadPoolExecutor(2) as pool:
        told = list(pool.map(announcing, range(2)))
    assert not told[0] & told[1]
    with closing(job_store(beside, hand_over=True)) as store:
        assert (store.make_whole(), store.make_whole()) == (1, 0), "what is not due yet"
    assert rows(beside, MEAGRE) == [(0,)]
    assert rows(beside, "SELECT count(*) FROM opensend_milter.pieces") == [(0,)]
    found = stored(beside)
    contents = [[one["content"] for one in row["attachments"]] for row in found]
    assert contents == [[(LARGE if n % 20 == 0 else SMALL).decode(), ""] for n in range(WAITING)]
    assert {one["filename"] for row in found for one in row["attachments"]} == {"a\u00e9.png", "none.png"}
    assert [faults(row) for row in found] == [[]] * WAITING


def test_what_cannot_be_read_back_is_not_handed_over(
    alone: Serving, beside: Database, caplog: pytest.LogCaptureFixture
) -> None:
    taken(alone, 1, LARGE)
    taken(alone, 2, SMALL)
    rows(
        beside,
        "DELETE FROM opensend_milter.raw_chunks WHERE email_id = (SELECT min(id::text)::uuid FROM emails) RETURNING 1",
    )
    with closing(job_store(beside, hand_over=True)) as store, caplog.at_level(logging.ERROR, whole_rows.__name__):
        assert len(store.due_announcements(10)) == 1
    assert "cannot be handed over" in caplog.text


def test_one_that_we_trip_over_keeps_no_other_back(
    alone: Serving, beside: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def read(raw: bytes, limits: Limits) -> Reading | Refuse:
        if b"<1@app>" in raw:
            raise ZeroDivisionError
        return message.read(raw, limits)

    for number in (1, 2):
        taken(alone, number, LARGE)
    monkeypatch.setattr(whole_rows, "read", read)
    with closing(job_store(beside, hand_over=True)) as store:
        assert len(store.due_announcements(10)) == 1
    assert rows(beside, MEAGRE) == [(1,)]
    assert "could not be read" in caplog.text


def test_what_wider_bounds_let_in_is_handed_over(beside: Database) -> None:
    fields = b"".join(b"X-Field-%d: 1\r\n" % number for number in range(1_500))
    with (
        serving(beside.url, beside.password_dir, size={"max_header_fields": 2_000}) as served,
        served.client() as client,
    ):
        assert client.message(served.key, fields + mail(1, LARGE)) == TAKEN
    with closing(job_store(beside, hand_over=True)) as store:
        assert len(store.due_announcements(10)) == 1
    assert rows(beside, MEAGRE) == [(0,)]
