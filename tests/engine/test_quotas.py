"""Quotas where the verbs and the worker meet them: refusals become records, what does not fit is removed again."""

import json
from collections.abc import AsyncIterator
from http import HTTPStatus
from pathlib import Path

import pytest
from tests.contract.validate import assert_valid
from tests.engine.conftest import Clock, Engine, HandBackend

from imageopsd.model.access import LOCAL
from imageopsd.model.errors import NotFound, ReservationExceeded, TemporaryFailure
from imageopsd.model.image import ImageFacts
from imageopsd.model.machine_image import MachineImage, MachineImageFacts, MachineImageTask
from imageopsd.model.operation import Operation
from imageopsd.model.quota import Limit, Metric, Quotas
from imageopsd.model.requests import InsertMachineImage
from imageopsd.ports import Claim, DeleteTask, InsertTask, Reporter
from imageopsd.storage.sqlite.store import SqliteStore
from imageopsd.wire.compute import encode


@pytest.fixture
async def engine(tmp_path: Path) -> AsyncIterator[Engine]:
    """One whose store had a limit when it was opened; the tests change which."""
    backend, store = HandBackend(), SqliteStore(SqliteStore.Options(), tmp_path)
    store.quotas = Quotas([Limit(project="nobody", metric=Metric.IMAGES, limit=0)])
    async with store:
        yield Engine(store, backend, Clock())
    backend.close()


REQUEST_ID = "11111111-2222-3333-4444-555555555555"


class LargeImages:
    """The engine's backend from now on: images of 5 GB and 700 bytes at once, and removals, the first
    of which fail."""

    def __init__(self, engine: Engine, failures: int = 0) -> None:
        self.made: list[str] = []
        self.removed: list[int] = []
        self._failures = failures
        for name, method in {
            "insert_image": self._insert,
            "delete_image": self._delete,
            "insert_machine_image": self._insert_machine_image,
            "delete_machine_image": self._delete,
        }.items():
            setattr(engine.backend, name, method)

    async def _insert(self, task: InsertTask, report: Reporter) -> ImageFacts:
        self.made.append(str(task.image.name))
        return ImageFacts(disk_size_gb=5, stored_bytes=700)

    async def _insert_machine_image(self, task: MachineImageTask, report: Reporter) -> MachineImageFacts:
        self.made.append(str(task.machine_image.name))
        return MachineImageFacts(700, {}, stored_bytes=700)

    async def _delete(self, task: DeleteTask, report: Reporter) -> None:
        self.removed.append(task.id)
        if len(self.removed) <= self._failures:
            raise TemporaryFailure("STORAGE_UNAVAILABLE", "Not now.")


def limited(engine: Engine, metric: Metric, limit: int) -> None:
    engine.store.quotas = Quotas([Limit(project="*", metric=metric, limit=limit)])


async def insert_machine_image(engine: Engine) -> Operation:
    wanted = MachineImage(name="machine", source_instance="projects/p/zones/z/instances/i")
    return await engine.ops.submit(InsertMachineImage(project="p", machine_image=wanted), by=LOCAL)


def code_of(operation: Operation) -> str:
    assert_valid("Operation", json.loads(encode(operation)))
    return operation.error.errors[0].code if operation.error else ""


async def test_a_refused_insert_is_published_once_as_a_failure_and_never_claimed(engine: Engine) -> None:
    limited(engine, Metric.IMAGES, 0)
    async with engine.working():
        refused = await engine.insert(request_id=REQUEST_ID)
        assert await engine.insert(request_id=REQUEST_ID) == refused
    assert (code_of(refused), refused.http_error_status_code) == ("QUOTA_EXCEEDED", HTTPStatus.FORBIDDEN)
    assert engine.events_of(refused) == ["Failed"]
    assert engine.backend.nothing_called()
    with pytest.raises(NotFound):
        await engine.ops.image("p", "i")


async def test_the_window_of_inserts_goes_by_the_clock(engine: Engine) -> None:
    limited(engine, Metric.INSERTS, 2)
    codes = {}
    for seconds in (0, 1000, 2000, 3599, 3600, 4599, 4600):
        engine.clock.advance(seconds - max(codes, default=0))
        codes[seconds] = code_of(await engine.insert(f"i-{seconds}"))
    assert [seconds for seconds, code in codes.items() if code] == [2000, 3599, 4599]
    [(limit, usage)] = await engine.ops.quotas("p")
    assert (limit.limit, usage.total) == (2, 2)


