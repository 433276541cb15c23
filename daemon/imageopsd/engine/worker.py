"""The slots that carry operations out: claim, hand to the backend, record what comes of it.

Every change of an operation's record goes the same way: computed (`model.lifecycle`), written under the claim's
token, then published. A stop is not a failure: interrupted work is released and its attempt given back.
"""

import random
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime, timedelta
from functools import partial
from http import HTTPStatus

import anyio
from anyio.abc import TaskGroup
from structlog.contextvars import bind_contextvars

from imageopsd.engine.asking import Asking
from imageopsd.engine.bus import EventBus
from imageopsd.engine.effects import Effects, OpenKeys, undone
from imageopsd.engine.gate import Gate
from imageopsd.engine.pulse import Pulse
from imageopsd.engine.run import Run
from imageopsd.model.errors import (
    BackendFailure,
    LeaseLost,
    NoRoom,
    NotYet,
    PermanentFailure,
    StoreError,
    StoreUnavailable,
    TemporaryFailure,
)
from imageopsd.model.events import (
    Accepted,
    BackendCrashed,
    CancelAsked,
    Cancelled,
    Change,
    Claimed,
    Deferred,
    Event,
    Failed,
    Happening,
    Interrupted,
    LeaseWasLost,
    Postponed,
    Reason,
    StoreTroubled,
    Succeeded,
)
from imageopsd.model.keys import no_keys
from imageopsd.model.lifecycle import apply
from imageopsd.model.phases import Phase
from imageopsd.model.retry import RetryPolicy
from imageopsd.model.time import Clock, Time
from imageopsd.ports import Backend, CatalogueChange, Claim, Store

FLUSH_INTERVAL = 1.0
"""Seconds between two writes of one operation's progress."""

LOOK_AGAIN = 1.0
"""Seconds until an operation that waits for another one's image is looked at again."""

