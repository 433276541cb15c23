"""Durable operations a second, beside what three group-committed transitions of a bare queue cost here."""

from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter

import anyio

from imageopsd.backends.simulated import SimulatedBackend
from imageopsd.engine.bus import EventBus
from imageopsd.engine.gate import Gate
from imageopsd.engine.imageops import ImageOps
from imageopsd.engine.worker import Worker
from imageopsd.model.durations import Seconds
from imageopsd.model.events import Change, Happening
from imageopsd.model.image import Image, RawDisk
from imageopsd.model.names import IdSource
from imageopsd.model.operation import Status
from imageopsd.model.requests import InsertImage
from imageopsd.model.retry import RetryPolicy
from imageopsd.model.time import Time
from imageopsd.storage.sqlite.connection import Transaction, Writer, connect
from imageopsd.storage.sqlite.store import SqliteStore
from tests.bench.figure import Figure

OPERATIONS = 10_000
CLIENTS = 32
SLOTS = 32


async def measure(folder: Path) -> list[Figure]:
    bare_submit, bare = await _bare_queue(folder)
    submit, whole = await _operations(folder)
    against = "a bare group-committed queue"
    return [
        Figure.rate(f"submit → DONE, {SLOTS} slots, no-op backend", whole, against, bare),
        Figure.rate(f"submit, {CLIENTS} clients", submit, against, bare_submit),
    ]


async def _by_clients(work: Callable[[int], Awaitable[object]]) -> float:
    """How many a second, when CLIENTS do OPERATIONS of `work` among them."""

    async def client(number: int) -> None:
        for item in range(number, OPERATIONS, CLIENTS):
            await work(item)

    began = perf_counter()
    async with anyio.create_task_group() as group:
        for number in range(CLIENTS):
            group.start_soon(client, number)
    return OPERATIONS / (perf_counter() - began)


async def _bare_queue(folder: Path) -> tuple[float, float]:
    """The limit: the same writer and the same three commits, but a row of two numbers and nothing else."""
    path = folder / "bare.db"
    connection = connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE queue (id INTEGER PRIMARY KEY, state INTEGER NOT NULL) STRICT")
    connection.close()
    writer = Writer(path)

    def statement(sql: str, item: int) -> Callable[[Transaction], object]:
        return lambda tx: tx.execute(sql, (item,))

    async def whole(item: int) -> None:
        await writer.run(statement("INSERT INTO queue VALUES (?, 0)", item))
        await writer.run(statement("UPDATE queue SET state = 1 WHERE id = ?", item))
        await writer.run(statement("DELETE FROM queue WHERE id = ?", item))

    submit = await _by_clients(lambda item: writer.run(statement("INSERT INTO queue VALUES (-1 - ?, 0)", item)))
    rate = await _by_clients(whole)
    await writer.close()
    return submit, rate


async def _operations(folder: Path) -> tuple[float, float]:
    data_dir = folder / "records"
    data_dir.mkdir()
    bus, done, ended = EventBus(), anyio.Event(), 0

    def hear(happening: Happening) -> None:
        nonlocal ended
        if isinstance(happening, Change) and happening.operation.status is Status.DONE:
            ended += 1
            if ended == OPERATIONS:
                done.set()

    clock = Time.current

    bus.subscribe(hear)
    async with SqliteStore(SqliteStore.Options(), data_dir) as store:
        ops = ImageOps(store, bus, IdSource(node=1), clock)
        backend = SimulatedBackend(SimulatedBackend.Options(duration=Seconds(0)), data_dir)
        retry = RetryPolicy(attempts=1, base=1, cap=1)
        gate = Gate(bus, clock, slots=SLOTS)
        worker = Worker(store, backend, bus, retry, clock, gate, owner="bench", lease=30)

        def insert(item: int) -> Awaitable[object]:
            image = Image(name=f"i-{item}", raw_disk=RawDisk(source="https://host/i.tar.gz"))
            return ops.submit(InsertImage(project="p", image=image), user="bench")

        async with anyio.create_task_group() as group:
            began = perf_counter()
            group.start_soon(worker.run)
            await _by_clients(insert)
            await done.wait()
            whole = OPERATIONS / (perf_counter() - began)
            await worker.drain(0)
        submit = await _by_clients(lambda item: insert(OPERATIONS + item))
    return submit, whole
