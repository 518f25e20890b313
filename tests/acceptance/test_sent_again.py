"""Through the whole product: sent twice, delivered once; sent later, not before its time; what is for us stays here."""

from __future__ import annotations

import smtplib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import LiteralString

import pytest

from tests.acceptance.running_sandbox import Sandbox
from tests.acceptance.submitting import (
    FROM,
    TAKEN,
    Account,
    delivered,
    in_inbox,
    nothing_stored,
    rows,
    stored,
    submit,
    unique,
)
from tests.waiting import await_true


@pytest.fixture
def client(sandbox: Sandbox) -> Iterator[smtplib.SMTP]:
    """Log in with the key that may send from any verified domain."""
    with sandbox.smtp() as client:
        yield client


def message(*fields: str, text: str = "hi") -> bytes:
    head = "".join(f"{field}\r\n" for field in fields)
    return FROM + f"{head}Subject: hi\r\n\r\n{text}\r\n".encode()


def submissions(sandbox: Sandbox, recipient: str) -> list[tuple[str, int]]:
    """Return queue id and number of repetitions of all that was stored for a recipient."""
    query = "SELECT queue_id, repeats FROM opensend_milter.submissions WHERE recipients = %s ORDER BY received_at"
    return [(queue_id, repeats) for queue_id, repeats in rows(sandbox, query, [recipient])]


def await_sent(sandbox: Sandbox, recipient: str) -> None:
    """Wait until nothing is left to be delivered to a recipient."""
    query: LiteralString = (
        "SELECT count(*) FROM opensend_milter.jobs JOIN opensend_milter.submissions USING (email_id)"
        " WHERE submissions.recipients = %s"
    )
    await_true(lambda: rows(sandbox, query, [recipient]) == [(0,)], "nothing is left")


def copies(sandbox: Sandbox, mark: str) -> int:
    return sum(mark.encode() in path.read_bytes() for path in sandbox.inbox())


@pytest.mark.case(64)
def test_the_same_message_twice_is_stored_and_delivered_once(sandbox: Sandbox, client: smtplib.SMTP) -> None:
    """On one connection, on another one, and with what Postfix adds to each."""
    mark, recipient = unique(), f"{unique()}@example.net"
    raw = message(f"Message-ID: <{mark}@app>")
    first = submit(client, raw, recipient)
    assert first.codes == TAKEN
    with nothing_stored(sandbox):
        again = submit(client, raw, recipient)
        with sandbox.smtp() as other:
            third = submit(other, raw, recipient)
    assert again.codes == third.codes == TAKEN
    assert len({first.queue_id, again.queue_id, third.queue_id}) == 3
    assert submissions(sandbox, recipient) == [(first.queue_id, 2)]
    await_true(lambda: f"{third.queue_id}: email=" in sandbox.log("serve"), "the third is logged")
    log = sandbox.log("serve")
    (email_id,) = {line.split("email=")[1].split()[0] for line in log.splitlines() if f" {first.queue_id}: " in line}
    for repeated in (again, third):
        assert any(
            f" {repeated.queue_id}: email={email_id} " in line and " status=repeated " in line
            for line in log.splitlines()
        )
    delivered(sandbox, first.queue_id)
    await_sent(sandbox, recipient)
    assert copies(sandbox, mark) == 1


@pytest.mark.case(65)
def test_a_message_built_again_under_its_idempotency_key_is_delivered_once(
    sandbox: Sandbox, client: smtplib.SMTP
) -> None:
    mark, recipient = unique(), f"{unique()}@example.net"
    raw = [message(f"Message-ID: <{n}-{mark}@app>", f"Date: Mon, 0{n} Jan 2026 00:00:00 +0000",
                   f"Idempotency-Key: {mark}") for n in (1, 2)]  # fmt: skip
    first, again = (submit(client, each, recipient) for each in raw)
    assert first.codes == again.codes == TAKEN
    refused = submit(client, message(f"Idempotency-Key: {mark}", text="other"), recipient)
    assert refused.codes == (550, "5.7.1")
    assert submissions(sandbox, recipient) == [(first.queue_id, 1)]
    found = delivered(sandbox, first.queue_id)
    assert b"Idempotency-Key" not in found.content
    await_sent(sandbox, recipient)
    assert copies(sandbox, mark) == 1


