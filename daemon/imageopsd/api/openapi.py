"""The OpenAPI 3.1 document of the REST paths, made of the routes and of the structs that go over the wire.

What a route takes and gives stands in one table here, and what JSON Schema can say of the rules in `model.rules` in
another. Nothing here answers a call: the document says what is so, and `tests/api/test_openapi.py` holds it to that.
"""

import re
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from typing import Any, NamedTuple

import msgspec

from imageopsd.api.calls import Route
from imageopsd.api.pages import LARGEST_PAGE, NEWEST_FIRST
from imageopsd.model.image import DeprecationState, DeprecationStatus, Image, ImagePatch, Int64
from imageopsd.model.machine_image import OUTPUT_ONLY as MACHINE_IMAGE_OUTPUT_ONLY
from imageopsd.model.machine_image import MachineImage
from imageopsd.model.names import ANY_PROJECT, NAME, NUMERIC_ID, PROJECT, REQUEST_ID
from imageopsd.model.operation import Operation
from imageopsd.model.policy import Permissions, Policy
from imageopsd.model.quota import Metric
from imageopsd.model.rules import ARCHITECTURES, FILE_TYPES, GUEST_OS_FEATURES
from imageopsd.model.secret import Secret
from imageopsd.model.time import Time
from imageopsd.model.values import MAX_DESCRIPTION, MAX_LABELS
from imageopsd.wire.compute import OUTPUT_ONLY, LabelsRequest

Schema = dict[str, Any]

DESCRIPTION = """Compute Engine's images, machine images and operations. Whatever changes something answers with an \
Operation; follow it with its `wait`. v1 and beta are two names for one state; v1 neither knows nor shows \
`locked`, `rolloutOverride` and `stateOverride`. Members of a body that are null, \"\", \
{} or [] count as absent, except that an empty string clears what `images.patch` names. Read-only members may be sent \
and are ignored; query parameters that are not named here are ignored too."""


class Shape(NamedTuple):
    """What a route is called in Compute's discovery document, what it takes, what it gives: a struct, or the name of
    one of the components below. Without `gives` all its answers are errors: nothing lives there."""

    name: str
    gives: type[msgspec.Struct] | str | None
    takes: type[msgspec.Struct] | str | None = None
    query: tuple[str, ...] = ()


LIST = ("filter", "maxResults", "orderBy", "pageToken", "returnPartialSuccess")
CHANGE = ("requestId",)


def _resources(collection: str, one: str, kind: type[msgspec.Struct], insert_query: str) -> dict[str, Shape]:
    """What images and machine images have in common."""
    path = f"projects/{{project}}/global/{collection}"
    return {
        f"GET {path}": Shape(f"{collection}.list", f"{kind.__name__}List", query=LIST),
        f"POST {path}": Shape(f"{collection}.insert", Operation, kind, (*CHANGE, insert_query)),
        f"GET {path}/{one}": Shape(f"{collection}.get", kind),
        f"DELETE {path}/{one}": Shape(f"{collection}.delete", Operation, query=CHANGE),
        f"POST {path}/{one}/setLabels": Shape(f"{collection}.setLabels", Operation, LabelsRequest, CHANGE),
        f"GET {path}/{one}/getIamPolicy": Shape(f"{collection}.getIamPolicy", Policy),
        f"POST {path}/{one}/setIamPolicy": Shape(f"{collection}.setIamPolicy", Policy, "SetPolicyRequest"),
        f"POST {path}/{one}/testIamPermissions": Shape(f"{collection}.testIamPermissions", Permissions, Permissions),
    }


def _operations(resource: str, path: str, gives: type[msgspec.Struct] | None = None) -> dict[str, Shape]:
    """Operations of one place; only the global ones are ever any."""
    return {
        f"GET {path}": Shape(f"{resource}.list", "OperationList", query=LIST),
        f"GET {path}/{{operation}}": Shape(f"{resource}.get", gives),
        f"DELETE {path}/{{operation}}": Shape(f"{resource}.delete", "Empty" if gives else None),
        f"POST {path}/{{operation}}/wait": Shape(f"{resource}.wait", gives),
    }


