"""What is asked of a backend, and how each call ends: told on the bus, for whoever counts."""

import time
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import TypeVar

from imageopsd.engine.bus import EventBus
from imageopsd.model.errors import BackendFailure, LeaseLost, NotYet, QuotaExceeded, StoreError, TemporaryFailure
from imageopsd.model.events import BackendAnswered, Outcome, Verb

T = TypeVar("T")


class Asking:
    """`ticks` are seconds of a clock that nobody sets."""

    def __init__(self, bus: EventBus, ticks: Callable[[], float] = time.monotonic) -> None:
        self._bus = bus
        self._ticks = ticks

    async def __call__(self, verb: Verb, answer: Awaitable[T]) -> T:
        """Waits for the answer, which may be any exception, and passes it on."""
        began, outcome = self._ticks(), Outcome.DONE
        try:
            return await answer
        except BaseException as error:
            outcome = _outcome(error)
            raise
        finally:
            self._bus.publish(BackendAnswered(verb, outcome, self._ticks() - began))


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
