"""Whatever is logged while an operation is worked on says on what it worked."""

import logging
from collections.abc import Iterator
from contextlib import nullcontext

import anyio
import pytest
from structlog.contextvars import get_contextvars
from tests.engine.conftest import Call, Engine

from imageopsd.engine.asking import Asking
from imageopsd.engine.bus import EventBus
from imageopsd.model.errors import LeaseLost, NotYet, PermanentFailure, QuotaExceeded, TemporaryFailure
from imageopsd.model.events import BackendAnswered, Happening, Outcome, Verb
from imageopsd.model.operation import QuotaInfo


class Ear(logging.Handler):
    """Keeps what a line of a library would have beside its text."""

    def __init__(self) -> None:
        super().__init__()
        self.heard: dict[str, dict[str, object]] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.heard[record.getMessage()] = get_contextvars()


@pytest.fixture
def ear() -> Iterator[Ear]:
    ear, library = Ear(), logging.getLogger("some.library")
    library.addHandler(ear)
    yield ear
    library.removeHandler(ear)


def _logs(call: Call, what: str) -> None:
    """In a thread, as a backend works that computes."""
    logging.getLogger("some.library").error("%s %s", what, call.task.operation_id)


async def test_two_operations_at_once_keep_their_lines_apart_and_leave_nothing_behind(engine: Engine, ear: Ear) -> None:
    async def work(call: Call) -> None:
        await outcome(call)
        await anyio.to_thread.run_sync(_logs, call, "thread")
        _logs(call, "loop")

    outcome = Call.outcome
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Call, "outcome", work)
        async with engine.working(slots=2):
            first, second = await engine.insert("one", project="p"), await engine.insert("two", project="q")
            calls = [await engine.backend.next_call(), await engine.backend.next_call()]
            for call in reversed(calls):
                call.succeed()
            for operation in (first, second):
                await engine.until(lambda happened, wanted=operation: "Succeeded" in engine.events_of(wanted))
            assert get_contextvars() == {}
    for operation, project, target in ((first, "p", "one"), (second, "q", "two")):
        for where in ("thread", "loop"):
            assert ear.heard[f"{where} {operation.id}"] == {
                "operation": operation.name,
                "operation_id": operation.id,
                "operation_type": "insert",
                "client_operation_id": operation.client_operation_id,
                "project": project,
                "target": target,
                "attempt": 1,
                "phase": "work",
            }


async def test_the_next_operation_of_a_slot_has_no_word_of_the_last(engine: Engine, ear: Ear) -> None:
    seen: list[object] = []
    outcome = Call.outcome

    async def work(call: Call) -> None:
        seen.append(get_contextvars()["target"])
        await outcome(call)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Call, "outcome", work)
        async with engine.working(slots=1):
            for name in ("one", "two"):
                operation = await engine.insert(name)
                call = await engine.backend.next_call()
                call.fail(PermanentFailure("X", "x", 400)) if name == "one" else call.succeed()  # type: ignore[arg-type]
                await engine.until(lambda happened, wanted=operation: engine.events_of(wanted)[-1:] != ["Claimed"])
    assert seen == ["one", "two"]


class _Unheard(Exception):
    pass


QUOTA = QuotaExceeded("full", QuotaInfo(metric_name="m", limit_name="l", limit=1.0, dimensions={}))


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (None, Outcome.DONE),
        (TemporaryFailure("X", "x"), Outcome.TEMPORARY),
        (TemporaryFailure("X", "x", delay=5.0), Outcome.THROTTLED),
        (TemporaryFailure("X", "x", 429), Outcome.THROTTLED),  # type: ignore[arg-type]
        (PermanentFailure("X", "x", 400), Outcome.PERMANENT),  # type: ignore[arg-type]
        (QUOTA, Outcome.QUOTA),
        (NotYet("x"), Outcome.WAITING),
        (LeaseLost("o"), Outcome.STOPPED),
        (_Unheard("x"), Outcome.CRASHED),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
async def test_every_end_of_a_call_is_told_as_what_it_is(error: Exception | None, outcome: Outcome) -> None:
    happened: list[Happening] = []
    bus, ticks = EventBus(), iter([10.0, 12.5])
    bus.subscribe(happened.append)

    async def answer() -> str:
        if error is not None:
            raise error
        return "made"

    with nullcontext() if error is None else pytest.raises(type(error)):
        assert await Asking(bus, lambda: next(ticks))(Verb.PATCH_IMAGE, answer()) == "made"
    [told] = happened
    assert isinstance(told, BackendAnswered)
    assert (told.verb, told.outcome, told.seconds) == (Verb.PATCH_IMAGE, outcome, 2.5)


async def test_a_call_that_is_stopped_is_no_crash() -> None:
    happened: list[Happening] = []
    bus = EventBus()
    bus.subscribe(happened.append)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await Asking(bus)(Verb.DELETE_IMAGE, anyio.sleep_forever())
    assert [(told.verb, told.outcome) for told in happened if isinstance(told, BackendAnswered)] == [
        (Verb.DELETE_IMAGE, Outcome.STOPPED)
    ]
