"""Records and bytes held to each other: at start and once an hour, and what is left when an operation ends in vain."""

from collections import deque

import anyio
import anyio.to_thread

from imageopsd.engine.bus import EventBus
from imageopsd.model.errors import StoreUnavailable
from imageopsd.model.events import Cancelled, Change, Failed, Happening, LeftBehind, StoreTroubled
from imageopsd.ports import Inventory, Keeper, Kept

INTERVAL = 3600.0
"""Seconds between two rounds."""
PAGE = 500
"""Resources that are looked at with one query."""


class Housekeeping:
    """Nothing of what it does is urgent, and all of it may be done twice.

    - What an operation in staging left, that no operation will go on with, goes.
    - Bytes without a record go if the operation that made them is recorded to have ended: it ended without them. Bytes
      of an operation that nobody knows stay, and are told of: the records may be what is missing (`images rebuild`).
    - A READY resource without its bytes does not stay READY.
    """

    def __init__(self, inventory: Inventory, keeper: Keeper, bus: EventBus) -> None:
        self._inventory = inventory
        self._keeper = keeper
        self._bus = bus
        self._told: set[str] = set()
        self._ended: deque[str] = deque()
        self._woken = anyio.Event()
        bus.subscribe(self._hear)

    async def run(self) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._forget)
            while True:
                try:
                    await self.round()
                except StoreUnavailable as error:
                    self._bus.publish(StoreTroubled("housekeeping", error))
                except OSError as error:
                    self._bus.publish(LeftBehind("housekeeping failed", str(error)))
                await anyio.sleep(INTERVAL)

    async def round(self) -> None:
        """Everything once. Raises StoreUnavailable, OSError."""
        # first what is there, then what is recorded: what appears in between is recorded as well
        staged = await anyio.to_thread.run_sync(self._keeper.staged)
        kept = await anyio.to_thread.run_sync(lambda: list(self._keeper.kept()))
        dead = staged - await self._inventory.unfinished()
        # abandoned by a stop, which does not wait for a file system: it is done again
        await anyio.to_thread.run_sync(self._keeper.sweep, dead, abandon_on_cancel=True)
        for operation in sorted(dead):
            self._bus.publish(LeftBehind("removed what an ended operation left in staging", operation))
        recorded = await self._check_records()
        await self._check_bytes([thing for thing in kept if thing.id not in recorded])

    async def _check_records(self) -> set[int]:
        """The ids of all resources; those that are READY and have no bytes are no longer READY."""
        recorded: set[int] = set()
        while page := await self._inventory.resources(max(recorded, default=0), PAGE):
            recorded |= {int(resource.id or 0) for _, resource in page}
            ready = [(project, resource) for project, resource in page if resource.status == "READY"]
            for project, resource in ready:
                keeps = await anyio.to_thread.run_sync(self._keeper.keeps, project, resource)
                name = f"{project}/{resource.name}"
                if keeps is None:
                    self._tell(
                        "no bytes of its project are here; another disk mounted, or another backend before?", name
                    )
                elif not keeps and await self._inventory.lose(int(resource.id or 0)):
                    self._bus.publish(LeftBehind("the bytes are gone; no longer READY", name))
        return recorded

    async def _check_bytes(self, unrecorded: list[Kept]) -> None:
        ended = await self._inventory.ended(thing.operation for thing in unrecorded if thing.operation)
        for thing in unrecorded:
            if thing.operation in ended:
                await anyio.to_thread.run_sync(self._keeper.discard, thing, abandon_on_cancel=True)
                self._bus.publish(LeftBehind("removed bytes that no record has", thing.place))
            else:
                self._tell("bytes that no record knows; `imageopsd images rebuild` takes them in", thing.place)

    def _tell(self, what: str, which: str) -> None:
        """Once, not every hour."""
        if which not in self._told:
            self._told.add(which)
            self._bus.publish(LeftBehind(what, which))

    # ------------------------------------------------------------------------------- an operation's end

    def _hear(self, happening: Happening) -> None:
        if isinstance(happening, Change) and isinstance(happening.event, Failed | Cancelled):
            self._ended.append(happening.operation.id)
            self._woken.set()

    async def _forget(self) -> None:
        while True:
            await self._woken.wait()
            self._woken = anyio.Event()
            while self._ended:
                operation_id = self._ended.popleft()
                try:
                    await self._keeper.forget(operation_id)
                except OSError as error:
                    self._bus.publish(LeftBehind(f"could not remove what operation {operation_id} left", str(error)))
