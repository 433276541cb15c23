"""What can happen to an operation; past participles. `lifecycle.apply` turns each into the next record."""

from datetime import datetime
from enum import StrEnum

import msgspec

from imageopsd.model.operation import ErrorEntry, Operation, OperationWarning
from imageopsd.model.time import Time


class Event(msgspec.Struct, frozen=True):
    """Base of all events of one operation."""


class Accepted(Event, frozen=True):
    """It was recorded for the first time; `deadline` is when it has to be over."""

    deadline: datetime | None = None


class Claimed(Event, frozen=True):
    """A worker took it, for the first time or again: `attempt` counts from 1 and leaves interruptions out."""

    attempt: int = 1


class Progressed(Event, frozen=True):
    """The backend got on: `percent` 0 to 99, `message` for a person."""

    percent: int
    message: str | None = None


class Warned(Event, frozen=True):
    """Something the caller should know that does not stop the work."""

    warning: OperationWarning


class Deferred(Event, frozen=True):
    """A try failed in a way that may pass; the next is due at `until`."""

    attempt: int
    attempts: int
    failure: ErrorEntry
    until: Time


class Postponed(Event, frozen=True):
    """It cannot start yet for a reason that is no failure; looked at again at `until`."""

    reason: str
    until: Time


class Interrupted(Event, frozen=True):
    """The daemon, not the work, was the reason to stop; the attempt does not count."""

    reason: str


class Succeeded(Event, frozen=True):
    """The result is published. `target_id` where it became known only now."""

    target_id: str | None = None


class Failed(Event, frozen=True):
    """It ended without the effect that was asked for."""

    errors: tuple[ErrorEntry, ...]
    http_status: int


class Reason(StrEnum):
    """Why an operation is stopped before its end."""

    USER = "user"
    """Somebody cancelled it."""
    DEADLINE = "deadline"
    """Its own deadline passed."""
    SHUTDOWN = "shutdown"
    """The daemon stops; the next one takes the operation up again."""
    SUPERSEDED = "superseded"
    """Its claim ran out or is in other hands: whoever holds it now goes on."""

    @property
    def ends(self) -> bool:
        """The operation is over and not only this try at it."""
        return self in (Reason.USER, Reason.DEADLINE)


class Cancelled(Event, frozen=True):
    """It was ended before its effect: `reason` is USER or DEADLINE, `by` says who or which deadline."""

    reason: Reason
    by: str


class Change(msgspec.Struct, frozen=True):
    """What was published about one operation: the record after `event`, already durable, as of `at`. `traceparent` is
    its request's."""

    event: Event
    operation: Operation
    project: str
    at: Time
    traceparent: str | None = None


class JobBuried(msgspec.Struct, frozen=True):
    """A job went to the dead letters. `kind` is the reason's class, the same few words for all of one kind."""

    job_id: str
    kind: str
    reason: str


class BytesReceived(msgspec.Struct, frozen=True):
    """A backend got that many more bytes from a source."""

    size: int


class Verb(StrEnum):
    """What is asked of a backend."""

    INSERT_IMAGE = "insert_image"
    PATCH_IMAGE = "patch_image"
    DELETE_IMAGE = "delete_image"
    INSERT_MACHINE_IMAGE = "insert_machine_image"
    PATCH_MACHINE_IMAGE = "patch_machine_image"
    DELETE_MACHINE_IMAGE = "delete_machine_image"


class Outcome(StrEnum):
    """How a backend's answer to one call is to be taken."""

    DONE = "done"
    WAITING = "waiting"
    """Others come first; nothing was done."""
    THROTTLED = "throttled"
    """A failure that may pass, and a wish for how long to wait."""
    TEMPORARY = "temporary"
    QUOTA = "quota"
    PERMANENT = "permanent"
    CRASHED = "crashed"
    """An error that no backend may raise."""
    STOPPED = "stopped"
    """We did not wait for the end."""


class BackendAnswered(msgspec.Struct, frozen=True):
    """One call of a backend, for that operation, lasted so many seconds, from `began` to `ended` by the wall clock.
    `error` is the code of its failure, or the kind of another end."""

    verb: Verb
    outcome: Outcome
    seconds: float
    operation_id: str = ""
    began: Time | None = None
    ended: Time | None = None
    error: str | None = None


class LeaseWasLost(msgspec.Struct, frozen=True):
    """A worker found its claim in other hands and let go."""

    operation_name: str


class BackendCrashed(msgspec.Struct, frozen=True):
    """A backend raised what no backend may raise; `error` is for the log, never for the caller."""

    operation_name: str
    error: Exception


class JobCrashed(msgspec.Struct, frozen=True):
    """Reading a job raised what no job may make it raise; `error` is for the log."""

    job_id: str
    error: Exception


class StoreTroubled(msgspec.Struct, frozen=True):
    """A write failed in a way that may pass; it will be tried again."""

    doing: str
    error: Exception


class Obstacle(StrEnum):
    """What keeps operations from being started."""

    PAUSED = "paused"
    """An administrator wants it so."""
    STORE = "store"
    """Records cannot be written: the disk is full or the database locked."""
    BACKEND = "backend"
    """The backend says that it cannot make anything: its disk is full."""
    BREAKER = "breaker"
    """The backend has failed again and again."""


class ObstacleTurned(msgspec.Struct, frozen=True):
    """There is such an obstacle, for that reason, or (`None`) it is gone."""

    obstacle: Obstacle
    reason: str | None


class CancelAsked(msgspec.Struct, frozen=True):
    """The end of an operation was asked for that somebody works on."""

    operation_id: str
    cancelled: Cancelled


class LeftBehind(msgspec.Struct, frozen=True):
    """Records and bytes did not fit each other: what that is, or what became of it, and which."""

    what: str
    which: str


Happening = (
    Change
    | JobBuried
    | BytesReceived
    | BackendAnswered
    | LeaseWasLost
    | BackendCrashed
    | JobCrashed
    | StoreTroubled
    | ObstacleTurned
    | CancelAsked
    | LeftBehind
)
"""All that the engine publishes."""
