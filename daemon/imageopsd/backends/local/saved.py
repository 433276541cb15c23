"""What a machine image shows of the instance it was made from, in the shapes of Compute's schema."""

from collections.abc import Iterable
from typing import Any

import msgspec

from imageopsd.backends.local.instances import AttachedDisk, Instance, invalid_resource
from imageopsd.model.errors import InvalidRequest
from imageopsd.model.image import GIB, encode_hook
from imageopsd.model.operation import Record
from imageopsd.model.references import Reference, parse_disk_reference

UP_TO_DATE = "UP_TO_DATE"
"""`storageBytesStatus`: no storage is shared, so nothing will be adjusted."""


def disk_of(attached: AttachedDisk, index: int, instance: Reference) -> Reference:
    """The disk behind an instance's persistent disk. Raises PermanentFailure."""
    try:
        return parse_disk_reference(attached.source or "", instance.project, f"disks[{index}].source")
    except InvalidRequest as error:
        raise invalid_resource(instance, error.message) from None


def saved_attached_disk(attached: AttachedDisk, index: int) -> dict[str, Any]:
    """A SavedAttachedDisk as far as the instance tells."""
    shown = {name: value for name, value in _plain(attached).items() if name != "architecture"}
    always = {"autoDelete": attached.auto_delete, "boot": attached.boot, "mode": attached.mode, "type": attached.type}
    return {"kind": "compute#savedAttachedDisk", **shown, **always, "index": index}


def stored(disk: Reference, size: int, stored_bytes: int) -> dict[str, Any]:
    """What its copy adds to a SavedAttachedDisk: `size` of the disk, and what the copy takes, in bytes."""
    return {
        "source": disk.link,
        "diskSizeGb": str(-(-size // GIB)),
        "storageBytes": str(stored_bytes),
        "storageBytesStatus": UP_TO_DATE,
    }


def saved_disk(attached: AttachedDisk, disk: Reference, stored_bytes: int) -> dict[str, Any]:
    """The SavedDisk of a copy."""
    saved = {
        "kind": "compute#savedDisk",
        "sourceDisk": disk.link,
        "storageBytes": str(stored_bytes),
        "storageBytesStatus": UP_TO_DATE,
    }
    return saved | {"architecture": attached.architecture} if attached.architecture else saved


def properties(instance: Instance, disks: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """SourceInstanceProperties with these SavedAttachedDisks. A machine type is known by its bare name there, since
    what is made from a machine image may be in another zone."""
    plain = {name: value for name, value in _plain(instance).items() if name != "name"}
    if instance.machine_type:
        plain["machineType"] = instance.machine_type.rpartition("/")[2]
    return plain | {"disks": list(disks)}


def _plain(record: Record) -> dict[str, Any]:
    """As values that JSON gives back as they are."""
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(record, enc_hook=encode_hook))
    return plain
