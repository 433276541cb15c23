"""The slots that carry operations out: claim, hand to the backend, record what comes of it.

Every change of an operation's record goes the same way: computed (`model.lifecycle`), written under the claim's
token, then published. A stop is not a failure: interrupted work is released and its attempt given back.
"""

import heapq
import random
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from http import HTTPStatus

import anyio

from imageopsd.engine.bus import EventBus
from imageopsd.engine.effects import Effects
from imageopsd.engine.imageops import Clock
from imageopsd.engine.pulse import Pulse
from imageopsd.engine.run import Run
from imageopsd.model.errors import (
    BackendFailure,
    LeaseLost,
    NotYet,
    PermanentFailure,
    StoreError,
    StoreUnavailable,
    TemporaryFailure,
)
from imageopsd.model.events import (
    Accepted,
    BackendCrashed,
    Change,
    Claimed,
    Deferred,
    Event,
    Failed,
    Happening,
    Interrupted,
    LeaseWasLost,
    Postponed,
    StoreTroubled,
    Succeeded,
)
from imageopsd.model.lifecycle import apply
from imageopsd.model.retry import RetryPolicy
from imageopsd.model.time import Time
from imageopsd.ports import Backend, CatalogueChange, Claim, Store

FLUSH_INTERVAL = 1.0
"""Seconds between two writes of one operation's progress."""

STORE_RETRY_DELAY = 5.0
"""Seconds before a write is made again that the store could not take."""

LOOK_AGAIN = 1.0
"""Seconds until an operation that waits for another one's image is looked at again."""

SHUTDOWN = "the daemon is shutting down"

INTERNAL = PermanentFailure(
    "INTERNAL_ERROR",
    "The operation failed in a way it should not have; the daemon's log has the details.",
    HTTPStatus.INTERNAL_SERVER_ERROR,
)


class _Seat:
    """A free slot, waiting for its next run."""

    def __init__(self) -> None:
        self.called = anyio.Event()
        self.run: Run | None = None

    def give(self, run: Run) -> None:
        self.run = run
        self.called.set()


