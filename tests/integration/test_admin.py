"""The administrator's commands, as they are typed."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from opensend_milter import cli
from opensend_milter.adapters.admin.store import AdminStore
from opensend_milter.adapters.schema import migrations
from opensend_milter.cli.snippets import CLIENTS
from opensend_milter.config import loader
from tests.integration.private_postgres import Database

Run = Callable[..., Result]
SOURCE = str(Path(migrations.__file__).parents[2])
NAMES_OF_DATABASES = ("DATABASE_URL", "OPENSEND_MILTER_DATABASE_URL", "OPENSEND_MILTER_CONFIG")
EMAIL_ID = "6d1c9f5e-0a2b-4c3d-8e4f-5a6b7c8d9e0f"


def configure(database: Database, directory: Path, profile: str) -> Path:
    """Write a configuration of that profile."""
    path = directory / f"{profile}.yaml"
    path.write_text(
        f"profile: {profile}\ndatabase:\n  password_dir: {database.password_dir}\nsmtp:\n  hostname: mail.example.org\n"
    )
    return path


def runner(database: Database, config: Path) -> Run:
    """Run one command line against a test's database."""
    environment = {"DATABASE_URL": database.url, "OPENSEND_MILTER_CONFIG": str(config), "COLUMNS": "250"}

    def invoke(*words: str) -> Result:
        return CliRunner().invoke(cli.app_of(words[:1]), words, env=environment)

    return invoke


@pytest.fixture
def configured(database: Database, tmp_path: Path) -> Path:
    return configure(database, tmp_path, "standalone")


@pytest.fixture
def run(database: Database, configured: Path) -> Run:
    return runner(database, configured)


@pytest.fixture
def run_beside(beside: Database, tmp_path: Path) -> Run:
    return runner(beside, configure(beside, tmp_path, "opensend"))


def parsed(result: Result) -> object:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def field(value: object, name: str) -> str:
    assert isinstance(value, dict)
    return str(value[name])


def fill(database: Database) -> None:
    """One email with its job and event, one refusal of another queue id."""
    with database.connect() as connection:
        connection.execute(
            'INSERT INTO public.emails (id, "from", "to", subject, text, user_id, attachments) VALUES'
            " (%s, 'a@b.example', '[\"c@d.example\"]', '[/bold]\x1b[2J\u202e', 'four', 'default', '[{}]')",
            [EMAIL_ID],
        )
        connection.execute(
            "INSERT INTO opensend_milter.submissions VALUES (%s, now(), 'default', gen_random_uuid(), 'smtp',"
            " '4Zk9Lt3', '192.0.2.1', 'TLSv1.3', 'bounce@b.example', 'a@b.example',"
            " '{c@d.example,e@f.example}', NULL, 10, 'x')",
            [EMAIL_ID],
        )
        connection.execute(
            "INSERT INTO opensend_milter.raw_chunks VALUES (%s, 0, '1234'), (%s, 1, '567')", [EMAIL_ID] * 2
        )
        connection.execute("INSERT INTO opensend_milter.jobs (email_id, user_id) VALUES (%s, 'default')", [EMAIL_ID])
        connection.execute(
            "INSERT INTO public.email_events (email_id, type, payload) VALUES (%s, 'sent', '{\"a\": 1}')", [EMAIL_ID]
        )
        connection.execute(
            "INSERT INTO opensend_milter.refusals (rule, code, enhanced, text, front_door, queue_id, client_address,"
            " key_id, sender, recipients, size_bytes) VALUES ('from-unverified', 550, '5.7.1', 'verify it', 'smtp',"
            " '4Zk9Lt4', '192.0.2.1', 'k', 'a@b.example', '{c@d.example}', 7)"
        )


def test_key_that_is_made_is_found_by_its_hash(database: Database, run: Run) -> None:
    key = parsed(run("key", "create", "--name", "shop", "--json"))
    token = field(key, "token")
    assert len(token) == 35
    assert token.startswith("os_")
    digest = hashlib.sha256(token.encode()).hexdigest()
    with database.connect("opensend_dovecot_auth") as connection:
        assert connection.execute("SELECT opensend_milter.key_id(%s)", [digest]).fetchone() == (field(key, "id"),)
    with database.connect() as connection:
        row = connection.execute(
            "SELECT token_hash, token_preview, name, user_id, domain FROM public.api_keys"
        ).fetchone()
        users = connection.execute('SELECT id FROM public."user"').fetchall()
    assert row == (digest, f"{token[:6]}...{token[-4:]}", "shop", "default", None)
    assert users == [("default",)]