SHAPES: Mapping[str, Shape] = {
    **_resources("images", "{image}", Image, "forceCreate"),
    "GET projects/{project}/global/images/family/{family}": Shape("images.getFromFamily", Image),
    "PATCH projects/{project}/global/images/{image}": Shape("images.patch", Operation, ImagePatch, CHANGE),
    "POST projects/{project}/global/images/{image}/deprecate": Shape(
        "images.deprecate", Operation, DeprecationStatus, CHANGE
    ),
    **_resources("machineImages", "{machineImage}", MachineImage, "sourceInstance"),
    **_operations("globalOperations", "projects/{project}/global/operations", Operation),
    "POST projects/{project}/global/operations/{operation}/cancel": Shape("globalOperations.cancel", Operation),
    "POST projects/{project}/global/operations/{operation}/retry": Shape(
        "globalOperations.retry", Operation, query=CHANGE
    ),
    **_operations("zoneOperations", "projects/{project}/zones/{zone}/operations"),
    **_operations("regionOperations", "projects/{project}/regions/{region}/operations"),
    **_operations("globalOrganizationOperations", "locations/global/operations"),
    "GET projects/{project}/aggregated/operations": Shape(
        "globalOperations.aggregatedList", "OperationAggregatedList", query=LIST
    ),
    "GET projects/{project}": Shape("projects.get", "Project"),
    "GET projects/{project}/zones": Shape("zones.list", "ZoneList"),
    "GET projects/{project}/zones/{name}": Shape("zones.get", None),
    "GET projects/{project}/regions": Shape("regions.list", "RegionList"),
    "GET projects/{project}/regions/{name}": Shape("regions.get", None),
}
"""By method and path, as in `Route`."""


# ---------------------------------------------------------------------------------------------- parameters


def _whole(*patterns: re.Pattern[str]) -> Schema:
    return {"type": "string", "pattern": f"^(?:{'|'.join(pattern.pattern for pattern in patterns)})$"}


_NAME = _whole(NAME)
_PATH = {
    "version": {"enum": ["v1", "beta"]},
    "project": _whole(PROJECT, re.compile(re.escape(ANY_PROJECT))),
    "image": _whole(NAME, NUMERIC_ID),
    "machineImage": _whole(NAME, NUMERIC_ID),
    "operation": _whole(NAME, NUMERIC_ID, REQUEST_ID),
}
"""Parameters that stand for anything, such as a zone, are not here."""

_QUERY = {
    "requestId": {**_whole(REQUEST_ID), "format": "uuid"},
    "forceCreate": {"type": "boolean"},
    "sourceInstance": {"type": "string"},
    "filter": {"type": "string"},
    "maxResults": {"type": "integer", "minimum": 0, "maximum": LARGEST_PAGE, "default": LARGEST_PAGE},
    "orderBy": {"enum": ["name", NEWEST_FIRST]},
    "pageToken": {"type": "string"},
    "returnPartialSuccess": {"type": "boolean"},
}

# ---------------------------------------------------------------------------------------------- components

_INT64 = {"type": "string", "format": "int64", "pattern": "^-?[0-9]{1,20}$"}
_TIME = {"type": "string", "format": "date-time"}
_SECRET = {"type": "string", "contentEncoding": "base64", "writeOnly": True}
_UNKNOWN_TO_MSGSPEC: dict[type, Schema] = {Int64: _INT64, Time: _TIME, Secret: _SECRET}
_DESCRIPTION = {"maxLength": MAX_DESCRIPTION}
_LABELS = {"maxProperties": MAX_LABELS}

