"""Archives on HTTP servers."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import aiohttp
from yarl import URL

from imageopsd.backends.local.options import Options
from imageopsd.backends.local.pipe import Pipe
from imageopsd.backends.local.sources.network import AddressRefused, NetworkPolicy
from imageopsd.backends.local.sources.pace import Pace
from imageopsd.backends.local.sources.source import (
    CODE_UNAVAILABLE,
    not_allowed,
    not_found,
    not_readable,
    unavailable,
    without_secrets,
)
from imageopsd.model.errors import BackendFailure, PermanentFailure

MAX_REDIRECTS = 5
READ_BUFFER = 1024**2
"""Bytes that aiohttp keeps ready for us."""
MAX_RETRY_AFTER = 86400.0
"""Seconds; a server that wants more asks for a day."""

_REDIRECTS = {301, 302, 303, 307, 308}
_TEMPORARY = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
_NOT_ALLOWED = (
    "The source is at an address that may not be reached. "
    "Networks that are not public are opened with backends.local.allow_networks."
)


class HttpSource:
    """A response of which the body is still to come."""

    def __init__(self, url: str, response: aiohttp.ClientResponse, options: Options) -> None:
        self._url = url
        self._options = options
        self._response = response
        self.length = response.content_length
        self.content_type = response.headers.get("Content-Type")

    async def pour(self, pipe: Pipe[bytes]) -> None:
        clock = asyncio.get_running_loop().time
        rate, window = self._options.min_rate, self._options.rate_window
        pace = Pace(rate, window)
        asked = clock()
        try:
            async for block in self._response.content.iter_any():
                if not pace.keeps_up(len(block), waited=clock() - asked):
                    raise unavailable(self._url, f"it delivered less than {rate} bytes a second for {window!s}")
                await pipe.send(block, len(block))
                asked = clock()
        except (aiohttp.ClientError, OSError) as error:
            # also a body shorter than its Content-Length, and sock_read's timeout (an OSError)
            raise unavailable(self._url, _reason(error)) from error
        pipe.close()


@asynccontextmanager
async def open_http(url: str, policy: NetworkPolicy, options: Options) -> AsyncIterator[HttpSource]:
    """The archive at an http or https URL. Redirects are followed here, hop by hop, because each is a new URL to
    judge. Nothing of the environment is used: no proxy, no netrc, no cookies."""
    connector = aiohttp.TCPConnector(socket_factory=policy.socket, use_dns_cache=False, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None, connect=options.connect_timeout, sock_read=options.stall_timeout)
    async with aiohttp.ClientSession(
        connector=connector,
        timeout=timeout,
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
        trust_env=False,
        read_bufsize=READ_BUFFER,
        headers={"Accept-Encoding": "identity", "User-Agent": "imageopsd"},
    ) as session:
        # sock_read alone would wait for ever for headers that come byte by byte
        response = await _get(session, url, options.connect_timeout + options.stall_timeout)
        async with response:
            yield HttpSource(url, response, options)


async def _get(session: aiohttp.ClientSession, url: str, limit: float) -> aiohttp.ClientResponse:
    """The first response that is no redirect; each has `limit` seconds to begin. Raises BackendFailure unless it is
    a 200."""
    here = _checked(url)
    for _ in range(1 + MAX_REDIRECTS):
        try:
            async with asyncio.timeout(limit):
                response = await session.get(here, allow_redirects=False)
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, AddressRefused):
                raise not_allowed(_NOT_ALLOWED) from None
            raise unavailable(url, _reason(error)) from error
        except aiohttp.InvalidURL:
            # aiohttp's word for numbers that only old resolvers read as an address: 2130706433, 0177.1
            raise not_allowed(_NOT_ALLOWED) from None
        except (aiohttp.ClientError, OSError) as error:
            raise unavailable(url, _reason(error)) from error
        if response.status == HTTPStatus.OK:
            return response
        response.release()
        if response.status not in _REDIRECTS:
            raise _refusal(url, response)
        here = _next_hop(here, response.headers.get("Location", ""))
    raise not_allowed(f"The source redirects more than {MAX_REDIRECTS} times.")


def _checked(url: str) -> URL:
    try:
        parsed = URL(url)
        usable = parsed.scheme in ("http", "https") and bool(parsed.host)
    except ValueError:
        usable = False
    if not usable or parsed.user is not None or parsed.password is not None or parsed.fragment:
        raise not_allowed("The source, or where it redirects to, is no http or https URL without user and fragment.")
    return parsed


def _next_hop(here: URL, location: str) -> URL:
    try:
        target = str(here.join(URL(location)))
    except ValueError:
        target = ""
    there = _checked(target)
    if here.scheme == "https" and there.scheme != "https":
        raise not_allowed("The source redirects from https to http.")
    return there


def _refusal(url: str, response: aiohttp.ClientResponse) -> BackendFailure:
    status = response.status
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        return not_found(url)
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return not_readable(url)
    answer = f"the server answered {status} {_phrase(status)}".rstrip()
    if status in _TEMPORARY or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return unavailable(url, answer, delay=_retry_after(response))
    return PermanentFailure(
        CODE_UNAVAILABLE,
        f"The source '{without_secrets(url)}' could not be read: {answer}.",
        HTTPStatus.BAD_REQUEST,
    )


def _retry_after(response: aiohttp.ClientResponse) -> float | None:
    """Seconds, a day at most; a date is measured by the server's own clock (RFC 9110, 10.2.3 and 6.6.1)."""
    value = response.headers.get("Retry-After", "")
    if value.isascii() and value.isdigit():
        return min(float(value), MAX_RETRY_AFTER)
    try:
        wait = parsedate_to_datetime(value) - parsedate_to_datetime(response.headers.get("Date", ""))
    except (TypeError, ValueError, OverflowError):  # the last from years and zones that no calendar has
        return None
    return min(max(wait.total_seconds(), 0.0), MAX_RETRY_AFTER)


def _phrase(status: int) -> str:
    """Ours, not the server's: its words are bytes of something that may be none of the reader's business."""
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _reason(error: Exception) -> str:
    """Short, and without the URL: aiohttp's own texts have the query in them."""
    if isinstance(error, asyncio.TimeoutError):
        return "it did not answer in time"
    if isinstance(error, aiohttp.ClientPayloadError):
        return "the connection was closed in the middle"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "its host name could not be resolved"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "no connection to its host"
    return f"the connection failed ({type(error).__name__})"
