"""The door-keeper: bearer tokens from a file of hashes, in front of every route but the probes.

With a tokens file nothing is answered without a token on any listener, loopback included; without one everybody is
`anonymous` and the daemon listens on loopback only (`config.settings`). What a caller may do is `model.access`.
Tokens come in the Authorization header alone (RFC 6750, 2.1); in a query they would end in logs and histories, so
`access_token` and `key` are what all unknown parameters are: ignored.
"""

import hmac
import os
import secrets
import stat
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path

import msgspec
import structlog
from aiohttp import web

from imageopsd.api.envelope import Answer
from imageopsd.api.files import FileWatch
from imageopsd.api.peers import certificate_caller, unix_caller, unix_user
from imageopsd.model import names
from imageopsd.model.access import (
    ANONYMOUS,
    LOCAL,
    Caller,
    Permission,
    PermissionDenied,
    Token,
    TokensInvalid,
    Unauthenticated,
    needed_here,
    read_tokens,
)
from imageopsd.model.errors import RequestError
from imageopsd.wire.compute import encode_error, encode_list

log = structlog.stdlib.get_logger(__name__)

LARGEST_FILE = 1024 * 1024
"""Bytes; some five thousand tokens."""
OPEN = frozenset({"/livez", "/readyz", "/startupz", "/openapi.json", "/"})
"""Probes: a kubelet has no token, and they say nothing but one word. What describes the API is no secret, and the live
page holds no data: it asks for a token and fetches `/events` with it."""
DISPATCHED = ("/compute/", "/batch/compute/")
"""Here only who it is is asked; what they may is asked for each call."""
PUBLIC_IMAGE_PROJECTS = frozenset(
    {
        "centos-cloud", "coreos-cloud", "cos-cloud", "debian-cloud", "opensuse-cloud", "rhel-cloud", "suse-byos-cloud",
        "suse-cloud", "suse-sap-cloud", "ubuntu-os-cloud", "windows-cloud", "windows-sql-cloud",
    }
)  # fmt: skip
"""What apache-libcloud 3.9.1 lists after each insert (`IMAGE_PROJECTS` in compute/drivers/gce.py), where a 403 would
break it. For a token that does not reach them they are empty, whatever is in them."""

_CALLER = web.RequestKey("caller", Caller)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def caller(request: web.Request) -> Caller:
    """Who sent it."""
    found: Caller = request.get(_CALLER, ANONYMOUS)
    return found


class TokensFile:
    """The tokens in a file, read again when it has become another one: no signal, no task, no restart. `now` counts
    seconds. A withdrawn token still works for CHECK_INTERVAL. A file that has become bad, or is gone, changes nothing
    but the log and `refused`: replace it by a rename, and withdraw a token by leaving it out.

    The look costs one stat(2) a second and reading a changed file some milliseconds, both on the event loop: keep the
    file on a local file system. Raises TokensInvalid if the file is bad from the start.
    """

    def __init__(self, path: Path, now: Callable[[], float]) -> None:
        self._path = path
        self._issued: tuple[Token, ...] = ()
        self.refused = False
        self._watch = FileWatch([path], now)
        self._tokens = self._read()

    def admit(self, token: Token) -> None:
        """Lets a token in that does not stand in the file (see `issue`)."""
        self._issued += (token,)

    def find(self, secret: bytes) -> Caller | None:
        """Whose token it is. Every digest is compared, in a time that depends on none of them."""
        self._refresh()
        digest, found = sha256(secret).digest(), None
        for token in self._tokens + self._issued:
            if hmac.compare_digest(token.digest, digest):
                found = token.caller
        return found

    def _refresh(self) -> None:
        if not self._watch.changed():
            return
        try:
            self._tokens = self._read()
        except TokensInvalid as error:
            self.refused = True
            log.error("tokens file refused", tokens_file=str(self._path), problems=error.problems, kept="old tokens")
        else:
            self.refused = False
            log.info("tokens file read", tokens_file=str(self._path), tokens=len(self._tokens))

    def _read(self) -> tuple[Token, ...]:
        try:
            return read_tokens(_content(self._path))
        except OSError as error:
            raise TokensInvalid([f"{self._path}: cannot be read: {error.strerror}"]) from error
        except TokensInvalid as error:
            raise TokensInvalid([f"{self._path}: {problem}" for problem in error.problems]) from error


def _content(path: Path) -> str:
    """The text of a file that only its owner can write."""
    with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:  # a pipe would keep us waiting
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise TokensInvalid(["not a regular file"])
        if found.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            mode = f"{stat.S_IMODE(found.st_mode):04o}"
            raise TokensInvalid(
                [f"others than its owner may write it (mode {mode}), and so let themselves in; chmod go-w"]
            )
        data = file.read(LARGEST_FILE + 1)
    if len(data) > LARGEST_FILE:
        raise TokensInvalid([f"larger than {LARGEST_FILE} bytes"])
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise TokensInvalid(["not TOML: not UTF-8 text"]) from None


def issue(file: Path) -> Token:
    """A new token for the commands on this host, in a file that only the daemon's user can read."""
    secret = secrets.token_urlsafe(32)
    file.unlink(missing_ok=True)  # of a life that was killed
    with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as opened:
        opened.write(f"{secret}\n")
    return Token(sha256(secret.encode()).digest(), LOCAL)


