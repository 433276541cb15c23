"""The machine as the daemon puts it together, with all that listens to it and a backend that is done at once."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, redirect_stdout
from functools import cache
from pathlib import Path
from time import monotonic, perf_counter
from uuid import uuid4

import anyio

from imageopsd.api.access import Access
from imageopsd.api.live import Live
from imageopsd.backends.simulated import SimulatedBackend
from imageopsd.config import Settings
from imageopsd.config.settings import Worker
from imageopsd.engine.bus import EventBus
from imageopsd.engine.machine import Machine
from imageopsd.keys import Keyring
from imageopsd.model.access import LOCAL
from imageopsd.model.durations import Seconds
from imageopsd.model.events import Change, Happening
from imageopsd.model.image import Image, RawDisk
from imageopsd.model.names import IdSource
from imageopsd.model.operation import Operation, Status
from imageopsd.model.requests import InsertImage
from imageopsd.model.time import Time
from imageopsd.ports import Totals
from imageopsd.storage.sqlite.queue import SqliteQueue
from imageopsd.storage.sqlite.store import SqliteStore
from imageopsd.telemetry import logs
from imageopsd.telemetry.board import Board
from imageopsd.telemetry.metrics import Metrics
from imageopsd.telemetry.systemd import StatusText
from imageopsd.telemetry.throughput import Throughput

SLOTS = 32
PROJECT = "p"
VERSION = "bench"
SETTINGS = Settings(backend="simulated", worker=Worker(slots=SLOTS))


class Engine:
    """`ended` has the tick at which each operation was told to be DONE, by its id."""

    def __init__(self, machine: Machine, bus: EventBus) -> None:
        bus.subscribe(self._hear)
        self._ops = machine.ops
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
        return await self._ops.submit(InsertImage(project=PROJECT, request_id=str(uuid4()), image=image), by=LOCAL)

    @asynccontextmanager
    async def all_ended(self, operations: int) -> AsyncIterator[None]:
        """Is left when so many operations, those that are submitted in the block, have ended."""
        self.ended.clear()
        self._awaited, self._enough = operations, anyio.Event()
        yield
        await self._enough.wait()


@asynccontextmanager
async def engine(data_dir: Path, *, working: bool = True, observed: bool = True) -> AsyncIterator[Engine]:
    """One life of it; where there is a store already, on that. Unless it is `working`, it only accepts; unless it is
    `observed`, nobody counts, logs or shows what happens."""
    data_dir.mkdir(exist_ok=True)
    bus, boot, metrics = EventBus(), uuid4().hex, Metrics(VERSION, SETTINGS.backend, SLOTS)
    store = SqliteStore(SqliteStore.Options(), data_dir)
    if observed:
        store.observe_commit = metrics.commit.observe
    async with (
        store,
        SqliteQueue(SqliteQueue.Options(), data_dir) as queue,
        SimulatedBackend(SimulatedBackend.Options(duration=Seconds(0)), data_dir) as backend,
        anyio.create_task_group() as group,
    ):
        await store.enter(boot, Time.current())
        totals = await store.totals()
        machine = Machine(
            store,
            queue,
            backend,
            bus,
            Time.current,
            SETTINGS,
            boot=boot,
            ids=IdSource(node=int(boot[:8], 16), last=await store.newest_id()),
            totals=totals,
            keyring=Keyring(data_dir),
        )
        if observed:
            group.start_soon(_observe(bus, metrics, queue, totals).run)
        one, stop = Engine(machine, bus), anyio.Event()
        if working:
            group.start_soon(machine.run, stop.wait)
        yield one
        stop.set()
        if working:
            while machine.running:
                await anyio.sleep(0.01)
        group.cancel_scope.cancel()


def _observe(bus: EventBus, metrics: Metrics, queue: SqliteQueue, totals: Totals) -> StatusText:
    """Who listens in a daemon, in its order; the log goes nowhere. What the last of them runs is still to be run."""
    _log_to_nowhere()
    board = Board(VERSION, SETTINGS.backend, SLOTS, Time.current())
    board.start_from(totals)
    throughput = Throughput(monotonic)
    live = Live(board, throughput, Access(None), queue.depth, Time.current)
    status = StatusText(board.sentence)
    for observer in (board.hear, metrics.hear, logs.hear, throughput.hear, live.hear, status.hear):
        bus.subscribe(observer)
    return status


@cache
def _log_to_nowhere() -> None:
    """Each line is made and written, as by default, for nobody."""
    with redirect_stdout(open(os.devnull, "w")):
        logs.configure("json", SETTINGS.log.level, VERSION)
