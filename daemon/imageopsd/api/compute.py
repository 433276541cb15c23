"""The Compute REST paths over HTTP: `/compute/{v1,beta}/…` and `/batch/compute/{v1,beta}`, one state behind them."""

import asyncio
from collections.abc import Mapping
from functools import partial
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from anyio import current_time
from msgspec.structs import replace
from yarl import URL

from imageopsd.api import batch, openapi
from imageopsd.api.access import Access, caller
from imageopsd.api.calls import Call, Dispatcher
from imageopsd.api.images import ImageCalls
from imageopsd.api.machine_images import MachineImageCalls
from imageopsd.api.neighbours import Neighbours
from imageopsd.api.operations import OperationCalls
from imageopsd.engine.imageops import ImageOps
from imageopsd.model.errors import InvalidRequest
from imageopsd.model.trace import read_traceparent

WAIT_LIMIT = 45.0
"""Seconds that one HTTP request may wait for operations to end, all parts of a batch together; then it is answered with
the operations as they are. googleapiclient gives up on its socket after 60 s, and a client that is answered at once
with RUNNING would spin."""
FORM = "application/x-www-form-urlencoded"
BODY_LIMIT = 30.0
"""Seconds until the whole body of a request must be there; none is larger than a megabyte."""


class ComputeApi:
    """`access` is whose middleware stands before it, or nobody is asked for a token. `wait_limit` in seconds,
    as WAIT_LIMIT."""

    def __init__(self, ops: ImageOps, access: Access | None = None, *, wait_limit: float = WAIT_LIMIT) -> None:
        routes = [
            *ImageCalls(ops).routes(),
            *MachineImageCalls(ops).routes(),
            *OperationCalls(ops).routes(),
            *Neighbours(ops).routes(),
        ]
        self._wait_limit = wait_limit
        self._dispatcher = Dispatcher(routes, access or Access(None))
        self._describe = partial(openapi.document, routes)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.route("*", "/compute/{path:.*}", self._call),
            web.post("/batch/compute/{version:v1|beta}", self._batch),
            web.get("/openapi.json", self._openapi),
        ]

    async def _call(self, request: web.Request) -> web.Response:
        body = await _body(request)
        method: str = request.method
        query: Mapping[str, str] = request.query
        if _is_long_get(request):
            method, query, body = "GET", _whole_query(request.rel_url, body), b""
        call = Call(method=method, path=request.rel_url.raw_path, query=query, body=body, **self._of_request(request))
        return (await self._dispatcher.answer(call)).response()

    async def _openapi(self, request: web.Request) -> web.Response:
        """What stands here, as OpenAPI; made when somebody asks, which is seldom."""
        return web.json_response(self._describe())

    async def _batch(self, request: web.Request) -> web.Response:
        parts = batch.read(request.headers.get("Content-Type", ""), await _body(request))
        common = self._of_request(request)
        answers = [(part, await self._dispatcher.answer(replace(part.call, **common))) for part in parts]
        content_type, body = batch.write(answers)
        return web.Response(body=body, headers={"Content-Type": content_type})

    def _of_request(self, request: web.Request) -> dict[str, Any]:
        """What all calls in one HTTP request share, whatever the headers of a batch's parts say: whose token it is,
        the trace, and when it must be answered."""
        return {
            "caller": caller(request),
            "traceparent": _traceparent(request),
            "deadline": current_time() + self._wait_limit,
        }


def _is_long_get(request: web.Request) -> bool:
    """Whether a GET is meant: googleapiclient sends one whose URL is over 2048 characters as a POST that has its query
    for a form (`HttpRequest.execute`). As with all of Google's APIs, only POST can be overridden."""
    return (
        request.method == "POST"
        and request.headers.get("X-HTTP-Method-Override", "").upper() == "GET"
        and request.content_type == FORM
    )


def _whole_query(url: URL, form: bytes) -> Mapping[str, str]:
    """That of the URL, and before what it leaves to the form: there googleapiclient puts the token of each next page
    (`methodNext`), beside a form that has gone to the server already."""
    parts = url.raw_query_string, form.decode("latin-1")
    return URL.build(query_string="&".join(filter(None, parts)), encoded=True).query


def _traceparent(request: web.Request) -> str | None:
    """None for one that is not valid, or more than one: a request is none the worse for it (W3C Trace Context)."""
    sent = request.headers.getall("traceparent", [])
    return read_traceparent(sent[0]) if len(sent) == 1 else None


async def _body(request: web.Request) -> bytes:
    try:
        async with asyncio.timeout(BODY_LIMIT):
            return await request.read()
    except TimeoutError as error:
        raise web.HTTPRequestTimeout from error
    except (web.RequestPayloadError, HttpProcessingError) as error:
        raise InvalidRequest("resource", "The body is not in the encoding that its Content-Encoding names.") from error