def test_token_is_nowhere_but_in_the_answer(database: Database, run: Run) -> None:
    token = field(parsed(run("key", "create", "--json")), "token")
    assert token not in run("key", "list").output
    assert token not in (database.cluster.directory / "log").read_text(errors="replace")
    with database.connect() as connection:
        store = AdminStore(connection, makes_users=True)
        key = store.create_key(name="k", user_id=store.ensure_user("u"), permission="full_access", domain=None)
    assert key.token not in repr(key)


def test_restricted_key_stores_the_domains_id(database: Database, run: Run) -> None:
    domain = parsed(run("domain", "add", "Example.ORG.", "--verified", "--json"))
    assert (field(domain, "name"), field(domain, "status")) == ("example.org", "verified")
    run("key", "create", "--domain", "example.org")
    with database.connect() as connection:
        assert connection.execute("SELECT domain, permission FROM public.api_keys").fetchall() == [
            (field(domain, "id"), "sending_access")
        ]
    assert "example.org" in run("key", "list").stdout
    refused = run("domain", "remove", "example.org")
    assert (refused.exit_code, "1 key(s) are bound to example.org" in refused.stderr) == (64, True)
    assert run("domain", "remove", "example.org", "--force").exit_code == 0
    assert "gone: sends nothing" in run("key", "list").stdout


def test_snippets_can_be_pasted(run: Run, tmp_path: Path) -> None:
    run("domain", "add", "example.org", "--verified")
    shown = run("key", "create", "--ca-file", str(tmp_path / "my ca.pem")).stdout
    token = next(line.strip() for line in shown.splitlines() if line.startswith("    os_"))
    swaks, python = shown.partition("With swaks:\n\n")[2].split("\nWith Python:\n\n")
    variable, _, arguments = swaks.partition(" swaks ")
    assert variable == f"SWAKS_OPT_auth_password={token}"
    assert token not in arguments
    for part in ("--server mail.example.org --port 587 --tls --tls-verify", "--from hello@example.org", "my ca.pem'"):
        assert part in arguments
    compile(python, "example", "exec")
    for part in ('"mail.example.org", 587', "starttls", f'login("apikey", "{token}")', "hello@example.org"):
        assert part in python
    assert "Other clients: `opensend-milter key snippet CLIENT`, of curl, django, nodemailer" in shown


def test_only_the_clients_that_are_asked_for_are_shown(run: Run) -> None:
    run("domain", "add", "example.org", "--verified")
    made = json.loads(run("key", "create", "--snippet", "msmtp", "--snippet", "curl", "--json").stdout)
    assert sorted(made["snippets"]) == ["curl", "msmtp"]
    assert f"password {made['token']}\n" in made["snippets"]["msmtp"]
    every = run("key", "create", "--snippet", "all").stdout
    assert every.count("\nWith ") == len(CLIENTS)
    assert "Other clients" not in every
    assert run("key", "create", "--snippet", "pine").exit_code == 64


def test_snippets_are_shown_without_a_key(database: Database, run: Run) -> None:
    """No key is made for it; one client alone is printed bare, so that it can go into a file."""
    nobodys = run("key", "snippet", "python").stdout
    assert '"hello@example.org"' in nobodys
    run("domain", "add", "shop.example", "--verified")
    shown = run("key", "snippet", "python").stdout
    compile(shown, "snippet", "exec")
    assert '"YOUR_API_KEY"' in shown
    assert '"hello@shop.example"' in shown
    assert '"a@b.example"' in run("key", "snippet", "python", "--from", "a@b.example").stdout
    refused = run("key", "snippet", "msmtp", "--from", "a@b.example\npassword x")
    assert (refused.exit_code, "--from: " in refused.stderr) == (64, True)
    with database.connect() as connection:
        assert connection.execute("SELECT count(*) FROM public.api_keys").fetchone() == (0,)


def test_revoke_takes_the_beginning_of_an_id(database: Database, run: Run) -> None:
    first, second = (field(parsed(run("key", "create", "--json")), "id") for _ in range(2))
    assert "no key has an id that begins or ends with 'zzzz'" in run("key", "revoke", "zzzz").stderr
    assert "at least its first 4 characters" in run("key", "revoke", first[:3]).stderr
    assert run("key", "revoke", first[:8].upper()).exit_code == 0
    with database.connect() as connection:
        assert connection.execute("SELECT id::text FROM public.api_keys").fetchall() == [(second,)]
        connection.execute(
            "INSERT INTO public.api_keys (id, name, token_hash)"
            " SELECT (%s || n)::uuid, '', n FROM unnest(ARRAY['a', 'b']) n",
            [EMAIL_ID[:-1]],
        )
    ambiguous = run("key", "revoke", EMAIL_ID[:9])
    assert (ambiguous.exit_code, "may be any of these" in ambiguous.stderr) == (64, True)
    assert {f"{EMAIL_ID[:-1]}{last}" for last in "ab"} == set(re.findall(r"[\w-]{36}", ambiguous.stderr))


