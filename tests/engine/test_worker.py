"""The worker: one claimed operation from RUNNING to DONE, whatever the backend, the clock or a stop do to it."""

from http import HTTPStatus

import anyio
import pytest
from tests.engine.conftest import EXACT, Engine

from imageopsd.model.access import LOCAL
from imageopsd.model.errors import (
    BackendFailure,
    NoRoom,
    NotFound,
    PermanentFailure,
    QuotaExceeded,
    StoreFull,
    TemporaryFailure,
)
from imageopsd.model.events import (
    BackendCrashed,
    BytesReceived,
    Cancelled,
    Change,
    Deferred,
    LeaseWasLost,
    Postponed,
    Progressed,
    Reason,
)
from imageopsd.model.image import ImageStatus
from imageopsd.model.operation import OperationWarning, QuotaInfo, Status
from imageopsd.model.requests import DeleteImage
from imageopsd.model.retry import RetryPolicy

BUSY = TemporaryFailure("STORAGE_ERROR", "The disk could not be read.")
BAD = PermanentFailure("INVALID_IMAGE_TAR", "The tar archive is not a valid image.", HTTPStatus.BAD_REQUEST)


async def test_an_insert_runs_and_its_image_appears_with_its_end(engine: Engine) -> None:
    async with engine.working():
        operation = await engine.insert()
        call = await engine.backend.next_call()
        assert (await engine.ops.operation("p", operation.name)).status is Status.RUNNING
        assert (await engine.ops.image("p", "i")).status is ImageStatus.PENDING
        call.succeed()
        done = await engine.done(operation)
    assert (done.progress, done.error, done.end_time) == (100, None, engine.clock.now)
    image = await engine.ops.image("p", "i")
    assert (image.status, image.disk_size_gb, image.archive_size_bytes) == (ImageStatus.READY, 1, 100)
    assert done.target_id == str(image.id)
    assert engine.events_of(operation) == ["Accepted", "Claimed", "Succeeded"]


async def test_a_permanent_failure_ends_the_operation_and_takes_the_image_away(engine: Engine) -> None:
    async with engine.working():
        operation = await engine.insert()
        (await engine.backend.next_call()).fail(BAD)
        done = await engine.done(operation)
    assert done.error is not None
    assert [(e.code, e.message) for e in done.error.errors] == [("INVALID_IMAGE_TAR", BAD.entry.message)]
    assert (done.http_error_status_code, done.http_error_message) == (400, "BAD REQUEST")
    with pytest.raises(NotFound):
        await engine.ops.image("p", "i")


async def test_a_quota_failure_carries_its_quota_info(engine: Engine) -> None:
    quota = QuotaInfo(metric_name="compute.googleapis.com/images", limit_name="IMAGES", limit=10)
    async with engine.working():
        operation = await engine.insert()
        (await engine.backend.next_call()).fail(QuotaExceeded("Quota 'IMAGES' exceeded.", quota))
        done = await engine.done(operation)
    assert done.error is not None
    (entry,) = done.error.errors
    assert (entry.code, entry.error_details[0].quota_info) == ("QUOTA_EXCEEDED", quota)
    assert (done.http_error_status_code, done.http_error_message) == (403, "FORBIDDEN")


async def test_a_patch_gets_the_image_before_and_after_and_changes_the_catalogue(engine: Engine) -> None:
    async with engine.working():
        insert = await engine.insert()
        (await engine.backend.next_call()).succeed()
        await engine.done(insert)
        before = await engine.ops.image("p", "i")
        operation = await engine.patch(family="f")
        call = await engine.backend.next_call()
        assert (call.task.before, call.task.after.family) == (before, "f")
        assert (await engine.ops.image("p", "i")).family is None
        call.succeed()
        await engine.done(operation)
    assert (await engine.ops.image("p", "i")).family == "f"


async def test_a_patch_waits_for_the_insert_before_it(engine: Engine) -> None:
    async with engine.working():
        await engine.insert()
        patch = await engine.patch(family="f")
        insert = await engine.backend.next_call()
        await anyio.wait_all_tasks_blocked()
        assert engine.backend.nothing_called()
        assert (await engine.ops.operation("p", patch.name)).status is Status.PENDING
        insert.succeed()
        (await engine.backend.next_call()).succeed()
        await engine.done(patch)


async def test_a_patch_behind_a_failed_insert_fails_with_not_found(engine: Engine) -> None:
    async with engine.working():
        await engine.insert()
        patch = await engine.patch(family="f")
        (await engine.backend.next_call()).fail(BAD)
        done = await engine.done(patch)
    assert done.error is not None
    assert done.error.errors[0].message == "The resource 'projects/p/global/images/i' was not found"
    assert done.http_error_status_code == 404


