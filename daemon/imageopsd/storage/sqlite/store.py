"""Records, claims and the image catalogue in `state.db`.

Each method is one transaction; its SQL stands in it. Methods that end or use a claim name its token in the
statement that decides, and look at the row count: a stale claim changes nothing.
"""

import fcntl
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import anyio
import msgspec
from msgspec.structs import replace

from imageopsd.model.errors import LeaseLost, NotFinished, NotFound, RequestIdReused, StoreInUse
from imageopsd.model.events import Cancelled
from imageopsd.model.image import decode_hook
from imageopsd.model.names import ANY_PROJECT, REQUEST_ID, first_id, operation_name, operation_path
from imageopsd.model.operation import Operation, Status
from imageopsd.model.quota import Correction, Quotas, Usage
from imageopsd.model.requests import AnyRequest
from imageopsd.model.resource import Resource
from imageopsd.ports import Acceptance, Cancellation, CatalogueChange, Claim, Forget, Page, Publish, Totals
from imageopsd.storage.sqlite import ledger
from imageopsd.storage.sqlite.catalogue import (
    Catalogue,
    decode_resource,
    put_resource,
    replace_resource,
    row_of,
    text_of,
)
from imageopsd.storage.sqlite.connection import Readers, Transaction, Writer, migrate, milliseconds, time_of
from imageopsd.storage.sqlite.inventory import Inventory
from imageopsd.storage.sqlite.turns import Turns

_decode_operation = msgspec.json.Decoder(Operation, dec_hook=decode_hook).decode
_decode_cancelled = msgspec.json.Decoder(Cancelled).decode
_decode_request = msgspec.json.Decoder(AnyRequest, dec_hook=decode_hook).decode


