"""What the daemons write to standard error: text as ever, or one JSON object a line."""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from opensend_milter.core import maillog
from opensend_milter.core.counting import LoginOutcome
from opensend_milter.core.logline import JsonLines, Pairs, Said, TextLines, masked
from opensend_milter.core.model import Address, EmailId, Refuse, Route, Sent
from opensend_milter.core.refs import ref_of
from opensend_milter.core.rules import Rule
from tests.integration.private_postgres import Database
from tests.integration.serving import serving
from tests.jobs import job
from tests.unit.messages import KEY, message
from tests.waiting import patience_s

RAW = b"From: app@example.org\r\nTo: to@example.net\r\nSubject: hi\r\n\r\nhello\r\n"
REFUSAL = Refuse(code=550, enhanced="5.7.1", text="no", rule=Rule.FROM_UNVERIFIED)
TOKEN = "7DJ0H3NH6Y4E30HVDGQ1JAXSMY"
SAID = 'no\r\nsuch "user" <to@example.net> here'
SENT = Sent(courier="smtp", reply="ok", refused=((Address("a@b"), "no"),), deferred=((Address("c@d"), "later"),))
JOB = job(route=Route(courier="smtp"))
E = f"email={JOB.email_id}"


def lines_of(log: str) -> list[dict[str, Any]]:
    """Read every line; each is an object of its own."""
    found = [json.loads(line) for line in log.splitlines()]
    for one in found:
        assert set(one) >= {"time", "level", "logger", "pid", "message"}
        assert one["time"].endswith("Z")
        assert datetime.fromisoformat(one["time"]).utcoffset() == timedelta(0)
    return found


def test_the_mail_log_is_worded_as_ever(caplog: pytest.LogCaptureFixture) -> None:
    """Operators grep for it."""
    caplog.set_level(logging.INFO)
    one = message()
    maillog.accepted(one, EmailId("e1"), 12.345)
    maillog.repeated(one, EmailId("e1"), 0)
    maillog.refused(one, REFUSAL, 1234.56)
    maillog.refused(one, replace(REFUSAL, token=TOKEN), 0)
    maillog.sent(JOB, SENT)
    maillog.partly(JOB, SENT, 59.5)
    maillog.deferred(JOB, SAID, 60.5)
    maillog.failed(JOB, "no")
    maillog.uncertain(JOB, "")
    maillog.rescheduled("req_1", EmailId("e1"), KEY, datetime(2026, 1, 31, 8, tzinfo=timezone(timedelta(hours=1))))
    maillog.rescheduled("req_2", EmailId("e1"), KEY, None)
    about = f"key={KEY} client=192.0.2.7 size={one.size} nrcpt=1"
    assert caplog.messages == [
        f"4XQUEUE: email=e1 {about} status=accepted delay_ms=12.3",
        f"4XQUEUE: email=e1 {about} status=repeated delay_ms=0.0",
        f"4XQUEUE: {about} status=refused code=550 dsn=5.7.1 rule=from-unverified delay_ms=1234.6",
        f"4XQUEUE: {about} status=refused code=550 dsn=5.7.1 rule=from-unverified ref={ref_of(TOKEN)} delay_ms=0.0",
        f"4XabcdZ1Kz2: {E} nrcpt=1 refused=1 attempt=1 status=sent",
        f"4XabcdZ1Kz2: {E} nrcpt=1 refused=1 deferred=1 attempt=1 status=partly wait_s=60",
        f"4XabcdZ1Kz2: {E} attempt=1 status=deferred wait_s=60 reason=\"no such 'user' <address> here\"",
        f'4XabcdZ1Kz2: {E} attempt=1 status=failed reason="no"',
        f'4XabcdZ1Kz2: {E} attempt=1 status=uncertain reason=""',
        f"req_1: email=e1 key={KEY} status=scheduled at=2026-01-31T07:00:00+00:00",
        f"req_2: email=e1 key={KEY} status=canceled",
    ]
    levels = [record.levelname for record in caplog.records]
    assert levels == ["INFO"] * 5 + ["WARNING"] * 2 + ["ERROR"] * 2 + ["INFO"] * 2


