"""No web page speaks for the person at this host.

A listener that lets everybody on the host in is reached by their browsers too: a page from anywhere can send requests
to the loopback (https://fetch.spec.whatwg.org/#cors-protocol lets the simple ones through), and a name that was made to
resolve to it (DNS rebinding) lets that page read the answers. Clients that are no browsers send none of these headers.
"""

import re
from collections.abc import Awaitable, Callable
from http import HTTPStatus

from aiohttp import web

from imageopsd.api.envelope import failed
from imageopsd.api.peers import unix_user
from imageopsd.config.settings import is_loopback

_HOST = re.compile(r"(?P<name>\[[0-9a-fA-F:.]+\]|[A-Za-z0-9.-]+)(?::[0-9]{1,5})?")

SAFE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""On every answer that does not say otherwise: it is data, and no browser is to make a page of it."""

OWN_SITE = ("none", "same-origin")
"""`Sec-Fetch-Site` of what a person typed, and of a page of our own."""


async def harden(request: web.BaseRequest, response: web.StreamResponse) -> None:
    """For `Application.on_response_prepare`."""
    for name, value in SAFE_HEADERS.items():
        response.headers.setdefault(name, value)


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@web.middleware
async def own_pages_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """For loopback listeners without tokens: refuses what only a page of somebody else would send."""
    return await _unless(_wrong_host(request) or _wrong_page(request), request, handler)


@web.middleware
async def own_origin_only(request: web.Request, handler: Handler) -> web.StreamResponse:
    """For listeners that browsers show a client certificate to by themselves, whatever page asks. The Host needs no
    look: a name that was made to resolve here (DNS rebinding) is not in the listener's own certificate."""
    return await _unless(_wrong_page(request), request, handler)


async def _unless(problem: str | None, request: web.Request, handler: Handler) -> web.StreamResponse:
    if problem and unix_user(request) is None:  # no browser speaks to a Unix socket
        return failed(HTTPStatus.FORBIDDEN, problem).response()
    return await handler(request)


def _wrong_host(request: web.Request) -> str | None:
    host = _HOST.fullmatch(request.host)
    if host is None or not is_loopback(host["name"].strip("[]")):
        return "Requests to this listener name it by a loopback address or localhost in their Host header"
    return None


def _wrong_page(request: web.Request) -> str | None:
    if request.headers.get("Sec-Fetch-Site", "none") not in OWN_SITE:
        return "Pages of other sites may not send requests here"
    origin = request.headers.get("Origin")
    if origin is not None and origin.partition("://")[2] != request.host:
        return "Pages of other origins may not send requests here"
    return None
