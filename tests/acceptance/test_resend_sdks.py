"""Resend's own packages for Python and Node.js call every method that they have."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import resend
from resend.exceptions import ResendError

from tests.acceptance.running_sandbox import Sandbox
from tests.acceptance.submitting import rows, unique
from tests.waiting import patience_s

LETTER: dict[str, Any] = {
    "from": "Ann <ann@sandbox.test>",
    "to": ["bob@example.net"],
    "cc": "carl@example.net",
    "subject": "Hi",
    "text": "a text",
    "html": "<p>a text</p>",
    "headers": {"X-Entity-Ref-ID": "42"},
    "tags": [{"name": "campaign", "value": "spring"}],
    "attachments": [{"filename": "a.txt", "content": "YWJj"}],
}
WRONG = LETTER | {"to": ["no address"]}
ROOT = Path(__file__).parents[2]
NODE = ROOT / "tests/node"
ROWS = re.findall(
    r"(?m)^\| (`[A-Z]\w+\.[^|]*) \| (`[a-z]\w+\.[^|]*) \|", (ROOT / "docs/http.md").read_text(encoding="utf-8")
)
IN_PYTHON, IN_NODE = (set(re.findall(r"`([\w.]+)`", " ".join(cells))) for cells in zip(*ROWS, strict=True))
"""What docs/http.md says that we have."""


def subjects(sandbox: Sandbox, subject: str) -> int:
    ((count,),) = rows(sandbox, "SELECT count(*) FROM emails WHERE subject = %s", subject)
    return int(count)


# ---------------------------------------------------------------------- Python


LOCAL = {"Webhooks.verify"}
"""They ask nobody."""


class Anything(dict[str, Any]):
    """Parameters of any method: whatever is looked for is there, and is an id."""

    def __missing__(self, _: str) -> str:
        return "any"


def methods() -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield each method of the package that makes a request, by name; their twins `_async` need a package more."""
    seen: set[object] = set()
    waiting = [(name, getattr(resend, name)) for name in dir(resend)]
    while waiting:
        name, one = waiting.pop()
        if not inspect.isclass(one) or not one.__module__.startswith("resend.") or one in seen:
            continue
        seen.add(one)
        for inner, found in inspect.getmembers(one):
            if inspect.isclass(found):
                waiting.append((f"{name}.{inner}", found))
            elif inspect.ismethod(found) and not inner.startswith("_") and not inner.endswith("_async"):
                yield f"{name}.{inner}", found


def call(method: Callable[..., Any]) -> Any:
    """Call it with anything for its parameters, and with an id for all that it needs beside them."""
    parameters = inspect.signature(method).parameters.values()
    needed = [one.name for one in parameters if one.default is one.empty or one.name in {"id", "contact_id", "params"}]
    anything = Anything(id="any", email="any@example.net", emails=["any@example.net"], file="any")
    return method(**{name: anything if name == "params" else "any" for name in needed})


@pytest.mark.filterwarnings("ignore:.* deprecated:DeprecationWarning")
@pytest.mark.usefixtures("resend_at")
def test_what_resends_python_package_asks_for_and_we_do_not_have() -> None:
    """Each method beside ours raises the package's own error, with our name for it and our text."""
    walked, others = set(), dict[str, object]()
    for name, method in methods():
        walked.add(name)
        if name in IN_PYTHON | LOCAL:
            continue
        with pytest.raises(ResendError) as raised:
            call(method)
        told = (int(raised.value.code), raised.value.error_type)
        if told not in {(404, "not_found"), (405, "method_not_allowed")} or not raised.value.message:
            others[name] = (told, raised.value.message)
    assert others == {}
    assert walked > IN_PYTHON | LOCAL | {"Emails.share", "Emails.metrics", "Domains.create", "Contacts.Segments.add"}


def test_what_resends_python_package_asks_for_and_we_have(resend_at: Sandbox) -> None:
    subject, name = unique("python"), unique("order")
    letter: Any = LETTER | {"subject": subject}
    wrong: Any = WRONG | {"subject": subject}
    sent = resend.Emails.send(letter, {"idempotency_key": name})
    assert resend.Emails.send(letter, {"idempotency_key": name})["id"] == sent["id"]
    found: Any = resend.Emails.get(sent["id"])
    assert (found["object"], found["id"], found["scheduled_at"]) == ("email", sent["id"], None)
    assert (found["subject"], found["text"], found["html"]) == (subject, LETTER["text"], LETTER["html"])
    assert (found["from"], found["to"], found["cc"], found["tags"]) == (
        LETTER["from"], LETTER["to"], [LETTER["cc"]], LETTER["tags"],
    )  # fmt: skip
    listed: Any = resend.Emails.list({"limit": 1})
    assert (listed["object"], [one["id"] for one in listed["data"]]) == ("list", [sent["id"]])
    scheduled: Any = letter | {"scheduled_at": "in 1 hour"}
    put_off = resend.Emails.send(scheduled)["id"]
    newer: Any = resend.Emails.list({"before": sent["id"]})
    assert ([one["id"] for one in newer["data"]], newer["has_more"]) == ([put_off], False)
    assert resend.Emails.update({"id": put_off, "scheduled_at": "in 2 hours"})["id"] == put_off
    for _ in range(2):
        canceled: Any = resend.Emails.cancel(put_off)
        assert (canceled["object"], canceled["id"]) == ("email", put_off)
    assert resend.Emails.get(put_off)["last_event"] == "canceled"
    with pytest.raises(resend.exceptions.ValidationError, match=r"^it is canceled: "):
        resend.Emails.update({"id": put_off, "scheduled_at": "in 2 hours"})
    assert len(resend.Batch.send([letter] * 2)["data"]) == 2
    with pytest.raises(resend.exceptions.ValidationError, match=r"^\[1\]: .*nothing of this list was taken$"):
        resend.Batch.send([letter, wrong])
    assert subjects(resend_at, subject) == 4
    both = resend.Batch.send([letter, wrong, letter], {"batch_validation": "permissive"})
    assert [len(both["data"]), [one["index"] for one in both["errors"]]] == [2, [1]]
    assert subjects(resend_at, subject) == 6
    assert {
        "Emails.send", "Emails.get", "Emails.list", "Emails.update", "Emails.cancel", "Batch.send",
    } == IN_PYTHON  # fmt: skip


