"""The HTTP front door: the same rules, records and guarantees as SMTP."""

from __future__ import annotations

import gzip
import json
import os
import re
import signal
import socket
import threading
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from email import message_from_bytes, policy
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests import asking
from tests.acceptance.running_sandbox import Sandbox
from tests.acceptance.submitting import Account, delivered, revoke, rows, unique
from tests.asking import Answer
from tests.waiting import await_true, patience_s

TO = "to@example.net"
PNG = b64encode(b"\x89PNG\r\n\x1a\n" + bytes(200)).decode()


def ask(
    sandbox: Sandbox,
    method: str,
    path: str,
    payload: object = None,
    key: str | None = None,
    **headers: str,
) -> Answer:
    """Ask with the sandbox's key, another, or none (empty)."""
    if key != "":
        headers = {"Authorization": f"Bearer {key or sandbox['SANDBOX_API_KEY']}"} | headers
    return asking.ask(urlsplit(sandbox["SANDBOX_HTTP_URL"]).port or 0, method, path, payload, **headers)


def mail(**changes: object) -> dict[str, object]:
    return {"from": "App <app@sandbox.test>", "to": TO, "subject": "hi", "body": "hello"} | changes


def send(sandbox: Sandbox, **changes: object) -> str:
    """Send one; return its request_id."""
    answer = ask(sandbox, "POST", "/v1/send", mail(**changes))
    assert answer.status == 202, answer.body
    assert answer.body["status"] == "accepted"
    assert answer.headers["x-request-id"] == answer.body["request_id"]
    return str(answer.body["request_id"])


def test_a_message_arrives_as_it_was_asked_for(sandbox: Sandbox) -> None:
    """Text, html, an inline image, an attachment, headers; Bcc only in the envelope."""
    request_id = send(
        sandbox,
        to=["Ann <ann@example.net>", "bob@example.net"],
        cc="cc@example.net",
        bcc="hidden@example.net",
        reply_to="answers@sandbox.test",
        subject="Grüße \u2603",
        body="text ä",
        body_html='<p>html <img src="cid:logo"></p>',
        headers={"X-Campaign": "spring"},
        attachments=[
            {"filename": "löschen.pdf", "content_type": "application/pdf", "data": b64encode(b"%PDF").decode()},
            {"filename": "logo.png", "content_type": "image/png", "data": PNG, "content_id": "logo"},
        ],
    )
    found = delivered(sandbox, request_id)
    assert sorted(found.recipients) == ["ann@example.net", "bob@example.net", "cc@example.net", "hidden@example.net"]
    assert b"hidden@" not in found.content
    message = message_from_bytes(found.content, policy=policy.default)
    assert message["Subject"] == "Grüße \u2603"
    assert message["To"] == "Ann <ann@example.net>, bob@example.net"
    assert message["X-Campaign"] == "spring"
    assert message["Message-ID"]
    body, html = message.get_body(("plain",)), message.get_body(("html",))
    assert body
    assert html
    assert body.get_content().strip() == "text ä"
    assert "cid:logo" in html.get_content()
    names = [name for part in message.walk() if (name := part.get_filename())]
    assert sorted(names) == ["logo.png", "löschen.pdf"]


def test_the_submission_shows_the_truth_and_to_its_key_only(sandbox: Sandbox) -> None:
    answer = ask(sandbox, "POST", "/v1/send?wait=30", mail(to=[TO, "two@example.net"]))
    assert answer.status == 202
    shown = answer.body["submission"]
    assert shown["status"] == "smtp_accepted"
    assert shown["smtp"]["code"] == 250
    assert [one["email"] for one in shown["recipients"]] == [TO, "two@example.net"]
    request_id = answer.body["request_id"]
    assert ask(sandbox, "GET", f"/v1/submissions/{request_id}").body == shown
    assert ask(sandbox, "GET", f"/v1/submissions/{answer.body['id']}").body == shown
    other = Account.make(sandbox).key()
    for asked, key in ((request_id, other), ("req_" + "0" * 26, None), ("nonsense", None)):
        denied = ask(sandbox, "GET", f"/v1/submissions/{asked}", key=key)
        assert (denied.status, denied.body["code"]) == (404, "submission_not_found")
        assert denied.body["message"] == "no submission of this key has that id"


