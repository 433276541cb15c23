"""What each verb asks of the backend, and how the catalogue looks afterwards."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from msgspec.structs import replace

from imageopsd.engine.asking import Asking
from imageopsd.engine.run import Run
from imageopsd.engine.source_keys import image_keys, machine_image_keys
from imageopsd.model.errors import (
    ConditionNotMet,
    InvalidRequest,
    NotFound,
    NotYet,
    PermanentFailure,
    QuotaExceeded,
    RequestError,
    ReservationExceeded,
    TemporaryFailure,
    Unavailable,
)
from imageopsd.model.events import Verb
from imageopsd.model.image import Image, ImageStatus, labelled, published
from imageopsd.model.image_changes import deprecated, patched
from imageopsd.model.keys import Keys
from imageopsd.model.machine_image import MachineImage, MachineImageStatus, MachineImageTask, asked
from imageopsd.model.machine_image import published as machine_image_published
from imageopsd.model.names import image_path
from imageopsd.model.quota import Metric, Remainder, refusal
from imageopsd.model.requests import (
    AnyRequest,
    DeleteImage,
    DeleteMachineImage,
    DeprecateImage,
    InsertImage,
    InsertMachineImage,
    LabelImage,
    LabelMachineImage,
    PatchImage,
)
from imageopsd.model.resource import Resource, resource_path
from imageopsd.model.time import Time
from imageopsd.ports import (
    Backend,
    CatalogueChange,
    Claim,
    DeleteTask,
    Forget,
    InsertTask,
    MachineImagePatchTask,
    PatchTask,
    Publish,
    Reporter,
    Store,
)

OpenKeys = Callable[[AnyRequest], Keys]


class Effects:
    """One method for the worker; it raises the BackendFailures that the worker decides on. Each call of the backend
    goes through `ask`."""

    def __init__(
        self, store: Store, backend: Backend, ask: Asking, clock: Callable[[], Time], open_keys: OpenKeys
    ) -> None:
        self._store = store
        self._backend = backend
        self._ask = ask
        self._clock = clock
        self._open_keys = open_keys

    async def carry_out(self, claim: Claim, run: Run) -> CatalogueChange:
        """Has the claimed operation's effect made. Nobody else works on its target meanwhile: that is its lane."""
        request, target = claim.request, claim.target
        match request, target:
            case InsertImage(), Image() as image:
                return await self._insert(claim, image, run)
            case ((PatchImage() | DeprecateImage() as wanted), Image() as image):
                return await self._change(claim, image, _changed(image, wanted, self._clock()), run)
            case LabelImage(labels=labels, label_fingerprint=seen), Image() as image:
                _check_seen(seen, image)
                return await self._change(claim, image, labelled(image, labels), run)
            case DeleteImage(), Image() as image:
                if image.status is ImageStatus.READY:  # one whose bytes are lost stays so, should this fail
                    await self._store.show(claim, replace(image, status=ImageStatus.DELETING))
                await self.remove(claim, run)
                return Forget(int(image.id or 0))
            case InsertMachineImage(machine_image=wanted), MachineImage() as machine_image:
                return await self._insert_machine_image(claim, asked(machine_image, wanted), machine_image, run)
            case LabelMachineImage(labels=labels, label_fingerprint=seen), MachineImage() as machine_image:
                _check_seen(seen, machine_image)
                return await self._change_machine_image(claim, machine_image, labelled(machine_image, labels), run)
            case DeleteMachineImage(), MachineImage() as machine_image:
                if machine_image.status is MachineImageStatus.READY:
                    await self._store.show(claim, replace(machine_image, status=MachineImageStatus.DELETING))
                await self.remove(claim, run)
                return Forget(int(machine_image.id or 0))
        # an operation before this one in the lane has removed it
        raise _refused(NotFound(resource_path(request.collection, claim.project, request.target)))

    async def remove(self, claim: Claim, run: Run) -> None:
        """Has the backend remove the claim's target: what is to go, or what this or an earlier holder may have made."""
        match claim.target:
            case Image() as image:
                task = _removal(claim, image)
                await self._ask(Verb.DELETE_IMAGE, self._backend.delete_image(task, run), task.operation_id)
            case MachineImage() as machine_image:
                task = _removal(claim, machine_image)
                gone = self._backend.delete_machine_image(task, run)
                await self._ask(Verb.DELETE_MACHINE_IMAGE, gone, task.operation_id)
        run.doubtful = False

    async def _insert_machine_image(
        self, claim: Claim, wanted: MachineImage, reserved: MachineImage, run: Run
    ) -> CatalogueChange:
        await self._store.show(claim, replace(reserved, status=MachineImageStatus.UPLOADING))
        keys = machine_image_keys(self._opened(claim), claim.project, wanted)
        left = await self._left(claim)
        task = MachineImageTask(claim.operation.id, claim.project, wanted, keys, _amount(left, Metric.STORED_BYTES))
        with _refusing(left):
            facts = await self._ask(
                Verb.INSERT_MACHINE_IMAGE, self._backend.insert_machine_image(task, run), task.operation_id
            )
        stored_bytes = facts.stored_bytes or 0
        await self._settle(claim, 0, stored_bytes, run)
        return Publish(machine_image_published(reserved, facts), stored_bytes)

    async def _insert(self, claim: Claim, image: Image, run: Run) -> CatalogueChange:
        source = await self._source(image)
        keys = image_keys(self._opened(claim), source)
        left = await self._left(claim)
        task = InsertTask(
            operation_id=claim.operation.id,
            project=claim.project,
            image=image,
            source=source,
            force=isinstance(claim.request, InsertImage) and claim.request.force_create,
            checkpoint=claim.checkpoint,
            reserved_bytes=_amount(left, Metric.STORED_BYTES),
            reserved_gb=_amount(left, Metric.IMAGE_GB),
            keys=keys,
        )
        with _refusing(left):
            facts = await self._ask(Verb.INSERT_IMAGE, self._backend.insert_image(task, run), task.operation_id)
        stored_bytes = facts.stored_bytes or 0
        size_gb = facts.disk_size_gb
        await self._settle(claim, size_gb, stored_bytes, run)
        return Publish(published(image, facts), stored_bytes)

    async def _left(self, claim: Claim) -> Mapping[Metric, Remainder]:
        """What the quotas leave for what is made; nothing is asked where there are none."""
        return await self._store.left(claim) if self._store.quotas.of(claim.project) else {}

    async def _settle(self, claim: Claim, size_gb: int, stored_bytes: int, run: Run) -> None:
        """Has the real size fit into the project's quotas before anybody can see the result. Raises QuotaExceeded after
        what does not fit is removed again; if that fails, the next try finds it made and comes here once more."""
        if not self._store.quotas.of(claim.project):
            return
        run.doubtful = True
        try:
            await self._store.settle(claim, size_gb, stored_bytes)
        except QuotaExceeded:
            await self.remove(claim, run)
            raise

    async def _change(self, claim: Claim, before: Image, after: Image, report: Reporter) -> CatalogueChange:
        if after != before:
            await self._ask(
                Verb.PATCH_IMAGE,
                self._backend.patch_image(PatchTask(claim.operation.id, claim.project, before, after), report),
                claim.operation.id,
            )
        return Publish(after)

    async def _change_machine_image(
        self, claim: Claim, before: MachineImage, after: MachineImage, report: Reporter
    ) -> CatalogueChange:
        if after != before:
            task = MachineImagePatchTask(claim.operation.id, claim.project, before, after)
            await self._ask(
                Verb.PATCH_MACHINE_IMAGE, self._backend.patch_machine_image(task, report), claim.operation.id
            )
        return Publish(after)

    def _opened(self, claim: Claim) -> Keys:
        """The customer's keys. Raises PermanentFailure, and TemporaryFailure while the daemon's own cannot be read."""
        try:
            return self._open_keys(claim.request)
        except Unavailable as error:
            raise TemporaryFailure(error.code, error.message) from error
        except RequestError as error:
            raise _refused(error) from error

    async def _source(self, image: Image) -> Image | None:
        """The image to copy, when there is one: it must be there by now."""
        if image.source_image is None or image.source_image_id is None:
            return None
        project = image.source_image.partition("/projects/")[2].partition("/")[0]
        try:
            source = await self._store.image(project, image.source_image_id)
        except NotFound as error:
            raise _refused(error) from error
        if source.status is ImageStatus.FAILED:  # its bytes were lost since the copy was asked for
            name = str(image.source_image)
            raise _refused(InvalidRequest.value("resource.sourceImage", name, f"The image is {source.status}"))
        if source.status is not ImageStatus.READY:
            raise NotYet(f"Waiting for '{image_path(project, str(source.name))}', which is {source.status}")
        return source


