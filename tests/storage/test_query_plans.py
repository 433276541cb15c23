"""Every statement that the store and the queue run, as SQLite itself reports it, and its plan: nothing that grows with
history is scanned, and nothing is sorted but what a LIMIT has made small."""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiosqlite
import pytest
from tests.storage.records import LEASE, NOW, accept, claim, request

from imageopsd.model.errors import NotFound
from imageopsd.model.events import Cancelled, Deferred, Progressed, Reason, Succeeded
from imageopsd.model.lifecycle import apply
from imageopsd.model.operation import ErrorEntry, Operation
from imageopsd.model.policy import Policy
from imageopsd.ports import Forget, Pause, Publish
from imageopsd.storage.sqlite import connection, turns
from imageopsd.storage.sqlite.connection import migrate
from imageopsd.storage.sqlite.queue import SqliteQueue
from imageopsd.storage.sqlite.store import SqliteStore

GROWING = ("operations", "tombstones", "resources", "jobs", "dead_letters", "boots")
"""Tables that only retention keeps small. `tasks` has a row for each operation that is not DONE, which can be many."""

SMALL_INDEXES = ("tasks_claimed",)
"""Partial indexes that may be walked as a whole: one entry for each claim, so at most as many as there are slots."""

SORTED = turns.RUNNING
"""A claim counts by project what is claimed already: at most as many rows as there are slots."""


class Overheard:
    """Statements by file, as they were run, with their values."""

    def __init__(self) -> None:
        self.statements: dict[str, set[str]] = {"state.db": set(), "queue.db": set()}

    def listen(self, path: Path, database: sqlite3.Connection) -> None:
        database.set_trace_callback(self.statements[path.name].add)


@contextmanager
def overhearing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Overheard]:
    """Inside, every connection the package opens is listened to."""
    heard = Overheard()
    plain, pooled = connection.connect, aiosqlite.connect

    def connect(path: Path) -> sqlite3.Connection:
        database = plain(path)
        heard.listen(path, database)
        return database

    def connect_reader(path: Path, **options: Any) -> aiosqlite.Connection:
        reader = pooled(path, **options)
        opened = reader._connector

        def connector() -> sqlite3.Connection:
            database = opened()
            heard.listen(path, database)
            return database

        reader._connector = connector
        return reader

    with monkeypatch.context() as patch:
        patch.setattr(connection, "connect", connect)
        patch.setattr(connection.aiosqlite, "connect", connect_reader)
        yield heard


async def live(store: SqliteStore) -> None:
    """Everything a store is ever asked."""
    await store.enter("boot-1", NOW)
    first = await accept(store, "a", request_id="11111111-2222-3333-4444-555555555555", reserve=True)
    await accept(store, "a", request_id="11111111-2222-3333-4444-555555555555")
    await store.repeated("p", request("a", "11111111-2222-3333-4444-555555555555"))
    for name in ("b", "c", "d"):
        await accept(store, name, reserve=True)
    a, b, c, _ = await claim(store)
    assert a.target is not None
    await store.save(a, apply(a.operation, Progressed(5), NOW))
    await store.show(a, a.target)
    await store.save_checkpoint(a, b"x")
    await store.finish(a, done := apply(a.operation, Succeeded(), NOW), Publish(a.target))
    await store.finish(b, apply(b.operation, Succeeded(), NOW), Forget(int(b.operation.target_id or 0)))
    until = NOW + timedelta(seconds=1)
    await store.defer(c, apply(c.operation, Deferred(1, 2, ErrorEntry(code="X", message="x"), until), NOW), until)
    (c,) = await claim(store, now=until)
    await store.release(c, c.operation, until)
    await store.renew("boot-1", NOW + LEASE)
    await store.recover(NOW + 3 * LEASE)
    for reference in (done.name, done.id, "11111111-2222-3333-4444-555555555555"):
        await store.operation("p", reference)
        await store.operation(None, reference)
        await store.request_of("p", reference)
    for newest_first in (False, True):
        await store.operations("p", 2, None, newest_first)
        await store.operations(None, 2, 7, newest_first)
        await store.images("p", 2, None, newest_first)
        await store.machine_images("p", 2, None, newest_first)
    await store.image("p", "a")
    await store.image("p", str(a.target.id))
    with pytest.raises(NotFound):
        await store.machine_image("p", "x")
    with pytest.raises(NotFound):
        await store.newest_in_family("p", "f")
    await store.policy("images", "p", "a")
    await store.set_policy("images", "p", "a", lambda before: Policy())
    await store.totals()
    await store.newest_id()
    await accept(
        store, "e", request_id="11111111-2222-3333-4444-555555555555", forget_requests_before=NOW + timedelta(days=1)
    )
    again = "66666666-2222-3333-4444-555555555555"
    gone = await accept(store, "g", request_id=again)
    await store.cancel("p", gone.operation.name, USER, ended, lambda request, target: None)
    for reference in (first.operation.name, gone.operation.name):
        await store.delete_operation("p", reference)
    await accept(store, "g", request_id=again)
    await accept(store, "g", request_id=again, forget_requests_before=NOW + timedelta(days=1))
    await store.claim("boot-1", 1, NOW, NOW + LEASE, lambda before: before, project_limit=1, making=False)
    for making in (True, False):
        await store.could_claim(NOW, project_limit=1, making=making)
    for name in ("d", "e"):
        await store.cancel("p", (await accept(store, name)).operation.name, USER, ended, lambda request, target: None)
    await store.next_deadline()
    await store.overdue(NOW, 10)
    for failed in (False, True):
        await store.forget(failed=failed, before=NOW + timedelta(days=1), limit=10)
    await store.forget_requests(before=NOW + timedelta(days=1), limit=10)
    await store.tidy()
    await store.probe()
    await store.leave("boot-1", NOW)


