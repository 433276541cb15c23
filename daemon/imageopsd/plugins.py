"""How a plug is found: backends, stores and queues by the name of their entry point, ours like anybody's.

A plug is a class with an `Options` struct and a constructor `(options, data_dir)` whose instance is an async
context manager that keeps the promise of its port.
"""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import EntryPoint, EntryPoints, entry_points
from pathlib import Path
from typing import Any

BACKENDS = "imageopsd.backends"
STORES = "imageopsd.stores"
QUEUES = "imageopsd.queues"


class PluginError(Exception):
    """No such plug, or it cannot be loaded."""


def names(group: str) -> list[str]:
    return sorted(entry.name for entry in _installed(group))


def find(group: str, name: str) -> Any:
    """The class behind `name`. Raises PluginError with the names there are."""
    found = _installed(group).select(name=name)
    if not found:
        raise PluginError(f"no '{name}' among {group}; installed: {', '.join(names(group)) or 'none'}")
    return _load(next(iter(found)))


def make(group: str, name: str, data_dir: Path, options: Mapping[str, Any] | None = None, **more: Any) -> Any:
    """The plug, made with what `options` has under its name, else with its defaults. Raises PluginError."""
    kind = find(group, name)
    return kind((options or {}).get(name) or kind.Options(), data_dir, **more)


def options() -> dict[str, dict[str, Any]]:
    """The options struct of every plug that has a section in the configuration, by section and name."""
    sections = {"backends": BACKENDS, "queues": QUEUES}
    return {
        section: {entry.name: _load(entry).Options for entry in _installed(group)}
        for section, group in sections.items()
    }


@cache
def _installed(group: str) -> EntryPoints:
    """Looking for them opens a file of every distribution there is."""
    return entry_points(group=group)


def _load(entry: EntryPoint) -> Any:
    try:
        return entry.load()
    except (ImportError, AttributeError) as error:
        raise PluginError(f"{entry.group} '{entry.name}' ({entry.value}) cannot be loaded: {error}") from error
