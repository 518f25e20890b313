"""What becomes of a message after its 250: the way it leaves, who is told, and what comes back."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from email import message_from_bytes
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from standardwebhooks.webhooks import Webhook

from opensend_milter.core.dsn import return_path
from opensend_milter.core.model import EmailId
from opensend_milter.core.signing import derived
from tests.acceptance.running_sandbox import Sandbox
from tests.acceptance.submitting import Account, delivered, in_inbox, rows, submit, unique
from tests.waiting import await_found, await_true, patience_s

HTML = (
    '<html><body><p>Hello, <a href="https://shop.example/a?b=1&amp;c=2">look</a>'
    ' or <a href="https://shop.example/unsubscribe">leave</a></p></body></html>'
)


@pytest.fixture
def account(sandbox: Sandbox) -> Account:
    return Account.make(sandbox)


def command(sandbox: Sandbox, *words: str, stdin: bytes | None = None) -> subprocess.CompletedProcess[bytes]:
    """Run one of our commands on the sandbox, as its superuser."""
    return subprocess.run(
        [sys.executable, "-m", "opensend_milter", *words, "--config", f"{sandbox.directory}/opensend-milter.yaml"],
        input=stdin,
        capture_output=True,
        check=False,
        timeout=patience_s(),
        env=os.environ | {"DATABASE_URL": sandbox["SANDBOX_DATABASE_URL"]},
    )


def done(sandbox: Sandbox, *words: str) -> str:
    finished = command(sandbox, *words)
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.decode()


def email_id_of(account: Account, queue_id: str) -> EmailId:
    query = "SELECT email_id::text FROM opensend_milter.submissions WHERE queue_id = %s"
    ((email_id,),) = rows(account.sandbox, query, queue_id)
    return EmailId(email_id)


def has_event(account: Account, email_id: EmailId, kind: str) -> bool:
    query = "SELECT true FROM email_events WHERE email_id = %s AND type = %s"
    return bool(rows(account.sandbox, query, email_id, kind))


def report_on(email_id: EmailId, recipient: str, status: str) -> bytes:
    """Write a delivery report as a mail server does."""
    return (
        "From: MAILER-DAEMON@mx.example.net\r\nTo: b@bounces.example\r\nSubject: Undelivered\r\nMIME-Version: 1.0\r\n"
        'Content-Type: multipart/report; report-type=delivery-status; boundary="x"\r\n\r\n'
        "--x\r\nContent-Type: text/plain\r\n\r\nsorry\r\n"
        "--x\r\nContent-Type: message/delivery-status\r\n\r\n"
        f"Reporting-MTA: dns; mx.example.net\r\nX-Id: {email_id}\r\n\r\n"
        f"Final-Recipient: rfc822; {recipient}\r\nAction: failed\r\nStatus: {status}\r\n"
        f"Diagnostic-Code: smtp; 550 {status} no such user\r\n\r\n--x--\r\n"
    ).encode()


def test_after_a_hard_bounce_the_address_is_refused(account: Account) -> None:
    """A report without a valid token changes nothing; the real one counts once, however often it comes."""
    sandbox, gone = account.sandbox, f"{unique('gone')}@example.net"
    with account.logged_in() as client:
        email_id = email_id_of(account, submit(client, account.message(), gone).queue_id)
        await_true(lambda: has_event(account, email_id, "sent"), "event sent")
        ((secret,),) = rows(sandbox, "SELECT secret FROM opensend_milter.secrets WHERE name = 'signing'")
        ours = return_path(derived(secret, "return-path"), email_id, "bounces.example")
        forged = return_path(derived(secrets.token_bytes(32), "return-path"), email_id, "bounces.example")
        report = report_on(email_id, gone, "5.1.1")
        for address in (forged, f"b-{email_id}@bounces.example", ours, ours):
            assert command(sandbox, "feedback", "bounce", f"--recipient={address}", stdin=report).returncode == 0
        await_true(lambda: has_event(account, email_id, "bounced"), "event bounced")
        refused = submit(client, account.message(), gone)
    assert refused.codes == (550, "5.7.1")
    assert f"{gone} (bounced)" in refused.text
    kinds = "SELECT type, count(*) FROM email_events WHERE email_id = %s GROUP BY 1 ORDER BY 1"
    assert rows(sandbox, kinds, email_id) == [("bounced", 1), ("sent", 1)]
    evidence = "SELECT reason, source_email_id::text, metadata FROM email_suppressions WHERE email = %s"
    ((reason, source, metadata),) = rows(sandbox, evidence, gone)
    assert (reason, source) == ("bounced", email_id)
    assert "no such user" in json.dumps(metadata)


@contextmanager
def receiver() -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """Run a customer's web server; yield its address and what it was told."""
    calls: list[tuple[dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            calls.append((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}/hook", calls
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_a_webhook_is_told_and_can_check_who_tells_it(account: Account) -> None:
    """From the 250 to the customer's own verification."""
    sandbox = account.sandbox
    rows(sandbox, 'INSERT INTO "user" (id, name, email) VALUES (%s, %s, %s)', *[account.user_id] * 3)
    with receiver() as (url, calls):
        added = json.loads(
            done(sandbox, "webhook", "add", url, "--user", account.user_id, "--events", "email.sent", "--json")
        )
        with account.logged_in() as client:
            email_id = email_id_of(account, submit(client, account.message(), "to@example.net").queue_id)
        await_true(lambda: calls, lambda: sandbox.log("worker")[-2_000:])
        headers, body = calls[0]
    told = Webhook(added["secret"]).verify(body, headers)
    assert told["type"] == "email.sent"
    assert told["data"]["email_id"] == email_id
    assert done(sandbox, "webhook", "secret", added["webhook"]["id"]).strip() == added["secret"]


def html_message(account: Account, to: str) -> bytes:
    body = b64encode(HTML.encode()).decode()
    return (
        f"From: app@{account.domain}\r\nTo: {to}\r\nSubject: look\r\nMIME-Version: 1.0\r\n"
        "Content-Type: text/html; charset=utf-8\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        f"{body}\r\n"
    ).encode()


def test_opens_and_clicks_are_counted_where_the_domain_asks(account: Account) -> None:
    """And the link leads where it always led; one that unsubscribes is left alone."""
    sandbox = account.sandbox
    message = html_message(account, "to@example.net")
    with account.logged_in() as client:
        plain = delivered(sandbox, submit(client, message, "to@example.net").queue_id)
        assert plain.content.endswith(message)
        done(sandbox, "domain", "set", account.domain, "--user", account.user_id, "--track-opens", "--track-clicks")
        queue_id = submit(client, message.replace(b"look\r\n", b"look again\r\n", 1), "to@example.net").queue_id
    tracked = message_from_bytes(delivered(sandbox, queue_id).content).get_payload(decode=True)
    assert isinstance(tracked, bytes)
    links = re.findall(rb'(?:href|src)="([^"]+)"', tracked)
    base = sandbox["SANDBOX_HTTP_URL"].encode()
    click, leave, pixel = links
    assert leave == b"https://shop.example/unsubscribe"
    assert click.startswith(base + b"/api/track/click/")
    assert pixel.startswith(base + b"/api/track/open/")
    email_id = email_id_of(account, queue_id)
    assert urllib.request.urlopen(pixel.decode(), timeout=patience_s()).headers["Content-Type"] == "image/gif"  # noqa: S310
    with pytest.raises(urllib.error.HTTPError) as redirected:
        urllib.request.build_opener(_NoRedirect).open(click.decode(), timeout=patience_s())
    assert redirected.value.code == 302
    assert redirected.value.headers["Location"] == "https://shop.example/a?b=1&c=2"
    redirected.value.close()
    await_true(lambda: has_event(account, email_id, "opened"), "event opened")
    await_true(lambda: has_event(account, email_id, "clicked"), "event clicked")


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: object) -> None:
        return None


def test_a_domain_chooses_its_courier(account: Account) -> None:
    """Fixed when the message comes in; the bytes are the same on every way."""
    sandbox = account.sandbox
    done(sandbox, "domain", "set", account.domain, "--user", account.user_id, "--courier", "file")
    with account.logged_in() as client:
        queue_id = submit(client, account.message(), "to@example.net").queue_id
    found = delivered(sandbox, queue_id)
    assert found.recipients == ["to@example.net"]
    ((payload,),) = await_found(
        lambda: (
            rows(
                sandbox,
                "SELECT payload FROM email_events WHERE type = 'sent' AND email_id = %s",
                email_id_of(account, queue_id),
            )
            or None
        ),
        "event sent",
    )
    assert payload["courier"] == "file"


def test_a_scheduled_message_waits_and_can_be_taken_back(account: Account) -> None:
    """The other one goes out at its time."""
    sandbox = account.sandbox
    with account.logged_in() as client:
        send_at = "X-OpenSend-Send-At: in {}\r\n"
        later = submit(client, account.message(send_at.format("2 hours")), "to@example.net").queue_id
        done(sandbox, "email", "cancel", later)
    status = (
        "SELECT e.status FROM emails e JOIN opensend_milter.submissions s ON s.email_id = e.id WHERE s.queue_id = %s"
    )
    assert rows(sandbox, status, later) == [("canceled",)]
    assert command(sandbox, "email", "cancel", later).returncode == 1
    assert in_inbox(sandbox, f" id {later};") is None


def test_what_is_left_of_a_message_can_be_looked_up(account: Account) -> None:
    sandbox = account.sandbox
    with account.logged_in() as client:
        queue_id = submit(client, account.message(), "to@example.net").queue_id
    delivered(sandbox, queue_id)
    await_true(lambda: has_event(account, email_id_of(account, queue_id), "sent"), "event sent")
    shown = json.loads(done(sandbox, "email", "show", queue_id, "--json"))
    assert shown["email"]["status"] == "sent"
    assert [event["type"] for event in shown["events"]] == ["sent"]