def settings_of(database: Database) -> dict[str, str | None]:
    with database.connect() as connection:
        return dict(connection.execute("SELECT key_id::text, on_suppressed FROM opensend_milter.key_settings"))


def test_a_key_is_given_a_rule_of_its_own(database: Database, run: Run) -> None:
    first, second = (field(parsed(run("key", "create", "--json")), "id") for _ in range(2))
    for rule in ("drop-recipient", "reject-message", "drop-recipient"):
        shown = run("key", "set", first[:8].upper(), "--on-suppressed", rule)
        assert (shown.exit_code, shown.stdout.splitlines()[-1]) == (0, f"on suppressed: {rule}")
        assert settings_of(database) == {first: rule}
    assert field(parsed(run("key", "set", second, "--on-suppressed", "reject-message", "--json")), "id") == second
    listed = parsed(run("key", "list", "--json"))
    assert isinstance(listed, list)
    assert {key["id"]: key["on_suppressed"] for key in listed} == {first: "drop-recipient", second: "reject-message"}
    assert "drop-recipient" in run("key", "list").stdout
    changed = parsed(run("key", "set", first, "--on-suppressed", "default", "--json"))
    assert isinstance(changed, dict)
    assert changed["on_suppressed"] is None
    assert settings_of(database) == {first: None, second: "reject-message"}
    assert "drop-recipient" not in run("key", "list").stdout


def test_a_rule_that_is_none_and_a_key_that_is_none(database: Database, run: Run) -> None:
    key_id = field(parsed(run("key", "create", "--json")), "id")
    for words, code in [
        (["key", "set", key_id], 64),
        (["key", "set", key_id, "--on-suppressed", "ignore"], 64),
        (["key", "set", "zzzz", "--on-suppressed", "default"], 64),
        (["key", "set", key_id[:3], "--on-suppressed", "default"], 64),
    ]:
        assert run(*words).exit_code == code, words
    assert settings_of(database) == {}


def test_a_revoked_key_leaves_no_rule_behind(database: Database, run: Run) -> None:
    key_id = field(parsed(run("key", "create", "--json")), "id")
    assert run("key", "set", key_id, "--on-suppressed", "drop-recipient").exit_code == 0
    assert run("key", "revoke", key_id, "--yes").exit_code == 0
    assert settings_of(database) == {}


RULES = {
    "--allow-from": (
        " App@EXAMPLE.org.,@Bücher.example , App@example.org",
        "allowed_senders",
        ["App@example.org", "@xn--bcher-kva.example"],
    ),
    "--allow-to": (
        '"a, b"@example.net,"c"@example.net,',
        "allowed_recipients",
        ['"a, b"@example.net', "c@example.net"],
    ),
    "--network": (
        "10.0.0.0/8, 192.0.2.7,2001:DB8::/32,::ffff:198.51.100.0/120",
        "networks",
        ["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32", "198.51.100.0/24"],
    ),
    "--per-minute": ("60", "per_minute", 60),
    "--per-day": ("1000", "per_day", 1000),
    "--expires": ("2099-12-31T00:00:00+00:00", "expires_at", "2099-12-31T00:00:00+00:00"),
}


