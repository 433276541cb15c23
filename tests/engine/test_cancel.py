"""The end before the effect: cancelled by a caller or a deadline, in every state, and what the record says of it."""

from datetime import datetime
from http import HTTPStatus
from itertools import count
from typing import Any

import anyio
import pytest
from tests.engine.conftest import EXACT, Engine

from imageopsd.model.access import LOCAL, Caller, Scope
from imageopsd.model.errors import NotFound, NotRepeatable, PermanentFailure, StoreBusy, TemporaryFailure
from imageopsd.model.events import Cancelled, Reason
from imageopsd.model.image import Image, ImageStatus, RawDisk
from imageopsd.model.operation import Operation, Status
from imageopsd.model.quota import Limit, Metric, Quotas
from imageopsd.model.requests import DeleteImage, InsertImage
from imageopsd.ports import Claim, DeleteTask

ANN = Cancelled(Reason.USER, by="ann")
BEA = Caller("bea", Scope.SUBMIT.implied, frozenset({"p"}))
BUSY = TemporaryFailure("SOURCE_UNAVAILABLE", "The source answered 503.")


def said(operation: Operation) -> tuple[str, int | None, str | None]:
    assert operation.error is not None
    return operation.error.errors[0].code, operation.http_error_status_code, operation.error.errors[0].message


BY_ANN = ("CANCELLED", 499, "The operation was cancelled by ann.")


async def made(engine: Engine) -> None:
    operation = await engine.insert()
    (await engine.backend.next_call()).succeed()
    await engine.done(operation)


async def test_a_pending_operation_ends_at_once_and_its_image_never_was(engine: Engine) -> None:
    operation = await engine.insert()
    ended = await engine.ops.cancel("p", operation.name, ANN)
    assert (ended.status, ended.progress, ended.start_time) == (Status.DONE, 100, None)
    assert said(ended) == BY_ANN
    with pytest.raises(NotFound):
        await engine.ops.image("p", "i")
    async with engine.working():
        await made(engine)  # the name is free, and nothing of the other is carried out
    assert engine.backend.nothing_called()


async def test_a_running_insert_is_stopped_and_ends_as_cancelled(engine: Engine) -> None:
    async with engine.working():
        operation = await engine.insert()
        call = await engine.backend.next_call()
        asked = await engine.ops.cancel("p", operation.name, ANN)
        assert asked.status is Status.RUNNING
        ended = await engine.done(operation)
    assert call.cancelled
    assert said(ended) == BY_ANN
    with pytest.raises(NotFound):
        await engine.ops.image("p", "i")


async def test_an_effect_that_won_the_race_is_told_as_it_is(engine: Engine) -> None:
    async with engine.working():
        operation = await engine.insert()
        (await engine.backend.next_call()).succeed()
        await engine.ops.cancel("p", operation.name, ANN)
        ended = await engine.done(operation)
    if ended.error is None:
        assert (await engine.ops.image("p", "i")).status is ImageStatus.READY
    else:
        assert said(ended) == BY_ANN


async def test_what_is_backing_off_ends_at_once(engine: Engine) -> None:
    async with engine.working():
        operation = await engine.insert()
        (await engine.backend.next_call()).fail(BUSY)
        await engine.until(lambda _: "Deferred" in engine.events_of(operation))
        ended = await engine.ops.cancel("p", operation.name, ANN)
        assert said(ended) == BY_ANN
        engine.clock.advance(1000)
        await made(engine)


async def test_a_delete_that_has_begun_goes_on_to_its_end(engine: Engine) -> None:
    async with engine.working():
        await made(engine)
        operation = await engine.ops.submit(DeleteImage(project="p", image="i"), by=LOCAL)
        call = await engine.backend.next_call()
        await engine.ops.cancel("p", operation.name, ANN)
        assert not call.cancelled
        call.succeed()
        ended = await engine.done(operation)
    assert ended.error is None
    with pytest.raises(NotFound):
        await engine.ops.image("p", "i")


async def test_a_cancelled_delete_that_fails_is_not_tried_again(engine: Engine) -> None:
    async with engine.working():
        await made(engine)
        operation = await engine.ops.submit(DeleteImage(project="p", image="i"), by=LOCAL)
        call = await engine.backend.next_call()
        await engine.ops.cancel("p", operation.name, ANN)
        call.fail(BUSY)
        ended = await engine.done(operation)
    assert said(ended) == BY_ANN
    assert (await engine.ops.image("p", "i")).status is ImageStatus.READY