@pytest.mark.case(64)
def test_what_the_client_gives_no_name_is_never_taken_for_a_repetition(sandbox: Sandbox, client: smtplib.SMTP) -> None:
    """A name that is not the client's is none."""
    recipient = f"{unique()}@example.net"
    queue_ids = [submit(client, message(), recipient).queue_id for _ in range(2)]
    assert submissions(sandbox, recipient) == [(queue_id, 0) for queue_id in queue_ids]
    for queue_id in queue_ids:
        delivered(sandbox, queue_id)


def test_control_fields_are_followed_and_do_not_leave(sandbox: Sandbox, client: smtplib.SMTP) -> None:
    fields = ["X-OpenSend-Tag: campaign=spring", "X-OpenSend-Metadata-Order: 4711", "X-Kept: yes"]
    queue_id = submit(client, message(*fields)).queue_id
    row = stored(sandbox, queue_id).row
    assert row["tags"] == [{"name": "campaign", "value": "spring"}]
    assert row["document"] == {"metadata": {"order": "4711"}}
    content = delivered(sandbox, queue_id).content
    assert b"X-OpenSend" not in content
    assert b"X-Kept: yes\r\n" in content
    refused = submit(client, message("X-OpenSend-Tag: not a tag"))
    assert refused.codes == (554, "5.6.0")
    assert "X-OpenSend-Tag" in refused.text


def test_a_message_for_later_is_delivered_when_it_is_due_and_not_before(sandbox: Sandbox, client: smtplib.SMTP) -> None:
    at = datetime.now(UTC) + timedelta(hours=1)
    later = submit(client, message(f"X-OpenSend-Send-At: {at.isoformat()}")).queue_id
    now = submit(client, message()).queue_id
    delivered(sandbox, now)
    assert stored(sandbox, later).row["status"] == "scheduled"
    assert in_inbox(sandbox, f" id {later};") is None
    time_has_come: LiteralString = (
        "WITH due AS (UPDATE emails SET scheduled_at = now() WHERE id = %s AND scheduled_at = %s RETURNING id)"
        " UPDATE opensend_milter.jobs SET not_before = now() FROM due WHERE email_id = id AND not_before = %s"
        " RETURNING true"
    )
    assert rows(sandbox, time_has_come, stored(sandbox, later).row["id"], at, at) == [(True,)]
    assert b"X-OpenSend" not in delivered(sandbox, later).content
    await_true(lambda: stored(sandbox, later).row["status"] == "sent", "it is sent")


@pytest.mark.case(36)
def test_a_key_may_leave_suppressed_recipients_out(sandbox: Sandbox) -> None:
    account = Account.make(sandbox)
    account.suppress("bad@example.net", "bounced")
    ((key_id,),) = rows(
        sandbox,
        "INSERT INTO opensend_milter.key_settings (key_id, on_suppressed)"
        " SELECT id, 'drop-recipient' FROM api_keys WHERE token_hash = encode(sha256(%s), 'hex') RETURNING key_id",
        (key := account.key()).encode(),
    )
    assert key_id
    with account.logged_in(key) as client:
        queue_id = submit(client, account.message(), "bad@example.net", "good@example.net").queue_id
        assert submit(client, account.message(), "bad@example.net").codes == (550, "5.7.1")
    with account.logged_in() as client:
        assert submit(client, account.message(), "bad@example.net", "good@example.net").codes == (550, "5.7.1")
    assert delivered(sandbox, queue_id).recipients == ["good@example.net"]
