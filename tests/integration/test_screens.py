"""What commands show on terminals of 80 and 200 columns: kept as text in tests/screens, and written anew on demand.

`UPDATE_SCREENS=1 .venv/bin/pytest tests/integration/test_screens.py` does that; read the difference.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path

import psycopg
import pytest
from rich.cells import cell_len

from tests.integration.private_postgres import Database
from tests.screen import SOURCE, on_screen

KEPT = Path(__file__).parents[1] / "screens"
KEY, OTHER_KEY = "b216e2a6-92a1-487a-aa1f-f0e477060b33", "eb318398-e80d-446b-b77b-4b1789fc34aa"
DOMAIN, WEBHOOK = "f0fdfc03-ec2e-42c8-8f02-722254d54112", "4ff59f43-7a1d-4a86-93b5-8b3a0a3c8d55"
EMAILS = [f"01a22a0c-f6a{number}-4d1e-9651-279c9f1ee06{number}" for number in range(4)]
HOSTILE = "\x1b[2J\x1b]0;owned\x07\u202egnp.exe\u2066\r\n[/bold][link=x] e" + "\u0301" * 3_000 + "x" * 10_000
HOSTILE_ADDRESS = "\u202e\u2066" + "x" * 500 + "@example.net"
SUBJECTS = ["Your order 4711 is on its way and will be with you by Thursday", HOSTILE, "注文の確認 📦" * 9, ""]
HOURS = "2 hours 1 minute"
"""Ages that are the same until a minute or an hour from now."""
FILL = f"""
    INSERT INTO public."user" (id, name, email) VALUES ('shop', 'shop', 'shop@localhost');
    INSERT INTO public.domains (id, name, status, user_id, created_at)
        VALUES ('{DOMAIN}', 'shop.example', 'verified', 'shop', now() - interval '9 days 1 hour');
    INSERT INTO public.api_keys (id, name, token_hash, token_preview, permission, domain, user_id, created_at,
            last_used_at)
        VALUES ('{KEY}', 'shop', 'a', 'os_f25...68f1', 'sending_access', '{DOMAIN}', 'shop',
            '2026-01-02 03:04:05Z', now() - interval '{HOURS}'),
        ('{OTHER_KEY}', 'newsletter of the marketing department', 'b', 'os_e98...ce71', 'full_access', NULL, 'shop',
            now() - interval '9 days 1 hour', NULL);
    INSERT INTO opensend_milter.key_settings (key_id, expires_at)
        VALUES ('{OTHER_KEY}', now() + interval '5 hours 59 minutes');
    INSERT INTO public.email_suppressions (user_id, email, reason, suppressed_at)
        VALUES ('shop', 'bounced@example.net', 'bounced', now() - interval '3 days 1 hour'),
        ('shop', repeat('long-', 12) || '@example.net', 'complained', now() - interval '{HOURS}');
    INSERT INTO public.webhooks (id, url, event_types, status, user_id, created_at)
        VALUES ('{WEBHOOK}', 'https://shop.example/hooks/mail?of=opensend', '["email.bounced", "email.delivered"]',
            'active', 'shop', now() - interval '9 days 1 hour');
    INSERT INTO public.email_events (id, email_id, type, payload, user_id)
        VALUES ('7d0d7e5c-1111-4222-8333-0123456789ab', NULL, 'bounced', '{{}}', 'shop');
    INSERT INTO public.webhook_deliveries (id, webhook_id, event_id, status, attempt, status_code, attempted_at,
            created_at, next_retry_at, response_body)
        VALUES (gen_random_uuid(), '{WEBHOOK}', '7d0d7e5c-1111-4222-8333-0123456789ab', 'pending', 2, 503,
            now() - interval '{HOURS}', now() - interval '3 hours 1 minute',
            now() + interval '5 hours 59 minutes', 'try later, we are moving houses');
    INSERT INTO opensend_milter.refusals (refused_at, rule, code, enhanced, text, front_door, queue_id, client_address,
            key_id, user_id, sender, recipients, size_bytes, ref)
        VALUES (now() - interval '{HOURS}', 'recipient-suppressed', 550, '5.7.1',
            'nothing was sent: on the suppression list: bounced@example.net (bounced)', 'smtp', '4jd5rb6fZCzRW0C',
            '192.0.2.7', '{KEY}', 'shop', 'orders@shop.example', '{{bounced@example.net}}', 298,
            '7K2MQ0X9TD'),
        (now() - interval '3 days 1 hour', 'too-large', 552, '5.3.4', 'larger than 41943040 octets', 'smtp',
            '4jd5rb6fZCzRW0D', '2001:db8::7', '{OTHER_KEY}', 'shop', 'orders@shop.example',
            '{{a@example.net,b@example.net}}', 50000000, NULL);
