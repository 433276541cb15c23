"""The live page at `/` and the stream of server-sent events it shows, `/events`.

The page itself holds no data and is for everybody. The stream is guarded as `/status` is; the page sends its token in a
header, as every client does. Everybody who listens is sent the same few bytes: while somebody does, the state is put
together at most four times a second, once for all; while nobody does, nothing is.
"""

import re
from base64 import b64encode
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from http import HTTPStatus
from importlib.resources import files
from socket import SO_SNDBUF, SOL_SOCKET
from typing import Any, NamedTuple

import anyio
import msgspec
import structlog
from aiohttp import web

from imageopsd.api.access import Access
from imageopsd.api.envelope import failed
from imageopsd.model.errors import StoreError
from imageopsd.model.events import Happening
from imageopsd.model.time import Time
from imageopsd.ports import QueueDepth
from imageopsd.telemetry.board import Board
from imageopsd.telemetry.throughput import Throughput

log = structlog.stdlib.get_logger(__name__)

LISTENERS = 32
"""Streams at one time; more are answered 503 and try again."""
INTERVAL = 0.25
"""Seconds between two frames at least."""
HEARTBEAT = 5.0
"""Seconds between two frames at most: a dead connection is noticed on both sides, and a token that was withdrawn."""
RATE_INTERVAL = 1.0
"""Seconds until a rate of bytes is looked at again: it falls without anything happening."""
SEND_LIMIT = 10.0
"""Seconds that a listener may take to make room for a frame; then it is cut off. What it missed is not kept for it."""
SEND_BUFFER = 64 * 1024
"""Bytes that may be under way to one listener, in the kernel and again in the process."""
RETRY = 2000
"""Milliseconds until a page whose stream has ended comes again."""

_PAGE = files("imageopsd.api").joinpath("page.html").read_bytes()


def _hashes(tag: str) -> str:
    """The sources of a Content-Security-Policy for the page's own `<script>` or `<style>` and for nothing else."""
    found = re.findall(rf"<{tag}>(.*?)</{tag}>".encode(), _PAGE, re.DOTALL)
    return " ".join(f"'sha256-{b64encode(sha256(text).digest()).decode()}'" for text in found)


PAGE_HEADERS = {
    "Content-Security-Policy": "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hashes('script')}",
            f"style-src {_hashes('style')}",
            "connect-src 'self'",
            "img-src data:",  # the icon in the page's own head
            "base-uri 'none'",
            "form-action 'none'",  # the token is never sent by the form itself, whatever happens to the script
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        )
    ),
    "Cache-Control": "no-cache",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
}


class _Frame(NamedTuple):
    """What a listener is sent. `history` counts how often the failures and dead letters have changed."""

    number: int
    status: bytes
    history: int
    history_event: bytes


_NOTHING = _Frame(0, b"", 0, b"")


