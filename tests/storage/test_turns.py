"""Whose turn it is, through the store's own `claim`; how operations leave their lanes, their queue and the records."""

from collections import Counter
from datetime import timedelta

import pytest
from msgspec.structs import replace
from tests.storage.records import LEASE, NOW, operation, request

from imageopsd.model.events import Cancelled, Claimed, Postponed, Reason, Succeeded
from imageopsd.model.image import ImagePatch
from imageopsd.model.lifecycle import apply
from imageopsd.model.operation import Operation, Status
from imageopsd.model.requests import HEAD_START, PatchImage
from imageopsd.ports import Claim, Forget, Store

USER = Cancelled(Reason.USER, by="ann")


async def put(store: Store, name: str, project: str = "p", *, minutes: float = 0, lane: str = "", **more) -> Operation:
    """Accepts an insert that came so many minutes after NOW."""
    made = replace(operation(), insert_time=NOW + timedelta(minutes=minutes))
    wanted = replace(request(name, project=project), **more)
    return (await store.accept(made, project, wanted, lane=lane or f"{project}/{name}")).operation


async def take(store: Store, seats: int, **options) -> list[Claim]:
    taken = await store.claim("boot", seats, NOW, NOW + LEASE, lambda one: apply(one, Claimed(), NOW), **options)
    return taken.claims


async def names(store: Store, seats: int, **options) -> list[str]:
    return [claim.request.target for claim in await take(store, seats, **options)]


async def finish(store: Store, claim: Claim) -> None:
    await store.finish(claim, apply(claim.operation, Succeeded(), NOW), None)


async def test_projects_share_the_seats_however_much_one_of_them_wants(store: Store) -> None:
    for number in range(50):
        await put(store, f"a-{number}", "a")
    for number in range(2):
        await put(store, f"b-{number}", "b", minutes=1)
        await put(store, f"c-{number}", "c", minutes=2)
    assert Counter(claim.project for claim in await take(store, 6)) == {"a": 2, "b": 2, "c": 2}
    assert Counter(claim.project for claim in await take(store, 6)) == {"a": 6}


async def test_a_seat_goes_to_the_project_with_the_fewest_running(store: Store) -> None:
    for number in range(4):
        await put(store, f"a-{number}", "a")
    first = await take(store, 3)
    for number in range(4):
        await put(store, f"b-{number}", "b")
    assert [claim.project for claim in await take(store, 3)] == ["b", "b", "b"]
    for claim in first:
        await finish(store, claim)
    assert [claim.project for claim in await take(store, 1)] == ["a"]


async def test_projects_take_turns_one_seat_at_a_time(store: Store) -> None:
    for project in ("a", "b", "c"):
        for number in range(3):
            await put(store, f"{project}-{number}", project)
    order = []
    for _ in range(9):
        (claim,) = await take(store, 1)
        order.append(claim.project)
        await finish(store, claim)
    assert order == ["a", "b", "c"] * 3


async def test_no_project_has_more_than_its_limit(store: Store) -> None:
    for number in range(5):
        await put(store, f"a-{number}", "a")
    await put(store, "b-0", "b")
    assert Counter(claim.project for claim in await take(store, 10, project_limit=2)) == {"a": 2, "b": 1}
    assert await take(store, 10, project_limit=2) == []


async def test_inside_a_project_the_higher_priority_goes_first_until_the_other_has_waited_long_enough(
    store: Store,
) -> None:
    step = HEAD_START / timedelta(minutes=1)
    await put(store, "patient", minutes=0)
    await put(store, "urgent", minutes=2 * step - 1, priority=2)
    await put(store, "too-late", minutes=2 * step + 1, priority=2)
    await put(store, "humble", minutes=-1, priority=-1)
    assert await names(store, 4) == ["urgent", "patient", "too-late", "humble"]


async def test_a_priority_in_one_project_takes_nothing_from_another(store: Store) -> None:
    for number in range(4):
        await put(store, f"a-{number}", "a", priority=9)
    await put(store, "b-0", "b", priority=-9)
    assert Counter(claim.project for claim in await take(store, 2)) == {"a": 1, "b": 1}


async def test_what_was_deferred_keeps_its_rank_when_it_is_due(store: Store) -> None:
    await put(store, "first")
    await put(store, "second", minutes=1)
    (claim,) = await take(store, 1)
    postponed = apply(claim.operation, Postponed("", NOW), NOW)
    await store.release(claim, postponed, NOW)
    assert await names(store, 2) == ["first", "second"]


async def test_without_making_only_what_changes_something_is_claimed(store: Store) -> None:
    await put(store, "insert")
    patch = PatchImage(project="p", image="i", patch=ImagePatch(family="f"))
    await store.accept(operation(), "p", patch, lane="p/i")
    assert await names(store, 5, making=False) == ["i"]
    assert await names(store, 5) == ["insert"]


# ---------------------------------------------------------------------------------------------- lanes


