"""Courier over Plunk's API: one request per message, built from what the message holds."""

from __future__ import annotations

import html
import json
import os
import re
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from itertools import islice
from urllib.parse import urlsplit

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError
from urllib3.response import BaseHTTPResponse
from urllib3.util import Retry

from opensend_milter.config import Api
from opensend_milter.core.address import same_recipient
from opensend_milter.core.errors import (
    ConfigError,
    DeliveryDeferred,
    DeliveryRefused,
    DeliveryUncertain,
    OpensendError,
)
from opensend_milter.core.message import read
from opensend_milter.core.model import Attachment, Limits, Parcel, Reading, Refuse, Sent

IDLE_S = 20.0
MOST_FIELDS, LONGEST_FIELD = 50, 998
_MOST_ANSWER_BYTES = 65_536
_REASON_LETTERS = 300
_LIMITS = Limits(max_header_bytes=2_097_152, max_header_fields=10_000)
"""The message was let in by intake, and has grown a little since."""
_NOT_HANDED_ON = re.compile(
    r"from|to|cc|bcc|subject|date|message-id|mime-version|content-(type|transfer-encoding)|reply-to|sender|return-path"
    r"|received|dkim-signature|x-ses-.*"
)
"""Set by Plunk; true only of the message as it was; or obeyed by Amazon SES, by which Plunk sends."""
_BUSY = frozenset({HTTPStatus.BAD_GATEWAY, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.TOO_MANY_REQUESTS})
_OF_THE_ACCOUNT = frozenset({HTTPStatus.UNAUTHORIZED, HTTPStatus.PAYMENT_REQUIRED, HTTPStatus.NOT_FOUND})
_NOT_NOW = frozenset({HTTPStatus.FORBIDDEN, HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY})


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    content: bytes
    retry_after_s: float | None

    def __str__(self) -> str:
        return f"{self.status} {' '.join(self.content.decode('utf-8', 'replace').split())}"[:_REASON_LETTERS].rstrip()


class PlunkCourier:
    """For one thread: one connection, used again. Redirects are not followed: they would carry the key elsewhere."""

    def __init__(self, api: Api) -> None:
        self._api = api
        url = urlsplit(api.uri)
        if not url.hostname:
            raise ConfigError("api.uri: expected the URL of Plunk's API, because courier plunk is used")
        self._path = url.path.rstrip("/") + "/v1/send"
        self._connection: HTTPConnection = (
            HTTPSConnection(url.hostname, url.port, timeout=api.timeout_s, ssl_context=ssl.create_default_context())
            if url.scheme == "https"
            else HTTPConnection(url.hostname, url.port, timeout=api.timeout_s)
        )
        self._used_at = 0.0
        _key(api)

    def send(self, parcel: Parcel) -> Sent:
        """Hand one message over."""
        content = json.dumps(_request(parcel), ensure_ascii=False).encode("utf-8", "replace")
        try:
            answer = self._post(content)
        except BaseException:
            self._connection.close()
            raise
        self._used_at = time.monotonic()
        if answer.status in range(200, 300):
            return Sent(courier="plunk", reply=str(answer), provider_id=_provider_id(answer.content))
        raise _no(answer)

    def rest(self) -> None:
        """Close a connection that is idle."""
        if time.monotonic() - self._used_at > IDLE_S:
            self.close()

    def abort(self) -> None:
        """Cut the connection under the thread that is sending."""
        connection = self._connection.sock
        if connection is None:
            return
        # By a second handle: an SSLSocket takes itself apart on shutdown while the other thread reads from it.
        with suppress(OSError), socket.socket(fileno=os.dup(connection.fileno())) as second:
            second.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._connection.close()

    def _post(self, content: bytes) -> _Answer:
        """Tell apart where it breaks: the API has nothing before the last byte was written."""
        headers = {"Authorization": f"Bearer {_key_now(self._api)}", "Content-Type": "application/json"}
        self._connect()
        broken: Exception | None = None
        try:
            self._connection.request("POST", self._path, body=content, headers=headers, preload_content=False)
        except (OSError, HTTPError) as error:
            broken = error  # it may have answered before it had all, and hung up
        try:
            response = self._connection.getresponse()
        except Exception as error:
            if broken:
                raise DeliveryDeferred(f"{type(broken).__name__}: {broken}") from error
            raise DeliveryUncertain(f"after the request: {type(error).__name__}: {error}") from error
        return self._read(response)

    def _connect(self) -> None:
        self.rest()
        try:
            if not self._connection.is_connected:  # or closed by the other side meanwhile
                self._connection.close()
                self._connection.connect()
        except (OSError, HTTPError) as error:
            raise DeliveryDeferred(f"api.uri: {type(error).__name__}: {error}", outage=True) from error

    def _read(self, response: BaseHTTPResponse) -> _Answer:
        """Read what it says of its status; the status counts also where that breaks off."""
        content = b""
        with suppress(OSError, HTTPError):
            content = response.read(_MOST_ANSWER_BYTES)
        if not content or len(content) == _MOST_ANSWER_BYTES or response.status >= HTTPStatus.MULTIPLE_CHOICES:
            self._connection.close()
        asked = response.headers.get("Retry-After")
        asked_s: float | None = None
        with suppress(HTTPError, ValueError, OverflowError):
            asked_s = Retry().parse_retry_after(asked) if asked else None
        return _Answer(response.status, content, asked_s)