"""  # noqa: S608  # our own constants
TAKEN = "2026-01-02 03:04:05.678Z"
STORY = f"""
    UPDATE opensend_milter.refusals SET refused_at = '{TAKEN}' WHERE rule = 'recipient-suppressed';
    UPDATE public.emails SET "to" = '["ann@example.net", "bob@example.net", "carol@example.net"]',
        created_at = '{TAKEN}'
        WHERE id = '{EMAILS[1]}';
    INSERT INTO opensend_milter.submissions (email_id, received_at, user_id, key_id, front_door, queue_id,
            client_address, tls, sender, from_address, recipients, message_id, size_bytes, sha256, dropped)
        VALUES ('{EMAILS[1]}', '{TAKEN}', 'shop', '{KEY}', 'smtp', '4jd5rb6fZCzRW0B', '2001:db8::7',
            'TLSv1.3 TLS_AES_256_GCM_SHA384', 'orders@shop.example', 'orders@shop.example',
            '{{ann@example.net,bob@example.net,carol@example.net}}', '<20260102030405.4711@shop.example>', 12345, '',
            '[{{"email": "bounced@example.net", "reason": "bounced"}}]');
    INSERT INTO opensend_milter.jobs (email_id, user_id, created_at, not_before, announce_at, attempts, recipients,
            last_error)
        VALUES ('{EMAILS[1]}', 'shop', '{TAKEN}', '2036-01-02 03:20:00Z', NULL, 1, '{{carol@example.net}}',
            '450 4.2.0 greylisted, come again in 15 minutes');
    INSERT INTO opensend_milter.recipient_results (email_id, address, outcome, reason, courier, noted_at)
        VALUES ('{EMAILS[1]}', 'ann@example.net', 'delivered', '', 'smtp', '2026-01-02 03:05:00Z'),
        ('{EMAILS[1]}', 'bob@example.net', 'refused', 'mx.example.net: 550 5.1.1 <bob@example.net>: user unknown',
            'smtp', '2026-01-02 03:04:07Z'),
        ('{EMAILS[1]}', 'carol@example.net', 'deferred', '450 4.2.0 greylisted, come again in 15 minutes', 'smtp',
            '2026-01-02 03:04:07Z');
    INSERT INTO public.email_events (id, email_id, type, payload, user_id, received_at)
        VALUES ('7d0d7e5c-2222-4222-8333-0123456789ab', '{EMAILS[1]}', 'delayed', '{{"courier": "smtp",
            "reply": "relay.example.net:25: 250 2.0.0 Ok: queued as 4B1F2C", "refused": [{{"email": "bob@example.net",
            "reason": "mx.example.net: 550 5.1.1 <bob@example.net>: user unknown"}}], "deferred": [{{"email":
            "carol@example.net", "reason": "450 4.2.0 greylisted, come again in 15 minutes"}}], "attempt": 1,
            "next_attempt_at": "2036-01-02T03:20:00+00:00"}}', 'shop', '2026-01-02 03:04:07Z'),
        ('7d0d7e5c-3333-4222-8333-0123456789ab', '{EMAILS[1]}', 'delivered', '{{"via": "mail", "recipients":
            [{{"email": "ann@example.net", "status": "2.0.0"}}]}}', 'shop', '2026-01-02 03:05:00Z');
    INSERT INTO public.webhook_deliveries (id, webhook_id, event_id, status, attempt, status_code, attempted_at)
        SELECT encode(substring(sha256(uuid_send(id) || uuid_send('{WEBHOOK}')) FOR 16), 'hex')::uuid, '{WEBHOOK}', id,
            'success', 1, 200, '2026-01-02 03:05:01Z'
        FROM public.email_events WHERE email_id = '{EMAILS[1]}' AND type = 'delivered';

    UPDATE public.emails SET created_at = '{TAKEN}' WHERE id IN ('{EMAILS[0]}', '{EMAILS[2]}', '{EMAILS[3]}');
    UPDATE public.emails SET status = 'processing', "from" = '{HOSTILE[:400]}' WHERE id = '{EMAILS[0]}';
    UPDATE public.emails SET status = 'scheduled', scheduled_at = '2036-01-02 03:20:00Z' WHERE id = '{EMAILS[3]}';
    INSERT INTO opensend_milter.submissions (email_id, received_at, user_id, key_id, front_door, queue_id,
            client_address, tls, sender, from_address, recipients, message_id, size_bytes, sha256)
        SELECT id, '{TAKEN}', 'shop', '{KEY}', 'smtp', '4jd5rb6fZCzRW0E', '2001:db8::7', '{HOSTILE}', '{HOSTILE}',
            'orders@shop.example', '{{dave@example.net,{HOSTILE_ADDRESS}}}', '<{HOSTILE}>', 12345, ''
        FROM public.emails WHERE id IN ('{EMAILS[0]}', '{EMAILS[2]}', '{EMAILS[3]}');
    INSERT INTO opensend_milter.jobs (email_id, user_id, created_at, not_before, announce_at, attempts, state,
            uncertain_at, last_error)
        VALUES ('{EMAILS[0]}', 'shop', '{TAKEN}', '{TAKEN}', NULL, 1, 'uncertain', '2026-01-02 03:09:00Z', '{HOSTILE}'),
        ('{EMAILS[3]}', 'shop', '{TAKEN}', '2036-01-02 03:20:00Z', '2036-01-02 03:20:00Z', 0, 'waiting', NULL, NULL);
    INSERT INTO opensend_milter.recipient_results (email_id, address, outcome, reason, courier, noted_at)
        VALUES ('{EMAILS[2]}', 'dave@example.net', 'bounced', '550 5.1.1 {HOSTILE}', 'smtp', '2026-01-02 03:04:07Z');
    INSERT INTO public.email_events (id, email_id, type, payload, user_id, received_at)
        VALUES ('7d0d7e5c-4444-4222-8333-0123456789ab', '{EMAILS[2]}', 'bounced', jsonb_build_object('via', 'inline',
            'permanent', true, 'recipients', jsonb_build_array(jsonb_build_object('email', 'dave@example.net',
            'status', '5.1.1', 'diagnostic', '550 5.1.1 {HOSTILE}'))), 'shop', '2026-01-02 03:04:07Z');
    INSERT INTO public.email_suppressions (user_id, email, reason, suppressed_at)
        VALUES ('shop', 'dave@example.net', 'bounced', '2026-01-02 03:04:08Z');
