"""How much is not done yet, and whether more may be taken on: a daemon that accepts without end keeps no promise."""

from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from imageopsd.engine.bus import EventBus
from imageopsd.model.errors import Overloaded
from imageopsd.model.events import Accepted, Cancelled, Change, Failed, Happening, Succeeded


class Backlog:
    """Counts operations that are accepted and not DONE, from `count` on; `limit` of them may be."""

    def __init__(self, bus: EventBus, limit: int, count: int = 0) -> None:
        self._limit = limit
        self._count = count
        self._entering = 0
        self._eased = anyio.Event()
        bus.subscribe(self._hear)

    @contextmanager
    def entering(self) -> Iterator[None]:
        """Keeps a place for one that is being accepted in the block. Raises Overloaded if there is no room for it."""
        if self._count + self._entering >= self._limit:
            raise Overloaded(self._limit)
        self._entering += 1
        try:
            yield
        finally:
            self._entering -= 1

    async def eased(self) -> None:
        """Waits until half of it is done: who stopped because it was full does not begin again for a single place."""
        while self._count > self._limit // 2:
            await self._eased.wait()

    def configure(self, limit: int) -> None:
        """Another limit; who waits for room is let on if there is enough of it now."""
        self._limit = limit
        self._ease()

    def _hear(self, happening: Happening) -> None:
        if not isinstance(happening, Change):
            return
        match happening.event:
            case Accepted():
                self._count += 1
            case Succeeded() | Cancelled():
                self._done()
            case Failed() if happening.operation.start_time:  # what was refused at once had never been accepted
                self._done()

    def _done(self) -> None:
        self._count -= 1
        self._ease()

    def _ease(self) -> None:
        if self._count <= self._limit // 2:
            self._eased.set()
            self._eased = anyio.Event()
