"""The rules on values that a request must meet before anything is recorded.

Types are checked where JSON is read (`wire`). Every refusal is an InvalidRequest that names the field the way the
caller wrote it, in GCE's own words where those are on record (`schemas_image.v1.json`; public issue threads).
"""

import base64
import re
from urllib.parse import urlsplit

import msgspec

from imageopsd.model.errors import InvalidRequest
from imageopsd.model.image import DeprecationState, DeprecationStatus, Image, InitialStateConfig, RolloutPolicy
from imageopsd.model.keys import check_keys
from imageopsd.model.machine_image_rules import check_machine_image
from imageopsd.model.names import (
    NAME,
    NAME_RULE,
    NUMERIC_ID,
    check_project,
    check_request_id,
    parse_image_reference,
    public_url,
)
from imageopsd.model.references import parse_disk_reference, parse_snapshot_reference
from imageopsd.model.requests import (
    AnyRequest,
    ChangeImage,
    ChangeMachineImage,
    DeprecateImage,
    InsertImage,
    InsertMachineImage,
    LabelImage,
    LabelMachineImage,
    PatchImage,
)
from imageopsd.model.values import (
    check_choice,
    check_description,
    check_labels,
    check_locations,
    check_name,
    check_time,
)

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
_LICENSE = re.compile(
    r"(?:https?://[^/\s]+/compute/[^/\s]+/)?(?:projects/[^/\s]+/)?global/licenses/[a-z0-9][-a-z0-9]{0,62}"
)
_ZONE = re.compile(rf"(?:https?://[^/\s]+/compute/[^/\s]+/)?(?:projects/[^/\s]+/)?zones/{NAME.pattern}")
MAX_DISK_GB = 65_536
"""64 TiB, the largest persistent disk Compute offers."""


def check(request: AnyRequest) -> AnyRequest:
    """The request with its request id in canonical form. Raises InvalidRequest for the first rule it breaks."""
    check_project(request.project)
    match request:
        case InsertImage(image=image):
            _check_new_image(image, request.project)
        case InsertMachineImage(machine_image=machine_image):
            check_machine_image(machine_image, request.project)
        case _:
            _check_change(request)
    check_keys(request)
    if request.request_id is None:
        return request
    return msgspec.structs.replace(request, request_id=check_request_id(request.request_id))


def _check_new_image(image: Image, project: str) -> None:
    if image.name is None:
        raise InvalidRequest.missing("resource.name", NAME_RULE)
    check_name("resource.name", image.name)
    if image.family is not None:
        check_name("resource.family", image.family)
    check_description(image.description)
    _check_source(image, project)
    check_choice("resource.sourceType", image.source_type, ("RAW",))
    check_choice("resource.architecture", image.architecture, ARCHITECTURES)
    for i, license in enumerate(image.licenses):
        if not _LICENSE.fullmatch(license):
            expected = "Expected a license URL such as 'projects/PROJECT/global/licenses/LICENSE'"
            raise InvalidRequest.value(f"resource.licenses[{i}]", license, expected)
    check_locations(image.storage_locations)
    if image.shielded_instance_initial_state is not None:
        _check_initial_state(image.shielded_instance_initial_state)
    for i, feature in enumerate(image.guest_os_features):
        check_choice(f"resource.guestOsFeatures[{i}].type", feature.type, GUEST_OS_FEATURES)
    check_labels(image.labels or {})
    if image.rollout_override is not None:
        _check_rollout("resource.rolloutOverride", image.rollout_override)
    if image.disk_size_gb is not None and not 1 <= image.disk_size_gb <= MAX_DISK_GB:
        raise InvalidRequest.value("resource.diskSizeGb", image.disk_size_gb, f"Must be between 1 and {MAX_DISK_GB}")


