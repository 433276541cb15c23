"""From the queue into the store: nothing is dropped, nothing is taken twice, order is kept where it matters."""

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from tests.engine.conftest import EXACT, Engine

from imageopsd.engine.imageops import ImageOps
from imageopsd.engine.intake import Intake
from imageopsd.keys import Keyring
from imageopsd.model.errors import StoreFull
from imageopsd.model.events import Change, JobBuried, KeysTurned, StoreTroubled
from imageopsd.model.operation import Operation, Status
from imageopsd.ports import QueueDepth
from imageopsd.storage.sqlite.queue import SqliteQueue
from imageopsd.wire.jobs import read_job, sealed_job

EMPTY = QueueDepth(waiting=0, dead=0, oldest=None)


def insert(name: str, **more: Any) -> dict[str, Any]:
    body = {"name": name, "rawDisk": {"source": "https://h/i.tar.gz"}}
    return {"method": "images.insert", "project": "p", "body": body} | more


def patch(name: str, **more: Any) -> dict[str, Any]:
    return {"method": "images.patch", "project": "p", "image": name, "body": {"family": "f"}} | more


@pytest.fixture
async def queue(tmp_path: Path) -> AsyncIterator[SqliteQueue]:
    async with SqliteQueue(SqliteQueue.Options(), tmp_path) as opened:
        yield opened


@asynccontextmanager
async def taking(engine: Engine, queue: SqliteQueue, *jobs: Any) -> AsyncIterator[None]:
    """Puts the jobs into the queue and has them all taken out of it."""
    rows = [(f"j{n}", job if isinstance(job, bytes) else json.dumps(job).encode()) for n, job in enumerate(jobs)]
    await queue.put(rows, engine.clock.now)
    gate = engine.gate()
    intake = Intake(queue, engine.verbs, engine.bus, engine.clock, gate, engine.backlog)
    async with anyio.create_task_group() as group:
        group.start_soon(gate.heal, engine.through)
        group.start_soon(intake.run)
        with anyio.fail_after(10):
            while (await queue.depth()).waiting:
                await anyio.lowlevel.checkpoint()
        yield
        group.cancel_scope.cancel()


async def operations(engine: Engine) -> list[Operation]:
    return (await engine.ops.operations("p", 100, None, newest_first=False)).items


async def test_a_job_becomes_an_operation_and_leaves_the_queue(engine: Engine, queue: SqliteQueue) -> None:
    async with taking(engine, queue, insert("i")):
        (operation,) = await operations(engine)
    assert (operation.status, operation.operation_type, operation.user) == (Status.PENDING, "insert", "queue")
    assert operation.client_operation_id is not None
    assert await queue.depth() == EMPTY


async def test_a_job_that_comes_again_is_the_same_operation(engine: Engine, queue: SqliteQueue) -> None:
    job = json.dumps(insert("i")).encode()
    await queue.put([("j0", job)], engine.clock.now)
    async with taking(engine, queue, job):
        assert len(await operations(engine)) == 1


REQUEST = "11111111-2222-3333-4444-555555555555"


@EXACT
async def test_of_two_jobs_with_one_request_id_the_first_counts_and_the_other_is_buried(
    engine: Engine, queue: SqliteQueue
) -> None:
    """Even if the second could be refused before the first is written."""
    real, seen = engine.store.accept, []

    async def slow(operation: Operation, *rest: Any, **more: Any) -> Any:
        seen.append(operation.operation_type)
        await anyio.wait_all_tasks_blocked()
        return await real(operation, *rest, **more)

    engine.store.accept = slow
    async with taking(engine, queue, insert("i", requestId=REQUEST), patch("missing", requestId=REQUEST)):
        (operation,) = await operations(engine)
    assert (operation.operation_type, operation.error, seen) == ("insert", None, ["insert"])
    (buried,) = await queue.dead_letters(10)
    assert "requestId" in buried.reason


async def test_of_two_refused_jobs_with_one_request_id_too(engine: Engine, queue: SqliteQueue) -> None:
    async with taking(engine, queue, patch("missing", requestId=REQUEST), patch("other", requestId=REQUEST)):
        (operation,) = await operations(engine)
    assert operation.error is not None
    assert (await queue.depth()).dead == 1


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        (b"not json", "Invalid JSON payload received for 'job'"),
        ({"method": "x"}, "Invalid value for field 'job.method': 'x'"),
        (insert("UPPER"), "Invalid value for field 'resource.name': 'UPPER'"),
    ],
)
async def test_a_job_that_makes_no_sense_is_buried_and_the_next_one_taken(
    engine: Engine, queue: SqliteQueue, job: Any, reason: str
) -> None:
    async with taking(engine, queue, job, insert("good")):
        (letter,) = await queue.dead_letters(10)
        assert reason in letter.reason
        assert [o.target_link.rpartition("/")[2] for o in await operations(engine)] == ["good"]
    assert [h for h in engine.happened if isinstance(h, JobBuried)] == [
        JobBuried("j0", "INVALID_FIELD_VALUE", letter.reason)
    ]


async def test_a_request_id_in_use_for_another_request_is_buried(engine: Engine, queue: SqliteQueue) -> None:
    request_id = "11111111-2222-3333-4444-555555555555"
    async with taking(engine, queue, insert("a", requestId=request_id), insert("b", requestId=request_id)):
        (letter,) = await queue.dead_letters(10)
        (first,) = await operations(engine)
    assert first.name in letter.reason