class SqliteStore(Catalogue, Inventory):
    """One daemon for each data directory, by `flock`: whoever holds the lock knows that earlier ones are dead."""

    class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        """No options."""

    def __init__(self, options: Options, data_dir: Path) -> None:
        self._path = data_dir / "state.db"
        self._lock_path = data_dir / "daemon.lock"
        self._turns = Turns()
        self.observe_commit: Callable[[float], None] | None = None
        self.quotas = Quotas()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            stack.callback(os.close, _lock(self._lock_path))
            await anyio.to_thread.run_sync(migrate, self._path, "state")
            self._writer = Writer(self._path, self.observe_commit)
            stack.push_async_callback(self._writer.close)
            await self._writer.run(partial(ledger.prepare, limited=bool(self.quotas)))
            self._readers = await stack.enter_async_context(Readers(self._path))
            self._opened = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._opened.aclose()

    # ------------------------------------------------------------------------------------------- writing

    async def accept(
        self,
        operation: Operation,
        project: str,
        request: AnyRequest,
        *,
        lane: str,
        reserve: Resource | None = None,
        forget_requests_before: datetime | None = None,
    ) -> Acceptance:
        fingerprint = request.fingerprint() if request.request_id else None

        def insert(tx: Transaction) -> Acceptance:
            if request.request_id:
                row = tx.execute(_BY_REQUEST, (project, request.request_id)).fetchone()
                first = row and _same_request(request, row[0], row[1], forget_requests_before)
                if first:
                    return Acceptance(first, created=False)
                if row:
                    tx.execute(
                        "UPDATE operations SET request_id = NULL WHERE project = ? AND request_id = ?",
                        (project, request.request_id),
                    )
            if reserve:
                put_resource(tx, project, reserve)
            done = operation.status is Status.DONE
            before = None if done else tx.execute(_LAST_IN_LANE, (lane,)).fetchone()
            made = replace(operation, status_message=_waiting_for(before[0])) if before else operation
            tx.execute(
                "INSERT INTO operations (id, project, request_id, fingerprint, done, failed, record, request)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    int(made.id),
                    project,
                    request.request_id,
                    fingerprint,
                    done,
                    made.error is not None,
                    text_of(made),
                    text_of(request),
                ),
            )
            if done:
                tx.tally["failed" if made.error else "succeeded"] += 1
            else:
                due = request.due(made.insert_time)
                tx.execute(
                    "INSERT INTO tasks (operation_id, project, lane, runnable, not_before, makes, rank, deadline)"
                    " VALUES (?, ?, ?, ?, 0, ?, ?, ?)",
                    (
                        int(made.id),
                        project,
                        lane,
                        before is None,
                        request.undoable,
                        milliseconds(request.rank(made.insert_time)),
                        due and milliseconds(due),
                    ),
                )
                tx.tally["pending"] += 1
                ledger.admit(tx, self.quotas, project, made, reserve)
            return Acceptance(made, created=True)

        return await self._writer.run(insert)

    async def repeated(
        self, project: str, request: AnyRequest, *, forget_requests_before: datetime | None = None
    ) -> Operation | None:
        rows = await self._readers.fetch(_BY_REQUEST, project, request.request_id)
        return _same_request(request, rows[0][0], rows[0][1], forget_requests_before) if rows else None

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
    ) -> list[Claim]:
        def take(tx: Transaction) -> list[Claim]:
            taken = self._turns.take(tx, owner, limit, now, until, project_limit, making)
            return [self._begun(tx, begin, *row) for row in taken]

        return await self._writer.run(take)

    def _begun(
        self,
        tx: Transaction,
        begin: Callable[[Operation], Operation],
        operation_id: int,
        token: str,
        attempt: int,
        checkpoint: bytes | None,
        cancel: str | None,
    ) -> Claim:
        project, record, request = tx.execute(
            "SELECT project, record, request FROM operations WHERE id = ?", (operation_id,)
        ).fetchone()
        before = _decode_operation(record)
        target = tx.execute("SELECT record FROM resources WHERE id = ?", (before.target_id,)).fetchone()
        operation = begin(before)
        tx.execute("UPDATE operations SET record = ? WHERE id = ?", (text_of(operation), operation_id))
        if before.status is Status.PENDING:
            tx.tally["pending"] -= 1
            tx.tally["running"] += 1
        return Claim(
            operation=operation,
            project=project,
            request=_decode_request(request),
            target=decode_resource(target[0]) if target else None,
            token=token,
            attempt=attempt,
            checkpoint=checkpoint,
            cancelled=_decode_cancelled(cancel) if cancel else None,
        )

    async def save(self, claim: Claim, operation: Operation) -> None:
        def update(tx: Transaction) -> None:
            _hold(tx, "UPDATE tasks SET token = token WHERE operation_id = ? AND token = ?", (), claim)
            _write_record(tx, operation)

        await self._writer.run(update)

    async def show(self, claim: Claim, resource: Resource) -> None:
        def update(tx: Transaction) -> None:
            _hold(tx, "UPDATE tasks SET token = token WHERE operation_id = ? AND token = ?", (), claim)
            replace_resource(tx, resource)

        await self._writer.run(update)

    async def settle(self, claim: Claim, size_gb: int, stored_bytes: int) -> None:
        def update(tx: Transaction) -> None:
            _hold(tx, "UPDATE tasks SET token = token WHERE operation_id = ? AND token = ?", (), claim)
            ledger.settle(tx, self.quotas, claim.project, int(claim.operation.target_id or 0), size_gb, stored_bytes)

        await self._writer.run(update)

    async def save_checkpoint(self, claim: Claim, checkpoint: bytes) -> None:
        await self._writer.run(
            lambda tx: _hold(
                tx, "UPDATE tasks SET checkpoint = ? WHERE operation_id = ? AND token = ?", (checkpoint,), claim
            )
        )

    async def defer(self, claim: Claim, operation: Operation, until: datetime) -> None:
        def put_back(tx: Transaction) -> None:
            _hold(
                tx,
                "UPDATE tasks SET token = NULL, owner = NULL, lease_until = NULL, not_before = ?"
                " WHERE operation_id = ? AND token = ?",
                (milliseconds(until),),
                claim,
            )
            _write_record(tx, operation)

        await self._writer.run(put_back)

    async def release(self, claim: Claim, operation: Operation, until: datetime | None = None) -> None:
        def put_back(tx: Transaction) -> None:
            _hold(
                tx,
                "UPDATE tasks SET token = NULL, owner = NULL, lease_until = NULL, not_before = ?,"
                " attempt = attempt - 1 WHERE operation_id = ? AND token = ?",
                (milliseconds(until) if until else 0,),
                claim,
            )
            _write_record(tx, operation)

        await self._writer.run(put_back)

    async def finish(self, claim: Claim, operation: Operation, change: CatalogueChange) -> None:
        def end(tx: Transaction) -> None:
            (lane,) = _hold(tx, "DELETE FROM tasks WHERE operation_id = ? AND token = ? RETURNING lane", (), claim)
            tx.tally["running"] -= 1
            _end(tx, operation, lane, change)

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
            where, record, stored = tx.execute(
                "SELECT project, record, request FROM operations WHERE id = ?", (number,)
            ).fetchone()
            before, request = _decode_operation(record), _decode_request(stored)
            task = tx.execute("SELECT lane, token FROM tasks WHERE operation_id = ?", (number,)).fetchone()
            if task is None:
                return Cancellation(before, where, ended=False)
            lane, token = task
            if token is not None or (before.start_time and not request.undoable):
                tx.execute(
                    "UPDATE tasks SET cancel = coalesce(cancel, ?) WHERE operation_id = ?",
                    (msgspec.json.encode(asked).decode(), number),
                )
                return Cancellation(before, where, ended=False)
            target = tx.execute("SELECT record FROM resources WHERE id = ?", (before.target_id,)).fetchone()
            tx.execute("DELETE FROM tasks WHERE operation_id = ?", (number,))
            tx.tally[before.status.lower()] -= 1
            ended = end(before)
            _end(tx, ended, lane, undone(request, decode_resource(target[0]) if target else None))
            return Cancellation(ended, where, ended=True)

        return await self._writer.run(stop)

    async def forget(self, *, failed: bool, before: datetime, limit: int) -> int:
        # what was accepted before may have ended after: few, so they are read over and not indexed
        statement = (
            "DELETE FROM operations WHERE id IN (SELECT id FROM operations WHERE done = 1 AND failed = ? AND id < ?"
            " AND record ->> '$.endTime' < ? ORDER BY id LIMIT ?)"
        )
        values = (failed, first_id(before), before.isoformat(timespec="milliseconds"), limit)
        return await self._writer.run(lambda tx: tx.execute(statement, values).rowcount)

    async def tidy(self) -> None:
        await self._writer.tidy()

    async def probe(self) -> None:
        await self._writer.run(lambda tx: tx.execute("UPDATE totals SET value = value WHERE name = 'failed'") and None)

    async def delete_operation(self, project: str, reference: str) -> None:
        operation = await self.operation(project, reference)

        def delete(tx: Transaction) -> None:
            gone = tx.execute("DELETE FROM operations WHERE id = ? AND done = 1", (int(operation.id),))
            if gone.rowcount == 0:
                raise NotFinished(operation_path(project, operation.name))

        await self._writer.run(delete)

    async def renew(self, owner: str, until: datetime) -> int:
        # an owner has a token; but only the words of the partial index make SQLite use it
        statement = "UPDATE tasks SET lease_until = ? WHERE owner = ? AND token IS NOT NULL"
        return await self._writer.run(lambda tx: tx.execute(statement, (milliseconds(until), owner)).rowcount)

    async def enter(self, owner: str, now: datetime) -> int:
        def register(tx: Transaction) -> int:
            tx.execute("INSERT INTO boots (id, pid, started) VALUES (?, ?, ?)", (owner, os.getpid(), milliseconds(now)))
            return _free(tx, "token IS NOT NULL")  # we hold the lock: whoever claimed these is dead

        return await self._writer.run(register)

    async def leave(self, owner: str, now: datetime) -> None:
        await self._writer.run(
            lambda tx: tx.execute("UPDATE boots SET ended = ? WHERE id = ?", (milliseconds(now), owner)) and None
        )

    async def recover(self, now: datetime) -> int:
        return await self._writer.run(lambda tx: _free(tx, "token IS NOT NULL AND lease_until < ?", milliseconds(now)))

    async def limit(self, quotas: Quotas) -> None:
        await self._writer.run(partial(ledger.prepare, limited=bool(quotas)))
        self.quotas = quotas

    async def audit(self) -> list[Correction]:
        return await self._writer.run(ledger.audit)

    # ------------------------------------------------------------------------------------------- reading

    async def next_due(self) -> datetime | None:
        ((due,),) = await self._readers.fetch(
            "SELECT min(not_before) FROM tasks WHERE runnable = 1 AND token IS NULL AND not_before > 0"
        )
        return None if due is None else time_of(due)

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

    async def operation(self, project: str | None, reference: str) -> Operation:
        return _decode_operation((await self._operation_row("record", project, reference))[0])

    async def request_of(self, project: str | None, reference: str) -> tuple[Operation, str, AnyRequest]:
        record, where, request = await self._operation_row("record, project, request", project, reference)
        return _decode_operation(record), where, _decode_request(request)

    async def _operation_row(self, columns: str, project: str | None, reference: str) -> Any:
        by_request = REQUEST_ID.fullmatch(reference)
        column, value = ("request_id", reference.lower()) if by_request else ("id", row_of(reference))
        where, scope = ("AND project = ?", (project,)) if project else ("", ())
        rows = await self._readers.fetch(f"SELECT {columns} FROM operations WHERE {column} = ? {where}", value, *scope)
        if not rows:
            raise NotFound(operation_path(project or ANY_PROJECT, reference))
        return rows[0]

    async def operations(
        self, project: str | None, limit: int, after: int | None, newest_first: bool
    ) -> Page[Operation]:
        direction, beyond, first = ("DESC", "<", 2**63 - 1) if newest_first else ("ASC", ">", 0)
        where, scope = ("project = ? AND", (project,)) if project else ("", ())
        rows = await self._readers.fetch(
            f"SELECT record FROM operations WHERE {where} id {beyond} ? ORDER BY id {direction} LIMIT ?",
            *scope,
            first if after is None else after,
            limit + 1,
        )
        return Page([_decode_operation(record) for (record,) in rows[:limit]], more=len(rows) > limit)

    async def totals(self) -> Totals:
        return Totals(**dict(await self._readers.fetch("SELECT name, value FROM totals")))

    async def usage(self, project: str | None, now: datetime) -> list[Usage]:
        return await ledger.read(self._readers, project, now)

    async def newest_id(self) -> int:
        ((newest,),) = await self._readers.fetch(
            "SELECT max(coalesce((SELECT max(id) FROM operations), 0), coalesce((SELECT max(id) FROM resources), 0))"
        )
        return int(newest)


