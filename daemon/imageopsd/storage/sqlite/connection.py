"""One SQLite file: how it is opened and migrated, its one writer, its readers.

The writer is a thread that owns its connection and runs whole transactions as functions. Whatever queued up
while the last fsync ran goes into the next transaction (group commit), where each can fail alone, then all waiters are
woken at once. aiosqlite cannot do this: a coroutine that is cancelled between BEGIN and COMMIT leaves the
transaction open, and two coroutines on one connection share a transaction without knowing
(aiosqlite#241, #290; `daemon/decisions/0001-one-writer.md`). Reading through it is safe.
"""

import asyncio
import os
import sqlite3
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, closing, suppress
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from queue import Empty, SimpleQueue
from time import perf_counter
from types import TracebackType
from typing import Any, Generic, NoReturn, Self, TypeVar

import aiosqlite
import anyio

from imageopsd.crashpoints import crash_point
from imageopsd.model.errors import StoreBusy, StoreError, StoreFull, StoreTooNew, StoreUnavailable
from imageopsd.ownership import hand_over

T = TypeVar("T")

BUSY_TIMEOUT = 10.0
"""Seconds a writer waits for another process's transaction (a `submit`, a backup)."""

DOUBTFUL = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""Errors after which nothing more is written: after a failed fsync the page cache may not hold what the disk holds.
https://www.sqlite.org/rescode.html#ioerr_fsync, https://lwn.net/Articles/752063/"""

BATCH = 512
"""Most functions in one transaction: bounds how long the first of them waits for its commit."""


TIDY_PAGES = 256
"""Pages that are given back at a time, a megabyte; more would hold up whoever writes next (getsentry/taskbroker#438)"""

WAL_LIMIT = 64 * 1024 * 1024
"""Bytes to which the write-ahead log is cut once it was emptied; a reader from outside may have made it grow."""