def test_a_key_is_told_what_it_may_do(run: Run) -> None:
    key_id, other = (field(parsed(run("key", "create", "--json")), "id") for _ in range(2))
    words = [word for option, (text, _, _) in RULES.items() for word in (option, text)]
    rules: dict[str, object] = {name: stored for _, name, stored in RULES.values()}
    switches = ["--no-attachments", "--no-html", "--no-bulk"]
    rules |= {"may_attach": False, "may_html": False, "may_bulk": False}
    changed = parsed(run("key", "set", key_id[:8], *words, *switches, "--json"))
    assert isinstance(changed, dict)
    assert {name: changed[name] for name in rules} | {"expires_at": None} == rules | {"expires_at": None}
    assert datetime.fromisoformat(changed["expires_at"]) == datetime(2099, 12, 31, tzinfo=UTC)
    for option, (_, name, _) in RULES.items():
        rules[name] = None
        cleared = parsed(run("key", "set", key_id, option, "", "--json"))
        assert isinstance(cleared, dict)
        kept = {name: cleared[name] for name in rules if name != "expires_at"}
        assert kept == {name: value for name, value in rules.items() if name != "expires_at"}, option
    detail = parsed(run("key", "show", other, "--json"))
    assert isinstance(detail, dict)
    assert {detail["key"][name] for name in rules} == {None, True}
    allowed = run("key", "set", key_id, "--attachments", "--html", "--bulk").stdout
    assert "attachments: yes\nhtml: yes\nbulk: yes\n" in allowed


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("--allow-from", "example.org"),
        ("--allow-from", "*@example.org"),
        ("--allow-from", "@*.example.org"),
        ("--allow-from", "@localhost"),
        ("--allow-to", "a@example.org;b@example.org"),
        ("--allow-to", "a b@example.org"),
        ("--allow-to", '"a@example.org'),
        ("--network", "10.0.0.1/8"),
        ("--network", "10.0.0.0/33"),
        ("--network", "localhost"),
        ("--per-day", "0"),
        ("--per-day", "-1"),
        ("--per-day", "1e3"),
        ("--per-minute", "9999999999"),
        ("--expires", "2001-01-01"),
        ("--expires", "0d"),
        ("--expires", "tomorrow"),
        ("--expires", "9999-12-31T23:59:59-23:59"),
    ],
)
def test_what_cannot_be_a_rule_is_refused(database: Database, run: Run, option: str, text: str) -> None:
    key_id = field(parsed(run("key", "create", "--json")), "id")
    refused = run("key", "set", key_id, option, text, "--no-html")
    assert (refused.exit_code, refused.stderr.count("\n")) == (64, 1), refused.output
    assert settings_of(database) == {}


@pytest.mark.parametrize(("text", "days"), [("30d", 30), ("8w", 56), ("48h", 2)])
def test_a_key_expires_after_a_time(database: Database, run: Run, text: str, days: int) -> None:
    key_id = field(parsed(run("key", "create", "--json")), "id")
    at = datetime.fromisoformat(field(parsed(run("key", "set", key_id, "--expires", text, "--json")), "expires_at"))
    assert abs(at - datetime.now(UTC) - timedelta(days=days)) < timedelta(minutes=1)
    assert "expired" not in run("key", "list").stdout
    with database.connect() as connection:
        connection.execute("UPDATE opensend_milter.key_settings SET expires_at = now()")
    assert " expired" in run("key", "list").stdout
    assert "expires: expired 20" in run("key", "show", key_id).stdout
    assert "expires: never" in run("key", "set", key_id, "--expires", "never").stdout


def key_of(database: Database, token: str) -> object:
    """Ask as Dovecot does."""
    digest = hashlib.sha256(token.encode()).hexdigest()
    with database.connect("opensend_dovecot_auth") as connection:
        ((found,),) = connection.execute("SELECT opensend_milter.key_id(%s)", [digest]).fetchall()
    return found


def test_a_key_is_rotated(database: Database, run: Run) -> None:
    created = parsed(run("key", "create", "--json"))
    key_id, first = field(created, "id"), field(created, "token")
    second = field(parsed(run("key", "rotate", key_id[:8], "--json")), "token")
    assert second != first
    assert [key_of(database, token) for token in (first, second)] == [key_id, key_id]
    with database.connect() as connection:
        # OpenSend's REST API asks here.
        stored = connection.execute("SELECT token_hash, token_preview FROM public.api_keys").fetchall()
        assert stored == [(hashlib.sha256(second.encode()).hexdigest(), f"{second[:6]}...{second[-4:]}")]
    shown = parsed(run("key", "secrets", key_id, "--json"))
    assert isinstance(shown, list)
    (earlier,) = shown
    assert hashlib.sha256(first.encode()).hexdigest().startswith(earlier["hash"])
    good_for = datetime.fromisoformat(earlier["expires_at"]) - datetime.now(UTC)
    assert timedelta(days=6, hours=23) < good_for <= timedelta(days=7)
    third = field(parsed(run("key", "rotate", key_id, "--keep", "1h", "--json")), "token")
    assert [key_of(database, token) for token in (first, second, third)] == [key_id] * 3
    listed = parsed(run("key", "secrets", key_id, "--json"))
    assert isinstance(listed, list)
    for secret in listed:
        left = datetime.fromisoformat(secret["expires_at"]) - datetime.now(UTC)
        assert timedelta() < left <= timedelta(hours=1), "older ones stay no longer than the one just replaced"
    fourth = field(parsed(run("key", "rotate", key_id, "--keep", "0", "--json")), "token")
    assert [key_of(database, token) for token in (first, second, third, fourth)] == [None] * 3 + [key_id]
    assert parsed(run("key", "secrets", key_id, "--json")) == []
    assert run("key", "rotate", key_id, "--keep", "a week").exit_code == 64


