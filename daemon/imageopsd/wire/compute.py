"""Compute v1 JSON: images, patches and operations as the discovery document shapes them."""

from collections.abc import Sequence
from hashlib import sha256
from typing import Any

import msgspec

from imageopsd.model.errors import ConditionNotMet, InvalidRequest, RequestError
from imageopsd.model.image import DeprecationStatus, Image, ImagePatch, encode_hook
from imageopsd.model.machine_image import OUTPUT_ONLY as MACHINE_IMAGE_OUTPUT_ONLY
from imageopsd.model.machine_image import MachineImage
from imageopsd.model.names import project_link
from imageopsd.model.operation import Operation
from imageopsd.model.quota import Limit, Usage
from imageopsd.wire.json_body import convert, without_empties
from imageopsd.wire.versions import BETA, known_in

OUTPUT_ONLY = frozenset(
    {
        "archiveSizeBytes",
        "creationTimestamp",
        "deprecated",
        "enableConfidentialCompute",
        "id",
        "kind",
        "labelFingerprint",
        "satisfiesPzi",
        "satisfiesPzs",
        "selfLink",
        "sourceDiskId",
        "sourceImageId",
        "sourceSnapshotId",
        "status",
    }
)
"""Fields of an Image that a request may carry and the service ignores (`schemas_image.v1.json`: output_only;
`archiveSizeBytes` and `labelFingerprint` are made by the service alone)."""

UNDECLARED = frozenset({"zone"})
"""apache-libcloud's `ex_create_image` of a volume puts the volume's zone into the image's body."""

PATCHABLE = frozenset({"family", "description", "deprecated"})
"""What `images.patch` changes, by its reference page. Everything else of an Image in the body is ignored, as
recorded from the service (k8s-config-connector, `computeimage` fixtures)."""

_encode = msgspec.json.Encoder(enc_hook=encode_hook).encode


class LabelsRequest(msgspec.Struct, frozen=True, rename="camel", forbid_unknown_fields=True):
    """Compute's GlobalSetLabelsRequest."""

    labels: dict[str, str] = {}
    label_fingerprint: str = ""


def read_image(body: Any, version: str = BETA) -> Image:
    """The Image of an `images.insert` body. Raises InvalidRequest."""
    if isinstance(body, dict):
        body = {name: value for name, value in body.items() if name not in OUTPUT_ONLY | UNDECLARED}
    return known_in(version, convert(without_empties(body, "resource"), Image, "resource"), "resource")


def undeclared_in_insert(body: Any) -> tuple[str, ...]:
    """What an insert body carries that is no field of an Image and that clients in use send all the same."""
    return tuple(sorted(UNDECLARED & body.keys()))


def read_patch(body: Any, version: str = BETA) -> ImagePatch:
    """The change in an `images.patch` body: an Image of which only three fields count. Raises InvalidRequest."""
    if isinstance(body, dict):
        body = {name: value for name, value in body.items() if name not in OUTPUT_ONLY - PATCHABLE}
    body = without_empties(body, "resource", keep=frozenset({"family", "description"}))
    whole = known_in(version, convert(body, Image, "resource"), "resource")
    if not PATCHABLE & body.keys():
        raise InvalidRequest.missing("resource", f"Expected at least one of {', '.join(sorted(PATCHABLE))}")
    return ImagePatch(**{name: getattr(whole, name) for name in PATCHABLE & body.keys()})


def read_machine_image(body: Any, source_instance: str | None = None) -> MachineImage:
    """The MachineImage of a `machineImages.insert` body; `source_instance` of the query wins over the body's, since the
    reference page wants it there and gcloud sends it here. Raises InvalidRequest."""
    if isinstance(body, dict):
        body = {name: value for name, value in body.items() if name not in MACHINE_IMAGE_OUTPUT_ONLY}
        body |= {"sourceInstance": source_instance} if source_instance else {}
    return convert(without_empties(body, "resource"), MachineImage, "resource")


def ignored_in_patch(body: Any) -> tuple[str, ...]:
    """The fields of an Image that a patch body carries and `images.patch` leaves as they are."""
    return tuple(sorted(without_empties(body, "resource").keys() - PATCHABLE - OUTPUT_ONLY))


