"""JSON from strangers into structs of the model, with errors that name the field the caller wrote."""

import json
import re
from difflib import get_close_matches
from typing import Any, TypeVar

import msgspec

from imageopsd.model.errors import InvalidRequest, shown
from imageopsd.model.image import decode_hook

T = TypeVar("T", bound=msgspec.Struct)

MAX_DEPTH = 16
"""Levels of nesting; an Image has five."""

MAPS = frozenset({"labels", "resourceManagerTags"})
"""Members whose own members the caller names: there an empty string is a value."""

_AT = re.compile(r"(?P<problem>.*?)(?: - at `(?P<kind>key in )?\$(?P<path>.*)`)?", re.DOTALL)
_STEP = re.compile(r"\.(?P<name>[^.\[]+)|\[(?P<index>\d+)\]|(?P<somewhere>\[\.\.\.\])")
_UNKNOWN = re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(?P<name>.*)`", re.DOTALL)
_TYPE = re.compile(r"Expected `(?P<expected>.*?)`, got `(?P<got>.*?)`")
_TYPE_NAMES = {"str": "a string", "bool": "a boolean", "int": "an integer", "object": "an object", "array": "a list",
               "float": "a number", "null": "null"}  # fmt: skip
_JSON_TYPES = {str: "str", bool: "bool", int: "int", dict: "object", list: "array", float: "float", type(None): "null"}
"""How msgspec names the types of JSON's values."""


def parse(data: bytes, what: str) -> Any:
    """The JSON value in `data`. Raises InvalidRequest saying where it stops being JSON, or which name stands twice in
    one object: of two readers one would take the first and one the last (RFC 8259, section 4)."""
    try:
        value = msgspec.json.decode(data)
        json.loads(data, object_pairs_hook=_each_once)
        return value
    except _Twice as error:
        raise InvalidRequest(what, f"Invalid JSON payload received for '{what}': {error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(what, f"Invalid JSON payload received for '{what}': {error}.") from error
    except RecursionError as error:
        raise InvalidRequest(what, f"Invalid JSON payload received for '{what}': nested too deeply.") from error


class _Twice(Exception):
    pass


def _each_once(members: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in members]
    if len(set(names)) != len(names):
        name = next(name for name in names if names.count(name) > 1)
        raise _Twice(f"the name '{shown(name)}' stands twice in one object")


def without_empties(value: Any, what: str, keep: frozenset[str] = frozenset()) -> Any:
    """`value` without null, "", {} and []: clients send them for what they did not set (npm's `"labels": {}`,
    libcloud's nulls, unset protobuf enums). Top-level members named in `keep` may be empty strings. Raises
    InvalidRequest for `what` where it is nested deeper than anything we know."""
    if not isinstance(value, dict):
        return _cleaned(value, what, MAX_DEPTH)
    kept = {name: "" for name in keep & value.keys() if value[name] == ""}
    return _cleaned(value, what, MAX_DEPTH) | kept


def _cleaned(value: Any, what: str, depth: int) -> Any:
    if depth == 0:
        raise InvalidRequest(what, f"Invalid JSON payload received for '{what}': nested too deeply.")
    if isinstance(value, dict):
        cleaned = {
            name: item if name in MAPS and isinstance(item, dict) else _cleaned(item, what, depth - 1)
            for name, item in value.items()
        }
        return {name: item for name, item in cleaned.items() if not _empty(item)}
    if isinstance(value, list):
        return [_cleaned(item, what, depth - 1) for item in value]
    return value


def _empty(value: Any) -> bool:
    return value is None or value in ("", {}, [])


def convert(value: Any, kind: type[T], prefix: str) -> T:
    """`value` as a `kind`. Raises InvalidRequest whose field is `prefix` and the path inside `value`."""
    if not isinstance(value, dict):
        raise InvalidRequest(prefix, f"Invalid value for field '{prefix}'. Expected an object.")
    try:
        return msgspec.convert(value, kind, dec_hook=decode_hook)
    except msgspec.ValidationError as error:
        raise _explained(str(error), value, kind, prefix) from None


def _explained(text: str, value: Any, kind: type[msgspec.Struct], prefix: str) -> InvalidRequest:
    """msgspec's one sentence as ours. It holds no values, so no secret can slip into an error through here."""
    match = _AT.fullmatch(text)
    assert match is not None  # the pattern takes any text
    problem = match["problem"]
    types = _TYPE.fullmatch(problem)
    field = prefix + _named(match["path"] or "", value, types["got"] if types else "")
    if missing := _MISSING.fullmatch(problem):
        return InvalidRequest.missing(f"{field}.{missing['name']}", "Expected a value")
    if unknown := _UNKNOWN.fullmatch(problem):
        name = shown(unknown["name"])
        close = get_close_matches(name, _field_names(kind), n=1)
        hint = f" Did you mean '{close[0]}'?" if close else ""
        field = f"{field}.{name}"
        return InvalidRequest(field, f"Invalid JSON payload received. Unknown name '{name}' at '{field}'.{hint}")
    if types:
        expected = " or ".join(_TYPE_NAMES.get(t, t) for t in types["expected"].split(" | ") if t != "null")
        problem = f"Expected {expected}, got {_TYPE_NAMES.get(types['got'], types['got'])}"
    return InvalidRequest(field, f"Invalid value for field '{field}'. {problem}.")


def _named(path: str, value: Any, got: str) -> str:
    """A path into `value` with the names that stand there: of a map's values msgspec tells only the type, `got`, at
    `[...]`, and means the first of that type."""
    place = ""
    for step in _STEP.finditer(path):
        if step["somewhere"]:
            name = next((name for name, item in value.items() if _JSON_TYPES.get(type(item)) == got), "")
            return f"{place}.{shown(name)}"
        value = value[int(step["index"])] if step["index"] else value[step["name"]]
        place += step[0]
    return path


def _field_names(kind: type[msgspec.Struct]) -> set[str]:
    """Every name the wire form of `kind` knows, at any depth: what a mistyped one may have been meant as."""
    schema = msgspec.json.schema(kind, schema_hook=lambda _: {"type": "string"})
    return {name for part in schema["$defs"].values() for name in part.get("properties", {})}
