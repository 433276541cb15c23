"""The verbs, the same for every door: make operations out of requests, read what became of them."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from datetime import timedelta
from uuid import UUID, uuid5

import anyio
from msgspec.structs import replace

from imageopsd.engine.bus import EventBus
from imageopsd.engine.effects import undone
from imageopsd.model.access import Caller
from imageopsd.model.errors import (
    ConditionNotMet,
    InvalidRequest,
    NotRepeatable,
    QuotaExceeded,
    RequestError,
    StoreUnavailable,
    Unavailable,
)
from imageopsd.model.events import Accepted, CancelAsked, Cancelled, Change, Failed, KeysTurned, StoreTroubled
from imageopsd.model.image import DeprecationState, Image, ImageStatus, labelled, reserved
from imageopsd.model.keys import without_keyring, without_keys
from imageopsd.model.lifecycle import apply
from imageopsd.model.machine_image import MachineImage
from imageopsd.model.machine_image import reserved as reserved_machine_image
from imageopsd.model.names import (
    IdSource,
    operation_link,
    operation_name,
    operation_path,
    parse_image_reference,
    project_of,
)
from imageopsd.model.operation import ErrorEntry, Operation, OperationWarning, Status
from imageopsd.model.policy import Policy, replaced
from imageopsd.model.quota import Limit, Usage
from imageopsd.model.requests import (
    AnyRequest,
    InsertImage,
    InsertMachineImage,
    LabelImage,
    LabelMachineImage,
    Repeats,
)
from imageopsd.model.resource import IMAGES, Resource, resource_link, resource_path
from imageopsd.model.rules import check
from imageopsd.model.time import Clock, Time
from imageopsd.ports import Page, Store

Seal = Callable[[AnyRequest], AnyRequest]
Room = Callable[[], AbstractContextManager[None]]

OPERATION_GROUPS = UUID("0d2f61f0-6b1e-5a53-9a35-6f1a4c9be1d4")
"""Namespace of the groups that an operation and its repeats are in (RFC 9562, section 5.5). Never changes."""


class ImageOps:
    """Every method raises a RequestError for what the caller did wrong. Requests come checked (`rules.check`).
    `room` is entered while a request is accepted, or refuses it (`Backlog.entering`);
    `request_id_window` is for how many seconds a request id leads to its operation; `why_waiting` tells what an
    operation of a project waits for that could be started otherwise; `seal` takes customers' keys out of a request and
    puts them into it sealed (`Keyring.sealed`), or refuses them."""

    def __init__(
        self,
        store: Store,
        bus: EventBus,
        ids: IdSource,
        clock: Clock,
        *,
        room: Room = nullcontext,
        request_id_window: float = 14 * 86400,
        why_waiting: Callable[[str], str | None] = lambda project: None,
        seal: Seal = without_keyring,
    ) -> None:
        self._store = store
        self._bus = bus
        self._ids = ids
        self._clock = clock
        self._room = room
        self._why_waiting = why_waiting
        self._seal = seal
        self.draining = False
        self._unsealed = False
        self.configure(request_id_window=request_id_window)

    def configure(self, *, request_id_window: float) -> None:
        self._request_id_window = timedelta(seconds=request_id_window)

    async def submit(self, request: AnyRequest, *, by: Caller, version: str = "v1") -> Operation:
        """Records an operation for the request and returns it, durable; for a repeated request id the first one. Every
        door and every way to ask again comes through here, so it is here that the sources are checked."""
        by.check_sources(request)
        if self.draining:
            raise Unavailable("The daemon is shutting down; send the request again in a moment")
        request = self._sealed(request)
        try:
            with self._room():
                return await self._accept(request, by.name, version)
        except RequestError:
            # what refuses it now may have come with its own first time: the name it took, a source gone since
            if request.request_id and (first := await self._first(request)):
                return first
            raise
        except StoreUnavailable as error:
            self._bus.publish(StoreTroubled("recording a request", error))
            raise

    def _sealed(self, request: AnyRequest) -> AnyRequest:
        """The request with its keys sealed. That our own keys cannot be used is told once, not with each request."""
        try:
            sealed = self._seal(request)
        except Unavailable as error:
            if not self._unsealed:
                self._unsealed = True
                self._bus.publish(KeysTurned(str(error.__cause__ or error)))
            raise
        if self._unsealed and sealed.keys is not None:
            self._unsealed = False
            self._bus.publish(KeysTurned(None))
        return sealed

    async def _first(self, request: AnyRequest) -> Operation | None:
        window = self._clock() - self._request_id_window
        return await self._store.repeated(request.project, request, forget_requests_before=window)

    async def _accept(self, request: AnyRequest, user: str, version: str) -> Operation:
        now = self._clock()
        match request:
            case InsertImage():
                image, warnings = await self._reserved(request, now)
                warnings += [_undeclared(name) for name in request.ignored]
                return await self._record(request, image, user, version, now, warnings=warnings, reserve=image)
            case InsertMachineImage(machine_image=wanted):
                number = self._ids.next(now)
                made = labelled(reserved_machine_image(wanted, request.project, number, now), wanted.labels or {})
                return await self._record(request, made, user, version, now, reserve=made)
        find = self._store.image if request.collection == IMAGES else self._store.machine_image
        target: Resource = await find(request.project, request.target)
        if (
            isinstance(request, LabelImage | LabelMachineImage)
            and request.label_fingerprint != target.label_fingerprint
        ):
            raise ConditionNotMet
        warnings = [_ignored(name) for name in request.ignored]
        return await self._record(request, target, user, version, now, warnings=warnings)

    async def refuse(self, request: AnyRequest, error: RequestError, *, by: Caller) -> Operation:
        """Records an operation that ends at once with the error a REST caller would have been answered with: a job
        has nobody to answer, so its record must tell."""
        with suppress(RequestError):  # so that it has the same fingerprint as when it comes again
            request = self._seal(request)
        request = without_keys(request)
        entry = ErrorEntry(code=error.code, message=error.message)
        failed = Failed(errors=(entry,), http_status=error.http_status)
        nothing = Image(name=request.target)
        return await self._record(request, nothing, by.name, "v1", self._clock(), failed=failed)

    async def _record(
        self,
        request: AnyRequest,
        target: Resource,
        user: str,
        version: str,
        now: Time,
        *,
        warnings: Sequence[OperationWarning] = (),
        reserve: Resource | None = None,
        failed: Failed | None = None,
    ) -> Operation:
        collection, project, name = request.collection, request.project, str(target.name)
        number = self._ids.next(now)
        operation = Operation(
            id=str(number),
            name=operation_name(number),
            operation_type=request.operation_type,
            status=Status.PENDING,
            progress=0,
            insert_time=now,
            user=user,
            target_link=resource_link(collection, project, name, version),
            target_id=None if target.id is None else str(int(target.id)),
            self_link=operation_link(project, operation_name(number), version),
            client_operation_id=request.request_id,
            operation_group_id=request.repeats.group if request.repeats else None,
            description=f"Repeats {request.repeats.operation}" if request.repeats else None,
            warnings=tuple(warnings),
        )
        if failed is not None:
            operation = apply(operation, failed, now)
        try:
            accepted = await self._store.accept(
                operation,
                project,
                request,
                lane=resource_path(collection, project, name),
                reserve=reserve,
                forget_requests_before=now - self._request_id_window,
            )
        except QuotaExceeded as refusal:  # an operation tells it, as GCE's do, through whatever door it came
            ended = Failed(errors=(refusal.entry,), http_status=refusal.http_status)
            return await self._record(request, target, user, version, now, warnings=warnings, failed=ended)
        if accepted.created:
            event = failed or Accepted(request.due(now))
            self._bus.publish(Change(event, accepted.operation, project, now, request.traceparent))
        return accepted.operation

    async def _reserved(self, request: InsertImage, now: Time) -> tuple[Image, list[OperationWarning]]:
        """The image the request will make. Which one a source image's name or family means is decided here, once."""
        image = reserved(request.image, request.project, self._ids.next(now), now)
        if not image.source_image:
            return image, []
        project, name, family = parse_image_reference(image.source_image, request.project, "resource.sourceImage")
        find = self._store.newest_in_family if family else self._store.image
        source = await find(project, name)
        state = source.deprecated.state if source.deprecated else None
        if state in (DeprecationState.OBSOLETE, DeprecationState.DELETED) or source.status is ImageStatus.FAILED:
            raise InvalidRequest.value(
                "resource.sourceImage", image.source_image, f"The image is {state or source.status}"
            )
        pinned = replace(image, source_image=source.self_link, source_image_id=str(source.id))
        return pinned, [_deprecated(source)] if state == DeprecationState.DEPRECATED else []

    # ----------------------------------------------------------------------------- stopping, doing again

    async def cancel(self, project: str | None, reference: str, asked: Cancelled) -> Operation:
        """Has the operation end before its effect, if that is still possible, and returns it as it is then: one that
        is worked on ends as soon as its backend has let go, or truthfully with success if that came first. Asking
        again, or for one that is DONE, changes nothing."""
        now = self._clock()
        answer = await self._store.cancel(project, reference, asked, lambda before: apply(before, asked, now), undone)
        if answer.ended:
            self._bus.publish(Change(asked, answer.operation, answer.project, now, answer.traceparent))
        elif answer.operation.status is not Status.DONE:
            self._bus.publish(CancelAsked(answer.operation.id, asked))
        return answer.operation

    async def retry(
        self,
        project: str | None,
        reference: str,
        *,
        request_id: str | None,
        by: Caller,
        version: str = "v1",
        traceparent: str | None = None,
    ) -> Operation:
        """Does what a failed operation was to do, as a new one in the same group (`operationGroupId`) that says which
        it repeats. Whether it may be done is asked of `by`, not of who asked first. Raises NotRepeatable for one that
        has not failed."""
        first, where, request = await self._store.request_of(project, reference)
        if first.error is None:
            state = "succeeded" if first.status is Status.DONE else f"is {first.status}"
            raise NotRepeatable(operation_path(where, first.name), state)
        group = first.operation_group_id or str(uuid5(OPERATION_GROUPS, first.name))
        again = replace(request, request_id=request_id, repeats=Repeats(first.name, group), traceparent=traceparent)
        return await self.submit(check(again), by=by, version=version)

    # ------------------------------------------------------------------------------------------- reading

    async def operation(self, project: str | None, reference: str) -> Operation:
        return self._explained(await self._store.operation(project, reference))

    async def operations(
        self, project: str | None, limit: int, after: int | None, newest_first: bool
    ) -> Page[Operation]:
        page = await self._store.operations(project, limit, after, newest_first)
        return replace(page, items=[self._explained(operation) for operation in page.items])

    def _explained(self, operation: Operation) -> Operation:
        """A PENDING operation with what it waits for; what changes by the moment is not in the record."""
        if operation.status is not Status.PENDING or operation.status_message is not None:
            return operation
        return replace(operation, status_message=self._why_waiting(project_of(operation.self_link)))

    async def wait(self, project: str | None, reference: str, limit: float) -> Operation:
        """The operation once it is DONE, or as it is after `limit` seconds."""
        operation = await self._store.operation(project, reference)
        with self._bus.end_of(operation.id) as ended, anyio.move_on_after(limit):
            # read again: it may have ended between the first read and the waiter's being there
            operation = await self._store.operation(project, reference)
            if operation.status is not Status.DONE:
                await ended.wait()
        return await self.operation(project, reference)

    async def image(self, project: str, reference: str) -> Image:
        return await self._store.image(project, reference)

    async def machine_image(self, project: str, reference: str) -> MachineImage:
        return await self._store.machine_image(project, reference)

    async def machine_images(
        self, project: str, limit: int, after: str | int | None, newest_first: bool
    ) -> Page[MachineImage]:
        return await self._store.machine_images(project, limit, after, newest_first)

    async def newest_in_family(self, project: str, family: str) -> Image:
        return await self._store.newest_in_family(project, family)

    async def images(self, project: str, limit: int, after: str | int | None, newest_first: bool) -> Page[Image]:
        return await self._store.images(project, limit, after, newest_first)

    async def quotas(self, project: str) -> list[tuple[Limit, Usage]]:
        """Every limit that holds for a project, and how far it is reached."""
        ledger = {usage.metric: usage for usage in await self._store.usage(project, self._clock())}
        return [(limit, ledger.get(metric, Usage(project, metric))) for metric, limit in self._store.quotas.of(project)]

    # ------------------------------------------------- what is not the making of an image, and has no operation

    async def delete_operation(self, project: str, reference: str) -> None:
        await self._store.delete_operation(project, reference)

    async def policy(self, collection: str, project: str, reference: str) -> Policy:
        return await self._store.policy(collection, project, reference)

    async def set_policy(self, collection: str, project: str, reference: str, wanted: Policy) -> Policy:
        return await self._store.set_policy(collection, project, reference, lambda now: replaced(now, wanted))


def _deprecated(source: Image) -> OperationWarning:
    """The warning for the use of a deprecated source; it names the replacement where there is one."""
    link, replacement = str(source.self_link), (source.deprecated and source.deprecated.replacement) or ""
    advice = f" A suggested replacement is '{replacement}'." if replacement else ""
    return OperationWarning.of(
        "DEPRECATED_RESOURCE_USED",
        f"The resource '{link}' is deprecated.{advice}",
        resource_name=link,
        replacement=replacement,
    )


def _undeclared(name: str) -> OperationWarning:
    """The warning for what is no field of the resource, and is let pass because a client in use sends it."""
    return OperationWarning.of(
        "UNDECLARED_PROPERTIES",
        f"The field 'resource.{name}' is not one of an Image and was ignored.",
        field=f"resource.{name}",
    )


def _ignored(name: str) -> OperationWarning:
    """The warning for a field that is known but that the verb does not change."""
    return OperationWarning.of(
        "SCHEMA_VALIDATION_IGNORED",
        f"The field 'resource.{name}' was ignored: images.patch changes only family, description and deprecated.",
        field=f"resource.{name}",
    )
