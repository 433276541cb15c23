"""What every queue promises (`ports.JobQueue`), on every database."""

from collections.abc import Awaitable, Callable
from datetime import UTC, timedelta

import anyio

from imageopsd.model.time import Time
from imageopsd.ports import DeadLetter, Job, JobQueue, QueueDepth

NOW = Time(2026, 11, 20, 12, tzinfo=UTC)
Open = Callable[..., Awaitable[JobQueue]]


async def test_jobs_come_in_their_order_with_what_was_put(open_queue: Open) -> None:
    queue = await open_queue()
    await queue.put([("a", b"1"), ("b", b"2"), ("c", b"3")], NOW)
    first = await queue.receive(2)
    assert [(job.id, job.body, job.submitted) for job in first] == [("a", b"1", NOW), ("b", b"2", NOW)]
    assert [job.id for job in await queue.receive(2)] == ["c"]


async def test_a_reader_that_waits_is_woken_by_another_process_handle(open_queue: Open) -> None:
    reader, submitter = await open_queue(), await open_queue(consumer=False)
    got: list[str] = []
    waiting = anyio.Event()

    async def read() -> None:
        waiting.set()
        got.extend(job.id for job in await reader.receive(10))

    with anyio.fail_after(10):
        async with anyio.create_task_group() as together:
            together.start_soon(read)
            await waiting.wait()
            await submitter.put([("a", b"1")], NOW)
        assert got == ["a"]
        # and again, after the bell has been rung and hung up once
        await submitter.put([("b", b"2")], NOW)
        assert [job.id for job in await reader.receive(10)] == ["b"]


async def test_an_unsettled_job_comes_again_to_the_next_reader_and_a_settled_one_does_not(open_queue: Open) -> None:
    first = await open_queue()
    await first.put([("a", b"1"), ("b", b"2")], NOW)
    a, _ = await first.receive(10)
    await first.settle([a.receipt])
    second = await open_queue()
    assert [job.id for job in await second.receive(10)] == ["b"]


async def test_a_buried_job_is_kept_with_its_reason(open_queue: Open) -> None:
    queue = await open_queue()
    await queue.put([("a", b"not json")], NOW)
    (job,) = await queue.receive(10)
    await queue.bury(job.receipt, "Expected an object.", NOW)
    (letter,) = await queue.dead_letters(10)
    assert (letter.id, letter.body, letter.reason, letter.refused) == ("a", b"not json", "Expected an object.", NOW)
    again = await open_queue()
    assert await again.depth() == QueueDepth(waiting=0, dead=1, oldest=None)


async def test_a_receipt_tells_what_became_of_its_job(open_queue: Open) -> None:
    queue = await open_queue()
    same_id = [("a", b"1"), ("a", b"2"), ("a", b"3")]
    settled, buried, waiting = await queue.put(same_id, NOW)
    await queue.receive(10)
    await queue.settle([settled])
    await queue.bury(buried, "no", NOW)
    assert await queue.find(settled) is None
    dead, alive = await queue.find(buried), await queue.find(waiting)
    assert isinstance(dead, DeadLetter)
    assert isinstance(alive, Job)
    assert (dead.body, dead.reason, alive.body) == (b"2", "no", b"3")


async def test_burying_or_settling_twice_changes_nothing(open_queue: Open) -> None:
    queue = await open_queue()
    await queue.put([("a", b"1"), ("b", b"2")], NOW)
    a, b = await queue.receive(10)
    for _ in range(2):
        await queue.bury(a.receipt, "no", NOW)
        await queue.settle([b.receipt])
    assert await queue.depth() == QueueDepth(waiting=0, dead=1, oldest=None)


async def test_dead_letters_are_forgotten_by_age_a_few_at_a_time(open_queue: Open) -> None:
    queue = await open_queue()
    for name, refused in (("c", 2), ("a", 0), ("b", 1)):
        (receipt,) = await queue.put([(name, b"no")], NOW)
        await queue.bury(receipt, "no", NOW + timedelta(seconds=refused))
    before = NOW + timedelta(seconds=2)
    assert [await queue.forget(before=before, limit=1) for _ in range(3)] == [1, 1, 0]
    assert [letter.id for letter in await queue.dead_letters(10)] == ["c"]
    assert (await queue.depth()).dead == 1


async def test_the_depth_tells_how_many_wait_and_since_when(open_queue: Open) -> None:
    queue = await open_queue()
    assert await queue.depth() == QueueDepth(waiting=0, dead=0, oldest=None)
    await queue.put([("a", b"1"), ("b", b"2")], NOW)
    assert await queue.depth() == QueueDepth(waiting=2, dead=0, oldest=NOW)