async def test_slots_limit_how_many_run_at_once(engine: Engine) -> None:
    async with engine.working(slots=2) as worker:
        operations = [await engine.insert(f"i-{n}") for n in range(3)]
        first, second = await engine.backend.next_call(), await engine.backend.next_call()
        await anyio.wait_all_tasks_blocked()
        assert (engine.backend.nothing_called(), worker.running) == (True, 2)
        first.succeed()
        third = await engine.backend.next_call()
        second.succeed()
        third.succeed()
        for operation in operations:
            await engine.done(operation)


# ------------------------------------------------------------------------------------------------ retries


async def test_a_temporary_failure_is_tried_again_when_its_time_comes(engine: Engine) -> None:
    async with engine.working() as worker:
        operation = await engine.insert()
        (await engine.backend.next_call()).fail(TemporaryFailure("SOURCE_UNAVAILABLE", "The source answered 503."))
        await engine.until(lambda happened: any(isinstance(getattr(h, "event", None), Deferred) for h in happened))
        waiting = await engine.ops.operation("p", operation.name)
        assert waiting.status is Status.RUNNING
        assert [warning.code for warning in waiting.warnings] == ["NOT_CRITICAL_ERROR"]
        await anyio.wait_all_tasks_blocked()
        assert engine.backend.nothing_called()
        engine.clock.advance(5)
        worker.look()
        (await engine.backend.next_call()).succeed()
        done = await engine.done(operation)
    assert done.error is None
    assert len(done.warnings) == 1
    assert engine.events_of(operation) == ["Accepted", "Claimed", "Deferred", "Claimed", "Succeeded"]


async def test_the_timer_of_a_deferred_operation_wakes_the_worker_by_itself(engine: Engine) -> None:
    async with engine.working() as worker:
        worker.retry = RetryPolicy(attempts=3, base=0, cap=0)
        operation = await engine.insert()
        (await engine.backend.next_call()).fail(TemporaryFailure("SOURCE_UNAVAILABLE", "again"))
        (await engine.backend.next_call()).succeed()
        await engine.done(operation)


async def test_after_the_last_attempt_a_temporary_failure_is_the_end(engine: Engine) -> None:
    async with engine.working(attempts=2) as worker:
        operation = await engine.insert()
        for _ in range(2):
            (await engine.backend.next_call()).fail(TemporaryFailure("SOURCE_UNAVAILABLE", "The source answered 503."))
            await engine.until(lambda h: len(engine.events_of(operation)) % 2 == 1)
            engine.clock.advance(10)
            worker.look()
        done = await engine.done(operation)
    assert done.error is not None
    assert done.error.errors[0].code == "SOURCE_UNAVAILABLE"
    assert (done.http_error_status_code, len(done.warnings)) == (503, 1)


def reasons(engine: Engine) -> list[str]:
    """Why anything was postponed."""
    changes = [happening.event for happening in engine.happened if isinstance(happening, Change)]
    return [event.reason for event in changes if isinstance(event, Postponed)]


FULL = NoRoom("The disk is full.")


@EXACT
async def test_what_there_is_no_room_for_waits_and_says_so_and_that_is_no_attempt(engine: Engine) -> None:
    async with engine.working(attempts=1) as worker:
        operation = await engine.insert()
        for rounds in range(1, 4):
            (await engine.backend.next_call()).fail(FULL)
            await engine.until(lambda h, n=rounds: engine.events_of(operation).count("Postponed") == n)
            waiting = await engine.ops.operation("p", operation.name)
            assert (waiting.status, waiting.error) == (Status.RUNNING, None)
            assert waiting.status_message == "The disk is full. It is tried again when there is."
            await anyio.wait_all_tasks_blocked()
            assert engine.backend.nothing_called()
            engine.clock.advance(10)
            worker.look()
        (await engine.backend.next_call()).succeed()
        done = await engine.done(operation)
    assert done.error is None


async def test_what_waited_for_room_too_long_ends_with_that_as_its_error(engine: Engine) -> None:
    async with engine.working() as worker:
        worker.retry = RetryPolicy(attempts=3, base=10, cap=10, patience=15)
        operation = await engine.insert()
        for rounds in range(1, 3):
            (await engine.backend.next_call()).fail(FULL)
            await engine.until(lambda h, n=rounds: len(engine.events_of(operation)) == 1 + 2 * n)
            engine.clock.advance(10)
            worker.look()
        done = await engine.done(operation)
    assert done.error is not None
    assert (done.error.errors[0].code, done.http_error_status_code) == ("INSUFFICIENT_STORAGE", 507)