def test_a_key_lists_its_own_messages(sandbox: Sandbox) -> None:
    account = Account.make(sandbox)
    key = account.key()
    ids = [
        ask(sandbox, "POST", "/v1/send", mail(**{"from": f"a@{account.domain}"}), key).body["request_id"]
        for _ in range(3)
    ]
    page = ask(sandbox, "GET", "/v1/submissions?limit=2", key=key).body
    assert [one["request_id"] for one in page["submissions"]] == ids[:0:-1]
    rest = ask(sandbox, "GET", f"/v1/submissions?limit=2&before={page['next']}", key=key).body
    assert [one["request_id"] for one in rest["submissions"]] == ids[:1]
    for query in ("limit=0", "limit=1000", "status=x", "since=x", "before=x", "bulk=x", "unknown=1"):
        answer = ask(sandbox, "GET", f"/v1/submissions?{query}", key=key)
        assert answer.status == 400, query
        assert answer.body["errors"][0]["field"] == query.partition("=")[0]


@pytest.mark.case(75)
@pytest.mark.parametrize(
    ("changes", "status", "code", "field"),
    [
        ({"to": "suppressed@example.net"}, 400, "validation_failed", "to"),
        ({"to": "ſuppre\u00adſſed@ｅxample.net"}, 400, "validation_failed", "to"),
        ({"from": '"a@bank.example> "@sandbox.test'}, 400, "validation_failed", "from"),
        ({"from": '"Zoë ceo@bank.example" <app@sandbox.test>'}, 400, "validation_failed", "from"),
        ({"from": "a@unverified.test"}, 400, "validation_failed", "from"),
        ({"from": "a@b@sandbox.test"}, 400, "validation_failed", "from"),
        ({"to": []}, 400, "validation_failed", "to"),
        ({"subject": "a\r\nBcc: x@example.net"}, 400, "validation_failed", "subject"),
        ({"unknown": 1}, 400, "validation_failed", "unknown"),
    ],
)
def test_what_is_wrong_is_named(
    sandbox: Sandbox, changes: dict[str, object], status: int, code: str, field: str
) -> None:
    answer = ask(sandbox, "POST", "/v1/send", mail(**changes))
    assert (answer.status, answer.body["code"]) == (status, code)
    assert field in {error["field"] for error in answer.body["errors"]}
    assert not answer.body["retryable"]


def test_all_that_is_wrong_is_named_at_once(sandbox: Sandbox) -> None:
    answer = ask(sandbox, "POST", "/v1/send", mail(to=["x", "y@"], subject=7, extra=1))
    assert {error["field"] for error in answer.body["errors"]} >= {"to[0]", "to[1]", "subject", "extra"}


def test_one_shape_for_every_error(sandbox: Sandbox) -> None:
    """Also for those that no route of ours sees."""
    cases = [
        ("GET", "/nowhere", None, None, {}, 404),
        ("GET", "/v1/send", None, None, {}, 405),
        ("POST", "/v1/send", b"{", None, {}, 400),
        ("POST", "/v1/send", b"\xff", None, {}, 400),
        ("POST", "/v1/send", b"[]", None, {}, 400),
        ("POST", "/v1/send", b'{"to":"a","to":"b"}', None, {}, 400),
        ("POST", "/v1/send", mail(), "", {}, 401),
        ("POST", "/v1/send", mail(), "os_wrong", {}, 403),
        ("POST", "/v1/send", mail(), None, {"Content_Type": "text/plain"}, 415),
        ("POST", "/v1/send?wait=99", mail(), None, {}, 400),
        ("POST", "/v1/send", mail(), None, {"Idempotency_Key": "x" * 300}, 400),
    ]
    ids = set()
    for method, path, payload, key, headers, status in cases:
        answer = ask(sandbox, method, path, payload, key, **headers)
        assert answer.status == status, (path, answer.body)
        assert {"status", "code", "message", "request_id", "retryable"} <= answer.body.keys()
        assert answer.body["status"] == "error"
        assert answer.headers["x-request-id"] == answer.body["request_id"]
        ids.add(answer.body["request_id"])
    assert len(ids) == len(cases)


def test_the_same_key_and_content_is_taken_once(sandbox: Sandbox) -> None:
    """Another body under it is a conflict, and the first answer tells which it was."""
    name = unique("order")
    first = ask(sandbox, "POST", "/v1/send", mail(), Idempotency_Key=name)
    again = ask(sandbox, "POST", "/v1/send", mail(), Idempotency_Key=name)
    assert (first.status, again.status) == (202, 202)
    assert again.body["request_id"] == first.body["request_id"]
    other = ask(sandbox, "POST", "/v1/send", mail(body="other"), Idempotency_Key=name)
    assert (other.status, other.body["code"]) == (409, "idempotency_conflict")
    assert first.body["id"] in other.body["message"]


