"""The SES courier against a real endpoint, and against a server that fails at each step in each way."""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest

from opensend_milter.adapters.couriers import ses
from opensend_milter.adapters.couriers.ses import SesCourier
from opensend_milter.config import Aws, Ses
from opensend_milter.core.errors import DeliveryDeferred, DeliveryRefused, DeliveryUncertain, OpensendError
from opensend_milter.core.model import Address, Route
from tests.integration.courier_http import DROP, STALL, HttpServer, Refusing, Reply, Script
from tests.integration.sqs_server import running_sqs, set_credentials
from tests.jobs import RAW, job, parcel
from tests.waiting import NEVER_S, patience_s, scaled_s

YES = Reply(body=b'{"MessageId": "ses-1"}')
LARGE = RAW + (b"x" * 76 + b"\r\n") * 200_000


@pytest.fixture(autouse=True)
def _credentials() -> None:
    set_credentials()


@pytest.fixture
def courier_to() -> Iterator[Callable[..., SesCourier]]:
    made: list[SesCourier] = []

    def courier(url: str, **settings: Any) -> SesCourier:
        timeout_s = settings.pop("timeout_s", NEVER_S)
        made.append(SesCourier(Ses(timeout_s=timeout_s, **settings), Aws(endpoint_url=url)))
        return made[-1]

    yield courier
    for one in made:
        one.close()


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with HttpServer(Script(answer=YES)) as running:
        yield running


def no(status: int, kind: str, text: str = "no", **fields: str) -> Script:
    """Answer as SES does."""
    fields = {"x-amzn-ErrorType": kind, **{name.replace("_", "-"): value for name, value in fields.items()}}
    return Script(answer=Reply(status=status, body=json.dumps({"message": text}).encode(), fields=fields))


Expected = tuple[type[OpensendError] | tuple[type[OpensendError], ...], bool | None, float | None]
NEVER: Expected = (DeliveryRefused, None, None)
UNKNOWN: Expected = (DeliveryUncertain, None, None)
LATER: Expected = (DeliveryDeferred, False, None)
NONE_NOW: Expected = (DeliveryDeferred, True, None)


def none_for(seconds: float) -> Expected:
    return DeliveryDeferred, True, seconds


@pytest.mark.case(59)
@pytest.mark.parametrize(
    ("script", "expected"),
    [
        # A small request fits into the buffers of a connection that is being closed: it may have been read.
        (Script(connect=DROP), ((DeliveryUncertain, DeliveryDeferred), False, None)),
        (Script(body=DROP), LATER),
        (Script(body=STALL), LATER),
        (Script(answer=DROP), UNKNOWN),
        (Script(answer=STALL), UNKNOWN),
        (Script(answer=Reply(body=b"<html>hello</html>")), UNKNOWN),
        (Script(answer=Reply(body=b"{}")), UNKNOWN),
        (Script(answer=Reply(body=YES.body, cut=5)), UNKNOWN),
        (Script(answer=Reply(status=302, fields={"Location": "/"})), LATER),
        (no(429, "TooManyRequestsException", "Maximum sending rate exceeded."), none_for(2)),
        (no(429, "TooManyRequestsException", "Daily message quota exceeded."), none_for(900)),
        (no(429, "TooManyRequestsException", Retry_After="17"), none_for(17)),
        (no(400, "LimitExceededException"), none_for(2)),
        (no(400, "ThrottlingException", "Rate exceeded"), none_for(2)),
        (no(400, "AccountSuspendedException"), NONE_NOW),
        (no(400, "SendingPausedException"), NONE_NOW),
        (no(400, "SendingPausedException", "Sending is paused for configuration set news"), LATER),
        (no(400, "MessageRejected", "Illegal content"), NEVER),
        (no(400, "MessageRejected", "Email address is not verified. The following identities failed"), LATER),
        (no(400, "MailFromDomainNotVerifiedException"), LATER),
        (no(400, "BadRequestException", "Invalid domain name: 'x'."), NEVER),
        (no(400, "BadRequestException", "Configuration set news does not exist."), LATER),
        (no(404, "NotFoundException", "Configuration set <news> does not exist."), LATER),
        (no(403, "InvalidClientTokenId"), NONE_NOW),
        (no(403, "AccessDeniedException"), NONE_NOW),
        (no(401, "UnrecognizedClientException"), NONE_NOW),
        (no(400, "SomethingNewException"), LATER),
        (no(500, "InternalFailure"), LATER),
        (no(503, "ServiceUnavailable"), NONE_NOW),
        (no(503, "ServiceUnavailable", Retry_After="9"), none_for(9)),
        (Script(answer=Reply(status=502, body=b"<html>bad gateway</html>")), NONE_NOW),
        (Script(answer=Reply(status=504, body=b"<html>timeout</html>")), UNKNOWN),
    ],
)
def test_what_each_step_means(
    server: HttpServer, courier_to: Callable[..., SesCourier], script: Script, expected: Expected
) -> None:
    """Before the last byte nothing can be out; after it only an answer is one. Once only; the next message goes."""
    outcome, outage, retry_after_s = expected
    stalls = STALL in (script.body, script.answer)
    courier = courier_to(server.url, timeout_s=scaled_s(1) if stalls else NEVER_S)
    server.script = script
    with pytest.raises(outcome) as raised:
        courier.send(parcel(raw=LARGE) if script.body else parcel())
    if isinstance(raised.value, DeliveryDeferred):
        assert (raised.value.outage, raised.value.retry_after_s) == (outage, retry_after_s)
    assert len(server.requests) <= 1
    assert server.connections == 1
    server.script = Script(answer=YES)
    assert courier.send(parcel()).provider_id == "ses-1"