class Transaction:
    """What a function given to `Writer.run` may use. `tally` counts are summed over a whole batch and written
    once with its commit."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.execute = connection.execute
        self.executemany = connection.executemany
        self.tally: defaultdict[str, int] = defaultdict(int)

    def write_tally(self) -> None:
        rows = [(change, name) for name, change in self.tally.items() if change]
        if rows:
            self.executemany("UPDATE totals SET value = value + ? WHERE name = ?", rows)


class _Work(Generic[T]):
    __slots__ = ("error", "function", "future", "result")

    def __init__(self, function: Callable[[Transaction], T], future: "asyncio.Future[T]") -> None:
        self.function = function
        self.future = future
        self.result: T | None = None
        self.error: BaseException | None = None


class Writer:
    """The only writer of its file. `observe` is called, in the writer's thread, with the seconds each commit took."""

    def __init__(self, path: Path, observe: Callable[[float], None] | None = None) -> None:
        self._connection = connect(path)
        self._observe = observe
        self._name = path.stem
        self._inbox: SimpleQueue[_Work[Any] | None] = SimpleQueue()
        self._loop = asyncio.get_running_loop()
        self._broken: StoreError | None = None
        self._breaking = asyncio.Event()
        self._untidy = threading.Event()
        self._unclean = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"writer {path.name}", daemon=True)
        self._thread.start()

    async def run(self, function: Callable[[Transaction], T]) -> T:
        """Runs `function` in a transaction and returns its result after the fsync. If it raises, its changes are
        gone and its error comes here. It may be run twice, when another of its transaction raises: what it does besides
        must bear that. A caller that is cancelled goes at once; the row is written all the same."""
        future: asyncio.Future[T] = self._loop.create_future()
        self._inbox.put(_Work(function, future))
        return await future

    async def until_broken(self) -> NoReturn:
        """Raises the error after which nothing more is written, when it comes."""
        await self._breaking.wait()
        assert self._broken is not None  # it is set before the event is
        raise self._broken

    async def tidy(self) -> None:
        """Gives up to TIDY_PAGES free pages back to the file system."""
        self._untidy.set()
        with suppress(StoreUnavailable):  # nothing is lost by doing it another time
            for _ in range(2):  # it follows the first, and the second follows it
                await self.run(lambda tx: None)

    async def erase(self) -> None:
        """Empties the write-ahead log, which has what was deleted, as far as nobody reads from it at this moment."""
        self._unclean.set()
        with suppress(StoreUnavailable):  # it is emptied with the next close at the latest
            await self.run(lambda tx: None)

    async def close(self, *, checkpoint: bool = True) -> None:
        """Finishes what was asked for, empties the write-ahead log into the file (`checkpoint`) and closes it."""
        self._inbox.put(None)
        with anyio.CancelScope(shield=True):
            await anyio.to_thread.run_sync(self._thread.join)
        with closing(self._connection):
            if checkpoint and self._broken is None:
                with suppress(sqlite3.Error):  # on a full disk, say: the log stays, and the next start reads it
                    self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def _run(self) -> None:
        open_ = True
        while open_:
            batch = [self._inbox.get()]
            try:
                while len(batch) < BATCH:
                    batch.append(self._inbox.get_nowait())
            except Empty:
                pass
            work = [item for item in batch if item is not None]
            open_ = len(work) == len(batch)
            if work:
                began = perf_counter()
                self._commit(work)
                self._loop.call_soon_threadsafe(_deliver, work)
                if self._observe is not None:
                    self._observe(perf_counter() - began)
            self._clean()

    def _clean(self) -> None:
        """Nothing was promised of this; what is wrong will show at the next write."""
        with suppress(sqlite3.Error):
            if self._unclean.is_set():
                self._unclean.clear()
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            if self._untidy.is_set():
                self._untidy.clear()
                # it comes back after each page, and only a script is stepped to its end
                self._connection.executescript(f"PRAGMA incremental_vacuum({TIDY_PAGES})")

    def _commit(self, batch: list[_Work[Any]]) -> None:
        """All of `batch` in one transaction. An item that raises is undone alone; as few do, savepoints are set only
        when one has, and all is done again: they would be a third of all statements."""
        try:
            if self._broken is not None:
                raise self._broken
            execute = self._connection.execute
            execute("BEGIN IMMEDIATE")
            try:
                transaction = self._together(batch)
            except Exception as error:
                if _of_database(error):
                    raise
                execute("ROLLBACK")
                execute("BEGIN IMMEDIATE")
                transaction = self._one_by_one(batch)
            transaction.write_tally()
            crash_point(f"{self._name}.commit.before")
            execute("COMMIT")
            crash_point(f"{self._name}.commit.after")
        except BaseException as error:  # the thread must outlive everything, and every waiter must hear of it
            failure = self._failed(error)
            for item in batch:
                item.error = failure

    def _together(self, batch: list[_Work[Any]]) -> Transaction:
        transaction = Transaction(self._connection)
        for item in batch:
            item.result = item.function(transaction)
        return transaction

    def _one_by_one(self, batch: list[_Work[Any]]) -> Transaction:
        transaction = Transaction(self._connection)
        execute = self._connection.execute
        for item in batch:
            counted = transaction.tally.copy()
            execute("SAVEPOINT item")
            try:
                item.result = item.function(transaction)
            except Exception as error:  # a refusal, or a bug: nobody else's work is undone for it
                if _of_database(error):
                    raise
                item.error = error
                transaction.tally = counted
                execute("ROLLBACK TO item")
            execute("RELEASE item")
        return transaction

    def _failed(self, error: BaseException) -> BaseException:
        """What the waiters are told after the whole transaction failed."""
        failure = _store_error(error) if isinstance(error, sqlite3.Error) else error
        doubtful = getattr(error, "sqlite_errorcode", 0) & 0xFF in DOUBTFUL
        try:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
        except sqlite3.Error:
            doubtful = True
        if doubtful and self._broken is None:
            self._broken = failure if isinstance(failure, StoreError) else StoreError(f"the database failed: {error}")
            self._loop.call_soon_threadsafe(self._breaking.set)
        return failure


def _of_database(error: Exception) -> bool:
    """Whether an error is about the whole transaction, and not what one function in it said by raising."""
    return isinstance(error, sqlite3.Error) and not isinstance(error, sqlite3.IntegrityError)


def _store_error(error: sqlite3.Error) -> StoreError:
    """SQLite's error as ours: one that passes, or one that does not."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return StoreFull(f"no space left for the database: {error}")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return StoreBusy(f"the database was locked by another process for more than {BUSY_TIMEOUT:.0f} s")
    return StoreError(f"the database cannot be used: {error}")


def _deliver(batch: Iterable[_Work[Any]]) -> None:
    for item in batch:
        if item.future.cancelled():
            continue
        if item.error is not None:
            item.future.set_exception(item.error)
        else:
            item.future.set_result(item.result)


class Readers:
    """A few read-only connections. Reads are one hop each and fetch everything at once: a cursor left open would
    pin the write-ahead log (getsentry/taskbroker#220)."""

    def __init__(self, path: Path, count: int = 2) -> None:
        self._path = path
        self._count = count
        self._free: asyncio.LifoQueue[aiosqlite.Connection] = asyncio.LifoQueue()

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            for _ in range(self._count):
                connection = await stack.enter_async_context(aiosqlite.connect(self._path, isolation_level=None))
                await connection.execute("PRAGMA query_only = ON")
                self._free.put_nowait(connection)
            self._opened = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with anyio.CancelScope(shield=True):
            for _ in range(self._count):  # a connection in use is waited for
                await self._free.get()
            await self._opened.aclose()

    async def fetch(self, sql: str, *parameters: object) -> list[Any]:
        """All rows of one statement."""
        rows: list[Any] = []
        async with self._connection() as connection:
            with anyio.CancelScope(shield=True):
                try:
                    rows.extend(await connection.execute_fetchall(sql, parameters))
                except sqlite3.Error as error:
                    raise _store_error(error) from error
        return rows

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[aiosqlite.Connection]:
        connection = await self._free.get()
        try:
            yield connection
        finally:
            self._free.put_nowait(connection)


def fetch_beside(path: Path, sql: str) -> list[Any]:
    """All rows of one statement, by a connection of its own that cannot write: for a look into the file beside the
    daemon, or without one. Raises StoreError."""
    try:
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, timeout=BUSY_TIMEOUT)) as connection:
            return connection.execute(sql).fetchall()
    except sqlite3.Error as error:
        raise _store_error(error) from error