def test_a_bulk_is_taken_item_by_item(sandbox: Sandbox) -> None:
    """In order; one that is wrong hurts no other; all of it can be asked for."""
    messages = [mail(subject=f"bulk {n}") for n in range(20)]
    messages[3] = {"to": 7}
    messages[11] = mail(to="suppressed@example.net")
    answer = ask(sandbox, "POST", "/v1/send-bulk", {"messages": messages})
    assert answer.status == 202
    body = answer.body
    assert (body["total"], body["accepted"], body["rejected"]) == (20, 18, 2)
    assert [one["index"] for one in body["results"]] == list(range(20))
    assert [one["index"] for one in body["results"] if one["status"] == "rejected"] == [3, 11]
    assert body["results"][11]["errors"][0]["code"] == "recipient-suppressed"
    listed = ask(sandbox, "GET", f"/v1/submissions?limit=100&bulk={body['bulk_request_id']}").body["submissions"]
    accepted = {one["request_id"] for one in body["results"] if one["status"] == "accepted"}
    assert {one["request_id"] for one in listed} == accepted
    assert ask(sandbox, "POST", "/v1/send-bulk", {"messages": []}).status == 400
    assert ask(sandbox, "POST", "/v1/send-bulk", {"messages": [mail()] * 101}).status == 413


def test_a_bulk_that_is_sent_again_has_its_first_ids(sandbox: Sandbox) -> None:
    """And is stored once."""
    name, bulk = unique("bulk"), {"messages": [mail(subject=f"again {n}") for n in range(3)]}
    first, again = (ask(sandbox, "POST", "/v1/send-bulk", bulk, Idempotency_Key=name) for _ in range(2))
    ids = [one["request_id"] for one in first.body["results"]]
    assert [one["request_id"] for one in again.body["results"]] == ids
    assert len(set(ids)) == 3
    assert all(ask(sandbox, "GET", f"/v1/submissions/{one}").status == 200 for one in ids)


@pytest.mark.parametrize("path", ["/v1/send", "/v1/send-bulk", "/emails", "/emails/batch"])
def test_a_body_that_is_packed_is_refused_as_that(sandbox: Sandbox, path: str) -> None:
    """Whatever is in it: it is not read."""
    for coding in ("gzip", "br", "x-gzip", "identity, Deflate", "zstd"):
        answer = ask(sandbox, "POST", path, gzip.compress(json.dumps(mail()).encode()), Content_Encoding=coding)
        assert (answer.status, answer.body["code"], answer.body["statusCode"]) == (415, "unsupported_media_type", 415)
        assert answer.body["message"].endswith(" is not taken; send the body as it is")
        assert answer.headers["accept-encoding"] == "identity", "RFC 9110, 15.5.16"


@pytest.mark.parametrize("coding", ["identity", "Identity", "", "identity,identity"])
def test_a_body_that_says_that_it_is_not_packed_is_read(sandbox: Sandbox, coding: str) -> None:
    assert ask(sandbox, "POST", "/v1/send", mail(), Content_Encoding=coding).status == 202


def test_resends_clients_work(sandbox: Sandbox) -> None:
    """Their field names, their answer."""
    answer = ask(
        sandbox,
        "POST",
        "/emails",
        {"from": "App <app@sandbox.test>", "to": [TO], "subject": "hi", "html": "<p>hi</p>", "text": "hi"},
    )
    assert answer.status == 200
    assert re.fullmatch(r"[0-9a-f-]{36}", answer.body["id"])
    shown = ask(sandbox, "GET", f"/emails/{answer.body['id']}").body
    assert (shown["object"], shown["id"]) == ("email", answer.body["id"])
    batch = ask(
        sandbox, "POST", "/emails/batch", [{"from": "app@sandbox.test", "to": TO, "subject": "x", "text": "x"}] * 2
    )
    assert batch.status == 200
    assert len(batch.body["data"]) == 2


def test_a_key_may_see_what_it_is(sandbox: Sandbox) -> None:
    shown = ask(sandbox, "GET", "/v1/keys/self", key=sandbox["SANDBOX_RESTRICTED_API_KEY"]).body
    assert (shown["permission"], shown["domain"]) == ("sending_access", "sandbox.test")
    assert sandbox["SANDBOX_RESTRICTED_API_KEY"] not in json.dumps(shown)


