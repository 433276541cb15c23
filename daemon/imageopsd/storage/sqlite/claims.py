"""The tasks in `state.db`: who works on which operation, what waits and for what, and how each one ends.

Methods that end or use a claim name its token in the statement that decides, and look at the row count: a stale claim
changes nothing.
"""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec
from msgspec.structs import replace

from imageopsd.model.errors import LeaseLost, NotFound
from imageopsd.model.events import Cancelled
from imageopsd.model.names import ANY_PROJECT, operation_name, operation_path
from imageopsd.model.operation import Operation, Status
from imageopsd.model.quota import Quotas
from imageopsd.model.requests import AnyRequest
from imageopsd.model.resource import Resource
from imageopsd.ports import Cancellation, CatalogueChange, Claim, ClaimRound, Forget, Publish
from imageopsd.storage.sqlite import ledger, turns
from imageopsd.storage.sqlite.catalogue import decode_resource, replace_resource, text_of
from imageopsd.storage.sqlite.connection import Transaction, Writer, milliseconds, time_of
from imageopsd.storage.sqlite.records import Records, decode_operation, decode_request

_decode_cancelled = msgspec.json.Decoder(Cancelled).decode


class Claims(Records):
    """The part of the store that knows who works on what."""

    _writer: Writer
    _turns: turns.Turns
    quotas: Quotas

    async def claim(
        self,
        owner: str,
        limit: int,
        now: datetime,
        until: datetime,
        begin: Callable[[Operation], Operation],
        *,
        project_limit: int | None = None,
        making: bool = True,
    ) -> ClaimRound:
        def take(tx: Transaction) -> ClaimRound:
            taken = self._turns.take(tx, owner, limit, now, until, project_limit, making)
            claims = [_begun(tx, begin, *row) for row in taken]
            tx.executemany(
                "UPDATE operations SET record = ? WHERE id = ?",
                [(text_of(claim.operation), int(claim.operation.id)) for claim in claims],
            )
            (due,) = tx.execute(NEXT_DUE).fetchone()
            return ClaimRound(claims, None if due is None else time_of(due))

        return await self._writer.run(take)

    async def could_claim(self, now: datetime, *, project_limit: int | None = None, making: bool = True) -> bool:
        busy = dict(await self._readers.fetch(turns.RUNNING)) if project_limit is not None else {}
        full = {project for project, running in busy.items() if running >= (project_limit or 0)}
        late = await self._readers.fetch(turns.LATE, milliseconds(now), int(making), turns.WAKE)
        if any(project not in full for (project,) in late):
            return True
        statement, project = turns.NEXT_PROJECT if making else turns.NEXT_PROJECT_TO_CHANGE, ""
        while rows := await self._readers.fetch(statement, project):
            ((project,),) = rows
            if project not in full:
                return True
        return False

    async def save(self, claim: Claim, operation: Operation) -> None:
        def update(tx: Transaction) -> None:
            _check(tx, claim)
            write_record(tx, operation)

        await self._writer.run(update)

    async def show(self, claim: Claim, resource: Resource) -> None:
        def update(tx: Transaction) -> None:
            _check(tx, claim)
            replace_resource(tx, resource)

        await self._writer.run(update)

    async def settle(self, claim: Claim, size_gb: int, stored_bytes: int) -> None:
        def update(tx: Transaction) -> None:
            _check(tx, claim)
            ledger.settle(tx, self.quotas, claim.project, int(claim.operation.target_id or 0), size_gb, stored_bytes)

        await self._writer.run(update)

    async def save_checkpoint(self, claim: Claim, checkpoint: bytes) -> None:
        await self._writer.run(
            lambda tx: _hold(
                tx, "UPDATE tasks SET checkpoint = ? WHERE operation_id = ? AND token = ?", (checkpoint,), claim
            )
        )

    async def defer(self, claim: Claim, operation: Operation, until: datetime, *, doubtful: bool = False) -> None:
        await self._put_back(claim, operation, until, doubtful, spent=1)

    async def release(
        self, claim: Claim, operation: Operation, until: datetime | None = None, *, doubtful: bool = False
    ) -> None:
        await self._put_back(claim, operation, until, doubtful, spent=0)

    async def _put_back(
        self, claim: Claim, operation: Operation, until: datetime | None, doubtful: bool, spent: int
    ) -> None:
        """`spent` are the attempts that the claim has cost."""

        def put_back(tx: Transaction) -> None:
            _hold(
                tx,
                # whoever asks for its end from now on ends it; who just did waits for the next claim, which is made at
                # once unless it has to be made in any case
                "UPDATE tasks SET token = NULL, owner = NULL, lease_until = NULL, attempt = attempt - 1 + ?,"
                " doubtful = ?, not_before = iif(cancel IS NULL OR ?, ?, 0)"
                " WHERE operation_id = ? AND token = ?",
                (spent, doubtful, doubtful, milliseconds(until) if until else 0),
                claim,
            )
            write_record(tx, operation)

        await self._writer.run(put_back)

    async def finish(self, claim: Claim, operation: Operation, change: CatalogueChange) -> None:
        def end(tx: Transaction) -> None:
            (lane,) = _hold(tx, "DELETE FROM tasks WHERE operation_id = ? AND token = ? RETURNING lane", (), claim)
            tx.tally["running"] -= 1
            _end(tx, operation, change)
            _close_ranks(tx, lane, int(operation.id))

        await self._writer.run(end)

    async def cancel(
        self,
        project: str | None,
        reference: str,
        asked: Cancelled,
        end: Callable[[Operation], Operation],
        undone: Callable[[AnyRequest, Resource | None], CatalogueChange],
    ) -> Cancellation:
        number = int((await self.operation(project, reference)).id)

        def stop(tx: Transaction) -> Cancellation:
            row = tx.execute("SELECT project, record, request FROM operations WHERE id = ?", (number,)).fetchone()
            if row is None:  # it ended and was deleted since it was looked up
                raise NotFound(operation_path(project or ANY_PROJECT, reference))
            where, before, request = row[0], decode_operation(row[1]), decode_request(row[2])
            task = tx.execute("SELECT lane, token, doubtful FROM tasks WHERE operation_id = ?", (number,)).fetchone()
            if task is None:
                return Cancellation(before, where, ended=False)
            lane, token, doubtful = task
            if token is not None or doubtful:
                tx.execute(
                    "UPDATE tasks SET cancel = coalesce(cancel, ?), not_before = 0 WHERE operation_id = ?",
                    (msgspec.json.encode(asked).decode(), number),
                )
                return Cancellation(before, where, ended=False)
            target = tx.execute("SELECT record FROM resources WHERE id = ?", (before.target_id,)).fetchone()
            tx.execute("DELETE FROM tasks WHERE operation_id = ?", (number,))
            tx.tally[before.status.lower()] -= 1
            ended = end(before)
            _end(tx, ended, undone(request, decode_resource(target[0]) if target else None))
            _close_ranks(tx, lane, number)
            return Cancellation(ended, where, ended=True, traceparent=request.traceparent)

        return await self._writer.run(stop)

    async def renew(self, owner: str, until: datetime) -> int:
        # an owner has a token; but only the words of the partial index make SQLite use it
        statement = "UPDATE tasks SET lease_until = ? WHERE owner = ? AND token IS NOT NULL"
        return await self._writer.run(lambda tx: tx.execute(statement, (milliseconds(until), owner)).rowcount)

    async def recover(self, now: datetime) -> int:
        return await self._writer.run(lambda tx: free(tx, "token IS NOT NULL AND lease_until < ?", milliseconds(now)))

    async def next_deadline(self) -> datetime | None:
        ((due,),) = await self._readers.fetch(
            "SELECT min(deadline) FROM tasks WHERE deadline IS NOT NULL AND cancel IS NULL"
        )
        return None if due is None else time_of(due)

    async def overdue(self, now: datetime, limit: int) -> list[tuple[str, str]]:
        rows = await self._readers.fetch(
            "SELECT project, operation_id FROM tasks WHERE deadline <= ? AND cancel IS NULL ORDER BY deadline LIMIT ?",
            milliseconds(now),
            limit,
        )
        return [(project, operation_name(number)) for project, number in rows]


