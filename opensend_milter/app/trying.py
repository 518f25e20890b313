"""What the sandbox fills its database with, and how it finds a message there."""

from __future__ import annotations

from pathlib import Path

from opensend_milter.adapters import migrations, postgres
from opensend_milter.adapters.postgres_admin import AdminStore
from opensend_milter.host.sandbox_state import SandboxSeed


def prepare_sandbox(url: str, password_dir: Path) -> SandboxSeed:
    """Fill an empty database with what a first try needs: two keys, three domains, a suppressed address."""
    migrations.init(url, password_dir)
    seed = {"from_domain": "sandbox.test", "other_domain": "other.test", "unverified_domain": "unverified.test"}
    suppressed = "suppressed@example.net"
    with postgres.connect(url, application_name="opensend-sandbox") as connection:
        store = AdminStore(connection, makes_users=True)
        user = store.ensure_user("sandbox")
        for role, name in seed.items():
            store.add_domain(user, name, verified=role != "unverified_domain")
        free = store.create_key(name="sandbox", user_id=user, permission="full_access", domain=None)
        held = store.create_key(
            name="sandbox, restricted", user_id=user, permission="sending_access", domain=seed["from_domain"]
        )
        store.add_suppression(user, suppressed, "manual")
    return SandboxSeed(api_key=free.token, restricted_api_key=held.token, suppressed=suppressed, **seed)


def find_email(url: str, queue_id: str) -> str | None:
    """Return `id status` of the message that Postfix knows by this id."""
    with postgres.connect(url, application_name="opensend-sandbox") as connection:
        found = AdminStore(connection, makes_users=False).find_email(queue_id)
    return " ".join(found) if found else None
