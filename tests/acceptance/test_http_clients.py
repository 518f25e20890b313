"""Clients that were written for others: curl as one calls http-smtp-rele, and Resend's own package."""

from __future__ import annotations

import json
import re
import subprocess
from base64 import b64encode
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email import message_from_bytes, policy
from email.message import EmailMessage
from typing import Any

import pytest
import resend
from resend.exceptions import ResendError

from tests.acceptance.running_sandbox import Sandbox
from tests.acceptance.second_front_door import front_door
from tests.acceptance.submitting import Account, Delivered, delivered, rows, unique
from tests.waiting import await_found, patience_s

DEFAULT_FROM = "default@sandbox.test"
REQUEST_ID = re.compile(r"req_[0-9A-HJKMNP-TV-Z]{26}")
PDF = b"%PDF-1.7 a report"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256))
LEAST = {"to": "user@example.net", "subject": "A subject", "body": "A text"}


def parsed(found: Delivered) -> EmailMessage:
    message = message_from_bytes(found.content, policy=policy.default)
    assert [part.defects for part in message.walk() if part.defects] == []
    return message


def files(message: EmailMessage) -> dict[str | None, tuple[str, Any]]:
    return {
        part.get_filename(): (part.get_content_type(), part.get_content())
        for part in message.walk()
        if part.get_filename()
    }


def text_of(message: EmailMessage, kind: str) -> str:
    part = message.get_body((kind,))
    assert part
    return str(part.get_content()).strip()


# ---------------------------------------------------------------------- http-smtp-rele


@dataclass(frozen=True, slots=True)
class Answer:
    """What curl was told."""

    status: int
    headers: dict[str, str]
    body: Any


@dataclass(frozen=True, slots=True)
class Rele:
    """A server with a From of its own, as each http-smtp-rele has, and curl to ask it."""

    url: str
    key: str

    def curl(self, path: str, payload: object = None, *options: str, key: str | None = None) -> Answer:
        """Run curl; a payload that is no text is sent as JSON; `key` empty: without one."""
        command = ["curl", "-sS", "-D", "-", f"{self.url}{path}", *options]
        if key != "":
            command += ["-H", f"Authorization: Bearer {key or self.key}"]
        if payload is not None:
            if not any("Content-Type" in option for option in options):
                command += ["-H", "Content-Type: application/json"]
            command += ["--data-binary", "@-"]
        body = payload if isinstance(payload, str) else json.dumps(payload)
        done = subprocess.run(command, input=body.encode(), capture_output=True, timeout=patience_s(), check=True)
        # An answer 100 stands in front, where curl asked for it.
        *_, head, content = done.stdout.rsplit(b"\r\n\r\n", 1)
        first, *fields = head.decode().rpartition("\r\n\r\n")[2].split("\r\n")
        headers = {name.lower(): value for name, _, value in (field.partition(": ") for field in fields)}
        return Answer(int(first.split(" ")[1]), headers, json.loads(content))


@pytest.fixture(scope="module")
def rele(sandbox: Sandbox) -> Iterator[Rele]:
    with front_door(sandbox, default_from=DEFAULT_FROM) as url:
        yield Rele(url, sandbox["SANDBOX_API_KEY"])


@pytest.mark.parametrize("authentication", ["Authorization: Bearer {}", "authorization: bearer {}", "X-API-Key: {}"])
def test_rele_send_with_what_is_required(sandbox: Sandbox, rele: Rele, authentication: str) -> None:
    """No `from`: the configured one. 202, `accepted` and an id, in the header too; one status afterwards."""
    answer = rele.curl("/v1/send", LEAST, "-H", authentication.format(rele.key), key="")
    assert answer.status == 202, answer.body
    request_id = answer.body["request_id"]
    assert answer.body["status"] == "accepted"
    assert REQUEST_ID.fullmatch(request_id)
    assert answer.headers["x-request-id"] == request_id
    found = delivered(sandbox, request_id)
    message = parsed(found)
    assert (message["From"], message["To"], message["Subject"]) == (DEFAULT_FROM, LEAST["to"], LEAST["subject"])
    assert found.return_path == DEFAULT_FROM
    assert (message.get_content_type(), text_of(message, "plain")) == ("text/plain", LEAST["body"])


