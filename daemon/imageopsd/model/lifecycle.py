"""The state machine of an operation: a table of what may follow what, and one pure function.

Two rules hold everywhere: an absent entry is an error with a sentence, and whatever happens to leases
underneath, status only moves forward and progress never falls. Only the worker calls `apply`.
"""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from msgspec.structs import replace

from imageopsd.model.events import (
    Cancelled,
    Claimed,
    Deferred,
    Event,
    Failed,
    Interrupted,
    Postponed,
    Progressed,
    Reason,
    Succeeded,
    Warned,
)
from imageopsd.model.operation import ErrorEntry, Operation, OperationError, OperationWarning, Status
from imageopsd.model.time import Time

TRANSITIONS: dict[Status, dict[type[Event], Status]] = {
    Status.PENDING: {
        Claimed: Status.RUNNING,
        Failed: Status.DONE,
        Cancelled: Status.DONE,
    },
    Status.RUNNING: {
        Claimed: Status.RUNNING,
        Progressed: Status.RUNNING,
        Warned: Status.RUNNING,
        Deferred: Status.RUNNING,
        Postponed: Status.RUNNING,
        Interrupted: Status.RUNNING,
        Succeeded: Status.DONE,
        Failed: Status.DONE,
        Cancelled: Status.DONE,
    },
    Status.DONE: {},
}

PUBLISHED = 100
UNPUBLISHED_LIMIT = 99
"""Progress of work whose result nobody can see yet."""


CLIENT_CLOSED_REQUEST = 499
"""What Google's services answer for CANCELLED (google/rpc/code.proto); Python's HTTPStatus does not know it."""

CANCELLATIONS = {
    Reason.USER: ("CANCELLED", CLIENT_CLOSED_REQUEST),
    Reason.DEADLINE: ("DEADLINE_EXCEEDED", HTTPStatus.GATEWAY_TIMEOUT),
}
"""Code and HTTP status of an operation that was ended for a reason of the caller's."""


class IllegalTransition(Exception):
    """A bug of ours, never of a caller: the event cannot happen in that state."""

    def __init__(self, operation: Operation, event: Event) -> None:
        super().__init__(f"{operation.name} is {operation.status}: it cannot be {type(event).__name__}")


def apply(operation: Operation, event: Event, now: Time) -> Operation:
    """The record after `event`. Raises IllegalTransition where the table has no entry."""
    status = TRANSITIONS[operation.status].get(type(event))
    if status is None:
        raise IllegalTransition(operation, event)
    return replace(operation, status=status, **_CHANGES[type(event)](operation, event, now))


def _claimed(operation: Operation, event: Claimed, now: Time) -> dict[str, Any]:
    return {"start_time": operation.start_time or now, "status_message": None}


def _progressed(operation: Operation, event: Progressed, now: Time) -> dict[str, Any]:
    percent = min(event.percent, UNPUBLISHED_LIMIT)
    return {
        "progress": max(operation.progress, percent),
        "status_message": event.message if event.message is not None else operation.status_message,
    }


def _warned(operation: Operation, event: Warned, now: Time) -> dict[str, Any]:
    if event.warning in operation.warnings:  # a second attempt finds the same things again
        return {}
    return {"warnings": (*operation.warnings, event.warning)}


def _deferred(operation: Operation, event: Deferred, now: Time) -> dict[str, Any]:
    warning = OperationWarning.of(
        "NOT_CRITICAL_ERROR",
        f"Attempt {event.attempt} of {event.attempts} failed: {event.failure.message}",
        attempt=event.attempt,
        error_code=event.failure.code,
        next_attempt=event.until.isoformat(timespec="milliseconds"),
    )
    return {
        "warnings": (*operation.warnings, warning),
        "status_message": f"{warning.message.rstrip('.')}; next attempt at {event.until:%Y-%m-%d %H:%M:%S} UTC",
    }


def _postponed(operation: Operation, event: Postponed, now: Time) -> dict[str, Any]:
    return {"status_message": event.reason}


def _interrupted(operation: Operation, event: Interrupted, now: Time) -> dict[str, Any]:
    return {"status_message": f"Interrupted: {event.reason}; it will be taken up again"}


def _succeeded(operation: Operation, event: Succeeded, now: Time) -> dict[str, Any]:
    return {
        "progress": PUBLISHED,
        "end_time": now,
        "status_message": None,
        "target_id": event.target_id or operation.target_id,
    }


def _failed(operation: Operation, event: Failed, now: Time) -> dict[str, Any]:
    return {
        "progress": PUBLISHED,
        "end_time": now,
        "status_message": None,
        "error": OperationError(errors=event.errors),
        "http_error_status_code": event.http_status,
        "http_error_message": _phrase(event.http_status),
    }


def _cancelled(operation: Operation, event: Cancelled, now: Time) -> dict[str, Any]:
    code, status = CANCELLATIONS[event.reason]
    what = "was cancelled by" if event.reason is Reason.USER else "did not end within"
    entry = ErrorEntry(code=code, message=f"The operation {what} {event.by}.")
    return _failed(operation, Failed((entry,), status), now)


def _phrase(status: int) -> str:
    return "CLIENT CLOSED REQUEST" if status == CLIENT_CLOSED_REQUEST else HTTPStatus(status).phrase.upper()


_CHANGES: dict[type[Event], Callable[[Operation, Any, Time], dict[str, Any]]] = {
    Claimed: _claimed,
    Progressed: _progressed,
    Warned: _warned,
    Deferred: _deferred,
    Postponed: _postponed,
    Interrupted: _interrupted,
    Succeeded: _succeeded,
    Failed: _failed,
    Cancelled: _cancelled,
}
