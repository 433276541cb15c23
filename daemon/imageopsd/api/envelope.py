"""Every error as the Compute envelope, whatever raised it; nothing internal reaches the caller."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus

import msgspec
import structlog
from aiohttp import web

from imageopsd.model.errors import RequestError, StoreError, Unavailable
from imageopsd.wire.compute import encode_error, encode_failure

log = structlog.stdlib.get_logger(__name__)

STORE_RETRY_AFTER = "5"
"""Seconds after which a store that could not be written is tried again here as well (`engine.gate.LOOK_AGAIN`)."""

_REASONS = {
    HTTPStatus.FORBIDDEN: ("forbidden", "PERMISSION_DENIED"),
    HTTPStatus.NOT_FOUND: ("notFound", "NOT_FOUND"),
    HTTPStatus.METHOD_NOT_ALLOWED: ("httpMethodNotAllowed", "UNIMPLEMENTED"),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: ("uploadTooLarge", "INVALID_ARGUMENT"),
    HTTPStatus.SERVICE_UNAVAILABLE: ("backendError", "UNAVAILABLE"),
    HTTPStatus.INTERNAL_SERVER_ERROR: ("internalError", "INTERNAL"),
}


class Answer(msgspec.Struct, frozen=True):
    """What goes back to the caller: always JSON."""

    status: HTTPStatus
    body: bytes
    headers: dict[str, str] = {}

    def response(self) -> web.Response:
        return web.Response(
            status=self.status,
            body=self.body + b"\n",
            content_type="application/json",
            charset="utf-8",
            headers=self.headers,
        )


def failed(status: HTTPStatus, message: str, headers: dict[str, str] | None = None) -> Answer:
    """An envelope for what is no RequestError of ours."""
    reason, code = _REASONS.get(status, ("badRequest", "INVALID_ARGUMENT"))
    return Answer(status, encode_failure(status, message, reason, code), headers or {})


def answer_to_error(error: Exception, method: str, path: str) -> Answer:
    """What the caller is told of `error`; what only we may know goes to the log."""
    match error:
        case RequestError():
            headers = {"Retry-After": str(error.retry_after)} if isinstance(error, Unavailable) else {}
            return Answer(error.http_status, encode_error(error), headers)
        case StoreError():
            log.error("store unavailable", path=path, error=str(error))
            return failed(HTTPStatus.SERVICE_UNAVAILABLE, str(error), {"Retry-After": STORE_RETRY_AFTER})
        case ConnectionError():  # the caller went away in the middle; nobody reads this
            return failed(HTTPStatus.BAD_REQUEST, "The connection was lost")
        case web.HTTPException():
            allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
            return failed(HTTPStatus(error.status), f"{method} {path}: {error.reason}", allow)
        case _:
            log.error("request failed", method=method, path=path, exc_info=error)
            return failed(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal error")


@web.middleware
async def envelope(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """For whatever is raised before or outside the dispatcher: reading a body, an unknown path."""
    try:
        return await handler(request)
    except Exception as error:
        return answer_to_error(error, request.method, request.path).response()
