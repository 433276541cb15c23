"""The Image resource, field for field as Compute's `Image` schema names it, and what may happen to one."""

import base64
import re
from collections.abc import Mapping
from enum import StrEnum
from functools import lru_cache
from hashlib import sha256
from typing import Any, TypeVar

from msgspec import UNSET, UnsetType
from msgspec.structs import replace

from imageopsd.model.names import full_link, image_link
from imageopsd.model.operation import Record
from imageopsd.model.references import parse_disk_reference, parse_snapshot_reference
from imageopsd.model.secret import Secret
from imageopsd.model.time import Time

GIB = 1024**3
"""Compute's `diskSizeGb` counts in units of 2^30 bytes."""


class Int64(int):
    """A 64-bit number that JSON carries as a string (proto3 JSON mapping, int64/uint64/fixed64)."""


def encode_hook(value: Any) -> str:
    """msgspec's hook for writing: 64-bit numbers are strings in JSON, times are as `Time` says."""
    if isinstance(value, Int64):
        return str(int(value))
    if isinstance(value, Time):
        return value.text()
    raise NotImplementedError(f"{type(value).__name__} has no JSON form")


def decode_hook(kind: type, value: Any) -> Any:
    """msgspec's hook for reading: a 64-bit number comes as a string of digits or as a number, a time or a secret as a
    string."""
    if kind is Time:
        if not isinstance(value, str):
            raise ValueError("Expected an RFC 3339 time")
        return Time.fromisoformat(value)
    if kind is Secret:
        if not isinstance(value, str):
            raise ValueError("Expected a string")
        return Secret(value)
    if kind is not Int64:
        raise NotImplementedError(f"{kind.__name__} has no JSON form")
    if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, str) and _DIGITS.fullmatch(value))):
        raise ValueError("Expected a 64-bit integer, as a number or a string of digits")
    number = int(value)
    if not -(2**63) <= number < 2**64:
        raise ValueError("Expected an integer of at most 64 bits")
    return Int64(number)


_DIGITS = re.compile(r"-?[0-9]{1,20}", re.ASCII)


class ImageStatus(StrEnum):
    PENDING = "PENDING"
    READY = "READY"
    FAILED = "FAILED"
    DELETING = "DELETING"


class DeprecationState(StrEnum):
    ACTIVE = "ACTIVE"
    DEPRECATED = "DEPRECATED"
    OBSOLETE = "OBSOLETE"
    DELETED = "DELETED"


class Part(Record, frozen=True, forbid_unknown_fields=True):
    """A piece of a resource that callers write: a field we do not know is an error, not silence."""


class CustomerEncryptionKey(Part, frozen=True):
    """`sha256` is that of the key, in base64, and all that is ever shown of it; what callers send of it is ignored. The
    others are as they came in, and only until the door has sealed them (`keys`)."""

    kms_key_name: str | None = None
    kms_key_service_account: str | None = None
    raw_key: Secret | None = None
    rsa_encrypted_key: Secret | None = None
    sha256: str | None = None

    def __repr__(self) -> str:
        return "CustomerEncryptionKey(…)"


class RolloutPolicy(Part, frozen=True):
    """From which RFC 3339 time on something counts: in each place that is named (`zones/ZONE`), and in all others. Only
    image family views, of which there are none here, go by it."""

    default_rollout_time: str | None = None
    location_rollout_policies: dict[str, str] | None = None


class DeprecationStatus(Part, frozen=True):
    """`deprecated`, `obsolete` and `deleted` are RFC 3339 times and informational only (gcloud reference);
    `state_override` is beta's."""

    state: str | None = None
    replacement: str | None = None
    deprecated: str | None = None
    obsolete: str | None = None
    deleted: str | None = None
    state_override: RolloutPolicy | None = None


class GuestOsFeature(Part, frozen=True):
    type: str


class FileContentBuffer(Part, frozen=True):
    content: str | None = None
    file_type: str | None = None


class InitialStateConfig(Part, frozen=True):
    """Secure-boot keys of a shielded instance."""

    pk: FileContentBuffer | None = None
    keks: tuple[FileContentBuffer, ...] = ()
    dbs: tuple[FileContentBuffer, ...] = ()
    dbxs: tuple[FileContentBuffer, ...] = ()


class ImageParams(Part, frozen=True):
    resource_manager_tags: dict[str, str] | None = None


class RawDisk(Part, frozen=True):
    """`source` is the archive's URL; `sha1_checksum` its hex SHA-1 before unpacking (deprecated, still honoured)."""

    source: str | None = None
    container_type: str | None = None
    sha1_checksum: str | None = None