async def begun(engine: Engine) -> Operation:
    """A delete whose backend has been called."""
    await made(engine)
    operation: Operation = await engine.ops.submit(DeleteImage(project="p", image="i"), by=LOCAL)
    return operation


async def test_a_change_that_is_backing_off_ends_at_once_and_is_not_tried_again(engine: Engine) -> None:
    async with engine.working():
        operation = await begun(engine)
        (await engine.backend.next_call()).fail(BUSY)
        await engine.until(lambda _: "Deferred" in engine.events_of(operation))
        ended = await engine.ops.cancel("p", operation.name, ANN)
        assert said(ended) == BY_ANN
        engine.clock.advance(1000)
        assert (await engine.ops.image("p", "i")).status is ImageStatus.READY
    assert engine.backend.nothing_called()


@EXACT
async def test_a_cancel_that_comes_while_a_failure_is_written_does_not_wait_for_the_next_try(engine: Engine) -> None:
    real = engine.store.defer

    async def late(claim: Claim, operation: Operation, until: datetime, *, doubtful: bool) -> None:
        await engine.ops.cancel("p", operation.name, ANN)
        await real(claim, operation, until, doubtful=doubtful)

    engine.store.defer = late
    async with engine.working():
        operation = await engine.insert()
        (await engine.backend.next_call()).fail(BUSY)
        assert said(await engine.done(operation)) == BY_ANN
    assert engine.backend.nothing_called()


async def test_a_cancelled_delete_that_a_stop_interrupts_is_told_by_what_became_of_it(engine: Engine) -> None:
    """Whether it was made, nobody knows at that moment: the next process finds out."""
    async with engine.working():
        operation = await begun(engine)
        call = await engine.backend.next_call()
        await engine.ops.cancel("p", operation.name, ANN)
    assert call.cancelled
    assert (await engine.ops.operation("p", operation.name)).status is Status.RUNNING
    await engine.store.enter("next", engine.clock.now)
    async with engine.working():
        (await engine.backend.next_call()).succeed()
        assert (await engine.done(operation)).error is None


@EXACT
async def test_what_is_deleted_while_its_end_is_asked_for_is_not_found(engine: Engine) -> None:
    operation = await engine.insert()
    await engine.ops.cancel("p", operation.name, ANN)
    real = engine.store.operation

    async def slow(project: str | None, reference: str) -> Operation:
        found = await real(project, reference)
        engine.store.operation = real
        await engine.store.delete_operation("p", operation.name)
        return found

    engine.store.operation = slow
    with pytest.raises(NotFound):
        await engine.ops.cancel("p", operation.name, ANN)
    await engine.insert("next")  # the store goes on


async def test_a_cancel_while_draining_ends_what_would_have_been_taken_up_again(engine: Engine) -> None:
    async with engine.working() as worker:
        operation = await engine.insert()
        await engine.backend.next_call()
        async with anyio.create_task_group() as draining:
            draining.start_soon(worker.drain, 60)
            await engine.ops.cancel("p", operation.name, ANN)
    assert said(await engine.ops.operation("p", operation.name)) == BY_ANN


async def test_an_interruption_is_not_an_end_and_a_cancel_after_it_is(engine: Engine) -> None:
    async with engine.working():
        operation = await engine.insert()
        await engine.backend.next_call()
    await engine.store.enter("next", engine.clock.now)  # frees it, should the last one have had no time to
    interrupted = await engine.ops.operation("p", operation.name)
    assert (interrupted.status, interrupted.error) == (Status.RUNNING, None)
    assert said(await engine.ops.cancel("p", operation.name, ANN)) == BY_ANN


async def test_what_a_dead_process_had_in_hand_ends_at_its_next_claim(engine: Engine) -> None:
    operation = await engine.insert()
    await engine.store.claim("dead", 1, engine.clock.now, engine.clock.now, lambda before: before)
    await engine.ops.cancel("p", operation.name, ANN)
    await engine.store.enter("boot", engine.clock.now)
    async with engine.working():
        removal = await engine.backend.next_call()  # of what the dead process may have made
        assert isinstance(removal.task, DeleteTask)
        removal.succeed()
        assert said(await engine.done(operation)) == BY_ANN
    assert engine.backend.nothing_called()