def test_a_new_secret_is_shown_once(database: Database, run: Run) -> None:
    key_id = field(parsed(run("key", "create", "--json")), "id")
    shown = run("key", "rotate", key_id).stdout
    token = next(line.strip() for line in shown.splitlines() if line.startswith("    os_"))
    assert key_of(database, token) == key_id
    for words in (["show", key_id], ["secrets", key_id], ["list"]):
        assert token not in run("key", *words).stdout
    assert token not in (database.cluster.directory / "log").read_text(errors="replace")
    with database.connect() as connection:
        store = AdminStore(connection, makes_users=True)
        secret = store.rotate_key(store.find_key(key_id), timedelta())
    assert secret.token not in repr(secret)


def test_an_earlier_secret_is_ended_before_its_time(database: Database, run: Run) -> None:
    created = parsed(run("key", "create", "--json"))
    key_id, first = field(created, "id"), field(created, "token")
    second = field(parsed(run("key", "rotate", key_id, "--json")), "token")
    third = field(parsed(run("key", "rotate", key_id, "--json")), "token")
    digest = hashlib.sha256(first.encode()).hexdigest()
    assert run("key", "revoke-secret", key_id, "zzzz").exit_code == 64
    assert run("key", "revoke-secret", key_id, " ").exit_code == 64
    current = hashlib.sha256(third.encode()).hexdigest()
    assert run("key", "revoke-secret", key_id, current[:12]).exit_code == 64, "it is `rotate --keep 0` that ends it"
    other = field(parsed(run("key", "create", "--json")), "id")
    assert run("key", "revoke-secret", other, digest[:12]).exit_code == 64
    assert run("key", "revoke-secret", key_id, digest[:12].upper(), "--yes").exit_code == 0
    assert [key_of(database, token) for token in (first, second, third)] == [None, key_id, key_id]


def test_show_tells_all_of_a_key(database: Database, run: Run) -> None:
    key_id = field(parsed(run("key", "create", "--name", "shop", "--json")), "id")
    assert "sent today" not in run("key", "show", key_id).stdout
    run("key", "set", key_id, "--per-day", "5", "--allow-to", "@example.net")
    assert "sent today (UTC): 0 of 5" in run("key", "show", key_id).stdout
    with database.connect() as connection:
        connection.execute(
            "INSERT INTO opensend_milter.key_usage SELECT %s, (now() AT TIME ZONE 'UTC')::date - n, 3 + n"
            " FROM generate_series(0, 1) AS d (n)",
            [key_id],
        )
    run("key", "rotate", key_id)
    shown = run("key", "show", key_id[:6]).stdout
    for line in (f"key {key_id} (shop, user default)", "to: @example.net", "from: any", "sent today (UTC): 3 of 5"):
        assert line in shown.splitlines()
    assert shown.count("earlier secret: ") == 1
    assert run("key", "show", "zzzz").exit_code == 64


@pytest.mark.parametrize("by_us", [True, False])
def test_a_key_that_is_gone_takes_its_secrets_along(database: Database, run: Run, by_us: bool) -> None:  # noqa: FBT001
    created = parsed(run("key", "create", "--json"))
    key_id, first = field(created, "id"), field(created, "token")
    second = field(parsed(run("key", "rotate", key_id, "--json")), "token")
    run("key", "set", key_id, "--per-day", "5")
    if by_us:
        assert run("key", "revoke", key_id, "--yes").exit_code == 0
    with database.connect() as connection:
        # As OpenSend's dashboard does, which knows nothing of our tables.
        connection.execute("DELETE FROM public.api_keys")
        left = connection.execute(
            "SELECT (SELECT count(*) FROM opensend_milter.key_settings)"
            " + (SELECT count(*) FROM opensend_milter.key_secrets)"
        ).fetchone()
    assert left == (0 if by_us else 2,)
    assert [key_of(database, token) for token in (first, second)] == [None, None]
    assert run("key", "show", key_id).exit_code == 64
    assert run("key", "secrets", key_id).exit_code == 64


