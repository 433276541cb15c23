"""Names, ids and links: what a project, an image and an operation may be called, and where each one lives.

The patterns are the discovery document's (`methods.v1.json`, `schemas_image.v1.json`).
"""

import re
from datetime import UTC, datetime

from imageopsd.model.errors import InvalidRequest

NAME = re.compile(r"[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?")
NAME_RULE = "Must be a match of regex '(?:[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?)'"
PROJECT = re.compile(
    r"(?:(?:[-a-z0-9]{1,63}\.)*(?:[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?):)?"
    r"(?:[0-9]{1,19}|(?:[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?))"
)
NUMERIC_ID = re.compile(r"[1-9][0-9]{0,19}")
REQUEST_ID = re.compile(r"[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}")
NO_REQUEST = "00000000-0000-0000-0000-000000000000"

LINK_ROOT = "https://www.googleapis.com/compute"
"""Links start with https:// whatever the listener is, as GCE's do: libcloud cannot follow others, and
clients keep only the path (`reference`: apache-libcloud GCEConnection)."""

_IMAGE_REFERENCE = re.compile(
    r"(?:https?://[^/]+/compute/[^/]+/)?(?:projects/(?P<project>[^/]+)/)?global/images/"
    r"(?:(?P<family>family/)?(?P<name>[^/]+))"
)


ANY_PROJECT = "-"
"""In place of a project: reads across all of them (AIP-159)."""


def check_project(project: str) -> str:
    if not PROJECT.fullmatch(project):
        raise InvalidRequest.value("project", project, "Expected a project id such as 'my-project'")
    return project


def check_request_id(request_id: str) -> str:
    """The id in its canonical lower-case form; the zero UUID is refused as GCE refuses it."""
    if not REQUEST_ID.fullmatch(request_id) or request_id == NO_REQUEST:
        raise InvalidRequest.value("requestId", request_id, "Must be a valid UUID and not the zero UUID")
    return request_id.lower()


# ------------------------------------------------------------------------------------------------- links


def project_link(project: str, version: str = "v1") -> str:
    return f"{LINK_ROOT}/{version}/projects/{project}"


def image_path(project: str, name: str) -> str:
    """The partial URL that error texts name an image by."""
    return f"projects/{project}/global/images/{name}"


def image_link(project: str, name: str, version: str = "v1") -> str:
    return f"{LINK_ROOT}/{version}/{image_path(project, name)}"


def full_link(reference: str, project: str) -> str:
    """A partial URL as a full one, of `project` where it names none: libcloud takes links apart by their slashes,
    counted from the front."""
    if "://" in reference:
        return reference
    path = reference if reference.startswith("projects/") else f"projects/{project}/{reference}"
    return f"{LINK_ROOT}/v1/{path}"


def operation_path(project: str, name: str) -> str:
    return f"projects/{project}/global/operations/{name}"


def operation_link(project: str, name: str, version: str = "v1") -> str:
    return f"{LINK_ROOT}/{version}/{operation_path(project, name)}"


def project_of(link: str) -> str:
    """The project in a link of ours."""
    return link.partition("/projects/")[2].partition("/")[0]


def parse_image_reference(text: str, project: str, field: str) -> tuple[str, str, bool]:
    """(project, name or family, is it a family) of a full or partial image URL; `project` where it names none."""
    match = _IMAGE_REFERENCE.fullmatch(text)
    if not match or not (NAME.fullmatch(match["name"]) or NUMERIC_ID.fullmatch(match["name"])):
        raise InvalidRequest.value(
            field,
            text,
            "Expected an image URL such as 'projects/PROJECT/global/images/IMAGE' or 'global/images/family/FAMILY'",
        )
    return check_project(match["project"] or project), match["name"], match["family"] is not None


def public_url(url: str) -> str:
    """A source's URL as texts may show it: what signs it (the query) or logs in (the user part) left out."""
    scheme, separator, rest = url.partition("://")
    authority, slash, path = re.split(r"[?#]", rest, maxsplit=1)[0].partition("/")
    return f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"


# --------------------------------------------------------------------------------------------------- ids

_EPOCH_MS = 1_704_067_200_000
"""2024-01-01; 41 bits of milliseconds from there reach the year 2093."""
_NODE_BITS, _COUNTER_BITS = 10, 12


def operation_name(operation_id: int) -> str:
    """`operation-<unix ms>-<id in hex>`: the name is a function of the id, so nothing has to index it."""
    milliseconds = (operation_id >> (_NODE_BITS + _COUNTER_BITS)) + _EPOCH_MS
    return f"operation-{milliseconds}-{operation_id:016x}"


def operation_id_of(name: str) -> int | None:
    """The id inside an operation's name, or `None` if it is no such name."""
    head, _, tail = name.rpartition("-")
    if not head.startswith("operation-") or not re.fullmatch(r"[0-9a-f]{16}", tail):
        return None
    number = int(tail, 16)
    return number if operation_name(number) == name else None


def first_id(time: datetime) -> int:
    """The smallest id that could be made at that time: ids of what is older are below it."""
    return max(int(time.astimezone(UTC).timestamp() * 1000) - _EPOCH_MS, 0) << (_NODE_BITS + _COUNTER_BITS)


class IdSource:
    """Ids that only ever grow: 41 bits of milliseconds, 10 of `node`, 12 of counter; 63 bits in all, because
    SQLite and PostgreSQL integers are signed. More than 4096 in one millisecond borrow from the next; a clock
    that went back counts on from `last`."""

    def __init__(self, node: int, last: int = 0) -> None:
        self._node = node % (1 << _NODE_BITS)
        self._last = last

    def next(self, now: datetime) -> int:
        stem = first_id(now) | (self._node << _COUNTER_BITS)
        self._last = stem if stem > self._last else self._last + 1
        return self._last