"""  # noqa: S608  # our own constants
STATUSES = ("sent", "queued", "bounced", "delivered")
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "help": ("--help",),
    "email-list": ("email", "list"),
    "email-list-cut": ("email", "list", "--limit", "2"),
    "email-list-utc": ("email", "list", "--utc", "--status", "delivered"),
    "email-list-status": ("email", "list", "--status", "lost"),
    "email-show": ("email", "show", "01a22a0c-f6a3", "--utc"),
    "email-show-none": ("email", "show", "01a22a0c-ffff"),
    "email-refusals": ("email", "refusals"),
    "why": ("why", EMAILS[1], "--utc"),
    "why-uncertain": ("why", EMAILS[0], "--utc"),
    "why-bounced": ("why", EMAILS[2], "--utc"),
    "why-scheduled": ("why", EMAILS[3], "--utc"),
    "why-several": ("why", "--limit", "3"),
    "why-refusal": ("why", "4jd5rb6fZCzRW0C", "--utc"),
    "why-none": ("why", "none has this word " + HOSTILE),
    "key-list": ("key", "list"),
    "domain-list": ("domain", "list"),
    "suppression-list": ("suppression", "list"),
    "webhook-list": ("webhook", "list"),
    "webhook-deliveries": ("webhook", "deliveries", "8b3a0a3c8d55"),
}
TABLES = [name for name in COMMANDS if name.endswith(("-list", "-refusals", "-deliveries"))]
SCREENS = [
    *((name, 80) for name in COMMANDS),
    *((name, 200) for name in [*TABLES, "why", "why-uncertain", "why-several"]),
]


@pytest.fixture
def surroundings(database: Database, tmp_path: Path) -> Mapping[str, str]:
    """Fill a database, and name it."""
    with database.connect() as connection:
        connection.execute(FILL)
        for email_id, status, subject, days in zip(EMAILS, STATUSES, SUBJECTS, range(4), strict=True):
            connection.execute(
                'INSERT INTO public.emails (id, "from", "to", subject, status, user_id, created_at) VALUES'
                " (%(id)s, 'orders@shop.example', '[\"carol@example.net\"]', %(subject)s, %(status)s, 'shop',"
                " timestamptz '2026-01-02 03:04:05.678Z' - %(days)s * interval '1 day')",
                {"id": email_id, "status": status, "subject": subject, "days": days},
            )
    path = tmp_path / "opensend-milter.yaml"
    path.write_text("profile: standalone\n")
    return {"DATABASE_URL": database.url, "OPENSEND_MILTER_CONFIG": str(path)}


@pytest.mark.parametrize(("name", "columns"), SCREENS)
def test_a_screen_is_as_it_was_kept(name: str, columns: int, surroundings: Mapping[str, str]) -> None:
    if name.startswith("why"):
        with psycopg.connect(surroundings["DATABASE_URL"]) as connection:
            connection.execute(STORY)
    shown = on_screen(*COMMANDS[name], columns=columns, env=surroundings)
    text = f"{shown.text}exit code {shown.code}\n"
    kept = KEPT / f"{name}.{columns}.txt"
    if "UPDATE_SCREENS" in os.environ:
        kept.write_text(text, encoding="utf-8")
    assert text == kept.read_text(encoding="utf-8")
    assert b"\x1b" not in shown.octets


def test_no_screen_is_kept_that_nobody_draws() -> None:
    assert {path.name for path in KEPT.iterdir()} == {f"{name}.{columns}.txt" for name, columns in SCREENS}


@pytest.mark.parametrize("path", sorted(KEPT.glob("*.txt")), ids=lambda path: path.stem)
def test_what_strangers_wrote_is_in_its_place(path: Path) -> None:
    """No line of a table is wider than the terminal, and nothing can move the cursor or turn letters round."""
    text = path.read_text(encoding="utf-8")
    assert {char for char in text if unicodedata.category(char) in {"Cc", "Cf", "Co", "Cs"}} <= {"\n"}
    name, columns, _ = path.name.split(".")
    if name in TABLES:
        assert max(map(cell_len, text.splitlines())) <= int(columns)


def piped(*words: str, surroundings: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "opensend_milter", *words],
        env=dict(os.environ) | {"PYTHONPATH": SOURCE, "COLUMNS": "80"} | dict(surroundings),
        capture_output=True,
        text=True,
        check=True,
    )


def test_nothing_is_cut_in_a_file(surroundings: Mapping[str, str]) -> None:
    shown = piped("email", "list", surroundings=surroundings).stdout
    assert all(email_id in shown for email_id in EMAILS)
    assert SUBJECTS[0] in shown
    assert "x" * 10_000 in shown
    assert shown.splitlines()[0].split() == ["ID", "QUEUE", "ID", "CREATED", "STATUS", "FROM", "TO", "SUBJECT"]


def test_json_is_exact_and_says_nothing_beside(surroundings: Mapping[str, str]) -> None:
    shown = piped("email", "list", "--json", "--limit", "1", surroundings=surroundings)
    (row,) = json.loads(shown.stdout)
    assert (row["id"], row["created_at"][-14:], shown.stderr) == (EMAILS[0], row["created_at"][-14:], "")
    assert ".678" in row["created_at"]


def test_a_list_that_is_cut_says_so_beside_it(surroundings: Mapping[str, str]) -> None:
    shown = piped("email", "list", "--limit", "3", surroundings=surroundings)
    assert shown.stderr == "3 of 4, newest first; see --limit and --all\n"
    whole = piped("email", "list", "--limit", "3", "--all", surroundings=surroundings)
    assert (whole.stderr, len(whole.stdout.splitlines())) == ("", 5)


def test_who_watches_sees_how_far_it_is(surroundings: Mapping[str, str], tmp_path: Path) -> None:
    source = tmp_path / "addresses.csv"
    source.write_text("".join(f"user{number}@example.org\n" for number in range(1_200)))
    watched = on_screen("suppression", "import", str(source), "--user", "shop", columns=80, env=surroundings)
    assert b"\r\x1b[Kread: 1,000" in watched.octets
    assert b"\r\x1b[Kstored: 1,000" in watched.octets
    assert watched.text.startswith("addresses: 1200 added")
    taken_out = on_screen(
        "suppression", "export", str(tmp_path / "out.csv"), "--user", "shop", columns=80, env=surroundings
    )
    assert (taken_out.octets, taken_out.text) == (b"\r\x1b[Kwritten: 1,000\r\x1b[K", "")
    shown = on_screen("suppression", "export", "--user", "shop", columns=80, env=surroundings)
    assert (b"\x1b" in shown.octets, len(shown.text.splitlines())) == (False, 1_203)
    listed = on_screen("suppression", "list", "--all", columns=80, env=surroundings)
    assert listed.octets.startswith(b"\r\x1b[Kfound: 1,000\r\x1b[KADDRESS")
    again = piped("suppression", "import", str(source), "--user", "shop", surroundings=surroundings)
    assert (again.stderr, "1200 suppressed already" in again.stdout) == ("", True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("webhook", "replay", WEBHOOK, "--since", "1h"), "making deliveries due again"),
        (("email", "retry", "--failed", "--since", "1h"), "looking for failed emails"),
        (
            ("suppression", "remove", "--via", "inline", "--since", "1h", "--dry-run"),
            "looking for whom next hops have refused",
        ),
    ],
)
def test_who_watches_sees_what_takes_long(words: Sequence[str], said: str, surroundings: Mapping[str, str]) -> None:
    assert f"\r\x1b[K{said}\r\x1b[K".encode() in on_screen(*words, columns=80, env=surroundings).octets