def read_deprecation(body: Any, version: str = BETA) -> DeprecationStatus:
    """The body of `images.deprecate`. Raises InvalidRequest."""
    return known_in(version, convert(without_empties(body, "resource"), DeprecationStatus, "resource"), "resource")


def read_labels(body: Any) -> LabelsRequest:
    """The body of `setLabels`: no labels at all means to remove them. Raises InvalidRequest."""
    return convert(without_empties(body, "resource"), LabelsRequest, "resource")


def encode(record: msgspec.Struct) -> bytes:
    return _encode(record)


def as_json(record: msgspec.Struct) -> dict[str, Any]:
    """The record as plain JSON values, for a filter to look at."""
    values: dict[str, Any] = msgspec.to_builtins(record, enc_hook=encode_hook)
    return values


def encode_list(
    kind: str,
    project: str,
    collection: str,
    items: Sequence[msgspec.Struct],
    next_page_token: str | None,
    version: str,
) -> bytes:
    """A list answer: `kind` such as `compute#imageList`, `collection` such as `images`. Empty lists have no items."""
    answer: dict[str, Any] = {
        "kind": kind,
        "id": f"projects/{project}/global/{collection}",
        "items": items,
        "nextPageToken": next_page_token,
        "selfLink": f"{project_link(project, version)}/global/{collection}",
    }
    return _encode({name: value for name, value in answer.items() if value})


def encode_aggregated(project: str, items: Sequence[Operation], next_page_token: str | None, version: str) -> bytes:
    """An aggregated list: all operations here are global ones."""
    answer: dict[str, Any] = {
        "kind": "compute#operationAggregatedList",
        "id": f"projects/{project}/aggregated/operations",
        "items": {"global": {"operations": items}} if items else {},
        "nextPageToken": next_page_token,
        "selfLink": f"{project_link(project, version)}/aggregated/operations",
    }
    return _encode({name: value for name, value in answer.items() if value is not None})


def encode_nothing(kind: str = "", path: str = "") -> bytes:
    """An empty object; with a kind and the path it was asked at, an empty list, whose `items` libcloud must find."""
    return _encode({"kind": kind, "items": [], "selfLink": f"https://www.googleapis.com{path}"} if kind else {})


def encode_project(project: str, version: str, quotas: Sequence[tuple[Limit, Usage]]) -> bytes:
    """As much of a Project as clients read (libcloud fails without commonInstanceMetadata). Its id is a function of
    its name, because nobody here gives out others. Of its quotas those that are limited, with what is used and what is
    reserved in one number; the protobuf clients take the names that Compute does not have, too."""
    number = int.from_bytes(sha256(project.encode()).digest()[:7])
    return _encode(
        {
            "kind": "compute#project",
            "id": str(number),
            "name": project,
            "commonInstanceMetadata": {"kind": "compute#metadata"},
            **({"quotas": [_quota(limit, usage) for limit, usage in quotas]} if quotas else {}),
            "selfLink": project_link(project, version),
        }
    )


def _quota(limit: Limit, usage: Usage) -> dict[str, str | float]:
    """Compute's Quota: its numbers are doubles."""
    return {"metric": usage.metric.compute_name, "limit": float(limit.limit), "usage": float(usage.total)}


def encode_error(error: RequestError) -> bytes:
    """The error envelope that every official client can read: `errors[]` is always there (libcloud needs it)."""
    return encode_failure(error.http_status, error.message, error.reason, error.status, location=_location(error))


def encode_failure(
    code: int, message: str, reason: str, status: str, *, location: tuple[str, str] | None = None
) -> bytes:
    """`location` is what was wrong and of which type it is: a parameter, a header."""
    entry = {"message": message, "domain": "global", "reason": reason}
    if location:
        entry |= {"location": location[0], "locationType": location[1]}
    return _encode({"error": {"code": int(code), "message": message, "errors": [entry], "status": status}})


def _location(error: RequestError) -> tuple[str, str] | None:
    match error:
        case InvalidRequest(field=field):
            return field, "parameter"
        case ConditionNotMet():  # as GCE words it, though the fingerprint comes in the body (skypilot#4571)
            return "If-Match", "header"
    return None
