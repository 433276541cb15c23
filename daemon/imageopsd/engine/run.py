"""One claimed operation while a backend works on it: what the backend reports to, what the flusher writes."""

from collections.abc import Callable

import anyio

from imageopsd.engine.bus import EventBus
from imageopsd.model.errors import LeaseLost, StoreUnavailable
from imageopsd.model.events import BytesReceived, Cancelled, Change, Progressed, Reason, StoreTroubled, Warned
from imageopsd.model.lifecycle import apply
from imageopsd.model.operation import OperationWarning
from imageopsd.model.time import Clock
from imageopsd.ports import Claim, Store


class Run:
    """The backend's Reporter. Progress is latest-wins in memory; `touched` is called when there is some to write."""

    def __init__(self, claim: Claim, store: Store, bus: EventBus, clock: Clock, touched: Callable[[], None]) -> None:
        self.claim = claim
        self.operation = claim.operation
        self.scope = anyio.CancelScope()
        self.ended = anyio.Event()
        self.dirty = False
        self.stopped: Reason | None = None
        self.cancelled: Cancelled | None = None
        self.withdrawn = False
        self.doubtful = claim.doubtful
        """Whether there may be something that no record knows: for an insert, what has to be removed before the
        operation may end without it."""
        self._closed = False
        self._store = store
        self._bus = bus
        self._clock = clock
        self._touched = touched

    # -------------------------------------------------------------------------------- the backend's side

    def progress(self, percent: int, message: str | None = None) -> None:
        self._change(Progressed(percent, message))

    def warn(self, warning: OperationWarning) -> None:
        self._change(Warned(warning))

    def transferred(self, size: int) -> None:
        self._bus.publish(BytesReceived(size))

    async def checkpoint(self, data: bytes) -> None:
        await self._store.save_checkpoint(self.claim, data)

    def _change(self, event: Progressed | Warned) -> None:
        if self._closed:  # a late word of a backend that has returned
            return
        changed = apply(self.operation, event, self._clock())
        if changed != self.operation:
            self.operation = changed
            self.dirty = True
            self._touched()

    # --------------------------------------------------------------------------------- the worker's side

    def interrupt(self, reason: Reason) -> None:
        """Stops the backend; what it leaves is as if it had not begun."""
        self.stopped = self.stopped or reason
        self.scope.cancel()

    def cancel(self, cancelled: Cancelled) -> None:
        """Somebody wants it to end. What makes something is stopped; what changes or removes something may be half
        done, so it goes on to its end and is only not tried again."""
        self.cancelled = self.cancelled or cancelled
        if self.claim.request.undoable and not self.withdrawn:
            self.interrupt(cancelled.reason)

    def withdraw(self, cancelled: Cancelled) -> None:
        """Somebody wanted it to end before this claim, and what the last holder has made of it nobody knows: all there
        is to do is to remove that."""
        self.cancelled, self.withdrawn = cancelled, True

    def close(self) -> None:
        """The backend is done; what comes now is the worker's."""
        self._closed = True

    async def flush(self) -> None:
        """Writes and publishes the newest progress."""
        self.dirty = False
        operation = self.operation
        try:
            await self._store.save(self.claim, operation)
        except LeaseLost:
            if not self._closed:
                self.interrupt(Reason.SUPERSEDED)
        except StoreUnavailable as error:
            self._bus.publish(StoreTroubled(f"writing progress of {operation.name}", error))
            self.dirty = True  # it may be the last news for a long time
            self._touched()
        else:
            if not self._closed:
                event, claim = Progressed(operation.progress, operation.status_message), self.claim
                now, traceparent = self._clock(), claim.request.traceparent
                self._bus.publish(Change(event, operation, claim.project, now, traceparent))
