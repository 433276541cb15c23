"""What is asked of a backend, and how each call ends: told on the bus, for whoever counts."""

import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TypeVar

from imageopsd.engine.bus import EventBus
from imageopsd.model.errors import BackendFailure, LeaseLost, NotYet, QuotaExceeded, StoreError, TemporaryFailure
from imageopsd.model.events import BackendAnswered, Outcome, Verb
from imageopsd.model.time import Time

T = TypeVar("T")


class Asking:
    """`ticks` are seconds of a clock that nobody sets; `clock` tells the time, if anybody wants to know."""

    def __init__(
        self,
        bus: EventBus,
        ticks: Callable[[], float] = time.monotonic,
        clock: Callable[[], Time | None] = lambda: None,
    ) -> None:
        self._bus = bus
        self._ticks = ticks
        self._clock = clock

    async def __call__(self, verb: Verb, answer: Awaitable[T], operation_id: str = "") -> T:
        """Waits for the answer, which may be any exception, and passes it on."""
        began, tick, outcome, code = self._clock(), self._ticks(), Outcome.DONE, None
        try:
            return await answer
        except BaseException as error:
            outcome = _outcome(error)
            code = error.entry.code if isinstance(error, BackendFailure) else type(error).__name__
            raise
        finally:
            seconds = self._ticks() - tick
            self._bus.publish(BackendAnswered(verb, outcome, seconds, operation_id, began, self._clock(), code))


def _outcome(error: BaseException) -> Outcome:
    match error:
        case QuotaExceeded():
            return Outcome.QUOTA
        case TemporaryFailure(delay=delay, http_status=status):
            # a provider that says how long to wait is one that answers, and wants to be asked less
            throttled = delay is not None or status == HTTPStatus.TOO_MANY_REQUESTS
            return Outcome.THROTTLED if throttled else Outcome.TEMPORARY
        case BackendFailure():
            return Outcome.PERMANENT
        case NotYet():
            return Outcome.WAITING
        case LeaseLost() | StoreError():  # of the report, not of the backend
            return Outcome.STOPPED
        case Exception():
            return Outcome.CRASHED
    return Outcome.STOPPED  # cancelled
