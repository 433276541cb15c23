"""The daemon's REST paths as commands use them: plain requests, errors turned into exit codes."""

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Sequence
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple

from imageopsd.cli.exits import Exit, Failure
from imageopsd.cli.tls import https_handler
from imageopsd.cli.unix_socket import SCHEME, UnixHandler
from imageopsd.config import Loaded
from imageopsd.config.loading import TOKEN_VARIABLE
from imageopsd.model.names import ANY_PROJECT

SOCKET_TIMEOUT = 60.0
"""Seconds; longer than the daemon holds a wait."""
MOMENT = 0.001
"""Seconds; the least that a socket can be told to wait."""
PROBE_TIMEOUT = 5.0
"""Seconds in which a daemon that is well has answered a probe, which it does from memory."""


class Silence(Failure):
    """Nobody answers just now, as while a daemon is started again: somebody may in a moment."""

    def __init__(self, message: str) -> None:
        super().__init__(Exit.CANNOT_CONNECT, message)


class Place(NamedTuple):
    """Where a daemon may be, and what it takes to speak to it."""

    server: str
    token: str | None = None
    pinned: Path | None = None
    """The certificate of the daemon, if it is one of this host."""


class Client:
    """Speaks to one daemon. Raises Failure: 5 if it is not there, 3 for a 404, 1 for other refusals."""

    def __init__(self, places: Callable[[], Sequence[Place]], project: str | None) -> None:
        """`places` are asked in their order, and anew for each request: a daemon that was started again may have
        another address and another token."""
        self._places = places
        self.project = project

    @classmethod
    def at(cls, server: str, project: str | None) -> "Client":
        """The daemon at an address."""
        place = Place(server.rstrip("/"), os.environ.get(TOKEN_VARIABLE))
        return cls(lambda: [place], project)

    @classmethod
    def of(cls, loaded: Loaded, server: str | None, project: str | None) -> "Client":
        """The daemon at `server`, else the one that runs on the data directory, else the one at the configured
        address."""
        return cls(lambda: _places(loaded), project) if server is None else cls.at(server, project)

    def operation(self, reference: str, timeout: float = SOCKET_TIMEOUT) -> dict[str, Any]:
        return self._call("GET", f"operations/{urllib.parse.quote(reference, safe='')}", timeout)

    def wait(self, reference: str) -> dict[str, Any]:
        return self._call("POST", f"operations/{urllib.parse.quote(reference, safe='')}/wait")

    def cancel(self, reference: str) -> dict[str, Any]:
        return self._call("POST", f"operations/{urllib.parse.quote(reference, safe='')}/cancel")

    def retry(self, reference: str) -> dict[str, Any]:
        return self._call("POST", f"operations/{urllib.parse.quote(reference, safe='')}/retry")

    def image(self, reference: str) -> dict[str, Any]:
        return self._call("GET", f"images/{urllib.parse.quote(reference, safe='')}")

    def quotas(self) -> "list[dict[str, Any]]":
        """The limits of the project, which must be one, as `projects.get` shows them."""
        quotas: list[dict[str, Any]] = self._call("GET", "").get("quotas", [])
        return quotas

    def list(self, collection: str, limit: int) -> list[dict[str, Any]]:
        """The newest first."""
        items: list[dict[str, Any]] = []
        query = {"orderBy": "creationTimestamp desc", "maxResults": str(min(limit, 500))}
        while True:
            page = self._call("GET", f"{collection}?{urllib.parse.urlencode(query)}")
            items += page.get("items", [])
            if len(items) >= limit or "nextPageToken" not in page:
                return items[:limit]
            query["pageToken"] = page["nextPageToken"]

    def check(self, timeout: float = SOCKET_TIMEOUT) -> None:
        """Raises Failure 5 if no daemon answers within `timeout` seconds."""
        self._send("GET", "/livez", timeout)

    def probe(self, path: str) -> str:
        """The answer of a probe. Raises Failure 5 if none comes in PROBE_TIMEOUT, 1 if it is a bad one."""
        return self._send("GET", path, PROBE_TIMEOUT)[1].decode(errors="replace").strip()

    def _call(self, method: str, path: str, timeout: float = SOCKET_TIMEOUT) -> dict[str, Any]:
        """The answer at one of the project's global paths, or of the project itself if that is empty."""
        project = urllib.parse.quote(self.project or ANY_PROJECT, safe="")
        path = f"/compute/v1/projects/{project}{f'/global/{path}' if path else ''}"
        place, answer = self._send(method, path, timeout)
        try:
            result = json.loads(answer)
        except (ValueError, RecursionError):
            result = None
        if not isinstance(result, dict) or not str(result.get("kind")).startswith("compute#"):
            raise Failure(Exit.CANNOT_CONNECT, f"what answers at {place.server} is not imageopsd")
        return result

    def _send(self, method: str, path: str, timeout: float = SOCKET_TIMEOUT) -> tuple[Place, bytes]:
        """The answer within `timeout` seconds, and who gave it."""
        until = time.monotonic() + timeout
        problems: list[str] = []
        silent = False
        for place in self._places():
            left = until - time.monotonic()
            if problems and left <= 0:
                break
            try:
                return place, _ask(place, method, path, max(left, MOMENT))
            except Failure as failure:
                if failure.code is not Exit.CANNOT_CONNECT:
                    raise
                problems.append(str(failure))
                silent = silent or isinstance(failure, Silence)
        kind = Silence if silent else partial(Failure, Exit.CANNOT_CONNECT)
        raise kind(f"{'; '.join(problems)}; is `imageopsd serve` running?")


