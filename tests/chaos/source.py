"""A server of archives as the internet has them: it gives ranges, pauses, and breaks off in the middle."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path
from random import Random

from aiohttp import web

BLOCK = 64 * 1024
NEAR_END = 64 * 1024
"""Bytes before the end; the spool has made its last mark of these archives by then, so a new try can go on from it."""
LONG = 2.1
"""Seconds of silence after which the spool makes its next mark safe against power loss as well."""


class Source:
    """Serves one file, under whatever path; the path's first segment is up to whoever asks. `resumed` counts answers
    that went on in the middle."""

    def __init__(self, path: Path, rng: Random) -> None:
        self._body = path.read_bytes()
        self._rng = rng
        self.resumed = 0
        self.url = ""

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        application = web.Application()
        application.router.add_get("/{path:.*}", self._answer)
        runner = web.AppRunner(application, access_log=None, shutdown_timeout=0)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            host, port, *_ = runner.addresses[0]
            self.url = f"http://{host}:{port}"
            yield
        finally:
            await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        begin, size = 0, len(self._body)
        response = web.StreamResponse(headers={"ETag": '"1"', "Content-Type": "application/gzip"})
        if "Range" in request.headers and request.headers.get("If-Range") == '"1"':
            begin = int(request.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            response.set_status(HTTPStatus.PARTIAL_CONTENT)
            response.headers["Content-Range"] = f"bytes {begin}-{size - 1}/{size}"
            self.resumed += 1
        response.content_length = size - begin
        await response.prepare(request)
        breaks_at = self._rng.randrange(begin, size) if self._rng.random() < 0.15 else size
        pauses_at = self._rng.choice((begin, size // 2, size - NEAR_END))
        for at in range(begin, size, BLOCK):
            if at <= pauses_at < at + BLOCK:
                await asyncio.sleep(LONG if self._rng.random() < 0.15 else self._rng.uniform(0, 0.1))
            if at >= breaks_at:
                assert request.transport is not None
                request.transport.abort()
                break
            try:
                await response.write(self._body[at : at + BLOCK])
            except ConnectionError:  # a daemon that was killed takes no more
                break
        return response