class Image(Part, frozen=True, tag_field="kind", tag="compute#image"):
    """`disk_size_gb` is the virtual size in GiB, `archive_size_bytes` the bytes of the source archive. `locked` (which
    speaks to whoever attaches disks made of it) and `rollout_override` are beta's."""

    id: Int64 | None = None
    name: str | None = None
    description: str | None = None
    family: str | None = None
    status: ImageStatus | None = None
    creation_timestamp: Time | None = None
    self_link: str | None = None
    source_type: str | None = None
    raw_disk: RawDisk | None = None
    source_disk: str | None = None
    source_disk_id: str | None = None
    source_image: str | None = None
    source_image_id: str | None = None
    source_snapshot: str | None = None
    source_snapshot_id: str | None = None
    disk_size_gb: Int64 | None = None
    archive_size_bytes: Int64 | None = None
    architecture: str | None = None
    deprecated: DeprecationStatus | None = None
    guest_os_features: tuple[GuestOsFeature, ...] = ()
    labels: dict[str, str] | None = None
    label_fingerprint: str | None = None
    licenses: tuple[str, ...] = ()
    license_codes: tuple[Int64, ...] = ()
    storage_locations: tuple[str, ...] = ()
    shielded_instance_initial_state: InitialStateConfig | None = None
    image_encryption_key: CustomerEncryptionKey | None = None
    source_disk_encryption_key: CustomerEncryptionKey | None = None
    source_image_encryption_key: CustomerEncryptionKey | None = None
    source_snapshot_encryption_key: CustomerEncryptionKey | None = None
    params: ImageParams | None = None
    enable_confidential_compute: bool | None = None
    satisfies_pzi: bool | None = None
    satisfies_pzs: bool | None = None
    locked: bool | None = None
    rollout_override: RolloutPolicy | None = None


class ImagePatch(Record, frozen=True):
    """The three things `images.patch` may change; UNSET keeps, an empty string clears."""

    family: str | UnsetType = UNSET
    description: str | UnsetType = UNSET
    deprecated: DeprecationStatus | UnsetType = UNSET


class ImageFacts(Record, frozen=True):
    """What only the backend can know of a finished image. Sizes in bytes; `None` where it cannot tell."""

    disk_size_gb: int
    archive_size_bytes: int | None = None
    stored_bytes: int | None = None
    sha256: str | None = None


def reserved(wanted: Image, project: str, image_id: int, now: Time) -> Image:
    """How the image looks from admission on, while its bytes are not there yet: with full URLs, however they came.
    What a source image's means is the engine's to find out."""
    assert wanted.name is not None  # model.rules.check
    disk, snapshot = wanted.source_disk, wanted.source_snapshot
    return replace(
        wanted,
        id=Int64(image_id),
        status=ImageStatus.PENDING,
        creation_timestamp=now,
        self_link=image_link(project, wanted.name),
        source_type=wanted.source_type or "RAW",
        source_disk=disk and parse_disk_reference(disk, project, "resource.sourceDisk").link,
        source_snapshot=snapshot and parse_snapshot_reference(snapshot, project, "resource.sourceSnapshot").link,
        label_fingerprint=label_fingerprint(wanted.labels or {}),
        licenses=tuple(full_link(license, project) for license in wanted.licenses),
        params=None,  # input only: it speaks to the service and is not part of the resource
    )


def published(image: Image, facts: ImageFacts) -> Image:
    """The reserved image once the backend has made it."""
    archive = facts.archive_size_bytes
    return replace(
        image,
        status=ImageStatus.READY,
        disk_size_gb=Int64(facts.disk_size_gb),
        archive_size_bytes=None if archive is None else Int64(archive),
    )


def label_fingerprint(labels: Mapping[str, str]) -> str:
    """What `setLabels` must name to show that it has seen these labels: eight bytes of a hash, in base64, as GCE's
    are. The same for the same labels, whenever and in whatever order they were set."""
    return _label_fingerprint(tuple(sorted(labels.items())))


@lru_cache
def _label_fingerprint(labels: tuple[tuple[str, str], ...]) -> str:
    text = "".join(f"{len(key)}:{key}{len(value)}:{value}" for key, value in labels)
    return base64.b64encode(sha256(text.encode()).digest()[:8]).decode()


Labelled = TypeVar("Labelled", bound=Part)


def labelled(resource: Labelled, labels: Mapping[str, str]) -> Labelled:
    """The image or machine image with these labels and no others."""
    return replace(resource, labels=dict(labels) or None, label_fingerprint=label_fingerprint(labels))
