"""The machine's own limit: a queue in SQLite with group commit whose rows are two numbers and nothing else.

It shares no line with `storage/sqlite`, so that whatever is won or lost there shows in the ratio: the least that can be
done in Python for three durable transitions a job, each of which can be undone alone and is told to its waiter.
"""

import asyncio
import sqlite3
import threading
from pathlib import Path
from queue import Empty, SimpleQueue

BATCH = 512

INSERT = "INSERT INTO queue VALUES (?, 0)"
CLAIM = "UPDATE queue SET state = 1 WHERE id = ?"
DELETE = "DELETE FROM queue WHERE id = ?"

_Write = tuple[str, int, "asyncio.Future[None]"]


class BareQueue:
    def __init__(self, path: Path) -> None:
        self._loop = asyncio.get_running_loop()
        self._inbox: SimpleQueue[_Write | None] = SimpleQueue()
        self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
        for statement in (
            "PRAGMA journal_mode = WAL",
            "PRAGMA synchronous = FULL",
            "CREATE TABLE queue (id INTEGER PRIMARY KEY, state INTEGER NOT NULL) STRICT",
        ):
            self._connection.execute(statement)
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def write(self, statement: str, item: int) -> "asyncio.Future[None]":
        """Done after the fsync of its transaction."""
        future: asyncio.Future[None] = self._loop.create_future()
        self._inbox.put((statement, item, future))
        return future

    async def carry_out(self, item: int) -> None:
        await self.write(INSERT, item)
        await self.write(CLAIM, item)
        await self.write(DELETE, item)

    def close(self) -> None:
        self._inbox.put(None)
        self._thread.join()
        self._connection.close()

    def _run(self) -> None:
        execute = self._connection.execute
        while (first := self._inbox.get()) is not None:
            batch = [first]
            try:
                while len(batch) < BATCH and (item := self._inbox.get_nowait()):
                    batch.append(item)
            except Empty:
                pass
            execute("BEGIN IMMEDIATE")
            for statement, number, _ in batch:
                execute("SAVEPOINT item")
                execute(statement, (number,))
                execute("RELEASE item")
            execute("COMMIT")
            self._loop.call_soon_threadsafe(_deliver, batch)


def _deliver(batch: list[_Write]) -> None:
    for _, _, future in batch:
        future.set_result(None)
