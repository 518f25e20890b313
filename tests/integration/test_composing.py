"""What the worker makes of a job before a courier gets it, as the configuration says."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from opensend_milter.app.working import composer, open_couriers
from opensend_milter.config import Api, Config, Database, Delivery, Http, Smtp
from opensend_milter.core.dsn import email_of
from opensend_milter.core.errors import ConfigError
from opensend_milter.core.model import Job, Parcel, Route
from opensend_milter.core.outgoing import outgoing
from opensend_milter.core.signing import derived
from tests.integration.outbox import rows
from tests.integration.private_postgres import Database as Private
from tests.jobs import job

HTML = (
    b"From: a@example.org\r\nMIME-Version: 1.0\r\nContent-Type: text/html\r\n\r\n<a href='https://x.example/'>x</a>\r\n"
)


def composed(database: Private, given: Job, *, public_url: str = "", **delivery: str) -> Parcel:
    return composing(database, public_url=public_url, **delivery)(given)


def composing(database: Private, *, public_url: str = "", **delivery: str) -> Callable[[Job], Parcel]:
    config = Config(
        database=Database(url=database.url, password_dir=database.password_dir),
        smtp=Smtp(hostname="mx.example.com"),
        delivery=Delivery(**delivery),  # type: ignore[arg-type]  # texts only
        http=Http(public_url=public_url),
    )
    return composer(config)


@pytest.mark.case(26)
def test_the_return_path_is_ours(database: Private) -> None:
    """Signed where there is a domain for it, else the configured address, else From; never the client's MAIL FROM."""
    assert composed(database, job()).sender == "app@example.org"
    assert composed(database, job(), bounce_address="b@example.com").sender == "b@example.com"
    signed = composed(database, job(), bounce_address="b@example.com", bounce_domain="bounces.example.com").sender
    ((secret,),) = rows(database, "SELECT secret FROM opensend_milter.secrets")
    assert signed.endswith("@bounces.example.com")
    assert email_of(derived(secret, "return-path"), signed) == job().email_id


def test_a_message_is_dressed_only_where_its_domain_asks(database: Private) -> None:
    plain = composed(database, job(raw=HTML), public_url="https://mail.example.com")
    assert plain.content == outgoing(job(raw=HTML), hostname="mx.example.com")
    asks = Route(track_clicks=True, track_opens=True, one_click=True)
    dressed = composed(database, job(raw=HTML, route=asks), public_url="https://mail.example.com").content
    assert b"https://mail.example.com/api/track/click/" in dressed
    assert b"https://mail.example.com/api/track/open/" in dressed
    assert b"List-Unsubscribe-Post: List-Unsubscribe=One-Click\r\n" in dressed
    again = composed(database, job(raw=HTML, route=asks, attempts=3), public_url="https://mail.example.com").content
    assert again == dressed, "each attempt sends the same bytes"


def test_many_first_messages_at_once_are_all_composed(database: Private) -> None:
    """A worker that starts beside a backlog: all of its threads want the secret, which one of them reads."""
    for _ in range(20):
        compose, together = composing(database, bounce_domain="bounces.example.com"), threading.Barrier(8)

        def first(compose: Callable[[Job], Parcel] = compose, together: threading.Barrier = together) -> Parcel:
            together.wait()
            return compose(job())

        with ThreadPoolExecutor(8) as threads:
            parcels = [one.result() for one in [threads.submit(first) for _ in range(8)]]
        assert len({parcel.sender for parcel in parcels}) == 1


def test_couriers_that_cannot_work_say_so_at_start() -> None:
    config = Config(delivery=Delivery(courier="plunk"), api=Api(uri="https://api.example.com"))
    with pytest.raises(ConfigError, match=r"^api\.key_file"):
        open_couriers(config)
    assert "plunk" not in open_couriers(dataclasses.replace(config, delivery=Delivery(), api=Api()))
