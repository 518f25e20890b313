"""Where a monitor asks whether we live, and whether we could do our work."""

from __future__ import annotations

from collections.abc import Callable

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from opensend_milter.core.errors import TablesDiffer

HEALTH_PATH, READY_PATH = "/healthz", "/readyz"


def routes(check: Callable[[], None]) -> list[Route]:
    """Return the routes; `check` raises where we could not do our work now."""

    async def health(_: Request) -> Response:
        # Nothing is asked: who starts us anew because the database is out only makes it worse.
        return JSONResponse({"status": "ok"})

    async def ready(_: Request) -> Response:
        try:
            await run_in_threadpool(check)
        except TablesDiffer as error:
            return JSONResponse({"status": "not ready", "reason": f"tables: {error}"}, 503, {"Retry-After": "10"})
        return JSONResponse({"status": "ready"})

    return [Route(HEALTH_PATH, health, methods=["GET"]), Route(READY_PATH, ready, methods=["GET"])]
