"""How much is not done yet, and whether more may be taken on: a daemon that accepts without end keeps no promise."""

from collections.abc import Iterator
from contextlib import contextmanager

import anyio

from imageopsd.engine.bus import EventBus
from imageopsd.model.errors import Overloaded
from imageopsd.model.events import Accepted, BacklogTurned, Cancelled, Change, Failed, Happening, Succeeded


class Backlog:
    """Counts operations that are accepted and not DONE, from `count` on; `limit` of them may be. Then it is full until
    half of them are done, which is told on the bus; a single place is for whoever asks just when it is free."""

    def __init__(self, bus: EventBus, limit: int, count: int = 0) -> None:
        self._bus = bus
        self._limit = limit
        self._count = count
        self._full = count >= limit
        self._entering = 0
        self._eased = anyio.Event()
        bus.subscribe(self._hear)

    @contextmanager
    def entering(self) -> Iterator[None]:
        """Keeps a place for one that is being accepted in the block. Raises Overloaded if there is no room for it."""
        if self._count + self._entering >= self._limit:
            self._look(refused=True)
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
        self._look()

    def tell(self) -> None:
        """That it is full, if so, for those who have begun to listen only now."""
        if self._full:
            self._publish()

    def _publish(self) -> None:
        reason = f"{self._limit} operations are not done yet, as many as may be" if self._full else None
        self._bus.publish(BacklogTurned(reason))

    def _look(self, *, refused: bool = False) -> None:
        roomy = self._count <= self._limit // 2
        full = not roomy and (self._full or refused or self._count >= self._limit)
        if full != self._full:
            self._full = full
            self._publish()
        if roomy:
            self._eased.set()
            self._eased = anyio.Event()

    def _hear(self, happening: Happening) -> None:
        if not isinstance(happening, Change):
            return
        match happening.event:
            case Accepted():
                self._count += 1
                self._look()
            case Succeeded() | Cancelled():
                self._done()
            case Failed() if happening.operation.start_time:  # what was refused at once had never been accepted
                self._done()

    def _done(self) -> None:
        self._count -= 1
        self._look()
