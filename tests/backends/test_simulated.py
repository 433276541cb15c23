"""The simulated backend: the contract, and scripts."""

from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.backends.contract import BackendContract, Notes, failed, insert_task, machine_image_task, patch_task

from imageopsd.backends import simulated
from imageopsd.backends.simulated import Script, SimulatedBackend, Step
from imageopsd.model.durations import Seconds
from imageopsd.model.errors import PermanentFailure, QuotaExceeded, TemporaryFailure
from imageopsd.ports import InsertTask


def scripted(*steps: Step, image: str = "*") -> SimulatedBackend:
    script = Script(image=image, steps=steps)
    return SimulatedBackend(SimulatedBackend.Options(duration=Seconds(0), scripts=(script,)), Path("/nowhere"))


class TestSimulatedBackend(BackendContract):
    @pytest.fixture
    async def backend(self) -> Any:
        options = SimulatedBackend.Options(
            duration=Seconds(0.05), scripts=(Script(image="bad", steps=(Step(fail="permanent"),)),)
        )
        async with SimulatedBackend(options, Path("/nowhere")) as backend:
            yield backend

    @pytest.fixture
    def task(self) -> InsertTask:
        return insert_task()

    @pytest.fixture
    def failing_task(self) -> InsertTask:
        return insert_task(name="bad")

    def effects(self, backend: SimulatedBackend) -> list[Any]:
        return list(backend.effects)

    def leftovers(self, backend: SimulatedBackend) -> list[Any]:
        return []


async def test_without_a_duration_the_image_is_there_at_once() -> None:
    backend = SimulatedBackend(SimulatedBackend.Options(duration=Seconds(0)), Path("/nowhere"))
    with pytest.raises(StopIteration) as done:  # it never gives way to the event loop
        backend.insert_image(insert_task(), Notes()).send(None)
    assert (done.value.value.disk_size_gb, done.value.value.stored_bytes) == (1, 0)


async def test_progress_is_spread_over_the_duration() -> None:
    backend = SimulatedBackend(SimulatedBackend.Options(duration=Seconds(0.02)), Path("/nowhere"))
    notes = Notes()
    await backend.insert_image(insert_task(), notes)
    assert notes.percents == list(range(0, 100, 5))


async def test_a_script_reports_what_it_says() -> None:
    notes = Notes()
    await scripted(
        Step(progress=30, message="a third"), Step(wait=Seconds(0)), Step(warn="Old.", code="DEPRECATED_TYPE_USED")
    ).insert_image(insert_task(), notes)
    assert (notes.percents, notes.messages) == ([30], ["a third"])
    assert [(warning.code, warning.message) for warning in notes.warnings] == [("DEPRECATED_TYPE_USED", "Old.")]


async def test_a_script_is_for_the_images_that_its_pattern_matches() -> None:
    backend = scripted(Step(fail="permanent"), image="flaky-*")
    await backend.insert_image(insert_task(1, "steady"), Notes())
    with pytest.raises(PermanentFailure):
        await backend.insert_image(insert_task(2, "flaky-1"), Notes())
    assert backend.effects == [("1", "insert")]


async def test_a_transient_failure_passes_after_so_many_tries_and_the_script_goes_on_behind_it() -> None:
    backend = scripted(Step(progress=30), Step(fail="transient", times=2, retry_after=Seconds(3)), Step(progress=60))
    checkpoint, percents = None, []
    for _ in range(2):
        notes = Notes()
        task = msgspec.structs.replace(insert_task(), checkpoint=checkpoint)
        with pytest.raises(TemporaryFailure) as failure:
            await backend.insert_image(task, notes)
        assert failure.value.delay == 3
        percents.append(notes.percents)
        checkpoint = notes.checkpoints[-1]
    notes = Notes()
    await backend.insert_image(msgspec.structs.replace(insert_task(), checkpoint=checkpoint), notes)
    assert [*percents, notes.percents] == [[30], [], [60]]
    assert backend.effects == [("7", "insert")]


async def test_a_script_goes_on_where_a_dead_process_left_it() -> None:
    notes = Notes()
    backend = scripted(Step(progress=10), Step(progress=20), Step(progress=30))
    await backend.insert_image(insert_task(), notes)
    again, rest = scripted(Step(progress=10), Step(progress=20), Step(progress=30)), Notes()
    await again.insert_image(msgspec.structs.replace(insert_task(), checkpoint=notes.checkpoints[1]), rest)
    assert rest.percents == [30]


async def test_a_quota_failure_carries_all_four_details() -> None:
    with pytest.raises(QuotaExceeded) as failure:
        await scripted(Step(fail="quota")).insert_image(insert_task(), Notes())
    assert failed(failure) == ("QUOTA_EXCEEDED", 403, "Quota 'IMAGES' exceeded.  Limit: 2000.0 globally.")
    details = [msgspec.to_builtins(detail) for detail in failure.value.entry.error_details]
    assert [next(iter(detail)) for detail in details] == ["quotaInfo", "errorInfo", "help", "localizedMessage"]
    assert details[0]["quotaInfo"] == {
        "metricName": "compute.googleapis.com/images",
        "limitName": "IMAGES-per-project",
        "limit": 2000.0,
        "dimensions": {"global": "global"},
    }


async def test_a_script_can_be_for_patches() -> None:
    script = Script(image="*", verb="patch", steps=(Step(fail="permanent", message="No."),))
    backend = SimulatedBackend(SimulatedBackend.Options(duration=Seconds(0), scripts=(script,)), Path("/nowhere"))
    await backend.insert_image(insert_task(), Notes())
    with pytest.raises(PermanentFailure, match=r"^No\.$"):
        await backend.patch_image(patch_task(insert_task(), family="f"), Notes())
    assert backend.effects == [("7", "insert")]


@pytest.mark.parametrize(
    "fields",
    [{}, {"progress": 1, "warn": "both"}, {"progress": 100}, {"fail": "loudly"}, {"colour": "red"}],
    ids=["nothing", "two things", "too much", "unknown failure", "unknown field"],
)
def test_a_step_is_one_thing(fields: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(fields, Step)


async def test_only_the_last_effects_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    """A daemon that pretends for months does not grow."""
    monkeypatch.setattr(simulated, "KEPT", 3)
    backend = SimulatedBackend(SimulatedBackend.Options(duration=Seconds(0)), Path("/nowhere"))
    for number in range(1, 6):
        await backend.insert_image(insert_task(number), Notes())
    assert backend.effects == [("3", "insert"), ("4", "insert"), ("5", "insert")]
    await backend.insert_image(insert_task(4), Notes())
    assert backend.effects == [("3", "insert"), ("4", "insert"), ("5", "insert")]
    for number in range(6, 10):
        await backend.insert_machine_image(machine_image_task(number), Notes())
    assert [len(made) for made in (backend._images, backend._machine_images)] == [3, 3]
