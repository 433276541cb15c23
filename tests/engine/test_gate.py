"""What keeps operations from being started, who is told, and when they are started again."""

from datetime import timedelta

import anyio
import pytest
from tests.engine.conftest import EXACT, Engine

from imageopsd.engine.backlog import Backlog
from imageopsd.engine.imageops import ImageOps
from imageopsd.model.breaker import BreakerPolicy
from imageopsd.model.errors import Overloaded, StoreFull, TemporaryFailure
from imageopsd.model.events import BacklogTurned, LeaseWasLost, Obstacle, ObstacleTurned, StoreTroubled
from imageopsd.model.operation import Status
from imageopsd.ports import Pause

OUTAGE = TemporaryFailure("BACKEND_UNAVAILABLE", "The backend answered 503.", of_backend=True)


def turned(engine: Engine, obstacle: Obstacle) -> list[str | None]:
    return [h.reason for h in engine.happened if isinstance(h, ObstacleTurned) and h.obstacle is obstacle]


async def healed(engine: Engine) -> None:
    """After a fault of the store whoever waits is told of that, until it has taken a write again."""
    await engine.until(lambda _: turned(engine, Obstacle.STORE)[-1:] in ([], [None]))


def explained(engine: Engine, gate) -> ImageOps:
    """The verbs, for somebody who wants to know why."""
    return ImageOps(engine.store, engine.bus, engine.ids, engine.clock, why_waiting=gate.why_waiting)


async def test_nothing_is_started_while_paused_and_whoever_waits_is_told(engine: Engine) -> None:
    gate = engine.gate()
    gate.pause(Pause(engine.clock.now, "the array is rebuilt"))
    async with engine.working(gate=gate):
        operation = await engine.insert()
        await anyio.wait_all_tasks_blocked()
        waiting = await explained(engine, gate).operation("p", operation.name)
        assert waiting.status is Status.PENDING
        assert waiting.status_message == "Paused since 2026-11-20 12:00:00 UTC: the array is rebuilt"
        gate.pause(None)
        (await engine.backend.next_call()).succeed()
        await engine.done(operation)
    assert [reason is None for reason in turned(engine, Obstacle.PAUSED)] == [False, True]


async def test_slots_follow_the_gate_and_what_runs_ends_first(engine: Engine) -> None:
    def resize(slots: int) -> None:
        gate.configure(slots=slots, project_slots=None, policy=BreakerPolicy(10, 5, 300))

    gate = engine.gate(slots=1)
    async with engine.working(gate=gate) as worker:
        operations = [await engine.insert(f"i-{number}") for number in range(6)]
        calls = [await engine.backend.next_call()]
        await anyio.wait_all_tasks_blocked()
        assert worker.running == 1
        resize(4)
        calls += [await engine.backend.next_call() for _ in range(3)]
        resize(2)
        for call, operation in zip(calls[:2], operations[:2], strict=True):
            call.succeed()
            await engine.done(operation)
            await anyio.wait_all_tasks_blocked()
        assert worker.running == 2
        calls[2].succeed()
        calls.append(await engine.backend.next_call())
        assert worker.running == 2
        resize(3)
        calls.append(await engine.backend.next_call())
        for call in calls[3:]:
            call.succeed()
        for operation in operations:
            await engine.done(operation)
        resize(1)
        resize(2)
        for name in ("x", "y", "z"):
            await engine.insert(name)
        for _ in range(2):
            await engine.backend.next_call()
        await anyio.wait_all_tasks_blocked()
        assert worker.running == 2


async def test_a_higher_limit_of_the_unfinished_lets_those_on_who_wait(engine: Engine) -> None:
    backlog = Backlog(engine.bus, limit=2, count=2)
    with pytest.raises(Overloaded), backlog.entering():
        pass
    async with anyio.create_task_group() as group:
        group.start_soon(backlog.eased)
        await anyio.wait_all_tasks_blocked()
        backlog.configure(4)
    with backlog.entering():
        pass


