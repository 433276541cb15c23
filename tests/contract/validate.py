"""Is an answer what the Compute discovery document says it is?

The JSON files beside this one are facts taken from google-api-python-client (each names its revision): `schemas_…` say
what answers look like, `methods.…` what is answered where (`answers.py`). A field reads
`{"t": type, "f": format, "ref": schema, "items": element, "map": value type, "props": object, "enum": values}`.
"""

import base64
import binascii
import json
import re
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent
VERSIONS = ("v1", "beta")

OUR_METRICS = ("IMAGE_GB", "STORED_BYTES", "OPERATIONS_IN_FLIGHT", "INSERTS_PER_SOURCE")
"""Quotas that Compute does not have. The one place where answers go beyond the document: clients take an enum's value
that they do not know, and hiding a limit that refuses would help nobody."""


def _schemas(version: str) -> dict[str, Any]:
    files = sorted(_HERE.glob(f"schemas_*.{version}.json"))
    schemas = {name: schema for file in files for name, schema in json.loads(file.read_text())["schemas"].items()}
    schemas["Quota"]["metric"]["enum"] += OUR_METRICS
    return schemas


SCHEMAS: dict[str, dict[str, Any]] = {version: _schemas(version) for version in VERSIONS}

_TYPES: dict[str, Any] = {
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "array": list,
    "object": dict,
    "any": object,
}
_BOUNDS = {"int32": (-(2**31), 2**31), "int64": (-(2**63), 2**63), "uint64": (0, 2**64)}
_TIMES = {"creationTimestamp", "insertTime", "startTime", "endTime"}
"""Plain strings by the document, RFC 3339 by its prose."""


def assert_valid(schema: str, value: Any, version: str = "v1") -> None:
    """Fails with everything that is wrong with `value` as an answer of that kind."""
    found = list(problems(schema, value, version))
    assert found == [], found


def problems(schema: str, value: Any, version: str = "v1") -> Iterator[str]:
    """Each problem with the path where it is: unknown and input-only fields, wrong types, enums and formats, nulls."""
    schemas = SCHEMAS[version]
    yield from _object(schema, schemas[schema], value, schemas)
    if isinstance(value, dict):
        kind = schemas[schema].get("kind", {}).get("default")
        if kind is not None and value.get("kind") != kind:
            yield f"{schema}.kind: {value.get('kind')!r} is not {kind!r}"


def _object(path: str, fields: dict[str, Any], value: Any, schemas: dict[str, Any]) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{path}: {value!r} is no object"
        return
    for name, inner in value.items():
        field = fields.get(name)
        if field is None:
            yield f"{path}.{name}: not in the schema"
        elif field.get("input_only"):
            yield f"{path}.{name}: never part of an answer"
        else:
            yield from _value(f"{path}.{name}", field, inner, schemas)


def _value(path: str, field: dict[str, Any], value: Any, schemas: dict[str, Any]) -> Iterator[str]:
    if "ref" in field:
        yield from _object(path, schemas[field["ref"]], value, schemas)
        return
    kind = field["t"]
    if not isinstance(value, _TYPES[kind]) or (kind in ("integer", "number") and isinstance(value, bool)):
        yield f"{path}: {value!r} is no {kind}"
    elif kind == "array":
        for number, item in enumerate(value):
            yield from _value(f"{path}[{number}]", field["items"], item, schemas)
    elif "props" in field:
        yield from _object(path, field["props"], value, schemas)
    elif kind == "object":
        for name, inner in value.items():
            yield from _value(f"{path}[{name}]", field["map"], inner, schemas)
    else:
        yield from _scalar(path, field, value)


def _scalar(path: str, field: dict[str, Any], value: Any) -> Iterator[str]:
    form = field.get("f")
    if "enum" in field and value not in field["enum"]:
        yield f"{path}: {value!r} is none of {', '.join(field['enum'])}"
    if "pattern" in field and not re.fullmatch(field["pattern"], value):
        yield f"{path}: {value!r} does not match {field['pattern']}"
    if form in _BOUNDS:
        if isinstance(value, str) and not re.fullmatch(r"-?(0|[1-9][0-9]*)", value, re.ASCII):
            yield f"{path}: {value!r} is no {form}"
        elif not _BOUNDS[form][0] <= int(value) < _BOUNDS[form][1]:
            yield f"{path}: {value} is beyond {form}"
    if form == "byte" and not _is_base64(value):
        yield f"{path}: {value!r} is not base64"
    if (form == "google-datetime" or path.rpartition(".")[2] in _TIMES) and not _is_time(value):
        yield f"{path}: {value!r} is no RFC 3339 time"


def _is_base64(text: str) -> bool:
    try:
        base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return False
    return True


def _is_time(text: str) -> bool:
    """A date, a time and an offset: what RFC 3339 asks for beyond ISO 8601."""
    try:
        return "T" in text and datetime.fromisoformat(text).utcoffset() is not None
    except ValueError:
        return False
