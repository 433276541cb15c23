"""Operations that nobody wants any more after a time of their own are ended then."""

from contextlib import suppress
from datetime import datetime

import anyio

from imageopsd.engine.bus import EventBus
from imageopsd.engine.gate import Gate
from imageopsd.engine.imageops import ImageOps
from imageopsd.model.errors import NotFound, StoreUnavailable
from imageopsd.model.events import Accepted, Cancelled, Change, Happening, Reason, StoreTroubled
from imageopsd.model.time import Clock
from imageopsd.ports import Store

BATCH = 100

EXCEEDED = Cancelled(Reason.DEADLINE, by="the time its caller gave it")


class Deadlines:
    """One timer, for the earliest of them; without any it sleeps."""

    def __init__(self, store: Store, ops: ImageOps, bus: EventBus, clock: Clock, gate: Gate) -> None:
        self._store = store
        self._ops = ops
        self._bus = bus
        self._clock = clock
        self._gate = gate
        self._next: datetime | None = None
        self._sooner = anyio.Event()
        bus.subscribe(self._hear)

    def _hear(self, happening: Happening) -> None:
        match happening:
            case Change(event=Accepted(deadline=datetime() as deadline)) if not self._next or deadline < self._next:
                self._next = deadline
                self._sooner.set()

    async def run(self) -> None:
        while True:
            self._sooner = anyio.Event()  # before looking: a deadline that comes after the look has set it
            try:
                self._next = await self._store.next_deadline()
                left = (self._next - self._clock()).total_seconds() if self._next else None
                if left is None or left > 0:
                    with anyio.move_on_after(left):
                        await self._sooner.wait()
                else:
                    await self._end_overdue()
            except StoreUnavailable as error:
                self._bus.publish(StoreTroubled("ending what is overdue", error))
                await self._gate.store_well()

    async def _end_overdue(self) -> None:
        for project, name in await self._store.overdue(self._clock(), BATCH):
            with suppress(NotFound):  # it ended and was forgotten meanwhile
                await self._ops.cancel(project, name, EXCEEDED)
