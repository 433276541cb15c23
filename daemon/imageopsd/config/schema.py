"""The JSON Schema (draft 2020-12) of the configuration file, made of the same structs that read it, for editors.

What a schema cannot say, rules between values such as that an address needs a tokens file, `config check` does.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from imageopsd.config.changes import FIXED, within
from imageopsd.config.loading import OptionTypes, fields
from imageopsd.config.settings import Settings
from imageopsd.model.durations import DURATION, Seconds

DIALECT = "https://json-schema.org/draft/2020-12/schema"

Schema = dict[str, Any]


def file_schema(plugs: OptionTypes, installed: Mapping[str, Collection[str]], manual: str) -> Schema:
    """`plugs` and `installed` are as `loading.load` has them; descriptions are the comments of `manual`, the text of
    `config/imageopsd.toml`."""
    definitions: dict[str, Schema] = {}
    notes = comments(manual)
    whole = _section(Settings, "", notes, definitions)
    for group, kinds in plugs.items():
        known = {name: _section(kind, f"{group}.{name}.", notes, definitions) for name, kind in kinds.items()}
        whole["properties"][group] = {"type": "object", "properties": known, "additionalProperties": False}
    for key, names in {"backend": plugs["backends"], **installed}.items():
        whole["properties"][key]["enum"] = sorted(names)
    return {"$schema": DIALECT, "title": "imageopsd.toml", **whole, "$defs": definitions}


def _section(kind: type[Any], prefix: str, notes: Mapping[str, str], definitions: dict[str, Schema]) -> Schema:
    defaults = kind()
    properties: dict[str, Schema] = {}
    for name, hint in fields(kind):
        key = f"{prefix}{name}"
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            properties[name] = _section(hint, f"{key}.", notes, definitions)
            continue
        found = _without_null(msgspec.json.schema(hint, schema_hook=_custom))
        definitions |= found.pop("$defs", {})
        if note := notes.get(key):
            found["description"] = f"{note}\n\nCounts from the next start on." if within(key, FIXED) else note
        default = msgspec.json.encode(getattr(defaults, name), enc_hook=str)
        properties[name] = found | {"default": msgspec.json.decode(default)}
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _custom(kind: type) -> Schema:
    if kind is Seconds:
        return {"type": "string", "pattern": f"^(?:{DURATION})$"}
    raise NotImplementedError(kind)


def _without_null(schema: Any) -> Any:
    """TOML has no null: what may be missing is left out there."""
    if isinstance(schema, list):
        return [_without_null(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {name: _without_null(value) for name, value in schema.items()}
    if plain.get("default", ...) is None:
        del plain["default"]
    match plain.get("anyOf"):
        case [something, {"type": "null"}]:
            plain |= something
            del plain["anyOf"]
    return plain


def comments(manual: str) -> dict[str, str]:
    """The comment above each key; keys that follow one another without an empty line share one."""
    found: dict[str, str] = {}
    table, note = "", list[str]()
    keys = False
    for line in manual.splitlines():
        if line.startswith("#"):
            note = [line[2:]] if keys else [*note, line[2:]]
            keys = False
        elif pair := re.match(r"(\w+) = ", line):
            found[table + pair[1]] = "\n".join(note)
            keys = True
        else:
            note = []
            if header := re.fullmatch(r"\[([\w.]+)\]", line):
                table = f"{header[1]}."
    return found
