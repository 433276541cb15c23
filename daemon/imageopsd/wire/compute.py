"""Compute v1 JSON: images, patches and operations as the discovery document shapes them."""

from collections.abc import Sequence
from typing import Any

import msgspec

from imageopsd.model.errors import InvalidRequest, RequestError
from imageopsd.model.image import Image, ImagePatch
from imageopsd.model.names import project_link
from imageopsd.model.operation import Operation
from imageopsd.model.requests import encode_int64
from imageopsd.ports import Page
from imageopsd.wire.json_body import convert, without_empties

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

PATCHABLE = frozenset({"family", "description", "deprecated"})
"""What `images.patch` changes, by its reference page. Everything else of an Image in the body is ignored, as
recorded from the service (k8s-config-connector, `computeimage` fixtures)."""

_encode = msgspec.json.Encoder(enc_hook=encode_int64).encode


def read_image(body: Any) -> Image:
    """The Image of an `images.insert` body. Raises InvalidRequest."""
    if isinstance(body, dict):
        body = {name: value for name, value in body.items() if name not in OUTPUT_ONLY}
    return convert(without_empties(body, "resource"), Image, "resource")


def read_patch(body: Any) -> ImagePatch:
    """The change in an `images.patch` body: an Image of which only three fields count. Raises InvalidRequest."""
    body = without_empties(body, "resource", keep=frozenset({"family", "description"}))
    whole = convert(body, Image, "resource")
    if not PATCHABLE & body.keys():
        raise InvalidRequest.missing("resource", f"Expected at least one of {', '.join(sorted(PATCHABLE))}")
    return ImagePatch(**{name: getattr(whole, name) for name in PATCHABLE & body.keys()})


def encode(record: Operation | Image) -> bytes:
    return _encode(record)


def encode_list(kind: str, project: str, collection: str, page: Page[Any], next_page_token: str | None) -> bytes:
    """A list answer: `kind` such as `compute#imageList`, `collection` such as `images`. Empty lists have no items."""
    link = f"{project_link(project)}/global/{collection}"
    answer: dict[str, Any] = {
        "kind": kind,
        "id": f"projects/{project}/global/{collection}",
        "items": page.items,
        "nextPageToken": next_page_token,
        "selfLink": link,
    }
    return _encode({name: value for name, value in answer.items() if value})


def encode_error(error: RequestError) -> bytes:
    """The error envelope that every official client can read: `errors[]` is always there (libcloud needs it)."""
    return encode_failure(error.http_status, error.message, error.reason, error.status, field=_location(error))


def encode_failure(code: int, message: str, reason: str, status: str, *, field: str | None = None) -> bytes:
    entry = {"message": message, "domain": "global", "reason": reason}
    if field:
        entry |= {"location": field, "locationType": "parameter"}
    return _encode({"error": {"code": int(code), "message": message, "errors": [entry], "status": status}})


def _location(error: RequestError) -> str | None:
    return error.field if isinstance(error, InvalidRequest) else None


def describe(items: Sequence[Operation | Image]) -> Any:
    """Records as plain JSON values, for a command line that prints them."""
    return msgspec.json.decode(_encode(items))
