"""The verbs: admission, repeats, sources, waiting."""

from http import HTTPStatus
from typing import Any

import anyio
import pytest
from msgspec.structs import replace
from tests.engine.conftest import Engine

from imageopsd.engine.upkeep import Upkeep
from imageopsd.model.access import LOCAL
from imageopsd.model.errors import (
    AlreadyExists,
    InvalidRequest,
    NotFound,
    PermanentFailure,
    RequestIdReused,
    StoreFull,
    Unavailable,
)
from imageopsd.model.events import Claimed, StoreTroubled
from imageopsd.model.image import DeprecationStatus, ImagePatch
from imageopsd.model.lifecycle import apply
from imageopsd.model.operation import Status
from imageopsd.model.requests import PatchImage

REQUEST_ID = "11111111-2222-3333-4444-555555555555"


async def make(engine: Engine, name: str) -> None:
    operation = await engine.insert(name)
    (await engine.backend.next_call()).succeed()
    await engine.done(operation)


async def test_an_accepted_operation_is_pending_and_complete(engine: Engine) -> None:
    operation = await engine.insert(request_id=REQUEST_ID)
    image = await engine.ops.image("p", "i")
    link = "https://www.googleapis.com/compute/v1/projects/p/global"
    assert operation.status is Status.PENDING
    assert operation.progress == 0
    assert operation.insert_time == engine.clock.now
    assert operation.target_link == f"{link}/images/i"
    assert operation.target_id == str(image.id)
    assert operation.self_link == f"{link}/operations/{operation.name}"
    assert operation.client_operation_id == REQUEST_ID
    assert operation.user == "local"


async def test_a_repeat_gets_the_first_operation_even_when_its_name_is_taken_by_it(engine: Engine) -> None:
    async with engine.working():
        first = await engine.insert(request_id=REQUEST_ID)
        assert (await engine.insert(request_id=REQUEST_ID)).name == first.name
        (await engine.backend.next_call()).succeed()
        done = await engine.done(first)
        assert await engine.insert(request_id=REQUEST_ID) == done
    assert engine.backend.nothing_called()


async def test_after_the_window_a_request_id_is_as_good_as_new(engine: Engine) -> None:
    window = 14 * 86_400
    async with engine.working():
        first = await engine.insert(request_id=REQUEST_ID)
        (await engine.backend.next_call()).succeed()
        done = await engine.done(first)
        engine.clock.advance(window)
        assert await engine.insert(request_id=REQUEST_ID) == done
        engine.clock.advance(1)
        with pytest.raises(AlreadyExists):  # no repeat any more, and the name is taken
            await engine.insert(request_id=REQUEST_ID)
        assert (await engine.insert("other", request_id=REQUEST_ID)).name != first.name


async def test_a_repeated_patch_gets_its_operation_even_when_the_image_is_gone(engine: Engine) -> None:
    request = PatchImage(project="p", request_id=REQUEST_ID, image="i", patch=ImagePatch(family="f"))
    async with engine.working():
        await engine.insert()
        first = await engine.ops.submit(request, by=LOCAL)
        (await engine.backend.next_call()).fail(PermanentFailure("X", "x", HTTPStatus.BAD_REQUEST))
        failed = await engine.done(first)
        assert await engine.ops.submit(request, by=LOCAL) == failed
        with pytest.raises(RequestIdReused):
            await engine.ops.submit(replace(request, patch=ImagePatch(family="g")), by=LOCAL)


@pytest.mark.parametrize("by_name_first", [True, False])
async def test_a_repeat_may_name_its_image_another_way(engine: Engine, by_name_first: bool) -> None:
    async with engine.working():
        await make(engine, "i")
        await make(engine, "j")
        number, other = [str((await engine.ops.image("p", name)).id) for name in ("i", "j")]
        wanted = PatchImage(project="p", request_id=REQUEST_ID, image="i", patch=ImagePatch(family="f"))
        by_id = replace(wanted, image=number)
        first = await engine.ops.submit(wanted if by_name_first else by_id, by=LOCAL)
        for again in (wanted, by_id):
            assert (await engine.ops.submit(again, by=LOCAL)).id == first.id
            for different in (replace(again, patch=ImagePatch(family="g")), replace(again, ignored=("labels",))):
                with pytest.raises(RequestIdReused):
                    await engine.ops.submit(different, by=LOCAL)
        for image in ("j", other):
            with pytest.raises(RequestIdReused):
                await engine.ops.submit(replace(wanted, image=image), by=LOCAL)
        (await engine.backend.next_call()).succeed()
        await engine.done(first)


async def test_a_taken_name_and_a_missing_image_are_refused_at_once(engine: Engine) -> None:
    await engine.insert()
    with pytest.raises(AlreadyExists):
        await engine.insert()
    with pytest.raises(NotFound, match="projects/p/global/images/nowhere"):
        await engine.patch("nowhere", family="f")


async def test_the_source_image_is_pinned_at_admission(engine: Engine) -> None:
    async with engine.working():
        await make(engine, "one")
        one = await engine.ops.image("p", "one")
        patch = await engine.patch("one", family="f")
        (await engine.backend.next_call()).succeed()
        await engine.done(patch)
    await engine.copy("copy", "projects/p/global/images/family/f")
    copy = await engine.ops.image("p", "copy")
    assert (copy.source_image, copy.source_image_id) == (one.self_link, str(one.id))


