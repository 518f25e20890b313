"""From what a person knows to the right message: in one command, and in one request."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

import pytest
from typer.testing import CliRunner

from opensend_milter.cli import app_of
from opensend_milter.config import PATH_VARIABLE
from tests import asking
from tests.acceptance.running_sandbox import Sandbox
from tests.acceptance.submitting import delivered, rows, unique
from tests.waiting import await_found, await_true


@dataclass(frozen=True)
class Known:
    """What somebody knows of a message, by how it is called, and what is then to be found."""

    taken: Mapping[str, str]
    email_id: str
    refused: Mapping[str, str]
    refused_as: str
    """The queue id of the refusal."""


@pytest.fixture
def known(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Known:
    """One message that is delivered, and one that was refused."""
    monkeypatch.setenv(PATH_VARIABLE, sandbox[PATH_VARIABLE])
    word = unique("parcel").replace("-", "")
    seen, hidden = f"{word}@example.net", f"{word}-hidden@example.net"
    with sandbox.smtp() as client:
        client.mail("app@sandbox.test")
        client.rcpt(seen)
        client.rcpt(hidden)
        _, reply = client.data(
            f"From: app@sandbox.test\r\nTo: {seen}\r\nMessage-ID: <{word}@sandbox.test>\r\n"
            f"Subject: Your {word} is on its way\r\n\r\nHello.\r\n".encode()
        )
        queue_id = reply.decode().rpartition(" ")[2]
        client.mail("app@sandbox.test")
        client.rcpt(f"{word}-refused@example.net")
        code, refusal = client.data(
            f"From: app@{word}.example\r\nMessage-ID: <{word}-refused@x>\r\n\r\nHello.\r\n".encode()
        )
    assert code == 550, refusal
    delivered(sandbox, queue_id)
    ((email_id,),) = rows(
        sandbox, "SELECT email_id::text FROM opensend_milter.submissions WHERE queue_id = %s", queue_id
    )
    (refused_hit,) = await_found(
        lambda: found(f"{word}-refused@example.net", many=True) or None, "the refusal is noted"
    )
    address = re.search(rb"https?://\S+", refusal)
    assert address, refusal
    taken = {
        "a recipient's address": seen,
        "the address in other letters": seen.upper(),
        "a hidden recipient's address": hidden,
        "the Message-ID": f"<{word}@sandbox.test>",
        "the Message-ID without brackets": f"{word}@sandbox.test",
        "the queue id": queue_id,
        "a word of the subject": word,
        "words of the subject": f"way {word.upper()} your",
        "the id": email_id,
        "its first characters": email_id[:13],
        "its last characters": email_id[-12:],
    }
    refused = {
        "the ref": refused_hit["ref"],
        "the address in the answer": address[0].decode(),
        "its queue id": refused_hit["queue_id"],
        "the address that it was for": f"{word}-refused@example.net",
        "its Message-ID": f"<{word}-refused@x>",
    }
    return Known(taken, email_id, refused, refused_hit["queue_id"])


def found(x: str, *, many: bool = False) -> list[dict[str, str]]:
    """Return what `why` finds; one, and its story, unless there may be more."""
    ended = CliRunner().invoke(app_of(["why"]), ["why", x, "--json"])
    read = json.loads(ended.stdout)
    assert many or (read["story"] is None) == (len(read["messages"]) != 1)
    messages: list[dict[str, str]] = read["messages"]
    return messages


def asked(sandbox: Sandbox, x: str) -> list[dict[str, str]]:
    """Return what the key is told over HTTP."""
    port = urlsplit(sandbox["SANDBOX_HTTP_URL"]).port or 0
    key = f"Bearer {sandbox['SANDBOX_API_KEY']}"
    answer = asking.ask(port, "GET", f"/v1/messages?q={quote(x)}", Authorization=key)
    assert answer.status == 200, answer.body
    messages: list[dict[str, str]] = answer.body["messages"]
    return messages


def test_whatever_is_known_leads_to_it(sandbox: Sandbox, known: Known) -> None:
    """At once, and when the worker has noted it."""
    all_of_it_leads_there(sandbox, known)
    noted = "SELECT email_id FROM opensend_milter.search WHERE email_id = %s"
    await_true(lambda: rows(sandbox, noted, known.email_id), "it is noted")
    all_of_it_leads_there(sandbox, known)


def all_of_it_leads_there(sandbox: Sandbox, known: Known) -> None:
    for what, x in known.taken.items():
        assert [hit["id"] for hit in found(x)] == [known.email_id], what
        assert [hit["id"] for hit in asked(sandbox, x)] == [known.email_id], what
    for what, x in known.refused.items():
        assert [(hit["status"], hit["queue_id"]) for hit in found(x)] == [("refused", known.refused_as)], what
        assert [(hit["status"], hit["queue_id"]) for hit in asked(sandbox, x)] == [("refused", known.refused_as)], what


def test_one_screen_tells_what_became_of_it(known: Known) -> None:
    shown = CliRunner().invoke(app_of(["why"]), ["why", known.email_id])
    assert shown.stdout.startswith("sent to 2 of 2\n"), shown.stdout
    assert re.search(r"^[-0-9: ]{19}  taken by SMTP from 127\.0\.0\.1", shown.stdout, re.MULTILINE)
    assert "\nNext: The next hop has it" in shown.stdout
    refusal = CliRunner().invoke(app_of(["why"]), ["why", known.refused["the ref"]])
    assert refusal.stdout.startswith("refused by rule from-unverified: 550 5.7.1 ")
    assert "\nNext: Verify the domain: `opensend-milter domain verify" in refusal.stdout