def _places(loaded: Loaded) -> list[Place]:
    """Where the daemon of a configuration may be, the likeliest place first. One that crashed has left an address where
    nobody listens any more; one in a container has its data directory elsewhere; so the configured address counts too.
    But whoever names a data directory in the command means the daemon there: another one that happens to listen at the
    configured address is none of theirs, unless they name that as well. The token is that of IMAGEOPSD_TOKEN, else the
    one in the data directory, which is for the daemon there and no other. Raises Failure 5."""
    settings, file = loaded.settings, Path(loaded.settings.data_dir) / "endpoint"
    pinned = Path(settings.server.tls_certificate) if settings.server.tls_certificate else None
    servers = [_line(file)]
    token = os.environ.get(TOKEN_VARIABLE) or _line(file.with_name("token"))  # a daemon that starts writes it first
    if not _in_command(loaded, "data_dir") or _in_command(loaded, "server.listen"):
        servers.append(f"{'https' if settings.server.tls_certificate else 'http'}://{settings.server.listen}")
    places = [Place(server.rstrip("/"), token, pinned) for server in dict.fromkeys(servers) if server]
    if not places:
        raise Silence(f"{_absence(file)}; --server names one that runs elsewhere")
    return places


def _in_command(loaded: Loaded, key: str) -> bool:
    """Whether an option of the command gave the value."""
    return loaded.origins.get(key, "").startswith("--")


def _absence(file: Path) -> str:
    """Why there is no address in the file where a daemon leaves its own."""
    try:
        file.read_text(errors="replace")
    except PermissionError as error:
        return f"cannot tell whether a daemon runs on {file.parent}: {error.strerror}"
    except OSError:
        pass
    return f"no daemon runs on {file.parent}"


def _ask(place: Place, method: str, path: str, timeout: float) -> bytes:
    """Raises Failure."""
    try:
        open_, base = _door(place.server, place.pinned)
        request = urllib.request.Request(f"{base}{path}", method=method)  # noqa: S310 - the user's server
        if place.token:
            request.add_unredirected_header("Authorization", f"Bearer {place.token}")
        with open_(request, timeout=timeout) as answer:
            body: bytes = answer.read()
            return body
    except urllib.error.HTTPError as error:
        raise _refused(error) from None
    except (OSError, ValueError, http.client.HTTPException) as error:
        cause = getattr(error, "reason", error)
        reason = " ".join(str(cause).split()) or type(error).__name__
        problem = f"cannot reach the daemon at {place.server}: {reason}"
        if isinstance(cause, ConnectionError | TimeoutError | FileNotFoundError | http.client.IncompleteRead):
            raise Silence(problem) from None
        raise Failure(Exit.CANNOT_CONNECT, problem) from None


def _door(server: str, pinned: Path | None) -> tuple[Callable[..., Any], str]:
    """What sends requests to a server, and what their URLs begin with. A proxy of the environment has no business
    between a command and its own daemon. Raises ValueError."""
    if server.startswith(SCHEME):
        return urllib.request.build_opener(UnixHandler(server.removeprefix(SCHEME))).open, "http://localhost"
    if not server.startswith(("http://", "https://")):
        raise ValueError("not an http://, https:// or unix: address")
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
    if server.startswith("https://"):
        handlers.append(https_handler(pinned))
    return urllib.request.build_opener(*handlers).open, server


def _line(file: Path) -> str | None:
    try:
        return file.read_text(errors="replace").strip()
    except OSError:
        return None


def _refused(error: urllib.error.HTTPError) -> Failure:
    try:
        message = json.load(error)["error"]["message"]
    except (OSError, ValueError, LookupError, TypeError, http.client.HTTPException):
        message = f"HTTP {error.code} {error.reason}"
    return Failure(Exit.NOT_FOUND if error.code == HTTPStatus.NOT_FOUND else Exit.FAILED, message)
