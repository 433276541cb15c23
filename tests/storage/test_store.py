"""What every store promises (`ports.Store`), on every database."""

from datetime import timedelta

import anyio
import pytest
from msgspec.structs import replace
from tests.storage.records import LEASE, NOW, accept, claim, operation, request

from imageopsd.model.errors import AlreadyExists, InvalidRequest, LeaseLost, NotFinished, NotFound, RequestIdReused
from imageopsd.model.events import Deferred, Failed, Interrupted, Progressed, Succeeded
from imageopsd.model.image import DeprecationStatus, ImageFacts, ImageStatus, published
from imageopsd.model.lifecycle import apply
from imageopsd.model.operation import ErrorEntry, Operation, Status
from imageopsd.ports import Claim, Forget, Page, Publish, Store, Totals

REQUEST_ID = "11111111-2222-3333-4444-555555555555"
ENTRY = ErrorEntry(code="X", message="x")


async def finish(store: Store, held: Claim) -> Operation:
    done = apply(held.operation, Succeeded(), NOW)
    await store.finish(held, done, None)
    return done


# ---------------------------------------------------------------------------------------------- accepting


async def test_an_accepted_operation_is_found_by_name_id_and_request_id(store: Store) -> None:
    accepted = await accept(store, request_id=REQUEST_ID)
    assert accepted.created
    for reference in (accepted.operation.name, accepted.operation.id, REQUEST_ID, REQUEST_ID.upper()):
        assert await store.operation("p", reference) == accepted.operation
        assert await store.operation(None, reference) == accepted.operation


@pytest.mark.parametrize("reference", ["operation-1", "17", "9" * 20, REQUEST_ID, "", "x" * 300])
async def test_an_unknown_operation_is_not_found(store: Store, reference: str) -> None:
    with pytest.raises(NotFound, match=r"The resource 'projects/p/global/operations/.*' was not found"):
        await store.operation("p", reference)


async def test_an_operation_is_not_found_in_another_project(store: Store) -> None:
    accepted = await accept(store)
    with pytest.raises(NotFound):
        await store.operation("q", accepted.operation.name)


async def test_a_repeated_request_returns_the_first_operation(store: Store) -> None:
    first = await accept(store, request_id=REQUEST_ID, reserve=True)
    second = await accept(store, request_id=REQUEST_ID, reserve=True)
    assert (second.operation, second.created) == (first.operation, False)
    assert await store.repeated("p", request(request_id=REQUEST_ID)) == first.operation


async def test_another_request_under_a_used_id_is_refused_and_leaves_nothing(store: Store) -> None:
    first = await accept(store, "i", request_id=REQUEST_ID)
    with pytest.raises(RequestIdReused, match=first.operation.name):
        await accept(store, "other", request_id=REQUEST_ID, reserve=True)
    with pytest.raises(NotFound):
        await store.image("p", "other")
    with pytest.raises(RequestIdReused):
        await store.repeated("p", request("other", request_id=REQUEST_ID))


@pytest.mark.parametrize(("before", "remembered"), [(timedelta(0), True), (timedelta(milliseconds=1), False)])
async def test_a_request_id_is_forgotten_after_its_window(store: Store, before: timedelta, remembered: bool) -> None:
    first = await accept(store, request_id=REQUEST_ID)
    [held] = await claim(store)
    await finish(store, held)
    window = NOW + before
    again = await accept(store, request_id=REQUEST_ID, forget_requests_before=window)
    assert again.created is not remembered
    newest = await store.operation("p", REQUEST_ID)
    assert newest.id == again.operation.id
    assert (newest.id == first.operation.id) is remembered


async def test_another_request_may_have_an_id_that_was_forgotten(store: Store) -> None:
    await accept(store, "i", request_id=REQUEST_ID)
    [held] = await claim(store)
    await finish(store, held)
    later = NOW + LEASE
    assert await store.repeated("p", request("j", REQUEST_ID), forget_requests_before=later) is None
    assert (await accept(store, "j", request_id=REQUEST_ID, forget_requests_before=later)).created


async def test_what_is_not_done_keeps_its_request_id_however_old(store: Store) -> None:
    first = await accept(store, request_id=REQUEST_ID)
    again = await accept(store, request_id=REQUEST_ID, forget_requests_before=NOW + LEASE)
    assert again.operation.id == first.operation.id


async def test_a_request_id_of_two_projects_stands_for_neither_without_its_project(store: Store) -> None:
    mine = (await accept(store, request_id=REQUEST_ID)).operation
    theirs = (await accept(store, request_id=REQUEST_ID, project="q")).operation
    for read in (store.operation, store.request_of):
        with pytest.raises(InvalidRequest, match="name the project"):
            await read(None, REQUEST_ID)
    assert [await store.operation(project, REQUEST_ID) for project in ("p", "q")] == [mine, theirs]


