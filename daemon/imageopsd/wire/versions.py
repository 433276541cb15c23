"""The two versions of the API, v1 and beta, with one state behind them: what only beta has is an unknown name in v1's
requests and stands in none of its answers (`diff_v1_beta.json`). Jobs in a queue name no version and may use both."""

from collections.abc import Iterator
from typing import TypeVar

from msgspec.structs import fields, replace

from imageopsd.model.errors import InvalidRequest
from imageopsd.model.image import DeprecationStatus, Image, Part
from imageopsd.model.machine_image import MachineImage

V1, BETA = "v1", "beta"

ONLY_BETA: dict[type[Part], frozenset[str]] = {
    Image: frozenset({"locked", "rollout_override"}),
    DeprecationStatus: frozenset({"state_override"}),
}

P = TypeVar("P", bound=Part)
R = TypeVar("R", Image, MachineImage)


def known_in(version: str, sent: P, field: str) -> P:
    """What was sent as `field`, if that version has all of it. Raises InvalidRequest as for any unknown name."""
    for where in _only_beta(sent, field) if version == V1 else ():
        name = where.rpartition(".")[2]
        raise InvalidRequest(
            where, f"Invalid JSON payload received. Unknown name '{name}' at '{where}'. Only beta has it."
        )
    return sent


def as_of(version: str, resource: R) -> R:
    """An image or machine image as that version answers it: with its members, and links to itself."""
    link = str(resource.self_link).replace(f"/compute/{V1}/", f"/compute/{version}/")
    return replace(resource if version == BETA else _without_beta(resource), self_link=link)


def _only_beta(part: Part, path: str) -> Iterator[str]:
    """Where in it something stands that only beta has."""
    for member in fields(part):
        value, where = getattr(part, member.name), f"{path}.{member.encode_name}"
        if value is not None and member.name in ONLY_BETA.get(type(part), ()):
            yield where
        elif isinstance(value, Part):
            yield from _only_beta(value, where)


def _without_beta(part: P) -> P:
    values = {member.name: getattr(part, member.name) for member in fields(part)}
    inner = {name: _without_beta(value) for name, value in values.items() if isinstance(value, Part)}
    return replace(part, **inner | dict.fromkeys(ONLY_BETA.get(type(part), ())))
