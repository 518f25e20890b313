"""What is believed by its signature alone: envelopes of SNS, the tokens of links and of return paths."""

from __future__ import annotations

import base64
import functools
import json
from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.x509.oid import NameOID

from opensend_milter.adapters.aws.sns import SnsTopics
from opensend_milter.core.dsn import email_of, return_path
from opensend_milter.core.errors import TemporaryError
from opensend_milter.core.feedback import Report, ReportMalformed, ReportRefused
from opensend_milter.core.links import PATHS, LinkKind, Links, SignedLink, is_one_address, is_web_url, location
from opensend_milter.core.model import EmailId
from opensend_milter.core.signing import derived
from tests.fuzz import grammar
from tests.fuzz.measures import counted, sound
from tests.fuzz.readers import look_at_report

# ---------------------------------------------------------------------- envelopes

_TOPIC = "arn:aws:sns:eu-west-1:123456789012:ses"
_HOST = "https://sns.eu-west-1.amazonaws.com"
_CERTIFICATE_URL = f"{_HOST}/SimpleNotificationService-0123456789abcdef0123456789abcdef.pem"
_NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
_ID = EmailId("0198c5a2-7f00-7abc-8def-0123456789ab")
_CONFIRMED = ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type")
_SIGNED = {
    "Notification": ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type"),
    "SubscriptionConfirmation": _CONFIRMED,
    "UnsubscribeConfirmation": _CONFIRMED,
}
_BOUNCE = {
    "eventType": "Bounce",
    "mail": {"timestamp": "2026-01-02T11:59:00Z", "messageId": "0100-ses", "tags": {"X-Entity-ID": [_ID]}},
    "bounce": {
        "bounceType": "Permanent",
        "feedbackId": "0100-feedback",
        "timestamp": "2026-01-02T11:59:30Z",
        "bouncedRecipients": [{"emailAddress": "to@example.net", "status": "5.1.1", "diagnosticCode": "smtp; 550 no"}],
    },
}
_ABOUT = {
    "MessageId": "22b80b92-fdea-4c2c-8f9d-bdfb0c7bf324", "TopicArn": _TOPIC, "Timestamp": "2026-01-02T11:59:31.000Z",
    "SignatureVersion": "1", "SigningCertURL": _CERTIFICATE_URL, "Signature": "AAAA",
}  # fmt: skip
_NOTIFICATION = {"Type": "Notification", "Message": json.dumps(_BOUNCE), "Subject": "Amazon SES", **_ABOUT}
_CONFIRMATION = {
    "Type": "SubscriptionConfirmation", "Message": "You have chosen to subscribe", "Token": "2336412f37",
    "SubscribeURL": f"{_HOST}/?Action=ConfirmSubscription&TopicArn={_TOPIC}&Token=2336412f37", **_ABOUT,
}  # fmt: skip
_EVENTS = grammar.json_like([_BOUNCE]).map(lambda octets: octets.decode("utf-8", "surrogateescape"))
ENVELOPES = grammar.json_like([_NOTIFICATION, _CONFIRMATION]) | _EVENTS.map(
    lambda event: json.dumps({**_NOTIFICATION, "Message": event}).encode()
)
"""Notifications, confirmations, and honest envelopes around spoiled events."""


@functools.cache
def _amazons_key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65_537, key_size=2_048)


@functools.cache
def _certificate() -> bytes:
    key = _amazons_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "sns.amazonaws.com")])
    day = timedelta(days=1)
    made = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), _NOW - day, _NOW + day)
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def _fetch(url: str) -> bytes:
    """Stand for Amazon's hosts; nobody else is ever asked."""
    parts = urlsplit(url)
    assert parts.scheme == "https", url
    assert parts.netloc.startswith("sns."), url
    assert parts.netloc.endswith((".amazonaws.com", ".amazonaws.com.cn")), url
    return _certificate() if parts.path.endswith(".pem") else b"<ok/>"


def _heard(body: bytes) -> Report | None:
    return SnsTopics([_TOPIC], fetch=_fetch, clock=lambda: _NOW).heard(body)


def envelope(octets: bytes) -> float:
    """Believe none without a signature; read it with one, whatever Amazon might have signed."""
    again = _as_if_signed(octets)

    def hear() -> None:
        try:
            believed = _heard(octets)
        except (ReportMalformed, ReportRefused, TemporaryError) as error:
            sound([str(error)])
        else:
            raise AssertionError(f"believed without a signature: {believed}")
        if again is not None:
            _read_signed(again)

    return counted(octets + (again or b""), hear)


def _read_signed(body: bytes) -> None:
    try:
        report = _heard(body)
    except (ReportMalformed, ReportRefused, TemporaryError) as error:
        sound([str(error)])
    else:
        if report is not None:
            look_at_report(report)


def _as_if_signed(octets: bytes) -> bytes | None:
    """Sign what can be signed."""
    try:
        said = json.loads(octets)
        names = _SIGNED[said["Type"]]
        text = "".join(f"{name}\n{said[name]}\n" for name in names if isinstance(said.get(name), str))
    except (ValueError, RecursionError, KeyError, TypeError):
        return None
    algorithm = hashes.SHA256() if said.get("SignatureVersion") == "2" else hashes.SHA1()  # noqa: S303  # SNS's own
    signature = _amazons_key().sign(text.encode("utf-8", "surrogatepass"), padding.PKCS1v15(), algorithm)
    return json.dumps({**said, "Signature": base64.b64encode(signature).decode()}).encode()


# ---------------------------------------------------------------------- links and return paths

_LINKS = Links(key=derived(bytes(32), "link"), public_url="https://mail.example.com")
_RETURN_KEY = derived(bytes(32), "return-path")
_MADE = {
    _LINKS.url("", link).rpartition("/")[2]: link
    for link in (
        SignedLink(kind="open", email_id=_ID),
        SignedLink(kind="click", email_id=_ID, target="https://example.org/?a=1&b=ü"),
        SignedLink(kind="unsubscribe", email_id=_ID, target="to@example.net"),
    )
}
_RETURN_PATH = return_path(_RETURN_KEY, _ID, "bounce.example.com")
_SEEDS = [name.encode() for name in (*_MADE, _RETURN_PATH, _RETURN_PATH.upper())]
TOKENS = grammar.cut(
    grammar.changed(_SEEDS)
    | grammar.joined(grammar.words("https://", "http://", "HTTPS://", ""), grammar.TEXT | grammar.RUNS | grammar.ROWS)
    | grammar.ADDRESSES
)
"""Tokens of ours that somebody changed, and what pages and lists might hold to make links of."""


def link(octets: bytes) -> float:
    """Follow no link that is not ours; say with ours what was to be said."""
    text = octets.decode("utf-8", "replace")
    return counted(octets, lambda: _follow(text))


def _follow(text: str) -> None:
    assert _LINKS.opened(text) in {None, *_MADE.values()}
    assert email_of(_RETURN_KEY, text) in {None, _ID}
    if is_web_url(text):
        _says("click", text)
        where = location(text)
        assert where.isascii()
        assert where.isprintable()
        assert " " not in where
        assert location(where) == where
    if is_one_address(text):
        _says("unsubscribe", text)


def _says(kind: LinkKind, target: str) -> None:
    made = SignedLink(kind=kind, email_id=_ID, target=target)
    url = _LINKS.url("", made)
    assert url.isascii()
    assert _LINKS.opened(url.removeprefix(PATHS[kind])) == made
