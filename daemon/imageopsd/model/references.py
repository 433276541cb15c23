"""Instances, disks and snapshots that a caller names by URL: the neighbours of an image, none of them ours.

The patterns are as strict as Compute's own names, so that a reference can also be the path of a file: no part of it
is empty, begins with a dot or holds a slash.
"""

import re
from typing import NamedTuple

from imageopsd.model.errors import InvalidRequest
from imageopsd.model.names import LINK_ROOT, NAME, PROJECT, public_url

_REFERENCE = re.compile(
    r"(?:https?://[^/]+/compute/[^/]+/)?(?:projects/(?P<project>[^/]+)/)?(?:zones/(?P<zone>[^/]+)|global)/"
    r"(?P<collection>instances|disks|snapshots)/(?P<name>[^/]+)"
)


class Reference(NamedTuple):
    """`zone` is `None` for what is global; `collection` is `instances`, `disks` or `snapshots`."""

    project: str
    zone: str | None
    collection: str
    name: str

    @property
    def path(self) -> str:
        """The partial URL, by which error texts name it."""
        place = "global" if self.zone is None else f"zones/{self.zone}"
        return f"projects/{self.project}/{place}/{self.collection}/{self.name}"

    @property
    def link(self) -> str:
        return f"{LINK_ROOT}/v1/{self.path}"


def parse_instance_reference(text: str, project: str, field: str) -> Reference:
    """The instance of a full or partial URL; `project` where it names none. Raises InvalidRequest for `field`."""
    return _parsed(text, project, field, "instances", "an instance URL such as 'projects/P/zones/Z/instances/I'")


def parse_disk_reference(text: str, project: str, field: str) -> Reference:
    """The zonal disk of a full or partial URL. Raises InvalidRequest for `field`."""
    return _parsed(text, project, field, "disks", "a disk URL such as 'projects/P/zones/Z/disks/D'")


def parse_snapshot_reference(text: str, project: str, field: str) -> Reference:
    """The snapshot of a full or partial URL. Raises InvalidRequest for `field`."""
    return _parsed(text, project, field, "snapshots", "a snapshot URL such as 'projects/P/global/snapshots/S'")


def _parsed(text: str, project: str, field: str, collection: str, expected: str) -> Reference:
    match = _REFERENCE.fullmatch(text)
    if match is not None and match["collection"] == collection:
        found = Reference(match["project"] or project, match["zone"], collection, match["name"])
        zonal = collection != "snapshots"
        names = (found.zone, found.name) if zonal else (found.name,)
        if (
            zonal == (found.zone is not None)
            and PROJECT.fullmatch(found.project)
            and all(NAME.fullmatch(name or "") for name in names)
        ):
            return found
    raise InvalidRequest.value(field, public_url(text), f"Expected {expected}")