async def test_a_result_that_does_not_fit_is_removed_before_anybody_can_see_it(engine: Engine) -> None:
    limited(engine, Metric.IMAGE_GB, 4)
    backend = LargeImages(engine)
    async with engine.working():
        ended = await engine.done(await engine.insert("large"))
    assert code_of(ended) == "QUOTA_EXCEEDED"
    assert backend.made == ["large"]
    assert [str(number) for number in backend.removed] == [ended.target_id]
    assert engine.events_of(ended) == ["Accepted", "Claimed", "Failed"]
    with pytest.raises(NotFound):
        await engine.ops.image("p", "large")
    [(_, usage)] = await engine.ops.quotas("p")
    assert usage.total == 0


@pytest.mark.parametrize("metric", [Metric.STORED_BYTES, Metric.IMAGE_GB])
async def test_a_backend_is_told_what_is_left_and_what_finds_that_too_little_is_refused_by_the_limit(
    engine: Engine, metric: Metric
) -> None:
    limited(engine, metric, 1000)
    async with engine.working():
        first = await engine.insert("first")
        call = await engine.backend.next_call()
        assert isinstance(call.task, InsertTask)
        left = {Metric.STORED_BYTES: call.task.reserved_bytes, Metric.IMAGE_GB: call.task.reserved_gb}
        assert left == {Metric.STORED_BYTES: None, Metric.IMAGE_GB: None} | {metric: 1000}
        call.fail(ReservationExceeded("There is more.", metric))
        refused = await engine.done(first)
    assert code_of(refused) == "QUOTA_EXCEEDED"
    assert refused.error is not None
    quota = refused.error.errors[0].error_details[0].quota_info
    assert quota is not None
    assert (quota.metric_name, quota.limit, refused.http_error_status_code) == (metric, 1000, 403)
    [(_, usage)] = await engine.ops.quotas("p")
    assert usage.total == 0


async def test_what_could_not_be_removed_is_found_and_refused_again_by_the_next_try(engine: Engine) -> None:
    limited(engine, Metric.IMAGE_GB, 4)
    backend = LargeImages(engine, failures=1)
    async with engine.working():
        operation = await engine.insert("large")
        await engine.until(lambda _: "Deferred" in engine.events_of(operation))
        [(_, usage)] = await engine.ops.quotas("p")
        assert usage.reserved == 1
        engine.clock.advance(10)
        # a word of another operation wakes the worker, whose clock stands still otherwise
        await engine.insert("second")
        ended = await engine.done(operation)
    assert code_of(ended) == "QUOTA_EXCEEDED"
    assert [str(number) for number in backend.removed].count(str(ended.target_id)) == 2


async def test_a_machine_image_that_does_not_fit_is_removed_as_one(engine: Engine) -> None:
    limited(engine, Metric.STORED_BYTES, 699)
    backend = LargeImages(engine)
    async with engine.working():
        refused = await engine.done(await insert_machine_image(engine))
        assert code_of(refused) == "QUOTA_EXCEEDED"
        assert ([str(number) for number in backend.removed], backend.made) == ([refused.target_id], ["machine"])
        with pytest.raises(NotFound):
            await engine.ops.machine_image("p", "machine")
        limited(engine, Metric.STORED_BYTES, 700)
        assert code_of(await engine.done(await insert_machine_image(engine))) == ""
    [(_, usage)] = await engine.ops.quotas("p")
    assert (usage.used, usage.reserved) == (700, 0)


async def test_sizes_are_kept_for_limits_to_come_and_settled_only_where_there_is_one(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled = []
    settle = engine.store.settle

    async def noted(claim: Claim, size_gb: int, stored_bytes: int) -> None:
        settled.append((claim.project, size_gb, stored_bytes))
        await settle(claim, size_gb, stored_bytes)

    monkeypatch.setattr(engine.store, "settle", noted)
    LargeImages(engine)
    engine.store.quotas = Quotas([Limit(project="q", metric=Metric.IMAGES, limit=9)])
    async with engine.working():
        await engine.done(await engine.insert("i"))
        await engine.done(await insert_machine_image(engine))
        assert settled == []
        operation = await engine.insert("i", project="q")
        await engine.until(lambda _: "Succeeded" in engine.events_of(operation))
    assert settled == [("q", 5, 700)]
    limited(engine, Metric.STORED_BYTES, 9999)
    [(_, usage)] = await engine.ops.quotas("p")
    assert (usage.used, usage.reserved) == (1400, 0)
