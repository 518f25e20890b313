"""What the sandbox fills its database with, and how it finds a message there.

Its two statements that stand for OpenSend are in no file: what is in one counts as what we need of OpenSend's tables.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from psycopg.rows import class_row

from opensend_milter.adapters.admin.console_users import ConsoleUsers
from opensend_milter.adapters.admin.store import AdminStore
from opensend_milter.adapters.postgres import link
from opensend_milter.adapters.schema import facts, migrations
from opensend_milter.core.passwords import SALT_BYTES, verifier_of
from opensend_milter.host.sandbox.first_mail import LogLine
from opensend_milter.host.sandbox.state import CONSOLE_USER, Profile, SandboxSeed

USER = "sandbox"
_PASSWORD_BYTES = 15


def prepare_sandbox(url: str, password_dir: Path, profile: Profile) -> SandboxSeed:
    """Fill an empty database with what a first try needs: keys, domains, a suppressed address, who may look at it."""
    match profile:
        case "standalone":
            migrations.init(url, password_dir)
        case "opensend":
            _make_opensend(url)
            migrations.migrate(url, password_dir)
    seed = {"from_domain": "sandbox.test", "other_domain": "other.test", "unverified_domain": "unverified.test"}
    suppressed = "suppressed@example.net"
    with link.connect(url, application_name="opensend-sandbox") as connection:
        store = AdminStore(connection, makes_users=True)
        user = store.ensure_user(USER)
        for role, name in seed.items():
            store.add_domain(user, name, verified=role != "unverified_domain")
        free = store.create_key(name="sandbox", user_id=user, permission="full_access", domain=None)
        held = store.create_key(
            name="sandbox, restricted", user_id=user, permission="sending_access", domain=seed["from_domain"]
        )
        store.add_suppression(user, suppressed, "manual")
        password = secrets.token_urlsafe(_PASSWORD_BYTES)
        ConsoleUsers(connection).put(CONSOLE_USER, verifier_of(password, os.urandom(SALT_BYTES)))
    return SandboxSeed(
        api_key=free.token,
        restricted_api_key=held.token,
        suppressed=suppressed,
        console_password=password,
        **seed,
    )


def _make_opensend(url: str) -> None:
    """Do what OpenSend does when it is installed and somebody signs up: its users are its own to make."""
    with link.store_errors(), link.connect(url, application_name="opensend-sandbox") as connection:
        facts.make(connection)
        connection.execute(
            'INSERT INTO public."user" (id, name, email) VALUES (%(user)s, %(user)s, %(user)s || %(host)s)',
            {"user": USER, "host": "@localhost"},
        )


def find_email(url: str, queue_id: str) -> str | None:
    """Return `id status` of the message that Postfix knows by this id."""
    with link.connect(url, application_name="opensend-sandbox") as connection:
        found = AdminStore(connection, makes_users=False).find_email(queue_id)
    return " ".join(found) if found else None


def find_log(url: str, email_id: str) -> LogLine | None:
    """Return what OpenSend's dashboard shows of this email's request."""
    with (
        link.store_errors(),
        link.connect(url, application_name="opensend-sandbox") as connection,
        connection.cursor(row_factory=class_row(LogLine)) as cursor,
    ):
        return cursor.execute(
            "SELECT created_at, method, endpoint, status, request_body, response_body FROM public.logs"
            " WHERE document @> jsonb_build_object('emailId', %s::text) ORDER BY created_at LIMIT 1",
            [email_id],
        ).fetchone()