async def deleted(store: Store) -> Operation:
    """An operation that has ended, was deleted, and had a request id."""
    await accept(store, request_id=REQUEST_ID)
    [held] = await claim(store)
    done = await finish(store, held)
    await store.delete_operation("p", done.name)
    return done


async def test_a_deleted_operation_is_shown_nowhere(store: Store) -> None:
    before = await store.totals()
    gone = await deleted(store)
    for reference in (gone.name, gone.id, REQUEST_ID):
        for project in ("p", None):
            for read in (store.operation, store.request_of):
                with pytest.raises(NotFound):
                    await read(project, reference)
        with pytest.raises(NotFound):
            await store.delete_operation("p", reference)
    for project in ("p", None):
        assert await store.operations(project, 10, None, newest_first=True) == Page([], more=False)
    assert await store.totals() == replace(before, succeeded=before.succeeded + 1)
    assert await store.newest_id() == int(gone.id)


async def test_a_repeat_of_a_deleted_operation_runs_nothing_and_is_answered_with_it(store: Store) -> None:
    gone = await deleted(store)
    again = await accept(store, request_id=REQUEST_ID, reserve=True, forget_requests_before=NOW)
    assert (again.operation, again.created) == (gone, False)
    assert await store.repeated("p", request(request_id=REQUEST_ID), forget_requests_before=NOW) == gone
    assert await claim(store) == []
    with pytest.raises(NotFound):
        await store.image("p", "i")
    assert (await accept(store, request_id=REQUEST_ID, project="q")).created


async def test_another_request_under_a_deleted_operations_id_is_refused(store: Store) -> None:
    gone = await deleted(store)
    with pytest.raises(RequestIdReused, match=gone.name):
        await accept(store, "other", request_id=REQUEST_ID)
    with pytest.raises(RequestIdReused):
        await store.repeated("p", request("other", request_id=REQUEST_ID))


async def test_the_request_id_of_a_deleted_operation_is_forgotten_after_its_window(store: Store) -> None:
    await deleted(store)
    later = NOW + timedelta(milliseconds=1)
    assert await store.repeated("p", request("j", REQUEST_ID), forget_requests_before=later) is None
    new = await accept(store, "j", request_id=REQUEST_ID, forget_requests_before=later)
    assert new.created
    assert (await accept(store, "j", request_id=REQUEST_ID)).operation == new.operation  # and now it is this one's


async def test_what_is_kept_of_deleted_operations_goes_when_it_is_told_to_and_no_more_at_a_time(store: Store) -> None:
    for number in range(3):
        await accept(store, f"i-{number}", request_id=f"{number}{REQUEST_ID[1:]}")
        [held] = await claim(store)
        await store.delete_operation("p", (await finish(store, held)).name)
    later = NOW + timedelta(days=1)
    assert await store.forget_requests(before=NOW, limit=2) == 0
    assert [await store.forget_requests(before=later, limit=2) for _ in range(3)] == [2, 1, 0]
    assert (await accept(store, "i-0", request_id=f"0{REQUEST_ID[1:]}")).created


async def test_only_what_is_done_is_deleted(store: Store) -> None:
    first = await accept(store, request_id=REQUEST_ID)
    with pytest.raises(NotFinished):
        await store.delete_operation("p", first.operation.name)
    assert await store.operation("p", first.operation.name) == first.operation


async def test_the_same_request_id_in_two_projects_is_two_requests(store: Store) -> None:
    first = await accept(store, request_id=REQUEST_ID, project="p")
    second = await accept(store, request_id=REQUEST_ID, project="q")
    assert second.created
    assert first.operation.id != second.operation.id


async def test_the_same_request_many_times_at_once_is_one_operation(store: Store) -> None:
    ids: list[str] = []

    async def send() -> None:
        ids.append((await accept(store, request_id=REQUEST_ID, reserve=True)).operation.id)

    async with anyio.create_task_group() as together:
        for _ in range(50):
            together.start_soon(send)
    assert len(ids) == 50
    assert len(set(ids)) == 1
    assert (await store.totals()).pending == 1


async def test_a_taken_image_name_is_refused_and_the_operation_with_it(store: Store) -> None:
    await accept(store, reserve=True)
    with pytest.raises(AlreadyExists, match="The resource 'projects/p/global/images/i' already exists"):
        await accept(store, reserve=True)
    assert len((await store.operations("p", 10, None, newest_first=True)).items) == 1


