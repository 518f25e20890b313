"""Notifications of Amazon SNS: believed when they are signed by Amazon, and of a topic that we listen to."""

from __future__ import annotations

import base64
import binascii
import http.client
import logging
import re
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime, timedelta
from threading import Lock

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa

from opensend_milter.core.errors import TemporaryError
from opensend_milter.core.feedback import Report, ReportMalformed, ReportRefused
from opensend_milter.core.ses_report import parsed, ses_report

log = logging.getLogger(__name__)

Fetch = Callable[[str], bytes]
"""GET a URL of Amazon's; raise TemporaryError where that fails."""

OLDEST = timedelta(hours=1)
"""SNS itself gives up after that."""
MOST_CERTIFICATES = 16
_MOST_BYTES = 65_536
_TIMEOUT_S = 5.0
_OK = 200
# Whole URLs, not their parts: what is not written here, a port, a user, a query, cannot be smuggled in.
# The host by its region: `sns.s3.amazonaws.com` is a bucket, whose pages are somebody's own.
_HOST = (
    r"sns\.(?:(?:[a-z]{2}|us-gov)-[a-z]+-[0-9]{1,2}\.amazonaws\.com"
    r"|cn-[a-z]+-[0-9]{1,2}\.amazonaws\.com\.cn|eusc-[a-z]+-[a-z]+-[0-9]{1,2}\.amazonaws\.eu)"
)
_CERTIFICATE_URL = re.compile(rf"https://({_HOST})(/SimpleNotificationService-[0-9a-f]{{1,64}}\.pem)", re.ASCII)
_CONFIRMATION_URL = re.compile(rf"https://({_HOST})(/\?Action=ConfirmSubscription&[A-Za-z0-9._~:=&%-]+)", re.ASCII)
_NOTIFICATION = ("Message", "MessageId", "Subject", "Timestamp", "TopicArn", "Type")
_CONFIRMATION = ("Message", "MessageId", "SubscribeURL", "Timestamp", "Token", "TopicArn", "Type")
_SIGNED: Mapping[str, tuple[str, ...]] = {
    "Notification": _NOTIFICATION,
    "SubscriptionConfirmation": _CONFIRMATION,
    "UnsubscribeConfirmation": _CONFIRMATION,
}
_HASHES: Mapping[str, type[hashes.SHA1 | hashes.SHA256]] = {"1": hashes.SHA1, "2": hashes.SHA256}
"""By SignatureVersion: a topic signs with 1 unless it is told otherwise."""
_OPTIONAL = frozenset({"Subject"})


def fetch(url: str, *, connect: Callable[[str], http.client.HTTPConnection] | None = None) -> bytes:
    """GET a URL of Amazon's, following no redirection; raise TemporaryError where there is no good answer."""
    match = _CERTIFICATE_URL.fullmatch(url) or _CONFIRMATION_URL.fullmatch(url)
    if match is None:
        raise ReportRefused("not a URL of Amazon's")
    connection = connect(match[1]) if connect else http.client.HTTPSConnection(match[1], timeout=_TIMEOUT_S)
    try:
        connection.request("GET", match[2])
        answer = connection.getresponse()
        content = answer.read(_MOST_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise TemporaryError(f"{match[1]}: {type(error).__name__}: {error}") from error
    finally:
        connection.close()
    if answer.status != _OK:
        raise TemporaryError(f"{match[1]}: HTTP {answer.status}")
    return content


class SnsTopics:
    """The topics that are listened to, for any number of threads."""

    def __init__(
        self, topics: Collection[str], *, fetch: Fetch, clock: Callable[[], datetime], require_sha256: bool = False
    ) -> None:
        self._topics = frozenset(topics)
        self._require_sha256 = require_sha256
        self._fetch = fetch
        self._clock = clock
        self._certificates: dict[str, x509.Certificate] = {}
        self._lock = Lock()

    def heard(self, body: bytes) -> Report | None:
        """Read what was posted; None where it says nothing that matters, or was about the subscription itself.

        Raise ReportMalformed, ReportRefused, or TemporaryError where Amazon cannot be asked.
        """
        said = {name: value for name, value in parsed(body).items() if isinstance(value, str)}
        kind = said.get("Type", "")
        if kind not in _SIGNED:
            raise ReportMalformed("no notification of SNS; with raw message delivery it has no signature either")
        topic = said.get("TopicArn", "")
        if topic not in self._topics:
            raise ReportRefused("of a topic that feedback.topics does not name")
        self._verify(said, _SIGNED[kind])
        match kind:
            case "SubscriptionConfirmation":
                self._confirm(said)
            case "UnsubscribeConfirmation":
                log.warning("topic=%s says that we are no longer subscribed", topic)
            case _:
                return _report(said)
        return None

    def _confirm(self, said: Mapping[str, str]) -> None:
        url = said.get("SubscribeURL", "")
        if not _CONFIRMATION_URL.fullmatch(url):
            raise ReportRefused("SubscribeURL is not Amazon's")
        self._fetch(url)
        log.info("topic=%s subscribed", said["TopicArn"])

    def _verify(self, said: Mapping[str, str], names: tuple[str, ...]) -> None:
        algorithm = _HASHES.get(said.get("SignatureVersion", ""))
        url = said.get("SigningCertURL", "")
        if algorithm is None or not _CERTIFICATE_URL.fullmatch(url):
            raise ReportRefused("SignatureVersion or SigningCertURL is not Amazon's")
        if self._require_sha256 and algorithm is not hashes.SHA256:
            raise ReportRefused("signed with SHA-1 (SignatureVersion 1), which feedback.require_sha256 refuses")
        now = self._clock()
        if abs(now - _moment(said.get("Timestamp", ""))) > OLDEST:
            raise ReportRefused("too old")
        missing = [name for name in names if name not in said and name not in _OPTIONAL]
        if missing:
            raise ReportMalformed(f"without {missing[0]}")
        text = "".join(f"{name}\n{said[name]}\n" for name in names if name in said)
        key = self._certificate(url, now).public_key()
        if not isinstance(key, rsa.RSAPublicKey):
            raise ReportRefused("not an RSA key")
        try:
            signature = base64.b64decode(said.get("Signature", ""), validate=True)
            key.verify(signature, text.encode("utf-8", "surrogatepass"), padding.PKCS1v15(), algorithm())
        except (binascii.Error, ValueError, InvalidSignature):
            raise ReportRefused("the signature is wrong") from None

    def _certificate(self, url: str, now: datetime) -> x509.Certificate:
        with self._lock:
            found = self._certificates.get(url)
        if found is None:
            try:
                found = x509.load_pem_x509_certificate(self._fetch(url))
            except ValueError:
                raise TemporaryError("the certificate of SNS cannot be read") from None
            with self._lock:
                if len(self._certificates) >= MOST_CERTIFICATES:
                    self._certificates.clear()
                self._certificates[url] = found
        if not found.not_valid_before_utc <= now <= found.not_valid_after_utc:
            raise ReportRefused("the certificate of SNS is not valid now")
        return found


def _moment(text: str) -> datetime:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise ReportMalformed("Timestamp") from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _report(said: Mapping[str, str]) -> Report | None:
    try:
        return ses_report(said["Message"], said["MessageId"])
    except ReportMalformed as error:
        # It is signed, so it would come again just like this.
        log.warning("message=%r is no SES event: %s", said["MessageId"][:64], error)
        return None
