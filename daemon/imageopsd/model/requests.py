"""What callers may ask for. The rules that a request must meet stand in `model.rules`."""

from collections.abc import Collection
from datetime import datetime, timedelta
from hashlib import sha256
from typing import ClassVar, Self

import msgspec

from imageopsd.model.image import DeprecationStatus, Image, ImagePatch, encode_hook
from imageopsd.model.machine_image import MachineImage
from imageopsd.model.operation import Record
from imageopsd.model.resource import IMAGES, MACHINE_IMAGES

HEAD_START = timedelta(minutes=10)
"""What one step of priority is worth: a request is dealt with as if it had come that much earlier. So whatever waits
long enough comes before every priority."""

PRIORITIES = range(-9, 10)


class Repeats(Record, frozen=True):
    """A request that is made again: the operation that failed, and the group that all its repeats are in."""

    operation: str
    group: str


class Request(Record, frozen=True):
    """Base of all requests. `request_id` is a lower-case UUID or `None`; `ignored` are the names of known fields
    in the body that this verb does not change, for a warning on the record; `priority` is one of PRIORITIES;
    `deadline`, in seconds from the acceptance, is when nobody wants the effect any more; `traceparent` names the
    submitter's span, as `trace.read_traceparent` gives it. `keys` are the customer's keys that the request came with,
    sealed; they last until the operation ends and are no part of its record."""

    operation_type: ClassVar[str]
    """What `Operation.operationType` calls it."""

    undoable: ClassVar[bool] = False
    """Whether work on it can be stopped in the middle and nothing is left: true of what makes something."""

    collection: ClassVar[str] = IMAGES
    """Where its target lives: `images` or `machineImages`."""

    project: str
    request_id: str | None = None
    ignored: tuple[str, ...] = ()
    priority: int = 0
    deadline: float | None = None
    repeats: Repeats | None = None
    keys: str | None = None
    traceparent: str | None = None

    def rank(self, accepted: datetime) -> datetime:
        """When it would have come without its priority: the earlier, the sooner it is its turn."""
        return accepted - self.priority * HEAD_START

    def due(self, accepted: datetime) -> datetime | None:
        """When its deadline is, if it has one."""
        return None if self.deadline is None else accepted + timedelta(seconds=self.deadline)

    @property
    def target(self) -> str:
        """The target's name, or its numeric id as the caller wrote it."""
        raise NotImplementedError

    @property
    def made(self) -> Image | MachineImage | None:
        """What it makes, as it was asked for; `None` where it changes or removes what is there."""
        return None

    def fingerprint(self) -> bytes:
        """Equal for requests that ask for the same; neither the request id itself nor who traces it is part of it. Of a
        customer's key its SHA-256 is, which the resource shows anyway."""
        same = msgspec.structs.replace(self, request_id=None, keys=None, traceparent=None)
        return sha256(msgspec.json.encode(same, enc_hook=encode_hook, order="sorted")).digest()

    def repeats_one(self, fingerprint: bytes, targets: Collection[str]) -> bool:
        """Whether it asks for the same as the request with that fingerprint, whose target had these names: callers may
        name what they change by its name or by its id, and now by the one and then by the other."""
        said = (self, *(self.aimed_at(target) for target in targets)) if self.target in targets else (self,)
        return any(request.fingerprint() == fingerprint for request in said)

    def aimed_at(self, target: str) -> Self:
        """The same with another name for its target; what it makes has only the one."""
        return self


class InsertImage(Request, frozen=True, kw_only=True, tag_field="method", tag="images.insert"):
    """Make an image from exactly one source."""

    operation_type = "insert"
    undoable = True
    image: Image
    force_create: bool = False

    @property
    def target(self) -> str:
        return str(self.image.name)

    @property
    def made(self) -> Image:
        return self.image


class ChangeImage(Request, frozen=True, kw_only=True):
    """Base of the requests on an image that is there."""

    image: str

    @property
    def target(self) -> str:
        return self.image

    def aimed_at(self, target: str) -> Self:
        return msgspec.structs.replace(self, image=target)


class PatchImage(ChangeImage, frozen=True, kw_only=True, tag_field="method", tag="images.patch"):
    """Change an image's family, description or deprecation."""

    operation_type = "patch"
    patch: ImagePatch


class DeprecateImage(ChangeImage, frozen=True, kw_only=True, tag_field="method", tag="images.deprecate"):
    """Set an image's deprecation; ACTIVE takes it away."""

    operation_type = "deprecate"
    deprecation: DeprecationStatus


class LabelImage(ChangeImage, frozen=True, kw_only=True, tag_field="method", tag="images.setLabels"):
    """Replace all labels of an image, if `label_fingerprint` is still that of its labels."""

    operation_type = "setLabels"
    labels: dict[str, str]
    label_fingerprint: str


class DeleteImage(ChangeImage, frozen=True, kw_only=True, tag_field="method", tag="images.delete"):
    """Remove an image and its bytes."""

    operation_type = "delete"


class InsertMachineImage(Request, frozen=True, kw_only=True, tag_field="method", tag="machineImages.insert"):
    """Make a machine image of an instance: all its disks and its properties, or nothing."""

    operation_type = "insert"
    undoable = True
    collection = MACHINE_IMAGES
    machine_image: MachineImage

    @property
    def target(self) -> str:
        return str(self.machine_image.name)

    @property
    def made(self) -> MachineImage:
        return self.machine_image


class ChangeMachineImage(Request, frozen=True, kw_only=True):
    """Base of the requests on a machine image that is there."""

    collection = MACHINE_IMAGES
    machine_image: str

    @property
    def target(self) -> str:
        return self.machine_image

    def aimed_at(self, target: str) -> Self:
        return msgspec.structs.replace(self, machine_image=target)


class LabelMachineImage(
    ChangeMachineImage, frozen=True, kw_only=True, tag_field="method", tag="machineImages.setLabels"
):
    """Replace all labels of a machine image, if `label_fingerprint` is still that of its labels."""

    operation_type = "setLabels"
    labels: dict[str, str]
    label_fingerprint: str


class DeleteMachineImage(ChangeMachineImage, frozen=True, kw_only=True, tag_field="method", tag="machineImages.delete"):
    """Remove a machine image and its bytes."""

    operation_type = "delete"


AnyRequest = (
    InsertImage
    | PatchImage
    | DeprecateImage
    | LabelImage
    | DeleteImage
    | InsertMachineImage
    | LabelMachineImage
    | DeleteMachineImage
)