class Access:
    """Who is there, and what becomes of those who may not. `tokens` is `None` where nobody is asked for one; `refused`
    counts refusals: `missing`, `unknown` or `forbidden`. `unix_users` may use the Unix socket, if there is one;
    `certificates` says that the TCP listener asks for them."""

    def __init__(
        self,
        tokens: TokensFile | None,
        refused: Callable[[str], None] = lambda reason: None,
        *,
        unix_users: frozenset[int] = frozenset(),
        certificates: bool = False,
    ) -> None:
        self._tokens = tokens
        self._refused = refused
        self._unix_users = unix_users
        self._certificates = certificates

    def caller(self, request: web.BaseRequest) -> Caller:
        """Who sends it. A Unix socket tells by itself; by TCP a token is asked for if there is a tokens file, also of
        those with a certificate. Raises Unauthenticated, or PermissionDenied for a user who may not use the socket."""
        if (user := unix_user(request)) is not None:
            return unix_caller(user, self._unix_users)
        if self._tokens is not None:
            return self._bearer(self._tokens, request.headers.getall("Authorization", []))
        found = certificate_caller(request)
        if found is None and (self._certificates or self._unix_users) and request.transport is None:
            raise Unauthenticated(missing=True)  # gone already, and nobody can say any more who it was
        return found or ANONYMOUS

    def _bearer(self, tokens: TokensFile, authorization: Sequence[str]) -> Caller:
        scheme, _, secret = authorization[0].strip().partition(" ") if authorization else ("", "", "")
        if scheme.lower() != "bearer" or not secret.strip():
            raise Unauthenticated(missing=True)
        found = tokens.find(secret.strip().encode(errors="surrogateescape")) if len(authorization) == 1 else None
        if found is None:
            raise Unauthenticated(missing=False)
        return found

    @web.middleware
    async def middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Inside `envelope`. What a call of the Compute API needs is known to whoever finds its route
        (`calls.Dispatcher`); all else is checked here."""
        path = _template(request)
        if path in OPEN:
            return await handler(request)
        who = ANONYMOUS
        try:
            who = self.caller(request)
            _check(who, path)
        except Unauthenticated as error:
            self._refused("missing" if error.missing else "unknown")
            log.debug("caller unknown", path=request.path, remote=request.remote, reason=error.reason)
            return _challenge(error).response()
        except PermissionDenied as error:
            return self.refuse(who, error.permission).response()
        request[_CALLER] = who
        return await handler(request)

    def lets_in(self, request: web.Request) -> bool:
        """Whether a request that was let in would be so again: what takes long outlives a token that is withdrawn."""
        try:
            _check(self.caller(request), _template(request))
        except (Unauthenticated, PermissionDenied):
            return False
        return True

    def refuse(self, who: Caller, permission: Permission, body: bytes = b"", version: str = "v1") -> Answer:
        """The answer to somebody known who lacks a permission; `body` is that of their request, `version` the API's."""
        if permission.name == "compute.images.list" and permission.project in PUBLIC_IMAGE_PROJECTS:
            return Answer(HTTPStatus.OK, _no_images(permission.project, version))
        self._refused("forbidden")
        log.info("caller refused", user=who.name, permission=permission.name, resource=permission.resource)
        error: RequestError = PermissionDenied(_with_name(permission, body))
        return Answer(error.http_status, encode_error(error), reason=error.code)


def _check(who: Caller, path: str | None) -> None:
    """Raises PermissionDenied, for paths outside of the Compute API."""
    if path is not None and not path.startswith(DISPATCHED):
        who.check(needed_here(path))


def _template(request: web.Request) -> str | None:
    """The path of the route that was found; `None` if there is none, and the router has its own answer."""
    resource = request.match_info.route.resource
    return None if request.match_info.http_exception is not None or resource is None else resource.canonical


def _challenge(error: Unauthenticated) -> Answer:
    """Google's body of a 401 (as recorded from Drive and Gmail), and the header that RFC 9110, 11.6.1 asks for."""
    entry = {"message": error.summary, "domain": "global", "reason": error.reason, "location": "Authorization",
             "locationType": "header"}  # fmt: skip
    body = {
        "error": {"code": int(error.http_status), "message": error.message, "errors": [entry], "status": error.status}
    }
    challenge = 'Bearer realm="imageopsd"' + ("" if error.missing else ', error="invalid_token"')
    return Answer(error.http_status, msgspec.json.encode(body), {"WWW-Authenticate": challenge})


def _no_images(project: str, version: str) -> bytes:
    return encode_list("compute#imageList", project, "images", [], None, version)


class _Named(msgspec.Struct):
    name: str


def _with_name(permission: Permission, body: bytes) -> Permission:
    """The permission to make something, with the name it was to have: that stands in the body."""
    if permission.collection:
        with suppress(msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            wanted = msgspec.json.decode(body, type=_Named).name
            if names.NAME.fullmatch(wanted):
                return msgspec.structs.replace(permission, resource=f"{permission.collection}/{wanted}")
    return permission