def _no(answer: _Answer) -> OpensendError:
    if answer.status == HTTPStatus.GATEWAY_TIMEOUT:
        return DeliveryUncertain(str(answer))  # somebody between did not wait for the answer
    if answer.status in _BUSY | _OF_THE_ACCOUNT or answer.status < HTTPStatus.BAD_REQUEST:
        return DeliveryDeferred(str(answer), retry_after_s=answer.retry_after_s, outage=True)
    if answer.status in _NOT_NOW or answer.status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return DeliveryDeferred(str(answer), retry_after_s=answer.retry_after_s)
    return DeliveryRefused(str(answer))


def _request(parcel: Parcel) -> Mapping[str, object]:
    reading = read(parcel.content, _LIMITS)
    if isinstance(reading, Refuse):
        raise DeliveryRefused(reading.text)
    names = {same_recipient(shown.address): shown.name for shown in (*reading.cc, *reading.to) if shown.name}
    found: dict[str, object] = {
        "from": _mailbox(reading.sender.address, reading.sender.name),
        "to": [_mailbox(address, names.get(same_recipient(address), "")) for address in parcel.recipients],
        "subject": reading.subject,
        "body": reading.html or _as_html(reading.text),
    }
    if reading.reply_to:
        found["reply"] = reading.reply_to[0].address
    if headers := _headers(reading):
        found["headers"] = headers
    if reading.attachments:
        found["attachments"] = _attachments(reading.attachments)
    return found


def _mailbox(address: str, name: str) -> Mapping[str, str]:
    return {"name": name, "email": address} if name else {"email": address}


def _as_html(text: str) -> str:
    """Plunk's body is HTML: plain text would lose its lines, and a `<` its meaning."""
    return f'<div style="white-space: pre-wrap">{html.escape(text, quote=False)}</div>' if text else ""


def _headers(reading: Reading) -> Mapping[str, str]:
    found: dict[str, list[str]] = {}
    for name, value in reading.fields:
        if not _NOT_HANDED_ON.fullmatch(name):
            found.setdefault(name, []).append(value)
    joined = ((name, ", ".join(values)) for name, values in found.items())
    return dict(islice(((name, value) for name, value in joined if len(value) <= LONGEST_FIELD), MOST_FIELDS))


def _attachments(attachments: Sequence[Attachment]) -> list[Mapping[str, str]]:
    return [
        {
            "filename": attachment.filename,
            "content": b"".join(attachment.content.pieces()).translate(None, b"\r\n").decode("ascii"),
            "contentType": attachment.content_type,
        }
        for attachment in attachments
    ]


def _provider_id(content: bytes) -> str | None:
    """Find what Plunk calls the first of the emails it has made; without it the message is sent all the same."""
    try:
        found = json.loads(content)["data"]["emails"][0]["email"]
    except (ValueError, KeyError, IndexError, TypeError, RecursionError):
        return None
    return found if isinstance(found, str) else None


def _key(api: Api) -> str:
    if api.key_file is None:
        raise ConfigError("api.key_file: expected a file, because courier plunk is used")
    try:
        return api.key_file.read_text(encoding="ascii").strip()
    except (OSError, ValueError) as error:
        raise ConfigError(f"api.key_file: {api.key_file}: {getattr(error, 'strerror', None) or error}") from error


def _key_now(api: Api) -> str:
    """Read it each time: it may have been changed while we run."""
    try:
        return _key(api)
    except ConfigError as error:
        raise DeliveryDeferred(str(error), outage=True) from error
