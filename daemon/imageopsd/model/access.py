"""Who may do what: the callers that a tokens file knows, and the permission that each path needs.

The file and the requests are read by `api.access`. Names and sentences are Compute's: "Required
'compute.images.list' permission for 'projects/p'" (GoogleCloudPlatform/compute-image-tools#632), a family named in full
(flatcar/Flatcar#314). The scopes are three where Compute has a permission for each verb.
"""

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from enum import StrEnum
from hashlib import sha256
from http import HTTPStatus
from typing import Any

import msgspec

from imageopsd.model.errors import RequestError, shown
from imageopsd.model.names import ANY_PROJECT, PROJECT
from imageopsd.model.requests import AnyRequest

EVERY_PROJECT = "*"
"""In a tokens file: all projects there are and will be."""


class Scope(StrEnum):
    """What a token is good for."""

    READ = "read"
    SUBMIT = "submit"
    """Whatever leaves an Operation or changes something in a project; implies READ, for nobody can submit without
    following what became of it."""
    ADMIN = "admin"
    """What concerns the daemon rather than a project; implies the others."""

    @property
    def implied(self) -> frozenset["Scope"]:
        return frozenset(list(Scope)[: list(Scope).index(self) + 1])


class Permission(msgspec.Struct, frozen=True):
    """What a request needs. `project` is `-` where it concerns all projects and `None` where it concerns none;
    `resource` is what a refusal names; `collection` is the path that a new resource's name is put after."""

    name: str
    scope: Scope
    project: str | None
    resource: str
    collection: str = ""


class Unauthenticated(RequestError):
    """Nobody we know. `reason` and the texts are what Google's services answer, as recorded from Drive and Gmail:
    `required` without credentials, `authError` with bad ones."""

    http_status = HTTPStatus.UNAUTHORIZED
    status = "UNAUTHENTICATED"
    code = "UNAUTHENTICATED"

    def __init__(self, *, missing: bool) -> None:
        super().__init__(
            f"Request {'is missing required' if missing else 'had invalid'} authentication credentials. "
            "Expected a token of the daemon's tokens file as 'Authorization: Bearer TOKEN'."
        )
        self.missing = missing
        self.reason = "required" if missing else "authError"
        self.summary = "Login Required." if missing else "Invalid Credentials"


class PermissionDenied(RequestError):
    """Somebody we know, who may not. It is said before anything is looked up, so it tells nothing of what is there."""

    http_status = HTTPStatus.FORBIDDEN
    reason = "forbidden"
    status = "PERMISSION_DENIED"
    code = "PERMISSION_DENIED"

    def __init__(self, permission: Permission) -> None:
        super().__init__(f"Required '{permission.name}' permission for '{permission.resource}'")
        self.permission = permission


class Caller(msgspec.Struct, frozen=True):
    """Somebody who was let in. `name` becomes the `user` of their operations; `scopes` are with what they imply;
    `projects` are ids, or EVERY_PROJECT."""

    name: str
    scopes: frozenset[Scope]
    projects: frozenset[str]

    def reaches(self, project: str) -> bool:
        """The wildcard `-` is for those who reach every project: no token can list it."""
        return EVERY_PROJECT in self.projects or project in self.projects

    def check(self, permission: Permission) -> None:
        """Raises PermissionDenied."""
        if permission.scope not in self.scopes or not (permission.project is None or self.reaches(permission.project)):
            raise PermissionDenied(permission)

    def granted(self, names: Iterable[str], collection: str) -> tuple[str, ...]:
        """Those of the permissions `compute.COLLECTION.VERB` that calls of theirs would be let in with, in a project
        that they reach. Others are not about what stands in that collection."""
        verbs = ((name, *name.rpartition(".")[::2]) for name in names)
        mine = f"compute.{collection}"
        return tuple(name for name, of, verb in verbs if of == mine and verb and _scope(verb) in self.scopes)

    def check_sources(self, request: AnyRequest) -> None:
        """An image or machine image is made of what its caller may read, or a copy would carry it out of a project.
        Raises PermissionDenied."""
        for collection, field in _SOURCES.items():
            link = getattr(request.made, field, None) or ""
            # every project in it, wherever it stands: which of them is meant is not decided here
            for found in _PROJECT_IN_LINK.finditer(link):
                resource = shown(link[found.start("path") :])
                self.check(Permission(f"compute.{collection}.useReadOnly", Scope.READ, found["project"], resource))