@pytest.mark.parametrize("profile", ["opensend", "standalone"])
def test_users_of_opensend_are_never_written(beside: Database, tmp_path: Path, profile: str) -> None:
    """Whatever the profile says: it may be the default's."""
    run = runner(beside, configure(beside, tmp_path, profile))
    with beside.connect() as connection:
        connection.execute("""INSERT INTO public."user" (id, name, email) VALUES ('u1', 'U', 'u@example.org')""")
    refused = run("key", "create", "--user", "u2")
    assert (refused.exit_code, "no user 'u2'" in refused.stderr, "known are: u1" in refused.stderr) == (64, True, True)
    assert run("key", "create", "--user", "u1").exit_code == 0
    with beside.connect() as connection:
        assert connection.execute('SELECT id FROM public."user"').fetchall() == [("u1",)]


def test_domains(run: Run) -> None:
    run("domain", "add", "bücher.example")
    again = run("domain", "add", "BÜCHER.example")
    assert (again.exit_code, "already has the domain xn--bcher-kva.example" in again.stderr) == (64, True)
    run("domain", "add", "bücher.example", "--user", "other")
    unclear = run("domain", "verify", "bücher.example")
    assert (unclear.exit_code, "2 domains are called xn--bcher-kva.example" in unclear.stderr) == (64, True)
    vouched = run("domain", "verify", "bücher.example", "--user", "other", "--assume-verified", "--json")
    assert field(parsed(vouched), "status") == "verified"
    listed = parsed(run("domain", "list", "--json"))
    assert isinstance(listed, list)
    assert [(field(row, "user_id"), field(row, "status")) for row in listed] == [
        ("other", "verified"),
        ("default", "not_started"),
    ]
    for wrong in ("localhost", "192.0.2.1", "a b.example", "a-.example", "x" * 64 + ".example", ""):
        assert run("domain", "add", wrong).exit_code == 64, wrong


@pytest.mark.case(75)
def test_suppressions(run: Run) -> None:
    assert field(parsed(run("suppression", "add", "  Some@One.Example ", "--json")), "email") == "some@one.example"
    assert (
        field(parsed(run("suppression", "add", "some@one.example", "--reason", "bounced", "--json")), "reason")
        == "bounced"
    )
    listed = parsed(run("suppression", "list", "--json"))
    assert isinstance(listed, list)
    assert [field(row, "reason") for row in listed] == ["bounced"]
    assert run("suppression", "remove", "SOME@one.example", "--yes").exit_code == 0
    assert run("suppression", "remove", "some@one.example").exit_code == 64
    assert run("suppression", "add", "no-address").exit_code == 64
    for odd in ("SOME@ｏne.example", "ſome@one.example", "some@one.example"):
        assert run("suppression", "add", odd).exit_code == 0
    listed = parsed(run("suppression", "list", "--json"))
    assert isinstance(listed, list)
    assert {field(row, "email") for row in listed} == {"some@one.example", "ſome@one.example"}
    lifted = run("suppression", "remove", "ｓome@one.example", "--yes")
    assert (lifted.exit_code, parsed(run("suppression", "list", "--json"))) == (0, [])
    assert "some@one.example is no longer suppressed for user default, listed as ſome@one.example too" in lifted.stdout
    assert run("suppression", "add", "a@b.example", "--reason", "dislike").exit_code == 64


def test_email_is_found_by_both_ids(database: Database, run: Run) -> None:
    fill(database)
    by_queue_id = parsed(run("email", "show", "4Zk9Lt3", "--json"))
    assert by_queue_id == parsed(run("email", "show", EMAIL_ID, "--json"))
    assert isinstance(by_queue_id, dict)
    assert by_queue_id["refusals"] == []
    for part, name, value in [
        ("email", "status", "queued"),
        ("email", "text_bytes", "4"),
        ("email", "attachments", "1"),
        ("submission", "sender", "bounce@b.example"),
        ("submission", "kept_bytes", "7"),
        ("submission", "size_bytes", "10"),
        ("job", "state", "waiting"),
    ]:
        assert field(by_queue_id[part], name) == value
    assert [(event["type"], event["payload"]) for event in by_queue_id["events"]] == [("sent", {"a": 1})]
    with database.connect() as connection:
        store = AdminStore(connection, makes_users=False)
        assert store.find_email("4Zk9Lt3") == (EMAIL_ID, "queued")
        assert store.find_email("4Zk9Lt4") is None
        assert store.find_email("") is None


