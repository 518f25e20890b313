"""The Plunk courier against a server that fails at each step in each way."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest

from opensend_milter.adapters.couriers import plunk
from opensend_milter.adapters.couriers.plunk import PlunkCourier
from opensend_milter.config import Api
from opensend_milter.core.errors import ConfigError, DeliveryDeferred, DeliveryRefused, DeliveryUncertain
from opensend_milter.core.message import read
from opensend_milter.core.model import Address, Limits, Reading
from tests.integration.courier_http import DROP, STALL, HttpServer, Refusing, Reply, Script
from tests.integration.courier_tls import own_certificate, server_context
from tests.jobs import RAW, parcel
from tests.waiting import NEVER_S, scaled_s

KEY = "sk_0123456789abcdef"
YES = Reply(body=json.dumps({"success": True, "data": {"emails": [{"contact": {}, "email": "em_1"}]}}).encode())
ATTACHED = b"\x00\xff" * 60
LARGE = RAW + b"x" * 76 * 200_000


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text(KEY + "\n")
    return path


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with HttpServer(Script(answer=YES)) as running:
        yield running


@pytest.fixture
def courier(server: HttpServer, key_file: Path) -> Iterator[PlunkCourier]:
    made = PlunkCourier(Api(uri=server.url, key_file=key_file, timeout_s=NEVER_S))
    yield made
    made.close()


@pytest.mark.case(59)
@pytest.mark.parametrize(
    ("script", "outcome", "outage"),
    [
        # A small request fits into the buffers of a connection that is being closed: it may have been read.
        (Script(connect=DROP), (DeliveryUncertain, DeliveryDeferred), False),
        (Script(body=DROP), DeliveryDeferred, False),
        (Script(body=Reply(status=413)), DeliveryRefused, None),
        (Script(answer=Reply(status=504)), DeliveryUncertain, None),
        (Script(answer=Reply(status=301, fields={"Location": "http://127.0.0.1:1/"})), DeliveryDeferred, True),
        (Script(answer=Reply(status=400)), DeliveryRefused, None),
        (Script(answer=Reply(status=422)), DeliveryRefused, None),
        (Script(answer=Reply(status=401)), DeliveryDeferred, True),
        (Script(answer=Reply(status=402)), DeliveryDeferred, True),
        (Script(answer=Reply(status=403)), DeliveryDeferred, False),
        (Script(answer=Reply(status=404)), DeliveryDeferred, True),
        (Script(answer=Reply(status=408)), DeliveryDeferred, False),
        (Script(answer=Reply(status=429)), DeliveryDeferred, True),
        (Script(answer=Reply(status=500)), DeliveryDeferred, False),
        (Script(answer=Reply(status=500, body=b"x" * 100, cut=3)), DeliveryDeferred, False),
        (Script(answer=Reply(status=502, body=b"<html>")), DeliveryDeferred, True),
        (Script(answer=Reply(status=503)), DeliveryDeferred, True),
    ],
)
def test_what_each_step_means(
    server: HttpServer,
    courier: PlunkCourier,
    *,
    script: Script,
    outcome: type[Exception] | tuple[type[Exception], ...],
    outage: bool | None,
) -> None:
    """Before the last byte nothing can be out; after it only an answer is one. The next message goes."""
    server.script = script
    message = parcel(raw=LARGE) if script.body else parcel()
    with pytest.raises(outcome) as raised:
        courier.send(message)
    if isinstance(raised.value, DeliveryDeferred) and outage is not None:
        assert raised.value.outage is outage
    assert KEY not in str(raised.value)
    server.script = Script(answer=YES)
    assert courier.send(parcel()).provider_id == "em_1"


def test_a_server_that_stands_still_is_no_outage(server: HttpServer, key_file: Path) -> None:
    server.script = Script(body=STALL)
    courier = PlunkCourier(Api(uri=server.url, key_file=key_file, timeout_s=scaled_s(1)))
    with pytest.raises(DeliveryDeferred) as raised:
        courier.send(parcel(raw=LARGE))
    assert not raised.value.outage


@pytest.mark.parametrize(("asked", "seconds"), [("7", 7.0), ("soon", None), ("", None)])
def test_how_long_it_asks_to_be_left_alone(
    server: HttpServer, courier: PlunkCourier, asked: str, seconds: float | None
) -> None:
    server.script.answer = Reply(status=429, fields={"Retry-After": asked})
    with pytest.raises(DeliveryDeferred) as raised:
        courier.send(parcel())
    assert raised.value.retry_after_s == seconds


def test_nobody_listens(key_file: Path) -> None:
    """Neither at an address nor at a name."""
    with Refusing() as url:
        for uri in (url, "http://nobody.invalid"):
            with pytest.raises(DeliveryDeferred) as raised:
                PlunkCourier(Api(uri=uri, key_file=key_file)).send(parcel())
            assert raised.value.outage


def test_a_certificate_nobody_vouches_for(key_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is not shown to whoever answers; with the right authority it is."""
    certificate = own_certificate(tmp_path)
    with HttpServer(Script(answer=YES), server_context(certificate)) as server:
        courier = PlunkCourier(Api(uri=server.url, key_file=key_file, timeout_s=NEVER_S))
        with pytest.raises(DeliveryDeferred, match="CERTIFICATE_VERIFY_FAILED") as raised:
            courier.send(parcel())
        assert raised.value.outage
        assert server.requests == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        trusting = PlunkCourier(Api(uri=server.url, key_file=key_file, timeout_s=NEVER_S))
        assert trusting.send(parcel()).provider_id == "em_1"
        trusting.close()


