"""Archives on HTTP servers."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Collection
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from http import HTTPStatus

import aiohttp
from yarl import URL

from imageopsd.backends.local.kinds import media_type
from imageopsd.backends.local.options import Options
from imageopsd.backends.local.sources.network import AddressRefused, NetworkPolicy
from imageopsd.backends.local.sources.ranges import Version
from imageopsd.backends.local.sources.remote import CUT, LATE, Interrupted, RemoteSource
from imageopsd.backends.local.sources.source import (
    CODE_UNAVAILABLE,
    SourceChanged,
    not_allowed,
    not_found,
    not_readable,
    unavailable,
    without_secrets,
)
from imageopsd.backends.local.spool import Head, Spool
from imageopsd.model.errors import BackendFailure, PermanentFailure

MAX_REDIRECTS = 5
READ_BUFFER = 128 * 1024
"""Bytes that aiohttp keeps ready for us."""
MAX_RETRY_AFTER = 86400.0
"""Seconds; a server that wants more asks for a day."""

_REDIRECTS = {301, 302, 303, 307, 308}
_TEMPORARY = {HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS}
_NO_ANSWER = "no HTTP answer from its host"
"""Also for a closed port, one that says nothing or something else, and a name that nobody has: whoever may name a
source should not map a network with us."""
_NOT_ALLOWED = (
    "The source is at an address that may not be reached. "
    "Networks that are not public are opened with backends.local.allow_networks."
)


class HttpSource(RemoteSource):
    def __init__(self, url: str, session: aiohttp.ClientSession, options: Options, spool: Spool) -> None:
        super().__init__(url, options, spool)
        self._session = session
        self._response: aiohttp.ClientResponse | None = None

    async def begin(self) -> None:
        """The first answer, unless an earlier try has it: then only what follows is asked for, when it is needed."""
        if self._spool.head is not None:
            return
        self._response = await self._get({}, (HTTPStatus.OK,))
        headers = self._response.headers
        self.length = self._response.content_length
        self.content_type = media_type(headers.get("Content-Type"))
        self._version = Version.of(headers)
        if self._version is not None:
            self._spool.begin(Head(self._version, self.length, self.content_type))

    async def _ask(self) -> bool:
        return self._response is not None or await self._continue()

    async def _answer(self) -> AsyncGenerator[bytes, None]:
        response, self._response = self._response, None
        assert response is not None
        async with response:
            try:
                async for block in response.content.iter_any():
                    yield block
            except (aiohttp.ClientError, OSError) as error:
                # also a body shorter than its Content-Length, and sock_read's timeout (an OSError)
                raise Interrupted(_reason(error)) from error

    async def _continue(self) -> bool:
        """Asks for what follows; whether there is anything."""
        if self._version is None or self._offset == self.length:
            return False
        statuses = (HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT, HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE)
        response = await self._get(self._version.request_from(self._offset), statuses)
        try:
            more = self._version.goes_on(response.status, response.headers, self._offset, self.length)
        except SourceChanged:
            response.close()
            raise
        if more:
            self._response = response
        else:
            response.close()
        return more

    async def _get(self, headers: dict[str, str], statuses: Collection[int]) -> aiohttp.ClientResponse:
        # sock_read alone would wait for ever for headers that come byte by byte
        limit = self._options.connect_timeout + self._options.stall_timeout
        return await _get(self._session, self._url, limit, headers, statuses)

    def close(self) -> None:
        if self._response is not None:
            self._response.close()


@asynccontextmanager
async def open_http(url: str, policy: NetworkPolicy, options: Options, spool: Spool) -> AsyncIterator[HttpSource]:
    """The archive at an http or https URL. Redirects are followed here, hop by hop, because each is a new URL to
    judge. Nothing of the environment is used: no proxy, no netrc, no cookies; nor is any credential ever sent, so that
    none can reach another host."""
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
        source = HttpSource(url, session, options, spool)
        await source.begin()
        try:
            yield source
        finally:
            source.close()


async def _get(
    session: aiohttp.ClientSession, url: str, limit: float, headers: dict[str, str], statuses: Collection[int]
) -> aiohttp.ClientResponse:
    """The first response that is no redirect; each has `limit` seconds to begin. Raises BackendFailure unless it has
    one of `statuses`."""
    here = _checked(url)
    for _ in range(1 + MAX_REDIRECTS):
        try:
            async with asyncio.timeout(limit):
                response = await session.get(here, headers=headers, allow_redirects=False)
        except aiohttp.ClientConnectorError as error:
            if isinstance(error.os_error, AddressRefused):
                raise not_allowed(_NOT_ALLOWED) from None
            raise unavailable(url, _NO_ANSWER) from error
        except aiohttp.InvalidURL:
            # aiohttp's word for numbers that only old resolvers read as an address: 2130706433, 0177.1
            raise not_allowed(_NOT_ALLOWED) from None
        except (aiohttp.ClientError, OSError, ValueError) as error:  # the last from names that no resolver can ask for
            raise unavailable(url, _NO_ANSWER) from error
        if response.status in statuses:
            return response
        response.release()
        if response.status not in _REDIRECTS:
            raise refusal(url, response.status, _retry_after(response))
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


def refusal(url: str, status: int, delay: float | None = None) -> BackendFailure:
    """What an answer's status means for an import; `delay` is the server's own wish in seconds."""
    if status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
        return not_found(url)
    if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
        return not_readable(url)
    answer = f"the server answered {status} {_phrase(status)}".rstrip()
    if status in _TEMPORARY or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return unavailable(url, answer, delay=delay)
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
    """Why a body ended before its time. Without aiohttp's own texts: they have the URL's query in them."""
    if isinstance(error, asyncio.TimeoutError):
        return LATE
    return CUT if isinstance(error, aiohttp.ClientPayloadError) else "the connection failed"
