"""Limits as a client meets them: what HTTP says of them, and failed logins over SMTP."""

from __future__ import annotations

import os
import re
import signal
import smtplib
import ssl
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, LiteralString
from urllib.parse import urlsplit

import pytest
import yaml

from tests.acceptance.running_sandbox import Sandbox, closed_on_failure
from tests.acceptance.submitting import Account, authenticate, rows
from tests.asking import Answer, ask
from tests.waiting import await_true, patience_s

FAILED_PER_MINUTE = 3
PUT_OFF, WRONG, TAKEN = 454, 535, 235


@dataclass(frozen=True)
class Client:
    """A key with a limit of its own."""

    account: Account
    key: str

    def send(self, path: str, payload: object, **more: str) -> Answer:
        port = urlsplit(self.account.sandbox["SANDBOX_HTTP_URL"]).port or 0
        return ask(port, "POST", path, payload, Authorization=f"Bearer {self.key}", **more)

    def mail(self, **changes: object) -> dict[str, object]:
        sender = f"a@{self.account.domain}"
        return {"from": sender, "to": "to@example.net", "subject": "hi", "body": "hello"} | changes

    def resend(self, **changes: object) -> dict[str, object]:
        sender = f"a@{self.account.domain}"
        return {"from": sender, "to": "to@example.net", "subject": "hi", "text": "hello"} | changes

    def stored(self) -> list[str]:
        query: LiteralString = "SELECT subject FROM emails WHERE user_id = %s ORDER BY subject"
        return [subject for (subject,) in rows(self.account.sandbox, query, self.account.user_id)]


def client(sandbox: Sandbox, per_minute: int = 0, **settings: object) -> Client:
    """Make one; `per_minute` 0: no limit."""
    account = Account.make(sandbox)
    found = Client(account, account.key())
    rows(
        sandbox,
        "INSERT INTO opensend_milter.key_settings (key_id, per_minute, may_html)"
        " SELECT id, %s, %s FROM api_keys WHERE user_id = %s",
        per_minute or None,
        settings.get("may_html", True),
        account.user_id,
    )
    return found


def limit(found: Answer) -> tuple[int, int]:
    """Return what is left, and the seconds until all of it is there again."""
    matched = re.fullmatch(r'"key";r=(\d+);t=(\d+)', found.headers["ratelimit"])
    assert matched, found.headers
    return int(matched[1]), int(matched[2])


@pytest.mark.parametrize("path", ["/v1/send", "/emails", "/v1/send-bulk", "/emails/batch"])
def test_what_is_left_is_told_with_every_answer(sandbox: Sandbox, path: str) -> None:
    """Until it is 429: then also when to come again."""
    ours = client(sandbox, per_minute=4)
    one = ours.mail() if path.startswith("/v1") else ours.resend()
    several = {"/v1/send-bulk": {"messages": [one]}, "/emails/batch": [one]}
    answers = [ours.send(path, several.get(path, one)) for _ in range(5)]
    assert [found.status for found in answers] == [202 if path.startswith("/v1") else 200] * 4 + [429]
    assert {found.headers["ratelimit-policy"] for found in answers} == {'"key";q=4;w=60'}
    assert [limit(found)[0] for found in answers] == [3, 2, 1, 0, 0]
    assert all(15 * (index + 1) - 14 <= limit(found)[1] <= 60 for index, found in enumerate(answers[:4]))
    assert [index for index, found in enumerate(answers) if "retry-after" in found.headers] == [4]
    assert 1 <= int(answers[4].headers["retry-after"]) <= 15
    assert (answers[4].body["code"], answers[4].body["retryable"]) == ("rate_limited", True)


def test_nothing_is_told_where_no_limit_is(sandbox: Sandbox) -> None:
    ours = client(sandbox)
    found = [ours.send("/v1/send", ours.mail()), ours.send("/v1/send-bulk", {"messages": [ours.mail()] * 2})]
    assert [one.status for one in found] == [202, 202]
    assert not [name for one in found for name in one.headers if name.startswith(("ratelimit", "retry-after"))]