def test_rele_send_with_every_documented_field(sandbox: Sandbox, rele: Rele) -> None:
    answer = rele.curl(
        "/v1/send",
        {
            "to": ["one@example.net", "two@example.net"],
            "cc": ["three@example.org"],
            "subject": "Ihre Rechnung für März",
            "body": "Text mit Umlauten: äöü\n",
            "body_html": "<p>Text mit <b>Umlauten</b></p>",
            "from_name": "Buchhaltung, Köln",
            "reply_to": ["books@sandbox.test", "office@sandbox.test"],
            "attachments": [
                {"filename": "report.pdf", "content_type": "application/pdf", "data": b64encode(PDF).decode()},
                {"filename": "picture.png", "content_type": "image/png", "data": b64encode(PNG).decode()},
            ],
            "metadata": {"request_id": "mine-1", "anything": [1, {"else": None}]},
        },
    )
    assert answer.status == 202, answer.body
    found = delivered(sandbox, answer.body["request_id"])
    assert sorted(found.recipients) == ["one@example.net", "three@example.org", "two@example.net"]
    message = parsed(found)
    assert [one.display_name for one in message["From"].addresses] == ["Buchhaltung, Köln"]
    assert [one.addr_spec for one in message["From"].addresses] == [DEFAULT_FROM]
    assert message["To"] == "one@example.net, two@example.net"
    assert message["Cc"] == "three@example.org"
    assert message["Reply-To"] == "books@sandbox.test, office@sandbox.test"
    assert message["Subject"] == "Ihre Rechnung für März"
    assert text_of(message, "plain") == "Text mit Umlauten: äöü"
    assert text_of(message, "html") == "<p>Text mit <b>Umlauten</b></p>"
    assert files(message) == {"report.pdf": ("application/pdf", PDF), "picture.png": ("image/png", PNG)}
    assert "mine-1" not in found.content.decode()


def test_rele_submissions_end_as_accepted_and_are_the_keys_own(sandbox: Sandbox, rele: Rele) -> None:
    request_id = rele.curl("/v1/send", LEAST | {"to": ["a@example.net", "b@example.org"]}).body["request_id"]
    delivered(sandbox, request_id)

    def final() -> Answer | None:
        found = rele.curl(f"/v1/submissions/{request_id}")
        assert found.body["status"] in {"received", "smtp_submission_started", "smtp_accepted"}
        return found if found.body["status"] == "smtp_accepted" else None

    shown = await_found(final, "it is accepted")
    assert shown.status == 200
    assert {
        "request_id", "status", "code", "message", "recipient_domains", "recipient_count", "created_at", "updated_at",
        "expires_at",
    } <= shown.body.keys()  # fmt: skip
    assert (shown.body["request_id"], shown.body["code"]) == (request_id, None)
    assert (shown.body["recipient_domains"], shown.body["recipient_count"]) == (["example.net", "example.org"], 2)
    created, updated = (datetime.fromisoformat(shown.body[name]) for name in ("created_at", "updated_at"))
    assert created <= updated <= datetime.now(UTC) + timedelta(seconds=5)
    for key in (Account.make(sandbox).key(), None):
        asked = request_id if key else f"req_{'0' * 26}"
        denied = rele.curl(f"/v1/submissions/{asked}", key=key)
        assert (denied.status, denied.body["code"]) == (404, "submission_not_found")


def test_rele_bulk_keeps_its_order_and_refuses_item_by_item(sandbox: Sandbox, rele: Rele) -> None:
    good = [LEAST | {"to": f"{name}@example.net", "subject": f"Bulk {name}"} for name in ("first", "third")]
    answer = rele.curl("/v1/send-bulk", {"messages": [good[0], LEAST | {"to": "no address"}, good[1]]})
    assert answer.status == 202
    body = answer.body
    assert (body["total"], body["accepted"], body["rejected"]) == (3, 2, 1)
    assert isinstance(body["bulk_request_id"], str)
    assert [one["index"] for one in body["results"]] == [0, 1, 2]
    assert [one["status"] for one in body["results"]] == ["accepted", "rejected", "accepted"]
    assert body["results"][1]["code"] == "validation_failed"
    assert body["results"][1]["message"]
    assert len({one["request_id"] for one in body["results"]}) == 3
    for index, asked in ((0, good[0]), (2, good[1])):
        assert parsed(delivered(sandbox, body["results"][index]["request_id"]))["Subject"] == asked["subject"]


