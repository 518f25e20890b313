"""The console as tests have it: over a real socket, with a user, and a message and a refusal of each key."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import pytest

from opensend_milter.adapters.admin.console_users import ConsoleUsers
from opensend_milter.app.showing import shown
from opensend_milter.config import Config, Console, Database as DatabaseSettings, Rates
from opensend_milter.core import passwords
from opensend_milter.servers.console.forms import MOST_BYTES
from opensend_milter.servers.console.site import refuse
from opensend_milter.servers.web.server import application, believed
from tests.integration.http_sites import served
from tests.integration.outbox import rows
from tests.integration.private_postgres import Database

NAME, PASSWORD = "ann", "correct horse battery"
verifier_of = functools.cache(passwords.verifier_of)
"""What is made of the few passwords here, made once each: a guess is to cost a fifth of a second."""
KEYS: Mapping[str, tuple[str, str, str]] = {
    "own": ("11111111-1111-4111-8111-111111111111", "shop", "sending_access"),
    "chief": ("33333333-3333-4333-8333-333333333333", "shop", "full_access"),
    "stranger": ("44444444-4444-4444-8444-444444444444", "bank", "full_access"),
}
"""Id, user, permission."""
MESSAGES = {name: f"01a22a0c-f6a{at}-4d1e-9651-279c9f1ee06{at}" for at, name in enumerate(KEYS)}
NOWHERE = "01a22a0c-ffff-4d1e-9651-279c9f1ee06f"
HOSTILE = {
    "script": "<script>alert(1)</script>",
    "attribute": "\" onmouseover='alert(1)' x=\"",
    "address": "javascript:alert(1)",
    "style": "</title></style><style>body{display:none}</style>",
    "drawing": "<svg/onload=alert(1)>",
    "turned": "\u202eevil\u2066 text",
    "template": "{{ 7 * 7 }}{% raw %}",
    "long": "x" * 10_000,
}
SECRET_TEXT = "what only a few may read"


@contextmanager
def console(
    database: Database,
    *,
    failed_per_minute: int = 60,
    nameserver: str = "127.0.0.1:1",
    profile: Literal["standalone", "opensend"] = "standalone",
    **settings: Any,
) -> Iterator[int]:
    """Serve it; yield the port."""
    chosen = Console(**{"port": 1, **settings})
    config = Config(
        database=DatabaseSettings(url=database.url, password_dir=database.password_dir),
        console=chosen,
        profile=profile,
        limits=Rates(failed_per_minute=failed_per_minute),
    )
    with pytest.MonkeyPatch.context() as patched, shown(config, nameserver) as routes:
        patched.setattr(passwords, "verifier_of", verifier_of)
        app = application(routes, max_body_bytes=MOST_BYTES, proxies=believed(chosen), refuse=refuse)
        with served(app) as port:
            yield port


def seed(database: Database) -> Database:
    """Put a user of the console into a database, and a message and a refusal of each key."""
    with database.connect() as connection:
        ConsoleUsers(connection).put(NAME, verifier_of(PASSWORD, b"salt"))
    rows(database, "INSERT INTO domains (name, status, user_id) VALUES ('example.org', 'verified', 'shop')")
    for name, (key_id, user, permission) in KEYS.items():
        rows(
            database,
            "INSERT INTO api_keys (id, name, token_hash, token_preview, user_id, permission)"
            " VALUES (%s, %s, %s, 'os_123...wxyz', %s, %s)",
            key_id, name, hashlib.sha256(f"os_{name}".encode()).hexdigest(), user, permission,
        )  # fmt: skip
        add_message(database, MESSAGES[name], key_id, user, f"a parcel from {name}")
        rows(
            database,
            """INSERT INTO opensend_milter.refusals (rule, code, enhanced, text, front_door, queue_id, client_address,
            key_id, user_id, sender, recipients, size_bytes) VALUES ('too-large', 552, '5.3.4', 'too large', 'smtp',
            %s, '192.0.2.7', %s, %s, 'app@example.org', '{to@example.net}', 7)""",
            f"refused{name}", key_id, user,
        )  # fmt: skip
    return database


def add_message(
    database: Database, email_id: str, key_id: str, user: str, subject: str, *, html: str = "<p>hello</p>"
) -> None:
    rows(
        database,
        """INSERT INTO emails (id, "from", "to", subject, text, html, headers, status, user_id, created_at) VALUES
        (%s, 'app@example.org', '["to@example.net"]', %s, %s, %s, '{"X-Shop": "4711"}', 'sent', %s, now())""",
        email_id, subject, SECRET_TEXT, html, user,
    )  # fmt: skip
    rows(
        database,
        """INSERT INTO opensend_milter.submissions (email_id, received_at, user_id, key_id, front_door, queue_id,
        client_address, tls, sender, from_address, recipients, message_id, size_bytes, sha256) VALUES (%s, now(), %s,
        %s, 'smtp', 'Q', '192.0.2.7', '', 'app@example.org', 'app@example.org', '{to@example.net}', %s, 7, '')""",
        email_id, user, key_id, f"<{email_id}@example.org>",
    )  # fmt: skip
    for number, piece in enumerate((b"Subject: hi\r\n\r\n", b"<script>alert(1)</script>\r\n")):
        rows(database, "INSERT INTO opensend_milter.raw_chunks VALUES (%s, %s, %s)", email_id, number, piece)