@pytest.mark.parametrize(("per_minute", "count", "taken"), [(5, 12, 5), (600, 100, 100), (20, 20, 20)])
def test_a_bulk_is_taken_as_far_as_the_limit_goes(sandbox: Sandbox, per_minute: int, count: int, taken: int) -> None:
    """In order; the rest may be sent again, and more than a burst is no reason to take nothing."""
    ours = client(sandbox, per_minute=per_minute)
    found = ours.send("/v1/send-bulk", {"messages": [ours.mail(subject=f"{n:03}") for n in range(count)]})
    assert found.status == 202
    assert (found.body["total"], found.body["accepted"], found.body["rejected"]) == (count, taken, count - taken)
    results = found.body["results"]
    assert [one["status"] for one in results] == ["accepted"] * taken + ["rejected"] * (count - taken)
    assert all((one["code"], one["retryable"]) == ("rate_limited", True) for one in results[taken:])
    assert len({one["request_id"] for one in results}) == count
    assert ours.stored() == [f"{n:03}" for n in range(taken)]
    assert limit(found)[0] == 0 or taken == count
    assert ("retry-after" in found.headers) == (taken < count)


def test_the_rest_of_a_bulk_fits_when_it_was_said_to(sandbox: Sandbox) -> None:
    """All of it, after the seconds that Retry-After names."""
    ours = client(sandbox, per_minute=600)
    first = ours.send("/v1/send-bulk", {"messages": [ours.mail(subject="first")] * 98})
    assert first.body["accepted"] == 98
    second = ours.send("/v1/send-bulk", {"messages": [ours.mail(subject=f"{n:02}") for n in range(40)]})
    rest = [one["index"] for one in second.body["results"] if one["status"] == "rejected"]
    assert 0 < len(rest) < 40
    time.sleep(int(second.headers["retry-after"]))  # what a client would do
    third = ours.send("/v1/send-bulk", {"messages": [ours.mail(subject=f"{n:02}") for n in rest]})
    assert third.body["accepted"] == len(rest)
    assert ours.stored() == [f"{n:02}" for n in range(40)] + ["first"] * 98


def test_a_bulk_that_is_repeated_as_a_whole_gets_to_its_end(sandbox: Sandbox) -> None:
    """Under its Idempotency-Key: though all of it never fits into a burst, what is ours already takes no place."""
    ours = client(sandbox, per_minute=97)
    bulk = {"messages": [ours.mail(subject=f"{n:02}") for n in range(100)]}
    first = ours.send("/v1/send-bulk", bulk, Idempotency_Key="the-bulk")
    assert first.body["accepted"] == 97
    time.sleep(int(first.headers["retry-after"]))  # what a client would do
    again = ours.send("/v1/send-bulk", bulk, Idempotency_Key="the-bulk")
    assert again.body["accepted"] == 100
    assert "retry-after" not in again.headers
    assert again.body["results"][:97] == first.body["results"][:97]
    assert ours.stored() == [f"{n:02}" for n in range(100)]


def test_a_batch_of_resends_clients_is_taken_as_far_as_the_limit_goes(sandbox: Sandbox) -> None:
    ours = client(sandbox, per_minute=2)
    permissive = {"x-batch-validation": "permissive"}
    found = ours.send("/emails/batch", [ours.resend(subject=f"{n}") for n in range(4)], **permissive)
    assert (found.status, len(found.body["data"])) == (200, 2)
    assert [(one["index"], one["message"]) for one in found.body["errors"]] == [
        (2, "too many messages, try again later"),
        (3, "too many messages, try again later"),
    ]
    assert ours.stored() == ["0", "1"]


def test_a_strict_batch_fits_when_it_was_said_to(sandbox: Sandbox) -> None:
    """All of it, after the seconds that Retry-After names; until then nothing."""
    ours = client(sandbox, per_minute=600)
    batch = [ours.resend(subject=f"{n:02}") for n in range(60)]
    assert ours.send("/emails/batch", batch).status == 200
    refused = ours.send("/emails/batch", batch)
    assert (refused.status, refused.body["name"]) == (429, "rate_limit_exceeded")
    assert len(ours.stored()) == 60
    time.sleep(int(refused.headers["retry-after"]))  # what a client would do
    assert ours.send("/emails/batch", batch).status == 200
    assert len(ours.stored()) == 120


def test_a_strict_batch_that_never_fits_is_not_put_off(sandbox: Sandbox) -> None:
    ours = client(sandbox, per_minute=3)
    refused = ours.send("/emails/batch", [ours.resend()] * 4)
    assert (refused.status, refused.body["retryable"]) == (413, False)
    assert "lets 3 through at once; send fewer, or with x-batch-validation: permissive" in refused.body["message"]
    assert ours.stored() == []


