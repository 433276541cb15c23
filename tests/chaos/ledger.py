"""What the daemon's users know: what they asked for, what they were told. The evidence is held against it."""

from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count
from typing import Any

Json = dict[str, Any]

RANK = {"PENDING": 0, "RUNNING": 1, "DONE": 2}


class Door(StrEnum):
    REST = "rest"
    QUEUE = "queue"


@dataclass
class Job:
    """One thing asked for. `more` are members of a job beside its body. `operations` are the names that came as
    answers, to it and to its repeats; it is `acknowledged` once an answer, or a submit's return, has promised it;
    `refused` is the status of an answer that ended it without an operation. `reuses` says that its request id is
    another request's on purpose, `retries` names the failed operation that it is to do again. `repeated`: it, or
    another under its request id, was sent once more; `cancelled`: its end was asked for."""

    request_id: str
    door: Door
    method: str
    project: str
    image: str
    body: Json = field(default_factory=dict)
    more: Json = field(default_factory=dict)
    operations: set[str] = field(default_factory=set)
    acknowledged: bool = False
    refused: int | None = None
    reuses: bool = False
    retries: str | None = None
    repeated: bool = False
    cancelled: bool = False


class Ledger:
    """All jobs, and the records as they were last seen. `broken` collects promises that were seen broken on
    the way, `doubled` images that were made again; `forgotten` are the records that users had deleted, with the jobs
    they were of."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.seen: dict[str, Json] = {}
        self._seen_at: dict[str, int] = {}
        self._moments = count()
        self.published: dict[str, int] = {}
        self.doubled: set[str] = set()
        self.forgotten: list[tuple[Job, Json]] = []
        self.broken: list[str] = []

    def moment(self) -> int:
        """Now, for `see`."""
        return next(self._moments)

    def see(self, record: Json, asked: int) -> None:
        """A record as a reader got it who had asked at that moment: never behind what a reader had got before."""
        name = record["name"]
        before = self.seen.get(name)
        if asked < self._seen_at.get(name, 0):
            return  # both were under way at once
        self.seen[name], self._seen_at[name] = record, self.moment()
        if before is None:
            return
        if before["status"] == "DONE" and record != before:
            self.broken.append(f"changed after DONE: {before} -> {record}")
        if RANK[record["status"]] < RANK[before["status"]]:
            self.broken.append(f"{name} went from {before['status']} back to {record['status']}")
        if record["progress"] < before["progress"]:
            self.broken.append(f"{name} fell from {before['progress']} to {record['progress']}")
        if before.get("startTime", record.get("startTime")) != record.get("startTime"):
            self.broken.append(f"{name} started twice: {before['startTime']}, {record.get('startTime')}")

    def see_published(self, image_id: str, inode: int) -> None:
        """An image's disk as it lies among the published ones while the daemon is dead: it is never made again."""
        if self.published.setdefault(image_id, inode) != inode:
            self.doubled.add(f"image {image_id} was published twice")