async def test_however_many_come_at_once_no_more_are_taken_than_may_be_unfinished(engine: Engine) -> None:
    backlog = Backlog(engine.bus, limit=4)
    engine.ops = ImageOps(engine.store, engine.bus, engine.ids, engine.clock, room=backlog.entering)
    refused: list[str] = []

    async def insert(name: str) -> None:
        try:
            await engine.insert(name)
        except Overloaded:
            refused.append(name)

    async with anyio.create_task_group() as group:
        for number in range(20):
            group.start_soon(insert, f"i-{number}")
    assert len(refused) == 16
    assert (await engine.store.totals()).pending == 4


async def test_a_backlog_is_full_from_its_limit_until_half_of_it_is_done(engine: Engine) -> None:
    def told() -> list[str | None]:
        return [happening.reason for happening in engine.happened if isinstance(happening, BacklogTurned)]

    engine.backlog.configure(4)
    async with engine.working():
        operations = [await engine.insert(f"i-{number}") for number in range(3)]
        assert told() == []
        operations.append(await engine.insert("i-3"))
        full = "4 operations are not done yet, as many as may be"
        assert told() == [full]
        for operation, expected in zip(operations, ([full], [full, None], [full, None], [full, None]), strict=True):
            (await engine.backend.next_call()).succeed()
            await engine.done(operation)
            assert told() == expected


async def test_a_backlog_that_refuses_says_that_it_is_full_though_others_are_only_entering(engine: Engine) -> None:
    backlog = Backlog(engine.bus, limit=4, count=3)
    with backlog.entering():
        assert engine.happened == []
        with pytest.raises(Overloaded), backlog.entering():
            pass
    assert engine.happened == [BacklogTurned("4 operations are not done yet, as many as may be")]


async def test_a_daemon_that_begins_with_a_full_backlog_says_so_once_somebody_listens(engine: Engine) -> None:
    backlog = Backlog(engine.bus, limit=2, count=5)
    backlog.configure(2)
    assert engine.happened == []
    backlog.tell()
    assert engine.happened == [BacklogTurned("2 operations are not done yet, as many as may be")]


@EXACT
async def test_something_can_be_started_only_while_nothing_is_against_it(engine: Engine) -> None:
    gate = engine.gate(slots=2, project_slots=1)
    worker = engine.worker(gate=gate)

    possible = worker.could_start
    assert not await possible(), "there is nothing to do"
    operations = [await engine.insert(name) for name in ("a", "b")]
    assert await possible(), "and the worker does not: it was never set to work"
    gate.pause(Pause(engine.clock.now, "the array is rebuilt"))
    assert not await possible()
    gate.pause(None)
    async with anyio.create_task_group() as group:
        group.start_soon(worker.run)
        call = await engine.backend.next_call()
        assert not await possible(), "its project has all that it may have"
        call.succeed()
        await engine.done(operations[0])
        (await engine.backend.next_call()).succeed()
        await engine.done(operations[1])
        await worker.drain(0)
    await engine.insert("c")
    assert not await possible(), "it has stopped"


async def test_whoever_waits_for_a_slot_is_told_of_which(engine: Engine) -> None:
    gate = engine.gate(slots=2, project_slots=1)
    async with engine.working(gate=gate):
        await engine.insert("a")
        await engine.backend.next_call()
        second = await engine.insert("b")
        await anyio.wait_all_tasks_blocked()
        ops = explained(engine, gate)
        await healed(engine)
        assert (await ops.operation("p", second.name)).status_message == "Waiting for one of the project's 1 slots"
        await engine.insert("c", project="q")
        await engine.backend.next_call()
        third = await engine.insert("d", project="r")
        await anyio.wait_all_tasks_blocked()
        await healed(engine)
        assert (await ops.operation("r", third.name)).status_message == "Waiting for one of 2 slots"


