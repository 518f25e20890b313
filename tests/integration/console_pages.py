"""Pages of the console to be walked, with all that strangers may have written on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from uuid import uuid4

from tests.integration.console_browser import Browser
from tests.integration.console_site import HOSTILE, KEYS, MESSAGES, NAME, PASSWORD, add_message, console, seed
from tests.integration.outbox import rows
from tests.integration.private_postgres import Database

DOMAIN = "01a22a0c-aaaa-4d1e-9651-279c9f1ee06f"
STATES = ("queued", "scheduled", "processing", "sent", "delivered", "bounced", "complained", "suppressed", "failed")
OURS: Mapping[str, str] = {
    "login": "/login",
    "now": "/now",
    "volume": "/volume?span=7d",
    "messages": "/messages",
    "messages-none": "/messages?q=nothing@example.net",
    "message": f"/messages/{MESSAGES['own']}",
    "contents": f"/messages/{MESSAGES['own']}/text",
    "refusals": "/messages?status=refused",
    "refusal-told": "/messages/1",
    "domains": "/domains",
    "domain": f"/domains/{DOMAIN}",
    "keys": "/keys",
    "suppressions": "/suppressions",
    "webhooks": "/webhooks",
    "nowhere": "/nowhere",
}
OF_A_KEY: Mapping[str, str] = {"key-messages": "/messages", "key-message": f"/messages/{MESSAGES['own']}"}


@contextmanager
def walked(database: Database) -> Iterator[tuple[str, Mapping[str, str], Mapping[str, str]]]:
    """Serve it; yield where, and the cookies of somebody of this host and of the holder of a key."""
    fill(seed(database))
    with console(database) as port:
        ours, holder = Browser(port), Browser(port)
        ours.log_in(name=NAME, password=PASSWORD)
        holder.log_in(key="os_own")
        yield f"http://127.0.0.1:{port}", ours.cookies, holder.cookies


def fill(database: Database) -> None:
    """Add messages of every state, and of every hostile subject; then what lists show."""
    key_id, user, _ = KEYS["own"]
    for status in STATES:
        email_id = str(uuid4())
        add_message(database, email_id, key_id, user, f"an order that is {status}")
        rows(database, "UPDATE emails SET status = %s WHERE id = %s", status, email_id)
    for hostile in HOSTILE.values():
        add_message(database, str(uuid4()), key_id, user, hostile)
    rows(database, "UPDATE emails SET subject = %s WHERE id = %s", HOSTILE["long"], MESSAGES["own"])
    rows(database, "UPDATE opensend_milter.refusals SET sender = %s WHERE key_id = %s", HOSTILE["script"], key_id)
    rows(database, "UPDATE domains SET id = %s WHERE name = 'example.org'", DOMAIN)
    rows(
        database,
        "INSERT INTO email_suppressions (user_id, email, reason) VALUES (%s, 'carol@example.net', 'bounced')",
        user,
    )
    webhook = "INSERT INTO webhooks (url, event_types, user_id) VALUES (%s, '[\"email.sent\"]', %s)"
    rows(database, webhook, "https://hooks.example.org/mail", user)
    rows(
        database, "INSERT INTO opensend_milter.key_settings (key_id, per_minute, per_day) VALUES (%s, 60, 500)", key_id
    )
    rows(database, "INSERT INTO opensend_milter.jobs (email_id, user_id) VALUES (%s, %s)", MESSAGES["own"], user)
