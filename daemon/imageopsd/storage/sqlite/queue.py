"""Jobs in `queue.db`: written by `imageopsd submit`, whether the daemon runs or not, and read by the daemon."""

from collections.abc import Sequence
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, NoReturn, Self

import anyio
import msgspec

from imageopsd.model.errors import QueueFull
from imageopsd.ports import DeadLetter, Job, Pause, QueueDepth, Receipt
from imageopsd.storage.sqlite.connection import Readers, Transaction, Writer, migrate, milliseconds, tidied, time_of
from imageopsd.storage.sqlite.doorbell import Doorbell, ringing


class SqliteQueue:
    """One reader, the daemon; any number of submitting processes. What was received stands in memory as a high-water
    mark, so a restart receives again whatever was not settled."""

    class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
        max_jobs: Annotated[int, msgspec.Meta(ge=1)] = 1_000_000
        """How many jobs may wait; a submit beyond it is refused."""

    def __init__(self, options: Options, data_dir: Path, *, consumer: bool = True) -> None:
        self._max_jobs = options.max_jobs
        self._consumer = consumer
        self._path = data_dir / "queue.db"
        self._bell_path = data_dir / "queue.bell"
        self._received = 0

    async def __aenter__(self) -> Self:
        async with AsyncExitStack() as stack:
            await anyio.to_thread.run_sync(migrate, self._path, "queue")
            self._rung = anyio.Event()
            self._writer = Writer(self._path)
            stack.push_async_callback(self._writer.close, checkpoint=self._consumer)
            self._readers = await stack.enter_async_context(Readers(self._path, count=1))
            if self._consumer:
                stack.callback(Doorbell(self._bell_path, self._ring).close)
            self._opened = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._opened.aclose()

    def _ring(self) -> None:
        self._rung.set()
        self._rung = anyio.Event()

    async def put(self, jobs: Sequence[tuple[str, bytes]], now: datetime) -> list[Receipt]:
        def insert(tx: Transaction) -> list[Receipt]:
            (waiting,) = tx.execute("SELECT value FROM totals WHERE name = 'waiting'").fetchone()
            if waiting + tx.tally["waiting"] + len(jobs) > self._max_jobs:
                raise QueueFull(waiting, self._max_jobs)
            tx.tally["waiting"] += len(jobs)
            rows = ((job_id, milliseconds(now), body) for job_id, body in jobs)
            statement = "INSERT INTO jobs (id, submitted, body) VALUES (?, ?, ?) RETURNING receipt"
            return [tx.execute(statement, row).fetchone()[0] for row in rows]

        with ringing(self._bell_path):
            return await self._writer.run(insert)

    async def receive(self, limit: int) -> list[Job]:
        while True:
            rung = self._rung  # taken before looking: a job that comes after the look has set it
            rows = await self._readers.fetch(
                f"{_WAITING} WHERE receipt > ? ORDER BY receipt LIMIT ?",
                self._received,
                limit,
            )
            if rows:
                self._received = rows[-1][0]
                return [_job(row) for row in rows]
            await rung.wait()

    async def settle(self, receipts: Sequence[Receipt]) -> None:
        def delete(tx: Transaction) -> None:
            gone = tx.executemany("DELETE FROM jobs WHERE receipt = ?", [(receipt,) for receipt in receipts])
            tx.tally["waiting"] -= gone.rowcount

        await self._writer.run(delete)

    async def bury(self, receipt: Receipt, reason: str, now: datetime, body: bytes | None = None) -> None:
        def move(tx: Transaction) -> None:
            if body is not None:  # it had a key in clear: its pages are overwritten, too, if they become free
                tx.execute("PRAGMA secure_delete = ON")
            moved = tx.execute(
                "INSERT INTO dead_letters (receipt, id, submitted, refused, reason, body)"
                " SELECT receipt, id, submitted, ?, ?, coalesce(?, body) FROM jobs WHERE receipt = ?",
                (milliseconds(now), reason, body, receipt),
            )
            tx.execute("DELETE FROM jobs WHERE receipt = ?", (receipt,))
            tx.tally["waiting"] -= moved.rowcount
            tx.tally["dead"] += moved.rowcount

        await self._writer.run(move)
        if body is not None:
            await self._writer.erase()

    async def depth(self) -> QueueDepth:
        ((waiting, dead, oldest),) = await self._readers.fetch(
            "SELECT (SELECT value FROM totals WHERE name = 'waiting'), (SELECT value FROM totals WHERE name = 'dead'),"
            " (SELECT submitted FROM jobs ORDER BY receipt LIMIT 1)"
        )
        return QueueDepth(waiting=waiting, dead=dead, oldest=time_of(oldest) if oldest is not None else None)

    async def until_broken(self) -> NoReturn:
        await self._writer.until_broken()

    async def dead_letters(self, limit: int) -> list[DeadLetter]:
        rows = await self._readers.fetch(f"{_DEAD} ORDER BY receipt DESC LIMIT ?", limit)
        return [_dead_letter(row) for row in rows]

    async def dead_letter(self, job_id: str) -> list[DeadLetter]:
        rows = await self._readers.fetch(f"{_DEAD} WHERE id = ? ORDER BY receipt DESC", job_id)
        return [_dead_letter(row) for row in rows]

    async def requeue(self, job_ids: Sequence[str] | None, now: datetime) -> list[str]:
        def put_back(tx: Transaction) -> list[str]:
            rows = _removed(tx, "1 = 1", job_ids)
            tx.executemany(
                "INSERT INTO jobs (id, submitted, body) VALUES (?, ?, ?)",
                [(job_id, milliseconds(now), body) for job_id, body in rows],
            )
            tx.tally["waiting"] += len(rows)
            return [job_id for job_id, _ in rows]

        with ringing(self._bell_path):
            return await self._writer.run(put_back)

    async def purge(self, job_ids: Sequence[str] | None, before: datetime | None) -> list[str]:
        def forget(tx: Transaction) -> list[str]:
            where, values = ("refused < ?", (milliseconds(before),)) if before else ("1 = 1", ())
            return [job_id for job_id, _ in _removed(tx, where, job_ids, *values)]

        return await self._writer.run(forget)

    async def forget(self, *, before: datetime, limit: int) -> int:
        def delete(tx: Transaction) -> int:
            statement = (
                "DELETE FROM dead_letters WHERE receipt IN"
                " (SELECT receipt FROM dead_letters WHERE refused < ? ORDER BY refused LIMIT ?)"
            )
            gone = tx.execute(statement, (milliseconds(before), limit)).rowcount
            tx.tally["dead"] -= gone
            return gone

        return await self._writer.run(delete)

    async def tidy(self) -> int:
        return await tidied(self._writer, self._readers)

    async def pause(self, pause: Pause | None) -> None:
        def turn(tx: Transaction) -> None:
            tx.execute("DELETE FROM pause")
            if pause:
                tx.execute("INSERT INTO pause VALUES (1, ?, ?)", (milliseconds(pause.since), pause.reason))

        with ringing(self._bell_path):
            await self._writer.run(turn)

    async def paused(self) -> Pause | None:
        rows = await self._readers.fetch("SELECT since, reason FROM pause")
        return Pause(since=time_of(rows[0][0]), reason=rows[0][1]) if rows else None

    async def pause_turned(self, known: Pause | None) -> Pause | None:
        while True:
            rung = self._rung
            if (pause := await self.paused()) != known:
                return pause
            await rung.wait()

    async def find(self, receipt: Receipt) -> Job | DeadLetter | None:
        # in this order: a job on its way to the dead letters is in one of the two
        if waiting := await self._readers.fetch(f"{_WAITING} WHERE receipt = ?", receipt):
            return _job(waiting[0])
        dead = await self._readers.fetch(f"{_DEAD} WHERE receipt = ?", receipt)
        return _dead_letter(dead[0]) if dead else None


def _removed(tx: Transaction, where: str, job_ids: Sequence[str] | None, *values: object) -> list[tuple[str, bytes]]:
    """Takes dead letters out, these or all, as far as `where` is true of them: their ids and bodies, in their order."""
    names: tuple[object, ...] = ()
    if job_ids is not None:
        where, names = f"{where} AND id IN ({', '.join('?' * len(job_ids))})", tuple(job_ids)
    rows = tx.execute(
        f"DELETE FROM dead_letters WHERE {where} RETURNING receipt, id, body", (*values, *names)
    ).fetchall()
    tx.tally["dead"] -= len(rows)
    return [(job_id, body) for _, job_id, body in sorted(rows)]


_WAITING = "SELECT receipt, id, submitted, body FROM jobs"
_DEAD = "SELECT id, submitted, refused, reason, body FROM dead_letters"


def _job(row: Any) -> Job:
    receipt, id_, submitted, body = row
    return Job(id=id_, body=body, submitted=time_of(submitted), receipt=receipt)


def _dead_letter(row: Any) -> DeadLetter:
    id_, submitted, refused, reason, body = row
    return DeadLetter(id=id_, body=body, submitted=time_of(submitted), refused=time_of(refused), reason=reason)
