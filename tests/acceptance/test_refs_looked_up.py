"""A refusal is looked up by who got it: by its ref, and at the address in the reply of our Postfix."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest

from opensend_milter.core.refs import ref_of
from tests import asking
from tests.acceptance.running_sandbox import Sandbox, typed
from tests.acceptance.submitting import Account, Answer, rows, submit

PLANTED = ("plantedsender", "plantedrecipient", "plantedsubject", "plantedbody", "plantedagent")
RECIPIENT = "plantedrecipient@example.net"
MESSAGE = (
    b"From: plantedsender@unverified.test\r\nTo: plantedrecipient@example.net\r\nSubject: plantedsubject\r\n"
    b"X-Mailer: plantedagent\r\n\r\nplantedbody\r\n"
)


@dataclass(frozen=True)
class Page:
    """What a stranger sees at the address of a refusal."""

    status: int
    body: bytes


@dataclass(frozen=True)
class Looked:
    """The address that a reply ends with."""

    sandbox: Sandbox
    token: str

    @classmethod
    def up(cls, sandbox: Sandbox, reply: Answer) -> Looked:
        found = re.fullmatch(
            rf".*\b(see {re.escape(sandbox['SANDBOX_HTTP_URL'])}/r/([0-9A-Z]{{26}}))", reply.text, re.DOTALL
        )
        assert found, reply
        assert found[1] in reply.text.splitlines()[-1], "it is whole, in one line"
        return cls(sandbox, found[2])

    @property
    def ref(self) -> str:
        return ref_of(self.token)

    @property
    def address(self) -> str:
        return f"{self.sandbox['SANDBOX_HTTP_URL']}/r/{self.token}"

    def page(self) -> Page:
        answer = asking.ask(urlsplit(self.address).port or 0, "GET", urlsplit(self.address).path)
        return Page(answer.status, answer.body)


def refused(account: Account, message: bytes = MESSAGE, *recipients: str) -> Looked:
    with account.logged_in() as client:
        return Looked.up(
            account.sandbox, submit(client, message, *(recipients or (RECIPIENT,)), sender=PLANTED[0] + "@x.test")
        )


@pytest.fixture
def account(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch) -> Account:
    monkeypatch.setenv("DATABASE_URL", sandbox["SANDBOX_DATABASE_URL"])
    monkeypatch.setenv("OPENSEND_MILTER_CONFIG", f"{sandbox.directory}/opensend-milter.yaml")
    return Account.make(sandbox)


def test_a_refusal_is_found_by_all_that_its_reply_says(account: Account) -> None:
    looked = refused(account)
    for known in (looked.ref, looked.ref.lower(), looked.token, looked.address):
        (found,) = json.loads(typed("email", "show", known, "--json").stdout)["refusals"]
        assert (found["ref"], found["rule"], found["user_id"]) == (looked.ref, "from-unverified", account.user_id)
        assert (found["from_domain"], found["recipients"]) == ("unverified.test", [RECIPIENT])
        assert looked.token not in str(found)
    assert looked.ref in typed("email", "refusals", "--user", account.user_id).stdout
    (line,) = [one for one in account.sandbox.log("serve").splitlines() if f" ref={looked.ref} " in one]
    assert f"rule=from-unverified ref={looked.ref} " in line
    assert looked.token not in account.sandbox.log("serve")
    ((kept,),) = rows(account.sandbox, "SELECT token_hash FROM opensend_milter.refusals WHERE ref = %s", looked.ref)
    assert kept == hashlib.sha256(looked.token.encode()).digest()


def test_the_page_says_why_and_nothing_of_the_message(account: Account) -> None:
    looked = refused(account)
    page = looked.page()
    assert page.status == 200
    for said in (
        b"550 5.7.1",
        b"from-unverified",
        b"opensend-milter domain verify",
        b"unverified.test",
        looked.ref.encode(),
    ):
        assert said in page.body
    ((key_id,),) = rows(account.sandbox, "SELECT key_id FROM opensend_milter.refusals WHERE ref = %s", looked.ref)
    for hidden in (*PLANTED, "example.net", account.user_id, str(key_id), "127.0.0.1", "os_"):
        assert hidden.encode() not in page.body
    before = rows(account.sandbox, "SELECT r::text FROM opensend_milter.refusals r WHERE ref = %s", looked.ref)
    assert looked.page() == page
    assert rows(account.sandbox, "SELECT r::text FROM opensend_milter.refusals r WHERE ref = %s", looked.ref) == before
    assert looked.token not in account.sandbox.log("http")


def test_unknown_expired_and_pruned_look_the_same(account: Account) -> None:
    unknown, expired, pruned = Looked(account.sandbox, "0" * 26), refused(account), refused(account)
    assert expired.page().status == pruned.page().status == 200
    rows(
        account.sandbox,
        "UPDATE opensend_milter.refusals SET refused_at = now() - interval '30 days' WHERE ref = %s",
        expired.ref,
    )
    rows(account.sandbox, "DELETE FROM opensend_milter.refusals WHERE ref = %s", pruned.ref)
    pages = [unknown.page(), expired.page(), pruned.page()]
    assert {(page.status, page.body) for page in pages} == {(404, pages[0].body)}


def test_another_token_of_the_same_ref_shows_nothing(account: Account) -> None:
    """A ref stands in logs: it must not do for the page."""
    looked = refused(account)
    rows(account.sandbox, "UPDATE opensend_milter.refusals SET token_hash = 'x' WHERE ref = %s", looked.ref)
    assert looked.page().status == 404


def test_the_longest_text_leaves_the_address_whole(account: Account) -> None:
    addresses = [f"{'abcde' * 12}{number}@{'.'.join(['fghij' * 12] * 3)}.example" for number in range(9)]
    for address in addresses:
        account.suppress(address, "bounced")
    looked = refused(account, account.message(), *addresses)
    page = looked.page()
    assert page.status == 200
    assert b"recipient-suppressed" in page.body
    assert b"fghij" not in page.body
    assert account.domain.encode() in page.body


def test_a_message_that_was_not_read_has_no_domain_to_show(account: Account) -> None:
    page = refused(account, b"Subject: plantedsubject\r\n\r\nx\r\n").page()
    assert page.status == 200
    assert b"from-missing" in page.body
    assert b"planted" not in page.body


def test_over_http_each_that_is_refused_has_its_own(account: Account) -> None:
    letters = [{"from": "a@unverified.test", "to": RECIPIENT, "subject": "plantedsubject", "text": "x"}] * 2
    port, key = urlsplit(account.sandbox["SANDBOX_HTTP_URL"]).port or 0, account.key()
    ask = {"Authorization": f"Bearer {key}"}
    body = asking.ask(port, "POST", "/emails/batch", letters, **ask).body
    first, second = (error["ref"] for error in body["errors"])
    assert body["ref"] == first != second
    assert {one["queue_id"] for one in json.loads(typed("email", "show", first, "--json").stdout)["refusals"]} == {
        body["request_id"]
    }
    assert json.loads(typed("email", "show", second, "--json").stdout)["refusals"][0]["ref"] == second
    told = asking.ask(port, "GET", f"/v1/submissions/{body['request_id']}", **ask).body
    assert (told["status"], told["ref"]) == ("rejected", first)
    bulk = {"messages": [{"from": "a@unverified.test", "to": RECIPIENT, "subject": "plantedsubject", "body": "x"}]}
    (result,) = asking.ask(port, "POST", "/v1/send-bulk", bulk, **ask).body["results"]
    found = json.loads(typed("email", "show", result["errors"][0]["ref"], "--json").stdout)["refusals"]
    assert [one["queue_id"] for one in found] == [result["request_id"]]
