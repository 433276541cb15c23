"""The Compute REST paths. Each handler reads, calls one verb, writes; errors become envelopes in `api.envelope`."""

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from imageopsd.api.pages import ListQuery
from imageopsd.engine.imageops import ImageOps
from imageopsd.model.errors import InvalidRequest
from imageopsd.model.image import Image
from imageopsd.model.names import ANY_PROJECT, check_project
from imageopsd.model.operation import Operation
from imageopsd.model.requests import AnyRequest, InsertImage, PatchImage, check
from imageopsd.wire.compute import encode, encode_list, read_image, read_patch
from imageopsd.wire.json_body import parse

VERSION = "v1"

WAIT_LIMIT = 45.0
"""Seconds until `operations.wait` answers with the operation as it is: googleapiclient gives up on its socket
after 60 s, and a client that is answered at once with RUNNING would spin."""

ANONYMOUS = "anonymous"
"""The `user` of a request on a listener without authentication."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class ComputeApi:
    """Routes under `/compute/v1/`. `wait_limit` in seconds."""

    def __init__(self, ops: ImageOps, *, wait_limit: float = WAIT_LIMIT) -> None:
        self._ops = ops
        self._wait_limit = wait_limit

    def routes(self) -> list[web.RouteDef]:
        root = f"/compute/{VERSION}/projects/{{project}}/global"
        return [
            web.post(f"{root}/images", self.insert_image),
            web.get(f"{root}/images", self.list_images, allow_head=False),
            web.get(f"{root}/images/{{image}}", self.get_image, allow_head=False),
            web.patch(f"{root}/images/{{image}}", self.patch_image),
            web.get(f"{root}/operations", self.list_operations, allow_head=False),
            web.get(f"{root}/operations/{{operation}}", self.get_operation, allow_head=False),
            web.post(f"{root}/operations/{{operation}}/wait", self.wait_operation),
        ]

    async def insert_image(self, request: web.Request) -> web.Response:
        return await self._submit(
            InsertImage(
                project=request.match_info["project"],
                request_id=request.query.get("requestId"),
                image=read_image(await _body(request)),
                force_create=_boolean(request, "forceCreate"),
            )
        )

    async def patch_image(self, request: web.Request) -> web.Response:
        return await self._submit(
            PatchImage(
                project=request.match_info["project"],
                request_id=request.query.get("requestId"),
                image=request.match_info["image"],
                patch=read_patch(await _body(request)),
            )
        )

    async def _submit(self, request: AnyRequest) -> web.Response:
        return _answer(await self._ops.submit(check(request), user=ANONYMOUS, version=VERSION))

    async def get_image(self, request: web.Request) -> web.Response:
        return _answer(await self._ops.image(_project(request), request.match_info["image"]))

    async def list_images(self, request: web.Request) -> web.Response:
        query = ListQuery.of("images", request.query)
        after = query.after if query.newest_first else query.after_name
        page = await self._ops.images(_project(request), query.limit, after, query.newest_first)
        token = query.token((lambda i: int(i.id)) if query.newest_first else (lambda i: i.name), page)
        return _json(encode_list("compute#imageList", _project(request), "images", page, token))

    async def get_operation(self, request: web.Request) -> web.Response:
        return _answer(await self._ops.operation(_scope(request), request.match_info["operation"]))

    async def wait_operation(self, request: web.Request) -> web.Response:
        # the body is empty or the two bytes "" (npm): nothing is asked in it
        return _answer(await self._ops.wait(_scope(request), request.match_info["operation"], self._wait_limit))

    async def list_operations(self, request: web.Request) -> web.Response:
        query = ListQuery.of("operations", request.query)
        page = await self._ops.operations(_scope(request), query.limit, query.after, query.newest_first)
        token = query.token(lambda operation: int(operation.id), page)
        return _json(encode_list("compute#operationList", request.match_info["project"], "operations", page, token))


def _project(request: web.Request) -> str:
    return check_project(request.match_info["project"])


def _scope(request: web.Request) -> str | None:
    """The project whose operations are meant; `None` for all of them."""
    return None if request.match_info["project"] == ANY_PROJECT else _project(request)


async def _body(request: web.Request) -> Any:
    try:
        data = await request.read()
    except (web.RequestPayloadError, HttpProcessingError) as error:
        raise InvalidRequest("resource", "The body is not in the encoding that its Content-Encoding names.") from error
    if not data:
        raise InvalidRequest.missing("resource", "Expected a JSON object as the request's body")
    return parse(data, "resource")


def _boolean(request: web.Request, name: str) -> bool:
    text = request.query.get(name, "false")
    if text.lower() not in ("true", "false"):
        raise InvalidRequest.value(name, text, "Expected true or false")
    return text.lower() == "true"


def _answer(record: Operation | Image) -> web.Response:
    return _json(encode(record))


def _json(body: bytes) -> web.Response:
    return web.Response(body=body + b"\n", content_type="application/json", charset="utf-8")