@pytest.mark.parametrize("named", [EMAIL_ID[:13], EMAIL_ID[:13].upper(), EMAIL_ID[:20], EMAIL_ID[-12:], EMAIL_ID])
def test_email_is_found_by_either_end_of_its_id(database: Database, run: Run, named: str) -> None:
    fill(database)
    found = parsed(run("email", "show", named, "--json"))
    assert isinstance(found, dict)
    assert field(found["email"], "id") == EMAIL_ID
    assert parsed(run("email", "cancel", named, "--json")) == {"done": [EMAIL_ID], "left": {}}


@pytest.mark.parametrize("named", [EMAIL_ID[:12], EMAIL_ID[-11:], EMAIL_ID[1:], "%", "", EMAIL_ID[:13] + "'"])
def test_less_of_an_id_names_nothing(database: Database, run: Run, named: str) -> None:
    fill(database)
    for words in (["email", "show", named], ["email", "retry", named], ["email", "fail", named]):
        refused = run(*words)
        assert (refused.exit_code, "no email has the id or queue id" in refused.stderr) == (64, True)


def test_an_ambiguous_id_lists_what_it_may_be(database: Database, run: Run) -> None:
    """A millisecond may have many messages."""
    ids = [f"01a22a0c-f6a6-4d1e-9651-{number:012x}" for number in range(25)]
    with database.connect() as connection:
        connection.execute(
            "INSERT INTO emails (id, \"from\", \"to\", subject) SELECT id, '', '[]', '' FROM unnest(%s::uuid[]) id",
            [ids],
        )
    for words in (["email", "show", ids[0][:13]], ["email", "cancel", ids[0], ids[1][:18]]):
        refused = run(*words)
        assert refused.exit_code == 64
        assert re.findall(r"[\w-]{36}", refused.stderr) == ids[:20]
        assert refused.stderr.endswith(" ...\n")
    with database.connect() as connection:
        connection.execute(
            "INSERT INTO public.emails (id, \"from\", \"to\", subject) VALUES (%s, '', '[]', '')",
            [f"{EMAIL_ID[:24]}{0:012x}"],
        )
    assert sorted(re.findall(r"[\w-]{36}", run("email", "show", f"{0:012x}").stderr)) == [
        ids[0],
        f"{EMAIL_ID[:24]}{0:012x}",
    ]


def test_a_queue_id_that_looks_like_an_end_is_a_queue_id(database: Database, run: Run) -> None:
    fill(database)
    with database.connect() as connection:
        connection.execute("UPDATE opensend_milter.submissions SET queue_id = '0123456789AB'")
        connection.execute(
            "INSERT INTO public.emails (id, \"from\", \"to\", subject) VALUES (%s, '', '[]', '')",
            [f"{EMAIL_ID[:24]}0123456789ab"],
        )
    found = parsed(run("email", "show", "0123456789AB", "--json"))
    assert isinstance(found, dict)
    assert field(found["email"], "id") == EMAIL_ID


def test_keys_and_domains_are_found_by_either_end_of_their_ids(run: Run) -> None:
    key_id = field(parsed(run("key", "create", "--json")), "id")
    domain_id = field(parsed(run("domain", "add", "example.org", "--json")), "id")
    for named in (key_id[:13], key_id[-12:].upper()):
        assert f"key {key_id}" in run("key", "show", named).stdout
    assert field(parsed(run("domain", "set", domain_id[:13], "--json")), "name") == "example.org"
    assert "removed example.org" in run("domain", "remove", domain_id[-12:]).stdout


def test_refusal_is_found_by_its_queue_id(database: Database, run: Run) -> None:
    fill(database)
    shown = run("email", "show", "4Zk9Lt4").stdout
    assert ("rule: from-unverified" in shown, "code: 550" in shown) == (True, True)
    assert "550 5.7.1 verify it" in run("email", "refusals").stdout
    assert parsed(run("email", "refusals", "--rule", "too-large", "--json")) == []
    assert run("email", "show", "4Zk9Lt5").exit_code == 64


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ([], True),
        (["--status", "queued", "--user", "default", "--since", "1h"], True),
        (["--status", "sent"], False),
        (["--user", "other"], False),
        (["--since", (datetime.now(UTC) + timedelta(days=1)).isoformat()], False),
    ],
)
def test_emails_are_listed(database: Database, run: Run, options: list[str], found: bool) -> None:  # noqa: FBT001
    fill(database)
    rows = parsed(run("email", "list", "--json", *options))
    assert isinstance(rows, list)
    assert [row["recipients"] for row in rows] == ([["c@d.example", "e@f.example"]] if found else [])
    assert run("email", "list", "--since", "yesterday").exit_code == 64


