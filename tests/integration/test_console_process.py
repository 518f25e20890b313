"""The console as it is run, and the commands that say who may look at it."""

from __future__ import annotations

import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from opensend_milter.cli import app_of, exits
from opensend_milter.host.rendering.certificates import make_certificate
from opensend_milter.host.requirements import free_ports
from tests.integration.private_postgres import Database
from tests.integration.serving import await_ready
from tests.waiting import patience_s

PASSWORD = "correct horse battery"


@pytest.fixture
def place(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory, and an environment by which the commands find this database."""
    monkeypatch.setenv("DATABASE_URL", database.url)
    monkeypatch.setenv("OPENSEND_MILTER_DATABASE_PASSWORD_DIR", str(database.password_dir))
    (tmp_path / "commands.yaml").write_text(json.dumps({"log": {"level": "info"}}))
    monkeypatch.setenv("OPENSEND_MILTER_CONFIG", str(tmp_path / "commands.yaml"))
    return tmp_path


def console(*words: str, given: str = "") -> Result:
    return CliRunner().invoke(app_of(["console"]), ["console", *words], input=given)


def listed(*words: str) -> Any:
    ended = console(*words, "--json")
    assert ended.exit_code == 0, ended.output
    return json.loads(ended.stdout)


class _Unix(http.client.HTTPConnection):
    """To the console's socket, as a proxy in front of it."""

    def __init__(self, path: Path) -> None:
        super().__init__("console.example.org", timeout=patience_s())
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(str(self._path))


def status(path: Path, asked: str, **headers: str) -> int:
    with closing(_Unix(path)) as connection:
        connection.request("GET", asked, headers={name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        answer.read()
        return answer.status


@contextmanager
def running(place: Path, config: dict[str, object]) -> Iterator[None]:
    """Start the process, and end it."""
    (place / "config.yaml").write_text(json.dumps(config))
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as told:
        told.bind(str(place / "notify"))
        told.settimeout(patience_s())
        command = [sys.executable, "-m", "opensend_milter", "console", "--config", str(place / "config.yaml")]
        with (place / "serve.log").open("ab") as log:
            process = subprocess.Popen(command, env={**os.environ, "NOTIFY_SOCKET": str(place / "notify")}, stderr=log)
        try:
            await_ready(told, process, place)
            yield
        finally:
            process.terminate()
            assert process.wait(patience_s()) == 0
    assert "Traceback" not in (place / "serve.log").read_text()


def test_behind_a_proxy_at_its_socket(place: Path) -> None:
    """Whoever connects there is believed; and each client's address is the one that he says."""
    path = place / "console.sock"
    settings = {"socket": str(path), "socket_group": "root", "public_url": "https://console.example.org"}
    with running(place, {"console": {**settings, "user_header": "x-forwarded-user"}}):
        assert status(path, "/messages") == 401
        assert status(path, "/messages", X_Forwarded_User="bob") == 200
        assert status(path, "/keys", X_Forwarded_User="bob", X_Forwarded_For="192.0.2.1") == 200
        assert path.stat().st_mode & 0o777 == 0o660
    assert not path.exists()


def test_under_tls_its_cookies_are_for_tls_only(place: Path) -> None:
    (place / "tls").mkdir()
    make_certificate(place / "tls", ["127.0.0.1"], now=datetime.now(UTC))
    port = free_ports(["console"])["console"]
    with running(place, {"console": {"port": port, "tls": True}, "tls": {"folder": str(place / "tls")}}):
        context = ssl.create_default_context(cafile=str(place / "tls" / "ca.pem"))
        with closing(http.client.HTTPSConnection("127.0.0.1", port, context=context, timeout=patience_s())) as asking:
            asking.request("GET", "/login")
            answer = asking.getresponse()
            assert "password" in answer.read().decode()
        told = answer.headers["set-cookie"]
    assert told.startswith("__Host-console")
    assert "Secure" in told


def test_it_is_off_until_it_is_configured(place: Path) -> None:
    (place / "config.yaml").write_text('{"log": {"level": "info"}}')
    command = [sys.executable, "-m", "opensend_milter", "console", "--config", str(place / "config.yaml")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=patience_s())
    assert ended.returncode == exits.EX_CONFIG
    assert "console.port: expected a port, or console.socket" in ended.stderr


@pytest.mark.usefixtures("place")
def test_users_are_added_listed_and_removed() -> None:
    assert console("user", "add", "ann", given=f"{PASSWORD}\n").stdout == "ann may look at the console\n"
    made = listed("user", "add", "bob", "--generate")
    assert len(made["password"]) >= 20
    assert [(one["name"], one["sessions"]) for one in listed("user", "list")] == [("ann", 0), ("bob", 0)]
    assert "ann" in console("user", "list").stdout
    assert console("user", "remove", "ann").exit_code == 0
    assert [one["name"] for one in listed("user", "list")] == ["bob"]
    ended = console("user", "remove", "ann")
    assert (ended.exit_code, "the console has no user 'ann'" in ended.stderr) == (exits.EX_USAGE, True)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("name", "given"), [("ann", "short\n"), ("ann", ""), ("a\nb", f"{PASSWORD}\n"), ("", f"{PASSWORD}\n")]
)
def test_a_user_that_cannot_be_is_refused(name: str, given: str) -> None:
    assert console("user", "add", name, given=given).exit_code == exits.EX_USAGE
    assert listed("user", "list") == []


@pytest.mark.usefixtures("place")
def test_sessions_are_ended_and_views_listed(database: Database) -> None:
    with database.connect() as connection:
        connection.execute("INSERT INTO opensend_milter.console_users VALUES ('ann', 'x', 'x')")
        connection.execute(
            "INSERT INTO opensend_milter.console_sessions (token_hash, user_name, key_id, client_address, expires_at)"
            " VALUES ('a', 'ann', NULL, '::1', 'infinity'), ('b', NULL, gen_random_uuid(), '::1', 'infinity')"
        )
        connection.execute(
            "INSERT INTO opensend_milter.console_views (viewer, client_address, email_id, what)"
            " VALUES ('ann', '::1', '01a22a0c-f6a0-4d1e-9651-279c9f1ee060', 'raw')"
        )
    assert listed("log-out", "--user", "nobody") == {"sessions": 0}
    assert listed("log-out", "--user", "ann") == {"sessions": 1}
    assert listed("log-out") == {"sessions": 1}
    (view,) = listed("views", "--email", "01a22a0c-f6a0-4d1e-9651-279c9f1ee060")
    assert (view["viewer"], view["what"]) == ("ann", "raw")
    assert listed("views", "--email", "01a22a0c-ffff-4d1e-9651-279c9f1ee060") == []
    assert "raw" in console("views").stdout


@pytest.mark.usefixtures("place")
def test_what_was_done_is_listed(database: Database) -> None:
    with database.connect() as connection:
        connection.execute(
            """INSERT INTO opensend_milter.console_actions
            (actor, client_address, action, email_id, address, outcome, form) VALUES
            ('ann', '::1', 'suppress', '01a22a0c-f6a0-4d1e-9651-279c9f1ee060', 'to@example.net', 'done',
            gen_random_uuid())"""
        )
    (done,) = listed("actions", "--email", "01a22a0c-f6a0-4d1e-9651-279c9f1ee060", "--since", "7d")
    assert (done["actor"], done["action"], done["address"], done["outcome"]) == (
        "ann", "suppress", "to@example.net", "done",
    )  # fmt: skip
    assert listed("actions", "--email", "01a22a0c-ffff-4d1e-9651-279c9f1ee060") == []
    assert "suppress" in console("actions").stdout
