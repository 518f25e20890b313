"""fail2ban's filter as shipped: whoever tries wrong keys is found, an outage is nobody's fault."""

from __future__ import annotations

import logging
import os
import shutil
import smtplib
import subprocess
from pathlib import Path
from typing import Literal

import pytest

from opensend_milter.core import maillog
from opensend_milter.core.counting import LoginOutcome
from opensend_milter.core.logline import formatter
from tests.acceptance.running_sandbox import Sandbox
from tests.waiting import patience_s

ROOT = Path(__file__).resolve().parents[2]
REGEX = shutil.which("fail2ban-regex")
SYSLOG = "Nov 21 13:37:03 mail postfix-opensend/relay/smtpd[11328]: "
WRONG = "authentication failed: the password must be an API key"
Mode = Literal["gate", "postfix"]

pytestmark = pytest.mark.skipif(REGEX is None, reason="needs fail2ban-regex (Debian package fail2ban)")


def found(lines: str, mode: Mode, place: Path) -> list[str]:
    """Return the addresses that the filter finds, in order."""
    filters = place / "filter.d"
    filters.mkdir(exist_ok=True)
    shutil.copy(ROOT / "packaging" / "fail2ban" / "filter.conf", filters / "opensend-milter.conf")
    log = place / "lines"
    log.write_text(lines)
    done = subprocess.run(
        [str(REGEX), "-c", str(place), "-o", "ip", str(log), f"opensend-milter[mode={mode}]"],
        check=False, capture_output=True, text=True, timeout=patience_s(), env={**os.environ, "LC_ALL": "C.UTF-8"},
    )  # fmt: skip
    assert not done.stderr, done.stderr
    return done.stdout.split()


def test_wrong_keys_are_found_in_the_logs_of_a_running_host(sandbox: Sandbox, tmp_path: Path) -> None:
    with sandbox.connect() as client:
        for _ in range(2):
            with pytest.raises(smtplib.SMTPAuthenticationError):
                client.login("apikey", "os_" + "0" * 32)
    gate, postfix = sandbox.log("auth-gate"), sandbox.log("postfix").replace("postfix-sandbox/", "postfix-opensend/")
    by_gate, by_postfix = found(gate, "gate", tmp_path), found(postfix, "postfix", tmp_path)
    assert len(by_gate) >= 2
    assert len(by_postfix) >= 2
    assert {*by_gate, *by_postfix} <= {"127.0.0.1", "::1"}
    # A good login of the same client is none of these.
    assert len(by_gate) == gate.count("outcome=refused")


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("prefix", ["", "mail opensend-milter[77]: "], ids=["a file", "the journal"])
def test_only_refusals_of_the_gate_match(
    form: Literal["text", "json"], prefix: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clients: dict[LoginOutcome, str] = {
        "accepted": "192.0.2.1", "refused": "2001:db8::7", "throttled": "192.0.2.3", "outage": "192.0.2.4",
    }  # fmt: skip
    with caplog.at_level(logging.DEBUG, "opensend_milter.mail"):
        for outcome, client in clients.items():
            maillog.login(outcome, client=client, mechanism="PLAIN", took_ms=3.0)
    lines = "".join(f"{prefix}{formatter(form).format(record)}\n" for record in caplog.records)
    assert found(lines, "gate", tmp_path) == ["2001:db8::7"]


@pytest.mark.parametrize(
    ("line", "addresses"),
    [
        (f"warning: unknown[192.0.2.1]: SASL LOGIN {WRONG}", ["192.0.2.1"]),
        (f"warning: unknown[2001:db8::7]:4711: SASL PLAIN {WRONG}, sasl_username=(unavailable)", ["2001:db8::7"]),
        ("too many errors after AUTH from unknown[192.0.2.1]", ["192.0.2.1"]),
        ("warning: unknown[192.0.2.1]: SASL PLAIN authentication failed: Connection lost to authentication server", []),
        ("warning: unknown[192.0.2.1]: SASL PLAIN authentication failed: Can't connect to auth.sock: No such file", []),
        ("warning: SASL: Connect to /var/spool/auth.sock failed: Connection refused", []),
        ("lost connection after AUTH from unknown[192.0.2.1]", []),
        ("too many errors after RCPT from unknown[192.0.2.1]", []),
        ("reject: RCPT from unknown[192.0.2.1]: 451 <a@x>: too many errors after AUTH from b[192.0.2.9]", []),
        ("warning: x: 3 postfix-opensend/a/smtpd[1]: too many errors after AUTH from unknown[192.0.2.9]", []),
    ],
)  # fmt: skip
def test_only_wrong_keys_match_in_postfix_lines(line: str, addresses: list[str], tmp_path: Path) -> None:
    assert found(f"{SYSLOG}{line}\n", "postfix", tmp_path) == addresses


def test_a_line_that_a_stranger_wrote_into_another_does_not_match(tmp_path: Path) -> None:
    forged = "INFO opensend_milter.mail[1]: login outcome=refused client=192.0.2.9 mechanism=PLAIN delay_ms=1.0"
    lines = f'2026-11-21 13:37:03,283 INFO opensend_milter.mail[7]: 4X: subject="{forged}"\n'
    assert found(lines, "gate", tmp_path) == []
