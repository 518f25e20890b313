"""The commands that pages print run as they stand, in a shell that has read `sandbox env`."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from opensend_milter.cli import app_of
from opensend_milter.config import PATH_VARIABLE
from tests.acceptance.running_sandbox import Sandbox
from tests.screen import SOURCE
from tests.unit.test_docs import DOCS, ROOT, calls, text_of

PAGES = ("getting-started", "logs", "troubleshooting", "delivery", "feedback")
NOT_HERE = {
    "sandbox env": "all the others run in what it says",
    "sandbox down --purge": "the sandbox is shared: tests/acceptance/test_sandbox.py",
    "install --apply": "it changes this host: tests/integration/test_install.py",
    "install --apply --new-passwords": "the same: tests/integration/test_install_running.py",
    "install --undo": "the same: tests/integration/test_install.py",
    "install --undo --force": "the same: tests/integration/test_install_running.py",
    "worker": "it stays, and the sandbox runs it",
    "http": "the same",
    "feedback bounce": "the name of the command, which needs its option",
}
"""What is printed and not run, each with its reason."""
ENDS: Mapping[str, frozenset[int]] = {
    "doctor": frozenset({0, 1}),
    "install --plan": frozenset({0, 1}),
    "domain verify": frozenset({1, 75}),
    "webhook test": frozenset({1}),
    "email retry --bounced": frozenset({0}),
    "email retry": frozenset({1}),
    "why somebody@example.net": frozenset({0, 1}),
    "email mark-sent": frozenset({1}),
}
"""How a command may end, by how it begins, where not with 0: not all is as it should be, or it cannot be known."""
QUEUE_ID = "4jWsvd0CmyzJYqK"


def program(*words: str) -> tuple[int, str, str]:
    done = CliRunner().invoke(app_of(words[:1]), words, input=b"", catch_exceptions=False)
    return done.exit_code, done.stdout, done.stderr


def made(*words: str) -> dict[str, Any]:
    code, output, error = program(*words, "--json")
    assert code == 0, error
    found: dict[str, Any] = json.loads(output)
    return found


REF = "7K2MQ0X9TD"


@pytest.fixture
def filled(sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Mapping[str, str]]:
    """Have what the placeholders of the pages stand for; nothing of it is there afterwards."""
    monkeypatch.setenv(PATH_VARIABLE, sandbox[PATH_VARIABLE])
    monkeypatch.setenv("SANDBOX_DIR", sandbox["SANDBOX_DIR"])
    with sandbox.smtp() as client:
        client.mail(f"demo@{sandbox['SANDBOX_FROM_DOMAIN']}")
        client.rcpt("you@example.net")
        _, reply = client.data(b"From: demo@sandbox.test\r\nSubject: one that is looked up\r\n\r\nHello.\r\n")
        client.mail(f"demo@{sandbox['SANDBOX_FROM_DOMAIN']}")
        client.rcpt("you@example.net")
        _, refused = client.data(b"From: demo@elsewhere.example\r\n\r\nHello.\r\n")
    queue_id = reply.decode().rpartition(" ")[2]
    canary = tmp_path / "key"
    canary.touch(mode=0o600)
    canary.write_text(sandbox["SANDBOX_API_KEY"])
    made("suppression", "add", "somebody@example.net")
    key_id = made("key", "create")["id"]
    webhook_id = made("webhook", "add", "http://127.0.0.1:9/")["webhook"]["id"]
    email_id = made("email", "show", queue_id)["email"]["id"]
    yield {
        "email": email_id,
        "why": email_id,
        "key": key_id,
        "webhook": webhook_id,
        QUEUE_ID: queue_id,
        REF: refused.decode().split()[-1].rstrip(")"),
        "ADDRESS": "somebody@example.net",
        "FILE": str(canary),
        "NAME": "mail",
        "${recipient}": "bounces@sandbox.test",
    }
    made("webhook", "remove", webhook_id)
    for key in json.loads(program("key", "list", "--user", "default", "--json")[1]):
        made("key", "revoke", key["id"])
    made("domain", "remove", "example.org")


def filled_in(call: str, filled: Mapping[str, str]) -> list[str]:
    """Return the words of a command line, each placeholder as what it stands for; ID is one of what is spoken of."""
    names = {**filled, "ID": filled.get(call.partition(" ")[0], "")}
    return [
        re.sub(r"\$\{\w+\}|\b(?:[A-Z]+|\w{10}|\w{15})\b", lambda found: names.get(found[0], found[0]), word)
        for word in shlex.split(call, comments=True)
    ]


def ends_well(words: Sequence[str], code: int) -> bool:
    called = " ".join(words)
    return code in next((codes for begins, codes in ENDS.items() if called.startswith(begins)), {0})


def printed() -> Iterator[str]:
    """Yield each command line once, in the order in which somebody reads."""
    lines = (shlex.join(shlex.split(call, comments=True)) for page in PAGES for call in calls(DOCS / f"{page}.md"))
    yield from dict.fromkeys(lines)


def test_every_command_of_these_pages_runs(filled: Mapping[str, str]) -> None:
    for line in printed():
        if line not in NOT_HERE:
            words = filled_in(line, filled)
            code, output, error = program(*words)
            assert ends_well(words, code), f"{line}: {code}\n{output}\n{error}"


def test_what_is_not_run_is_printed_somewhere() -> None:
    assert NOT_HERE.keys() <= set(printed())


def test_what_runs_elsewhere_is_there() -> None:
    for line, reason in NOT_HERE.items():
        for place in re.findall(r"tests/\w+/\w+\.py", reason):
            there = text_of(ROOT / place)
            assert [word for word in line.split() if word.startswith("--") and f'"{word}"' not in there] == [], line


def test_none_of_these_pages_prints_a_request() -> None:
    """Or it would have to be run here."""
    assert [page for page in PAGES if re.search(r"\bcurl [-\"h]", text_of(DOCS / f"{page}.md"))] == []


def test_a_shell_that_has_read_the_names_means_the_sandbox(sandbox: Sandbox) -> None:
    """Although nothing but `eval` was said: no `set -a`, and no variable of ours before."""
    program = f"{shlex.quote(sys.executable)} -m opensend_milter"
    script = f"""eval "$({program} sandbox env --dir {sandbox.directory})"
        {program} key list && {program} sandbox env --json && echo "$SANDBOX_API_KEY" """
    surroundings = {"PATH": os.environ["PATH"], "PYTHONPATH": SOURCE}
    done = subprocess.run(["bash", "-c", script], env=surroundings, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert " sandbox, restricted " in done.stdout
    *_, names, key = done.stdout.splitlines()
    assert (json.loads(names), key) == (sandbox.values, sandbox["SANDBOX_API_KEY"])
