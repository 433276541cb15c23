"""The status endpoint: probes from memory alone, `/status` too but for quotas where there are any; `/metrics` after a
short look at what the queue, the store and the disk know."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import web
from prometheus_client.exposition import choose_encoder

from imageopsd.telemetry.board import Board
from imageopsd.telemetry.metrics import Metrics


class StatusApi:
    """`refresh` brings what `metrics` shows up to date, as far as it soon can, `refresh_quotas` the board's quotas;
    probes wait for neither."""

    def __init__(
        self,
        board: Board,
        metrics: Metrics,
        refresh: Callable[[], Awaitable[None]],
        refresh_quotas: Callable[[], Awaitable[None]],
    ) -> None:
        self._board = board
        self._metrics = metrics
        self._refresh = refresh
        self._refresh_quotas = refresh_quotas

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

    async def status(self, request: web.Request) -> web.Response:
        await self._refresh_quotas()

        def dump(value: Any) -> str:
            return json.dumps(value, indent=2) + "\n"

        return web.json_response(self._board.snapshot() | {"quotas": self._board.fullest_quotas()}, dumps=dump)

    async def metrics(self, request: web.Request) -> web.Response:
        await self._refresh()
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encode(self._metrics.registry), headers={"Content-Type": content_type})