@pytest.mark.parametrize(
    ("key", "letter", "kind", "told"),
    [
        ("re_wrong", LETTER, resend.exceptions.InvalidApiKeyError, (403, "invalid_api_key")),
        (" ", LETTER, resend.exceptions.MissingApiKeyError, (401, "missing_api_key")),
        (None, WRONG, resend.exceptions.ValidationError, (400, "validation_error")),
    ],
)
@pytest.mark.usefixtures("resend_at")
def test_errors_are_those_that_resends_python_package_has_a_class_for(
    monkeypatch: pytest.MonkeyPatch, key: str | None, letter: Any, kind: type[ResendError], told: tuple[int, str]
) -> None:
    if key:
        monkeypatch.setattr(resend, "api_key", key)
    with pytest.raises(kind) as raised:
        resend.Emails.send(letter)
    assert (int(raised.value.code), raised.value.error_type) == told


# ---------------------------------------------------------------------- Node.js


@pytest.fixture(scope="module")
def subject() -> str:
    return unique("node")


@pytest.fixture(scope="module")
def walked(sandbox: Sandbox, subject: str) -> Mapping[str, Any]:
    """Return what one process of Node.js was told, by method."""
    if not (NODE / "node_modules/resend").is_dir():
        pytest.skip("there is no package `resend` of Node.js: tools/setup tests")
    letter = {"subject": subject, "replyTo": "answers@sandbox.test"}
    done = subprocess.run(
        [
            "node",
            str(NODE / "resend_walk.mjs"),
            json.dumps(
                {
                    "letter": LETTER | letter,
                    "scheduled": LETTER | letter | {"scheduledAt": "in 1 hour"},
                    "later": "in 2 hours",
                    "wrong": WRONG | letter,
                    "ours": sorted(IN_NODE),
                }
            ),
        ],
        env={
            "PATH": os.environ["PATH"],
            "RESEND_BASE_URL": sandbox["SANDBOX_HTTP_URL"],
            "RESEND_API_KEY": sandbox["SANDBOX_API_KEY"],
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=patience_s(),
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: Mapping[str, Any] = json.loads(done.stdout)
    return told


def error_of(answer: Mapping[str, Any]) -> tuple[int, str]:
    """Return what the package says that was wrong; it has a text."""
    assert answer["data"] is None
    assert answer["error"]["message"]
    return answer["error"]["statusCode"], answer["error"]["name"]


def test_what_resends_node_package_asks_for_and_we_have(
    sandbox: Sandbox, walked: Mapping[str, Any], subject: str
) -> None:
    told = walked["told"]
    good = {name: one["data"] for name, one in told.items() if isinstance(one, dict) and one["error"] is None}
    assert good.keys() == IN_NODE | {
        "emails.send later", "emails.list page", "emails.cancel again", "batch.send permissive",
        "batch.send permissive good",
    }  # fmt: skip
    first, again = told["emails.send again"]
    assert first["data"] == again["data"]
    assert good["emails.get"]["id"] == good["emails.send"]["id"]
    assert good["emails.get"]["from"] == LETTER["from"]
    first_page, second = good["emails.list"], good["emails.list page"]
    assert (first_page["object"], first_page["data"][0]["id"]) == ("list", good["emails.create"]["id"])
    # Not what became of them, which goes on meanwhile.
    assert [one["id"] for one in second["data"]] == [one["id"] for one in first_page["data"][1:3]]
    assert second["has_more"]
    for name in ("emails.update", "emails.cancel", "emails.cancel again"):
        assert good[name] == {"object": "email", "id": good["emails.send later"]["id"]}
    assert [good["batch.send"].keys(), len(good["batch.send"]["data"])] == [{"data"}, 2]
    permissive, all_good = good["batch.send permissive"], good["batch.send permissive good"]
    assert [len(permissive["data"]), [one["index"] for one in permissive["errors"]]] == [2, [1]]
    assert [len(all_good["data"]), all_good["errors"]] == [1, []]
    assert subjects(sandbox, subject) == 10, "each once, and none of the strict batch with a wrong one"


def test_errors_as_resends_node_package_shows_them(walked: Mapping[str, Any]) -> None:
    told = walked["told"]
    assert error_of(told["emails.send wrong"]) == (400, "validation_error")
    assert error_of(told["emails.send other"]) == (409, "invalid_idempotent_request")
    assert error_of(told["emails.get nothing"]) == (404, "not_found")
    assert error_of(told["emails.update canceled"]) == (400, "validation_error")
    assert error_of(told["emails.cancel nothing"]) == (404, "not_found")
    assert error_of(told["no key"]) == (403, "invalid_api_key")
    assert error_of(told["batch.send wrong"]) == (400, "validation_error")
    assert told["batch.send wrong"]["error"]["message"].startswith("[1]: ")


def test_what_resends_node_package_asks_for_and_we_do_not_have(walked: Mapping[str, Any]) -> None:
    errors = {name: error_of(one) for name, one in walked["others"].items()}
    assert set(errors.values()) == {(404, "not_found")}
    assert errors.keys() > {"emails.attachments.list", "emails.receiving.get", "domains.create", "contacts.topics.list"}