# ------------------------------------------------------------------------------------------------ statements

_LAST_IN_LANE = "SELECT max(operation_id) FROM tasks WHERE lane = ? HAVING max(operation_id) IS NOT NULL"
_BY_REQUEST = "SELECT record, fingerprint FROM operations WHERE project = ? AND request_id = ?"


def _same_request(
    request: AnyRequest, record: str, fingerprint: bytes, forget_before: datetime | None
) -> Operation | None:
    """The first operation under the request's id, unless it ended and is so old that its id is forgotten. Raises
    RequestIdReused if that was another request."""
    first = _decode_operation(record)
    if first.status is Status.DONE and forget_before is not None and first.insert_time < forget_before:
        return None
    if fingerprint != request.fingerprint():
        raise RequestIdReused(str(request.request_id), first.name)
    return first


def _lock(path: Path) -> int:
    """Takes the data directory for this process; the kernel gives it back however the process ends."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        holder = os.pread(descriptor, 20, 0).decode(errors="replace").strip()
        os.close(descriptor)
        raise StoreInUse(f"{path.parent} is in use by another imageopsd (process {holder or 'unknown'})") from error
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    return descriptor


def _hold(tx: Transaction, statement: str, values: tuple[object, ...], claim: Claim) -> Any:
    """Runs a statement that ends in `operation_id = ? AND token = ?`. Raises LeaseLost if it met no row."""
    cursor = tx.execute(statement, (*values, int(claim.operation.id), claim.token))
    row = cursor.fetchone()  # a RETURNING statement has its row count only after its rows
    if cursor.rowcount == 0:
        raise LeaseLost(claim.operation.name)
    return row


def _end(tx: Transaction, operation: Operation, lane: str, change: CatalogueChange) -> None:
    """Records the end of an operation whose task is gone from its lane."""
    number = int(operation.id)
    failed = operation.error is not None
    tx.execute(
        "UPDATE operations SET record = ?, done = 1, failed = ? WHERE id = ?", (text_of(operation), failed, number)
    )
    _close_ranks(tx, lane, number)
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
    (ahead,) = tx.execute(
        "SELECT max(operation_id) FROM tasks WHERE lane = ? AND operation_id < ?", (lane, number)
    ).fetchone()
    if ahead is None:
        tx.execute("UPDATE tasks SET runnable = 1 WHERE operation_id = ?", behind)
        tx.execute("UPDATE operations SET record = json_remove(record, '$.statusMessage') WHERE id = ?", behind)
    else:
        tx.execute(
            "UPDATE operations SET record = json_set(record, '$.statusMessage', ?) WHERE id = ?",
            (_waiting_for(ahead), *behind),
        )


def _waiting_for(number: int) -> str:
    return f"Waiting for '{operation_name(number)}', which is about the same and came first"


def _write_record(tx: Transaction, operation: Operation) -> None:
    tx.execute("UPDATE operations SET record = ? WHERE id = ?", (text_of(operation), int(operation.id)))


def _free(tx: Transaction, which: str, *values: object) -> int:
    """Gives claims back with their attempts: an interruption is not a failure (riverqueue/river#1290)."""
    return tx.execute(
        "UPDATE tasks SET token = NULL, owner = NULL, lease_until = NULL, not_before = 0, attempt = attempt - 1"
        f" WHERE {which}",
        values,
    ).rowcount
