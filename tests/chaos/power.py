"""Power cuts: what the disk may hold when the current fails, made by hand from the files of a store under load.

While nothing is checkpointed the database file does not move and every byte of progress goes to the end of the
write-ahead log; so any prefix of the log, and whatever follows it up to the next sync, is what a power cut can leave.
What was acknowledged before a moment lies within the log as long as it was at that moment.
"""

import json
import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any
from uuid import UUID, uuid4

import anyio

from imageopsd.backends.simulated import Script, SimulatedBackend, Step
from imageopsd.engine.backlog import Backlog
from imageopsd.engine.bus import EventBus
from imageopsd.engine.gate import Gate
from imageopsd.engine.imageops import ImageOps
from imageopsd.engine.intake import Intake
from imageopsd.engine.worker import Worker
from imageopsd.model.access import LOCAL
from imageopsd.model.durations import Seconds
from imageopsd.model.image import Image, ImagePatch, RawDisk
from imageopsd.model.names import IdSource
from imageopsd.model.operation import Operation, Status
from imageopsd.model.requests import AnyRequest, DeleteImage, InsertImage, PatchImage
from imageopsd.model.retry import RetryPolicy
from imageopsd.model.time import Time
from imageopsd.storage.sqlite.queue import SqliteQueue
from imageopsd.storage.sqlite.store import SqliteStore
from tests.chaos.evidence import Verdict, check_store

FILES = ("queue.db", "state.db")
STEPS = 12
"""How many requests each user makes."""
USERS = 6
LIMIT = 60.0


@dataclass(frozen=True)
class Moment:
    """What had been promised, and how long the logs were then. The queue's log is looked at first: a job leaves the
    queue only when its operation is safe, so a state log that is newer has it."""

    promised: int
    queue: int
    state: int


@dataclass
class Load:
    """Some users of a whole engine in this process, and what they were promised, in order."""

    folder: Path
    seed: int
    operations: list[Operation] = field(default_factory=list)
    """Acknowledged: as they were then."""

    jobs: list[tuple[int, str]] = field(default_factory=list)
    """(number of operations acknowledged before, request id) of jobs whose submit had returned."""

    moments: list[Moment] = field(default_factory=list)

    async def run(self) -> None:
        self.folder.mkdir()
        async with _engine(self.folder) as (ops, queue, store):
            for writer in (store._writer, queue._writer):
                await writer.run(lambda tx: tx.execute("PRAGMA wal_autocheckpoint = 0"))
            async with anyio.create_task_group() as users:
                for number in range(USERS):
                    users.start_soon(self._use, ops, queue, number, Random(f"{self.seed} {number}"))
            self._note()
            for name in FILES:  # closing the store would empty the logs
                for path in (self.folder / name, self.folder / f"{name}-wal"):
                    shutil.copyfile(path, self.folder / f"{path.name}.taken")

    async def _use(self, ops: ImageOps, queue: SqliteQueue, number: int, rng: Random) -> None:
        for step in range(STEPS):
            name, request_id = f"i{number}-{step // 4}", str(UUID(int=rng.getrandbits(128), version=4))
            if rng.random() < 0.4:
                job = _job(name if step % 4 == 0 else f"q{number}-{step}", request_id)
                await queue.put([(request_id, job)], Time.current())
                self.jobs.append((len(self.operations), request_id))
                self._note()
                continue
            request: AnyRequest = _insert(name, request_id)
            if step % 4:
                request = PatchImage(
                    project="p", image=name, patch=ImagePatch(family=f"f{step}"), request_id=request_id
                )
            if step % 4 == 3:
                request = DeleteImage(project="p", image=name, request_id=request_id)
            try:
                accepted = await ops.submit(request, by=LOCAL)
            except Exception:
                continue
            self._promise(accepted)
            if rng.random() < 0.5:
                self._promise(await ops.wait("p", accepted.name, LIMIT))

    def _promise(self, operation: Operation) -> None:
        self.operations.append(operation)
        self._note()

    def _note(self) -> None:
        queue, state = (os.stat(self.folder / f"{name}-wal").st_size for name in FILES)
        self.moments.append(Moment(len(self.operations), queue, state))