async def test_a_source_image_that_is_not_ready_is_waited_for(engine: Engine) -> None:
    async with engine.working(attempts=1) as worker:
        source = await engine.insert("source")
        source_call = await engine.backend.next_call()
        copy = await engine.copy("copy", "global/images/source")
        reason = "Waiting for 'projects/p/global/images/source', which is PENDING"
        for rounds in range(1, 4):
            await engine.until(lambda _, n=rounds: reasons(engine).count(reason) == n)
            waiting = await engine.ops.operation("p", copy.name)
            assert waiting.status_message == reason
            assert waiting.warnings == ()
            engine.clock.advance(1)
            worker.look()
        source_call.succeed()
        await engine.done(source)
        engine.clock.advance(1)
        worker.look()
        call = await engine.backend.next_call()
        assert call.task.source == await engine.ops.image("p", "source")
        call.succeed()
        await engine.done(copy)


async def test_a_copy_of_what_never_came_to_be_fails_at_once(engine: Engine) -> None:
    async with engine.working() as worker:
        await engine.insert("source")
        source_call = await engine.backend.next_call()
        copy = await engine.copy("copy", "global/images/source")
        await engine.until(lambda _: any("which is PENDING" in reason for reason in reasons(engine)))
        source_call.fail(BAD)
        await engine.until(lambda h: any(isinstance(x, Change) and x.operation.error for x in h))
        engine.clock.advance(1)
        worker.look()
        done = await engine.done(copy)
    assert done.http_error_status_code == 404


async def test_a_copy_of_what_was_lost_meanwhile_fails_at_once(engine: Engine) -> None:
    async with engine.working() as worker:
        source = await engine.insert("source")
        source_call = await engine.backend.next_call()
        copy = await engine.copy("copy", "global/images/source")
        await engine.until(lambda _: any("which is PENDING" in reason for reason in reasons(engine)))
        source_call.succeed()
        await engine.done(source)
        assert await engine.store.lose(int((await engine.ops.image("p", "source")).id or 0))
        engine.clock.advance(1)
        worker.look()
        done = await engine.done(copy)
    assert done.error is not None
    assert (done.error.errors[0].code, done.http_error_status_code) == ("INVALID_FIELD_VALUE", 400)


@pytest.mark.parametrize("failure", [BAD, BUSY], ids=["for good", "for now, then cancelled"])
async def test_a_delete_that_fails_does_not_heal_what_was_lost(engine: Engine, failure: BackendFailure) -> None:
    async with engine.working() as worker:
        source = await engine.insert("source")
        (await engine.backend.next_call()).succeed()
        await engine.done(source)
        await engine.store.lose(int((await engine.ops.image("p", "source")).id or 0))
        removal = await engine.ops.submit(DeleteImage(project="p", image="source"), by=LOCAL)
        (await engine.backend.next_call()).fail(failure)
        if failure is BUSY:
            await engine.until(lambda _: "Deferred" in engine.events_of(removal))
            engine.clock.advance(1000)
            worker.look()
            (await engine.backend.next_call()).fail(failure)
            await engine.until(lambda _: engine.events_of(removal).count("Deferred") == 2)
            await engine.ops.cancel("p", removal.name, Cancelled(Reason.USER, by="ann"))
        await engine.done(removal)
    assert (await engine.ops.image("p", "source")).status is ImageStatus.FAILED


