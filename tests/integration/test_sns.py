"""SNS is believed by its signature and its topic alone; certificates and signatures are real."""

from __future__ import annotations

import base64
import http.client
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import botocore
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import NameOID

from opensend_milter.adapters.aws.sns import MOST_CERTIFICATES, SnsTopics, fetch
from opensend_milter.core.errors import TemporaryError
from opensend_milter.core.feedback import ReportMalformed, ReportRefused
from tests.waiting import patience_s

TOPIC = "arn:aws:sns:us-east-1:123456789012:ses-events"
HOST = "https://sns.us-east-1.amazonaws.com"
CERTIFICATE_URL = f"{HOST}/SimpleNotificationService-0123456789abcdef0123456789abcdef.pem"
SUBSCRIBE_URL = f"{HOST}/?Action=ConfirmSubscription&TopicArn={TOPIC}&Token=2336412f37"
NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
EMAIL_ID = "0198c5a2-7f00-7abc-8def-0123456789ab"
KEY = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
OTHER_KEY = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
SIGNED = {
    "Notification": ["Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"],
    "SubscriptionConfirmation": ["Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type"],
}
Private = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


NO_REGIONS = ("s3", "elb", "s3-us-west-2", "s3-website-us-east-1", "us-east-1.elb", "dualstack", "us-east", "x-y-1", "")
"""What else stands before `.amazonaws.com`, some of it under the name of whoever asked for it."""


def certificate(key: Private = KEY, *, begins_at: datetime = NOW - timedelta(days=1), days: int = 30) -> bytes:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sns.amazonaws.com")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(begins_at)
        .not_valid_after(begins_at + timedelta(days=days))
        .sign(key, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM)


def ses_event(kind: str = "Delivery", email_id: str = EMAIL_ID, **section: Any) -> str:
    mail = {"timestamp": "2026-11-21T11:59:00Z", "messageId": "0100-ses", "tags": {"X-Entity-ID": [email_id]}}
    return json.dumps({"eventType": kind, "mail": mail, kind.lower(): section})


def notification(*, at: datetime = NOW, version: str = "1", key: rsa.RSAPrivateKey = KEY, **changes: Any) -> bytes:
    """Sign what SNS would post; `changes` are made before."""
    said: dict[str, Any] = {
        "Type": "Notification",
        "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        "TopicArn": TOPIC,
        "Subject": "Amazon SES Email Event Notification",
        "Message": ses_event(),
        "Timestamp": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "SignatureVersion": version,
        "SigningCertURL": CERTIFICATE_URL,
        "UnsubscribeURL": f"{HOST}/?Action=Unsubscribe",
    } | changes
    said = {name: value for name, value in said.items() if value is not None}
    names = SIGNED.get(said["Type"], SIGNED["SubscriptionConfirmation"])
    text = "".join(f"{name}\n{said[name]}\n" for name in names if name in said)
    algorithm = hashes.SHA256() if version == "2" else hashes.SHA1()  # noqa: S303  # what SNS does
    said["Signature"] = base64.b64encode(key.sign(text.encode(), padding.PKCS1v15(), algorithm)).decode()
    return json.dumps(said).encode()


def confirmation(**changes: Any) -> bytes:
    standard = {
        "Type": "SubscriptionConfirmation",
        "Subject": None,
        "Message": "You have chosen to subscribe",
        "Token": "2336412f37",
        "SubscribeURL": SUBSCRIBE_URL,
    }
    return notification(**standard | changes)


def altered(body: bytes, **changes: Any) -> bytes:
    """Change what is signed already."""
    return json.dumps(json.loads(body) | changes).encode()


class Amazon:
    """Serves what SNS's host would, by URL, and counts."""

    def __init__(self, **pages: bytes) -> None:
        self.pages = {CERTIFICATE_URL: certificate(), SUBSCRIBE_URL: b"<ok/>"} | pages
        self.asked: list[str] = []

    def fetch(self, url: str) -> bytes:
        self.asked.append(url)
        if url not in self.pages:
            raise TemporaryError("HTTP 404")
        return self.pages[url]


def topics(amazon: Amazon, *, now: datetime = NOW) -> SnsTopics:
    return SnsTopics([TOPIC], fetch=amazon.fetch, clock=lambda: now)


@pytest.fixture
def amazon() -> Amazon:
    return Amazon()


@pytest.mark.parametrize("version", ["1", "2"])
@pytest.mark.parametrize("subject", ["Amazon SES Email Event Notification", None])
def test_a_signed_notification_is_believed(amazon: Amazon, version: str, subject: str | None) -> None:
    """And its certificate is fetched once."""
    listening = topics(amazon)
    for _ in range(3):
        report = listening.heard(notification(version=version, Subject=subject))
        assert report
        assert (report.kind, report.email_id, report.source_id) == (
            "delivered",
            EMAIL_ID,
            "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324",
        )
    assert amazon.asked == [CERTIFICATE_URL]