async def test_a_job_the_catalogue_refuses_is_an_operation_that_failed(engine: Engine, queue: SqliteQueue) -> None:
    async with taking(engine, queue, insert("i"), insert("i"), patch("nowhere")):
        ended = {o.target_link.rpartition("/")[2]: o for o in await operations(engine) if o.status is Status.DONE}
    taken, missing = ended["i"], ended["nowhere"]
    assert (taken.status, taken.http_error_status_code) == (Status.DONE, 409)
    assert (missing.status, missing.http_error_status_code) == (Status.DONE, 404)
    assert taken.error is not None
    assert missing.error is not None
    assert [e.code for e in (*taken.error.errors, *missing.error.errors)] == [
        "RESOURCE_ALREADY_EXISTS",
        "RESOURCE_NOT_FOUND",
    ]


async def test_jobs_that_need_each_other_are_taken_in_their_order(engine: Engine, queue: SqliteQueue) -> None:
    copy = insert("copy")
    copy["body"] = {"name": "copy", "sourceImage": "projects/p/global/images/i"}
    async with taking(engine, queue, insert("i"), patch("i"), copy, patch("copy"), insert("j")):
        assert [o.error for o in await operations(engine)] == [None] * 5


async def test_a_full_disk_is_waited_out(engine: Engine, queue: SqliteQueue) -> None:
    real, tries = engine.store.accept, 0

    async def accept(*arguments: Any, **more: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries <= 2:
            raise StoreFull("no space left")
        return await real(*arguments, **more)

    engine.store.accept = accept  # type: ignore[method-assign]
    async with taking(engine, queue, insert("i")):
        assert len(await operations(engine)) == 1
    told = [str(h.error) for h in engine.happened if isinstance(h, StoreTroubled)]
    assert told.count("no space left") == 2


async def test_a_full_disk_is_waited_out_by_a_bad_job_too(engine: Engine, queue: SqliteQueue) -> None:
    real, tries = queue.bury, 0

    async def bury(*arguments: Any) -> None:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise StoreFull("no space left")
        await real(*arguments)

    queue.bury = bury  # type: ignore[method-assign]
    async with taking(engine, queue, b"not json"):
        assert len(await queue.dead_letters(10)) == 1


async def test_a_job_that_breaks_the_reader_is_buried_without_its_details(
    engine: Engine, queue: SqliteQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(body: bytes, job_id: str) -> None:
        raise ZeroDivisionError("inner workings")

    monkeypatch.setattr("imageopsd.engine.intake.read_job", broken)
    async with taking(engine, queue, insert("i")):
        (letter,) = await queue.dead_letters(10)
    assert letter.reason == "The job could not be read; the daemon's log has the details."


async def test_a_draining_daemon_leaves_jobs_in_the_queue(engine: Engine, queue: SqliteQueue) -> None:
    engine.ops.draining = True
    await queue.put([("j", json.dumps(insert("i")).encode())], engine.clock.now)
    intake = Intake(queue, engine.verbs, engine.bus, engine.clock, engine.gate(), engine.backlog)
    async with anyio.create_task_group() as group:
        group.start_soon(intake.run)
        await anyio.wait_all_tasks_blocked()
        group.cancel_scope.cancel()
    assert (await queue.depth()).waiting == 1
    assert not [h for h in engine.happened if isinstance(h, Change)]


@EXACT
async def test_a_job_whose_key_cannot_be_opened_for_now_is_put_off_and_holds_up_only_its_image(
    engine: Engine, queue: SqliteQueue, tmp_path: Path
) -> None:
    """The daemon's own key cannot be read, and then it can: nobody starts the daemon anew."""
    keyring, ids = Keyring(tmp_path), ("k", "p", "n")
    keyed = insert("keyed", requestId="11111111-2222-3333-4444-555555555555")
    keyed["body"]["imageEncryptionKey"] = {"rawKey": base64.b64encode(bytes(range(32))).decode()}
    sealed = sealed_job(keyed, keyring.sealed(read_job(json.dumps(keyed).encode(), ids[0])))
    key = (tmp_path / "keys" / "seal.key").rename(tmp_path / "away")
    (tmp_path / "keys" / "seal.key").mkdir()  # what cannot be read, by root either
    engine.verbs = ImageOps(engine.store, engine.bus, engine.ids, engine.clock, seal=Keyring(tmp_path).sealed)
    jobs = (sealed, patch("keyed"), insert("free"))
    await queue.put([(name, json.dumps(job).encode()) for name, job in zip(ids, jobs, strict=True)], engine.clock.now)
    intake = Intake(queue, engine.verbs, engine.bus, engine.clock, engine.gate(), engine.backlog, put_off=0.01)
    async with anyio.create_task_group() as group:
        group.start_soon(intake.run)
        with anyio.fail_after(10):
            while (await queue.depth()).waiting > 2:
                await anyio.lowlevel.checkpoint()
        assert targets(await operations(engine)) == ["free"]
        (tmp_path / "keys" / "seal.key").rmdir()
        key.rename(tmp_path / "keys" / "seal.key")
        with anyio.fail_after(10):
            while (await queue.depth()).waiting:
                await anyio.lowlevel.checkpoint()
        group.cancel_scope.cancel()
    assert targets(await operations(engine)) == ["free", "keyed", "keyed"]
    assert [o.error for o in await operations(engine)] == [None] * 3
    told = [h.reason is None for h in engine.happened if isinstance(h, KeysTurned)]
    assert told == [False, True]


def targets(found: list[Operation]) -> list[str]:
    return [o.target_link.rpartition("/")[2] for o in found]
