"""`POST /emails/batch` on the wire: all or nothing, or each for itself, as Resend has it."""

from __future__ import annotations

from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import LiteralString
from urllib.parse import urlsplit

import pytest

from tests.acceptance.running_sandbox import Sandbox
from tests.acceptance.submitting import Account, rows, unique
from tests.asking import Answer, ask

PERMISSIVE = {"x-batch-validation": "permissive"}
SUPPRESSED, UNVERIFIED = "gone@example.net", "a@unverified.test"
Letter = dict[str, object]


@dataclass(frozen=True)
class Sender:
    """A key of a user who has nothing stored yet."""

    account: Account
    key: str

    def letter(self, subject: object = "hi", **changes: object) -> Letter:
        sender = f"a@{self.account.domain}"
        return {"from": sender, "to": "to@example.net", "subject": str(subject), "text": "hello"} | changes

    def send(self, letters: object, **headers: str) -> Answer:
        return self.ask("POST", "/emails/batch", letters, **headers)

    def ask(self, method: str, path: str, payload: object = None, **headers: str) -> Answer:
        port = urlsplit(self.account.sandbox["SANDBOX_HTTP_URL"]).port or 0
        return ask(port, method, path, payload, Authorization=f"Bearer {self.key}", **headers)

    def stored(self) -> list[str]:
        """Return the subjects of what is stored, in the order of their ids."""
        query: LiteralString = "SELECT subject FROM emails WHERE user_id = %s ORDER BY id"
        return [subject for (subject,) in rows(self.account.sandbox, query, self.account.user_id)]

    def subject_of(self, email_id: str) -> str:
        ((subject,),) = rows(self.account.sandbox, "SELECT subject FROM emails WHERE id = %s::uuid", email_id)
        return str(subject)


@pytest.fixture
def sender(sandbox: Sandbox) -> Sender:
    account = Account.make(sandbox)
    account.suppress(SUPPRESSED, "bounced")
    return Sender(account, account.key())


@pytest.mark.parametrize("headers", [{}, {"x-batch-validation": "strict"}, {"X-Batch-Validation": " Strict "}])
def test_a_strict_batch_is_taken_whole_in_one_transaction(sender: Sender, headers: dict[str, str]) -> None:
    answer = sender.send([sender.letter(number) for number in range(5)], **headers)
    assert answer.status == 200
    assert answer.body.keys() == {"data"}
    assert [sender.subject_of(one["id"]) for one in answer.body["data"]] == list("01234")
    query: LiteralString = "SELECT count(DISTINCT xmin::text), count(DISTINCT bulk_id) FROM opensend_milter.submissions"
    assert rows(sender.account.sandbox, query + " WHERE user_id = %s", sender.account.user_id) == [(1, 1)]


WRONG = [
    ({"to": "no address"}, "to", "invalid"),
    ({"subject": ""}, "subject", "required"),
    ({"template": {"id": "x"}}, "template", "not_offered"),
    ({"from": UNVERIFIED}, "from", "from-unverified"),
    ({"to": SUPPRESSED}, "to", "recipient-suppressed"),
    ({"scheduled_at": "in 99 days"}, "scheduled_at", "control-field"),
]
"""By their fields, and by a rule."""


@pytest.mark.parametrize(("changes", "field", "code"), WRONG, ids=[code for *_, code in WRONG])
def test_one_that_is_wrong_keeps_a_strict_batch_out(
    sender: Sender, changes: dict[str, object], field: str, code: str
) -> None:
    """The answer names it by its index, in Resend's shape and words, and says nothing of the others."""
    wrong = sender.letter(**changes)
    answer = sender.send([sender.letter(), wrong, sender.letter(), wrong])
    assert (answer.status, answer.body["statusCode"], answer.body["name"]) == (400, 400, "validation_error")
    assert answer.body["message"].startswith("[1]: ")
    assert answer.body["message"].endswith("; nothing of this list was taken")
    assert [(one["index"], one["field"], one["code"]) for one in answer.body["errors"]] == [
        (1, field, code),
        (3, field, code),
    ]
    assert sender.stored() == []