_RULES: Mapping[str, Mapping[str, Schema]] = {
    "Image": {
        "architecture": {"enum": list(ARCHITECTURES)},
        "description": _DESCRIPTION,
        "family": _NAME,
        "labels": _LABELS,
        "name": _NAME,
        "params": {"writeOnly": True},
        "sourceType": {"enum": ["RAW"]},
        **{field: {"readOnly": True} for field in sorted(OUTPUT_ONLY)},
        "creationTimestamp": {**_TIME, "readOnly": True},
    },
    "ImagePatch": {"description": _DESCRIPTION},
    "RawDisk": {"containerType": {"enum": ["TAR"]}, "sha1Checksum": {"pattern": "^[a-fA-F0-9]{40}$"}},
    "GuestOsFeature": {"type": {"enum": list(GUEST_OS_FEATURES)}},
    "FileContentBuffer": {"content": {"contentEncoding": "base64"}, "fileType": {"enum": list(FILE_TYPES)}},
    "CustomerEncryptionKey": {"sha256": {"readOnly": True}},
    "DeprecationStatus": {
        "state": {"enum": list(DeprecationState)},
        "deprecated": _TIME,
        "obsolete": _TIME,
        "deleted": _TIME,
    },
    "MachineImage": {
        "description": _DESCRIPTION,
        "labels": _LABELS,
        "name": _NAME,
        "guestFlush": {"writeOnly": True},
        "params": {"writeOnly": True},
        "sourceDiskEncryptionKeys": {"writeOnly": True},
        **{field: {"readOnly": True} for field in sorted(MACHINE_IMAGE_OUTPUT_ONLY)},
        "creationTimestamp": {**_TIME, "readOnly": True},
    },
    "Operation": {
        "id": _INT64,
        "targetId": _INT64,
        "progress": {"minimum": 0, "maximum": 100},
        "insertTime": _TIME,
        "startTime": _TIME,
        "endTime": _TIME,
    },
    "Policy": {"version": {"format": "int32", "minimum": -(2**31), "maximum": 2**31 - 1}},
}
"""What the types of the structs do not say. A struct's own schema says the rest."""


def _ref(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}


def _object(required: str, **properties: Schema) -> Schema:
    return {
        "type": "object",
        "properties": properties,
        "required": required.split(),
        "additionalProperties": False,
    }


_STRING: Schema = {"type": "string"}


def _list(kind: str, item: str | None = None) -> Schema:
    """Without `item`, a list that is always empty."""
    items = {"type": "array", "items": _ref(item)} if item else {"type": "array", "maxItems": 0}
    return _object(
        "kind selfLink",
        kind={"const": f"compute#{kind}"},
        id=_STRING,
        items=items,
        nextPageToken=_STRING,
        selfLink=_STRING,
    )


_COMPONENTS: Mapping[str, Schema] = {
    "ImageList": _list("imageList", "Image"),
    "MachineImageList": _list("machineImageList", "MachineImage"),
    "OperationList": _list("operationList", "Operation"),
    "OperationAggregatedList": _object(
        "kind id items selfLink",
        kind={"const": "compute#operationAggregatedList"},
        id=_STRING,
        items={"type": "object", "additionalProperties": _ref("OperationsScopedList")},
        nextPageToken=_STRING,
        selfLink=_STRING,
    ),
    "OperationsScopedList": _object("operations", operations={"type": "array", "items": _ref("Operation")}),
    "ZoneList": _list("zoneList"),
    "RegionList": _list("regionList"),
    "Project": _object(
        "kind id name commonInstanceMetadata selfLink",
        kind={"const": "compute#project"},
        id=_INT64,
        name=_STRING,
        commonInstanceMetadata=_object("kind", kind={"const": "compute#metadata"}),
        quotas={"type": "array", "items": _ref("Quota")},
        selfLink=_STRING,
    ),
    "Quota": _object(
        "metric limit usage",
        metric={"enum": [metric.compute_name for metric in Metric]},
        limit={"type": "number"},
        usage={"type": "number"},
    ),
    "SetPolicyRequest": _object(
        "", policy=_ref("Policy"), bindings={"type": "array", "items": _ref("Binding")}, etag=_STRING
    ),
    "Empty": _object(""),
    "Error": _object(
        "error",
        error=_object(
            "code message errors status",
            code={"type": "integer", "minimum": 400, "maximum": 599},
            message=_STRING,
            errors={
                "type": "array",
                "minItems": 1,
                "items": _object(
                    "message domain reason",
                    message=_STRING,
                    domain={"const": "global"},
                    reason=_STRING,
                    location=_STRING,
                    locationType={"enum": ["header", "parameter"]},
                ),
            },
            status=_STRING,
        ),
    ),
}
"""What has no struct of its own: lists, and answers that are written member by member."""