async def begun_by_the_dead(engine: Engine) -> Operation:
    """An insert that a process had in hand as it died."""
    operation = await engine.insert()
    await engine.store.claim("dead", 1, engine.clock.now, engine.clock.now, lambda before: before)
    await engine.store.enter("boot", engine.clock.now)
    return operation


async def cancelled_after_a_death(engine: Engine) -> Operation:
    operation = await begun_by_the_dead(engine)
    await engine.ops.cancel("p", operation.name, ANN)
    return operation


async def test_what_a_dead_process_had_in_hand_is_removed_before_a_later_cancel_ends_it(engine: Engine) -> None:
    operation = await cancelled_after_a_death(engine)
    async with engine.working():
        (await engine.backend.next_call()).succeed()
        assert said(await engine.done(operation)) == BY_ANN
    with pytest.raises(NotFound):
        await engine.ops.image("p", "i")


async def test_asking_again_does_not_interrupt_such_a_removal(engine: Engine) -> None:
    operation = await cancelled_after_a_death(engine)
    async with engine.working():
        removal = await engine.backend.next_call()
        await engine.ops.cancel("p", operation.name, ANN)
        removal.succeed()
        assert said(await engine.done(operation)) == BY_ANN
    assert not removal.cancelled


async def test_a_stop_in_the_middle_of_such_a_removal_leaves_it_to_the_next_process(engine: Engine) -> None:
    operation = await cancelled_after_a_death(engine)
    async with engine.working():
        await engine.backend.next_call()
    assert (await engine.ops.operation("p", operation.name)).status is not Status.DONE
    await engine.store.enter("next", engine.clock.now)
    async with engine.working():
        (await engine.backend.next_call()).succeed()
        assert said(await engine.done(operation)) == BY_ANN


async def removed(engine: Engine) -> None:
    removal = await engine.backend.next_call()
    assert isinstance(removal.task, DeleteTask)
    removal.succeed()


async def test_it_is_removed_as_well_if_it_was_taken_up_again_before_somebody_cancels(engine: Engine) -> None:
    operation = await begun_by_the_dead(engine)
    async with engine.working():
        again = await engine.backend.next_call()
        await engine.ops.cancel("p", operation.name, ANN)
        await removed(engine)
        assert said(await engine.done(operation)) == BY_ANN
    assert again.cancelled
    assert engine.backend.nothing_called()


async def test_it_is_removed_as_well_after_its_next_try_failed(engine: Engine) -> None:
    operation = await begun_by_the_dead(engine)
    async with engine.working():
        (await engine.backend.next_call()).fail(BUSY)
        await engine.until(lambda _: "Deferred" in engine.events_of(operation))
        await engine.ops.cancel("p", operation.name, ANN)
        await removed(engine)
        assert said(await engine.done(operation)) == BY_ANN


async def test_it_is_removed_before_a_failure_ends_the_operation(engine: Engine) -> None:
    operation = await begun_by_the_dead(engine)
    async with engine.working():
        (await engine.backend.next_call()).fail(PermanentFailure("NO_WAY", "It cannot be.", HTTPStatus.BAD_REQUEST))
        await removed(engine)
        assert said(await engine.done(operation)) == ("NO_WAY", 400, "It cannot be.")


async def test_a_removal_that_fails_for_now_is_tried_again_before_the_operation_ends(engine: Engine) -> None:
    operation = await cancelled_after_a_death(engine)
    async with engine.working():
        (await engine.backend.next_call()).fail(BUSY)
        await engine.until(lambda _: "Deferred" in engine.events_of(operation))
        assert engine.backend.nothing_called()  # it waits as any other try
        engine.clock.advance(1000)
        await removed(engine)
        assert said(await engine.done(operation)) == BY_ANN


@pytest.mark.parametrize("trouble", [StoreBusy("the disk is full"), None], ids=["a full disk", "a cancel"])
@EXACT
async def test_what_was_made_and_could_not_be_recorded_is_removed_before_a_cancel_ends_it(
    engine: Engine, trouble: StoreBusy | None
) -> None:
    engine.store.quotas = Quotas([Limit(project="*", metric=Metric.IMAGE_GB, limit=100)])
    await engine.store.limit(engine.store.quotas)
    real, settling = engine.store.settle, anyio.Event()

    async def interrupted(*_: object) -> None:
        settling.set()
        if trouble is None:
            await anyio.sleep_forever()
        raise trouble

    engine.store.settle = interrupted
    async with engine.working():
        operation = await engine.insert()
        (await engine.backend.next_call()).succeed()
        await settling.wait()
        if trouble is not None:
            await engine.backend.next_call()  # the next try
        await engine.ops.cancel("p", operation.name, ANN)
        await removed(engine)
        assert said(await engine.done(operation)) == BY_ANN
    engine.store.settle = real


