"""A real HTTP server with an archive that can do everything a server should not."""

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from aiohttp import web

Turn = Callable[["Ranged", web.Request], Awaitable[web.StreamResponse]]


class Asked(NamedTuple):
    """What one request asked for; `sent` bytes of the body it got."""

    range: str | None
    if_range: str | None
    sent: int


class Ranged:
    """Serves `body` with ranges (RFC 9110, 14), as `turns` say: one for each request, the last one for ever."""

    def __init__(self, body: bytes, *turns: Turn, etag: str | None = '"v1"') -> None:
        self.body = body
        self.etag = etag
        self.asked: list[Asked] = []
        self._turns: Sequence[Turn] = turns or (whole,)

    async def serve(self, request: web.Request) -> web.StreamResponse:
        turn = self._turns[min(len(self.asked), len(self._turns) - 1)]
        self.asked.append(Asked(request.headers.get("Range"), request.headers.get("If-Range"), 0))
        return await turn(self, request)

    def headers(self) -> dict[str, str]:
        return {"ETag": self.etag} if self.etag else {}

    def begin(self, request: web.Request) -> int | None:
        """Where the asked range begins, if it is asked for and of this version."""
        wanted = request.headers.get("Range")
        if wanted is None or request.headers.get("If-Range", self.etag) != self.etag:
            return None
        return int(wanted.removeprefix("bytes=").removesuffix("-"))

    def answer(self, request: web.Request) -> tuple[web.StreamResponse, bytes]:
        """An honest answer's head, and the body that belongs to it."""
        begin = self.begin(request)
        if begin is None:
            return web.StreamResponse(headers=self.headers()), self.body
        if begin >= len(self.body):
            return web.StreamResponse(status=416, headers={"Content-Range": f"bytes */{len(self.body)}"}), b""
        part = f"bytes {begin}-{len(self.body) - 1}/{len(self.body)}"
        return web.StreamResponse(status=206, headers={**self.headers(), "Content-Range": part}), self.body[begin:]

    def count(self, sent: int) -> None:
        self.asked[-1] = self.asked[-1]._replace(sent=sent)


async def whole(server: Ranged, request: web.Request) -> web.StreamResponse:
    return await _send(server, request, *server.answer(request), cut=None)


def cut(after: int) -> Turn:
    """Closes the connection after so many bytes."""

    async def turn(server: Ranged, request: web.Request) -> web.StreamResponse:
        return await _send(server, request, *server.answer(request), cut=after)

    return turn


def chunked(after: int | None = None) -> Turn:
    """Says no length; with `after` it breaks off."""

    async def turn(server: Ranged, request: web.Request) -> web.StreamResponse:
        response, body = server.answer(request)
        if response.status == 416:
            return web.Response(status=416, headers=response.headers)
        response.enable_chunked_encoding()
        await response.prepare(request)
        await response.write(body[:after])
        server.count(len(body[:after]))
        if after is not None:
            await _flushed(request)
            assert request.transport is not None
            request.transport.abort()
        return response

    return turn


def becomes(body: bytes, etag: str, turn: Turn = whole) -> Turn:
    """From now on the archive is another one."""

    async def changed(server: Ranged, request: web.Request) -> web.StreamResponse:
        server.body, server.etag = body, etag
        return await turn(server, request)

    return changed


def without_ranges(after: int | None = None) -> Turn:
    """Answers 200 whatever is asked."""

    async def turn(server: Ranged, request: web.Request) -> web.StreamResponse:
        return await _send(server, request, web.StreamResponse(headers=server.headers()), server.body, cut=after)

    return turn


def saying(status: int, **headers: str) -> Turn:
    async def turn(server: Ranged, request: web.Request) -> web.StreamResponse:
        begin = server.begin(request)
        filled = {
            name.replace("_", "-"): text.format(begin=begin, last=len(server.body) - 1, total=len(server.body))
            for name, text in headers.items()
        }
        body = server.body[begin or 0 :] if status == 206 else b""
        return web.Response(status=status, headers={**server.headers(), **filled}, body=body)

    return turn


def adding(headers: dict[str, str]) -> Turn:
    """An honest answer with these headers in it; what no ASCII is goes over the wire as the byte that a surrogate
    stands for (PEP 383)."""

    async def turn(server: Ranged, request: web.Request) -> web.StreamResponse:
        response, body = server.answer(request)
        return await _raw(request, response.status, {**response.headers, **headers}, body)

    return turn


def redirecting(location: str) -> Turn:
    async def turn(server: Ranged, request: web.Request) -> web.StreamResponse:
        return await _raw(request, 302, {"Location": location}, b"")

    return turn


async def _raw(request: web.Request, status: int, headers: dict[str, str], body: bytes) -> web.StreamResponse:
    """Past aiohttp, which would not write such headers."""
    lines = {
        "Date": "Wed, 21 Oct 2026 07:28:00 GMT",
        **headers,
        "Content-Length": str(len(body)),
        "Connection": "close",
    }
    head = f"HTTP/1.1 {status} X\r\n" + "".join(f"{name}: {text}\r\n" for name, text in lines.items() if text)
    transport = request.transport
    assert transport is not None
    transport.write(head.encode("utf-8", "surrogateescape") + b"\r\n" + body)
    transport.close()
    return web.Response()


async def _send(
    server: Ranged, request: web.Request, response: web.StreamResponse, body: bytes, cut: int | None
) -> web.StreamResponse:
    response.content_length = len(body)
    await response.prepare(request)
    await response.write(body[:cut])
    server.count(len(body[:cut]))
    if cut is not None and cut < len(body):
        await _flushed(request)
        assert request.transport is not None
        request.transport.close()
    return response


async def _flushed(request: web.Request) -> None:
    """What was written is with the kernel: a break after it loses nothing of it."""
    transport = request.transport
    assert transport is not None
    transport.set_write_buffer_limits(0)  # type: ignore[attr-defined]
    await request.protocol._drain_helper()
