"""`operations.wait`: a long poll that answers the moment there is an answer, and in good time when there is none."""

import asyncio

import pytest
from tests.api.conftest import Bench, Json
from tests.daemon_process import LIMIT

from imageopsd.engine.imageops import ImageOps
from imageopsd.model.operation import Operation

HALF_WAY: Json = {"image": "disk", "steps": [{"progress": 40, "message": "half-way"}, {"wait": "1h"}]}


async def test_at_its_limit_it_answers_with_the_record_as_it_is(bench: Bench) -> None:
    async with bench.api(wait_limit=0.01) as api:
        operation = await api.insert("disk")
        assert operation == await api.answer("Operation", "POST", f"operations/{operation['name']}/wait")


async def test_at_its_limit_it_shows_how_far_the_work_is(bench: Bench) -> None:
    async with bench.api(wait_limit=0.01) as api, bench.working(HALF_WAY):
        operation = await api.insert("disk")
        async with asyncio.timeout(LIMIT):
            while (await api.answer("Operation", "POST", f"operations/{operation['name']}/wait"))["progress"] < 40:
                pass
        waited = await api.answer("Operation", "POST", f"operations/{operation['name']}/wait")
    assert (waited["status"], waited["progress"], waited["statusMessage"]) == ("RUNNING", 40, "half-way")


@pytest.mark.parametrize("fate", [{"steps": []}, {"steps": [{"fail": "permanent"}]}], ids=["success", "failure"])
async def test_it_answers_when_the_operation_ends_and_not_at_its_limit(bench: Bench, fate: Json) -> None:
    async with bench.api(wait_limit=10 * LIMIT) as api:
        operation = await api.insert("disk")
        async with asyncio.timeout(LIMIT), asyncio.TaskGroup() as group:
            waits = [group.create_task(api.done(operation)) for _ in range(3)]
            # all three must be waiting before anybody works, which another answer on the same loop shows
            while bench.waiting(operation) < 3:
                await api.answer("Operation", "GET", f"operations/{operation['name']}")
            async with bench.working({"image": "disk", **fate}):
                await asyncio.gather(*waits)
    assert [wait.result()["status"] for wait in waits] == ["DONE"] * 3
    assert bench.waiting(operation) == 0


async def test_what_is_done_already_is_answered_at_once(bench: Bench) -> None:
    async with bench.api(wait_limit=10 * LIMIT) as api:
        operation = await api.insert("disk")
        async with bench.working():
            first = await api.done(operation)
        async with asyncio.timeout(LIMIT):
            assert first == await api.done(operation)


async def test_a_client_that_goes_away_leaves_nobody_waiting(bench: Bench) -> None:
    async with bench.api(wait_limit=10 * LIMIT) as api:
        operation = await api.insert("disk")
        wait = asyncio.create_task(api.done(operation))
        async with asyncio.timeout(LIMIT):
            while bench.waiting(operation) < 1:
                await api.answer("Operation", "GET", f"operations/{operation['name']}")
            wait.cancel()
            await asyncio.wait([wait])
        assert wait.cancelled()


@pytest.mark.parametrize("data", [b"", b'""', b"{}", b"not JSON"])
async def test_the_body_is_nobodys_business(bench: Bench, data: bytes) -> None:
    async with bench.api() as api, bench.working():
        operation = await api.insert("disk")
        status, record = await api.call("POST", f"operations/{operation['id']}/wait", data=data)
    assert (status, record["status"]) == (200, "DONE")


async def test_all_waits_of_a_batch_share_the_time_of_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = []

    async def wait(ops: ImageOps, project: str | None, reference: str, limit: float) -> Operation:
        limits.append(limit)
        return await waited(ops, project, reference, limit)

    waited = ImageOps.wait
    monkeypatch.setattr(ImageOps, "wait", wait)
    async with bench.api(wait_limit=0.01) as api:
        operations = [await api.insert(name) for name in ("one", "two", "three")]
        answers = await api.batch([("POST", f"operations/{operation['name']}/wait") for operation in operations])
    assert answers == [(200, operation) for operation in operations]
    assert 0 < limits[0] <= 0.01
    assert limits[1:] == [0, 0]  # the first has used all of it


async def test_a_wait_in_a_batch_has_what_the_parts_before_it_did(bench: Bench) -> None:
    async with bench.api(wait_limit=10 * LIMIT) as api, bench.working():
        done = await api.done(await api.insert("disk"))
        answers = await api.batch(
            [
                ("POST", f"operations/{done['name']}/wait"),
                ("DELETE", f"operations/{done['name']}"),
                ("POST", f"operations/{done['name']}/wait"),
            ]
        )
    assert answers[:2] == [(200, done), (200, {})]
    assert answers[2][0] == 404
