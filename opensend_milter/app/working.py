"""The worker: a Config in, threads that announce, deliver, take up feedback and tell webhooks."""

from __future__ import annotations

import dataclasses
import random
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from pathlib import Path
from threading import Lock

from opensend_milter.adapters import prometheus
from opensend_milter.adapters.couriers.maildir import MaildirCourier
from opensend_milter.adapters.couriers.plunk import PlunkCourier
from opensend_milter.adapters.couriers.sendmail import SendmailCourier
from opensend_milter.adapters.couriers.smtp import SmtpCourier
from opensend_milter.adapters.postgres import link
from opensend_milter.adapters.postgres.backlog import PostgresBacklog
from opensend_milter.adapters.postgres.feedback import PostgresFeedbackBook, PostgresFeedbackBox
from opensend_milter.adapters.postgres.jobs import Keeping, PostgresJobStore
from opensend_milter.adapters.postgres.lookup.filling import SearchTable
from opensend_milter.adapters.postgres.spellings import PostgresSpellings
from opensend_milter.adapters.postgres.webhooks import PostgresWebhooks, lease_of
from opensend_milter.adapters.webhook_calls import HttpMessenger
from opensend_milter.app.fitting import watched
from opensend_milter.config import Config, load
from opensend_milter.config.changes import Reads
from opensend_milter.config.keys import BY_PATH
from opensend_milter.core import counting
from opensend_milter.core.couriers import COURIER_SECTIONS, COURIERS, CourierName
from opensend_milter.core.dsn import return_path
from opensend_milter.core.feedback import ReportQueue
from opensend_milter.core.links import Links
from opensend_milter.core.model import Address, Job, Parcel
from opensend_milter.core.outgoing import parcel
from opensend_milter.core.ports import Courier, JobQueue
from opensend_milter.core.signing import derived
from opensend_milter.core.tracking import dress
from opensend_milter.servers import metrics_page
from opensend_milter.servers.reloading import Reloading
from opensend_milter.servers.worker import threads
from opensend_milter.servers.worker.delivering import Settings
from opensend_milter.servers.worker.feedback import Applying, Listening
from opensend_milter.servers.worker.threads import Step
from opensend_milter.servers.worker.webhook_dispatch import Dispatching, Habits

STORE_TIMEOUT_S = 30.0
"""A worker's call to the database; a message is not waiting for it."""
READS = Reads(
    live=frozenset(),
    at_start=frozenset(
        {
            *("profile", "database", "queue", "aws", "delivery"),
            *COURIER_SECTIONS,
            *("feedback", "webhooks", "smtp.hostname", "http.public_url", "policy.duplicate_window_s"),
            "metrics.worker_port",
        }
    ),
)
"""Its threads are made of what they are told at the start; a restart loses nothing."""


def work(path: Path | None, ready: Callable[[], None]) -> None:
    """Run the worker until SIGTERM: announce, and in the standalone profile deliver."""
    config = load(path)
    delivery = config.delivery
    delivers = config.profile == "standalone"
    queue = _sqs_queue(config) if config.queue.url else None
    tables = watched(config)
    couriers = partial(open_couriers, config)
    spellings = PostgresSpellings(_info(config), name="opensend-spellings", timeout_s=STORE_TIMEOUT_S, tables=tables)
    if delivers:
        # What is wrong with a courier's settings is to be known now.
        for courier in couriers().values():
            courier.close()
    with _counted(config) as steps:
        threads.run(
            threads.Parts(
                store=partial(job_store, config, tables=tables),
                couriers=couriers if delivers else None,
                default=delivery.courier,
                compose=composer(config),
                queue=queue,
                steps={
                    "opensend-spellings": spellings,
                    "opensend-search": search_table(config, "opensend-search", tables),
                    **(further_steps(config, tables) if delivers else {}),
                    **steps,
                },
            ),
            Settings(
                concurrency=delivery.concurrency,
                poll_interval_s=delivery.poll_interval_s,
                max_attempts=delivery.max_attempts,
                lease_s=delivery.lease_s,
            ),
            ready=ready,
            reload=partial(Reloading(path, config, READS).on_hangup, lambda _: None),
        )


@contextmanager
def _counted(config: Config) -> Iterator[Mapping[str, Step]]:
    """Show what is counted; yield the thread that looks at what waits."""
    if not config.metrics.worker_port:
        yield {}
        return
    backlog = PostgresBacklog(_info(config), name="opensend-backlog", timeout_s=STORE_TIMEOUT_S)
    with metrics_page.shown(
        config.metrics.worker_port, prometheus.alone(counting.IN_DELIVERY), key="metrics.worker_port"
    ):
        yield {"opensend-backlog": backlog}


def job_store(config: Config, name: str, tables: link.Tables | None = None) -> PostgresJobStore:
    """Return the worker's view of the database, for one thread."""
    delivery = config.delivery
    return PostgresJobStore(
        _info(config),
        worker=name,
        lease_s=delivery.lease_s,
        timeout_s=STORE_TIMEOUT_S,
        hand_over=config.profile == "opensend",
        keeping=Keeping(
            duplicate_window=timedelta(seconds=config.policy.duplicate_window_s),
            raw=timedelta(days=delivery.raw_days) if delivery.raw_days else None,
            uncertain=timedelta(hours=delivery.uncertain_after_h) if delivery.uncertain_after_h else None,
        ),
        tables=tables,
    )


