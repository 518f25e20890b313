"""`check-config` as an operator runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from opensend_milter.config import load

ROOT = Path(__file__).parents[2]
PASSWORD = "correct-horse"
FRONT_DOOR = "tls: {folder: /etc/letsencrypt/live/mail.example.org}\n"


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    """Return where the configuration is."""
    return tmp_path / "opensend-milter.yaml"


def run(path: Path, *more: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "opensend_milter", "check-config", "--config", path, *more],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def test_check_config_prints_a_file_that_loads(config_file: Path) -> None:
    """Its output is the same configuration, its secrets left to their source, and it tells sources and renders."""
    config_file.write_text(
        FRONT_DOOR + "relay: {username: '1e3', password_file: /x}\nmilter: {gather_window_ms: 1.0e-5}"
    )
    environ = {"DATABASE_URL": f"postgresql://u:{PASSWORD}@h/db", "SMTP_RELAY_PORT": "2600"}
    done = run(config_file, **environ)
    assert (done.returncode, done.stderr) == (0, "opensend-milter: ok\n")
    assert PASSWORD not in done.stdout
    assert "  # url: postgresql://u:********@h/db  # DATABASE_URL\n" in done.stdout
    assert "  relay_port: 2600  # SMTP_RELAY_PORT\n" in done.stdout
    assert "  submission_port: 587\n" in done.stdout
    last = done.stdout.splitlines()[-1]
    assert last == "# After a change of database.url, smtp.relay_port, tls.folder: render Postfix and Dovecot again."
    before = load(config_file, environ)
    config_file.write_text(done.stdout)
    assert load(config_file, {"DATABASE_URL": environ["DATABASE_URL"]}) == before


def test_check_config_prints_json(config_file: Path) -> None:
    """Scripts get value, source and renders by section and key."""
    config_file.write_text(FRONT_DOOR)
    done = run(config_file, "--json", DATABASE_URL=f"postgresql://u:{PASSWORD}@h/db")
    assert done.returncode == 0
    assert PASSWORD not in done.stdout + done.stderr
    shown = json.loads(done.stdout)
    assert shown["profile"] == {"value": "standalone", "source": "default", "renders": False}
    assert shown["database"]["url"] == {
        "value": "postgresql://u:********@h/db",
        "source": "DATABASE_URL",
        "renders": True,
    }
    assert shown["milter"]["drain_s"]["value"] == 20.0


@pytest.mark.case(70)
@pytest.mark.parametrize(
    ("text", "environ", "keys"),
    [
        ("smtp: {hostnam: x}", {}, ["smtp.hostnam", "tls.certificate"]),
        ("", {"SMTP_RELAY_PORT": "x"}, ["smtp.relay_port", "tls.certificate"]),
        (FRONT_DOOR, {"DATABASE_URL": f"mysql://u:{PASSWORD}@h/db"}, ["database.url"]),
        (FRONT_DOOR + f"database: {{url: 'postgresql://u:{PASSWORD}@h/db'}}", {}, ["database.url"]),
    ],
)
def test_check_config_exits_with_78(config_file: Path, text: str, environ: dict[str, str], keys: list[str]) -> None:
    """Each fault's key on standard error, nothing on standard output, no password anywhere."""
    config_file.write_text(text)
    done = run(config_file, **environ)
    assert (done.returncode, done.stdout) == (78, "")
    assert [line.split(": ")[1] for line in done.stderr.splitlines()] == keys
    assert PASSWORD not in done.stderr


def test_the_closing_comment_is_for_what_is_rendered(config_file: Path) -> None:
    """It names the keys that somebody set, and of these the ones that Postfix or Dovecot read."""
    config_file.write_text("log: {level: debug}")
    environ = {"OPENSEND_MILTER_SMTP_PLAINTEXT_AUTH": "yes", "SMTP_RELAY_HOST": "::1"}
    lines = run(config_file, **environ).stdout.splitlines()
    assert lines[-1] == "# After a change of smtp.host, smtp.plaintext_auth: render Postfix and Dovecot again."
    assert yaml.safe_load("\n".join(lines))["smtp"]["host"] == "::1"