def undone(request: AnyRequest, target: Resource | None) -> CatalogueChange:
    """How the catalogue looks when the effect was not made: what was to be made never was, what was to be removed
    is there as before."""
    match request, target:
        case ((InsertImage() | InsertMachineImage()), Image() | MachineImage() as reserved):
            return Forget(int(reserved.id or 0))
        case DeleteImage(), Image(status=ImageStatus.READY | ImageStatus.DELETING) as image:
            return Publish(replace(image, status=ImageStatus.READY))
        case DeleteMachineImage(), MachineImage(
            status=MachineImageStatus.READY | MachineImageStatus.DELETING
        ) as machine_image:
            return Publish(replace(machine_image, status=MachineImageStatus.READY))
    return None


def _changed(image: Image, request: PatchImage | DeprecateImage, now: Time) -> Image:
    """What a change means may depend on what the operations before it in the lane have made of the image."""
    try:
        if isinstance(request, PatchImage):
            return patched(image, request.patch, now)
        return deprecated(image, request.deprecation, now)
    except InvalidRequest as error:
        raise _refused(error) from error


def _amount(left: Mapping[Metric, Remainder], metric: Metric) -> int | None:
    return left[metric].amount if metric in left else None


@contextmanager
def _refusing(left: Mapping[Metric, Remainder]) -> Iterator[None]:
    """What finds its bounds too narrow is refused by the limit that has set them. Raises QuotaExceeded."""
    try:
        yield
    except ReservationExceeded as error:
        metric = Metric(error.metric)
        raise refusal(metric, left[metric].limit) from error


def _check_seen(fingerprint: str, resource: Resource) -> None:
    """The labels may have changed since admission, by an operation before this one in the lane."""
    if fingerprint != resource.label_fingerprint:
        raise _refused(ConditionNotMet())


def _removal(claim: Claim, resource: Resource) -> DeleteTask:
    return DeleteTask(claim.operation.id, claim.project, int(resource.id or 0), str(resource.name))


def _refused(error: RequestError) -> PermanentFailure:
    """What a caller would have been refused with, as the end of an operation."""
    return PermanentFailure(error.code, error.message, error.http_status)
