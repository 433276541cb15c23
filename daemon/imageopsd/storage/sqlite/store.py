"""The store in `state.db`: opening it, accepting and forgetting operations. Reading their records is in `records`, the
tasks are in `claims`, the resources in `catalogue`. Each method is one transaction; its SQL stands in it."""

import fcntl
import os
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self

import anyio
import msgspec
from msgspec.structs import replace

from imageopsd.model.errors import NotFinished, NotFound, RequestIdReused, StoreInUse
from imageopsd.model.names import first_id, operation_path
from imageopsd.model.operation import Operation, Status
from imageopsd.model.quota import Correction, Metric, Quotas, Remainder, Usage
from imageopsd.model.requests import AnyRequest
from imageopsd.model.resource import Resource
from imageopsd.ports import Acceptance, Claim
from imageopsd.storage.sqlite import ledger
from imageopsd.storage.sqlite.catalogue import (
    Catalogue,
    put_resource,
    text_of,
)
from imageopsd.storage.sqlite.claims import LAST_IN_LANE, Claims, free, waiting_for, write_record
from imageopsd.storage.sqlite.connection import Readers, Transaction, Writer, migrate, milliseconds, tidied
from imageopsd.storage.sqlite.inventory import Inventory
from imageopsd.storage.sqlite.records import decode_operation
from imageopsd.storage.sqlite.turns import Turns

BOOTS = 100
"""How many starts are remembered, for whoever looks into the file after an accident."""


