"""Courier over Amazon SES: the message as it is, for whom the envelope names."""

from __future__ import annotations

import io
import re
import time
from http import HTTPStatus
from typing import TYPE_CHECKING

from botocore.awsrequest import AWSPreparedRequest
from botocore.config import Config
from botocore.exceptions import ClientError

from opensend_milter.adapters.amazon import session
from opensend_milter.config import Aws, Ses
from opensend_milter.core.address import domain_of, envelope_address, normal_domain, quoted
from opensend_milter.core.errors import DeliveryDeferred, DeliveryRefused, DeliveryUncertain, OpensendError
from opensend_milter.core.model import Address, Parcel, Sent

if TYPE_CHECKING:
    from mypy_boto3_sesv2 import SESV2Client
    from mypy_boto3_sesv2.type_defs import SendEmailRequestTypeDef

ENTITY_TAG = "X-Entity-ID"
IDLE_S = 20.0
_CONNECT_S = 10.0
_RATE_PAUSE_S, _DAY_PAUSE_S = 2.0, 900.0
_THROTTLED = frozenset({"TooManyRequestsException", "LimitExceededException", "Throttling", "ThrottlingException"})
_STOPPED = frozenset({"AccountSuspendedException", "SendingPausedException"})
_OF_THE_MESSAGE = frozenset({"MessageRejected", "BadRequestException"})
_OF_THE_ACCOUNT = re.compile(r"not verified|configuration ?set|not exist", re.IGNORECASE)
"""SES also rejects a message, or calls it bad, for what an operator has left out."""
_NOT_AN_ADDRESS = "5.1.3 Amazon SES cannot send to this address"
_HEADER_END = re.compile(rb"\A\r\n|\r\n\r\n")
_INSTRUCTION = re.compile(rb"(?im)^(?:X-SES-[!-9;-~]*|Return-Path)[ \t]*:[^\r\n]*\r\n(?:[ \t][^\r\n]*\r\n)*")
"""SES obeys these fields before it drops them: another configuration set, another's identity, where bounces go."""


class SesCourier:
    """For one thread: one client per region, made when first needed."""

    def __init__(self, ses: Ses, aws: Aws) -> None:
        self._ses = ses
        self._aws = aws
        self._clients: dict[str, SESV2Client] = {}
        self._used_at = 0.0
        self._body = _Body(b"")

    def send(self, parcel: Parcel) -> Sent:
        """Hand one message over."""
        recipients = {address: said for address in parcel.recipients if (said := _spelled(address))}
        refused = tuple((address, _NOT_AN_ADDRESS) for address in parcel.recipients if address not in recipients)
        if not recipients:
            raise DeliveryRefused(_NOT_AN_ADDRESS)
        self.rest()  # a connection that the other side has closed meanwhile would make the outcome uncertain
        self._body = _Body(b"")
        try:
            client = self._client(parcel.route.region or self._aws.region)
            answer = client.send_email(**self._request(parcel, list(recipients.values())))
            message_id = answer["MessageId"]
        except ClientError as error:
            raise _no(error) from error
        except Exception as error:
            raise self._broken(error) from error
        self._used_at = time.monotonic()
        return Sent(courier="ses", reply=f"200 {message_id}", refused=refused, provider_id=message_id)

    def rest(self) -> None:
        """Close connections that are idle."""
        if time.monotonic() - self._used_at > IDLE_S:
            self.close()

    def abort(self) -> None:
        """Write no more of a message; one that is out waits for its answer, at most `timeout_s`."""
        self._body.aborted = True

    def close(self) -> None:
        for client in self._clients.values():
            client.close()

    def _client(self, region: str) -> SESV2Client:
        if region not in self._clients:
            config = Config(
                connect_timeout=min(self._ses.timeout_s, _CONNECT_S),
                read_timeout=self._ses.timeout_s,
                # A second try of its own might send a message twice.
                retries={"mode": "standard", "total_max_attempts": 1},
                max_pool_connections=1,
                tcp_keepalive=True,
            )
            client = session().client(
                "sesv2", region_name=region, endpoint_url=self._aws.endpoint_url or None, config=config
            )
            client.meta.events.register("before-send.sesv2.SendEmail", self._watch)
            self._clients[region] = client
        return self._clients[region]

    def _watch(self, request: AWSPreparedRequest, **_: object) -> None:
        """Put a body under the request that knows how much of it was written."""
        content, aborted = request.body, self._body.aborted
        if isinstance(content, bytes):
            self._body = request.body = _Body(content)
            self._body.aborted = aborted

    def _request(self, parcel: Parcel, recipients: list[str]) -> SendEmailRequestTypeDef:
        # Without FromEmailAddress, which would replace the message's From field and the name in it. All recipients as
        # Bcc: SES sends to whom Destination names, whatever the header says, and shows nobody an address of that list.
        request: SendEmailRequestTypeDef = {
            "Content": {"Raw": {"Data": _without_instructions(parcel.content)}},
            "Destination": {"BccAddresses": recipients},
            "EmailTags": [{"Name": ENTITY_TAG, "Value": parcel.email_id}],
        }
        if configuration_set := parcel.route.configuration_set or self._ses.configuration_set:
            request["ConfigurationSetName"] = configuration_set
        return request

    def _broken(self, error: Exception) -> OpensendError:
        text = f"{type(error).__name__}: {error}"
        if self._body.is_written:
            return DeliveryUncertain(f"after the request: {text}")
        return DeliveryDeferred(text, outage=not self._body.is_begun)


