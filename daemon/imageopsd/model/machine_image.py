"""The MachineImage resource, field for field as Compute's `MachineImage` schema names it, and what may happen to one.

v1 and beta have the same fields. A machine image never changes after it is made, but for its labels and its policy.
"""

from enum import StrEnum
from typing import Any

import msgspec
from msgspec.structs import replace

from imageopsd.model.image import CustomerEncryptionKey, Int64, Part
from imageopsd.model.names import project_link
from imageopsd.model.operation import Record
from imageopsd.model.references import parse_instance_reference
from imageopsd.model.time import Time

OUTPUT_ONLY = frozenset(
    {
        "creationTimestamp",
        "id",
        "instanceProperties",
        "kind",
        "labelFingerprint",
        "satisfiesPzi",
        "satisfiesPzs",
        "savedDisks",
        "selfLink",
        "sourceInstanceProperties",
        "status",
        "totalStorageBytes",
    }
)
"""Fields that a request may carry and the service ignores (`schemas_machine_image.v1.json`: output_only;
`labelFingerprint` is made by the service alone)."""


class MachineImageStatus(StrEnum):
    CREATING = "CREATING"
    DELETING = "DELETING"
    INVALID = "INVALID"
    READY = "READY"
    UPLOADING = "UPLOADING"


class SourceDiskEncryptionKey(Part, frozen=True):
    """The key that `source_disk`, a disk's URL, is encrypted with."""

    source_disk: str | None = None
    disk_encryption_key: CustomerEncryptionKey | None = None


class MachineImageParams(Part, frozen=True):
    """`included_disks` and `excluded_disks` are device names; at most one of the two is given."""

    included_disks: tuple[str, ...] = ()
    excluded_disks: tuple[str, ...] = ()
    resource_manager_tags: dict[str, str] | None = None


class MachineImage(Part, frozen=True, tag_field="kind", tag="compute#machineImage"):
    """`total_storage_bytes` is what the copies of all disks take. What describes the instance is output: it is kept
    as JSON that whoever made it has checked, and no rule of ours reads it."""

    id: Int64 | None = None
    name: str | None = None
    description: str | None = None
    status: MachineImageStatus | None = None
    creation_timestamp: Time | None = None
    self_link: str | None = None
    source_instance: str | None = None
    source_instance_properties: dict[str, Any] | None = None
    instance_properties: dict[str, Any] | None = None
    saved_disks: tuple[dict[str, Any], ...] = ()
    total_storage_bytes: Int64 | None = None
    storage_locations: tuple[str, ...] = ()
    labels: dict[str, str] | None = None
    label_fingerprint: str | None = None
    guest_flush: bool | None = None
    params: MachineImageParams | None = None
    machine_image_encryption_key: CustomerEncryptionKey | None = None
    source_disk_encryption_keys: tuple[SourceDiskEncryptionKey, ...] = ()
    satisfies_pzi: bool | None = None
    satisfies_pzs: bool | None = None


class MachineImageFacts(Record, frozen=True):
    """What only the backend can know of a finished machine image. `properties` and `instance_properties` have the
    shapes of Compute's SourceInstanceProperties and InstanceProperties, `saved_disks` are SavedDisks, all ready to be
    shown. `total_storage_bytes` is what the caller reads and `stored_bytes` what the bundle takes on the device,
    `None` where the backend cannot tell."""

    total_storage_bytes: int
    properties: dict[str, Any]
    instance_properties: dict[str, Any] | None = None
    saved_disks: tuple[dict[str, Any], ...] = ()
    stored_bytes: int | None = None


class MachineImageKeys(msgspec.Struct, frozen=True):
    """Keys in clear, 32 bytes each: the one to encrypt all disks with, `None` for none, and those of source disks, by
    their partial URLs."""

    bundle: bytes | None = None
    disks: dict[str, bytes] = {}

    def __repr__(self) -> str:
        return "MachineImageKeys(…)"


class MachineImageTask(msgspec.Struct, frozen=True):
    """Make `machine_image` (reserved: its id, name and source instance are set) as its input fields say. `keys` are the
    customer's, opened. `reserved_bytes` is what its disks may take of the device together, if somebody counts."""

    operation_id: str
    project: str
    machine_image: MachineImage
    keys: MachineImageKeys = MachineImageKeys()
    reserved_bytes: int | None = None


def machine_image_path(project: str, name: str) -> str:
    """The partial URL that error texts name a machine image by."""
    return f"projects/{project}/global/machineImages/{name}"


def machine_image_link(project: str, name: str, version: str = "v1") -> str:
    return f"{project_link(project, version)}/global/machineImages/{name}"


def reserved(wanted: MachineImage, project: str, machine_image_id: int, now: Time) -> MachineImage:
    """How the machine image looks from admission on, while its disks are not there yet. What is input only speaks to
    the service and is no part of the resource; `asked` gives it back to the backend."""
    assert wanted.name is not None  # check_machine_image
    assert wanted.source_instance is not None
    return replace(
        wanted,
        id=Int64(machine_image_id),
        status=MachineImageStatus.CREATING,
        creation_timestamp=now,
        self_link=machine_image_link(project, wanted.name),
        source_instance=parse_instance_reference(wanted.source_instance, project, "resource.sourceInstance").link,
        guest_flush=None,
        params=None,
        source_disk_encryption_keys=(),
    )


def asked(machine_image: MachineImage, wanted: MachineImage) -> MachineImage:
    """The reserved machine image with what its request said to the service alone: what a backend's task carries."""
    return replace(
        machine_image,
        guest_flush=wanted.guest_flush,
        params=wanted.params,
        source_disk_encryption_keys=wanted.source_disk_encryption_keys,
    )


def published(machine_image: MachineImage, facts: MachineImageFacts) -> MachineImage:
    """The reserved machine image once the backend has made it."""
    return replace(
        machine_image,
        status=MachineImageStatus.READY,
        total_storage_bytes=Int64(facts.total_storage_bytes),
        source_instance_properties=facts.properties,
        instance_properties=facts.instance_properties,
        saved_disks=facts.saved_disks,
    )
