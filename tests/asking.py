"""One request over HTTP, as a test makes it and sees what came of it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from tests.waiting import patience_s


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; what is JSON is read."""

    status: int
    headers: Mapping[str, str]
    """Their names in lower case."""
    body: Any


def ask(port: int, method: str, path: str, payload: object = None, **headers: str) -> Answer:
    """Ask on a connection of its own; what is no bytes is sent as JSON. `Idempotency_Key="x"` is a field."""
    body = payload if isinstance(payload, bytes) or payload is None else json.dumps(payload).encode()
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    if body is not None:
        sent.setdefault("Content-Type", "application/json")
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=patience_s())) as connection:
        connection.request(method, path, body, sent)
        response = connection.getresponse()
        content = response.read()
    found = {name.lower(): value for name, value in response.getheaders()}
    is_json = found.get("content-type", "").startswith("application/json")
    return Answer(response.status, found, json.loads(content) if is_json else content)