USER = Cancelled(Reason.USER, by="ann")


def ended(operation: Operation) -> Operation:
    return apply(operation, USER, NOW)


async def queue_up(queue: SqliteQueue) -> None:
    """Everything a queue is ever asked."""
    receipts = await queue.put([("a", b"1"), ("b", b"2")], NOW)
    await queue.receive(10)
    await queue.depth()
    await queue.settle(receipts[:1])
    await queue.bury(receipts[1], "no", NOW)
    await queue.dead_letters(10)
    for receipt in receipts:
        await queue.find(receipt)
    await queue.dead_letter("b")
    await queue.requeue(["b"], NOW)
    await queue.purge(["b"], NOW)
    await queue.forget(before=NOW, limit=10)
    await queue.tidy()
    await queue.pause(Pause(NOW, "a test"))
    await queue.pause_turned(None)
    await queue.pause(None)


async def test_no_statement_scans_what_grows_or_sorts_what_is_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    migrate(tmp_path / "state.db", "state")  # which reads all there is, once
    with overhearing(monkeypatch) as heard:
        async with SqliteStore(SqliteStore.Options(), tmp_path) as store:
            await live(store)
        async with SqliteQueue(SqliteQueue.Options(), tmp_path) as queue:
            await queue_up(queue)
    asked, objections = 0, []
    for file, statements in heard.statements.items():
        with closing(sqlite3.connect(tmp_path / file)) as database:
            for statement in sorted(statements):
                if not re.match(r"SELECT|INSERT|UPDATE|DELETE", statement):
                    continue
                asked += 1
                found = (objection(step, statement) for step in plan(database, statement))
                objections += [f"{problem}: {statement}" for problem in found if problem]
    assert objections == []
    assert asked > 40


def plan(database: sqlite3.Connection, statement: str) -> list[str]:
    return [row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {statement}")]


def objection(step: str, statement: str) -> str | None:
    """What is wrong with a step of a plan, if anything."""
    if "TEMP B-TREE" in step and not statement.startswith(SORTED):
        return f"it sorts: {step}"
    scan = re.match(r"SCAN (\w+)(?: USING (?:COVERING )?INDEX (\w+))?", step)
    if scan is None or scan[2] in SMALL_INDEXES:
        return None
    if scan[1] in (*GROWING, "tasks") and " LIMIT " not in statement:
        return f"it scans: {step}"
    return None


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT record FROM operations WHERE done = 1",
        "SELECT operation_id FROM tasks WHERE attempt = 3",
        "SELECT record FROM operations WHERE project = 'p' ORDER BY record",
        "SELECT count(*) FROM operations",
    ],
)
async def test_a_bad_statement_would_be_seen(tmp_path: Path, statement: str) -> None:
    async with SqliteStore(SqliteStore.Options(), tmp_path):
        pass
    with closing(sqlite3.connect(tmp_path / "state.db")) as database:
        assert any(objection(step, statement) for step in plan(database, statement))