async def test_a_blocked_operation_says_by_which(store: Store) -> None:
    first = await put(store, "i", lane="l")
    second = await put(store, "i", lane="l")
    third = await put(store, "i", lane="l")
    message = "Waiting for '{}', which is about the same and came first"
    assert (await store.operation("p", second.name)).status_message == message.format(first.name)
    assert (await store.operation("p", third.name)).status_message == message.format(second.name)
    (claim,) = await take(store, 3)
    await finish(store, claim)
    assert (await store.operation("p", second.name)).status_message is None
    assert (await store.operation("p", third.name)).status_message == message.format(second.name)


async def cancel(store: Store, one: Operation):
    return await store.cancel(
        "p", one.name, USER, lambda before: apply(before, USER, NOW), lambda request, target: Forget(0)
    )


@pytest.mark.parametrize("position", [0, 1, 2])
async def test_whoever_leaves_a_lane_the_others_keep_their_order(store: Store, position: int) -> None:
    line = [await put(store, "i", lane="l") for _ in range(3)]
    assert (await cancel(store, line.pop(position))).ended
    before = None
    for one in line:
        message = (await store.operation("p", one.name)).status_message
        assert message == (before and f"Waiting for '{before.name}', which is about the same and came first")
        before = one
    order = []
    while claims := await take(store, 3):
        (claim,) = claims
        order.append(claim.operation.name)
        await finish(store, claim)
    assert order == [one.name for one in line]


# --------------------------------------------------------------------------------------------- cancelling


async def test_what_nobody_works_on_ends_at_once(store: Store) -> None:
    one = await put(store, "i")
    ended = await cancel(store, one)
    assert (ended.ended, ended.project, ended.operation.status) == (True, "p", Status.DONE)
    assert await store.operation("p", one.name) == ended.operation
    assert await take(store, 1) == []
    totals = await store.totals()
    assert (totals.pending, totals.running, totals.failed) == (0, 0, 1)


async def test_who_traces_an_operation_is_told_with_its_cancellation_and_with_every_claim(store: Store) -> None:
    traceparent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    ended = await cancel(store, await put(store, "i", traceparent=traceparent))
    await put(store, "j", traceparent=traceparent)
    (claim,) = await take(store, 1)
    assert (ended.traceparent, claim.request.traceparent) == (traceparent, traceparent)


async def test_the_end_of_what_is_worked_on_is_kept_for_the_next_claim(store: Store) -> None:
    one = await put(store, "i")
    (claim,) = await take(store, 1)
    assert not (await cancel(store, one)).ended
    assert claim.cancelled is None
    await store.release(claim, claim.operation)
    (again,) = await take(store, 1)
    assert again.cancelled == USER


async def test_a_cancelled_operation_that_has_ended_stays_as_it_is(store: Store) -> None:
    one = await put(store, "i")
    (claim,) = await take(store, 1)
    await finish(store, claim)
    done = await store.operation("p", one.name)
    cancellation = await cancel(store, one)
    assert (cancellation.operation, cancellation.ended) == (done, False)
    assert await store.operation("p", one.name) == done


# ----------------------------------------------------------------------------------- deadlines, retention


async def test_deadlines_are_told_until_somebody_acts_on_them(store: Store) -> None:
    await put(store, "none")
    late = await put(store, "late", deadline=60.0)
    early = await put(store, "early", deadline=30.0)
    assert await store.next_deadline() == NOW + timedelta(seconds=30)
    assert await store.overdue(NOW + timedelta(seconds=29), 10) == []
    assert await store.overdue(NOW + timedelta(seconds=60), 10) == [("p", early.name), ("p", late.name)]
    await take(store, 3)
    await cancel(store, early)
    assert await store.overdue(NOW + timedelta(seconds=60), 10) == [("p", late.name)]
    assert await store.next_deadline() == NOW + timedelta(seconds=60)


@pytest.mark.parametrize("failed", [False, True])
async def test_only_what_ended_before_is_forgotten_and_only_of_that_outcome(store: Store, failed: bool) -> None:
    old = await put(store, "old")
    (claim,) = await take(store, 1)
    await finish(store, claim)
    cancelled = await put(store, "cancelled")
    await cancel(store, cancelled)
    running = await put(store, "running")
    await take(store, 1)
    later = NOW + timedelta(days=1)
    assert await store.forget(failed=failed, before=NOW, limit=10) == 0
    assert await store.forget(failed=failed, before=later, limit=10) == 1
    kept = [one.name for one in (await store.operations("p", 10, None, newest_first=False)).items]
    assert kept == [(old if failed else cancelled).name, running.name]


async def test_forgetting_takes_no_more_than_it_was_told(store: Store) -> None:
    for number in range(3):
        await cancel(store, await put(store, f"i-{number}"))
    later = NOW + timedelta(days=1)
    assert [await store.forget(failed=True, before=later, limit=2) for _ in range(3)] == [2, 1, 0]
