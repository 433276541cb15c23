"""How long operations were in each phase, added up for each of them and told when it ends."""

from collections.abc import Callable

import msgspec

from imageopsd.model.events import Change
from imageopsd.model.phases import Phase, phase_after
from imageopsd.model.time import Time


class _Course(msgspec.Struct):
    """Of one operation: where it is, since when, and the seconds it spent in each phase before."""

    phase: Phase
    since: Time
    spent: dict[Phase, float]


class Phases:
    """`observe` hears operation type, phase and seconds. Keeps only what a worker of this process has once had in hand:
    how long an operation waited for its first slot is in its record, and what an earlier process did is not known."""

    def __init__(self, observe: Callable[[str, Phase, float], None]) -> None:
        self._observe = observe
        self._courses: dict[str, _Course] = {}

    def changed(self, change: Change) -> None:
        operation, now = change.operation, phase_after(change.event)
        course = self._courses.get(operation.id)
        if course is None:
            if now is not Phase.WORK:
                return
            began = operation.insert_time if operation.start_time == change.at else change.at
            course = self._courses[operation.id] = _Course(Phase.QUEUE, began, {})
        if now is course.phase:
            return
        seconds = (change.at - course.since).total_seconds()
        course.spent[course.phase] = course.spent.get(course.phase, 0.0) + seconds
        if now is not None:
            course.phase, course.since = now, change.at
            return
        del self._courses[operation.id]
        for phase, seconds in course.spent.items():
            self._observe(operation.operation_type, phase, seconds)
