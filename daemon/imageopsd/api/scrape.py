"""What a scrape asks for that no event tells: looked at when somebody asks, and never in between."""

import os
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import structlog

from imageopsd.api.listening import Guards
from imageopsd.model.errors import StoreError
from imageopsd.model.time import Time
from imageopsd.ports import JobQueue, Store
from imageopsd.telemetry.board import Board
from imageopsd.telemetry.metrics import Metrics

log = structlog.stdlib.get_logger(__name__)

REFRESH_LIMIT = 2.0
"""Seconds a scrape waits for fresh figures; then it shows the last ones rather than nothing."""


class Scrape:
    """Brings `metrics`, and the quotas of `board`, up to date: what memory has, and at the same time what the queue,
    the store and the disk know. Whoever of them fails, or takes longer than `limit` seconds, is counted and costs its
    own figures only: they stay as they were. `could_start` is the worker's."""

    def __init__(
        self,
        board: Board,
        metrics: Metrics,
        store: Store,
        queue: JobQueue,
        guards: Guards,
        data_dir: Path,
        clock: Callable[[], Time],
        could_start: Callable[[], Awaitable[bool]],
        *,
        limit: float = REFRESH_LIMIT,
    ) -> None:
        self._board = board
        self._metrics = metrics
        self._store = store
        self._queue = queue
        self._guards = guards
        self._data_dir = data_dir
        self._clock = clock
        self._could_start = could_start
        self._limit = limit
        self._looking = False

    async def refresh(self) -> None:
        """Raises nothing: a scrape without some figures is worth more than none, above all when something is wrong."""
        self._from_memory()
        async with anyio.create_task_group() as together:
            for source, look in (
                ("queue", self._from_queue),
                ("quota", self._from_ledger),
                ("worker", self._from_worker),
                ("disk", self._from_disk),
            ):
                together.start_soon(self._unless_it_fails, source, look)

    async def refresh_quotas(self) -> None:
        """Those alone. Without limits there is nothing to ask anybody for."""
        await self._unless_it_fails("quota", self._from_ledger)

    async def _unless_it_fails(self, source: str, look: Callable[[], Awaitable[None]]) -> None:
        with anyio.move_on_after(self._limit) as waiting:
            try:
                await look()
            except (StoreError, OSError):
                self._metrics.scrape_failed(source)
            except Exception as error:
                self._metrics.scrape_failed(source)
                log.error("scrape failed", which=source, exc_info=error)
        if waiting.cancelled_caught:
            self._metrics.scrape_failed(source)

    async def _from_queue(self) -> None:
        depth = await self._queue.depth()
        age = self._clock().timestamp() - depth.oldest.timestamp() if depth.oldest else 0.0
        self._metrics.set_depths(depth.waiting, depth.dead, max(age, 0.0))

    async def _from_ledger(self) -> None:
        usage = await self._store.usage(None, self._clock()) if self._store.quotas else ()
        self._board.quotas = self._store.quotas.reached(usage)
        self._metrics.set_quota_use(self._board.quotas)

    async def _from_worker(self) -> None:
        self._metrics.vitals.set_start_possible(await self._could_start())

    def _from_memory(self) -> None:
        oldest = self._board.oldest_start
        age = max(self._clock().timestamp() - oldest.timestamp(), 0.0) if oldest else 0.0
        vitals, certificates = self._metrics.vitals, self._guards.certificates
        self._metrics.set_pending(self._board.pending)
        vitals.set_state(self._board.ready, len(self._board.stuck), age)
        refused = {"tokens_file": self._guards.tokens, "tls_certificate": certificates}
        vitals.set_credentials(
            certificates.ends if certificates else {}, [name for name, file in refused.items() if file and file.refused]
        )

    async def _from_disk(self) -> None:
        """A thread looks; how long its answer lies there before the event loop takes it up is the loop's lag."""
        if self._looking:  # a disk that does not answer holds one thread, not one for each scrape
            return
        space, answered = await anyio.to_thread.run_sync(self._look, abandon_on_cancel=True)
        self._metrics.lag.observe(time.monotonic() - answered)
        self._metrics.vitals.set_space(space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize)

    def _look(self) -> tuple[os.statvfs_result, float]:
        self._looking = True
        try:
            return os.statvfs(self._data_dir), time.monotonic()
        finally:
            self._looking = False
