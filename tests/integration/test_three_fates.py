"""A message with three recipients of three fates: whoever asks, at whatever door, is told the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from opensend_milter.cli import app_of
from opensend_milter.config import PATH_VARIABLE
from opensend_milter.core.feedback import Recipient, Report
from opensend_milter.core.model import Address, EmailId
from tests.integration.outbox import rows
from tests.integration.private_postgres import Database
from tests.integration.test_http_outcomes import QUICK, Answering, answering
from tests.integration.test_inline_bounces import put
from tests.integration.test_webhooks import Receiver, receiving
from tests.screen import SOURCE
from tests.smtp_sink import Sink
from tests.unit.test_webhook_data import documented
from tests.waiting import await_found, await_of

ANN, BOB, CAT = (f"{name}@example.net" for name in ("ann", "bob", "cat"))
LETTER = {
    "from": "App <app@example.org>", "to": [ANN], "cc": BOB, "bcc": [CAT], "subject": "Your order", "text": "a text",
    "tags": [{"name": "order", "value": "4711"}],
}  # fmt: skip
Fates = Mapping[str, tuple[str, str | None]]
"""Of each recipient where it stands, and why."""
BY_ITS_INGESTER: Sequence[tuple[str, str, Mapping[str, object]]] = (
    ("sent", "sent", {}),
    ("delivered", "delivered", {"recipients": [ANN], "smtpResponse": "250 ok"}),
    (
        "bounced",
        "bounced",
        {
            "bounceType": "Permanent",
            "bouncedRecipients": [{"emailAddress": CAT, "status": "5.1.1", "diagnosticCode": "smtp; 550 5.1.1 no"}],
        },
    ),
)
"""Status, event, and what SES says of it."""


@dataclass(frozen=True)
class Doors:
    """All by which it is asked for."""

    front_door: Answering
    email_id: EmailId

    @property
    def database(self) -> Database:
        return self.front_door.database

    def over_http(self, path: str) -> dict[str, Any]:
        answer = self.front_door.ask("GET", path)
        assert answer.status == 200, answer.body
        found: dict[str, Any] = answer.body
        return found

    def by_command(self, *words: str) -> dict[str, Any]:
        ended = CliRunner().invoke(app_of(words[:1]), [*words, "--json"])
        assert ended.exit_code == 0, ended.output
        found: dict[str, Any] = json.loads(ended.stdout)
        return found

    def tell(self) -> tuple[str, Fates]:
        """Ask at all of them; return the status and the fates that they agree on."""
        story, told = self.stories()
        submission = self.over_http(f"/v1/submissions/{self.email_id}")
        letter, shown = self.over_http(f"/emails/{self.email_id}"), self.by_command("email", "show", self.email_id)
        shown["recipients"] = [{**one, "email": one["address"]} for one in shown["recipients"]]
        all_fates = [
            {one["email"]: (one["status"], one["reason"]) for one in door["recipients"]}
            for door in (story, told, submission, letter, shown)
        ]
        assert all(fates == all_fates[0] for fates in all_fates), all_fates

        (by_address,) = self.over_http(f"/v1/messages?q={BOB}")["messages"]
        (listed,) = self.over_http("/emails")["data"]
        ((status,),) = rows(self.database, "SELECT status FROM emails WHERE id = %s", self.email_id)
        others = [
            story["status"],
            told["status"],
            by_address["status"],
            submission["delivery"],
            shown["email"]["status"],
        ]
        assert others == [status] * len(others)
        assert letter["last_event"] == listed["last_event"]
        assert (letter["to"], letter["cc"], letter["bcc"]) == ([ANN], [BOB], [CAT])

        happened = [moment["what"] for moment in story["timeline"]]
        assert [moment["what"] for moment in told["timeline"]] == happened
        assert {kind for kind, _ in self.events()} - {"delayed"} <= set(happened)
        return status, all_fates[0]

    def stories(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what the command and HTTP tell, while nothing happens: webhooks are told behind our back."""

        def asked() -> tuple[dict[str, Any], dict[str, Any]] | None:
            before, told = self.by_command("why", self.email_id), self.over_http(f"/v1/messages/{self.email_id}")
            after = self.by_command("why", self.email_id)
            return (after["story"], told) if before["story"] == after["story"] else None

        return await_found(asked, "a story in which nothing happens")

    def events(self) -> list[tuple[str, str]]:
        """Return kind and id of all that is recorded, in its order."""
        found = rows(
            self.database,
            "SELECT type, id::text FROM email_events WHERE email_id = %s ORDER BY received_at",
            self.email_id,
        )
        return [(kind, event_id) for kind, event_id in found]


