"""The sandbox on OpenSend's own tables: what its ingester and its dashboard would find there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from opensend_milter.adapters.schema import facts
from opensend_milter.host.sandbox import state as sandbox_state
from opensend_milter.host.sandbox.programs import ask_sqs
from tests.acceptance.running_sandbox import Sandbox, standing
from tests.asking import ask
from tests.waiting import await_true, patience_s

PROGRAMS = {"postgres", "sqs", "dovecot", "auth-gate", "serve", "worker", "http", "console", "postfix"}
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a sandbox needs root")


@pytest.fixture(scope="module")
def _gateway() -> Iterator[Sandbox]:
    with standing("--profile", "opensend", "--queue", "sqs") as sandbox:
        yield sandbox


@pytest.fixture
def gateway(_gateway: Sandbox) -> Sandbox:
    """Share a sandbox beside an OpenSend that has only its tables and its queue; no mail is in it."""
    _gateway.clear()
    while jobs(_gateway):
        pass
    return _gateway


def rows(sandbox: Sandbox, statement: str) -> list[tuple[object, ...]]:
    with psycopg.connect(sandbox["SANDBOX_DATABASE_URL"]) as connection:
        return connection.execute(statement.encode()).fetchall()


def jobs(sandbox: Sandbox) -> list[str]:
    """Take what is in the queue, ten at most, off it."""
    endpoint, queue = sandbox["SANDBOX_AWS_ENDPOINT"], {"QueueUrl": sandbox["SANDBOX_QUEUE_URL"]}
    taken = ask_sqs(endpoint, "ReceiveMessage", {**queue, "MaxNumberOfMessages": 10}).get("Messages", [])
    for message in taken:
        ask_sqs(endpoint, "DeleteMessage", {**queue, "ReceiptHandle": message["ReceiptHandle"]})
    return [message["Body"] for message in taken]


@contextmanager
def frozen_worker(sandbox: Sandbox) -> Iterator[None]:
    """Announce nothing."""
    pid = sandbox.pid("worker")
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


# ---------------------------------------------------------------------- what is there


def test_the_tables_are_opensends_and_ours_stand_beside_them(gateway: Sandbox) -> None:
    with psycopg.connect(gateway["SANDBOX_DATABASE_URL"], autocommit=True) as connection:
        in_public = {
            name
            for (name,) in connection.execute("SELECT relname FROM pg_stat_user_tables WHERE schemaname = 'public'")
        }
        assert in_public == facts.opensend().names
        assert facts.tables_in(connection, in_public) == facts.opensend()
    migrations = {
        str(name).partition("/")[0] for (name,) in rows(gateway, "SELECT name FROM opensend_milter.migrations")
    }
    assert migrations == {"ours"}


def test_all_runs_but_what_delivers(gateway: Sandbox) -> None:
    found = json.loads(gateway.run("status", "--json").stdout)
    assert found["good"]
    assert {one["name"] for one in found["programs"]} == PROGRAMS
    assert not (gateway.directory / "inbox").exists()


def test_the_names_are_those_of_any_sandbox_without_the_inbox(gateway: Sandbox, sandbox: Sandbox) -> None:
    assert set(gateway.values) == set(sandbox.values) - {"SANDBOX_INBOX"} | {
        "SANDBOX_QUEUE_URL",
        "SANDBOX_AWS_ENDPOINT",
    }
    assert json.loads(gateway.run("env", "--json").stdout) == gateway.values


# ---------------------------------------------------------------------- a message


def test_a_message_is_followed_to_the_queue_and_the_dashboard(gateway: Sandbox) -> None:
    sent = json.loads(gateway.run("send", "--to", "a@example.net", "--json").stdout)
    assert sent["reply"] == f"250 2.0.0 Ok: queued as {sent['queue_id']}"
    email_id, status = sent["record"].split()
    assert rows(gateway, 'SELECT id::text, status, "to" FROM emails') == [(email_id, status, ["a@example.net"])]
    assert status == "queued"
    job = json.loads(sent["job"])
    assert (job["type"], job["emailId"]) == ("email.send", email_id)
    assert jobs(gateway) == [sent["job"]], "it is looked at, and stays where it is"
    line = sent["log"]
    assert (line["endpoint"], line["method"], line["status"]) == ("smtp", "SMTP", 200)
    assert (line["request_body"]["recipients"], line["response_body"]) == (["a@example.net"], {"id": email_id})
    assert rows(gateway, "SELECT user_id, jsonb_typeof(request_body) FROM logs") == [("sandbox", "object")]


def test_the_end_is_told_plainly(gateway: Sandbox) -> None:
    said = gateway.run("send").stdout
    job = next(line for line in said.splitlines() if line.startswith("{"))
    assert jobs(gateway) == [job]
    assert "\ndashboard: OpenSend's would show this row of public.logs:\ncreated_at 20" in said
    assert "method SMTP, endpoint smtp, status 200\nrequest_body {" in said
    assert said.endswith("\ndelivered: nothing; that is the work of OpenSend's ingester, and none runs here\n")


def test_a_job_is_found_behind_many_others(gateway: Sandbox) -> None:
    address = {"QueueUrl": gateway["SANDBOX_QUEUE_URL"]}
    for number in range(25):
        body = ("no job", "[]", '{"emailId": "another"}')[number % 3]
        ask_sqs(gateway["SANDBOX_AWS_ENDPOINT"], "SendMessage", {**address, "MessageBody": body})
    sent = json.loads(gateway.run("send", "--json").stdout)
    assert json.loads(sent["job"])["emailId"] == sent["record"].split()[0]
    assert [len(jobs(gateway)) for _ in range(4)] == [10, 10, 6, 0], "all of it is there as before"


def test_a_job_that_does_not_come_is_told(gateway: Sandbox) -> None:
    with frozen_worker(gateway):
        said = gateway.run("send", "--wait", "0.5", check=False)
    assert said.returncode == 75
    assert " queued, and no job for it in the queue after 0.5 s" in said.stderr
    await_true(lambda: jobs(gateway), "the job, once the worker goes on")


def test_a_job_that_somebody_took_at_once_is_told(gateway: Sandbox) -> None:
    def take() -> None:
        await_true(lambda: rows(gateway, "SELECT FROM emails"), "the row")
        with psycopg.connect(gateway["SANDBOX_DATABASE_URL"], autocommit=True) as connection:
            connection.execute("UPDATE emails SET status = 'processing'")

    ingester = threading.Thread(target=take)
    with frozen_worker(gateway):
        ingester.start()
        said = gateway.run("send", "--wait", str(patience_s())).stdout
        ingester.join()
    assert " processing\njob:       taken already\n" in said


def test_the_demo_is_shown_with_commands_that_work(gateway: Sandbox) -> None:
    shown = json.loads(gateway.run("demo", "--json").stdout)
    assert shown["sent"]["job"]
    assert "inbox: " not in gateway.run("demo").stdout
    subprocess.run(["sh", "-c", shown["swaks"]], check=True, capture_output=True)
    subprocess.run([sys.executable, "-c", shown["python"]], check=True)
    assert rows(gateway, "SELECT count(*), count(DISTINCT status) FROM emails") == [(4, 1)]
    assert rows(gateway, "SELECT count(*) FROM logs") == [(4,)]


def test_a_refused_message_is_on_the_dashboard_too(gateway: Sandbox) -> None:
    said = gateway.run("send", "--from", f"a@{gateway['SANDBOX_UNVERIFIED_DOMAIN']}", check=False)
    assert said.returncode == 64
    assert "refused: 550 5.7.1" in said.stderr
    assert rows(gateway, "SELECT status, response_body ->> 'code' FROM logs") == [(403, "from-unverified")]


def test_the_http_door_leads_there_too(gateway: Sandbox) -> None:
    body = {"from": f"a@{gateway['SANDBOX_FROM_DOMAIN']}", "to": "a@example.net", "subject": "s", "body": "b"}
    port = int(gateway["SANDBOX_HTTP_URL"].rpartition(":")[2])
    answer = ask(port, "POST", "/v1/send", body, Authorization=f"Bearer {gateway['SANDBOX_API_KEY']}")
    assert answer.status == 202
    assert rows(gateway, "SELECT method, endpoint, status FROM logs") == [("POST", "/v1/send", 200)]


# ---------------------------------------------------------------------- which profile


def test_a_profile_is_kept_from_up_to_up_and_no_other_is_taken() -> None:
    with standing("--profile", "opensend") as sandbox:
        place = str(sandbox.directory)
        assert "SANDBOX_QUEUE_URL" not in sandbox.values
        said = sandbox.run("send").stdout
        assert " queued\njob:       the row itself: it waits to be polled by OpenSend's ingester\n" in said
        for running in (True, False):
            for subcommand in ("up", "demo"):
                refused = sandbox.run(subcommand, "--profile", "standalone", check=False)
                assert refused.returncode == 64
                assert f"`sandbox down --purge --dir {place}`" in refused.stderr
            if running:
                sandbox.run("down")
        before = dict(sandbox.values)
        assert sandbox.up().values == before
        assert json.loads(sandbox.run("send", "--json").stdout)["log"]["status"] == 200
        sandbox.run("down", "--purge")
        assert not sandbox.directory.exists()


def test_a_standalone_sandbox_is_not_made_opensends(sandbox: Sandbox) -> None:
    refused = sandbox.run("up", "--profile", "opensend", check=False)
    assert refused.returncode == 64
    assert "has --profile standalone" in refused.stderr
    assert sandbox.run("up", "--fast", "--profile", "standalone").returncode == 0


def test_an_unknown_profile_is_named(tmp_path: Path) -> None:
    refused = Sandbox(tmp_path / "none").run("up", "--profile", "plunk", check=False)
    assert refused.returncode == 64
    assert "'plunk' is not one of 'standalone', 'opensend'" in refused.stderr
    assert not (tmp_path / "none").exists()


@needs_root
def test_a_sandbox_of_before_is_standalone(tmp_path: Path) -> None:
    sandbox_state.make(tmp_path, "postgres", fast=True)
    path = tmp_path / sandbox_state.STATE_FILE
    content = json.loads(path.read_text())
    del content["profile"]
    path.write_text(json.dumps(content))
    assert sandbox_state.load(tmp_path).profile == "standalone"
