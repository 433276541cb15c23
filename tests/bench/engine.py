"""Store, verbs and worker as the daemon puts them together, with a backend that is done at once."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter

import anyio

from imageopsd.backends.simulated import SimulatedBackend
from imageopsd.engine.bus import EventBus
from imageopsd.engine.gate import Gate
from imageopsd.engine.imageops import ImageOps
from imageopsd.engine.worker import Worker
from imageopsd.model.access import LOCAL
from imageopsd.model.durations import Seconds
from imageopsd.model.events import Change, Happening
from imageopsd.model.image import Image, RawDisk
from imageopsd.model.names import IdSource
from imageopsd.model.operation import Operation, Status
from imageopsd.model.requests import InsertImage
from imageopsd.model.retry import RetryPolicy
from imageopsd.model.time import Time
from imageopsd.storage.sqlite.store import SqliteStore

SLOTS = 32
PROJECT = "p"


class Engine:
    """`ended` has the tick at which each operation was told to be DONE, by its id."""

    def __init__(self, store: SqliteStore, data_dir: Path, last: int) -> None:
        self._bus = EventBus()
        self._bus.subscribe(self._hear)
        self._ops = ImageOps(store, self._bus, IdSource(node=1, last=last), Time.current)
        backend = SimulatedBackend(SimulatedBackend.Options(duration=Seconds(0)), data_dir)
        gate = Gate(self._bus, Time.current, slots=SLOTS)
        retry = RetryPolicy(attempts=1, base=1, cap=1)
        self.worker = Worker(store, backend, self._bus, retry, Time.current, gate, owner="bench", lease=30)
        self.ended: dict[str, float] = {}
        self._awaited = 0
        self._enough = anyio.Event()

    def _hear(self, happening: Happening) -> None:
        if isinstance(happening, Change) and happening.operation.status is Status.DONE:
            self.ended[happening.operation.id] = perf_counter()
            if len(self.ended) == self._awaited:
                self._enough.set()

    async def submit(self, name: str) -> Operation:
        image = Image(name=name, raw_disk=RawDisk(source="https://host/i.tar.gz"))
        return await self._ops.submit(InsertImage(project=PROJECT, image=image), by=LOCAL)

    @asynccontextmanager
    async def all_ended(self, operations: int) -> AsyncIterator[None]:
        """Is left when so many operations, those that are submitted in the block, have ended."""
        self.ended.clear()
        self._awaited, self._enough = operations, anyio.Event()
        yield
        await self._enough.wait()


@asynccontextmanager
async def engine(data_dir: Path, *, working: bool = True) -> AsyncIterator[Engine]:
    """One life of it; where there is a store already, on that. Unless it is `working`, it only accepts."""
    data_dir.mkdir(exist_ok=True)
    async with SqliteStore(SqliteStore.Options(), data_dir) as store, anyio.create_task_group() as group:
        one = Engine(store, data_dir, await store.newest_id())
        if working:
            group.start_soon(one.worker.run)
        yield one
        await one.worker.drain(0)
