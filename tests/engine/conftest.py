"""An engine on real SQLite, with a backend and a clock in the test's hand."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.engine.faults import FaultyStore, Patient

from imageopsd.engine import worker
from imageopsd.engine.backlog import Backlog
from imageopsd.engine.bus import EventBus
from imageopsd.engine.deadlines import Deadlines
from imageopsd.engine.gate import Gate
from imageopsd.engine.imageops import ImageOps
from imageopsd.engine.worker import Worker
from imageopsd.model.access import LOCAL
from imageopsd.model.events import Change, Happening, Postponed
from imageopsd.model.image import Image, ImageFacts, ImagePatch, RawDisk
from imageopsd.model.names import IdSource
from imageopsd.model.operation import Operation, Status
from imageopsd.model.requests import InsertImage, PatchImage
from imageopsd.model.retry import RetryPolicy
from imageopsd.model.time import Time
from imageopsd.ports import DeleteTask, InsertTask, PatchTask, Reporter
from imageopsd.storage.sqlite.store import SqliteStore

AnyTask = InsertTask | PatchTask | DeleteTask
FACTS = ImageFacts(disk_size_gb=1, archive_size_bytes=100)


NO_ROOM = "Waiting for room to keep records"

EXACT = pytest.mark.parametrize("engine", ["good"], indirect=True)
"""For a test that counts what happens on the way, and not only what comes of it: with a good store only."""


class Clock:
    """Stands still until the test moves it."""

    def __init__(self) -> None:
        self.now = Time(2026, 11, 20, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


class Call:
    """One call of the backend, which lasts until the test ends it."""

    def __init__(self, task: AnyTask, report: Reporter) -> None:
        self.task = task
        self.report = report
        self.cancelled = False
        self._over = anyio.Event()
        self._error: Exception | None = None

    def succeed(self) -> None:
        self._over.set()

    def fail(self, error: Exception) -> None:
        self._error = error
        self._over.set()

    async def outcome(self) -> None:
        try:
            await self._over.wait()
        except BaseException:
            self.cancelled = True
            raise
        if self._error is not None:
            raise self._error


class HandBackend:
    """Every call appears in `calls` and ends when and how the test says."""

    def __init__(self) -> None:
        self._send, self._receive = anyio.create_memory_object_stream[Call](100)
        self.patient = True

    async def next_call(self) -> Call:
        with anyio.fail_after(10):
            return await self._receive.receive()

    def nothing_called(self) -> bool:
        return self._receive.statistics().current_buffer_used == 0

    async def insert_image(self, task: InsertTask, report: Reporter) -> ImageFacts:
        await self._called(task, report)
        return FACTS

    async def delete_image(self, task: DeleteTask, report: Reporter) -> None:
        await self._called(task, report)

    async def patch_image(self, task: PatchTask, report: Reporter) -> None:
        await self._called(task, report)

    async def _called(self, task: AnyTask, report: Reporter) -> None:
        call = Call(task, report)
        self._send.send_nowait(call)
        await call.outcome()

    def close(self) -> None:
        self._send.close()
        self._receive.close()


class Engine:
    """The parts, and what happened. The engine works with the store `through` something, the test looks at `store`
    itself; `verbs` are what the doors call, `ops` what their users make of them."""

    def __init__(
        self, store: SqliteStore, backend: HandBackend, clock: Clock, through: FaultyStore | None = None
    ) -> None:
        self.store = store
        self.through: Any = through or store
        self.backend = backend
        self.clock = clock
        self.bus = EventBus()
        self.ids = IdSource(node=1)
        self.backlog = Backlog(self.bus, limit=1000)
        self.verbs = ImageOps(self.through, self.bus, self.ids, clock, room=self.backlog.entering)
        self.ops: Any = Patient(self.verbs) if through else self.verbs
        self.happened: list[Happening] = []
        self.bus.subscribe(self._hear)
        self._news = anyio.Event()

    def _hear(self, happening: Happening) -> None:
        self.happened.append(happening)
        match happening:
            case Change(event=Postponed(reason=reason, until=until)) if reason.startswith(NO_ROOM):
                self.clock.now = max(self.clock.now, until)  # a fault costs time, and no test has to know of it
        self._news.set()
        self._news = anyio.Event()

    def gate(self, slots: int = 4, **options: Any) -> Gate:
        return Gate(self.bus, self.clock, slots=slots, look_again=0, **options)

    def worker(self, *, slots: int = 4, attempts: int = 3, gate: Gate | None = None) -> Worker:
        retry = RetryPolicy(attempts=attempts, base=10, cap=10)
        return Worker(
            self.through,
            self.backend,  # type: ignore[arg-type]
            self.bus,
            retry,
            self.clock,
            gate or self.gate(slots),
            owner="boot",
            lease=30,
            dice=lambda: 0.5,
        )

    @asynccontextmanager
    async def working(self, *, slots: int = 4, attempts: int = 3, gate: Gate | None = None) -> AsyncIterator[Worker]:
        """A worker at work; drained without patience at the end."""
        gate = gate or self.gate(slots)
        worker = self.worker(attempts=attempts, gate=gate)
        async with anyio.create_task_group() as healing:
            healing.start_soon(gate.heal, self.through)
            async with anyio.create_task_group() as group:
                group.start_soon(worker.run)
                yield worker
                await worker.drain(0)
            healing.cancel_scope.cancel()

    @asynccontextmanager
    async def deadlines(self) -> AsyncIterator[None]:
        """Somebody minds them."""
        gate = self.gate()
        async with anyio.create_task_group() as group:
            group.start_soon(gate.heal, self.through)
            group.start_soon(Deadlines(self.through, self.verbs, self.bus, self.clock, gate).run)
            yield
            group.cancel_scope.cancel()

    async def until(self, condition: Callable[[list[Happening]], bool]) -> None:
        with anyio.fail_after(10):
            while not condition(self.happened):
                await self._news.wait()

    async def insert(self, name: str = "i", *, project: str = "p", request_id: str | None = None) -> Operation:
        image = Image(name=name, raw_disk=RawDisk(source="https://h/i.tar.gz"))
        return await self.ops.submit(InsertImage(project=project, request_id=request_id, image=image), by=LOCAL)

    async def copy(self, name: str, source: str) -> Operation:
        image = Image(name=name, source_image=source)
        return await self.ops.submit(InsertImage(project="p", image=image), by=LOCAL)

    async def patch(self, name: str = "i", **patch: object) -> Operation:
        change = ImagePatch(**patch)  # type: ignore[arg-type]
        return await self.ops.submit(PatchImage(project="p", image=name, patch=change), by=LOCAL)

    async def done(self, operation: Operation) -> Operation:
        with anyio.fail_after(10):
            ended = await self.ops.wait("p", operation.name, 10)
        assert ended.status is Status.DONE
        return ended

    def events_of(self, operation: Operation) -> list[str]:
        return [
            type(happening.event).__name__
            for happening in self.happened
            if isinstance(happening, Change) and happening.operation.id == operation.id
        ]


@pytest.fixture(params=["good", "faulty-1", "faulty-2"])
async def engine(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Engine]:
    """Every test of the engine runs with a good store and, by two plans, with one whose every method fails now and
    then: the end is the same."""
    backend = HandBackend()
    seed = request.node.name if request.param != "good" else ""  # another plan for each test
    async with SqliteStore(SqliteStore.Options(), tmp_path) as store:
        if seed:
            monkeypatch.setattr(worker, "FLUSH_INTERVAL", 0.01)
        yield Engine(store, backend, Clock(), FaultyStore(store, seed) if seed else None)
    backend.close()
