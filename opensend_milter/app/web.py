"""The HTTP process: a Config in, routes over adapters."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from ssl import SSLContext

from anyio import CapacityLimiter
from starlette.routing import Route

from opensend_milter.adapters import prometheus
from opensend_milter.adapters.aws import sns
from opensend_milter.adapters.aws.sns import SnsTopics
from opensend_milter.adapters.postgres.feedback import PostgresFeedbackBox
from opensend_milter.adapters.postgres.letters import PostgresLetters
from opensend_milter.adapters.postgres.link import conninfo_for
from opensend_milter.adapters.postgres.lookup.messages import PostgresMessages
from opensend_milter.adapters.postgres.pool import Pool
from opensend_milter.adapters.postgres.submissions import PostgresSubmissions
from opensend_milter.app.certificates import pair_of
from opensend_milter.app.fitting import needs_of, watched
from opensend_milter.app.lanes import open_lanes
from opensend_milter.app.limiting import limits_of, open_throttle
from opensend_milter.app.succession import Deciding, Succession
from opensend_milter.config import Config, load
from opensend_milter.config.changes import Reads
from opensend_milter.core import counting
from opensend_milter.core.feedback import of_link
from opensend_milter.core.links import Links, SignedLink
from opensend_milter.core.model import EmailId, Message, Outcome
from opensend_milter.core.rates import Allowance
from opensend_milter.core.request import RequestLimits
from opensend_milter.core.signing import derived
from opensend_milter.servers import metrics_page
from opensend_milter.servers.pages import files
from opensend_milter.servers.reloading import Reloading
from opensend_milter.servers.web import (
    events,
    health,
    links as http_links,
    messages,
    openapi as http_openapi,
    server as http_server,
)
from opensend_milter.servers.web.api import Api
from opensend_milter.servers.web.bodies import Bodies
from opensend_milter.servers.web.letters import Letters
from opensend_milter.servers.web.messages import Messages
from opensend_milter.servers.web.public import front, reference, told
from opensend_milter.servers.web.records import Records
from opensend_milter.servers.web.room import MOST_REQUESTS
from opensend_milter.servers.web.server import Site, show_certificate, tls_context

CONNECTIONS = 8
"""For what is no message: keys and submissions."""
TIMEOUT_S = 5.0
"""A call to the database: whoever asked is waiting."""


READS = Reads(
    live=frozenset(
        {
            *("profile", "billing", "size", "policy", "limits", "relay.eight_bit", "delivery.courier"),
            *("http.default_from", "http.trusted_proxies", "http.client_header"),
            *("http.monitoring", "http.max_bulk_messages"),
        }
    ),
    at_start=frozenset(
        {
            *("http", "database", "feedback.topics", "feedback.require_sha256"),
            *("milter.soft_timeout_s", "milter.hard_timeout_s", "milter.gather_window_ms", "milter.spool_above_bytes"),
        }
    ),
)
CERTIFICATE = frozenset({"tls", "smtp.hostname"})


def http(path: Path | None, ready: Callable[[], None]) -> None:
    """Answer HTTP until SIGTERM."""
    config = load(path)
    tls = tls_context(*pair_of(config, "http")) if config.http.tls else None
    answering = Answering(config, tls)
    reloading = Reloading(path, config, READS if tls is None else Reads(READS.live | CERTIFICATE, READS.at_start))

    def reload() -> Site:
        reloading.on_hangup(answering.follow)
        return answering.site

    site = answering.site
    try:
        http_server.run(config.http, site.routes, ready, max_body_bytes=site.max_body_bytes, tls=tls, reload=reload)
    finally:
        answering.close()


class Answering:
    """What the process holds open, and the site that it makes of that and of the configuration."""

    def __init__(self, config: Config, tls: SSLContext | None) -> None:
        self._config = config
        self._tls = tls
        info = conninfo_for(config.database.url, config.database.password_dir, "opensend_http")
        self._box = PostgresFeedbackBox(info, name="opensend-http", timeout_s=TIMEOUT_S)
        self._tables = watched(config)
        self._pool = Pool(info, connections=CONNECTIONS, timeout_s=TIMEOUT_S, tables=self._tables)
        self._desk = PostgresSubmissions(self._pool)
        self._throttle = open_throttle(config, "opensend_http")
        self._succession = Succession(self._deciding(config))
        self._threads = CapacityLimiter(MOST_REQUESTS)
        self._searches = CapacityLimiter(messages.AT_ONCE)
        self._page = prometheus.alone(counting.OVER_HTTP)
        self._open = [
            *_report_routes(config, self._box, self._desk.check),
            *front.routes(),
            *files.routes(),
            *told.routes(self._desk.refused, Allowance(told.PER_MINUTE, time.monotonic)),
        ]
        self.site = self._site(config)

    def follow(self, config: Config) -> None:
        """Go on with another configuration, and with another certificate in the same place; raise ConfigError."""
        if self._tls:
            show_certificate(self._tls, *pair_of(config, "http"))
        if config == self._config:
            return
        self._tables.expect(needs_of(config))
        self._succession.replace(self._deciding(config))
        self._throttle.set_limits(limits_of(config))
        self.site = self._site(config)
        self._config = config

    def close(self) -> None:
        """Finish what was handed in, then let go."""
        self._succession.close()
        self._throttle.stop()
        self._pool.close()
        self._box.close()

    def _deciding(self, config: Config) -> Deciding[Sequence[Message], Sequence[Outcome | None]]:
        lanes = open_lanes(config, "opensend_http", self._tables)
        return Deciding(lanes.accept_all, lanes.close)

    def _site(self, config: Config) -> Site:
        document = http_openapi.openapi(max_bulk_messages=config.http.max_bulk_messages, limits=_limits(config))
        routes = [
            *self._open,
            *self._api(config).routes(),
            *metrics_page.routes(self._page, config.http.monitoring.split()),
            *http_openapi.routes(document),
            *reference.routes(document, config.http.public_url),
        ]
        return Site(
            routes=routes,
            max_body_bytes=_most_body_bytes(config),
            proxies=tuple(config.http.trusted_proxies.split()),
            client_header=config.http.client_header,
        )

    def _api(self, config: Config) -> Api:
        return Api(
            accept=self._succession.accept,
            desk=self._desk,
            records=Records(store=self._desk, threads=self._threads),
            messages=Messages(
                store=PostgresMessages(self._pool.lend, beside=config.profile == "opensend"), turns=self._searches
            ),
            letters=Letters(store=PostgresLetters(self._pool), threads=self._threads),
            throttle=self._throttle,
            bodies=Bodies(
                limits=_limits(config),
                default_from=config.http.default_from,
                max_bulk_messages=config.http.max_bulk_messages,
            ),
            threads=self._threads,
        )


def _report_routes(config: Config, box: PostgresFeedbackBox, check: Callable[[], None]) -> Sequence[Route]:
    topics = SnsTopics(
        config.feedback.topics.split(),
        fetch=sns.fetch,
        clock=lambda: datetime.now(UTC),
        require_sha256=config.feedback.require_sha256,
    )

    @cache
    def links() -> Links:
        return Links(key=derived(box.secret(), "link"), public_url=config.http.public_url)

    def opened(token: str) -> SignedLink | None:
        return links().opened(token)

    def put_report(kind: str, source_id: str, email_id: EmailId, said: Mapping[str, str]) -> None:
        box.put([of_link(kind, source_id, email_id, said)])

    def hear(body: bytes) -> None:
        if report := topics.heard(body):
            box.put([report])

    return [
        *events.routes(hear if config.feedback.topics else None),
        *health.routes(check),
        *http_links.routes(opened, put_report),
    ]


def _limits(config: Config) -> RequestLimits:
    size = config.size
    return RequestLimits(max_recipients=size.max_recipients, max_attachment_bytes=size.max_attachment_bytes)


def _most_body_bytes(config: Config) -> int:
    """Let in as JSON what would be let in as a message: text grows by quoting, attachments are base64 in both."""
    return config.size.max_message_bytes * 5 // 4
