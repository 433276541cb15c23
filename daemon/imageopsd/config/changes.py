"""What differs between two configurations, and what of it a running daemon can take over."""

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from imageopsd.config.settings import Settings

FIXED = frozenset({"data_dir", "backend", "store", "queue", "queues", "server", "tracing", "worker.lease"})
"""Keys and whole sections that count from the next start on, apart from what a backend says of its own options: what
the files are opened by, what the doors are, where traces go, and the lease, which claims that are held were promised.
The files that `server` names are read again by themselves."""


def changed(before: Settings, after: Settings) -> list[str]:
    """The dotted keys whose values differ."""
    was = values(before)
    return [key for key, value in values(after).items() if was.get(key) != value]


def values(section: Any, prefix: str = "") -> dict[str, Any]:
    """Every dotted key with its value, those of a section before its subsections, as TOML wants them."""
    plain: dict[str, Any] = {}
    inner: dict[str, Any] = {}
    pairs: Mapping[str, Any] = section if isinstance(section, dict) else msgspec.structs.asdict(section)
    for name, value in pairs.items():
        if isinstance(value, msgspec.Struct) or (not prefix and isinstance(value, dict)):
            inner |= values(value, f"{prefix}{name}.")
        else:
            plain[f"{prefix}{name}"] = value
    return plain | inner


def within(key: str, names: Collection[str]) -> bool:
    """Whether the key, or a section that it is in, is among `names`."""
    return key in names or any(key.startswith(f"{name}.") for name in names)
