"""An application on a real socket, and requests to it as they are."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn
from starlette.types import ASGIApp

from tests.waiting import await_true, patience_s


@dataclass(frozen=True)
class Answer:
    """What was answered; names of header fields in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


@contextmanager
def served(app: ASGIApp) -> Iterator[int]:
    """Serve it; yield the port. All that was begun is finished at the end."""
    config = uvicorn.Config(app, log_config=None, lifespan="off", ws="none", access_log=False, proxy_headers=False)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        thread = threading.Thread(target=server.run, args=([listening],), name="test-http")
        thread.start()
        await_true(lambda: server.started, "the server starts")
        try:
            yield port
        finally:
            server.should_exit = True
            thread.join()


def ask(port: int, method: str, url: str, body: bytes | None = None, **headers: str) -> Answer:
    """Ask on a connection of its own."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=patience_s())
    try:
        connection.request(method, url, body, {name.replace("_", "-"): value for name, value in headers.items()})
        answer = connection.getresponse()
        return Answer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read())
    finally:
        connection.close()