@pytest.mark.parametrize(
    ("path", "changes", "field"),
    [
        ("/v1/send", {"send_at": "2020-01-01T00:00:00Z"}, "send_at"),
        ("/emails", {"scheduled_at": "2020-01-01T00:00:00Z"}, "scheduled_at"),
        ("/emails", {"scheduledAt": "in 99 days"}, "scheduled_at"),
        ("/v1/send", {"body_html": "<p>x</p>"}, "body_html"),
        ("/emails", {"html": "<p>x</p>"}, "html"),
        ("/v1/send", {"from": "a@unverified.test"}, "from"),
    ],
)
def test_a_field_is_called_as_the_request_called_it(
    sandbox: Sandbox, path: str, changes: dict[str, Any], field: str
) -> None:
    """Also in the words beside it: nobody who speaks HTTP has to know a header field of ours."""
    ours = client(sandbox, may_html=False)
    payload = ours.mail(**changes) if path == "/v1/send" else ours.resend(**changes)
    found = ours.send(path, payload)
    assert (found.status, found.body["name"]) == (
        (403, "restricted_api_key") if "html" in field else (400, "validation_error")
    )
    (error,) = found.body["errors"]
    assert error["field"] == field
    assert "X-OpenSend" not in error["message"] + found.body["message"]


# ---------------------------------------------------------------------- failed logins over SMTP


@pytest.fixture
def strict(rough: Sandbox) -> Iterator[Sandbox]:
    """A sandbox in which a client may fail a few times only, and whose database writes down each statement."""
    config = rough.directory / "opensend-milter.yaml"
    usual = config.read_text()
    content = yaml.safe_load(usual)
    content["limits"]["failed_per_minute"] = FAILED_PER_MINUTE
    rows(rough, "ALTER SYSTEM SET log_statement = 'all'")
    config.write_text(yaml.safe_dump(content))
    start_again(rough)
    yield rough
    config.write_text(usual)
    rows(rough, "ALTER SYSTEM RESET log_statement")
    start_again(rough)


def start_again(sandbox: Sandbox) -> None:
    """Let the gate and the database read their configurations."""
    rows(sandbox, "SELECT pg_reload_conf()")
    before = sandbox.pid("auth-gate")
    os.kill(before, signal.SIGTERM)
    await_true(lambda: is_started_again(sandbox, before), "it is started again")


def is_started_again(sandbox: Sandbox, before: int) -> bool:
    with suppress(StopIteration, smtplib.SMTPServerDisconnected):  # there is none at this moment
        return sandbox.pid("auth-gate") != before and log_in_from(sandbox, "127.0.0.9", key_of(sandbox)) == TAKEN
    return False


def key_of(sandbox: Sandbox) -> str:
    return sandbox["SANDBOX_API_KEY"]


def log_in_from(sandbox: Sandbox, address: str, key: str) -> int:
    """Log in on a connection of its own; return the code."""
    host, port = sandbox["SANDBOX_SMTP_HOST"], int(sandbox["SANDBOX_SMTP_PORT"])
    connection = smtplib.SMTP(host, port, timeout=patience_s(), source_address=(address, 0))
    with closed_on_failure(connection):
        connection.starttls(context=ssl.create_default_context(cafile=sandbox["SANDBOX_TLS_CA"]))
        connection.ehlo()
        code = authenticate(connection, "PLAIN", f"\0apikey\0{key}".encode()).code
    connection.close()
    return code


def questions(sandbox: Sandbox) -> int:
    """Count how often Dovecot has asked the database for a key."""
    return sandbox.log("postgres").count("opensend_milter.key_id(")


@pytest.mark.timeout(170)
def test_a_client_that_fails_to_log_in_is_put_off_before_the_database_is_asked(strict: Sandbox) -> None:
    """454, never 535, also with a good key; a client with another address is not put off."""
    before = questions(strict)
    with ThreadPoolExecutor(FAILED_PER_MINUTE) as pool:
        failed = list(pool.map(lambda n: log_in_from(strict, "127.0.0.1", f"os_wrong{n}"), range(FAILED_PER_MINUTE)))
    assert failed == [WRONG] * FAILED_PER_MINUTE
    asked = questions(strict) - before
    assert asked == FAILED_PER_MINUTE
    began = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        more = list(pool.map(lambda n: log_in_from(strict, "127.0.0.1", f"os_wrong{n}"), range(100)))
    refilled = (time.monotonic() - began) * FAILED_PER_MINUTE / 60 + 1
    assert set(more) <= {PUT_OFF, WRONG}
    assert more.count(WRONG) <= refilled
    assert questions(strict) - before - asked == more.count(WRONG)
    assert log_in_from(strict, "127.0.0.1", key_of(strict)) == PUT_OFF
    assert log_in_from(strict, "127.0.0.2", key_of(strict)) == TAKEN
    assert log_in_from(strict, "127.0.0.2", "os_wrong") == WRONG
