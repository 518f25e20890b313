"""Where Amazon SNS tells us what came back, and where a monitor asks whether we live, and could do our work."""

from __future__ import annotations

from collections.abc import Callable

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from opensend_milter.core.errors import TablesDiffer
from opensend_milter.core.feedback import ReportMalformed, ReportRefused

SES_PATH = "/events/ses"
HEALTH_PATH, READY_PATH = "/healthz", "/readyz"


def routes(*, hear: Callable[[bytes], None] | None, check: Callable[[], None]) -> list[Route]:
    """Return the routes.

    `hear` takes what was posted and returns after COMMIT; None: nothing is listened to. `check` raises where we could
    not do our work now.
    """

    async def events(request: Request) -> Response:
        body = await request.body()
        try:
            if hear:
                await run_in_threadpool(hear, body)
        except ReportMalformed as error:
            raise HTTPException(400, str(error)) from error
        except ReportRefused as error:
            raise HTTPException(403, str(error)) from error
        return JSONResponse({"status": "ok"})

    async def health(_: Request) -> Response:
        # Nothing is asked: who starts us anew because the database is out only makes it worse.
        return JSONResponse({"status": "ok"})

    async def ready(_: Request) -> Response:
        try:
            await run_in_threadpool(check)
        except TablesDiffer as error:
            return JSONResponse({"status": "not ready", "reason": f"tables: {error}"}, 503, {"Retry-After": "10"})
        return JSONResponse({"status": "ready"})

    listening = [Route(SES_PATH, events, methods=["POST"])] if hear else []
    return [
        *listening,
        Route(HEALTH_PATH, health, methods=["GET"]),
        Route(READY_PATH, ready, methods=["GET"]),
    ]