def _check_initial_state(state: InitialStateConfig) -> None:
    field = "resource.shieldedInstanceInitialState"
    keys = [(f"{field}.pk", state.pk)] if state.pk else []
    for name in ("keks", "dbs", "dbxs"):
        keys += [(f"{field}.{name}[{i}]", key) for i, key in enumerate(getattr(state, name))]
    for where, key in keys:
        check_choice(f"{where}.fileType", key.file_type, FILE_TYPES)
        try:
            base64.b64decode((key.content or "").replace("-", "+").replace("_", "/"), validate=True)
        except ValueError:
            raise InvalidRequest(
                f"{where}.content", f"Invalid value for field '{where}.content'. Expected base64."
            ) from None


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
        check_choice("resource.rawDisk.containerType", raw.container_type, ("TAR",))
        if raw.source:
            _check_url("resource.rawDisk.source", raw.source)
        if raw.sha1_checksum is not None and not re.fullmatch(r"[a-fA-F0-9]{40}", raw.sha1_checksum):
            raise InvalidRequest.value("resource.rawDisk.sha1Checksum", raw.sha1_checksum, "Must be 40 hex digits")
    if image.source_image:
        parse_image_reference(image.source_image, project, "resource.sourceImage")
    if image.source_disk:
        parse_disk_reference(image.source_disk, project, "resource.sourceDisk")
    if image.source_snapshot:
        parse_snapshot_reference(image.source_snapshot, project, "resource.sourceSnapshot")


def _check_url(field: str, url: str) -> None:
    expected = (
        f"Expected a URL with one of the schemes {', '.join(SOURCE_SCHEMES)}, without user name or control characters"
    )
    try:
        parts = urlsplit(url)
        port_ok = parts.port is None or parts.port > 0
    except ValueError as error:
        raise InvalidRequest.value(field, public_url(url), expected) from error
    named = bool(parts.hostname) != (parts.scheme == "file") or (parts.scheme == "file" and parts.path != "")
    if not (url.isprintable() and parts.scheme in SOURCE_SCHEMES and port_ok and named) or "@" in parts.netloc:
        raise InvalidRequest.value(field, public_url(url), expected)


def _check_change(request: ChangeImage | ChangeMachineImage) -> None:
    if not NUMERIC_ID.fullmatch(request.target):
        check_name("image" if isinstance(request, ChangeImage) else "machineImage", request.target)
    match request:
        case PatchImage(patch=patch):
            if isinstance(patch.family, str) and patch.family:
                check_name("resource.family", patch.family)
            check_description(patch.description)
            if isinstance(patch.deprecated, DeprecationStatus):
                _check_deprecation("resource.deprecated", patch.deprecated, request.project)
        case DeprecateImage(deprecation=deprecation):
            if deprecation.state is None and deprecation != DeprecationStatus():
                expected = "Expected the state that the rest is about; an empty body makes the image ACTIVE"
                raise InvalidRequest.missing("resource.state", expected)
            _check_deprecation("resource", deprecation, request.project)
        case LabelImage(labels=labels) | LabelMachineImage(labels=labels):
            check_labels(labels)


def _check_deprecation(field: str, deprecation: DeprecationStatus, project: str) -> None:
    check_choice(f"{field}.state", deprecation.state, tuple(DeprecationState))
    if deprecation.replacement is not None:
        parse_image_reference(deprecation.replacement, project, f"{field}.replacement")
    for stamp in ("deprecated", "obsolete", "deleted"):
        time = getattr(deprecation, stamp)
        if time is not None:
            check_time(f"{field}.{stamp}", time)
    if deprecation.state_override is not None:
        _check_rollout(f"{field}.stateOverride", deprecation.state_override)


def _check_rollout(field: str, policy: RolloutPolicy) -> None:
    if policy.default_rollout_time is not None:
        check_time(f"{field}.defaultRolloutTime", policy.default_rollout_time)
    for place, time in (policy.location_rollout_policies or {}).items():
        where = f"{field}.locationRolloutPolicies"
        if not _ZONE.fullmatch(place):
            raise InvalidRequest.value(where, place, "Expected a zone's URL such as 'zones/us-central1-a'")
        check_time(f"{where}.{place}", time)