def test_a_key_is_held_to_its_networks_and_its_switches(sandbox: Sandbox) -> None:
    """Also where nothing is sent."""
    account = Account.make(sandbox)
    key = account.key()
    settings = (
        "INSERT INTO opensend_milter.key_settings (key_id, networks, may_bulk)"
        " SELECT id, %s, false FROM api_keys WHERE user_id = %s"
    )
    rows(sandbox, settings, ["127.0.0.0/8"], account.user_id)
    assert ask(sandbox, "GET", "/v1/keys/self", key=key).body["may_bulk"] is False
    mine = mail(**{"from": f"a@{account.domain}"})
    assert ask(sandbox, "POST", "/v1/send", mine, key).status == 202
    refused = ask(sandbox, "POST", "/v1/send-bulk", {"messages": [mine]}, key)
    assert (refused.status, refused.body["code"]) == (403, "forbidden")
    rows(
        sandbox,
        "UPDATE opensend_milter.key_settings SET networks = '{192.0.2.0/24}'"
        " WHERE key_id IN (SELECT id FROM api_keys WHERE user_id = %s)",
        account.user_id,
    )
    for method, path in (("GET", "/v1/keys/self"), ("GET", "/v1/submissions"), ("POST", "/v1/send")):
        assert ask(sandbox, method, path, mine if method == "POST" else None, key).status == 403


def test_a_revoked_key_is_refused_at_once(sandbox: Sandbox) -> None:
    account = Account.make(sandbox)
    key = account.key()
    assert ask(sandbox, "GET", "/v1/keys/self", key=key).status == 200
    revoke(sandbox, key)
    assert ask(sandbox, "GET", "/v1/keys/self", key=key).status == 403


@pytest.mark.case(29)
@pytest.mark.parametrize("field", ["subject", "from_name", "headers", "filename", "content_type", "reply_to", "to"])
def test_no_header_can_be_smuggled_in(sandbox: Sandbox, field: str) -> None:
    """Refused, or spelled so that it stays a value."""
    evil = "x\r\nBcc: victim@example.net"
    file = {"filename": "a.txt", "content_type": "text/plain", "data": "eA=="}
    special: dict[str, dict[str, object]] = {
        "headers": {"headers": {"X-A": evil}},
        "filename": {"attachments": [file | {"filename": evil}]},
        "content_type": {"attachments": [file | {"content_type": "text/plain" + evil}]},
    }
    changes = special.get(field, {field: evil})
    answer = ask(sandbox, "POST", "/v1/send", mail(**changes))
    assert answer.status == 400, answer.body
    assert any(error["field"].startswith((field, "attachments")) for error in answer.body["errors"])


def test_a_client_that_goes_away_has_sent_once_or_not_at_all(sandbox: Sandbox) -> None:
    """And its Idempotency-Key tells which."""
    name = unique("gone")
    body = json.dumps(mail(subject=name)).encode()
    url = urlsplit(sandbox["SANDBOX_HTTP_URL"])
    head = (
        f"POST /v1/send HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {sandbox['SANDBOX_API_KEY']}\r\n"
        f"Content-Type: application/json\r\nIdempotency-Key: {name}\r\nContent-Length: {len(body)}\r\n\r\n"
    ).encode()
    with socket.create_connection((str(url.hostname), url.port), timeout=patience_s()) as connection:
        connection.sendall(head + body)
    answer = ask(sandbox, "POST", "/v1/send", mail(subject=name), Idempotency_Key=name)
    assert answer.status == 202
    query = "SELECT count(*) FROM emails WHERE subject = %s"
    assert rows(sandbox, query, name) == [(1,)]


@pytest.mark.case(56)
@pytest.mark.timeout(170)
def test_every_202_has_its_row_while_postgres_restarts(rough: Sandbox) -> None:
    """Every other answer is 503, and says that it may be tried again."""
    answers: list[tuple[int, Any]] = []
    over = threading.Event()

    def client(number: int) -> None:
        while not over.is_set():
            answer = ask(rough, "POST", "/v1/send", mail(subject=f"r{number}"))
            answers.append((answer.status, answer.body))

    def await_taken(more: int) -> None:
        def taken() -> int:
            return sum(status == 202 for status, _ in answers)

        enough = taken() + more
        await_true(lambda: taken() >= enough, lambda: answers[-50:])

    with ThreadPoolExecutor(50) as pool:
        clients = [pool.submit(client, number) for number in range(50)]
        try:
            await_taken(50)
            restart_postgres(rough)
            await_taken(50)
        finally:
            over.set()
        for one in clients:
            one.result()
    assert {status for status, _ in answers} <= {202, 503}
    assert all(body["retryable"] for status, body in answers if status == 503)
    accepted = [body["id"] for status, body in answers if status == 202]
    stored = "SELECT count(*), count(DISTINCT id) FROM emails WHERE id = ANY (%s::uuid[])"
    assert rows(rough, stored, accepted) == [(len(accepted), len(accepted))]


def restart_postgres(sandbox: Sandbox) -> None:
    pid = sandbox.pid("postgres")
    os.kill(pid, signal.SIGINT)
    await_true(lambda: _is_another(sandbox, pid), "another Postgres")


def _is_another(sandbox: Sandbox, pid: int) -> bool:
    try:
        return sandbox.pid("postgres") != pid
    except StopIteration:
        return False
