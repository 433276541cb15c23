"""Every error as the Compute envelope, whatever raised it; nothing internal reaches the caller."""

from collections.abc import Awaitable, Callable
from http import HTTPStatus

import structlog
from aiohttp import web

from imageopsd.model.errors import RequestError, StoreError, Unavailable
from imageopsd.wire.compute import encode_error, encode_failure

log = structlog.stdlib.get_logger(__name__)

_REASONS = {
    HTTPStatus.NOT_FOUND: ("notFound", "NOT_FOUND"),
    HTTPStatus.METHOD_NOT_ALLOWED: ("httpMethodNotAllowed", "UNIMPLEMENTED"),
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: ("uploadTooLarge", "INVALID_ARGUMENT"),
}


@web.middleware
async def envelope(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Turns what a handler raises into an answer."""
    try:
        return await handler(request)
    except RequestError as error:
        headers = {"Retry-After": str(error.retry_after)} if isinstance(error, Unavailable) else {}
        return _answer(error.http_status, encode_error(error), headers)
    except StoreError as error:
        log.error("store unavailable", path=request.path, error=str(error))
        return _failed(HTTPStatus.SERVICE_UNAVAILABLE, str(error), "backendError", "UNAVAILABLE")
    except web.HTTPException as error:
        status = HTTPStatus(error.status)
        reason, code = _REASONS.get(status, ("badRequest", "INVALID_ARGUMENT"))
        allow = {"Allow": error.headers["Allow"]} if "Allow" in error.headers else {}
        return _failed(status, f"{request.method} {request.path}: {error.reason}", reason, code, allow)
    except Exception:
        log.exception("request failed", method=request.method, path=request.path)
        return _failed(HTTPStatus.INTERNAL_SERVER_ERROR, "Internal error", "internalError", "INTERNAL")


def _failed(
    status: HTTPStatus, message: str, reason: str, code: str, headers: dict[str, str] | None = None
) -> web.Response:
    return _answer(status, encode_failure(status, message, reason, code), headers or {})


def _answer(status: HTTPStatus, body: bytes, headers: dict[str, str]) -> web.Response:
    return web.Response(
        status=status, body=body + b"\n", content_type="application/json", charset="utf-8", headers=headers
    )