ANONYMOUS = Caller("anonymous", frozenset(Scope), frozenset({EVERY_PROJECT}))
"""Whoever reaches a listener that asks for no token: everybody on this host."""

LOCAL = Caller("local", frozenset(Scope), frozenset({EVERY_PROJECT}))
"""A command on this host that could read the data directory, and so everything in it."""

QUEUE = Caller("queue", frozenset(Scope), frozenset({EVERY_PROJECT}))
"""Whoever could put a job into the queue: its own access rights decided who that is."""


# ------------------------------------------------------------------------------------------- permissions

_PROJECT_IN_LINK = re.compile(r"(?:^|/)(?P<path>projects/(?P<project>[^/]+))")
_SOURCES = {
    "images": "source_image",
    "disks": "source_disk",
    "snapshots": "source_snapshot",
    "instances": "source_instance",
}
_VARIABLE = re.compile(r"\{(\w+)\}")
_VERBS = {"GET": "get", "HEAD": "get", "POST": "create", "PUT": "update", "PATCH": "update", "DELETE": "delete"}
_PLACES = {"global": "global", "aggregated": "global", "zones": "zone", "regions": "region"}
_READING = frozenset({"get", "getFromFamily", "getIamPolicy", "list", "testIamPermissions", "useReadOnly"})
"""The verbs that READ is good for, however they are sent; all others need SUBMIT."""


def _scope(verb: str) -> Scope:
    return Scope.READ if verb in _READING else Scope.SUBMIT


_OURS = {
    "/metrics": Permission("imageopsd.metrics.get", Scope.READ, None, "/metrics"),
    "/status": Permission("imageopsd.status.get", Scope.READ, ANY_PROJECT, "/status"),
    "/events": Permission("imageopsd.status.get", Scope.READ, ANY_PROJECT, "/events"),
}
"""Metrics carry no names of anybody's; the status shows operations of all projects."""


def needed_here(path: str) -> Permission:
    """The permission for a path outside of the Compute API. What nobody thought of needs ADMIN."""
    return _OURS.get(path) or Permission("imageopsd.daemon.manage", Scope.ADMIN, ANY_PROJECT, path)


def needed(method: str, template: str, values: Mapping[str, str]) -> Permission:
    """The permission for a call of the Compute API. `template` is the route that was found, as the discovery document
    writes it (`projects/{project}/global/images/{image}`), and `values` is what was found in it: what is checked is
    what is served. A path that is read twice is read differently some day."""
    path = template.split("/")
    in_project = path[:2] == ["projects", "{project}"]
    head, rest = (path[:2], path[2:]) if in_project else ([], path)
    place = ""
    if rest and (rest[0] in ("global", "aggregated") or len(rest) > 2):
        length = 1 if rest[0] in ("global", "aggregated") else 2  # zones/{zone}, regions/{region}, locations/global
        place = _PLACES.get(rest[0], "globalOrganization")
        head, rest = head + rest[:length], rest[length:]
    collection, tail = (rest[0], rest[1:]) if rest else ("projects", head[1:2])
    action = tail[-1] if tail and not _VARIABLE.fullmatch(tail[-1]) else ""
    project = values["project"] if in_project else ANY_PROJECT
    kind = f"{place}Operations" if collection == "operations" else collection
    verb = _VERBS.get(method, "update") if tail else "list" if method in ("GET", "HEAD") else "create"
    if action:
        verb = "get" if action == "wait" else action
    whole = "/".join(_VARIABLE.sub(lambda name: shown(values[name[1]]), part) for part in path)
    return Permission(
        f"compute.{kind}.{verb}",
        _scope(verb),
        project,
        whole.removesuffix(f"/{action}") if tail else f"projects/{shown(project)}",
        whole if verb == "create" and not tail else "",
    )


