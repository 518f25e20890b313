"""A real SQS endpoint in a process of its own, and one that is told how to fail."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.waiting import await_of, patience_s

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}

Answer = tuple[int, dict[str, Any]]


@contextmanager
def running_sqs() -> Iterator[str]:
    """Start it on a free port; return its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            endpoint = f"http://127.0.0.1:{port}"
            await_of(process, lambda: _answers(endpoint), lambda: "moto_server does not answer")
            yield endpoint
        finally:
            process.kill()


def _answers(endpoint: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=patience_s()):  # noqa: S310
        return True
    return False


@cache
def client(endpoint: str) -> Any:
    """Return a client of the tests' own."""
    import boto3  # noqa: PLC0415  # who only wants the credentials does without: it is a third of a worker's start

    return boto3.session.Session("test", "test").client("sqs", region_name="us-east-1", endpoint_url=endpoint)


def new_queue(endpoint: str, name: str, **attributes: str) -> str:
    """Create a queue and return its URL."""
    return str(client(endpoint).create_queue(QueueName=name, Attributes=attributes)["QueueUrl"])


@contextmanager
def faulty_sqs(answer: Callable[[str, dict[str, Any]], Answer]) -> Iterator[str]:
    """Serve SQS's JSON protocol; `answer` gets the action and its parameters, and returns status and body."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            action = str(self.headers["X-Amz-Target"]).rpartition(".")[2]
            parameters = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status, body = answer(action, parameters)
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.0")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def set_credentials() -> None:
    """Let boto3 find some."""
    os.environ.update(CREDENTIALS)