async def test_an_operation_that_is_done_at_once_is_never_claimed(store: Store) -> None:
    refused = apply(operation(), Failed((ENTRY,), 409), NOW)
    await store.accept(refused, "p", request(), lane="p/i")
    assert await claim(store) == []
    assert await store.totals() == Totals(pending=0, running=0, succeeded=0, failed=1)


# ----------------------------------------------------------------------------------------------- claiming


async def test_a_claim_begins_the_operation_and_brings_what_it_needs(store: Store) -> None:
    accepted = await accept(store, reserve=True)
    (held,) = await claim(store)
    assert held.operation.status is Status.RUNNING
    assert held.attempt == 1
    assert held.request == request()
    assert held.target == await store.image("p", "i")
    assert await store.operation("p", accepted.operation.id) == held.operation


async def test_no_operation_is_in_two_claims(store: Store) -> None:
    for number in range(40):
        await accept(store, f"i-{number}")
    claims: list[Claim] = []

    async def grab(owner: str) -> None:
        while taken := await claim(store, 3, owner=owner):
            claims.extend(taken)

    async with anyio.create_task_group() as together:
        for number in range(5):
            together.start_soon(grab, f"boot-{number}")
    assert len({held.operation.id for held in claims}) == len(claims) == 40
    assert len({held.token for held in claims}) == 40


async def test_the_oldest_come_first_and_no_more_than_asked_for(store: Store) -> None:
    ids = [(await accept(store, f"i-{number}")).operation.id for number in range(5)]
    assert [held.operation.id for held in await claim(store, 3)] == ids[:3]
    assert [held.operation.id for held in await claim(store, 3)] == ids[3:]


async def test_operations_on_one_image_run_one_at_a_time_in_order(store: Store) -> None:
    ids = [(await accept(store)).operation.id for _ in range(3)]
    seen = []
    while held := await claim(store):
        assert len(held) == 1
        seen.append(held[0].operation.id)
        await finish(store, held[0])
    assert seen == ids


async def test_a_deferred_operation_keeps_its_lane_and_waits_for_its_time(store: Store) -> None:
    first = await accept(store)
    await accept(store)
    (held,) = await claim(store)
    until = NOW + timedelta(seconds=10)
    await store.defer(held, apply(held.operation, Deferred(1, 5, ENTRY, until), NOW), until)
    early = await store.claim("boot-1", 10, NOW + timedelta(seconds=9), until + LEASE, lambda before: before)
    assert (early.claims, early.next_due) == ([], until)
    (again,) = await claim(store, now=until)
    assert (again.operation.id, again.attempt) == (first.operation.id, 2)
    assert again.token != held.token


async def test_an_old_deferred_operation_is_not_starved_by_new_ones(store: Store) -> None:
    old = await accept(store, "old")
    (held,) = await claim(store)
    await store.defer(held, held.operation, NOW + timedelta(seconds=1))
    for number in range(5):
        await accept(store, f"new-{number}")
    (next_one,) = await claim(store, 1, now=NOW + timedelta(seconds=2))
    assert next_one.operation.id == old.operation.id


async def test_a_released_operation_is_due_at_once_and_has_its_attempt_back(store: Store) -> None:
    await accept(store)
    (held,) = await claim(store)
    interrupted = apply(held.operation, Interrupted("shutdown"), NOW)
    await store.release(held, interrupted)
    assert await store.operation("p", held.operation.id) == interrupted
    (again,) = await claim(store)
    assert again.attempt == 1


async def test_a_checkpoint_comes_with_the_next_claim(store: Store) -> None:
    await accept(store)
    (held,) = await claim(store)
    await store.save_checkpoint(held, b"at 5")
    await store.release(held, held.operation)
    (again,) = await claim(store)
    assert again.checkpoint == b"at 5"


async def test_a_stale_claim_can_change_nothing(store: Store) -> None:
    await accept(store, reserve=True)
    (stale,) = await claim(store)
    await store.release(stale, stale.operation)
    (fresh,) = await claim(store, owner="boot-2")
    done = apply(stale.operation, Succeeded(), NOW)
    later = NOW + timedelta(seconds=1)
    for write in (
        store.save(stale, apply(stale.operation, Progressed(50), NOW)),
        store.save_checkpoint(stale, b"x"),
        store.defer(stale, stale.operation, later),
        store.release(stale, stale.operation),
        store.finish(stale, done, Forget(int(stale.operation.target_id or 0))),
    ):
        with pytest.raises(LeaseLost, match=stale.operation.name):
            await write
    assert await store.operation("p", stale.operation.id) == fresh.operation
    assert (await store.image("p", "i")).status is ImageStatus.PENDING
    await finish(store, fresh)