STOPPED = {
    Reason.SHUTDOWN: "the daemon is shutting down",
    Reason.SUPERSEDED: "its claim ran out",
    Reason.USER: "somebody cancelled it, and what was made must be removed",
    Reason.DEADLINE: "its deadline passed, and what was made must be removed",
}
"""What the record says of a try that was stopped and does not end the operation."""

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
    """As many loops as the gate has slots, each carrying out one operation at a time, fed by one loop that claims for
    all free ones at once and has their number follow the gate's. `lease` is in seconds; `open_keys` opens a request's
    keys (`Keyring.opened`); `dice` gives the retry policy's random numbers; `ticks` are seconds of a clock that nobody
    sets."""

    def __init__(
        self,
        store: Store,
        backend: Backend,
        bus: EventBus,
        retry: RetryPolicy,
        clock: Clock,
        gate: Gate,
        *,
        owner: str,
        lease: float,
        open_keys: OpenKeys = no_keys,
        dice: Callable[[], float] = random.random,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._effects = Effects(store, backend, Asking(bus, ticks, clock), clock, open_keys)
        self._bus = bus
        self.retry = retry
        self._clock = clock
        self._gate = gate
        self._owner = owner
        self._lease = lease
        self._dice = dice
        self._ticks = ticks
        self._held_until = 0.0
        self._early: dict[str, Cancelled] = {}
        self._free: deque[_Seat] = deque()
        self._slots = 0
        self._runs: set[Run] = set()
        self._dirty = anyio.Event()
        self._hint = anyio.Event()
        self._next_due: datetime | None = None
        self._stopping = anyio.Event()
        self._fed = anyio.Event()
        self._impatient = anyio.Event()
        gate.turned = self.look
        self.pulse = Pulse()
        bus.subscribe(self._hear)

    @property
    def running(self) -> int:
        return len(self._runs)

    async def could_start(self) -> bool:
        """Whether a free slot could take something just now. Raises StoreUnavailable. For longer than a moment that is
        so only where this loop hangs."""
        free = self._gate.slots - len(self._runs)
        if self._stopping.is_set() or self._gate.seats(free) <= 0:
            return False
        limit, making = self._gate.project_slots, self._gate.making
        return await self._store.could_claim(self._clock(), project_limit=limit, making=making)

    def look(self) -> None:
        """There may be something to claim."""
        self._hint.set()

    def renewed(self, began: float) -> None:
        """The claims were extended by a whole lease, by a write that began at that tick."""
        self._held_until = began + self._lease

    def _hear(self, happening: Happening) -> None:
        match happening:
            case Change(event=Accepted()):
                self.look()
            case CancelAsked(operation_id=operation_id, cancelled=cancelled):
                run = next((run for run in self._runs if run.operation.id == operation_id), None)
                if run is None:  # its claim is on its way to us, or may be made at once
                    self._early[operation_id] = cancelled
                    self.look()
                else:
                    run.cancel(cancelled)

    # ------------------------------------------------------------------------------------ starting, ending

    async def run(self) -> None:
        """Works until `drain`. Everything it started has ended when it returns."""
        async with anyio.create_task_group() as side:
            side.start_soon(self._flush)
            async with anyio.create_task_group() as slots:
                await self._feed(slots)
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
        self._impatient.set()
        self._gate.give_up()
        for run in self._runs:
            run.interrupt(Reason.SHUTDOWN)

    async def _feed(self, slots: TaskGroup) -> None:
        """Claims for the free slots whenever something may have become due; no polling: a hint or a timer wakes it."""
        self.look()
        while not self._stopping.is_set():
            with anyio.move_on_after(self._until_next_due()) as timer:
                await self._hint.wait()
            if timer.cancelled_caught:  # it is claimed for the next free slot, and that claim tells what is due next
                self._next_due = None
            self._hint = anyio.Event()
            self._fit(slots)
            while not self._stopping.is_set() and (seats := self._gate.seats(len(self._free))):
                with self.pulse.turn():
                    claims = await self._claim(seats)
                for claim in claims:
                    self._free.popleft().give(self._begin(claim))
                if len(claims) < seats:
                    break
        for seat in self._free:
            seat.called.set()
        self._fed.set()

    def _fit(self, slots: TaskGroup) -> None:
        """Begins slots that are missing, ends free ones that are too many; busy ones end when they are done."""
        for _ in range(self._gate.slots - self._slots):
            self._slots += 1
            slots.start_soon(self._slot)
        for _ in range(min(self._slots - self._gate.slots, len(self._free))):
            self._free.popleft().called.set()

    def _until_next_due(self) -> float | None:
        due = min((time for time in (self._gate.look_again(), self._next_due) if time is not None), default=None)
        return None if due is None else max((due - self._clock()).total_seconds(), 0)

    def _due_at(self, until: datetime) -> None:
        """Something is deferred until then; the timer stands at the first of all."""
        self._next_due = min(until, self._next_due or until)

    async def _claim(self, limit: int) -> list[Claim]:
        now, began = self._clock(), self._ticks()
        self._next_due = None
        try:
            claimed = await self._store.claim(
                self._owner,
                limit,
                now,
                now + timedelta(seconds=self._lease),
                lambda operation: apply(operation, Claimed(), now),
                project_limit=self._gate.project_slots,
                making=self._gate.making,
            )
        except StoreUnavailable as error:
            self._bus.publish(StoreTroubled("claiming", error))
            return []
        if claimed.next_due is not None:
            self._due_at(claimed.next_due)
        if claimed.claims and not self._runs:
            self.renewed(began)
        for claim in claimed.claims:
            event = Claimed(claim.attempt)
            self._bus.publish(Change(event, claim.operation, claim.project, now, claim.request.traceparent))
        return claimed.claims

    async def _slot(self) -> None:
        while not self._stopping.is_set() and self._slots <= self._gate.slots:
            seat = _Seat()
            self._free.append(seat)
            self.look()
            await seat.called.wait()
            if seat.run is not None:
                # whatever the backend or a library logs meanwhile, in threads too, says on what it worked
                bind_contextvars(**_about(seat.run.claim))
                await self._work(seat.run)
        self._slots -= 1

    # -------------------------------------------------------------------------------------- one operation

    def _begin(self, claim: Claim) -> Run:
        run = Run(claim, self._store, self._bus, self._clock, self._mark_dirty)
        self._runs.add(run)
        self._gate.began(claim)
        if cancelled := self._early.pop(claim.operation.id, claim.cancelled):
            withdrawn = claim.doubtful and claim.request.undoable
            run.withdraw(cancelled) if withdrawn else run.cancel(cancelled)
        if self._impatient.is_set():
            run.interrupt(Reason.SHUTDOWN)
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
            with anyio.CancelScope(shield=True), suppress(LeaseLost):
                await self._write(
                    run,
                    Failed((INTERNAL.entry,), INTERNAL.http_status),
                    self._store.finish,
                    undone(run.claim.request, run.claim.target),
                )
        finally:
            self._runs.discard(run)
            self._gate.ended(run.claim)
            run.ended.set()

    async def _carry_out(self, run: Run) -> None:
        claim = run.claim
        change: CatalogueChange = None
        failure: BackendFailure | None = None
        waiting: NotYet | None = None
        with run.scope:
            try:
                await anyio.lowlevel.checkpoint_if_cancelled()  # it may have been stopped before it began
                await self._assure(claim)
                if run.withdrawn:
                    await self._effects.remove(claim, run)
                else:
                    change = await self._effects.carry_out(claim, run)
            except BackendFailure as error:
                failure = error
            except NotYet as error:
                waiting = error
            except LeaseLost:
                raise
            except StoreUnavailable as error:  # a checkpoint or a look into the catalogue that could not be made
                # no attempt: however long the disk is full, the backend has not failed
                self._bus.publish(StoreTroubled(f"working on {claim.operation.name}", error))
                waiting = NotYet(f"Waiting for room to keep records: {error}")
            except Exception as error:
                self._bus.publish(BackendCrashed(claim.operation.name, error))
                failure = INTERNAL
        run.close()
        stopped = run.scope.cancelled_caught
        if not stopped and waiting is None:
            self._gate.heard_of_backend(claim, failure)
        with anyio.CancelScope(shield=True):  # what is known now must be written, whoever wants us to stop
            if stopped and run.stopped is Reason.SUPERSEDED:
                raise LeaseLost(claim.operation.name)
            cut_short = stopped or waiting is not None
            if not claim.request.undoable:  # what makes something leaves nothing when it is cut short; this may
                run.doubtful = cut_short
            if run.cancelled and _may_end(run, cut_short, failure):
                await self._write(run, run.cancelled, self._store.finish, undone(claim.request, claim.target))
            elif stopped:
                release = partial(self._store.release, doubtful=run.doubtful)
                await self._write(run, Interrupted(STOPPED[run.stopped or Reason.SHUTDOWN]), release)
            elif failure is not None:
                await self._fail(run, failure)
            elif waiting is not None:
                await self._postpone(run, str(waiting), self._clock() + timedelta(seconds=LOOK_AGAIN))
            else:
                await self._write(run, Succeeded(), self._store.finish, change)

    async def _assure(self, claim: Claim) -> None:
        """Starts nothing on a claim that may have run out: after the event loop stood still for long, say, whoever
        else may hold it now is asked for first. Raises LeaseLost or StoreUnavailable."""
        now = self._ticks()
        if now > self._held_until - self._lease / 2:
            await self._store.renew(self._owner, self._clock() + timedelta(seconds=self._lease))
            await self._store.save(claim, claim.operation)
            self.renewed(now)

    async def _postpone(self, run: Run, reason: str, until: Time) -> None:
        await self._write(run, Postponed(reason, until), partial(self._store.release, doubtful=run.doubtful), until)
        self._due_at(until)
        self.look()

    async def _fail(self, run: Run, failure: BackendFailure) -> None:
        """Tries again later if that can help, else ends the operation."""
        claim, now, began = run.claim, self._clock(), run.operation.start_time
        match failure:
            case NoRoom():
                until = self.retry.next_look(now, self._dice(), began)
            case TemporaryFailure():
                until = self.retry.next_try(claim.attempt, now, self._dice(), failure.delay, began)
            case _:
                until = None
        if until is None:
            if run.doubtful and claim.request.undoable and not run.withdrawn:
                with suppress(BackendFailure, NotYet):  # housekeeping finds what is still there
                    await self._effects.remove(claim, run)
            change = undone(claim.request, claim.target)
            await self._write(run, Failed((failure.entry,), failure.http_status), self._store.finish, change)
        elif isinstance(failure, NoRoom):
            await self._postpone(run, f"{failure} It is tried again when there is.", until)
        else:
            event = Deferred(claim.attempt, self.retry.attempts, failure.entry, until)
            await self._write(run, event, partial(self._store.defer, doubtful=run.doubtful), until)
            self._due_at(until)
            self.look()

    async def _write(self, run: Run, event: Event, method: Callable[..., Awaitable[None]], *arguments: object) -> None:
        """Ends the claim by `method`. A full disk or a lock is waited out: the outcome is known and must not be lost;
        a daemon that may wait no longer leaves it to the next one, which finds the backend's effect and records it."""
        now = self._clock()
        operation = apply(run.operation, event, now)
        while True:
            try:
                await method(run.claim, operation, *arguments)
                break
            except StoreUnavailable as error:
                self._bus.publish(StoreTroubled(f"recording the end of {operation.name}", error))
                if self._impatient.is_set():
                    return
                await self._gate.store_well()
        claim = run.claim
        self._bus.publish(Change(event, operation, claim.project, now, claim.request.traceparent))

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


def _may_end(run: Run, cut_short: bool, failure: BackendFailure | None) -> bool:
    """Whether an operation whose end was asked for may end now, without its effect."""
    if run.withdrawn:
        return failure is None and not cut_short
    if run.claim.request.undoable and run.doubtful:  # the next claim has to remove something first
        return False
    return isinstance(failure, TemporaryFailure) or (cut_short and run.claim.request.undoable)


def _about(claim: Claim) -> dict[str, object]:
    """What every line of the log has that is written while the claim is worked on."""
    operation = claim.operation
    return {
        "operation": operation.name,
        "operation_id": operation.id,
        "operation_type": operation.operation_type,
        "client_operation_id": operation.client_operation_id,
        "project": claim.project,
        "target": operation.target_link.rpartition("/")[2],
        "attempt": claim.attempt,
        "phase": Phase.WORK,
    }
