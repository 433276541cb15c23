"""One call of the Compute API, however it came: as an HTTP request or as a part of a batch."""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, NamedTuple
from urllib.parse import unquote

import msgspec

from imageopsd.api.access import Access
from imageopsd.api.envelope import Answer, answer_to_error, failed
from imageopsd.model.access import ANONYMOUS, Caller, PermissionDenied, needed
from imageopsd.model.errors import InvalidRequest
from imageopsd.model.names import ANY_PROJECT, check_project
from imageopsd.wire.json_body import parse


class Call(msgspec.Struct, frozen=True):
    """`path` is as it was sent, percent-encoded; `version` and `parameters` are what the route found in it;
    `traceparent` is as `model.trace.read_traceparent` gives it; `deadline` is when, in seconds of the event loop's
    clock, waiting for anything must end so that the HTTP request is answered in time."""

    method: str
    path: str
    query: Mapping[str, str]
    body: bytes
    caller: Caller = ANONYMOUS
    traceparent: str | None = None
    deadline: float = 0.0
    version: str = "v1"
    parameters: Mapping[str, str] = {}

    @property
    def project(self) -> str:
        """Raises InvalidRequest for what cannot be a project."""
        return check_project(self.parameters["project"])

    @property
    def scope(self) -> str | None:
        """The project whose operations are meant; `None` for all of them."""
        return None if self.parameters["project"] == ANY_PROJECT else self.project

    def json(self) -> Any:
        """The body. Raises InvalidRequest if there is none or it is no JSON."""
        if not self.body:
            raise InvalidRequest.missing("resource", "Expected a JSON object as the request's body")
        return parse(self.body, "resource")

    def boolean(self, name: str) -> bool:
        text = self.query.get(name, "false")
        if text.lower() not in ("true", "false"):
            raise InvalidRequest.value(name, text, "Expected true or false")
        return text.lower() == "true"


Handler = Callable[[Call], Awaitable[bytes]]


class Route(NamedTuple):
    """`path` is the discovery document's, behind `/compute/{version}/`; the handler returns a JSON body."""

    method: str
    path: str
    handler: Handler


class Dispatcher:
    """Finds the handler of a call; whatever that raises becomes an answer."""

    def __init__(self, routes: Sequence[Route], access: Access) -> None:
        self._access = access
        self._routes: dict[re.Pattern[str], dict[str, Route]] = {}
        for route in routes:
            self._routes.setdefault(_pattern(route.path), {})[route.method] = route

    async def answer(self, call: Call) -> Answer:
        for pattern, routes in self._routes.items():
            if match := pattern.fullmatch(call.path):
                return await self._handled(call, match, routes)
        return failed(HTTPStatus.NOT_FOUND, f"{call.method} {unquote(call.path)}: Not Found")

    async def _handled(self, call: Call, match: re.Match[str], routes: Mapping[str, Route]) -> Answer:
        route = routes.get(call.method)
        if route is None:
            message = f"{call.method} {unquote(call.path)}: Method Not Allowed"
            return failed(HTTPStatus.METHOD_NOT_ALLOWED, message, {"Allow": ",".join(sorted(routes))})
        parameters = {name: unquote(value) for name, value in match.groupdict().items()}
        version = parameters.pop("version")
        try:
            call.caller.check(needed(route.method, route.path, parameters))
            if parameters.get("project", ANY_PROJECT) != ANY_PROJECT:
                check_project(parameters["project"])
            body = await route.handler(msgspec.structs.replace(call, version=version, parameters=parameters))
        except PermissionDenied as error:
            return self._access.refuse(call.caller, error.permission, call.body, version)
        except Exception as error:
            return answer_to_error(error, call.method, unquote(call.path))
        return Answer(HTTPStatus.OK, body)


def _pattern(path: str) -> re.Pattern[str]:
    """Path parameters take one segment each; `{project}` in braces as the discovery document writes it."""
    segments = re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>[^/]+)", re.escape(path))
    return re.compile(rf"/compute/(?P<version>v1|beta)/{segments}")