class SqliteStore(Claims, Catalogue, Inventory):
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
                    _forget_request(tx, project, request.request_id)
            if reserve:
                put_resource(tx, project, reserve)
            number, done, made = int(operation.id), operation.status is Status.DONE, operation
            tx.execute(
                "INSERT INTO operations (id, project, request_id, fingerprint, done, failed, record, request)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    number,
                    project,
                    request.request_id,
                    fingerprint,
                    done,
                    operation.error is not None,
                    text_of(operation),
                    text_of(replace(request, keys=None)),  # which last no longer than the task
                ),
            )
            if done:
                tx.tally["failed" if operation.error else "succeeded"] += 1
            else:
                due = request.due(operation.insert_time)
                (first,) = tx.execute(
                    "INSERT INTO tasks (operation_id, project, lane, runnable, not_before, makes, rank, deadline, keys)"
                    " VALUES (?1, ?2, ?3, NOT EXISTS (SELECT 1 FROM tasks WHERE lane = ?3), 0, ?4, ?5, ?6, ?7)"
                    " RETURNING runnable",
                    (
                        number,
                        project,
                        lane,
                        request.undoable,
                        milliseconds(request.rank(operation.insert_time)),
                        due and milliseconds(due),
                        request.keys,
                    ),
                ).fetchone()
                if not first:
                    (before,) = tx.execute(LAST_IN_LANE, (lane, number)).fetchone()
                    made = replace(operation, status_message=waiting_for(before))
                    write_record(tx, made)
                tx.tally["pending"] += 1
                ledger.admit(tx, self.quotas, project, made, reserve)
            return Acceptance(made, created=True)

        return await self._writer.run(insert)

    async def repeated(
        self, project: str, request: AnyRequest, *, forget_requests_before: datetime | None = None
    ) -> Operation | None:
        rows = await self._readers.fetch(_BY_REQUEST, project, request.request_id)
        return _same_request(request, rows[0][0], rows[0][1], forget_requests_before) if rows else None

    async def forget(self, *, failed: bool, before: datetime, limit: int) -> int:
        # what was accepted before may have ended after: few, so they are read over and not indexed
        statement = (
            "DELETE FROM operations WHERE id IN (SELECT id FROM operations WHERE done = 1 AND failed = ? AND id < ?"
            " AND record ->> '$.endTime' < ? ORDER BY id LIMIT ?)"
        )
        values = (failed, first_id(before), before.isoformat(timespec="milliseconds"), limit)
        return await self._writer.run(lambda tx: tx.execute(statement, values).rowcount)

    async def forget_requests(self, *, before: datetime, limit: int) -> int:
        statement = "DELETE FROM tombstones WHERE id IN (SELECT id FROM tombstones WHERE id < ? ORDER BY id LIMIT ?)"
        return await self._writer.run(lambda tx: tx.execute(statement, (first_id(before), limit)).rowcount)

    async def tidy(self) -> int:
        return await tidied(self._writer, self._readers)

    async def probe(self) -> None:
        def write(tx: Transaction) -> None:
            for change in (1, -1):  # a page that stays as it is would not be written
                tx.execute("UPDATE totals SET value = value + ? WHERE name = 'failed'", (change,))

        await self._writer.run(write)

    async def until_broken(self) -> NoReturn:
        await self._writer.until_broken()

    async def delete_operation(self, project: str, reference: str) -> None:
        operation = await self.operation(project, reference)
        number, path = (int(operation.id),), operation_path(project, operation.name)

        def delete(tx: Transaction) -> None:
            row = tx.execute("SELECT done FROM operations WHERE id = ?", number).fetchone()
            if row is None:  # somebody was faster
                raise NotFound(path)
            if row == (0,):
                raise NotFinished(path)
            tx.execute(
                "INSERT INTO tombstones (id, project, request_id, fingerprint, record)"
                " SELECT id, project, request_id, fingerprint, record FROM operations"
                " WHERE id = ? AND request_id IS NOT NULL",
                number,
            )
            tx.execute("DELETE FROM operations WHERE id = ?", number)

        await self._writer.run(delete)

    async def enter(self, owner: str, now: datetime) -> int:
        def register(tx: Transaction) -> int:
            tx.execute("INSERT INTO boots (id, pid, started) VALUES (?, ?, ?)", (owner, os.getpid(), milliseconds(now)))
            tx.execute("DELETE FROM boots WHERE rowid <= (SELECT max(rowid) FROM boots) - ?", (BOOTS,))
            return free(tx, "token IS NOT NULL")  # we hold the lock: whoever claimed these is dead

        return await self._writer.run(register)

    async def leave(self, owner: str, now: datetime) -> None:
        await self._writer.run(
            lambda tx: tx.execute("UPDATE boots SET ended = ? WHERE id = ?", (milliseconds(now), owner)) and None
        )

    async def limit(self, quotas: Quotas) -> None:
        await self._writer.run(partial(ledger.prepare, limited=bool(quotas)))
        self.quotas = quotas

    async def audit(self) -> list[Correction]:
        return await self._writer.run(ledger.audit)

    # ------------------------------------------------------------------------------------------- reading

    async def left(self, claim: Claim) -> dict[Metric, Remainder]:
        return await ledger.left(self._readers, self.quotas, claim.project, int(claim.operation.target_id or 0))

    async def usage(self, project: str | None, now: datetime) -> list[Usage]:
        return await ledger.read(self._readers, project, now)


# ------------------------------------------------------------------------------------------------ statements

_BY_REQUEST = (
    "SELECT record, fingerprint FROM operations WHERE project = ?1 AND request_id = ?2"
    " UNION ALL SELECT record, fingerprint FROM tombstones WHERE project = ?1 AND request_id = ?2"
)
"""At most one row: a request id stands in one of the two tables."""


def _forget_request(tx: Transaction, project: str, request_id: str) -> None:
    tx.execute("UPDATE operations SET request_id = NULL WHERE project = ? AND request_id = ?", (project, request_id))
    tx.execute("DELETE FROM tombstones WHERE project = ? AND request_id = ?", (project, request_id))


def _same_request(
    request: AnyRequest, record: str, fingerprint: bytes, forget_before: datetime | None
) -> Operation | None:
    """The first operation under the request's id, unless it ended and is so old that its id is forgotten. Raises
    RequestIdReused if that was another request."""
    first = decode_operation(record)
    if first.status is Status.DONE and forget_before is not None and first.insert_time < forget_before:
        return None
    if not request.repeats_one(fingerprint, (first.target_link.rpartition("/")[2], first.target_id or "")):
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