def test_rele_what_needs_no_message(rele: Rele) -> None:
    health, ready = rele.curl("/healthz", key=""), rele.curl("/readyz", key="")
    assert (health.status, health.body["status"]) == (200, "ok")
    assert (ready.status, ready.body["status"]) == (200, "ready")
    key = rele.curl("/v1/keys/self")
    assert key.status == 200
    assert key.body["id"]
    assert rele.key not in json.dumps(key.body)


Asked = tuple[Any, ...]
"""Path, payload and options of curl."""
TOO_MANY = {"messages": [LEAST] * 101}
FILE = {"filename": "a.txt", "content_type": "text/plain", "data": "QUJD"}


@pytest.mark.parametrize(
    ("asked", "key", "status", "code"),
    [
        (("/v1/send", LEAST), "", 401, "unauthorized"),
        (("/v1/send", LEAST, "-H", "Authorization: Basic eDp5"), "", 401, "unauthorized"),
        (("/v1/send", LEAST), "no-such-key", 403, "forbidden"),
        (("/v1/send", "{"), None, 400, "bad_request"),
        (("/v1/send", LEAST | {"template": "x"}), None, 400, "validation_failed"),
        (("/v1/send", LEAST | {"html_body": "x"}), None, 400, "validation_failed"),
        (("/v1/send", LEAST | {"subject": 7}), None, 400, "validation_failed"),
        (("/v1/send", LEAST | {"subject": " "}), None, 400, "validation_failed"),
        (("/v1/send", LEAST | {"to": []}), None, 400, "validation_failed"),
        (("/v1/send", LEAST | {"cc": "no address"}), None, 400, "validation_failed"),
        (("/v1/send", LEAST | {"from_name": "a\r\nBcc: b@example.net"}), None, 400, "validation_failed"),
        (("/v1/send", LEAST | {"body": "\0"}), None, 400, "validation_failed"),
        (("/v1/send", LEAST | {"attachments": [FILE | {"data": "?"}]}), None, 400, "validation_failed"),
        (("/v1/send", LEAST | {"attachments": [FILE | {"filename": "../a"}]}), None, 400, "validation_failed"),
        (("/v1/send", LEAST, "-H", "Content-Type: text/plain"), None, 415, "unsupported_media_type"),
        (("/v1/send-bulk", {"messages": []}), None, 400, "bad_request"),
        (("/v1/send-bulk", {"messages": [LEAST], "more": 1}), None, 400, "bad_request"),
        (("/v1/send-bulk", TOO_MANY), None, 413, "payload_too_large"),
        (("/v1/submissions/nonsense", None), None, 404, "submission_not_found"),
        (("/v1/send", None), None, 405, "method_not_allowed"),
        (("/nowhere", None), None, 404, "not_found"),
    ],
)
def test_rele_errors_have_their_codes(rele: Rele, asked: Asked, key: str | None, status: int, code: str) -> None:
    path, payload, *options = asked
    answer = rele.curl(path, payload, *options, key=key)
    assert (answer.status, answer.body["code"]) == (status, code), answer.body
    assert answer.body["status"] == "error"
    assert answer.body["message"]
    assert answer.body["request_id"] == answer.headers["x-request-id"]


# ---------------------------------------------------------------------- Resend


def queue_id_of(sandbox: Sandbox, email_id: str) -> str:
    ((queue_id,),) = rows(
        sandbox, "SELECT queue_id FROM opensend_milter.submissions WHERE email_id = %s::uuid", email_id
    )
    return str(queue_id)


def letter(**changes: object) -> resend.Emails.SendParams:
    least: Any = {"from": "Ann <ann@sandbox.test>", "to": ["bob@example.net"], "subject": "Hi", "text": "a text"}
    changed: resend.Emails.SendParams = least | changes
    return changed