# ---------------------------------------------------------------------------------------------------- statements

NEXT_DUE = "SELECT min(not_before) FROM tasks WHERE runnable = 1 AND token IS NULL AND not_before > 0"
LAST_IN_LANE = "SELECT max(operation_id) FROM tasks WHERE lane = ? AND operation_id < ?"
CLAIMED = (
    "SELECT o.project, o.record, o.request, r.record FROM operations o"
    " LEFT JOIN resources r ON r.id = o.record ->> '$.targetId' WHERE o.id = ?"
)


def _begun(
    tx: Transaction,
    begin: Callable[[Operation], Operation],
    operation_id: int,
    token: str,
    attempt: int,
    checkpoint: bytes | None,
    cancel: str | None,
    keys: str | None,
    doubtful: int,
) -> Claim:
    """The claim on an operation whose task was just taken; its record is still to be written."""
    project, record, request, target = tx.execute(CLAIMED, (operation_id,)).fetchone()
    before = decode_operation(record)
    if before.status is Status.PENDING:
        tx.tally["pending"] -= 1
        tx.tally["running"] += 1
    return Claim(
        operation=begin(before),
        project=project,
        request=replace(decode_request(request), keys=keys) if keys else decode_request(request),
        target=decode_resource(target) if target else None,
        token=token,
        attempt=attempt,
        checkpoint=checkpoint,
        cancelled=_decode_cancelled(cancel) if cancel else None,
        doubtful=bool(doubtful),
    )