def test_nobody_listens(courier_to: Callable[..., SesCourier]) -> None:
    """Neither at an address nor at a name."""
    with Refusing() as url:
        for uri in (url, "http://nobody.invalid"):
            with pytest.raises(DeliveryDeferred) as raised:
                courier_to(uri).send(parcel())
            assert raised.value.outage


def test_no_credentials(
    server: HttpServer, courier_to: Callable[..., SesCourier], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator must act: no fault of this message."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    with pytest.raises(DeliveryDeferred, match="redentials") as raised:
        courier_to(server.url).send(parcel())
    assert raised.value.outage
    assert server.connections == 0


def test_one_connection_serves_many_messages(
    server: HttpServer, courier_to: Callable[..., SesCourier], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it is in use."""
    courier = courier_to(server.url)
    for _ in range(5):
        courier.send(parcel())
    assert server.connections == 1
    courier.rest()
    courier.send(parcel())
    assert server.connections == 1
    monkeypatch.setattr(ses, "IDLE_S", 0.0)
    courier.send(parcel())
    assert server.connections == 2


def test_the_request(server: HttpServer, courier_to: Callable[..., SesCourier]) -> None:
    """The envelope's recipients and nobody else, in ASCII; the tag that finds the message again."""
    recipients = tuple(map(Address, ("hidden@example.net", "to@b\u00fccher.example", '"a b"@example.net')))
    courier = courier_to(server.url, configuration_set="standard")
    courier.send(parcel(recipients=recipients))
    courier.send(parcel(route=Route(configuration_set="news", region="eu-west-1")))
    courier_to(server.url).send(parcel())
    first, second, third = server.requests
    assert first.line == "POST /v2/email/outbound-emails HTTP/1.1"
    assert "/us-east-1/ses/" in first.fields["authorization"]
    assert "/eu-west-1/ses/" in second.fields["authorization"]
    sent = first.json
    assert base64.b64decode(sent.pop("Content")["Raw"]["Data"]) == parcel().content
    assert sent == {
        "Destination": {"BccAddresses": ["hidden@example.net", "to@xn--bcher-kva.example", '"a b"@example.net']},
        "EmailTags": [{"Name": "X-Entity-ID", "Value": job().email_id}],
        "ConfigurationSetName": "standard",
    }
    assert second.json["ConfigurationSetName"] == "news"
    assert "ConfigurationSetName" not in third.json


@pytest.mark.parametrize(
    "odd",
    [
        "\u043f\u043e\u0447\u0442\u0430@example.net",
        "a@example.net, b@example.net",
        "alice@example.org)bob@example.com",
        "x@example.net\r\nBcc: y@example.net",
        "Name <a@example.net>",
    ],
)
def test_an_address_that_would_be_read_as_another_one(
    server: HttpServer, courier_to: Callable[..., SesCourier], odd: str
) -> None:
    """SES takes each for an address as in a header."""
    courier = courier_to(server.url)
    sent = courier.send(parcel(recipients=(Address("to@example.net"), Address(odd))))
    assert [address for address, _ in sent.refused] == [odd]
    assert server.requests[0].json["Destination"] == {"BccAddresses": ["to@example.net"]}
    with pytest.raises(DeliveryRefused):
        courier.send(parcel(recipients=(Address(odd),)))


def test_dots_that_an_address_has_only_in_quotes(server: HttpServer, courier_to: Callable[..., SesCourier]) -> None:
    odd = tuple(map(Address, (".a@example.net", '"b."@example.net')))
    assert courier_to(server.url).send(parcel(recipients=odd)).refused == ()
    assert server.requests[0].json["Destination"] == {"BccAddresses": ['".a"@example.net', '"b."@example.net']}


def test_fields_that_ses_would_obey(server: HttpServer, courier_to: Callable[..., SesCourier]) -> None:
    """A client must not choose another's configuration set, identity or return path."""
    orders = (
        b"X-SES-CONFIGURATION-SET: theirs\r\nx-ses-source-arn :\r\n arn:aws\r\n\tmore\r\nReturn-Path: <a@b.example>\r\n"
    )
    body = b"\r\nX-SES-MESSAGE-TAGS: in the body\r\n"
    courier_to(server.url).send(parcel(raw=orders + RAW + body))
    content = base64.b64decode(server.requests[0].json["Content"]["Raw"]["Data"])
    assert content == parcel(raw=RAW + body).content


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with running_sqs() as url:
        yield url


def test_a_real_endpoint(endpoint: str, courier_to: Callable[..., SesCourier]) -> None:
    """It knows the sender only after its identity was verified; the id is the one it answers."""
    courier = courier_to(endpoint)
    with pytest.raises(DeliveryRefused, match="MessageRejected"):
        courier.send(parcel())
    client = boto3.session.Session().client("sesv2", region_name="us-east-1", endpoint_url=endpoint)
    client.create_email_identity(EmailIdentity="example.org")
    client.close()
    hidden = Address("hidden@example.net")
    ids = [courier.send(parcel(recipients=(hidden,))).provider_id for _ in range(3)]
    with urllib.request.urlopen(f"{endpoint}/moto-api/data.json", timeout=patience_s()) as answer:  # noqa: S310
        arrived = json.load(answer)["ses"]["RawMessage"]
    assert [message["id"] for message in arrived] == ids
    assert arrived[0]["source"] == "app@example.org"
    assert arrived[0]["raw_data"].encode() == parcel().content
    assert hidden in arrived[0]["destinations"]