@pytest.mark.parametrize("partition", ["aws", "aws-cn", "aws-us-gov", "aws-eusc"])
def test_the_certificates_of_all_regions_are_amazons(partition: str) -> None:
    known = json.loads((Path(botocore.__file__).parent / "data" / "partitions.json").read_text())
    (suffix,) = (one["outputs"]["dnsSuffix"] for one in known["partitions"] if one["id"] == partition)
    regions = boto3.session.Session().get_available_regions("sns", partition)
    assert regions
    for region in regions:
        url = f"https://sns.{region}.{suffix}/SimpleNotificationService-0123456789abcdef0123456789abcdef.pem"
        listening = topics(Amazon(**{url: certificate()}))
        assert listening.heard(notification(SigningCertURL=url)), url


@pytest.mark.parametrize("make", [notification, confirmation])
def test_sha1_is_refused_where_that_is_asked_for(amazon: Amazon, make: Callable[..., bytes]) -> None:
    """Before anything is fetched; by itself a topic signs so."""
    listening = SnsTopics([TOPIC], fetch=amazon.fetch, clock=lambda: NOW, require_sha256=True)
    with pytest.raises(ReportRefused, match="SHA-1"):
        listening.heard(make())
    assert amazon.asked == []
    listening.heard(make(version="2"))
    assert amazon.asked[0] == CERTIFICATE_URL


SOUND = notification()


@pytest.mark.parametrize(
    "body",
    [
        altered(SOUND, Message=ses_event("Bounce", bounceType="Permanent")),
        altered(SOUND, MessageId="another"),
        altered(SOUND, Subject="another"),
        altered(SOUND, Timestamp="2026-11-21T12:00:01Z"),
        altered(SOUND, Type="UnsubscribeConfirmation", Token="t", SubscribeURL=SUBSCRIBE_URL),
        altered(SOUND, Signature=""),
        altered(SOUND, Signature="!!!!"),
        altered(SOUND, Signature="ä"),
        altered(SOUND, Signature=base64.b64encode(b"\0" * 256).decode()),
        altered(SOUND, Signature=base64.b64encode(b"\0" * 100_000).decode()),
        altered(SOUND, Signature=None),
        altered(SOUND, SignatureVersion="2"),
        notification(key=OTHER_KEY),
        notification(version="2", key=OTHER_KEY),
    ],
)
def test_a_wrong_signature_is_refused(amazon: Amazon, body: bytes) -> None:
    with pytest.raises(ReportRefused, match="signature"):
        topics(amazon).heard(body)


@pytest.mark.parametrize(
    "body",
    [
        notification(TopicArn=TOPIC + "x"),
        notification(TopicArn=""),
        notification(TopicArn=None),
        notification(TopicArn=[TOPIC]),
        confirmation(TopicArn="arn:aws:sns:us-east-1:999999999999:mine", SubscribeURL=SUBSCRIBE_URL),
        *(
            notification(SigningCertURL=url)
            for url in (
                "",
                CERTIFICATE_URL.replace("https", "http"),
                CERTIFICATE_URL.replace("https", "HTTPS"),
                CERTIFICATE_URL.replace(".com/", ".com:443/"),
                CERTIFICATE_URL.replace(".com/", ".com.evil.example/"),
                CERTIFICATE_URL.replace("https://", "https://evil.example/"),
                CERTIFICATE_URL.replace("https://", "https://user@"),
                CERTIFICATE_URL.replace("https://", "https://evil.example#"),
                CERTIFICATE_URL.replace("https://sns.", "https://sns.evil."),
                CERTIFICATE_URL.replace("sns.us-east-1.", "s3.us-east-1."),
                *(CERTIFICATE_URL.replace("us-east-1", label) for label in NO_REGIONS),
                CERTIFICATE_URL.replace(".com/", ".com.cn/"),
                CERTIFICATE_URL.replace(".com/", ".eu/"),
                CERTIFICATE_URL.replace("SimpleNotificationService-", ""),
                CERTIFICATE_URL.replace("SimpleNotificationService-", "x/SimpleNotificationService-"),
                CERTIFICATE_URL.replace("0123456789abcdef", "my-own"),
                CERTIFICATE_URL.replace("amazonaws.com", "amazonaws.com.evil"),
                CERTIFICATE_URL.replace("amazonaws.com", "amazonawsXcom"),
                CERTIFICATE_URL + "?x",
                CERTIFICATE_URL + "\n",
                CERTIFICATE_URL + "#.pem",
                CERTIFICATE_URL[:-4],
                "https://sns.us-east-1.amazonaws.com/a/../b.pem",
                "file:///etc/ssl/x.pem",
            )
        ),
        notification(SigningCertURL=3),
        altered(SOUND, SignatureVersion="3"),
        altered(SOUND, SignatureVersion=1),
        notification(at=NOW - timedelta(minutes=61)),
        notification(at=NOW + timedelta(minutes=61)),
    ],
)
def test_nothing_is_fetched_for_a_stranger(amazon: Amazon, body: bytes) -> None:
    with pytest.raises(ReportRefused):
        topics(amazon).heard(body)
    assert amazon.asked == []


