"""What an operation is at, in more words than its status has: what it waits for, or that somebody works on it."""

from enum import StrEnum

from imageopsd.model.events import (
    Accepted,
    Claimed,
    Deferred,
    Event,
    Interrupted,
    Postponed,
    Progressed,
    Warned,
)


class Phase(StrEnum):
    QUEUE = "queue"
    """It waits for a slot."""
    WORK = "work"
    """A worker has it in hand."""
    RETRY = "retry"
    """A try failed, and the next one is due later."""
    TURN = "turn"
    """It was taken up too early: another image has to be made first, or other imports have to end."""


_AFTER: dict[type[Event], Phase] = {
    Accepted: Phase.QUEUE,
    Claimed: Phase.WORK,
    Progressed: Phase.WORK,
    Warned: Phase.WORK,
    Deferred: Phase.RETRY,
    Postponed: Phase.TURN,
    Interrupted: Phase.QUEUE,
}


def phase_after(event: Event) -> Phase | None:
    """`None` when it is over."""
    return _AFTER.get(type(event))
