"""The HTTP process: a Config in, routes over adapters."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

from anyio import CapacityLimiter

from opensend_milter.adapters import prometheus, sns
from opensend_milter.adapters.postgres import conninfo_for
from opensend_milter.adapters.postgres_feedback import PostgresFeedbackBox
from opensend_milter.adapters.postgres_submissions import PostgresSubmissions
from opensend_milter.adapters.sns import SnsTopics
from opensend_milter.app.limiting import open_throttle
from opensend_milter.app.serving import Lanes, open_lanes
from opensend_milter.config import Config, load
from opensend_milter.core import counting
from opensend_milter.core.feedback import of_link
from opensend_milter.core.links import Link, Links
from opensend_milter.core.model import EmailId
from opensend_milter.core.request import RequestLimits
from opensend_milter.core.signing import derived
from opensend_milter.servers import http_events, http_links, http_openapi, http_server, metrics_page
from opensend_milter.servers.http_api import AT_ONCE, Api
from opensend_milter.servers.http_records import Records
from opensend_milter.servers.throttle import Throttle

CONNECTIONS = 8
"""For what is no message: keys and submissions."""
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

    page = prometheus.alone(counting.OVER_HTTP)
    lanes = open_lanes(config, "opensend_http")
    throttle = open_throttle(config, "opensend_http")
    desk = PostgresSubmissions(info, connections=CONNECTIONS, timeout_s=TIMEOUT_S)
    routes = [
        *http_events.routes(hear=hear if config.feedback.topics else None, check=desk.check),
        *http_links.routes(opened, put_report),
        *_api(config, lanes, desk, throttle).routes(),
        *metrics_page.routes(page, config.http.monitoring.split()),
        *http_openapi.routes(max_bulk_messages=config.http.max_bulk_messages),
    ]
    try:
        http_server.run(config.http, routes, ready, max_body_bytes=_most_body_bytes(config))
    finally:
        lanes.close()
        throttle.stop()
        desk.close()
        box.close()


def _api(config: Config, lanes: Lanes, desk: PostgresSubmissions, throttle: Throttle) -> Api:
    threads = CapacityLimiter(AT_ONCE)
    size = config.size
    return Api(
        accept=lanes.accept,
        desk=desk,
        records=Records(store=desk, threads=threads),
        throttle=throttle,
        limits=RequestLimits(max_recipients=size.max_recipients, max_attachment_bytes=size.max_attachment_bytes),
        default_from=config.http.default_from,
        proxies=tuple(config.http.trusted_proxies.split()),
        client_header=config.http.client_header,
        max_bulk_messages=config.http.max_bulk_messages,
        threads=threads,
    )


def _most_body_bytes(config: Config) -> int:
    """Let in as JSON what would be let in as a message: text grows by quoting, attachments are base64 in both."""
    return config.size.max_message_bytes * 5 // 4
