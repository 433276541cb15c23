"""From the queue into the store: each job becomes an operation or a dead letter, and only then leaves the queue."""

from collections.abc import Awaitable, Callable, Iterator

import anyio

from imageopsd.engine.backlog import Backlog
from imageopsd.engine.bus import EventBus
from imageopsd.engine.gate import Gate
from imageopsd.engine.imageops import ImageOps
from imageopsd.engine.pulse import Pulse
from imageopsd.model.access import QUEUE
from imageopsd.model.errors import (
    InvalidRequest,
    Overloaded,
    RequestError,
    RequestIdReused,
    StoreUnavailable,
    Unavailable,
)
from imageopsd.model.events import JobBuried, JobCrashed, StoreTroubled
from imageopsd.model.redaction import without_keys
from imageopsd.model.requests import AnyRequest, InsertImage
from imageopsd.model.time import Clock
from imageopsd.ports import Job, JobQueue
from imageopsd.wire.jobs import read_job

BEAT = 5.0
"""Seconds between two signs of life while it waits."""

PUT_OFF = 30.0
"""Seconds until jobs that could not be taken for now are tried again."""


class Intake:
    """Reads `batch` jobs at a time. What cannot be taken for now, since the daemon's own key for it cannot be read, is
    put off for `put_off` seconds, with all that waits for the same image, and holds up nobody else; once there is a
    whole batch of it, everybody waits."""

    def __init__(
        self,
        queue: JobQueue,
        ops: ImageOps,
        bus: EventBus,
        clock: Clock,
        gate: Gate,
        backlog: Backlog,
        *,
        batch: int = 128,
        put_off: float = PUT_OFF,
    ) -> None:
        self._queue = queue
        self._ops = ops
        self._bus = bus
        self._clock = clock
        self._gate = gate
        self._backlog = backlog
        self._batch = batch
        self._put_off_for = put_off
        self._put_off: list[tuple[Job, AnyRequest]] = []
        self.pulse = Pulse()

    async def run(self) -> None:
        """Works until it is cancelled. A job whose operation is recorded but which was not settled comes again
        after a restart, and its request id leads it to the same operation."""
        while True:
            jobs: list[Job] = []
            with anyio.move_on_after(self._put_off_for if self._put_off else None):
                if len(self._put_off) < self._batch:
                    jobs = await self._queue.receive(self._batch)
                else:
                    await anyio.sleep_forever()
            with self.pulse.turn():
                await self._take_all(jobs)

    async def _take_all(self, jobs: list[Job]) -> None:
        """What was put off comes first, as it came first."""
        again, self._put_off = self._put_off, []
        understood = [pair for job in jobs if (pair := await self._understood(job))]
        for wave in _waves([*again, *understood]):
            held = {request.target for _, request in self._put_off}
            async with anyio.create_task_group() as together:
                for job, request in wave:
                    if held & set(_images_of(request)):
                        self._put_off.append((job, request))
                    else:
                        together.start_soon(self._take, job, request)

    async def _understood(self, job: Job) -> tuple[Job, AnyRequest] | None:
        try:
            return job, read_job(job.body, job.id)
        except InvalidRequest as error:
            refusal = error
        except Exception as error:  # ours to mend; but one such job must not stop all others at every start
            self._bus.publish(JobCrashed(job.id, error))
            refusal = InvalidRequest("job", "The job could not be read; the daemon's log has the details.")
        await self._until_stored(job, lambda: self._bury(job, refusal))
        return None

    async def _take(self, job: Job, request: AnyRequest) -> None:
        await self._until_stored(job, lambda: self._record(job, request))

    async def _record(self, job: Job, request: AnyRequest) -> None:
        try:
            await self._submit(request)
        except RequestIdReused as error:
            return await self._bury(job, error)
        except Unavailable:  # which everybody has been told; or the daemon drains, and the next one takes it
            return self._put_off.append((job, request))
        return await self._queue.settle([job.receipt])

    async def _submit(self, request: AnyRequest) -> None:
        """Has an operation recorded for it, be it one that is refused."""
        while True:
            try:
                await self._ops.submit(request, by=QUEUE)
                return
            except Overloaded:  # the queue is made for waiting
                await self._patiently(self._backlog.eased)
            except StoreUnavailable:  # which everybody has been told
                await self._patiently(self._gate.store_well)
            except (RequestIdReused, Unavailable):
                raise
            except RequestError as error:
                await self._ops.refuse(request, error, by=QUEUE)
                return

    async def _patiently(self, wait: Callable[[], Awaitable[None]]) -> None:
        """Waits for something that may take hours, and is not stuck meanwhile."""
        while True:
            with anyio.move_on_after(BEAT):
                return await wait()
            self.pulse.beat()

    async def _bury(self, job: Job, error: RequestError) -> None:
        await self._queue.bury(job.receipt, error.message, self._clock(), without_keys(job.body))
        self._bus.publish(JobBuried(job.id, error.code, error.message))

    async def _until_stored(self, job: Job, work: Callable[[], Awaitable[None]]) -> None:
        """Waits out a disk that is full or a database that is locked: the job is safe in the queue meanwhile, and what
        was done of `work` is found when it is done again."""
        while True:
            self.pulse.beat()
            try:
                return await work()
            except StoreUnavailable as error:
                self._bus.publish(StoreTroubled(f"taking job {job.id}", error))
                await self._patiently(self._gate.store_well)


def _waves(jobs: list[tuple[Job, AnyRequest]]) -> Iterator[list[tuple[Job, AnyRequest]]]:
    """Stretches of jobs that may be recorded at the same moment, in one commit: none names an image that an earlier
    one of its stretch makes or changes, or has its request id, so their order cannot matter. What a family or a numeric
    id means is not known here, so a job that uses one begins a stretch."""
    wave: list[tuple[Job, AnyRequest]] = []
    touched: set[str | None] = set()
    for job, request in jobs:
        target, source = _images_of(request)
        if {target, source, request.request_id} & touched or (
            wave and ("/family/" in source or target.isdecimal() or source.isdecimal())
        ):
            yield wave
            wave, touched = [], set()
        wave.append((job, request))
        touched |= {target, request.request_id}
    if wave:
        yield wave


def _images_of(request: AnyRequest) -> tuple[str, str]:
    """The image a request makes or changes, and the one it copies, by the last part of their links."""
    if isinstance(request, InsertImage):
        source = request.image.source_image or ""
        return request.target, source if "/family/" in source else source.rpartition("/")[2]
    return request.target, ""