class _Body(io.BytesIO):
    """A request's body: asked for more after its end, it has been written to the last byte."""

    is_begun = False
    is_written = False
    aborted = False

    def read(self, size: int | None = -1, /) -> bytes:
        if self.aborted:
            raise ConnectionAbortedError("told to stop")
        self.is_begun = True
        piece = super().read(size)
        self.is_written = not piece
        return piece


def _spelled(address: Address) -> str | None:
    """Return the address in ASCII, or None where it has no such form or SES would read it as another one."""
    local, domain = quoted(address).rpartition("@")[0], domain_of(address)
    said = Address(f"{local}@{normal_domain(domain) or domain}")
    read = envelope_address(said)
    return said if said.isascii() and read and quoted(read) == said else None


def _without_instructions(content: bytes) -> bytes:
    end = _HEADER_END.search(content)
    cut = end.start() + 2 if end else len(content)
    return _INSTRUCTION.sub(b"", content[:cut]) + content[cut:]


def _no(error: ClientError) -> OpensendError:
    """Map an answer in good order: SES has not taken the message."""
    code, said = error.response["Error"].get("Code", ""), error.response["Error"].get("Message", "")
    answered = error.response["ResponseMetadata"]
    status, text = answered["HTTPStatusCode"], f"{answered['HTTPStatusCode']} {code}: {said}"
    asked_s = _seconds(answered["HTTPHeaders"].get("retry-after", ""))
    if status == HTTPStatus.TOO_MANY_REQUESTS or code in _THROTTLED:
        pause_s = _DAY_PAUSE_S if "daily" in said.lower() else _RATE_PAUSE_S
        return DeliveryDeferred(text, retry_after_s=asked_s or pause_s, outage=True)
    if status == HTTPStatus.GATEWAY_TIMEOUT:
        return DeliveryUncertain(text)
    if code in _OF_THE_MESSAGE and not _OF_THE_ACCOUNT.search(said):
        return DeliveryRefused(text)
    stopped = code in _STOPPED and not _OF_THE_ACCOUNT.search(said)
    outage = stopped or status in {
        HTTPStatus.UNAUTHORIZED,
        HTTPStatus.FORBIDDEN,
        HTTPStatus.BAD_GATEWAY,
        HTTPStatus.SERVICE_UNAVAILABLE,
    }
    return DeliveryDeferred(text, retry_after_s=asked_s, outage=outage)


def _seconds(text: str) -> float | None:
    return float(text) if text.isdigit() else None
