"""Whose turn it is: how the free slots are dealt out to the projects that have something to do.

A slot goes to the project that has the fewest operations running; among equals, to the one whose turn is longest past.
That is max-min fairness in what is scarce, the slots, whatever the operations cost, and it needs no weights to be kept
(`daemon/decisions/0008-fair-slots.md`). Inside a project the smallest `rank` goes first: the time of acceptance, less a
head start for its priority, so that whatever waits long enough comes before any priority.

Every step is a seek in the index `tasks_ready`; nothing costs more because more is waiting.
"""

import heapq
from collections import Counter
from collections.abc import Iterator
from datetime import datetime

from imageopsd.storage.sqlite.connection import Transaction, milliseconds

WAKE = 1000
"""Most deferred operations that one claim makes ready: bounds the transaction when all of them fall due at once."""

_READY = "runnable = 1 AND token IS NULL AND not_before = 0"

_READY_CHANGES = f"{_READY} AND makes = 0"

NEXT_PROJECT = f"SELECT project FROM tasks WHERE {_READY} AND project > ? ORDER BY project LIMIT 1"
NEXT_PROJECT_TO_CHANGE = NEXT_PROJECT.replace(_READY, _READY_CHANGES)
RUNNING = "SELECT project, count(*) FROM tasks WHERE token IS NOT NULL GROUP BY project"
DUE = (
    "UPDATE tasks SET not_before = 0 WHERE operation_id IN (SELECT operation_id FROM tasks WHERE runnable = 1"
    " AND token IS NULL AND not_before > 0 AND not_before <= ? ORDER BY not_before LIMIT ?)"
)
LATE = (
    "SELECT project FROM tasks WHERE runnable = 1 AND token IS NULL AND not_before > 0 AND not_before <= ?"
    " AND makes <= ? ORDER BY not_before LIMIT ?"
)
"""Projects of deferred operations that are due and that no claim has made ready yet."""
TAKE = (
    "UPDATE tasks SET token = lower(hex(randomblob(16))), owner = ?, lease_until = ?, attempt = attempt + 1"
    f" WHERE operation_id IN (SELECT operation_id FROM tasks WHERE {_READY} AND project = ?"
    " ORDER BY rank, operation_id LIMIT ?)"
    " RETURNING rank, operation_id, token, attempt, checkpoint, cancel, keys, doubtful"
)
TAKE_CHANGES = TAKE.replace(_READY, _READY_CHANGES)

Taken = tuple[int, str, int, bytes | None, str | None, str | None, int]
"""Operation id, token, attempt, checkpoint, asked-for cancellation, sealed keys, doubt: of a task that was claimed."""


class Turns:
    """Remembers in memory who had the last turn; a restart begins the round anew."""

    def __init__(self) -> None:
        self._last = ""

    def take(
        self,
        tx: Transaction,
        owner: str,
        seats: int,
        now: datetime,
        until: datetime,
        project_limit: int | None,
        making: bool,
    ) -> list[Taken]:
        """Claims up to `seats` tasks, no more than `project_limit` running of one project; without `making` only what
        changes or removes something."""
        next_project, statement = (NEXT_PROJECT, TAKE) if making else (NEXT_PROJECT_TO_CHANGE, TAKE_CHANGES)
        tx.execute(DUE, (milliseconds(now), WAKE))
        running: Counter[str] = Counter(dict(tx.execute(RUNNING).fetchall()))
        limit = seats + running.total() if project_limit is None else project_limit
        candidates = self._in_turn(tx, next_project, seats, running)
        taken: list[Taken] = []
        while seats > len(taken) and candidates:
            shares = _dealt(seats - len(taken), candidates, running, limit)
            if not shares:
                break
            for project, share in shares.items():
                rows = tx.execute(statement, (owner, milliseconds(until), project, share)).fetchall()
                taken += [row[1:] for row in sorted(rows)]  # rows come back in no order
                running[project] += len(rows)
                if rows:
                    self._last = project
                if len(rows) < share:
                    candidates.remove(project)  # it has no more; what it left is dealt out again
        return taken

    def _in_turn(self, tx: Transaction, next_project: str, seats: int, running: Counter[str]) -> list[str]:
        """The projects with something ready, from behind the last turn on and around. It ends when there is an idle one
        for each seat: no other could be served before them."""
        found: list[str] = []
        idle = 0
        for project in self._around(tx, next_project):
            found.append(project)
            idle += running[project] == 0
            if idle == seats:
                break
        return found

    def _around(self, tx: Transaction, next_project: str) -> Iterator[str]:
        after, wrapped = self._last, False
        while True:
            row = tx.execute(next_project, (after,)).fetchone()
            if row is None or (wrapped and row[0] > self._last):
                if wrapped:
                    return
                after, wrapped = "", True
                continue
            yield row[0]
            after = row[0]


def _dealt(seats: int, candidates: list[str], running: Counter[str], limit: int) -> dict[str, int]:
    """How many of `seats` each candidate gets, in the order of their turns."""
    shares: dict[str, int] = {}
    hands = [(running[project], turn, project) for turn, project in enumerate(candidates) if running[project] < limit]
    heapq.heapify(hands)
    for _ in range(seats):
        if not hands:
            break
        busy, turn, project = hands[0]
        shares[project] = shares.get(project, 0) + 1
        if busy + 1 < limit:
            heapq.heapreplace(hands, (busy + 1, turn, project))
        else:
            heapq.heappop(hands)
    return dict(sorted(shares.items(), key=lambda share: candidates.index(share[0])))