@contextmanager
def delivering(database: Database, config: Path, log_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker, and end it."""
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "opensend_milter", "worker", "--config", str(config)],
            env=os.environ | {"PYTHONPATH": SOURCE, "DATABASE_URL": database.url},
            stderr=log,
        )
    try:
        yield process
        assert "Traceback" not in log_path.read_text()
    finally:
        process.terminate()
        process.wait()


def configure(database: Database, directory: Path, monkeypatch: pytest.MonkeyPatch, **sections: object) -> Path:
    """Write what the worker and the commands go by."""
    path = directory / "opensend-milter.yaml"
    path.write_text(json.dumps({"database": {"password_dir": str(database.password_dir)}, **sections}))
    monkeypatch.setenv(PATH_VARIABLE, str(path))
    monkeypatch.setenv("DATABASE_URL", database.url)
    return path


def heard(receiver: Receiver) -> list[dict[str, Any]]:
    """Return each event that was told, in the order in which they happened."""
    told = {call.id: json.loads(call.body) for call in receiver.calls}
    return sorted(told.values(), key=lambda one: str(one["created_at"]))


def states(told: list[dict[str, Any]]) -> dict[str, str]:
    """Return what was said last of each recipient."""
    return {one["email"]: one["state"] for event in told for one in event["data"]["recipients"]}


def add_webhook(database: Database, receiver: Receiver) -> None:
    rows(
        database,
        "INSERT INTO webhooks (url, event_types, status, user_id) VALUES (%s, %s, 'active', 'u1')",
        f"http://127.0.0.1:{receiver.port}/",
        json.dumps([f"email.{kind}" for kind in ("sent", "delayed", "delivered", "bounced", "failed")]),
    )


def test_all_doors_and_webhooks_agree(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One is delivered, one is put off and then refused, one is not known; at each step."""
    unknown, later, refused = "550 5.1.1 no such user", "450 4.2.2 full", "550 5.7.1 not from you"
    with (
        Sink({BOB: later, CAT: unknown}) as sink,
        receiving() as receiver,
        answering(database, QUICK) as front_door,
    ):
        add_webhook(database, receiver)
        answer = front_door.ask("POST", "/emails", LETTER)
        assert answer.status == 200, answer.body
        doors = Doors(front_door, EmailId(answer.body["id"]))
        config = configure(
            database, tmp_path, monkeypatch,
            relay={"port": sink.port, "timeout_s": 600}, webhooks={"allow_private": True},
            delivery={"poll_interval_s": 0.1},
        )  # fmt: skip
        assert doors.tell() == ("queued", dict.fromkeys((ANN, BOB, CAT), ("queued", None)))

        with delivering(database, config, tmp_path / "worker.log") as worker:

            def agree(status: str, fates: Fates) -> None:
                """Wait until all is told, and hold it against what every door says."""
                await_of(worker, lambda: states(heard(receiver)) == {who: state for who, (state, _) in fates.items()},
                         lambda: heard(receiver))  # fmt: skip
                assert doors.tell() == (status, fates)
                assert [(one["type"], one["id"]) for one in heard(receiver)] == [
                    (f"email.{kind}", event_id) for kind, event_id in doors.events()
                ]

            agree("queued", {ANN: ("sent", None), BOB: ("deferred", later), CAT: ("bounced", unknown)})
            sink.answers[BOB] = refused
            assert doors.by_command("email", "retry", doors.email_id)["done"] == [doors.email_id]
            agree("bounced", {ANN: ("sent", None), BOB: ("failed", refused), CAT: ("bounced", unknown)})
            put(
                database,
                Report(
                    kind="delivered", source_id="dsn:ann", email_id=doors.email_id, via="mail",
                    recipients=(Recipient(names=(Address(ANN),), status="2.0.0", diagnostic=""),),
                ),
            )  # fmt: skip
            agree("bounced", {ANN: ("delivered", "2.0.0"), BOB: ("failed", refused), CAT: ("bounced", unknown)})
    key = rows(database, "SELECT id::text, name FROM api_keys")
    for event in heard(receiver):
        data = event["data"]
        assert set(data) <= set(documented())
        assert (data["email_id"], data["subject"], data["tags"]) == (doors.email_id, "Your order", {"order": "4711"})
        assert (data["from"], data["to"]) == ("App <app@example.org>", [ANN])
        assert [(data["key"]["id"], data["key"]["name"])] == key
        assert data["queue_id"].startswith("req_")


def test_all_doors_agree_beside_opensend(beside: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As far as its rows go: one word for all recipients, and what SES said of each in the timeline."""
    rows(beside, """INSERT INTO "user" (id, name, email, created_at) VALUES ('u1', 'u1', 'u1@localhost', now())""")
    with answering(beside, QUICK, "opensend") as front_door:
        answer = front_door.ask("POST", "/emails", LETTER)
        assert answer.status == 200, answer.body
        doors = Doors(front_door, EmailId(answer.body["id"]))
        configure(beside, tmp_path, monkeypatch, profile="opensend")
        everybody = (ANN, BOB, CAT)
        assert doors.tell() == ("queued", dict.fromkeys(everybody, ("queued", None)))
        for status, kind, said in BY_ITS_INGESTER:
            rows(beside, "UPDATE emails SET status = %s WHERE id = %s", status, doors.email_id)
            rows(
                beside,
                "INSERT INTO email_events (email_id, type, payload, user_id) VALUES (%s, %s, %s, 'u1')",
                doors.email_id,
                kind,
                json.dumps(said),
            )
            assert doors.tell() == (status, dict.fromkeys(everybody, (status, None)))
        told = [(one["what"], one["who"]) for one in doors.over_http(f"/v1/messages/{doors.email_id}")["timeline"]]
        assert told[-3:] == [("sent", ""), ("delivered", ANN), ("bounced", CAT)]
