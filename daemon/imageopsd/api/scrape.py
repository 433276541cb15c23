"""What a scrape asks for that no event tells: looked at when somebody asks, and never in between."""

import os
import time
from collections.abc import Callable
from pathlib import Path

import anyio

from imageopsd.api.listening import Guards
from imageopsd.model.time import Time
from imageopsd.ports import JobQueue, Store
from imageopsd.telemetry.board import Board
from imageopsd.telemetry.metrics import Metrics


class Scrape:
    """Brings `metrics`, and the quotas of `board`, up to date: first what memory has, then what the queue and the store
    count, last the disk, which may not answer."""

    def __init__(
        self,
        board: Board,
        metrics: Metrics,
        store: Store,
        queue: JobQueue,
        guards: Guards,
        data_dir: Path,
        clock: Callable[[], Time],
    ) -> None:
        self._board = board
        self._metrics = metrics
        self._store = store
        self._queue = queue
        self._guards = guards
        self._data_dir = data_dir
        self._clock = clock
        self._looking = False

    async def refresh(self) -> None:
        self._from_memory()
        depth = await self._queue.depth()
        age = self._clock().timestamp() - depth.oldest.timestamp() if depth.oldest else 0.0
        self._metrics.set_depths(depth.waiting, depth.dead, max(age, 0.0), self._board.pending)
        usage = await self._store.usage(None, self._clock()) if self._store.quotas else ()
        self._board.quotas = self._store.quotas.reached(usage)
        self._metrics.set_quota_use(self._board.quotas)
        await self._from_disk()

    def _from_memory(self) -> None:
        oldest = self._board.oldest_start
        age = max(self._clock().timestamp() - oldest.timestamp(), 0.0) if oldest else 0.0
        vitals, certificates = self._metrics.vitals, self._guards.certificates
        vitals.set_state(self._board.ready, len(self._board.stuck), age)
        refused = {"tokens_file": self._guards.tokens, "tls_certificate": certificates}
        vitals.set_credentials(
            certificates.ends if certificates else {}, [name for name, file in refused.items() if file and file.refused]
        )

    async def _from_disk(self) -> None:
        """A thread looks; how long its answer lies there before the event loop takes it up is the loop's lag."""
        if self._looking:  # a disk that does not answer holds one thread, not one for each scrape
            return
        try:
            space, answered = await anyio.to_thread.run_sync(self._look, abandon_on_cancel=True)
        except OSError:  # the rest of a scrape is worth having all the more
            return
        self._metrics.lag.observe(time.monotonic() - answered)
        self._metrics.vitals.set_space(space.f_bavail * space.f_frsize, space.f_blocks * space.f_frsize)

    def _look(self) -> tuple[os.statvfs_result, float]:
        self._looking = True
        try:
            return os.statvfs(self._data_dir), time.monotonic()
        finally:
            self._looking = False