@pytest.mark.parametrize(
    ("outcome", "level"),
    [("accepted", "DEBUG"), ("refused", "INFO"), ("outage", "INFO"), ("throttled", "INFO")],
)
def test_a_login_is_told_by_who_and_how(outcome: LoginOutcome, level: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever is refused can be found by fail2ban; who came in is told for those who ask."""
    caplog.set_level(logging.DEBUG)
    maillog.login(outcome, client="2001:db8::7", mechanism="PLAIN", took_ms=2004.06)
    (record,) = caplog.records
    assert (record.levelname, record.getMessage()) == (
        level,
        f"login outcome={outcome} client=2001:db8::7 mechanism=PLAIN delay_ms=2004.1",
    )
    (line,) = lines_of(JsonLines().format(record))
    assert (line["outcome"], line["client"], line["mechanism"]) == (outcome, "2001:db8::7", "PLAIN")
    assert line["delay_ms"] == 2004.1


def test_json_has_the_same_pairs_as_fields(caplog: pytest.LogCaptureFixture) -> None:
    maillog.deferred(JOB, SAID, 60.5)
    (line,) = lines_of(JsonLines().format(caplog.records[0]))
    assert {name: line[name] for name in ("level", "logger", "pid", "message")} == {
        "level": "warning",
        "logger": "opensend_milter.mail",
        "pid": os.getpid(),
        "message": caplog.messages[0],
    }
    assert {name: line[name] for name in ("queue_id", "email", "attempt", "status", "wait_s", "reason")} == {
        "queue_id": "4XabcdZ1Kz2",
        "email": JOB.email_id,
        "attempt": 1,
        "status": "deferred",
        "wait_s": 60,
        "reason": "no such 'user' <address> here",
    }


@pytest.mark.parametrize(
    "said",
    ["line\r\nends", "\0\x1b[31m", 'quotes " and \\', "u\u2028v\u2029w", "\udcff", "Ünï", "{}", "x" * 100_000],
)
def test_whatever_is_said_stays_one_line(said: str) -> None:
    record = logging.LogRecord("x", logging.ERROR, "f.py", 1, "%s: %s", (said, Pairs({"reason": Said(said)})), None)
    text = JsonLines().format(record)
    assert text.isascii()
    assert text.isprintable()
    (line,) = lines_of(text)
    assert line["reason"] == said


def test_pairs_take_the_place_of_nothing() -> None:
    pairs = Pairs({"time": "never", "message": "made up", "pid": 0, "status": "sent"})
    (line,) = lines_of(JsonLines().format(logging.LogRecord("x", logging.INFO, "f.py", 1, "%s", (pairs,), None)))
    assert (line["message"], line["status"]) == ("time=never message=made up pid=0 status=sent", "sent")
    assert line["pid"] == os.getpid()


@pytest.mark.parametrize("form", [TextLines(), JsonLines()], ids=["text", "json"])
@pytest.mark.parametrize(
    "text",
    [
        "to@example.net",
        "<to@example.net>:",
        '"a b"@example.net',
        "to=o'neil@example.net,x@y",
        "sip:x@[192.0.2.1]",
        "ü@ü.example",
    ],
)
def test_no_address_in_any_line(form: logging.Formatter, text: str) -> None:
    """Neither in what is said nor in an exception that quotes it."""
    try:
        raise ValueError(text)
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f.py", 1, "no: %s", (text,), sys.exc_info())
    written = form.format(record)
    assert "@" not in written
    assert "<address>" in written
    assert "ValueError" in written


@pytest.mark.parametrize("form", [TextLines(), JsonLines()], ids=["text", "json"])
@pytest.mark.parametrize(
    "key", ["os_" + "0f" * 16, "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_" + "A+/" * 15 + "="]
)
def test_no_key_in_any_line(form: logging.Formatter, key: str) -> None:
    """Not even where a stranger wrote it into a path or a name."""
    record = logging.LogRecord("x", logging.WARNING, "f.py", 1, "/v1/%s: %s", (key, Pairs({"reason": Said(key)})), None)
    written = form.format(record)
    assert key[8:20] not in written
    assert "/v1/<key>: reason=" in written


@pytest.mark.parametrize(
    "piece", ["x", "@", '"', "x@", '"a ', "[x@[", '"@', "x@[", "x@[1]", "\n@", 'a"b@', "= @"], ids=ascii
)
def test_masking_takes_no_longer_than_reading(piece: str) -> None:
    """A stranger's text must not hold up the log, and with it the mail: one look at all for each word would not end."""
    masked(piece * (2_000_000 // len(piece)) + "@")


PROGRAM = """
import logging, threading, warnings
from opensend_milter.cli.processes import daemons
from opensend_milter.config import Log
daemons._log(Log(format="json"))
warnings.warn("mind this")
def broken():
    raise ValueError("to@example.net")
thread = threading.Thread(target=broken, name="opensend-broken")
thread.start(); thread.join()
logging.getLogger("uvicorn.error").info("started")
logging.getLogger("botocore").info("not this")
try:
    broken()
except ValueError:
    logging.exception("caught")
"""


def test_all_that_python_writes_is_json() -> None:
    """Warnings, threads that end, libraries: none of it goes past."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    lines = lines_of(done.stderr)
    assert [(line["level"], line["logger"]) for line in lines] == [
        ("warning", "py.warnings"),
        ("critical", "opensend_milter.cli.processes.daemons"),
        ("info", "uvicorn.error"),
        ("error", "root"),
    ]
    assert "mind this" in lines[0]["message"]
    assert lines[1]["message"] == "opensend-broken ended"
    for line in (lines[1], lines[3]):
        assert line["exception"].endswith("ValueError: <address>")


@pytest.mark.parametrize("form", ["text", "json"])
def test_serve_writes_every_line_in_one_form(form: str, database: Database) -> None:
    with serving(database.url, database.password_dir, log={"format": form}) as served:
        with served.client() as client:
            assert client.message(served.key, RAW, queue_id="4Xtaken").command == "d"
            assert client.message(served.key, RAW, "bad@example.net", queue_id="4Xrefused").command == "y"
        assert served.stop() == 0
        log = served.log
    assert "@" not in log
    if form == "text":
        pattern = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} (INFO|WARNING|ERROR) opensend_milter\.[\w.]+\[\d+\]: \S.*"
        assert all(re.fullmatch(pattern, line) for line in log.splitlines())
        assert re.search(r"mail\[\d+\]: 4Xtaken: email=\S+ key=\S+ client=192\.0\.2\.7 .* status=accepted", log)
        return
    lines = lines_of(log)
    told = {line["queue_id"]: line for line in lines if "queue_id" in line}
    assert told["4Xtaken"]["status"] == "accepted"
    assert told["4Xtaken"]["size"] == len(RAW)
    assert told["4Xtaken"]["key"] == served.key
    assert told["4Xrefused"]["rule"] == "recipient-suppressed"
    assert told["4Xrefused"]["code"] == 550
    assert len({line["pid"] for line in lines}) >= 2, "parent and child"


@pytest.mark.parametrize("command", ["worker", "http"])
def test_the_other_daemons_too(command: str, database: Database, tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = {
        "database": {"password_dir": str(database.password_dir)},
        "delivery": {"courier": "file"},
        "maildir": {"folder": str(tmp_path / "mail")},
        "http": {"port": port},
        "log": {"format": "json", "level": "debug"},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notices, (tmp_path / "log").open("wb") as log:
        notices.bind(str(tmp_path / "notify"))
        notices.settimeout(patience_s())
        process = subprocess.Popen(
            [sys.executable, "-m", "opensend_milter", command, "--config", str(tmp_path / "config.yaml")],
            env={**os.environ, "DATABASE_URL": database.url, "NOTIFY_SOCKET": str(tmp_path / "notify")},
            stderr=log,
        )
        try:
            while b"READY=1" not in notices.recv(4096):
                pass
            process.terminate()
            assert process.wait(patience_s()) == 0
        finally:
            process.kill()
            process.wait()
    assert lines_of((tmp_path / "log").read_text())