def connect(path: Path) -> sqlite3.Connection:
    """A connection set up for durable writing. FULL is a setting of the connection, not of the file: NORMAL in
    WAL mode may lose the last commits at a power loss (https://www.sqlite.org/pragma.html#pragma_synchronous)."""
    connection = sqlite3.connect(path, timeout=BUSY_TIMEOUT, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute(f"PRAGMA journal_size_limit = {WAL_LIMIT}")
    connection.execute(
        "PRAGMA secure_delete = FAST"
    )  # customers' keys were in deleted rows, sealed: zeros in their place
    return connection


async def tidied(writer: Writer, readers: Readers) -> int:
    """Has the writer tidy up if there is anything: how many pages were free before that."""
    ((free,),) = await readers.fetch("PRAGMA freelist_count")
    if free:
        await writer.tidy()
    return int(free)


def migrate(path: Path, schema: str) -> int:
    """Brings the file at `path` to the newest version of `schema` (a folder of numbered SQL) and returns that
    version. All steps in one transaction, after a copy `<file>.v<old>.bak` of a file that held anything.
    Raises StoreTooNew for a file of a later version."""
    try:
        return _migrate(path, _steps(schema))
    except (sqlite3.DatabaseError, OSError) as error:
        raise StoreError(f"{path} cannot be used: {error}") from error


def _migrate(path: Path, steps: dict[int, str]) -> int:
    newest = max(steps)
    _create_private(path)
    with closing(connect(path)) as connection:
        if connection.execute("PRAGMA user_version").fetchone() == (newest,):
            return newest
        # neither can be set inside a transaction, and the first only before there is a table
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        try:
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            if version > newest:
                raise StoreTooNew(
                    f"{path} has schema version {version}; this imageopsd knows versions up to {newest}. "
                    "Run the imageopsd that wrote it, or a newer one."
                )
            if 0 < version < newest:
                _back_up(path, version)
            for number in range(version + 1, newest + 1):
                for statement in statements(steps[number]):
                    connection.execute(statement)
            connection.execute(f"PRAGMA user_version = {newest}")
            crash_point("migrate.commit.before")
            connection.execute("COMMIT")
            crash_point("migrate.commit.after")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
    return newest


def _steps(schema: str) -> dict[int, str]:
    folder = resources.files("imageopsd.storage.sqlite.migrations") / schema
    return {int(file.name.split(".")[0]): file.read_text() for file in folder.iterdir() if file.name.endswith(".sql")}


def statements(script: str) -> Iterable[str]:
    """Those of a script, one at a time: `executescript` would commit the transaction it runs in."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""


def _create_private(path: Path) -> None:
    """Records name images, projects and users: for the daemon's account only. SQLite gives what it puts beside a file
    to the file's owner by itself (https://www.sqlite.org/src/file?name=src/os_unix.c, robustFchown)."""
    with suppress(FileExistsError):
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            hand_over(descriptor, path.parent)
        finally:
            os.close(descriptor)


def _back_up(path: Path, version: int) -> None:
    """A copy through SQLite's own backup, so that what is still in the write-ahead log is in it."""
    copy_path = path.with_name(f"{path.name}.v{version}.bak")
    _create_private(copy_path)
    with closing(sqlite3.connect(path)) as source, closing(connect(copy_path)) as copy:
        source.backup(copy)


def milliseconds(time: datetime) -> int:
    """A time as the files keep it: whole unix milliseconds."""
    return round(time.timestamp() * 1000)


def time_of(unix_milliseconds: int) -> datetime:
    return datetime.fromtimestamp(unix_milliseconds / 1000, UTC)