class Live:
    """`depth` tells of the queue, `clock` the time. Subscribe `hear` to the bus after the board, and let `run` work
    for as long as events are to be sent."""

    def __init__(
        self,
        board: Board,
        throughput: Throughput,
        access: Access,
        depth: Callable[[], Awaitable[QueueDepth]],
        clock: Callable[[], Time],
    ) -> None:
        self._board = board
        self._throughput = throughput
        self._access = access
        self._depth = depth
        self._clock = clock
        self._listeners: list[web.Request] = []
        self._wanted = anyio.Event()
        self._news = anyio.Event()
        self._sent = anyio.Event()
        self._frame = _NOTHING
        self._closed = False

    def routes(self) -> list[web.RouteDef]:
        return [web.get("/", self.page), web.get("/events", self.events, allow_head=False)]

    def hear(self, happening: Happening) -> None:
        self.changed()

    def changed(self) -> None:
        """The state is another one; who listens will see it in a moment."""
        if self._listeners:
            self._news.set()

    def close(self) -> None:
        """Ends all streams, also those still to come."""
        self._closed = True
        self._tell()

    # ------------------------------------------------------------------------------------------ the frames

    async def run(self) -> None:
        """Makes frames while somebody listens."""
        while True:
            await self._wanted.wait()
            while self._listeners:
                self._news = anyio.Event()
                self._frame = await self._compose()
                self._tell()
                await anyio.sleep(INTERVAL)
                with anyio.move_on_after(RATE_INTERVAL if self._throughput.bytes_per_second else HEARTBEAT):
                    await self._news.wait()
            self._wanted = anyio.Event()

    def _tell(self) -> None:
        self._sent.set()
        self._sent = anyio.Event()

    async def _compose(self) -> _Frame:
        queue: dict[str, Any] | None
        try:
            depth = await self._depth()
        except StoreError as error:
            log.warning("queue depth unknown", error=str(error))
            queue = None
        else:
            oldest = depth.oldest.isoformat() if depth.oldest else None
            queue = {"waiting": depth.waiting, "dead": depth.dead, "oldest": oldest}
        status = self._board.snapshot()
        history = {name: status.pop(name) for name in ("recentFailures", "recentDeadLetters")}
        status |= {"time": self._clock().text(), "queue": queue, "throughput": self._throughput.snapshot()}
        last, history_event = self._frame, _event("history", history)
        return _Frame(
            last.number + 1,
            _event("status", status),
            last.history + (history_event != last.history_event),
            history_event,
        )

    # ----------------------------------------------------------------------------------------- the answers

    async def page(self, request: web.Request) -> web.Response:
        return web.Response(body=_PAGE, content_type="text/html", charset="utf-8", headers=PAGE_HEADERS)

    async def events(self, request: web.Request) -> web.StreamResponse:
        """Frames until the daemon stops, the token is withdrawn or the listener goes or falls too far behind. Whoever
        was slow gets the last frame next, not those in between."""
        if sum(map(_is_there, self._listeners)) >= LISTENERS:
            message = f"{LISTENERS} others are watching already; try again in a moment"
            return failed(HTTPStatus.SERVICE_UNAVAILABLE, message, {"Retry-After": "10"}).response()
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        with self._listening(request):
            try:
                _bound(request)
                await response.prepare(request)
                await self._stream(request, response)
            except (ConnectionError, TimeoutError):
                log.debug("listener gone or too slow", remote=request.remote)
                if request.transport is not None:
                    request.transport.abort()
        return response

    async def _stream(self, request: web.Request, response: web.StreamResponse) -> None:
        seen = self._frame._replace(history=0)  # made before this listener came; it waits for its own
        preamble = f"retry: {RETRY}\n\n".encode()
        while True:
            while not self._closed and self._frame.number == seen.number:
                await self._sent.wait()
            if self._closed or not self._access.lets_in(request):
                return
            frame = self._frame
            history = frame.history_event if frame.history != seen.history else b""
            with anyio.fail_after(SEND_LIMIT):
                await response.write(preamble + frame.status + history)
            seen, preamble = frame, b""

    @contextmanager
    def _listening(self, request: web.Request) -> Iterator[None]:
        self._listeners.append(request)
        self._wanted.set()
        self._news.set()
        try:
            yield
        finally:
            self._listeners.remove(request)  # requests are equal if they are the same


def _event(name: str, data: dict[str, Any]) -> bytes:
    return b"event: %s\ndata: %s\n\n" % (name.encode(), msgspec.json.encode(data))


def _is_there(request: web.Request) -> bool:
    """Nobody tells a handler that its client has gone; the next frame would find out."""
    return request.transport is not None and not request.transport.is_closing()


def _bound(request: web.Request) -> None:
    """Keeps little for a listener that reads slowly: the kernel alone would take megabytes."""
    if request.transport is not None:
        request.transport.set_write_buffer_limits(high=SEND_BUFFER)
        socket = request.transport.get_extra_info("socket")
        if socket is not None:
            socket.setsockopt(SOL_SOCKET, SO_SNDBUF, SEND_BUFFER)