async def test_a_finished_claim_is_stale(store: Store) -> None:
    await accept(store)
    (held,) = await claim(store)
    done = await finish(store, held)
    with pytest.raises(LeaseLost):
        await store.save(held, held.operation)
    assert await store.operation("p", done.id) == done


async def test_a_lease_that_ran_out_is_given_back_and_a_renewed_one_is_not(store: Store) -> None:
    await accept(store, "a")
    await accept(store, "b")
    (lost,) = await claim(store, 1, owner="dead")
    (kept,) = await claim(store, 1, owner="alive")
    later = NOW + 2 * LEASE
    assert await store.renew("alive", later + LEASE) == 1
    assert await store.recover(later) == 1
    (again,) = await claim(store, owner="alive", now=later)
    assert (again.operation.id, again.attempt) == (lost.operation.id, 1)
    await store.save(kept, kept.operation)


# -------------------------------------------------------------------------------- finishing, the catalogue


async def test_an_image_appears_with_the_end_of_its_operation(store: Store) -> None:
    await accept(store, reserve=True)
    (held,) = await claim(store)
    assert held.target is not None
    ready = published(held.target, ImageFacts(disk_size_gb=3, archive_size_bytes=5))
    done = apply(held.operation, Succeeded(), NOW)
    await store.finish(held, done, Publish(ready))
    assert await store.image("p", "i") == ready
    assert await store.image("p", str(ready.id)) == ready
    assert await store.operation("p", done.id) == done


async def test_a_forgotten_image_leaves_its_name_free(store: Store) -> None:
    await accept(store, reserve=True)
    (held,) = await claim(store)
    failed = apply(held.operation, Failed((ENTRY,), 400), NOW)
    await store.finish(held, failed, Forget(int(held.operation.target_id or 0)))
    with pytest.raises(NotFound, match="The resource 'projects/p/global/images/i' was not found"):
        await store.image("p", "i")
    assert (await accept(store, reserve=True)).created


async def test_a_family_is_its_newest_image_that_is_ready_and_not_deprecated(store: Store) -> None:
    images = []
    for name in ("a", "b", "c", "d"):
        await accept(store, name, reserve=True)
        (held,) = await claim(store)
        assert held.target is not None
        image = replace(held.target, family="f", status=ImageStatus.READY if name != "d" else ImageStatus.PENDING)
        if name == "c":
            image = replace(image, deprecated=DeprecationStatus(state="DEPRECATED"))
        images.append(image)
        await store.finish(held, apply(held.operation, Succeeded(), NOW), Publish(image))
    assert await store.newest_in_family("p", "f") == images[1]
    with pytest.raises(NotFound, match="family/g"):
        await store.newest_in_family("p", "g")


async def test_totals_follow_every_change(store: Store) -> None:
    for name in ("a", "b", "c"):
        await accept(store, name)
    a, b = await claim(store, 2)
    assert await store.totals() == Totals(pending=1, running=2, succeeded=0, failed=0)
    await finish(store, a)
    await store.finish(b, apply(b.operation, Failed((ENTRY,), 500), NOW), None)
    assert await store.totals() == Totals(pending=1, running=0, succeeded=1, failed=1)


# ------------------------------------------------------------------------------------------------- lists


@pytest.mark.parametrize("newest_first", [False, True])
async def test_pages_of_operations_hold_each_once_and_in_order(store: Store, newest_first: bool) -> None:
    ids = [int((await accept(store, f"i-{number}")).operation.id) for number in range(7)]
    await accept(store, "elsewhere", project="q")
    seen: list[int] = []
    after = None
    while True:
        page = await store.operations("p", 3, after, newest_first)
        seen += [int(item.id) for item in page.items]
        if not page.more:
            break
        after = seen[-1]
    assert seen == (ids[::-1] if newest_first else ids)
    assert len((await store.operations(None, 100, None, newest_first)).items) == 8


async def test_pages_of_images_go_by_name_or_newest_first(store: Store) -> None:
    for name in ("b", "a", "c"):
        await accept(store, name, reserve=True)
    by_name = await store.images("p", 2, None, newest_first=False)
    assert ([image.name for image in by_name.items], by_name.more) == (["a", "b"], True)
    assert [image.name for image in (await store.images("p", 2, "b", newest_first=False)).items] == ["c"]
    newest = await store.images("p", 2, None, newest_first=True)
    assert [image.name for image in newest.items] == ["c", "a"]
    rest = await store.images("p", 2, int(newest.items[-1].id or 0), newest_first=True)
    assert ([image.name for image in rest.items], rest.more) == (["b"], False)


async def test_the_newest_id_is_the_largest_of_all(store: Store) -> None:
    assert await store.newest_id() == 0
    accepted = await accept(store, reserve=True)
    assert await store.newest_id() >= int(accepted.operation.id)