@dataclass
class Cut:
    """One power cut. `torn`: behind the cut follows what the disk held by chance, as far as the log once was."""

    load: Load
    moment: Moment
    sizes: dict[str, int]
    torn: bool

    @classmethod
    def choose(cls, load: Load, rng: Random) -> "Cut":
        """Between a moment and the next, one of the two logs ends at any byte."""
        number = rng.randrange(len(load.moments) - 1)
        now, soon = load.moments[number : number + 2]
        if rng.random() < 0.7:
            sizes = {"queue.db": now.queue, "state.db": rng.randint(now.state, soon.state)}
        else:
            sizes = {"queue.db": rng.randint(now.queue, soon.queue), "state.db": soon.state}
        return cls(load, now, sizes, rng.random() < 0.5)

    async def recover(self, folder: Path, rng: Random, *, to_the_end: bool) -> Verdict:
        """What a fresh process makes of it."""
        folder.mkdir()
        for name, size in self.sizes.items():
            shutil.copyfile(self.load.folder / f"{name}.taken", folder / name)
            log = (self.load.folder / f"{name}-wal.taken").read_bytes()
            noise = rng.randbytes(min(len(log) - size, 20_000)) if self.torn else b""
            (folder / f"{name}-wal").write_bytes(log[:size] + noise)
        promised = {operation.id: operation for operation in self.load.operations[: self.moment.promised]}
        verdict = Verdict(jobs=len(promised), kills=1)
        async with SqliteStore(SqliteStore.Options(), folder) as store:
            await store.enter("after the cut", Time.current())
            await self._compare(store, promised, verdict)
        check_store(folder, verdict, idle=False)
        if to_the_end:
            async with _engine(folder) as (ops, queue, store):
                with anyio.fail_after(LIMIT):
                    while (await queue.depth()).waiting or not _over(await store.totals()):
                        await anyio.sleep(0.005)
                await self._compare(store, promised, verdict)
                for before, request_id in self.load.jobs:
                    if before < self.moment.promised:
                        await ops.operation("p", request_id)  # raises NotFound
            check_store(folder, verdict)
        return verdict

    async def _compare(self, store: SqliteStore, promised: dict[str, Operation], verdict: Verdict) -> None:
        page = await store.operations(None, 10_000, None, newest_first=False)
        there = {operation.id: operation for operation in page.items}
        for number, told in promised.items():
            found = there.get(number)
            if found is None:
                verdict.lost.append(f"{self.sizes} {told}")
            elif told.status is Status.DONE and found != told:
                verdict.untrue.append(f"{self.sizes} {told} -> {found}")


async def power_cuts(folder: Path, *, cuts: int, seed: int) -> list[Verdict]:
    """One load and so many cuts of it; each tenth is carried on to the end of all its operations."""
    load, rng = Load(folder / "load", seed), Random(seed)
    await load.run()
    verdicts = []
    for number in range(cuts):
        cut = Cut.choose(load, rng)
        verdicts.append(await cut.recover(folder / f"cut-{number}", rng, to_the_end=number % 10 == 0))
        shutil.rmtree(folder / f"cut-{number}")
    return verdicts


@asynccontextmanager
async def _engine(folder: Path) -> AsyncIterator[tuple[ImageOps, SqliteQueue, SqliteStore]]:
    patient = Script(image="*", verb="patch", steps=(Step(wait=Seconds(0.002)),))
    backend = SimulatedBackend(SimulatedBackend.Options(duration=Seconds(0), scripts=(patient,)), folder)
    bus = EventBus()
    async with (
        SqliteStore(SqliteStore.Options(), folder) as store,
        SqliteQueue(SqliteQueue.Options(), folder) as queue,
    ):
        boot = uuid4().hex
        await store.enter(boot, Time.current())
        ops = ImageOps(store, bus, IdSource(node=1, last=await store.newest_id()), Time.current)
        retry = RetryPolicy(attempts=1, base=0, cap=0)
        gate = Gate(bus, Time.current, slots=4)
        worker = Worker(store, backend, bus, retry, Time.current, gate, owner=boot, lease=LIMIT)
        intake = Intake(queue, ops, bus, Time.current, gate, Backlog(bus, limit=10**6))
        async with anyio.create_task_group() as group:
            group.start_soon(worker.run)
            async with anyio.create_task_group() as taking:
                taking.start_soon(intake.run)
                yield ops, queue, store
                taking.cancel_scope.cancel()
            await worker.drain(LIMIT)


def _insert(name: str, request_id: str) -> InsertImage:
    image = Image(name=name, raw_disk=RawDisk(source="https://host/i.tar.gz"))
    return InsertImage(project="p", request_id=request_id, image=image)


def _job(name: str, request_id: str) -> bytes:
    body = {"name": name, "rawDisk": {"source": "https://host/i.tar.gz"}}
    return json.dumps({"method": "images.insert", "project": "p", "requestId": request_id, "body": body}).encode()


def _over(totals: Any) -> bool:
    return not totals.pending and not totals.running