def search_table(config: Config, name: str, tables: link.Tables | None = None) -> SearchTable:
    """Return what fills the search table, for one thread."""
    return SearchTable(_info(config), name=name, timeout_s=STORE_TIMEOUT_S, tables=tables)


# boto3 takes as long to load as all the rest: only who uses Amazon waits for it.


def _sqs_queue(config: Config) -> JobQueue:
    from opensend_milter.adapters.aws.sqs import SqsQueue  # noqa: PLC0415

    aws = config.aws
    return SqsQueue(config.queue.url, region=aws.region, endpoint_url=aws.endpoint_url, lease_s=config.delivery.lease_s)


def _ses_events(config: Config) -> ReportQueue:
    from opensend_milter.adapters.aws.ses_events import SesEventQueue  # noqa: PLC0415

    aws = config.aws
    return SesEventQueue(config.feedback.queue_url, region=aws.region, endpoint_url=aws.endpoint_url)


def _ses_courier(config: Config) -> Courier:
    from opensend_milter.adapters.couriers.ses import SesCourier  # noqa: PLC0415

    return SesCourier(config.ses, config.aws)


WIRING: Mapping[CourierName, Callable[[Config], Courier]] = {
    "smtp": lambda config: SmtpCourier(config.relay, hostname=_hostname(config)),
    "ses": _ses_courier,
    "sendmail": lambda config: SendmailCourier(config.sendmail),
    "plunk": lambda config: PlunkCourier(config.api),
    "file": lambda config: MaildirCourier(config.maildir),
}


def open_couriers(config: Config) -> Mapping[CourierName, Courier]:
    """Return a courier of each kind that is set up, for one thread; none of them connects before its first message."""
    return {name: make(config) for name, make in WIRING.items() if is_set_up(config, name)}


def is_set_up(config: Config, name: CourierName) -> bool:
    """Tell whether a courier has what it needs, or is the configured one, which has to say what it lacks."""
    needed = COURIERS[name].needs
    return needed is None or name == config.delivery.courier or bool(BY_PATH[needed].of(config))


def composer(config: Config) -> Callable[[Job], Parcel]:
    """Return what makes a message ready to leave."""
    delivery, hostname = config.delivery, _hostname(config)
    one_reads = Lock()

    @cache
    def signing() -> tuple[Links, bytes]:
        box = PostgresFeedbackBox(_info(config), name="opensend-signing", timeout_s=STORE_TIMEOUT_S)
        try:
            secret = box.secret()
        finally:
            box.close()
        links = Links(key=derived(secret, "link"), public_url=config.http.public_url)
        return links, derived(secret, "return-path")

    def compose(job: Job) -> Parcel:
        with one_reads:
            links, key = signing()
        if delivery.bounce_domain:
            sender = return_path(key, job.email_id, delivery.bounce_domain)
        else:
            # Never the client's MAIL FROM, which may be anybody's.
            sender = Address(delivery.bounce_address or job.from_address)
        made = parcel(job, hostname=hostname, sender=sender)
        return dataclasses.replace(made, content=dress(made.content, job, links))

    return compose


def further_steps(config: Config, tables: link.Tables | None = None) -> Mapping[str, Step]:
    """Return the threads that hear what came back, and tell those who asked for it."""
    pause_s = config.delivery.poll_interval_s
    book = PostgresFeedbackBook(
        _info(config),
        name="opensend-feedback",
        timeout_s=STORE_TIMEOUT_S,
        soft_bounces=config.feedback.soft_bounces,
        tables=tables,
    )
    webhooks = config.webhooks
    deliveries = PostgresWebhooks(
        _info(config),
        name="opensend-webhooks",
        timeout_s=STORE_TIMEOUT_S,
        lease=lease_of(webhooks.timeout_s),
        tables=tables,
    )
    steps: dict[str, Step] = {
        "opensend-feedback": Applying(book, pause_s),
        "opensend-webhooks": Dispatching(
            deliveries,
            HttpMessenger(timeout_s=webhooks.timeout_s, allow_private=webhooks.allow_private),
            Habits(
                max_attempts=webhooks.max_attempts,
                poll_interval_s=pause_s,
                drain_s=webhooks.timeout_s + 1,
                now=lambda: datetime.now(UTC),
                jitter=random.random,
            ),
        ),
    }
    if config.feedback.queue_url:
        box = PostgresFeedbackBox(_info(config), name="opensend-ses-events", timeout_s=STORE_TIMEOUT_S)
        steps["opensend-ses-events"] = Listening(_ses_events(config), box)
    return steps


def _info(config: Config) -> str:
    return link.conninfo_for(config.database.url, config.database.password_dir, "opensend_worker")


def _hostname(config: Config) -> str:
    return config.smtp.hostname or socket.getfqdn()