async def test_a_record_that_breaks_our_own_rules_ends_alone(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    async with engine.working() as worker:
        monkeypatch.setattr(worker.retry.__class__, "next_try", lambda *_: 1 / 0)
        broken, good = await engine.insert("broken"), await engine.insert("good")
        first, second = await engine.backend.next_call(), await engine.backend.next_call()
        first.fail(TemporaryFailure("SOURCE_UNAVAILABLE", "again"))
        ended = await engine.done(broken)
        assert ended.error is not None
        assert ended.error.errors[0].code == "INTERNAL_ERROR"
        second.succeed()
        assert (await engine.done(good)).error is None


async def test_a_checkpoint_that_finds_the_disk_full_is_no_attempt_and_not_the_end(engine: Engine) -> None:
    async with engine.working(attempts=1) as worker:
        operation = await engine.insert()
        (await engine.backend.next_call()).fail(StoreFull("no space left"))
        await engine.until(lambda h: "Postponed" in engine.events_of(operation))
        engine.clock.advance(10)
        worker.look()
        (await engine.backend.next_call()).succeed()
        assert (await engine.done(operation)).error is None


async def test_a_backend_that_breaks_its_promise_fails_the_operation_and_not_the_worker(engine: Engine) -> None:
    async with engine.working():
        operation = await engine.insert()
        (await engine.backend.next_call()).fail(ZeroDivisionError("secret details"))
        done = await engine.done(operation)
        assert done.error is not None
        assert done.error.errors[0].code == "INTERNAL_ERROR"
        assert "secret" not in done.error.errors[0].message
        assert any(isinstance(h, BackendCrashed) for h in engine.happened)
        again = await engine.insert()
        (await engine.backend.next_call()).succeed()
        await engine.done(again)


# ----------------------------------------------------------------------------------------------- reporting


async def test_progress_and_warnings_reach_the_record_and_then_the_listeners(engine: Engine) -> None:
    async with engine.working():
        operation = await engine.insert()
        call = await engine.backend.next_call()
        call.report.progress(40, "half way")
        call.report.progress(30)
        call.report.warn(OperationWarning.of("FIELD_VALUE_OVERRIDEN", "padded"))
        call.report.transferred(4096)
        await engine.until(lambda happened: any(isinstance(getattr(h, "event", None), Progressed) for h in happened))
        record = await engine.ops.operation("p", operation.name)
        assert (record.progress, record.status_message) == (40, "half way")
        assert [warning.code for warning in record.warnings] == ["FIELD_VALUE_OVERRIDEN"]
        assert BytesReceived(4096) in engine.happened
        call.succeed()
        done = await engine.done(operation)
    assert [warning.code for warning in done.warnings] == ["FIELD_VALUE_OVERRIDEN"]
    assert done.status_message is None


async def test_what_a_backend_reports_just_before_its_end_is_on_the_record(engine: Engine) -> None:
    async with engine.working():
        operation = await engine.insert()
        call = await engine.backend.next_call()
        call.report.warn(OperationWarning.of("FIELD_VALUE_OVERRIDEN", "padded"))
        call.succeed()
        done = await engine.done(operation)
    assert [warning.code for warning in done.warnings] == ["FIELD_VALUE_OVERRIDEN"]


# ----------------------------------------------------------------------------------- stops and lost leases


async def test_a_drain_lets_what_runs_end_and_claims_nothing_more(engine: Engine) -> None:
    async with engine.working(slots=1) as worker, anyio.create_task_group() as group:
        first, second = await engine.insert("a"), await engine.insert("b")
        call = await engine.backend.next_call()
        group.start_soon(worker.drain, 60)
        await anyio.wait_all_tasks_blocked()
        call.succeed()
        await engine.done(first)
    assert (await engine.ops.operation("p", second.name)).status is Status.PENDING
    assert engine.backend.nothing_called()


@EXACT
async def test_an_interrupted_operation_is_released_and_its_attempt_given_back(engine: Engine) -> None:
    async with engine.working():
        operation = await engine.insert()
        call = await engine.backend.next_call()
    assert call.cancelled
    record = await engine.ops.operation("p", operation.name)
    assert record.status is Status.RUNNING
    assert record.status_message == "Interrupted: the daemon is shutting down; it will be taken up again"
    assert engine.events_of(operation) == ["Accepted", "Claimed", "Interrupted"]
    async with engine.working(attempts=1):
        (await engine.backend.next_call()).succeed()
        assert (await engine.done(operation)).error is None


async def test_a_worker_that_lost_its_lease_stops_and_writes_nothing(engine: Engine) -> None:
    async with engine.working():
        operation = await engine.insert()
        call = await engine.backend.next_call()
        engine.clock.advance(31)
        assert await engine.store.recover(engine.clock.now) == 1
        call.report.progress(10)
        await engine.until(lambda happened: LeaseWasLost(operation.name) in happened)
        assert call.cancelled
        again = await engine.backend.next_call()
        again.succeed()
        done = await engine.done(operation)
    assert done.error is None
    assert engine.events_of(operation).count("Succeeded") == 1


async def test_a_stale_workers_result_is_refused(engine: Engine) -> None:
    async with engine.working():
        operation = await engine.insert()
        call = await engine.backend.next_call()
        engine.clock.advance(31)
        await engine.store.recover(engine.clock.now)
        call.fail(BAD)
        await engine.until(lambda happened: LeaseWasLost(operation.name) in happened)
        (await engine.backend.next_call()).succeed()
        assert (await engine.done(operation)).error is None


async def test_nothing_is_left_running_after_the_worker(engine: Engine) -> None:
    before = len(anyio.get_running_tasks())
    async with engine.working():
        await engine.insert()
        await engine.backend.next_call()
    assert len(anyio.get_running_tasks()) == before


async def test_after_a_restart_each_deferred_operation_is_taken_up_at_its_own_time(engine: Engine) -> None:
    operations = []
    async with engine.working():
        for name in ("a", "b", "c"):
            operations.append(await engine.insert(name))
            (await engine.backend.next_call()).fail(TemporaryFailure("BUSY", "The source is busy."))
            await engine.until(lambda _: "Deferred" in engine.events_of(operations[-1]))
            engine.clock.advance(0.02)
    engine.clock.advance(5 - 3 * 0.02)  # the first is due
    async with engine.working():
        calls = []
        for _ in operations:  # the timer sleeps in real time and then looks at this clock
            calls.append(await engine.backend.next_call())
            engine.clock.advance(0.02)
        for call in calls:
            call.succeed()
        for operation in operations:
            await engine.done(operation)
