"""Amazon as the worker knows it: an SQS that is quick enough for a long run, and an SES that keeps what it takes."""

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal, Self

from tests.waiting import patience_s, scaled_s

Service = Literal["sqs", "ses"]
Way = Literal["good", "closed", "silent", "slow", "broken", "throttled", "denied", "garbage", "unheard"]
"""`closed`: nobody takes the request; `unheard`: it is done, and the connection closed without an answer."""
SLOW_S = 2.0
_SAID: dict[Way, tuple[int, bytes]] = {
    "broken": (500, b'{"message": "internal failure"}'),
    "throttled": (429, b'{"__type": "TooManyRequestsException", "message": "slow down"}'),
    "denied": (403, b'{"__type": "AccessDeniedException", "message": "not you"}'),
    "garbage": (200, b"<html>welcome to the hotel's network"),
}


@dataclass(slots=True)
class Queue:
    """One queue: what is received comes again after a while, unless it is deleted."""

    visible: dict[str, str] = field(default_factory=dict)
    """Bodies by receipt, the oldest first."""
    hidden: dict[str, tuple[float, str]] = field(default_factory=dict)
    """Until when."""
    changed: threading.Condition = field(default_factory=threading.Condition)
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def answer(self, action: str, asked: Mapping[str, Any]) -> dict[str, object]:
        """Do what is asked for; what the worker does not ask for is not there."""
        with self.changed:
            match action:
                case "SendMessageBatch":
                    return {"Successful": [self._send(entry) for entry in asked["Entries"]], "Failed": []}
                case "ReceiveMessage":
                    self.changed.wait_for(self._seen, asked["WaitTimeSeconds"])
                    return {"Messages": self._receive(asked["MaxNumberOfMessages"], asked["VisibilityTimeout"])}
                case "DeleteMessage":
                    self.visible.pop(asked["ReceiptHandle"], None)
                    self.hidden.pop(asked["ReceiptHandle"], None)
                case "ChangeMessageVisibility":
                    self._hide([asked])
                case "ChangeMessageVisibilityBatch":
                    self._hide(asked["Entries"])
                    return {"Successful": [{"Id": entry["Id"]} for entry in asked["Entries"]], "Failed": []}
                case _:
                    raise ValueError(action)
            return {}

    def clear(self) -> None:
        """Lose all of it."""
        with self.changed:
            self.visible.clear()
            self.hidden.clear()

    def _send(self, entry: Mapping[str, str]) -> dict[str, str]:
        number = str(next(self.numbers))
        self.visible[number] = entry["MessageBody"]
        self.changed.notify()
        return {"Id": entry["Id"], "MessageId": number}

    def _seen(self) -> bool:
        now = time.monotonic()
        for receipt in [receipt for receipt, (until, _) in self.hidden.items() if until <= now]:
            self.visible[receipt] = self.hidden.pop(receipt)[1]
        return bool(self.visible)

    def _receive(self, most: int, hidden_s: float) -> list[dict[str, str]]:
        receipts = list(itertools.islice(self.visible, most))
        for receipt in receipts:
            self.hidden[receipt] = time.monotonic() + hidden_s, self.visible.pop(receipt)
        return [{"MessageId": one, "ReceiptHandle": one, "Body": self.hidden[one][1]} for one in receipts]

    def _hide(self, entries: Sequence[Mapping[str, Any]]) -> None:
        for entry in entries:
            if known := self.hidden.get(entry["ReceiptHandle"]):
                self.hidden[entry["ReceiptHandle"]] = time.monotonic() + entry["VisibilityTimeout"], known[1]


class Amazon:
    """Both services at one address; `ways` may be changed at any time."""

    def __init__(self, mark_of: Callable[[bytes], str]) -> None:
        self.ways: dict[Service, Way] = {"sqs": "good", "ses": "good"}
        self.sent = Counter[str]()
        self.changed = threading.Event()
        """Set, whoever is kept silent hears nothing any more and is let go."""
        self.queue = Queue()
        self._mark_of = mark_of
        self._server = _Server(("127.0.0.1", 0), partial(_Handler, self))
        self._serving = threading.Thread(target=self._server.serve_forever, name="amazon", daemon=True)

    @property
    def port(self) -> int:
        return self._server.server_port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._serving.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.changed.set()
        self._server.shutdown()
        self._server.server_close()

    def turn(self, service: Service, way: Way) -> None:
        """Change a service's way."""
        self.ways[service] = way
        self.changed.clear() if way == "silent" else self.changed.set()

    def serve(self, request: _Handler, body: bytes) -> None:
        """Answer one request as the service's way is."""
        service: Service = "ses" if request.path.startswith("/v2/email/") else "sqs"
        way = self.ways[service]
        if way in _SAID:
            request.say(*_SAID[way])
            return
        if way == "silent":
            self.changed.wait(patience_s())
        elif way == "slow":
            time.sleep(scaled_s(SLOW_S))
        if way in {"silent", "closed"}:
            request.close_connection = True
            return
        asked = json.loads(body)
        action = request.headers.get("X-Amz-Target", "").rpartition(".")[2]
        said = self._take(asked) if service == "ses" else self.queue.answer(action, asked)
        if way == "unheard":
            request.close_connection = True
        else:
            request.say(200, json.dumps(said).encode())

    def _take(self, asked: Mapping[str, Any]) -> dict[str, object]:
        mark = self._mark_of(b64decode(asked["Content"]["Raw"]["Data"]))
        self.sent[mark] += 1
        return {"MessageId": f"ses-{mark}"}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None:
        """Say nothing of a client that has left: it was to leave."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, amazon: Amazon, request: socket.socket, address: object, server: _Server) -> None:
        self._amazon = amazon
        super().__init__(request, address, server)  # which answers all that is asked

    def do_POST(self) -> None:
        self._amazon.serve(self, self.rfile.read(int(self.headers.get("Content-Length", "0"))))

    def say(self, status: int, body: bytes) -> None:
        with suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.0")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""
