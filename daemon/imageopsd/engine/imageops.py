"""The verbs, the same for every door: make operations out of requests, read what became of them."""

from collections.abc import Callable
from datetime import datetime

import anyio
from msgspec.structs import replace

from imageopsd.engine.bus import EventBus
from imageopsd.model.errors import InvalidRequest, RequestError, Unavailable
from imageopsd.model.events import Accepted, Change, Failed
from imageopsd.model.image import Image, ImageStatus, reserved
from imageopsd.model.lifecycle import apply
from imageopsd.model.names import (
    IdSource,
    image_link,
    image_path,
    operation_link,
    operation_name,
    parse_image_reference,
)
from imageopsd.model.operation import ErrorEntry, Operation, Status
from imageopsd.model.requests import AnyRequest, InsertImage
from imageopsd.ports import Page, Store

Clock = Callable[[], datetime]


class ImageOps:
    """Every method raises a RequestError for what the caller did wrong. Requests come checked (`requests.check`)."""

    def __init__(self, store: Store, bus: EventBus, ids: IdSource, clock: Clock) -> None:
        self._store = store
        self._bus = bus
        self._ids = ids
        self._clock = clock
        self.draining = False

    async def submit(self, request: AnyRequest, *, user: str, version: str = "v1") -> Operation:
        """Records an operation for the request and returns it, durable; for a repeated request id the first one."""
        if self.draining:
            raise Unavailable("The daemon is shutting down; send the request again in a moment")
        try:
            return await self._accept(request, user, version)
        except RequestError:
            # what refuses it now may have come with its own first time: the name it took, a source gone since
            if request.request_id and (first := await self._store.repeated(request.project, request)):
                return first
            raise

    async def _accept(self, request: AnyRequest, user: str, version: str) -> Operation:
        now = self._clock()
        if isinstance(request, InsertImage):
            image = reserved(request.image, request.project, self._ids.next(now), now)
            if image.source_image:
                image = await self._with_source(image, request.project)
            return await self._record(request, image, "insert", user, version, now, reserve=image)
        image = await self._store.image(request.project, request.image)
        return await self._record(request, image, "patch", user, version, now)

    async def refuse(self, request: AnyRequest, error: RequestError, *, user: str) -> Operation:
        """Records an operation that ends at once with the error a REST caller would have been answered with: a job
        has nobody to answer, so its record must tell."""
        now = self._clock()
        name = str(request.image.name) if isinstance(request, InsertImage) else request.image
        target = Image(name=name)
        kind = "insert" if isinstance(request, InsertImage) else "patch"
        entry = ErrorEntry(code=error.code, message=error.message)
        return await self._record(request, target, kind, user, "v1", now, failure=entry, http_status=error.http_status)

    async def _record(
        self,
        request: AnyRequest,
        image: Image,
        kind: str,
        user: str,
        version: str,
        now: datetime,
        *,
        reserve: Image | None = None,
        failure: ErrorEntry | None = None,
        http_status: int = 0,
    ) -> Operation:
        project, name = request.project, str(image.name)
        number = self._ids.next(now)
        operation = Operation(
            id=str(number),
            name=operation_name(number),
            operation_type=kind,
            status=Status.PENDING,
            progress=0,
            insert_time=now,
            user=user,
            target_link=image_link(project, name, version),
            target_id=None if image.id is None else str(int(image.id)),
            self_link=operation_link(project, operation_name(number), version),
            client_operation_id=request.request_id,
        )
        event = Accepted() if failure is None else Failed(errors=(failure,), http_status=http_status)
        if isinstance(event, Failed):
            operation = apply(operation, event, now)
        accepted = await self._store.accept(
            operation, project, request, lane=image_path(project, name), reserve=reserve
        )
        if accepted.created:
            self._bus.publish(Change(event, accepted.operation, project, now))
        return accepted.operation

    async def _with_source(self, image: Image, project: str) -> Image:
        """The reserved image with its source image pinned: which one a name or family means is decided at admission."""
        source_project, name, family = parse_image_reference(str(image.source_image), project, "resource.sourceImage")
        find = self._store.newest_in_family if family else self._store.image
        source = await find(source_project, name)
        if source.status is ImageStatus.FAILED or (source.deprecated and source.deprecated.state != "DEPRECATED"):
            state = source.deprecated.state if source.deprecated else source.status
            raise InvalidRequest.value("resource.sourceImage", image.source_image, f"The image is {state}")
        return replace(image, source_image=source.self_link, source_image_id=str(source.id))

    # ------------------------------------------------------------------------------------------- reading

    async def operation(self, project: str | None, reference: str) -> Operation:
        return await self._store.operation(project, reference)

    async def operations(
        self, project: str | None, limit: int, after: int | None, newest_first: bool
    ) -> Page[Operation]:
        return await self._store.operations(project, limit, after, newest_first)

    async def wait(self, project: str | None, reference: str, limit: float) -> Operation:
        """The operation once it is DONE, or as it is after `limit` seconds."""
        operation = await self._store.operation(project, reference)
        with self._bus.end_of(operation.id) as ended, anyio.move_on_after(limit):
            # read again: it may have ended between the first read and the waiter's being there
            operation = await self._store.operation(project, reference)
            if operation.status is not Status.DONE:
                await ended.wait()
        return await self._store.operation(project, reference)

    async def image(self, project: str, reference: str) -> Image:
        return await self._store.image(project, reference)

    async def images(self, project: str, limit: int, after: str | int | None, newest_first: bool) -> Page[Image]:
        return await self._store.images(project, limit, after, newest_first)