@pytest.mark.parametrize("body", [b"", b"[]", b"null", b'{"data":{"emails":[]}}', b"<html>", b"[" * 100_000, b"\xff"])
def test_a_yes_is_a_yes_whatever_else_it_says(server: HttpServer, courier: PlunkCourier, body: bytes) -> None:
    """The status is the answer; the id is an extra."""
    server.script.answer = Reply(body=body)
    assert courier.send(parcel()).provider_id is None
    server.script.answer = Reply(body=YES.body, cut=5)
    assert courier.send(parcel()).provider_id is None
    server.script.answer = YES
    assert courier.send(parcel()).provider_id == "em_1"


def test_one_connection_serves_many_messages(
    server: HttpServer, courier: PlunkCourier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is in use."""
    for _ in range(5):
        courier.send(parcel())
    assert server.connections == 1
    courier.rest()
    courier.send(parcel())
    assert server.connections == 1
    monkeypatch.setattr(plunk, "IDLE_S", 0.0)
    courier.rest()
    courier.send(parcel())
    assert server.connections == 2


def composed() -> bytes:
    message = EmailMessage()
    message["From"] = '"App, the" <app@example.org>'
    message["To"] = "Toni <TO@example.net>, shown@example.net"
    message["Cc"] = "Cecil <cc@Example.NET>"
    message["Reply-To"] = "answers@example.org"
    message["Subject"] = "Gr\u00fc\u00dfe"
    message["X-Campaign"] = "spring"
    message["X-SES-CONFIGURATION-SET"] = "somebody-elses"
    message["X-Long"] = "x " * 600
    message["DKIM-Signature"] = "v=1"
    message.set_content("hello <b>\n")
    message.add_alternative("<p>hello</p>", subtype="html")
    message.add_attachment(ATTACHED, maintype="application", subtype="pdf", filename="a.pdf")
    return message.as_bytes().replace(b"\n", b"\r\n")


@pytest.mark.case(32)
def test_the_request_is_plunks_own(server: HttpServer, courier: PlunkCourier) -> None:
    """Envelope recipients only, with the names the header shows; what Plunk has no place for is left out."""
    recipients = tuple(map(Address, ("to@example.net", "TO@example.net", "cc@example.net", "hidden@example.net")))
    courier.send(parcel(raw=composed(), recipients=recipients))
    (request,) = server.requests
    assert request.line == "POST /v1/send HTTP/1.1"
    assert request.fields["authorization"] == f"Bearer {KEY}"
    sent: dict[str, Any] = request.json
    content = base64.b64encode(ATTACHED).decode()
    assert sent.pop("attachments") == [{"filename": "a.pdf", "content": content, "contentType": "application/pdf"}]
    assert sent == {
        "from": {"name": "App, the", "email": "app@example.org"},
        "to": [
            {"email": "to@example.net"},
            {"name": "Toni", "email": "TO@example.net"},
            {"name": "Cecil", "email": "cc@example.net"},
            {"email": "hidden@example.net"},
        ],
        "subject": "Gr\u00fc\u00dfe",
        "body": "<p>hello</p>\r\n",
        "reply": "answers@example.org",
        "headers": {"x-campaign": "spring"},
    }


def test_plain_text_keeps_its_lines_and_its_signs(server: HttpServer, courier: PlunkCourier) -> None:
    """Plunk's body is HTML."""
    courier.send(parcel(raw=b"From: app@example.org\r\n\r\n1 < 2 &c.\r\n"))
    courier.send(parcel(raw=b"From: app@example.org\r\n" + b"X-N: y\r\n" * 3 + b"\r\n"))
    first, second = (request.json for request in server.requests)
    assert first["body"] == '<div style="white-space: pre-wrap">1 &lt; 2 &amp;c.\r\n</div>'
    assert second["body"] == ""
    assert second["headers"] == {"x-n": "y, y, y"}


def test_a_base_url_with_a_path(server: HttpServer, key_file: Path) -> None:
    courier = PlunkCourier(Api(uri=server.url + "/plunk/", key_file=key_file))
    courier.send(parcel())
    courier.close()
    assert server.requests[0].line == "POST /plunk/v1/send HTTP/1.1"


def test_what_is_missing_stops_the_program_at_start(key_file: Path, tmp_path: Path) -> None:
    """With the name of the key; a key that goes missing later is an outage."""
    for api, name in (
        (Api(key_file=key_file), "api.uri"),
        (Api(uri="http://127.0.0.1"), "api.key_file"),
        (Api(uri="http://127.0.0.1", key_file=tmp_path / "none"), "api.key_file"),
    ):
        with pytest.raises(ConfigError, match=name):
            PlunkCourier(api)
    courier = PlunkCourier(Api(uri="http://127.0.0.1", key_file=key_file))
    key_file.unlink()
    with pytest.raises(DeliveryDeferred, match=r"api\.key_file") as raised:
        courier.send(parcel())
    assert raised.value.outage


def test_a_field_that_comes_again_and_again_is_written_once() -> None:
    """Also where each is as long as all before it: begun anew for each, it would not end."""
    again = [("x-few", "a"), *(("x-many", "b" * 90) for _ in range(300_000)), ("x-few", "c")]
    reading = read(RAW, Limits())
    assert isinstance(reading, Reading)
    assert plunk._headers(replace(reading, fields=tuple(again))) == {"x-few": "a, c"}


def test_a_message_that_cannot_be_read(courier: PlunkCourier, server: HttpServer) -> None:
    with pytest.raises(DeliveryRefused):
        courier.send(parcel(raw=b"Subject: nobody\r\n\r\n"))
    assert server.requests == []