@pytest.mark.parametrize(
    "body",
    [b"", b"hi", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"Type": "Notification"', altered(SOUND, Type="Other"),
     altered(SOUND, Type=None), ses_event().encode(), altered(SOUND, Timestamp="yesterday"),
     altered(SOUND, Timestamp=None),
     altered(SOUND, Message=None), altered(SOUND, Message={"a": 1}), altered(SOUND, MessageId=None)],
)  # fmt: skip
def test_what_is_no_notification_is_malformed(amazon: Amazon, body: bytes) -> None:
    """Raw message delivery too: it has no signature."""
    with pytest.raises(ReportMalformed):
        topics(amazon).heard(body)


@pytest.mark.parametrize(
    "pem",
    [certificate(begins_at=NOW - timedelta(days=9), days=8), certificate(begins_at=NOW + timedelta(hours=1)),
     certificate(ec.generate_private_key(ec.SECP256R1()))],
    ids=["ended", "not begun", "not RSA"],
)  # fmt: skip
def test_a_certificate_that_will_not_do(pem: bytes) -> None:
    with pytest.raises(ReportRefused):
        topics(Amazon(**{CERTIFICATE_URL: pem})).heard(notification())


@pytest.mark.parametrize("pem", [b"", b"<html>", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_certificate_that_cannot_be_had_is_asked_for_again(pem: bytes) -> None:
    """SNS is told to come again; what was wrong is not kept."""
    amazon = Amazon(**{CERTIFICATE_URL: pem})
    listening = topics(amazon)
    with pytest.raises(TemporaryError):
        listening.heard(notification())
    del amazon.pages[CERTIFICATE_URL]
    with pytest.raises(TemporaryError):
        listening.heard(notification())
    amazon.pages[CERTIFICATE_URL] = certificate()
    assert listening.heard(notification())


def test_the_memory_of_certificates_is_bounded(amazon: Amazon) -> None:
    listening = topics(amazon)
    for number in range(3 * MOST_CERTIFICATES):
        url = f"{HOST}/SimpleNotificationService-{number:032x}.pem"
        amazon.pages[url] = amazon.pages[CERTIFICATE_URL]
        assert listening.heard(notification(SigningCertURL=url))
    assert len(listening._certificates) <= MOST_CERTIFICATES


def test_a_subscription_is_confirmed(amazon: Amazon, caplog: pytest.LogCaptureFixture) -> None:
    """To the topics that are configured only, and at Amazon's only."""
    with caplog.at_level(logging.INFO):
        assert topics(amazon).heard(confirmation()) is None
    assert amazon.asked == [CERTIFICATE_URL, SUBSCRIBE_URL]
    assert "subscribed" in caplog.text
    assert topics(amazon).heard(confirmation(Type="UnsubscribeConfirmation")) is None
    assert amazon.asked.count(SUBSCRIBE_URL) == 1


@pytest.mark.parametrize(
    "url",
    ["", "http://sns.us-east-1.amazonaws.com/?Action=ConfirmSubscription&Token=t", "https://127.0.0.1/?Action=ConfirmSubscription&x",
     "https://sns.us-east-1.amazonaws.com.evil.example/?Action=ConfirmSubscription&x", SUBSCRIBE_URL + "\r\nX: y",
     SUBSCRIBE_URL.replace("ConfirmSubscription", "DeleteTopic"), SUBSCRIBE_URL.replace(".com/", ".com:22/")],
)  # fmt: skip
def test_no_other_url_is_ever_asked(amazon: Amazon, url: str) -> None:
    with pytest.raises(ReportRefused):
        topics(amazon).heard(confirmation(SubscribeURL=url))
    assert amazon.asked == [CERTIFICATE_URL]


def test_what_is_signed_and_no_event_is_not_asked_for_again(amazon: Amazon) -> None:
    """It would come again just as it is."""
    for message in (
        "Successfully validated SNS topic for Amazon SES event publishing.",
        "hello",
        "{}",
        ses_event("Other"),
    ):
        assert topics(amazon).heard(notification(Message=message)) is None


@contextmanager
def answering(
    answer: Callable[[BaseHTTPRequestHandler], None],
) -> Iterator[Callable[[str], http.client.HTTPConnection]]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield lambda _: http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=patience_s())
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def replying(status: int, headers: Mapping[str, str], body: bytes) -> Callable[[BaseHTTPRequestHandler], None]:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)

    return answer


def test_fetching() -> None:
    """What Amazon's host serves, cut where no certificate goes on; no redirection is followed."""
    with answering(replying(200, {}, b"x" * 100_000)) as connect:
        assert fetch(CERTIFICATE_URL, connect=connect) == b"x" * 65_536
    with (
        answering(replying(302, {"Location": "http://169.254.169.254/"}, b"")) as connect,
        pytest.raises(TemporaryError),
    ):
        fetch(CERTIFICATE_URL, connect=connect)
    with answering(lambda handler: handler.connection.close()) as connect, pytest.raises(TemporaryError):
        fetch(SUBSCRIBE_URL, connect=connect)
    with pytest.raises(TemporaryError):
        fetch(CERTIFICATE_URL, connect=connect)
    with pytest.raises(ReportRefused):
        fetch("https://evil.example/x.pem")