def test_what_kept_a_strict_batch_out_is_found_by_the_id_of_the_answer(sender: Sender) -> None:
    answer = sender.send([sender.letter(), sender.letter(to=SUPPRESSED)])
    assert answer.headers["x-request-id"] == answer.body["request_id"]
    found = sender.ask("GET", f"/v1/submissions/{answer.body['request_id']}").body
    assert (found["status"], found["code"], found["recipient_count"]) == ("rejected", "recipient-suppressed", 1)
    query: LiteralString = "SELECT rule FROM opensend_milter.refusals WHERE user_id = %s"
    assert rows(sender.account.sandbox, query, sender.account.user_id) == [("recipient-suppressed",)]


def test_of_a_permissive_batch_each_is_for_itself(sender: Sender) -> None:
    letters = [
        sender.letter("first"),
        sender.letter(to="no address"),
        sender.letter("third"),
        sender.letter(to=SUPPRESSED),
        sender.letter("fifth"),
    ]
    answer = sender.send(letters, **PERMISSIVE)
    assert answer.status == 200
    assert [sender.subject_of(one["id"]) for one in answer.body["data"]] == ["first", "third", "fifth"]
    assert [one["index"] for one in answer.body["errors"]] == [1, 3]
    assert all(one.keys() == {"index", "message"} and one["message"] for one in answer.body["errors"])
    assert sorted(sender.stored()) == ["fifth", "first", "third"]


@pytest.mark.parametrize("wrong", [True, False], ids=["all of it is wrong", "nothing of it is wrong"])
def test_a_permissive_batch_has_both_lists_whatever_is_in_them(sender: Sender, wrong: bool) -> None:  # noqa: FBT001
    answer = sender.send([sender.letter(to=SUPPRESSED if wrong else "to@example.net")] * 2, **PERMISSIVE)
    assert answer.status == 200
    assert [len(answer.body[name]) for name in ("data", "errors")] == ([0, 2] if wrong else [2, 0])


@pytest.mark.parametrize("value", ["", "lenient", "strict, permissive"])
def test_another_validation_is_none(sender: Sender, value: str) -> None:
    answer = sender.send([sender.letter()], **{"x-batch-validation": value})
    assert (answer.status, answer.body["name"]) == (400, "validation_error")
    assert answer.body["message"] == "x-batch-validation: expected strict or permissive"
    assert sender.stored() == []


@pytest.mark.parametrize("letters", [{}, [], "x", None, [1, 2]])
@pytest.mark.parametrize("headers", [{}, PERMISSIVE], ids=["strict", "permissive"])
def test_what_is_no_list_of_messages(sender: Sender, letters: object, headers: dict[str, str]) -> None:
    answer = sender.send(b"null" if letters is None else letters, **headers)
    if letters == [1, 2] and headers:
        assert (answer.status, answer.body["data"], len(answer.body["errors"])) == (200, [], 2)
    else:
        assert (answer.status, answer.body["name"]) == (400, "validation_error")
    assert sender.stored() == []


@pytest.mark.parametrize("headers", [{}, PERMISSIVE], ids=["strict", "permissive"])
def test_a_batch_has_a_hundred_at_the_most(sender: Sender, headers: dict[str, str]) -> None:
    answer = sender.send([sender.letter()] * 101, **headers)
    assert (answer.status, answer.body["name"]) == (413, "validation_error")
    assert "over the limit of 100" in answer.body["message"]
    assert len(sender.send([sender.letter()] * 100, **headers).body["data"]) == 100
    assert len(sender.stored()) == 100


def test_attachments_and_times_may_be_in_a_batch(sender: Sender) -> None:
    """Resend takes neither there; we do."""
    file = {"filename": "a.txt", "content": b64encode(b"abc").decode()}
    answer = sender.send([sender.letter(attachments=[file]), sender.letter(scheduled_at="in 2 hours")])
    query: LiteralString = "SELECT status, jsonb_array_length(attachments) FROM emails WHERE id = %s::uuid"
    found = [rows(sender.account.sandbox, query, one["id"])[0] for one in answer.body["data"]]
    assert [length for _, length in found] == [1, 0]
    assert [status == "scheduled" for status, _ in found] == [False, True]


