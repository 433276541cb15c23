"""What a machine image shows of the instance it was made from, in the shapes of Compute's schema."""

from collections.abc import Sequence, Set
from typing import Any

import msgspec
from msgspec.structs import replace

from imageopsd.backends.local.instances import AttachedDisk, Instance, invalid_resource
from imageopsd.model.errors import InvalidRequest
from imageopsd.model.image import GIB, encode_hook
from imageopsd.model.names import full_link
from imageopsd.model.operation import Record
from imageopsd.model.references import Reference, parse_disk_reference

ONLY_INSTANCE_PROPERTIES = frozenset(
    {
        "advancedMachineFeatures",
        "confidentialInstanceConfig",
        "localSsdEncryptionMode",
        "networkPerformanceConfig",
        "privateIpv6GoogleAccess",
        "reservationAffinity",
        "resourcePolicies",
        "shieldedInstanceConfig",
        "workloadIdentityConfig",
    }
)
ONLY_SOURCE_PROPERTIES = frozenset({"deletionProtection", "postKeyRevocationActionType"})
ONLY_ATTACHED = frozenset({"architecture", "savedState", "shieldedInstanceInitialState"})
ONLY_SAVED = frozenset({"diskType"})
"""What only one of the two forms of an instance has, and of its disks (`schemas_machine_image.v1.json`). Compute adds
nothing to SourceInstanceProperties any more and points to InstanceProperties."""

UP_TO_DATE = "UP_TO_DATE"
"""`storageBytesStatus`: no storage is shared, so nothing will be adjusted."""


def disk_of(attached: AttachedDisk, index: int, instance: Reference) -> Reference:
    """The disk behind an instance's persistent disk. Raises PermanentFailure."""
    try:
        return parse_disk_reference(attached.source or "", instance.project, f"disks[{index}].source")
    except InvalidRequest as error:
        raise invalid_resource(instance, error.message) from None


def saved_attached_disk(attached: AttachedDisk, index: int, project: str) -> dict[str, Any]:
    """A SavedAttachedDisk as far as the instance tells; `project` is the instance's."""
    return {"kind": "compute#savedAttachedDisk", **_disk(attached, index, project, without=ONLY_ATTACHED)}


def attached_disk(attached: AttachedDisk, index: int, project: str) -> dict[str, Any]:
    """An AttachedDisk, the same way."""
    return {"kind": "compute#attachedDisk", **_disk(attached, index, project, without=ONLY_SAVED)}


def found(disk: Reference, size: int) -> dict[str, Any]:
    """What the disk itself, of `size` bytes, tells better than the instance."""
    return {"source": disk.link, "diskSizeGb": str(-(-size // GIB))}


def stored(stored_bytes: int) -> dict[str, Any]:
    """What the copy of a disk takes."""
    return {"storageBytes": str(stored_bytes), "storageBytesStatus": UP_TO_DATE}


def saved_disk(attached: AttachedDisk, disk: Reference, stored_bytes: int) -> dict[str, Any]:
    """The SavedDisk of a copy."""
    saved = {"kind": "compute#savedDisk", "sourceDisk": disk.link, **stored(stored_bytes)}
    return saved | {"architecture": attached.architecture} if attached.architecture else saved


def source_properties(instance: Instance, disks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """SourceInstanceProperties with these SavedAttachedDisks."""
    return _properties(instance, disks, without=ONLY_INSTANCE_PROPERTIES)


def instance_properties(instance: Instance, disks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """InstanceProperties with these AttachedDisks."""
    return _properties(instance, disks, without=ONLY_SOURCE_PROPERTIES)


def _properties(instance: Instance, disks: Sequence[dict[str, Any]], *, without: Set[str]) -> dict[str, Any]:
    """A machine type is known by its bare name there, since what is made from a machine image may be in another
    zone."""
    plain = {name: value for name, value in _plain(instance).items() if name not in without | {"name"}}
    if instance.machine_type:
        plain["machineType"] = instance.machine_type.rpartition("/")[2]
    return plain | {"disks": list(disks)}


def _disk(attached: AttachedDisk, index: int, project: str, *, without: Set[str]) -> dict[str, Any]:
    plain = _plain(replace(attached, licenses=tuple(full_link(license, project) for license in attached.licenses)))
    always = {"autoDelete": attached.auto_delete, "boot": attached.boot, "mode": attached.mode, "type": attached.type}
    return {name: value for name, value in plain.items() if name not in without} | always | {"index": index}


def _plain(record: Record) -> dict[str, Any]:
    """As values that JSON gives back as they are."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(record, enc_hook=encode_hook))
    return plain
