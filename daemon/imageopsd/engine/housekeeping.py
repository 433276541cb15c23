"""Records and bytes held to each other: at start and once an hour, and what is left when an operation ends in vain.
Also the trash is emptied here, behind everybody's back: a file system takes its time for large files."""

from collections import deque
from collections.abc import Awaitable, Callable
from threading import Event

import anyio
import anyio.to_thread

from imageopsd.engine.bus import EventBus
from imageopsd.model.errors import StoreUnavailable
from imageopsd.model.events import Cancelled, Change, Failed, Happening, LeftBehind, StoreTroubled, Succeeded
from imageopsd.ports import Inventory, Keeper, Kept

INTERVAL = 3600.0
"""Seconds between two rounds."""
PAGE = 500
"""Resources that are looked at with one query."""


class Housekeeping:
    """Nothing of what it does is urgent, and all of it may be done twice. What cannot be done is told of and keeps
    nothing else from being done.

    - What an operation in staging left, that no operation will go on with, goes.
    - Bytes without a record go if the operation that made them is recorded to have ended: it ended without them. Bytes
      of an operation that nobody knows stay, and are told of: the records may be what is missing (`images rebuild`).
    - A READY resource without its bytes does not stay READY.
    - What is deleted is freed, and `freed` is called when there may be more room than before.
    """

    def __init__(
        self, inventory: Inventory, keeper: Keeper, bus: EventBus, freed: Callable[[], None] = lambda: None
    ) -> None:
        self._inventory = inventory
        self._keeper = keeper
        self._bus = bus
        self._freed = freed
        self._told: set[tuple[str, str]] = set()
        self._ended: deque[str] = deque()
        self._woken = anyio.Event()
        self._thrown_away = anyio.Event()
        bus.subscribe(self._hear)

    async def run(self) -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(self._forget)
            group.start_soon(self._empty_trash)
            while True:
                await self.round()
                await anyio.sleep(INTERVAL)

    async def round(self) -> None:
        """Everything once, but for the trash, which is emptied next."""
        for step in (self._check_staging, self._check_catalogue, self._check_strays):
            await self._try(step)
        self._thrown_away.set()

    async def _try(self, step: Callable[[], Awaitable[None]]) -> None:
        try:
            await step()
        except StoreUnavailable as error:
            self._bus.publish(StoreTroubled("housekeeping", error))
        except OSError as error:
            self._bus.publish(LeftBehind("housekeeping failed", str(error)))

    async def _check_staging(self) -> None:
        # first what is there, then what is recorded: what appears in between is recorded as well
        staged = await anyio.to_thread.run_sync(self._keeper.staged)
        for operation in sorted(staged - await self._inventory.unfinished()):
            if await self._forgotten(operation):
                self._bus.publish(LeftBehind("removed what an ended operation left in staging", operation))

    async def _check_catalogue(self) -> None:
        kept = await anyio.to_thread.run_sync(lambda: list(self._keeper.kept()))
        recorded = await self._check_records()
        await self._check_bytes([thing for thing in kept if thing.id not in recorded])

    async def _check_strays(self) -> None:
        for place, problem in (await anyio.to_thread.run_sync(self._keeper.strays)).items():
            self._tell(f"no image: {problem}", place)

    async def _check_records(self) -> set[int]:
        """The ids of all resources; those that are READY and have no bytes are no longer READY."""
        recorded: set[int] = set()
        while page := await self._inventory.resources(max(recorded, default=0), PAGE):
            recorded |= {int(resource.id or 0) for _, resource in page}
            ready = [(project, resource) for project, resource in page if resource.status == "READY"]
            for project, resource in ready:
                name = f"{project}/{resource.name}"
                try:
                    keeps = await anyio.to_thread.run_sync(self._keeper.keeps, project, resource)
                except OSError as error:
                    self._tell(f"its bytes cannot be looked at: {error.strerror}", name)
                    continue
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
                try:
                    await anyio.to_thread.run_sync(self._keeper.discard, thing)
                except OSError as error:
                    self._tell(f"bytes that no record has cannot be removed: {error.strerror}", thing.place)
                else:
                    self._bus.publish(LeftBehind("removed bytes that no record has", thing.place))
            else:
                self._tell("bytes that no record knows; `imageopsd images rebuild` takes them in", thing.place)

    def _tell(self, what: str, which: str) -> None:
        """Once, not every hour."""
        if (what, which) not in self._told:
            self._told.add((what, which))
            self._bus.publish(LeftBehind(what, which))

    # ------------------------------------------------------------------------------- an operation's end

    def _hear(self, happening: Happening) -> None:
        match happening:
            case Change(event=Failed() | Cancelled(), operation=operation):
                self._ended.append(operation.id)
                self._woken.set()
            case Change(event=Succeeded(), operation=operation) if operation.operation_type == "delete":
                self._thrown_away.set()

    async def _forget(self) -> None:
        while True:
            await self._woken.wait()
            self._woken = anyio.Event()
            while self._ended:
                await self._forgotten(self._ended.popleft())
            self._thrown_away.set()

    async def _forgotten(self, operation_id: str) -> bool:
        try:
            await self._keeper.forget(operation_id)
        except OSError as error:
            self._tell(f"could not remove what operation {operation_id} left", str(error))
            return False
        return True

    async def _empty_trash(self) -> None:
        while True:
            await self._thrown_away.wait()
            self._thrown_away = anyio.Event()
            await self._try(self.empty_trash)
            self._freed()

    async def empty_trash(self) -> None:
        """A stop does not wait for the file system: what is left is done by the next process. Raises OSError."""
        stop = Event()
        try:
            stuck = await anyio.to_thread.run_sync(self._keeper.empty_trash, stop, abandon_on_cancel=True)
        finally:
            stop.set()
        for place, problem in stuck.items():
            self._tell(f"cannot be removed: {problem}", place)
