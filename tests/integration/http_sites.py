"""An application on a real socket."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from tests.waiting import await_true


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