async def test_cancelling_twice_or_too_late_changes_nothing(engine: Engine) -> None:
    operation = await engine.insert()
    first = await engine.ops.cancel("p", operation.name, ANN)
    assert await engine.ops.cancel("p", operation.name, Cancelled(Reason.USER, by="bob")) == first


# ---------------------------------------------------------------------------------------------- deadlines


async def hurried(engine: Engine, seconds: float, name: str = "i") -> Operation:
    image = Image(name=name, raw_disk=RawDisk(source="https://h/i.tar.gz"))
    return await engine.ops.submit(InsertImage(project="p", image=image, deadline=seconds), by=LOCAL)


@pytest.mark.parametrize("running", [False, True])
async def test_a_deadline_ends_an_operation_with_a_reason_of_its_own(engine: Engine, running: bool) -> None:
    async with engine.working(slots=1), engine.deadlines():
        if not running:
            await engine.insert("other")
            await engine.backend.next_call()
        operation = await hurried(engine, 0.05)
        if running:
            await engine.backend.next_call()
        engine.clock.advance(1)  # the timer sleeps in real time and then looks at this clock
        ended = await engine.done(operation)
    assert said(ended) == ("DEADLINE_EXCEEDED", 504, "The operation did not end within the time its caller gave it.")


async def test_a_deadline_that_passed_while_nobody_looked_counts_at_once(engine: Engine) -> None:
    operation = await hurried(engine, 5)
    engine.clock.advance(10)
    async with engine.deadlines():
        ended = await engine.done(operation)
    assert said(ended)[0] == "DEADLINE_EXCEEDED"


@pytest.mark.parametrize("look", ["next_deadline", "overdue"])
async def test_a_look_for_deadlines_that_fails_is_made_again(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, look: str
) -> None:
    real, looks = getattr(engine.store, look), count(1)

    async def fails_at_first(*arguments: Any) -> Any:
        if next(looks) == 1:
            raise StoreBusy("the database is locked")
        return await real(*arguments)

    monkeypatch.setattr(engine.store, look, fails_at_first)
    operation = await hurried(engine, 5)
    engine.clock.advance(10)
    async with engine.deadlines():
        assert said(await engine.done(operation))[0] == "DEADLINE_EXCEEDED"


# --------------------------------------------------------------------------------------------- doing again


async def test_a_failed_operation_is_done_again_as_a_new_one_linked_to_it(engine: Engine) -> None:
    async with engine.working():
        first = await engine.insert()
        (await engine.backend.next_call()).fail(PermanentFailure("X", "x", HTTPStatus.BAD_REQUEST))
        failed = await engine.done(first)
        second = await engine.ops.retry("p", first.name, request_id=None, by=BEA)
        (await engine.backend.next_call()).fail(PermanentFailure("X", "x", HTTPStatus.BAD_REQUEST))
        await engine.done(second)
        third = await engine.ops.retry("p", second.name, request_id=None, by=BEA)
        (await engine.backend.next_call()).succeed()
        assert (await engine.done(third)).error is None
    assert (second.description, third.description) == (f"Repeats {first.name}", f"Repeats {second.name}")
    assert second.operation_group_id == third.operation_group_id is not None
    assert second.user == "bea"
    assert await engine.ops.operation("p", first.name) == failed  # what is DONE never changes


async def test_only_what_failed_is_done_again(engine: Engine) -> None:
    async with engine.working():
        operation = await engine.insert()
        with pytest.raises(NotRepeatable, match=r"is (PENDING|RUNNING)"):
            await engine.ops.retry("p", operation.name, request_id=None, by=BEA)
        (await engine.backend.next_call()).succeed()
        await engine.done(operation)
        with pytest.raises(NotRepeatable, match="succeeded"):
            await engine.ops.retry("p", operation.name, request_id=None, by=BEA)