@pytest.mark.parametrize("state", ["OBSOLETE", "DELETED"])
async def test_an_obsolete_source_image_is_refused(engine: Engine, state: str) -> None:
    async with engine.working():
        await make(engine, "old")
        patch = await engine.patch("old", deprecated=DeprecationStatus(state=state))
        (await engine.backend.next_call()).succeed()
        await engine.done(patch)
    with pytest.raises(InvalidRequest, match=f"The image is {state}") as refused:
        await engine.copy("copy", "global/images/old")
    assert refused.value.field == "resource.sourceImage"


async def test_a_missing_source_image_is_not_found(engine: Engine) -> None:
    with pytest.raises(NotFound, match="projects/q/global/images/x"):
        await engine.copy("copy", "projects/q/global/images/x")


async def test_a_draining_daemon_takes_no_new_work(engine: Engine) -> None:
    engine.ops.draining = True
    with pytest.raises(Unavailable):
        await engine.insert()


async def test_a_wait_ends_with_the_operation_or_at_its_limit(engine: Engine) -> None:
    async with engine.working():
        operation = await engine.insert()
        call = await engine.backend.next_call()
        assert (await engine.ops.wait("p", operation.name, 0)).status is Status.RUNNING
        statuses: list[Status] = []

        async def wait() -> None:
            statuses.append((await engine.ops.wait("p", operation.name, 60)).status)

        with anyio.fail_after(10):
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(wait)
                await anyio.wait_all_tasks_blocked()
                call.succeed()
    assert statuses == [Status.DONE] * 3
    assert engine.bus._waiters == {}


async def test_a_stopping_daemon_answers_who_waits(engine: Engine) -> None:
    operation = await engine.insert()
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(engine.ops.wait, "p", operation.name, 60)
            await anyio.wait_all_tasks_blocked()
            engine.bus.wake_all()


# ------------------------------------------------------------------------------------------------- upkeep


async def upkeep(engine: Engine, *, busy: bool, rounds: int) -> list[str]:
    """What an upkeep does in so many rounds."""
    did: list[str] = []
    enough = anyio.Event()

    async def note(name: str, result: int) -> int:
        did.append(name)
        if len(did) >= rounds:
            enough.set()
        return result

    class Watched:
        def renew(self, *_: Any) -> Any:
            return note("renew", 1)

        def recover(self, *_: Any) -> Any:
            return note("recover", 1)

    keeper = Upkeep(
        Watched(),  # type: ignore[arg-type]
        engine.bus,
        engine.clock,
        owner="boot",
        lease=0,
        busy=lambda: busy,
        renewed=lambda began: None,
        freed=lambda: did.append("freed"),
    )
    async with anyio.create_task_group() as group:
        group.start_soon(keeper.run)
        with anyio.fail_after(10):
            await enough.wait()
        group.cancel_scope.cancel()
    return did


async def test_leases_are_renewed_before_the_claims_of_others_are_looked_at(engine: Engine) -> None:
    assert (await upkeep(engine, busy=True, rounds=3))[:3] == ["renew", "recover", "freed"]


async def test_an_idle_daemon_touches_no_table(engine: Engine) -> None:
    asked: list[str] = []
    enough = anyio.Event()

    def busy() -> bool:
        asked.append("busy?")
        if len(asked) == 3:
            enough.set()
        return False

    keeper = Upkeep(
        object(),  # type: ignore[arg-type]  # any use of the store is an AttributeError
        engine.bus,
        engine.clock,
        owner="boot",
        lease=0,
        busy=busy,
        renewed=lambda began: None,
        freed=lambda: None,
    )
    async with anyio.create_task_group() as group:
        group.start_soon(keeper.run)
        with anyio.fail_after(10):
            await enough.wait()
        group.cancel_scope.cancel()


async def test_a_claim_of_somebody_dead_is_taken_by_a_living_worker(engine: Engine) -> None:
    operation = await engine.insert()
    now = engine.clock.now
    await engine.store.claim("dead", 1, now, now, lambda before: apply(before, Claimed(), now))
    engine.clock.advance(1)
    async with engine.working() as worker:
        keeper = Upkeep(
            engine.through,
            engine.bus,
            engine.clock,
            owner="boot",
            lease=0.03,
            busy=lambda: True,
            renewed=worker.renewed,
            freed=worker.look,
        )
        async with anyio.create_task_group() as group:
            group.start_soon(keeper.run)
            call = await engine.backend.next_call()
            group.cancel_scope.cancel()
        call.succeed()
        await engine.done(operation)


async def test_a_full_disk_does_not_end_the_worker(engine: Engine) -> None:
    real, tries = engine.store.claim, 0

    async def claim(*arguments: Any, **options: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries == 1:
            raise StoreFull("no space left")
        return await real(*arguments, **options)

    engine.store.claim = claim  # type: ignore[method-assign]
    async with engine.working() as worker:
        operation = await engine.insert()
        await engine.until(lambda h: any(isinstance(x, StoreTroubled) for x in h))
        worker.look()
        (await engine.backend.next_call()).succeed()
        await engine.done(operation)