# ---------------------------------------------------------------------- sent again


@pytest.mark.case(64)
@pytest.mark.parametrize("headers", [{}, PERMISSIVE], ids=["strict", "permissive"])
def test_a_batch_that_is_sent_again_has_the_same_answer(sender: Sender, headers: dict[str, str]) -> None:
    letters = [sender.letter(number) for number in range(3)]
    if headers:
        letters.insert(1, sender.letter(to="no address"))
    named = {**headers, "Idempotency-Key": unique("batch")}
    first, again = (sender.send(letters, **named) for _ in range(2))
    assert first.status == 200
    assert again.body == first.body
    assert len(sender.stored()) == 3


@pytest.mark.case(64)
def test_a_strict_batch_that_comes_several_times_at_once_is_stored_once(sender: Sender) -> None:
    letters, named = [sender.letter(number) for number in range(20)], {"Idempotency-Key": unique("batch")}
    with ThreadPoolExecutor(6) as clients:
        answers = list(clients.map(lambda _: sender.send(letters, **named), range(6)))
    assert {answer.status for answer in answers} == {200}
    assert all(answer.body == answers[0].body for answer in answers)
    assert len(sender.stored()) == 20


@pytest.mark.case(65)
@pytest.mark.parametrize("headers", [{}, PERMISSIVE], ids=["strict", "permissive"])
def test_another_batch_under_the_same_name_is_refused(sender: Sender, headers: dict[str, str]) -> None:
    """Other content, another order, one less."""
    letters = [sender.letter(number) for number in range(3)]
    named = {**headers, "Idempotency-Key": unique("batch")}
    assert sender.send(letters, **named).status == 200
    for other in ([letters[0], sender.letter("other"), letters[2]], letters[::-1], letters[:2]):
        answer = sender.send(other, **named)
        assert (answer.status, answer.body["name"]) == (409, "invalid_idempotent_request")
        assert answer.body["code"] == "idempotency_conflict"
    assert sorted(sender.stored()) == ["0", "1", "2"]
    assert sender.send(letters, **named).status == 200, "the first one still is what it was"


@pytest.mark.case(65)
def test_a_longer_batch_under_the_same_name_is_another_one(sender: Sender) -> None:
    """Strict: nothing is taken; permissive: only what has no name yet, and the rest is in the errors."""
    letters = [sender.letter(number) for number in range(3)]
    named = {"Idempotency-Key": unique("batch")}
    assert sender.send(letters[:2], **named).status == 200
    assert sender.send(letters, **named).status == 409
    assert len(sender.stored()) == 2
    answer = sender.send(letters, **named, **PERMISSIVE)
    assert [sender.subject_of(one["id"]) for one in answer.body["data"]] == ["2"]
    assert [one["index"] for one in answer.body["errors"]] == [0, 1]


def test_a_strict_batch_that_was_refused_has_taken_no_name(sender: Sender) -> None:
    named = {"Idempotency-Key": unique("batch")}
    good = [sender.letter(number) for number in range(2)]
    assert sender.send([*good, sender.letter(to=SUPPRESSED)], **named).status == 400
    assert sender.send(good, **named).status == 200


# ---------------------------------------------------------------------- limits


def test_a_strict_batch_is_within_the_limit_of_a_day_or_refused(sender: Sender) -> None:
    query: LiteralString = (
        "INSERT INTO opensend_milter.key_settings (key_id, per_day) SELECT id, 5 FROM api_keys WHERE user_id = %s"
    )
    rows(sender.account.sandbox, query, sender.account.user_id)
    answer = sender.send([sender.letter()] * 6)
    assert (answer.status, answer.body["name"]) == (429, "daily_quota_exceeded")
    assert answer.body["message"].startswith("[5]: ")
    assert "retry-after" in answer.headers
    assert sender.stored() == []
    assert sender.send([sender.letter()] * 5).status == 200, "nothing was counted"
    assert sender.send([sender.letter()]).status == 429