def _check(tx: Transaction, claim: Claim) -> None:
    """For a write beside the task. Raises LeaseLost if the claim is no longer the newest."""
    _hold(tx, "UPDATE tasks SET token = token WHERE operation_id = ? AND token = ?", (), claim)


def _hold(tx: Transaction, statement: str, values: tuple[object, ...], claim: Claim) -> Any:
    """Runs a statement that ends in `operation_id = ? AND token = ?`. Raises LeaseLost if it met no row."""
    cursor = tx.execute(statement, (*values, int(claim.operation.id), claim.token))
    row = cursor.fetchone()  # a RETURNING statement has its row count only after its rows
    if cursor.rowcount == 0:
        raise LeaseLost(claim.operation.name)
    return row


def _end(tx: Transaction, operation: Operation, change: CatalogueChange) -> None:
    """Records the end of an operation whose task is gone."""
    number = int(operation.id)
    failed = operation.error is not None
    tx.execute(
        "UPDATE operations SET record = ?, done = 1, failed = ? WHERE id = ?", (text_of(operation), failed, number)
    )
    match change:
        case Publish(resource, stored_bytes):
            replace_resource(tx, resource, stored_bytes)
        case Forget(gone):
            tx.execute("DELETE FROM resources WHERE id = ?", (gone,))
    tx.tally["failed" if failed else "succeeded"] += 1


def _close_ranks(tx: Transaction, lane: str, number: int) -> None:
    """Whoever waited for this one is the first of the lane now, or waits for the one before."""
    behind = tx.execute(
        "SELECT operation_id FROM tasks WHERE lane = ? AND operation_id > ? ORDER BY operation_id LIMIT 1",
        (lane, number),
    ).fetchone()
    if behind is None:
        return
    (ahead,) = tx.execute(LAST_IN_LANE, (lane, number)).fetchone()
    if ahead is None:
        tx.execute("UPDATE tasks SET runnable = 1 WHERE operation_id = ?", behind)
        tx.execute("UPDATE operations SET record = json_remove(record, '$.statusMessage') WHERE id = ?", behind)
    else:
        tx.execute(
            "UPDATE operations SET record = json_set(record, '$.statusMessage', ?) WHERE id = ?",
            (waiting_for(ahead), *behind),
        )


def waiting_for(number: int) -> str:
    return f"Waiting for '{operation_name(number)}', which is about the same and came first"


def write_record(tx: Transaction, operation: Operation) -> None:
    tx.execute("UPDATE operations SET record = ? WHERE id = ?", (text_of(operation), int(operation.id)))


def free(tx: Transaction, which: str, *values: object) -> int:
    """Gives claims of the dead back with their attempts: an interruption is not a failure (riverqueue/river#1290)."""
    return tx.execute(
        "UPDATE tasks SET token = NULL, owner = NULL, lease_until = NULL, not_before = 0, attempt = attempt - 1,"
        " doubtful = 1"
        f" WHERE {which}",
        values,
    ).rowcount
