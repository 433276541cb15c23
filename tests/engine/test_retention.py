"""What is over is forgotten, each kind in its time, and its space given back."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.engine.conftest import Engine
from tests.engine.faults import again

from imageopsd.engine import retention as module
from imageopsd.engine.retention import Retention
from imageopsd.model.errors import AlreadyExists, TemporaryFailure
from imageopsd.storage.sqlite.queue import SqliteQueue


@pytest.fixture
async def queue(tmp_path: Path) -> AsyncIterator[SqliteQueue]:
    async with SqliteQueue(SqliteQueue.Options(), tmp_path) as opened:
        yield opened


async def test_old_records_are_forgotten_by_outcome(engine: Engine, queue: SqliteQueue) -> None:
    async with engine.working():
        for name, failure in (("good", None), ("bad", TemporaryFailure("X", "x"))):
            operation = await engine.insert(name)
            call = await engine.backend.next_call()
            call.fail(failure) if failure else call.succeed()
            for _ in range(2 if failure else 0):
                await engine.until(lambda _, o=operation: engine.events_of(o)[-1] == "Deferred")
                engine.clock.advance(10)
                (await engine.backend.next_call()).fail(failure)
            await engine.done(operation)
    retention = Retention(
        engine.through, queue, engine.bus, engine.clock, succeeded=60, failed=120, request_ids=60, dead=None
    )

    async def failures_left() -> list[bool]:
        await again(retention.round)
        page = await engine.store.operations("p", 10, None, newest_first=False)
        return [operation.error is not None for operation in page.items]

    assert await failures_left() == [False, True]
    engine.clock.advance(61)
    assert await failures_left() == [True]
    engine.clock.advance(60)
    assert await failures_left() == []


async def test_what_is_left_of_a_deleted_operation_goes_with_its_request_id(engine: Engine, queue: SqliteQueue) -> None:
    request_id = "11111111-2222-3333-4444-555555555555"
    async with engine.working():
        first = await engine.insert(request_id=request_id)
        (await engine.backend.next_call()).succeed()
        done = await engine.done(first)
    await engine.ops.delete_operation("p", done.name)
    assert await engine.insert(request_id=request_id) == done
    retention = Retention(
        engine.through, queue, engine.bus, engine.clock, succeeded=None, failed=None, request_ids=60, dead=None
    )
    engine.clock.advance(60)
    await again(retention.round)
    assert await engine.insert(request_id=request_id) == done
    engine.clock.advance(1)
    await again(retention.round)
    with pytest.raises(AlreadyExists):  # it is a new request now, for an image that is there
        await engine.insert(request_id=request_id)


async def test_old_dead_letters_are_forgotten_and_newer_ones_kept(engine: Engine, queue: SqliteQueue) -> None:
    retention = Retention(
        engine.through, queue, engine.bus, engine.clock, succeeded=None, failed=None, request_ids=None, dead=60
    )
    for name in ("old", "new"):
        (receipt,) = await queue.put([(name, b"no job")], engine.clock.now)
        await queue.bury(receipt, "no", engine.clock.now)
        engine.clock.advance(40)
    await again(retention.round)
    assert [letter.id for letter in await queue.dead_letters(10)] == ["new"]
    assert (await queue.depth()).dead == 1


async def test_what_settled_jobs_left_goes_back_to_the_file_system(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BREATH", 0)
    async with SqliteQueue(SqliteQueue.Options(), tmp_path) as queue:
        jobs = [(f"j{number}", bytes(20_000)) for number in range(1000)]
        await queue.settle(await queue.put(jobs, engine.clock.now))
        retention = Retention(
            engine.through, queue, engine.bus, engine.clock, succeeded=None, failed=None, request_ids=None, dead=None
        )
        await again(retention.round)
    assert (tmp_path / "queue.db").stat().st_size < 200_000