# ------------------------------------------------------------------------------------------- the tokens file

NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._@-]{0,62}[A-Za-z0-9])?")
RESERVED = frozenset({ANONYMOUS.name, LOCAL.name, QUEUE.name})
"""Users of records that no token stands behind."""

_KEYS = ("name", "sha256", "scopes", "projects")
_DIGEST = re.compile(r"[0-9a-fA-F]{64}")
_NOTHING = sha256().digest()


class Token(msgspec.Struct, frozen=True):
    """`digest` is the SHA-256 of the token. No salt and no stretching: tokens are random, not chosen by people."""

    digest: bytes
    caller: Caller


class TokensInvalid(Exception):
    """Everything that is wrong with a tokens file, one sentence a problem. None repeats what stands at `sha256`:
    people put the token itself there."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


def read_tokens(text: str) -> tuple[Token, ...]:
    """The tokens of a file's text. One name may stand for several, so that an old and a new one overlap. A file
    without any is refused: it is one that is being written. Raises TokensInvalid."""
    try:
        table = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TokensInvalid([f"not TOML: {error}"]) from error
    problems = [_unknown(name, ("token",)) for name in table if name != "token"]
    entries = table.get("token", [])
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise TokensInvalid([*problems, "Expected at least one [[token]] table"])
    first: dict[bytes, int] = {}
    for number, entry in enumerate(entries, start=1):
        told = list(_problems(entry))
        digest = _digest(entry.get("sha256"))
        if digest is not None and (same := first.setdefault(digest, number)) != number:
            told.append(f"sha256: the same as that of token {same}")
        name = entry.get("name")
        label = f"token {number}" + (f" ('{name}')" if isinstance(name, str) and NAME.fullmatch(name) else "")
        problems += [f"{label}: {problem}" for problem in told]
    if problems:
        raise TokensInvalid(problems)
    return tuple(_token(entry) for entry in entries)


def _problems(entry: Mapping[str, Any]) -> Iterator[str]:
    yield from (_unknown(key, _KEYS) for key in entry if key not in _KEYS)
    yield from (f"{key}: missing" for key in _KEYS if key not in entry)
    name = entry.get("name", "ci")
    if not isinstance(name, str) or not NAME.fullmatch(name):
        yield "name: Expected up to 64 letters, digits and '.', '_', '@' or '-' between them"
    elif name in RESERVED:
        yield f"name: '{name}' is what records say of those who came without a token; choose another"
    if "sha256" in entry and (digest := _digest(entry["sha256"])) in (None, _NOTHING):
        yield f"sha256: {'Expected 64 hexadecimal digits' if digest is None else 'that of an empty token'}"
    scopes = entry.get("scopes", [Scope.READ])
    if not isinstance(scopes, list) or not scopes or not all(scope in list(Scope) for scope in scopes):
        yield f"scopes: Expected a list with some of {', '.join(Scope)}"
    projects = entry.get("projects", [EVERY_PROJECT])
    if not isinstance(projects, list) or not projects or not all(map(_is_project, projects)):
        yield 'projects: Expected a list of project ids such as ["my-project"], or ["*"] for every project'


def _is_project(value: Any) -> bool:
    return isinstance(value, str) and (value == EVERY_PROJECT or PROJECT.fullmatch(value) is not None)


def _digest(value: Any) -> bytes | None:
    return bytes.fromhex(value) if isinstance(value, str) and _DIGEST.fullmatch(value) else None


def _token(entry: Mapping[str, Any]) -> Token:
    scopes = frozenset(implied for scope in entry["scopes"] for implied in Scope(scope).implied)
    caller = Caller(entry["name"], scopes, frozenset(entry["projects"]))
    return Token(bytes.fromhex(entry["sha256"]), caller)


def _unknown(key: str, known: Sequence[str]) -> str:
    close = get_close_matches(key, known, n=1)
    return f"{shown(key)}: unknown key." + (f" Did you mean '{close[0]}'?" if close else "")