def _schemas() -> dict[str, Schema]:
    kinds = {kind for shape in SHAPES.values() for kind in (shape.gives, shape.takes) if isinstance(kind, type)}
    _, made = msgspec.json.schema_components(
        sorted(kinds, key=lambda kind: kind.__name__),
        schema_hook=lambda kind: dict(_UNKNOWN_TO_MSGSPEC[kind]),
        ref_template="#/components/schemas/{name}",
    )
    schemas = {name: _plain(schema) for name, schema in made.items()}
    for name, rules in _RULES.items():
        properties = schemas[name]["properties"]
        for field, rule in rules.items():
            properties[field] = {**properties[field], **rule}
    return dict(sorted({**schemas, **_COMPONENTS}.items()))


def _plain(schema: Any) -> Any:
    """As callers need it: absent rather than null, and without our docstrings, which speak to who reads the code."""
    if isinstance(schema, list):
        return [_plain(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    match schema:
        case {"anyOf": [only, {"type": "null"}]}:
            return _plain(only)
        case {"properties": dict(properties)}:
            kept = {name: part for name, part in schema.items() if name in ("type", "required", "additionalProperties")}
            return {**kept, "properties": {name: _plain(part) for name, part in properties.items()}}
    return {name: _plain(part) for name, part in schema.items() if name not in ("default", "description", "title")}


# ---------------------------------------------------------------------------------------------- the document


def document(routes: Iterable[Route]) -> dict[str, Any]:
    """The document of `routes`. Raises KeyError for a route that is missing in SHAPES."""
    paths: dict[str, Any] = {}
    for route in routes:
        path = f"/compute/{{version}}/{route.path}"
        shape = SHAPES[f"{route.method} {route.path}"]
        item = paths.setdefault(
            path, {"parameters": [_parameter(name, "path") for name in re.findall(r"{(\w+)}", path)]}
        )
        item[route.method.lower()] = _operation(shape)
    paths["/batch/compute/{version}"] = _BATCH
    return {
        "openapi": "3.1.0",
        "info": {"title": "imageopsd", "version": version("imageopsd"), "description": DESCRIPTION},
        "servers": [{"url": "/"}],
        "security": [{}, {"token": []}],  # none where the daemon has no tokens file
        "paths": paths,
        "components": {
            "schemas": _schemas(),
            "responses": {"Error": {"description": "What was wrong with it.", **_json(_ref("Error"))}},
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(shape: Shape) -> dict[str, Any]:
    operation: dict[str, Any] = {"operationId": shape.name, "tags": [shape.name.partition(".")[0]]}
    if shape.query:
        operation["parameters"] = [_parameter(name, "query") for name in shape.query]
    if shape.takes:
        operation["requestBody"] = {"required": True, **_json(_ref(_name(shape.takes)))}
    good = {"200": {"description": "Done.", **_json(_ref(_name(shape.gives)))}} if shape.gives else {}
    error = {"$ref": "#/components/responses/Error"}
    return {**operation, "responses": {**good, "4XX": error, "5XX": error}}


def _parameter(name: str, place: str) -> dict[str, Any]:
    schema = _PATH.get(name, _STRING) if place == "path" else _QUERY[name]
    return {"name": name, "in": place, "required": place == "path", "schema": schema}


def _name(kind: type[msgspec.Struct] | str) -> str:
    return kind if isinstance(kind, str) else kind.__name__


def _json(schema: Schema) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


_MIXED = {"content": {"multipart/mixed": {"schema": {"type": "string"}}}}
_BATCH = {
    "parameters": [_parameter("version", "path")],
    "post": {
        "operationId": "batch",
        "tags": ["batch"],
        "description": "Calls as parts of type application/http, answered in their order.",
        "requestBody": {"required": True, **_MIXED},
        "responses": {
            "200": {"description": "Every part was answered.", **_MIXED},
            "4XX": {"$ref": "#/components/responses/Error"},
            "5XX": {"$ref": "#/components/responses/Error"},
        },
    },
}
