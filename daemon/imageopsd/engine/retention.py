"""Records of what ended long ago are forgotten: failures later than successes, for people come back to them. What is
left of those that somebody deleted goes when their request ids count no more.

So are dead letters. The space of all that is gone, settled jobs too, goes back to the file system.
"""

import sys
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from functools import partial

import anyio

from imageopsd.engine.bus import EventBus
from imageopsd.model.errors import StoreUnavailable
from imageopsd.model.events import StoreTroubled
from imageopsd.model.time import Clock
from imageopsd.ports import JobQueue, Store

INTERVAL = 3600.0
"""Seconds between two rounds."""

BATCH = 200
"""Records a transaction: a thousand would hold up whoever writes next for 28 ms."""

BREATH = 0.05
"""Seconds between two batches, in which everybody else comes first."""


class Retention:
    """`succeeded` and `failed` are for how many seconds such operations are kept, `request_ids` for how many a request
    id leads to its operation, `dead` is for dead letters; `None` is for ever."""

    def __init__(
        self,
        store: Store,
        queue: JobQueue,
        bus: EventBus,
        clock: Clock,
        *,
        succeeded: float | None,
        failed: float | None,
        request_ids: float | None,
        dead: float | None,
    ) -> None:
        self._store = store
        self._queue = queue
        self._bus = bus
        self._clock = clock
        self.configure(succeeded=succeeded, failed=failed, request_ids=request_ids, dead=dead)

    def configure(
        self, *, succeeded: float | None, failed: float | None, request_ids: float | None, dead: float | None
    ) -> None:
        """What the next round goes by."""
        self._kept: list[tuple[Callable[..., Awaitable[int]], float | None]] = [
            (partial(self._store.forget, failed=False), succeeded),
            (partial(self._store.forget, failed=True), failed),
            (self._store.forget_requests, request_ids),
            (self._queue.forget, dead),
        ]

    async def run(self) -> None:
        while True:
            try:
                await self.round()
            except StoreUnavailable as error:
                self._bus.publish(StoreTroubled("forgetting old records", error))
            await anyio.sleep(INTERVAL)

    async def round(self) -> None:
        """Forgets all that is old enough, and gives its space, and that of all else that is gone, back."""
        for forget, kept in self._kept:
            if kept is not None:
                await self._forget(forget, self._clock() - timedelta(seconds=kept))
        for part in (self._store, self._queue):
            left = sys.maxsize
            while 0 < (free := await part.tidy()) < left:
                left = free
                await anyio.sleep(BREATH)

    async def _forget(self, forget: Callable[..., Awaitable[int]], before: datetime) -> None:
        count = BATCH
        while count == BATCH:
            count = await forget(before=before, limit=BATCH)
            await anyio.sleep(BREATH)
