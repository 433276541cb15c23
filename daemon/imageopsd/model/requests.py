"""What callers may ask for, and the rules a request must meet before anything is recorded.

Types are checked where JSON is read (`wire`); here stand the rules on values. Every refusal is an
InvalidRequest that names the field the way the caller wrote it, in GCE's own words where those are on
record (`schemas_image.v1.json`; public issue threads).
"""

import re
from collections.abc import Iterator
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

import msgspec

from imageopsd.model.errors import InvalidRequest
from imageopsd.model.image import DeprecationState, DeprecationStatus, Image, ImagePatch, Int64
from imageopsd.model.names import (
    NAME,
    NAME_RULE,
    NUMERIC_ID,
    check_project,
    check_request_id,
    parse_image_reference,
    public_url,
)
from imageopsd.model.operation import Record

ARCHITECTURES = ("ARCHITECTURE_UNSPECIFIED", "ARM64", "X86_64")
GUEST_OS_FEATURES = (
    "BARE_METAL_LINUX_COMPATIBLE",
    "BMSAI_CAPABLE",
    "CCA_CAPABLE",
    "FEATURE_TYPE_UNSPECIFIED",
    "GVNIC",
    "IDPF",
    "MULTI_IP_SUBNET",
    "SECURE_BOOT",
    "SEV_CAPABLE",
    "SEV_LIVE_MIGRATABLE",
    "SEV_LIVE_MIGRATABLE_V2",
    "SEV_SNP_CAPABLE",
    "SNP_SVSM_CAPABLE",
    "SUSPEND_SAFE_FPR",
    "TDX_CAPABLE",
    "UEFI_COMPATIBLE",
    "VIRTIO_SCSI_MULTIQUEUE",
    "WINDOWS",
)
FILE_TYPES = ("BIN", "UNDEFINED", "X509")
SOURCE_SCHEMES = ("http", "https", "gs", "file")
LABEL_KEY = re.compile(r"[^\W\d_A-Z][\w-]{0,62}")
LABEL_VALUE = re.compile(r"[\w-]{0,63}")
MAX_LABELS = 64
MAX_DESCRIPTION = 2048
MAX_DISK_GB = 65_536
"""64 TiB, the largest persistent disk Compute offers."""


class Request(Record, frozen=True):
    """Base of all requests. `request_id` is a lower-case UUID or `None`."""

    project: str
    request_id: str | None = None

    def fingerprint(self) -> bytes:
        """Equal for requests that ask for the same; the request id itself is not part of it."""
        same = msgspec.structs.replace(self, request_id=None)
        return sha256(msgspec.json.encode(same, enc_hook=encode_int64, order="sorted")).digest()


class InsertImage(Request, frozen=True, kw_only=True, tag_field="method", tag="images.insert"):
    """Make an image from exactly one source."""

    image: Image
    force_create: bool = False


class PatchImage(Request, frozen=True, kw_only=True, tag_field="method", tag="images.patch"):
    """Change an image's family, description or deprecation."""

    image: str
    patch: ImagePatch


AnyRequest = InsertImage | PatchImage


def encode_int64(value: Any) -> str:
    """msgspec's hook for writing: 64-bit numbers are strings in JSON."""
    if isinstance(value, Int64):
        return str(int(value))
    raise NotImplementedError(f"{type(value).__name__} has no JSON form")


def decode_int64(kind: type, value: Any) -> Any:
    """msgspec's hook for reading: a 64-bit number comes as a string of digits or as a number."""
    if kind is not Int64:
        raise NotImplementedError(f"{kind.__name__} has no JSON form")
    if isinstance(value, bool) or not (isinstance(value, int) or (isinstance(value, str) and _DIGITS.fullmatch(value))):
        raise ValueError("Expected a 64-bit integer, as a number or a string of digits")
    number = int(value)
    if not -(2**63) <= number < 2**64:
        raise ValueError("Expected an integer of at most 64 bits")
    return Int64(number)


_DIGITS = re.compile(r"-?[0-9]{1,20}", re.ASCII)


# ------------------------------------------------------------------------------------------------- rules


def check(request: AnyRequest) -> AnyRequest:
    """The request with its request id in canonical form. Raises InvalidRequest for the first rule it breaks."""
    check_project(request.project)
    if isinstance(request, InsertImage):
        _check_new_image(request.image, request.project)
    else:
        _check_patch(request)
    if request.request_id is None:
        return request
    return msgspec.structs.replace(request, request_id=check_request_id(request.request_id))