def test_resend_sends_all_that_it_knows(resend_at: Sandbox) -> None:
    """Tags and the files arrive; Bcc is in no header field."""
    sent = resend.Emails.send(
        letter(
            to=["Bob <bob@example.net>", "jörg@bücher.example"],
            cc="carl@example.net",
            bcc=["hidden@example.net"],
            reply_to=["answers@sandbox.test"],
            subject="Grüße ☃",
            html='<p>hello <img src="cid:logo"></p>',
            headers={"X-Entity-Ref-ID": "42", "List-Unsubscribe": "<https://example.org/u>"},
            tags=[{"name": "campaign", "value": "spring"}],
            attachments=[
                {"filename": "report.pdf", "content": list(PDF)},
                {"filename": "logo.png", "content": b64encode(PNG).decode(), "content_id": "logo"},
            ],
        )
    )
    found = delivered(resend_at, queue_id_of(resend_at, sent["id"]))
    assert sorted(found.recipients) == [
        "bob@example.net", "carl@example.net", "hidden@example.net", "jörg@bücher.example",
    ]  # fmt: skip
    assert b"hidden@" not in found.content
    message = parsed(found)
    assert message["From"] == "Ann <ann@sandbox.test>"
    assert message["Cc"] == "carl@example.net"
    assert message["Reply-To"] == "answers@sandbox.test"
    assert message["Subject"] == "Grüße ☃"
    assert (message["X-Entity-Ref-ID"], message["List-Unsubscribe"]) == ("42", "<https://example.org/u>")
    assert text_of(message, "plain") == "a text"
    assert "cid:logo" in text_of(message, "html")
    assert files(message) == {"report.pdf": ("application/pdf", PDF), "logo.png": ("image/png", PNG)}
    ((tags,),) = rows(resend_at, "SELECT tags FROM emails WHERE id = %s::uuid", sent["id"])
    assert "campaign" in json.dumps(tags)
    assert resend.Emails.get(sent["id"])["id"] == sent["id"]


def test_resend_puts_off(resend_at: Sandbox) -> None:
    at = (datetime.now(UTC) + timedelta(days=2)).replace(microsecond=0)
    for asked, off in ((at.isoformat(), timedelta(days=2)), ("in 1 min", timedelta(minutes=1))):
        sent = resend.Emails.send(letter(scheduled_at=asked))
        query = "SELECT status, scheduled_at FROM emails WHERE id = %s::uuid"
        ((status, scheduled_at),) = rows(resend_at, query, sent["id"])
        assert status == "scheduled"
        assert abs(scheduled_at - datetime.now(UTC) - off) < timedelta(seconds=30)


@pytest.mark.usefixtures("resend_at")
def test_resend_sends_once_under_one_idempotency_key() -> None:
    options: resend.Emails.SendOptions = {"idempotency_key": unique("order")}
    first, again = (resend.Emails.send(letter(), options) for _ in range(2))
    assert again["id"] == first["id"]
    with pytest.raises(ResendError) as raised:
        resend.Emails.send(letter(text="another"), options)
    assert str(raised.value.code) == "409"


def test_resend_sends_a_batch(resend_at: Sandbox) -> None:
    subjects = [unique("batch") for _ in range(3)]
    sent = resend.Batch.send([letter(subject=subject) for subject in subjects])
    assert [
        parsed(delivered(resend_at, queue_id_of(resend_at, one["id"])))["Subject"] for one in sent["data"]
    ] == subjects


@pytest.mark.parametrize(
    ("changes", "code", "name"),
    [
        ({"to": ["no address"]}, 400, "validation_error"),
        ({"template": {"id": "x"}}, 400, "validation_error"),
        ({"from": "ann@unverified.test"}, 400, "validation_error"),
    ],
)
@pytest.mark.usefixtures("resend_at")
def test_resend_is_told_what_is_wrong(changes: dict[str, object], code: int, name: str) -> None:
    """As an error that the package knows, with our text."""
    with pytest.raises(ResendError) as raised:
        resend.Emails.send(letter(**changes))
    assert raised.value.message
    assert (int(raised.value.code), raised.value.error_type) == (code, name)


@pytest.mark.usefixtures("resend_at")
def test_resend_is_told_that_its_key_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resend, "api_key", "re_wrong")
    with pytest.raises(ResendError) as raised:
        resend.Emails.send(letter())
    assert int(raised.value.code) == 403
