"""`why` at work: what it exits with, what scripts get, what it says as it happens, and who reads what."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self

import pytest
from typer.testing import CliRunner

from opensend_milter.adapters.postgres.lookup.story import facts_of
from opensend_milter.cli import app_of, exits
from opensend_milter.core.model import EmailId
from opensend_milter.core.story import tell
from tests.integration.outbox import add_email, rows
from tests.integration.private_postgres import Database
from tests.screen import SOURCE
from tests.waiting import await_true, patience_s

TEXT = "what only its readers may read"
OTHERWISE = "UPDATE emails SET status = CASE status WHEN 'sent' THEN 'queued' ELSE 'sent' END"


@pytest.fixture
def email_id(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmailId:
    """A message, and a configuration by which the commands find it, each as its own role."""
    made = add_email(database, recipients=["to@example.net", "hidden@example.net"])
    ((key_id,),) = rows(database, "SELECT key_id FROM opensend_milter.submissions")
    rows(database, "INSERT INTO api_keys (id, name, token_hash, user_id) VALUES (%s, 'shop', 'a', 'u1')", key_id)
    rows(database, 'UPDATE emails SET text = %s, headers = \'{"X-Of": "the header"}\'', TEXT)
    path = tmp_path / "opensend-milter.yaml"
    path.write_text(json.dumps({"database": {"password_dir": str(database.password_dir)}}))
    monkeypatch.setenv("DATABASE_URL", database.url)
    monkeypatch.setenv("OPENSEND_MILTER_CONFIG", str(path))
    return made


def why(*words: str) -> tuple[int, str, str]:
    ended = CliRunner().invoke(app_of(["why"]), ["why", *words])
    return ended.exit_code, ended.stdout, ended.stderr


def found(*words: str) -> dict[str, Any]:
    code, output, error = why(*words, "--json")
    assert (code, error) == (0, ""), error
    read: dict[str, Any] = json.loads(output)
    return read


def test_one_is_a_story_and_none_is_no_success(email_id: EmailId) -> None:
    one = found(email_id)
    assert [hit["id"] for hit in one["messages"]] == [email_id]
    assert one["story"]["verdict"].startswith("waiting to be sent to 2 of 2 since ")
    assert "contents" not in one
    assert found("--key", "shop", email_id)["story"] == one["story"]
    code, output, _ = why("01a224b3-ffff", "--json")
    assert (code, json.loads(output)["messages"], json.loads(output)["story"]) == (1, [], None)
    code, output, error = why("01a224b3-ffff")
    assert (code, output, error.splitlines()[0]) == (1, "", "nothing is known by '01a224b3-ffff'")
    assert why(email_id, "--status", "failed")[0] == 1


@pytest.mark.usefixtures("email_id")
def test_all_are_found_page_by_page(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(4):
        add_email(database)
    monkeypatch.setattr("opensend_milter.cli.records.why.FOUND_AT_ONCE", 2)
    newest = rows(database, "SELECT id::text FROM emails ORDER BY created_at DESC, id DESC")
    assert [(hit["id"],) for hit in found("--all", "--limit", "1")["messages"]] == newest
    assert [len(found(*words)["messages"]) for words in (["--limit", "1"], ["to@example.net", "--all"])] == [1, 5]
    _, _, error = why("--limit", "3")
    assert error == "3, newest first, and there are more; see --all, --limit and the filters\n"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--key", "nobody's"], "--key: 0 keys have an id that begins or ends so, or this name"),
        (["--status", "lost"], "'lost' is not one of 'queued'"),
        (["--courier", "pigeon"], "'pigeon' is not one of"),
        (["--since", "yesterday"], "--since: 'yesterday' is neither an age"),
        (["--body", "--follow"], "not with --follow"),
        (["--all", "--follow"], "not with --follow"),
    ],
)
@pytest.mark.usefixtures("email_id")
def test_what_is_not_understood_is_said(words: Sequence[str], said: str) -> None:
    code, _, error = why(*words)
    assert (code, said in " ".join(error.split())) == (exits.EX_USAGE, True), error


def test_contents_are_read_by_another_role_and_that_is_noted(database: Database, email_id: EmailId) -> None:
    """Whoever looks without `--body` could not read them."""
    with database.connect("opensend_reader") as connection, pytest.raises(Exception, match="permission denied"):
        connection.execute("SELECT text FROM public.emails")
    assert TEXT not in why(email_id)[1]
    assert found(email_id, "--body")["contents"]["text"] == TEXT
    assert why(email_id, "--body")[1].endswith(f"X-Of: the header\n\n{TEXT}\n")
    log = (database.cluster.directory / "log").read_text(errors="replace")
    noted = [
        line for line in log.splitlines() if f"LOG:  opensend-milter: contents of email {email_id} read by " in line
    ]
    assert len(noted) == 2


class Following:
    """A `why --follow` that runs, and is gone at the end."""

    def __init__(self, *words: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "opensend_milter", "why", *words, "--follow", "--json"],
            env={**os.environ, "PYTHONPATH": SOURCE},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # Whoever runs the tests in the background may have Ctrl-C ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.communicate()

    def next(self) -> dict[str, Any]:
        """Return the next line."""
        assert self.process.stdout
        read: dict[str, Any] = json.loads(self.process.stdout.readline())
        return read

    def end(self) -> tuple[int, bytes]:
        """Wait for its end; return its exit code, and what it said of it."""
        assert self.process.stderr
        return self.process.wait(patience_s()), self.process.stderr.read()


def test_what_happens_to_a_message_is_told_as_it_happens_until_ctrl_c(database: Database, email_id: EmailId) -> None:
    with Following(email_id) as following:
        assert following.next()["what"] == "taken"
        rows(
            database,
            """INSERT INTO email_events (email_id, type, payload, user_id)
            VALUES (%s, 'sent', '{"courier": "smtp", "reply": "250 ok"}', 'u1')""",
            email_id,
        )
        told = following.next()
        assert (told["id"], told["what"], told["text"]) == (email_id, "sent", "smtp: 250 ok")
        following.process.send_signal(signal.SIGINT)
        assert following.end() == (0, b"")


def test_what_comes_in_is_told_and_a_reader_that_goes_away_is_no_fault(database: Database, email_id: EmailId) -> None:
    with Following() as following:
        first = following.next()
        assert (first["id"], first["status"]) == (email_id, "queued")
        rows(database, "UPDATE emails SET status = 'sent' WHERE id = %s", email_id)
        assert following.next()["status"] == "sent"
        assert following.process.stdout
        following.process.stdout.close()
        await_true(
            lambda: following.process.poll() is not None or rows(database, OTHERWISE),
            "it ends once nobody reads it",
        )
        assert following.end() == (0, b"")


def test_beside_opensend_it_tells_what_its_rows_say(beside: Database) -> None:
    """Of a message over its REST API there is no envelope; what SES said of single recipients is in the timeline."""
    email_id = "01a22a0c-f6a0-4d1e-9651-279c9f1ee060"
    rows(beside, """INSERT INTO "user" (id, name, email, created_at) VALUES ('u1', 'u1', 'u1@localhost', now())""")
    rows(
        beside,
        """INSERT INTO emails (id, "from", "to", bcc, subject, status, user_id) VALUES (%s, 'app@example.org',
        '["Ann <ann@example.net>"]', '["hidden@example.net"]', 'hi', 'bounced', 'u1')""",
        email_id,
    )
    rows(
        beside,
        """INSERT INTO email_events (email_id, type, payload, user_id) VALUES (%s, 'bounced',
        '{"bounceType": "Permanent", "bouncedRecipients":
        [{"emailAddress": "ann@example.net", "diagnosticCode": "550 5.1.1"}]}', 'u1')""",
        email_id,
    )
    rows(beside, "INSERT INTO email_suppressions (user_id, email, reason) VALUES ('u1', 'ann@example.net', 'bounced')")
    with beside.connect() as connection:
        facts = facts_of(connection, email_id, beside=True)
    assert facts
    story = tell(facts, datetime.isoformat)
    assert story.verdict == "bounced for 2 of 2"
    assert [(one.email, one.status, one.suppressed) for one in story.recipients] == [
        ("ann@example.net", "bounced", "bounced"),
        ("hidden@example.net", "bounced", None),
    ]
    assert [(one.what, one.who, one.text) for one in story.timeline] == [
        ("taken", "", "over OpenSend's REST API"),
        ("announced", "", "to OpenSend, whose ingester sends it"),
        ("bounced", "ann@example.net", "550 5.1.1"),
    ]