def _check_new_image(image: Image, project: str) -> None:
    if image.name is None:
        raise InvalidRequest.missing("resource.name", NAME_RULE)
    _check_name("resource.name", image.name)
    if image.family is not None:
        _check_name("resource.family", image.family)
    _check_description(image.description)
    _check_source(image, project)
    _check_choice("resource.sourceType", image.source_type, ("RAW",))
    _check_choice("resource.architecture", image.architecture, ARCHITECTURES)
    for i, feature in enumerate(image.guest_os_features):
        _check_choice(f"resource.guestOsFeatures[{i}].type", feature.type, GUEST_OS_FEATURES)
    _check_labels(image.labels or {})
    if image.disk_size_gb is not None and not 1 <= image.disk_size_gb <= MAX_DISK_GB:
        raise InvalidRequest.value("resource.diskSizeGb", image.disk_size_gb, f"Must be between 1 and {MAX_DISK_GB}")
    for field in _keys(image):
        raise InvalidRequest(field, f"Invalid value for field '{field}'. Customer keys are not supported yet.")


def _check_name(field: str, name: str) -> None:
    if not NAME.fullmatch(name):
        raise InvalidRequest.value(field, name, NAME_RULE)


def _check_description(text: object) -> None:
    if isinstance(text, str) and len(text) > MAX_DESCRIPTION:
        raise InvalidRequest.value("resource.description", text, f"Must be at most {MAX_DESCRIPTION} characters long")


def _check_choice(field: str, value: str | None, choices: tuple[str, ...]) -> None:
    if value is not None and value not in choices:
        raise InvalidRequest.value(field, value, f"Must be one of {', '.join(choices)}")


def _check_labels(labels: dict[str, str]) -> None:
    field = "resource.labels"
    if len(labels) > MAX_LABELS:
        raise InvalidRequest.value(field, f"{len(labels)} labels", f"At most {MAX_LABELS} labels are allowed")
    for key, value in labels.items():
        if not LABEL_KEY.fullmatch(key) or key != key.lower():
            raise InvalidRequest.value(
                field, key, "Label keys start with a lower-case letter and hold at most 63 of a-z, 0-9, _ and -"
            )
        if not LABEL_VALUE.fullmatch(value) or value != value.lower():
            raise InvalidRequest.value(f"{field}.{key}", value, "Label values hold at most 63 of a-z, 0-9, _ and -")


def _check_source(image: Image, project: str) -> None:
    raw = image.raw_disk
    sources = {
        "resource.rawDisk.source": raw.source if raw else None,
        "resource.sourceDisk": image.source_disk,
        "resource.sourceImage": image.source_image,
        "resource.sourceSnapshot": image.source_snapshot,
    }
    given = [field for field, value in sources.items() if value]
    if not given:
        raise InvalidRequest.missing("resource.rawDisk.source", f"Expected one of {', '.join(sources)}")
    if len(given) > 1:
        raise InvalidRequest(
            given[1],
            "Invalid resource usage: 'Must specify exactly one source for an image.' "
            f"The request has {' and '.join(given)}.",
        )
    if raw is not None:
        _check_choice("resource.rawDisk.containerType", raw.container_type, ("TAR",))
        if raw.source:
            _check_url("resource.rawDisk.source", raw.source)
        if raw.sha1_checksum is not None and not re.fullmatch(r"[a-fA-F0-9]{40}", raw.sha1_checksum):
            raise InvalidRequest.value("resource.rawDisk.sha1Checksum", raw.sha1_checksum, "Must be 40 hex digits")
    if image.source_image:
        parse_image_reference(image.source_image, project, "resource.sourceImage")


def _check_url(field: str, url: str) -> None:
    expected = f"Expected a URL with one of the schemes {', '.join(SOURCE_SCHEMES)} and no user name in it"
    try:
        parts = urlsplit(url)
        port_ok = parts.port is None or parts.port > 0
    except ValueError as error:
        raise InvalidRequest.value(field, public_url(url), expected) from error
    named = bool(parts.hostname) != (parts.scheme == "file") or (parts.scheme == "file" and parts.path != "")
    if parts.scheme not in SOURCE_SCHEMES or not port_ok or not named or "@" in parts.netloc:
        raise InvalidRequest.value(field, public_url(url), expected)


def _keys(image: Image) -> Iterator[str]:
    for field, key in (
        ("resource.imageEncryptionKey", image.image_encryption_key),
        ("resource.sourceDiskEncryptionKey", image.source_disk_encryption_key),
        ("resource.sourceImageEncryptionKey", image.source_image_encryption_key),
        ("resource.sourceSnapshotEncryptionKey", image.source_snapshot_encryption_key),
    ):
        if key is not None:
            yield field


def _check_patch(request: PatchImage) -> None:
    if not NUMERIC_ID.fullmatch(request.image):
        _check_name("image", request.image)
    patch = request.patch
    if isinstance(patch.family, str) and patch.family:
        _check_name("resource.family", patch.family)
    _check_description(patch.description)
    if isinstance(patch.deprecated, DeprecationStatus):
        _check_choice("resource.deprecated.state", patch.deprecated.state, tuple(DeprecationState))
