"""Pages of the console to be walked, with all that strangers may have written on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from opensend_milter.adapters.schema import migrations
from tests.integration import many_messages
from tests.integration.console_browser import Browser
from tests.integration.console_site import HOSTILE, KEYS, MESSAGES, NAME, PASSWORD, console, seed
from tests.integration.outbox import rows
from tests.integration.private_postgres import Database
from tests.integration.test_domain_verify import Zone, running

DOMAIN = "01a22a0c-aaaa-4d1e-9651-279c9f1ee06f"
COUNT, REFUSED = 10_000, 1_000
OURS: Mapping[str, str] = {
    "login": "/login",
    "now": "/now",
    "volume": "/volume?span=7d",
    "messages": "/messages",
    "messages-none": "/messages?q=nothing@example.net",
    "message": f"/messages/{MESSAGES['own']}",
    "contents": f"/messages/{MESSAGES['own']}/text",
    "action": f"/messages/{MESSAGES['chief']}/retry",
    "action-refused": f"/messages/{MESSAGES['own']}/cancel",
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
    migrations.init(database.url, database.password_dir, actions=True)
    fill(seed(database))
    with running(Zone()) as server, console(database, nameserver=server, actions=True) as port:
        ours, holder = Browser(port), Browser(port)
        ours.log_in(name=NAME, password=PASSWORD)
        holder.log_in(key="os_own")
        yield f"http://127.0.0.1:{port}", ours.cookies, holder.cookies


def fill(database: Database) -> None:
    """Add messages of every fate with every hostile word, refusals by every rule; then what lists show."""
    key_id, user, _ = KEYS["own"]
    hostile = [*HOSTILE.values()]
    many_messages.put_messages(database, COUNT, key=key_id, user=user, words=hostile)
    many_messages.put_refusals(database, REFUSED, key=key_id, user=user, words=hostile)
    many_messages.note_for_search(database)
    rows(database, "UPDATE emails SET subject = %s WHERE id = %s", HOSTILE["long"], MESSAGES["own"])
    rows(database, "UPDATE opensend_milter.refusals SET sender = %s WHERE key_id = %s", HOSTILE["script"], key_id)
    rows(database, "UPDATE domains SET id = %s WHERE name = 'example.org'", DOMAIN)
    rows(database, "INSERT INTO domains (name, user_id) SELECT left(unnest(%s::text[]), 200), %s", hostile, user)
    rows(database, "UPDATE api_keys SET name = %s WHERE id = %s", HOSTILE["drawing"], KEYS["chief"][0])
    rows(
        database,
        """INSERT INTO email_suppressions (user_id, email, reason, source_email_id)
        SELECT %s, left(unnest(%s::text[]), 500), 'bounced', %s""",
        user, hostile, many_messages.id_of("bounced"),
    )  # fmt: skip
    webhook = "INSERT INTO webhooks (url, event_types, user_id) SELECT unnest(%s::text[]), '[\"email.sent\"]', %s"
    rows(database, webhook, ["https://hooks.example.org/mail", *hostile], user)
    rows(
        database, "INSERT INTO opensend_milter.key_settings (key_id, per_minute, per_day) VALUES (%s, 60, 500)", key_id
    )
    rows(database, "INSERT INTO opensend_milter.jobs (email_id, user_id) VALUES (%s, %s)", MESSAGES["own"], user)
    rows(database, "UPDATE emails SET status = 'failed' WHERE id = %s", MESSAGES["chief"])
    done = """INSERT INTO opensend_milter.console_actions
        (actor, client_address, action, email_id, address, outcome, form)
        VALUES (%s, '::1', 'suppress', %s, %s, 'done', gen_random_uuid())"""
    rows(database, done, NAME, MESSAGES["own"], HOSTILE["attribute"])
    put_off = "INSERT INTO opensend_milter.jobs (email_id, user_id, last_error) VALUES (%s, %s, %s)"
    error = f"451 4.4.1 {HOSTILE['script']}: connection refused"
    rows(database, put_off, MESSAGES["stranger"], KEYS["stranger"][1], error)
    found = "INSERT INTO opensend_milter.findings (host, name, result, seen, mend) VALUES (%s, %s, %s, %s, %s)"
    for name, result in (("tls.expiry", "warning"), ("milter.answers", "problem"), ("postfix.relay", "good")):
        rows(database, found, "mail.example.org", name, result, HOSTILE["drawing"], "systemctl restart opensend-milter")
    rows(database, "VACUUM ANALYZE")