async def test_an_outage_of_the_backend_costs_a_few_attempts_and_not_everybodys(engine: Engine) -> None:
    gate = engine.gate(slots=1, policy=BreakerPolicy(failures=2, rest=60, longest_rest=60))
    async with engine.working(gate=gate, attempts=2):
        operations = [await engine.insert(f"i-{number}") for number in range(5)]
        for _ in range(2):
            (await engine.backend.next_call()).fail(OUTAGE)
        await engine.until(lambda _: turned(engine, Obstacle.BREAKER) != [])
        await anyio.wait_all_tasks_blocked()
        assert engine.backend.nothing_called()
        (reason,) = turned(engine, Obstacle.BREAKER)
        assert reason == "The backend answered 503; tried again at 2026-11-20 12:01:00 UTC"
        engine.clock.advance(60)
        gate.turned()  # the timer would, in real time
        trial = await engine.backend.next_call()
        await anyio.wait_all_tasks_blocked()
        assert engine.backend.nothing_called()  # one is tried, no more
        trial.succeed()
        for _ in range(4):
            (await engine.backend.next_call()).succeed()
        for operation in operations:
            assert (await engine.done(operation)).error is None
    assert turned(engine, Obstacle.BREAKER)[-1] is None


async def test_failures_of_sources_do_not_close_the_backend(engine: Engine) -> None:
    gate = engine.gate(slots=1, policy=BreakerPolicy(failures=1, rest=60, longest_rest=60))
    async with engine.working(gate=gate, attempts=1):
        for number in range(3):
            operation = await engine.insert(f"i-{number}")
            (await engine.backend.next_call()).fail(TemporaryFailure("SOURCE_UNAVAILABLE", "x"))
            await engine.done(operation)
    assert turned(engine, Obstacle.BREAKER) == []


@EXACT
async def test_a_store_that_cannot_be_written_stops_the_starting_until_it_can(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    probes = 0

    async def probe() -> None:
        nonlocal probes
        probes += 1
        if probes < 3:
            raise StoreFull("no space left for the database")

    monkeypatch.setattr(engine.store, "probe", probe)
    gate = engine.gate()
    async with engine.working(gate=gate):
        engine.bus.publish(StoreTroubled("testing", StoreFull("no space left for the database")))
        assert gate.seats(4) == 0
        await gate.store_well()
        assert gate.seats(4) == 4
    assert probes == 3
    assert turned(engine, Obstacle.STORE) == ["No space left for the database", None]


async def test_more_than_may_be_unfinished_is_refused_and_taken_again_when_half_is_done(engine: Engine) -> None:
    backlog = Backlog(engine.bus, limit=4)
    ops = ImageOps(engine.store, engine.bus, engine.ids, engine.clock, room=backlog.entering)
    engine.ops = ops
    operations = [await engine.insert(f"i-{number}") for number in range(4)]
    with pytest.raises(Overloaded, match="4 operations are not done yet"):
        await engine.insert("one-too-many")
    async with engine.working(slots=1), anyio.create_task_group() as group:
        eased = anyio.Event()

        async def wait() -> None:
            await backlog.eased()
            eased.set()

        group.start_soon(wait)
        for number, operation in enumerate(operations[:2], 1):
            (await engine.backend.next_call()).succeed()
            await engine.done(operation)
            await anyio.wait_all_tasks_blocked()
            assert eased.is_set() == (number == 2)
    await engine.insert("room-again")


async def test_nothing_is_started_on_a_claim_that_somebody_else_may_hold_by_now(engine: Engine) -> None:
    """The event loop stood still for longer than a lease, between the claim and the start."""
    ticks = 0.0
    real = engine.store.claim

    async def slow(*arguments, **options):
        nonlocal ticks
        taken = await real(*arguments, **options)
        if taken.claims and not ticks:
            ticks += 100  # longer than the lease of 30 s, and meanwhile another takes it over
            later = engine.clock.now + timedelta(seconds=100)
            assert await engine.store.recover(later) == 1
            assert len((await real("other", 1, later, later, lambda before: before)).claims) == 1
        return taken

    engine.store.claim = slow
    async with engine.working() as worker:
        worker._ticks = lambda: ticks
        await engine.insert()
        await engine.until(lambda h: any(isinstance(x, LeaseWasLost) for x in h))
    assert engine.backend.nothing_called()
