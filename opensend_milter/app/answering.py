"""The HTTP process: a Config in, routes over adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from opensend_milter.adapters import sns
from opensend_milter.adapters.postgres import conninfo_for
from opensend_milter.adapters.postgres_feedback import PostgresFeedbackBox
from opensend_milter.adapters.sns import SnsTopics
from opensend_milter.config import load
from opensend_milter.core.feedback import of_link
from opensend_milter.core.links import Link, Links
from opensend_milter.core.model import EmailId
from opensend_milter.core.signing import derived
from opensend_milter.servers import http_events, http_links, http_server

TIMEOUT_S = 5.0
"""A call to the database: whoever asked is waiting."""


def http(path: Path | None, ready: Callable[[], None]) -> None:
    """Answer HTTP until SIGTERM."""
    config = load(path)
    info = conninfo_for(config.database.url, config.database.password_dir, "opensend_http")
    box = PostgresFeedbackBox(info, name="opensend-http", timeout_s=TIMEOUT_S)
    topics = SnsTopics(config.feedback.topics.split(), fetch=sns.fetch, clock=lambda: datetime.now(UTC))

    @cache
    def links() -> Links:
        return Links(key=derived(box.secret(), "link"), public_url=config.http.public_url)

    def opened(token: str) -> Link | None:
        return links().opened(token)

    def put_report(kind: str, source_id: str, email_id: EmailId, said: Mapping[str, str]) -> None:
        box.put([of_link(kind, source_id, email_id, said)])

    def hear(body: bytes) -> None:
        if report := topics.heard(body):
            box.put([report])

    routes = [
        *http_events.routes(hear=hear if config.feedback.topics else None, check=box.check),
        *http_links.routes(opened, put_report),
    ]
    try:
        http_server.run(config.http, routes, ready)
    finally:
        box.close()
