"""Where Amazon SNS tells us what came back."""

from __future__ import annotations

from collections.abc import Callable

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from opensend_milter.core.feedback import ReportMalformed, ReportRefused

SES_PATH = "/events/ses"


def routes(hear: Callable[[bytes], None] | None) -> list[Route]:
    """Return the route; `hear` takes what was posted and returns after COMMIT. None: nothing is listened to."""
    if hear is None:
        return []

    async def events(request: Request) -> Response:
        body = await request.body()
        try:
            await run_in_threadpool(hear, body)
        except ReportMalformed as error:
            raise HTTPException(400, str(error)) from error
        except ReportRefused as error:
            raise HTTPException(403, str(error)) from error
        return JSONResponse({"status": "ok"})

    return [Route(SES_PATH, events, methods=["POST"])]
