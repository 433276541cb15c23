"""The Compute REST paths over HTTP: `/compute/{v1,beta}/…` and `/batch/compute/{v1,beta}`, one state behind them."""

import asyncio
from functools import partial

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from msgspec.structs import replace

from imageopsd.api import batch, openapi
from imageopsd.api.access import Access, caller
from imageopsd.api.calls import Call, Dispatcher, Heard
from imageopsd.api.envelope import answer_to_error
from imageopsd.api.images import ImageCalls
from imageopsd.api.machine_images import MachineImageCalls
from imageopsd.api.neighbours import Neighbours
from imageopsd.api.operations import OperationCalls
from imageopsd.engine.imageops import ImageOps
from imageopsd.model.errors import InvalidRequest
from imageopsd.model.trace import read_traceparent

WAIT_LIMIT = 45.0
"""Seconds until `operations.wait` answers with the operation as it is: googleapiclient gives up on its socket
after 60 s, and a client that is answered at once with RUNNING would spin."""
BODY_LIMIT = 30.0
"""Seconds until the whole body of a request must be there; none is larger than a megabyte."""


class ComputeApi:
    """`access` is whose middleware stands before it, or nobody is asked for a token; `heard` counts. `wait_limit` in
    seconds."""

    def __init__(
        self,
        ops: ImageOps,
        access: Access | None = None,
        heard: Heard = lambda *call: None,
        *,
        wait_limit: float = WAIT_LIMIT,
    ) -> None:
        routes = [
            *ImageCalls(ops).routes(),
            *MachineImageCalls(ops).routes(),
            *OperationCalls(ops, wait_limit).routes(),
            *Neighbours(ops).routes(),
        ]
        self._dispatcher = Dispatcher(routes, access or Access(None), heard)
        self._describe = partial(openapi.document, routes)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.route("*", "/compute/{path:.*}", self._call),
            web.post("/batch/compute/{version:v1|beta}", self._batch),
            web.get("/openapi.json", self._openapi),
        ]

    async def _call(self, request: web.Request) -> web.Response:
        try:
            body = await _body(request)
        except Exception as error:
            refusal = answer_to_error(error, request.method, request.path)
            return self._dispatcher.told(request.method, request.path, refusal).response()
        call = Call(
            method=request.method,
            path=request.rel_url.raw_path,
            query=request.query,
            body=body,
            caller=caller(request),
            traceparent=_traceparent(request),
        )
        return (await self._dispatcher.answer(call)).response()

    async def _openapi(self, request: web.Request) -> web.Response:
        """What stands here, as OpenAPI; made when somebody asks, which is seldom."""
        return web.json_response(self._describe())

    async def _batch(self, request: web.Request) -> web.Response:
        parts = batch.read(request.headers.get("Content-Type", ""), await _body(request))
        who = caller(request)  # whatever the parts' own headers say: one request, one token
        common = {"caller": who, "traceparent": _traceparent(request)}
        answers = [(part, await self._dispatcher.answer(replace(part.call, **common))) for part in parts]
        content_type, body = batch.write(answers)
        return web.Response(body=body, headers={"Content-Type": content_type})


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
