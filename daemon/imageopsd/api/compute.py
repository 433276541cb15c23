"""The Compute REST paths over HTTP: `/compute/{v1,beta}/…` and `/batch/compute/{v1,beta}`, one state behind them."""

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from imageopsd.api import batch
from imageopsd.api.calls import Call, Dispatcher
from imageopsd.api.images import ImageCalls
from imageopsd.api.machine_images import MachineImageCalls
from imageopsd.api.neighbours import Neighbours
from imageopsd.api.operations import OperationCalls
from imageopsd.engine.imageops import ImageOps
from imageopsd.model.errors import InvalidRequest

WAIT_LIMIT = 45.0
"""Seconds until `operations.wait` answers with the operation as it is: googleapiclient gives up on its socket
after 60 s, and a client that is answered at once with RUNNING would spin."""


class ComputeApi:
    """`wait_limit` in seconds."""

    def __init__(self, ops: ImageOps, *, wait_limit: float = WAIT_LIMIT) -> None:
        self._dispatcher = Dispatcher(
            [
                *ImageCalls(ops).routes(),
                *MachineImageCalls(ops).routes(),
                *OperationCalls(ops, wait_limit).routes(),
                *Neighbours().routes(),
            ]
        )

    def routes(self) -> list[web.RouteDef]:
        return [
            web.route("*", "/compute/{path:.*}", self._call),
            web.post("/batch/compute/{version:v1|beta}", self._batch),
        ]

    async def _call(self, request: web.Request) -> web.Response:
        call = Call(
            method=request.method,
            path=request.rel_url.raw_path,
            query=request.query,
            body=await _body(request),
        )
        return (await self._dispatcher.answer(call)).response()

    async def _batch(self, request: web.Request) -> web.Response:
        parts = batch.read(request.headers.get("Content-Type", ""), await _body(request))
        answers = [(part, await self._dispatcher.answer(part.call)) for part in parts]
        content_type, body = batch.write(answers)
        return web.Response(body=body, headers={"Content-Type": content_type})


async def _body(request: web.Request) -> bytes:
    try:
        return await request.read()
    except (web.RequestPayloadError, HttpProcessingError) as error:
        raise InvalidRequest("resource", "The body is not in the encoding that its Content-Encoding names.") from error