class Worker:
    """`slots` loops that each carry out one operation at a time, fed by one loop that claims for all free ones at
    once. `lease` is in seconds; `dice` gives the retry policy's random numbers."""

    def __init__(
        self,
        store: Store,
        backend: Backend,
        bus: EventBus,
        retry: RetryPolicy,
        clock: Clock,
        *,
        owner: str,
        slots: int,
        lease: float,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self._store = store
        self._effects = Effects(store, backend, clock)
        self._bus = bus
        self._retry = retry
        self._clock = clock
        self._owner = owner
        self._slots = slots
        self._lease = lease
        self._dice = dice
        self._free: deque[_Seat] = deque()
        self._runs: set[Run] = set()
        self._dirty = anyio.Event()
        self._hint = anyio.Event()
        self._deferred: list[datetime] = []
        self._stopping = anyio.Event()
        self._fed = anyio.Event()
        self._impatient = False
        self.pulse = Pulse()
        bus.subscribe(self._hear)

    @property
    def running(self) -> int:
        return len(self._runs)

    def look(self) -> None:
        """There may be something to claim."""
        self._hint.set()

    def _hear(self, happening: Happening) -> None:
        if isinstance(happening, Change) and isinstance(happening.event, Accepted):
            self.look()

    # ------------------------------------------------------------------------------------ starting, ending

    async def run(self) -> None:
        """Works until `drain`. Everything it started has ended when it returns."""
        if due := await self._store.next_due():
            heapq.heappush(self._deferred, due)
        async with anyio.create_task_group() as side:
            side.start_soon(self._flush)
            async with anyio.create_task_group() as slots:
                for _ in range(self._slots):
                    slots.start_soon(self._slot)
                await self._feed()
            side.cancel_scope.cancel()

    async def drain(self, patience: float) -> None:
        """Claims nothing more, gives what runs `patience` seconds to end, then interrupts it."""
        self._stopping.set()
        self.look()
        with anyio.move_on_after(patience):
            await self._fed.wait()  # a claim under way may still bring work
            while self._runs:
                await next(iter(self._runs)).ended.wait()
        self.interrupt()

    def interrupt(self) -> None:
        """Interrupts what runs at once, and what a claim under way still brings."""
        self._impatient = True
        for run in self._runs:
            run.interrupt(SHUTDOWN)

    async def _feed(self) -> None:
        """Claims for the free slots whenever something may have become due; no polling: a hint or a timer wakes it."""
        self.look()
        while not self._stopping.is_set():
            with anyio.move_on_after(self._until_next_due()):
                await self._hint.wait()
            self._hint = anyio.Event()
            while self._free and not self._stopping.is_set():
                seats = len(self._free)
                with self.pulse.turn():
                    claims = await self._claim(seats)
                for claim in claims:
                    self._free.popleft().give(self._begin(claim))
                if len(claims) < seats:
                    break
        for seat in self._free:
            seat.called.set()
        self._fed.set()

    def _until_next_due(self) -> float | None:
        now = self._clock()
        if not self._deferred:
            return None
        if self._deferred[0] <= now:
            heapq.heappop(self._deferred)
            return 0
        return (self._deferred[0] - now).total_seconds()

    def _due_at(self, until: Time) -> None:
        heapq.heappush(self._deferred, until)
        self.look()

    async def _claim(self, limit: int) -> list[Claim]:
        now = self._clock()
        try:
            claims = await self._store.claim(
                self._owner,
                limit,
                now,
                now + timedelta(seconds=self._lease),
                lambda operation: apply(operation, Claimed(), now),
            )
        except StoreUnavailable as error:
            self._bus.publish(StoreTroubled("claiming", error))
            heapq.heappush(self._deferred, now + timedelta(seconds=STORE_RETRY_DELAY))
            return []
        for claim in claims:
            self._bus.publish(Change(Claimed(), claim.operation, claim.project, now))
        return claims

    async def _slot(self) -> None:
        while not self._stopping.is_set():
            seat = _Seat()
            self._free.append(seat)
            self.look()
            await seat.called.wait()
            if seat.run is not None:
                await self._work(seat.run)

    # -------------------------------------------------------------------------------------- one operation

    def _begin(self, claim: Claim) -> Run:
        run = Run(claim, self._store, self._bus, self._clock, self._mark_dirty)
        self._runs.add(run)
        if self._impatient:
            run.interrupt(SHUTDOWN)
        return run

    async def _work(self, run: Run) -> None:
        try:
            await self._carry_out(run)
        except LeaseLost:
            self._bus.publish(LeaseWasLost(run.operation.name))
        except (StoreError, anyio.get_cancelled_exc_class()):
            raise  # nothing can be recorded any more
        except Exception as error:  # a bug of ours must not take every other operation with it
            self._bus.publish(BackendCrashed(run.operation.name, error))
            with anyio.CancelScope(shield=True):
                await self._write(
                    run,
                    Failed((INTERNAL.entry,), INTERNAL.http_status),
                    self._store.finish,
                    self._effects.after_failure(run.claim),
                )
        finally:
            self._runs.discard(run)
            run.ended.set()

    async def _carry_out(self, run: Run) -> None:
        claim = run.claim
        change: CatalogueChange = None
        failure: BackendFailure | None = None
        waiting: NotYet | None = None
        with run.scope:
            try:
                change = await self._effects.carry_out(claim, run)
            except BackendFailure as error:
                failure = error
            except NotYet as error:
                waiting = error
            except LeaseLost:
                raise
            except StoreUnavailable as error:  # a checkpoint or a look into the catalogue that could not be made
                failure = TemporaryFailure("STORAGE_UNAVAILABLE", f"The records could not be kept: {error}.")
            except Exception as error:
                self._bus.publish(BackendCrashed(claim.operation.name, error))
                failure = INTERNAL
        run.close()
        with anyio.CancelScope(shield=True):  # what is known now must be written, whoever wants us to stop
            if run.lost:
                raise LeaseLost(claim.operation.name)
            if run.scope.cancelled_caught:
                await self._write(run, Interrupted(run.interruption), self._store.release)
            elif failure is not None:
                await self._fail(run, failure)
            elif waiting is not None:
                await self._postpone(run, str(waiting))
            else:
                await self._write(run, Succeeded(), self._store.finish, change)

    async def _postpone(self, run: Run, reason: str) -> None:
        until = self._clock() + timedelta(seconds=LOOK_AGAIN)
        await self._write(run, Postponed(reason, until), self._store.release, until)
        self._due_at(until)

    async def _fail(self, run: Run, failure: BackendFailure) -> None:
        """Tries again later if that can help, else ends the operation."""
        claim, now = run.claim, self._clock()
        if isinstance(failure, TemporaryFailure) and (
            until := self._retry.next_try(claim.attempt, now, self._dice(), failure.delay)
        ):
            event = Deferred(claim.attempt, self._retry.attempts, failure.entry, until)
            await self._write(run, event, self._store.defer, until)
            self._due_at(until)
            return
        change = self._effects.after_failure(claim)
        await self._write(run, Failed((failure.entry,), failure.http_status), self._store.finish, change)

    async def _write(self, run: Run, event: Event, method: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Ends the claim by `method`. A full disk or a lock is waited out: the outcome is known and must not be lost;
        a daemon that has to stop leaves it to the next one, which finds the backend's effect and records it."""
        now = self._clock()
        operation = apply(run.operation, event, now)
        while True:
            try:
                await method(run.claim, operation, *arguments)
                break
            except StoreUnavailable as error:
                self._bus.publish(StoreTroubled(f"recording the end of {operation.name}", error))
                if self._stopping.is_set():
                    return
                await anyio.sleep(STORE_RETRY_DELAY)
        self._bus.publish(Change(event, operation, run.claim.project, now))

    def _mark_dirty(self) -> None:
        self._dirty.set()

    async def _flush(self) -> None:
        """Writes the progress of all runs that have some, at most once in FLUSH_INTERVAL."""
        while True:
            await self._dirty.wait()
            self._dirty = anyio.Event()
            async with anyio.create_task_group() as together:
                for run in self._runs:
                    if run.dirty:
                        together.start_soon(run.flush)
            await anyio.sleep(FLUSH_INTERVAL)
