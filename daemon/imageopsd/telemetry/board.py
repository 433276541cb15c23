"""The daemon's state at a glance, kept in memory: what `/status` and the probes answer from."""

from collections import deque
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from imageopsd.model.events import (
    Accepted,
    Cancelled,
    Change,
    Claimed,
    Deferred,
    Failed,
    Happening,
    Interrupted,
    JobBuried,
    Obstacle,
    ObstacleTurned,
    Postponed,
    Succeeded,
)
from imageopsd.model.operation import Operation
from imageopsd.model.quota import Reach
from imageopsd.ports import Totals

RECENT = 20
"""Failures and dead letters remembered for the eye; the records keep all."""

FULLEST = 50
"""Quotas for the eye; `projects.get` shows those of any project."""


class Board:
    """Subscribe `hear` to the bus. Starts from the store's totals and counts on."""

    def __init__(self, version: str, backend: str, slots: int, started: datetime) -> None:
        self._head = {"version": version, "backend": backend, "started": started.isoformat()}
        self.slots = slots
        self.phase = "starting"
        self.stuck: tuple[str, ...] = ()
        self.configuration_refused = False
        self.quotas: Sequence[Reach] = ()
        """How far they are reached as of the last look, the fullest first."""
        self.pending = self.succeeded = self.failed = 0
        self._obstacles: dict[Obstacle, str] = {}
        self._running: dict[str, tuple[str, Operation]] = {}
        self._failures: deque[dict[str, Any]] = deque(maxlen=RECENT)
        self._dead: deque[dict[str, str]] = deque(maxlen=RECENT)

    def start_from(self, totals: Totals) -> None:
        """What the store knew when this process began; operations that were running then are pending now."""
        self.pending = totals.pending + totals.running
        self.succeeded, self.failed = totals.succeeded, totals.failed

    def hear(self, happening: Happening) -> None:
        match happening:
            case Change(event=event, operation=operation, project=project):
                self._changed(event, operation, project)
            case ObstacleTurned(obstacle=obstacle, reason=str() as reason):
                self._obstacles[obstacle] = reason
            case ObstacleTurned(obstacle=obstacle):
                self._obstacles.pop(obstacle, None)
            case JobBuried(job_id=job_id, reason=reason):
                self._dead.appendleft({"job": job_id, "reason": reason})

    def _changed(self, event: object, operation: Operation, project: str) -> None:
        was_running = self._running.pop(operation.id, None) is not None
        match event:
            case Accepted():
                self.pending += 1
            case Deferred() | Postponed() | Interrupted():
                self.pending += 1
            case Succeeded():
                self.succeeded += 1
            case Cancelled():
                self.pending -= not was_running
                self.failed += 1
            case Failed():
                self.failed += 1
                self._failures.appendleft(_failure(project, operation))
            case _:
                self.pending -= isinstance(event, Claimed) and not was_running
                self._running[operation.id] = (project, operation)

    @property
    def running(self) -> int:
        return len(self._running)

    @property
    def oldest_start(self) -> datetime | None:
        """When the operation began that has run the longest."""
        return min((at for _, operation in self._running.values() if (at := operation.start_time)), default=None)

    @property
    def ready(self) -> bool:
        """New work is taken, and there is nothing that keeps it from being done but what people or others decide."""
        return self.phase == "ready" and not self._obstacles.keys() & {Obstacle.STORE, Obstacle.BACKEND}

    @property
    def state(self) -> str:
        """The phase; and what stands in the way, if anything does."""
        return "; ".join([self.phase, *self._obstacles.values()])

    def sentence(self) -> str:
        """For whoever reads one line: `systemctl status`."""
        state = f"stuck in {', '.join(self.stuck)}" if self.stuck else self.phase
        counts = f"{self.running} running, {self.pending} waiting, {self.succeeded} succeeded, {self.failed} failed"
        refused = "; the new configuration has errors, the old one counts" if self.configuration_refused else ""
        return f"{state.capitalize()}: {counts}{refused}"

    def fullest_quotas(self) -> list[dict[str, Any]]:
        return [msgspec.to_builtins(reach) for reach in self.quotas[:FULLEST]]

    def snapshot(self) -> dict[str, Any]:
        return {
            **self._head,
            "slots": self.slots,
            "phase": self.phase,
            "obstacles": dict(self._obstacles),
            "operations": {
                "pending": self.pending,
                "running": len(self._running),
                "succeeded": self.succeeded,
                "failed": self.failed,
            },
            "running": [
                _progress(*self._running[id_])
                for id_ in sorted(self._running, key=int)  # by age: rows stay in place
            ],
            "recentFailures": list(self._failures),
            "recentDeadLetters": list(self._dead),
        }


def _progress(project: str, operation: Operation) -> dict[str, Any]:
    return {
        "project": project,
        "name": operation.name,
        "operationType": operation.operation_type,
        "target": operation.target_link.rpartition("/")[2],
        "progress": operation.progress,
        "statusMessage": operation.status_message,
        "startTime": operation.start_time.isoformat() if operation.start_time else None,
    }


def _failure(project: str, operation: Operation) -> dict[str, Any]:
    errors = operation.error.errors if operation.error else ()
    entry = errors[0] if errors else None
    return {
        "project": project,
        "name": operation.name,
        "operationType": operation.operation_type,
        "target": operation.target_link.rpartition("/")[2],
        "code": entry.code if entry else None,
        "message": entry.message if entry else None,
        "httpErrorStatusCode": operation.http_error_status_code,
        "errors": msgspec.to_builtins(errors),
        "endTime": operation.end_time.isoformat() if operation.end_time else None,
    }
