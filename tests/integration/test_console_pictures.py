"""The pictures of docs/console.md, each of which is small, and of which none is missing.

`UPDATE_PICTURES=1 .venv/bin/pytest tests/integration/test_console_pictures.py` makes them anew: look at them. It needs
Debian's pngquant.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Mapping
from pathlib import Path

import psycopg
import pytest

from opensend_milter.adapters.admin.console_users import ConsoleUsers
from opensend_milter.adapters.schema import migrations
from opensend_milter.core.passwords import verifier_of
from tests.browser import browsing, is_there
from tests.integration import console_browser, many_messages
from tests.integration.console_site import NAME, PASSWORD, console
from tests.integration.outbox import rows
from tests.integration.private_postgres import Database
from tests.integration.test_domain_verify import Zone, running

DOCS = Path(__file__).parents[2] / "docs"
WIDTH, MOST_HEIGHT, MOST_BYTES = 1_200, 800, 60_000
KEY, USER, DOMAIN = "55555555-5555-4555-8555-555555555555", "shop", "01a22a0c-bbbb-4d1e-9651-279c9f1ee06f"
COUNT, REFUSED = 5_000, 200
SUBJECTS = ("Your parcel has left", "Your invoice", "Confirm your address", "Your order")
REPLY = "mx.example.net: 451 4.7.1 try again later"
FATES = (*["delivered"] * 40, *["sent"] * 8, *many_messages.FATES)
FILL = f"""
    INSERT INTO domains (id, name, status, user_id) VALUES ('{DOMAIN}', 'shop.example', 'verified', '{USER}'),
        (gen_random_uuid(), 'news.shop.example', 'pending', '{USER}');
    INSERT INTO api_keys (id, name, token_hash, token_preview, permission, user_id, last_used_at)
        VALUES ('{KEY}', 'shop', 'a', 'os_f25...68f1', 'sending_access', '{USER}', now()),
        (gen_random_uuid(), 'newsletter', 'b', 'os_e98...ce71', 'full_access', '{USER}', now() - interval '2 days');
    INSERT INTO opensend_milter.key_settings (key_id, per_day) VALUES ('{KEY}', 5000);
    INSERT INTO webhooks (url, event_types, user_id) VALUES
        ('https://shop.example/hooks/mail', '["email.bounced", "email.delivered"]', '{USER}');
"""  # noqa: S608  # our own constants
FRIENDLY = f"""
    UPDATE emails SET "from" = 'Shop <app@shop.example>', "to" = jsonb_build_array('customer@example.net'),
        headers = '{{"X-Shop": "4711"}}', text = 'Good morning,\n\nyour parcel has left our house today.\n\nThe shop';
    UPDATE opensend_milter.submissions SET from_address = 'app@shop.example', sender = 'app@shop.example';
    UPDATE opensend_milter.jobs SET last_error = '{REPLY}', not_before = now() + interval '20 minutes'
        WHERE attempts > 0;
    UPDATE opensend_milter.jobs SET last_error = NULL WHERE attempts = 0;
    UPDATE opensend_milter.jobs SET not_before = now() - interval '2 seconds'
        WHERE attempts = 0 AND not_before <= now();
    UPDATE emails SET created_at = created_at + interval '59 minutes' WHERE created_at > now() - interval '70 minutes'
        AND created_at < now() - interval '59 minutes';
    UPDATE emails SET sent_at = created_at + interval '1 second' * (0.4 + mod(extract(minute FROM created_at), 3))
        WHERE status IN ('sent', 'delivered', 'bounced', 'complained');
    UPDATE opensend_milter.refusals SET sender = 'app@shop.example', recipients = '{{customer@example.net}}',
        text = 'the domain of From is not verified: shop.example';
    UPDATE email_events SET payload = payload || jsonb_build_object('reason', '{REPLY}') WHERE type = 'delayed';
    UPDATE email_events SET payload = payload || jsonb_build_object('reply', '250 2.0.0 ok')
        WHERE type NOT IN ('delayed', 'failed');
    INSERT INTO opensend_milter.findings (host, name, result, seen, mend) VALUES
        ('mail.example.org', 'tls.certificate', 'warning', 'valid for another 9 days', 'certbot renew'),
        ('mail.example.org', 'milter.answers', 'good', 'answers within 2 ms', '');
    INSERT INTO email_suppressions (user_id, email, reason, source_email_id)
        SELECT '{USER}', 'customer' || ltrim(right(subject, 3)) || '@example.net', status, id FROM emails
        WHERE status IN ('bounced', 'complained') ORDER BY created_at DESC LIMIT 15 ON CONFLICT DO NOTHING;
"""  # noqa: S608  # our own constants


def pages(database: Database) -> Mapping[str, str]:
    """Return what is pictured, by the name of the picture."""
    deferred = "SELECT email_id::text FROM opensend_milter.jobs WHERE attempts > 1 ORDER BY created_at DESC LIMIT 1"
    ((one,),) = rows(database, deferred)
    ((refused,),) = rows(database, "SELECT id FROM opensend_milter.refusals WHERE rule = 'from-unverified' LIMIT 1")
    return {
        "now": "/now",
        "volume": "/volume?span=7d",
        "messages": "/messages",
        "message": f"/messages/{one}",
        "action": f"/messages/{one}/retry",
        "contents": f"/messages/{one}/text",
        "refusals": "/messages?status=refused",
        "refusal": f"/messages/{refused}",
        "domains": "/domains",
        "domain": f"/domains/{DOMAIN}",
        "keys": "/keys",
        "suppressions": "/suppressions",
        "webhooks": "/webhooks",
    }


@pytest.mark.skipif(not os.environ.get("UPDATE_PICTURES"), reason="only on demand: UPDATE_PICTURES=1")
@pytest.mark.skipif(not is_there(), reason="there is no Chromium: tools/setup tests")
def test_pictures_are_made(database: Database, tmp_path: Path) -> None:
    migrations.init(database.url, database.password_dir, actions=True)
    with database.connect() as connection:
        ConsoleUsers(connection).put(NAME, verifier_of(PASSWORD, b"salt"))
        connection.execute(FILL.encode())
    many_messages.put_messages(database, COUNT, key=KEY, user=USER, words=SUBJECTS, fates=FATES)
    many_messages.put_refusals(database, REFUSED, key=KEY, user=USER)
    with database.connect() as connection:
        connection.execute(FRIENDLY.encode())
    zone = Zone({"shop.example": [["v=spf1 mx -all"]], "k1._domainkey.shop.example": [["v=DKIM1; k=rsa; p=MIIB"]]})
    worker = psycopg.connect(database.url_for("opensend_worker"), application_name="opensend-worker")
    with (
        worker,
        running(zone) as server,
        console(database, nameserver=server, actions=True) as port,
        browsing(tmp_path) as browser,
    ):
        visitor = console_browser.Browser(port)
        visitor.log_in(name=NAME, password=PASSWORD)
        browser.look_as("light", WIDTH)
        for name, path in pages(database).items():
            browser.open(f"http://127.0.0.1:{port}{path}", visitor.cookies)
            picture = DOCS / f"console-{name}.png"
            browser.picture(picture, MOST_HEIGHT)
            subprocess.run(["pngquant", "--force", "--ext=.png", "--nofs", "32", picture], check=True)


def test_each_picture_is_there_and_small() -> None:
    shown = re.findall(r"!\[[^]]+\]\((console-[a-z]+\.png)\)", (DOCS / "console.md").read_text())
    assert sorted(shown) == sorted(path.name for path in DOCS.glob("console-*.png"))
    assert [name for name in shown if (DOCS / name).stat().st_size > MOST_BYTES] == []
