"""The status endpoint: probes from memory alone; `/status` and, for Prometheus, `/metrics` after a short look at what
the queue and the store count."""

import json
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import anyio
from aiohttp import web
from prometheus_client.exposition import choose_encoder

from imageopsd.model.errors import StoreError
from imageopsd.telemetry.board import Board
from imageopsd.telemetry.metrics import Metrics

REFRESH_LIMIT = 2.0
"""Seconds a scrape waits for fresh queue depths and quotas; then it shows the last ones rather than nothing."""


class StatusApi:
    """`refresh` brings `metrics` and the board's quotas up to date; probes wait neither for it nor for backend or
    queue."""

    def __init__(self, board: Board, metrics: Metrics, refresh: Callable[[], Awaitable[None]]) -> None:
        self._board = board
        self._metrics = metrics
        self._refresh = refresh

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/livez", self.livez),
            web.get("/readyz", self.readyz),
            web.get("/startupz", self.startupz),
            web.get("/status", self.status),
            web.get("/metrics", self.metrics),
        ]

    async def livez(self, request: web.Request) -> web.Response:
        """The event loop answers, and no loop of ours is stuck."""
        stuck = self._board.stuck
        return web.Response(status=503 if stuck else 200, text=f"stuck: {', '.join(stuck)}\n" if stuck else "ok\n")

    async def startupz(self, request: web.Request) -> web.Response:
        """Recovery is over and the API is up."""
        return self._probe(self._board.phase != "starting")

    async def readyz(self, request: web.Request) -> web.Response:
        """New work is taken, and nothing stands in its way."""
        return self._probe(self._board.ready)

    def _probe(self, good: bool) -> web.Response:
        return web.Response(status=200 if good else 503, text=f"{self._board.state}\n")

    async def _look(self) -> None:
        with anyio.move_on_after(REFRESH_LIMIT), suppress(StoreError):
            await self._refresh()

    async def status(self, request: web.Request) -> web.Response:
        await self._look()

        def dump(value: Any) -> str:
            return json.dumps(value, indent=2) + "\n"

        return web.json_response(self._board.snapshot() | {"quotas": self._board.fullest_quotas()}, dumps=dump)

    async def metrics(self, request: web.Request) -> web.Response:
        await self._look()
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._metrics.registry), headers={"Content-Type": content_type})