def test_what_strangers_wrote_does_not_reach_the_terminal(database: Database, run: Run) -> None:
    fill(database)
    for shown in (run("email", "list").stdout, run("email", "show", EMAIL_ID).stdout):
        assert "[/bold]\ufffd[2J\ufffd" in shown


def test_database_commands(database: Database, run: Run) -> None:
    assert parsed(run("db", "init", "--json")) == {"applied": [], "password_dir": str(database.password_dir)}
    assert "up to date" in run("db", "migrate").stdout
    states = parsed(run("db", "status", "--json"))
    assert isinstance(states, list)
    assert {field(row, "state") for row in states} == {"applied"}
    with database.connect() as connection:
        connection.execute("UPDATE opensend_milter.migrations SET sha256 = ''")
    assert (run("db", "status").exit_code, run("db", "init").exit_code) == (1, 64)


def test_database_commands_beside_opensend(run_beside: Run) -> None:
    refused = run_beside("db", "init")
    assert (refused.exit_code, "use `db migrate`" in refused.stderr) == (64, True)
    assert "up to date" in run_beside("db", "migrate").stdout
    states = parsed(run_beside("db", "status", "--json"))
    assert isinstance(states, list)
    assert {field(row, "name").split("/")[0] for row in states} == {"ours", "rights"}
    assert {field(row, "state") for row in states} == {"applied"}


def test_database_that_is_not_ready(database: Database, run: Run) -> None:
    with database.connect() as connection:
        connection.execute("DROP SCHEMA opensend_milter CASCADE; DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    for words in (["key", "create"], ["email", "list"], ["suppression", "list"]):
        refused = run(*words)
        assert refused.exit_code == 64
        assert "`db init` or `db migrate` makes the database ready" in refused.stderr
    assert run("db", "status").exit_code == 1
    assert run("db", "init").exit_code == 0
    assert run("key", "create").exit_code == 0
    database.cluster.stop()
    for words in (
        ["key", "list"],
        ["db", "status"],
        ["webhook", "list"],
        ["domain", "verify", "--all"],
        ["db", "prune"],
    ):
        refused = run(*words)
        assert refused.exit_code == 69
        assert "database.url is as the environment variable DATABASE_URL says" in refused.stderr
        assert "`opensend-milter doctor --only database` says what mends it" in refused.stderr


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("database:\n  url: postgresql://somebody@/db?host=/nowhere\n", "database.url is as {path} says"),
        ("database:\n  password_dir: /nowhere\n", "database.url is the default: {path} does not say"),
        (None, "database.url is the default: there is no {path}; name a file with --config or OPENSEND_MILTER_CONFIG"),
    ],
)
def test_it_is_said_whose_database_does_not_answer(
    written: str | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "opensend-milter.yaml"
    monkeypatch.setattr(loader, "DEFAULT_PATH", path)
    if written:
        path.write_text(written)
    refused = CliRunner().invoke(cli.app_of(["email"]), ["email", "list"], env=dict.fromkeys(NAMES_OF_DATABASES, ""))
    assert (refused.exit_code, said.format(path=path) in refused.stderr) == (69, True), refused.stderr


def test_person_is_asked_before_a_key_is_revoked(database: Database, run: Run, configured: Path) -> None:
    key_id = field(parsed(run("key", "create", "--json")), "id")

    def answer(text: bytes) -> int:
        keyboard, terminal = pty.openpty()
        try:
            os.write(keyboard, text)
            return subprocess.run(
                [sys.executable, "-m", "opensend_milter", "key", "revoke", key_id, "-c", str(configured)],
                env={"DATABASE_URL": database.url, "PYTHONPATH": SOURCE},
                stdin=terminal,
                capture_output=True,
                check=False,
            ).returncode
        finally:
            os.close(keyboard)
            os.close(terminal)

    with database.connect() as connection:
        assert answer(b"n\n") == 1
        assert connection.execute("SELECT count(*) FROM public.api_keys").fetchone() == (1,)
        assert answer(b"y\n") == 0
        assert connection.execute("SELECT count(*) FROM public.api_keys").fetchone() == (0,)


def test_program_itself_runs(database: Database, configured: Path) -> None:
    shown = subprocess.run(
        [sys.executable, "-m", "opensend_milter", "key", "list", "--config", str(configured)],
        env={"DATABASE_URL": database.url, "PYTHONPATH": SOURCE},
        check=True,
        capture_output=True,
        text=True,
    ).stdout
    assert shown.startswith("ID ")
