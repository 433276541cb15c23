"""What every backend must keep of `ports.Backend`; subclass `BackendContract` for each.

A backend under test is a fixture `backend`, entered; `insert_task(name)` gives a task that takes a moment,
`failing_task()` one that fails for good, and `traces(task)` whatever can be found of a task's image. The same for
machine images in `MachineImageContract`.
"""

import asyncio
import threading
from abc import ABC, abstractmethod
from datetime import UTC
from typing import Any

import msgspec
import pytest
from tests.contract.validate import assert_valid

from imageopsd.model.errors import BackendFailure, PermanentFailure
from imageopsd.model.image import DeprecationState, DeprecationStatus, Image, Int64
from imageopsd.model.machine_image import MachineImage, MachineImageTask, machine_image_link
from imageopsd.model.names import image_link
from imageopsd.model.operation import OperationWarning
from imageopsd.model.time import Time
from imageopsd.ports import Backend, DeleteTask, InsertTask, MachineImagePatchTask, PatchTask

PROJECT = "p"
CREATED = Time(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


class Notes:
    """A reporter that remembers, and says when it hears something."""

    def __init__(self) -> None:
        self.percents: list[int] = []
        self.messages: list[str | None] = []
        self.warnings: list[OperationWarning] = []
        self.bytes = 0
        self.checkpoints: list[bytes] = []
        self.heard = asyncio.Event()

    def progress(self, percent: int, message: str | None = None) -> None:
        self.percents.append(percent)
        self.messages.append(message)
        self.heard.set()

    def warn(self, warning: OperationWarning) -> None:
        self.warnings.append(warning)

    def transferred(self, size: int) -> None:
        self.bytes += size

    async def checkpoint(self, data: bytes) -> None:
        self.checkpoints.append(data)


def insert_task(number: int = 7, name: str = "img", **fields: Any) -> InsertTask:
    """The task that the worker would make of operation `number`; its image has the same id."""
    image = Image(
        id=Int64(number), name=name, self_link=image_link(PROJECT, name), creation_timestamp=CREATED, **fields
    )
    return InsertTask(operation_id=str(number), project=PROJECT, image=image)


def patch_task(made: InsertTask, number: int = 8, **fields: Any) -> PatchTask:
    after = msgspec.structs.replace(made.image, **fields)
    return PatchTask(operation_id=str(number), project=PROJECT, before=made.image, after=after)


def machine_image_task(number: int = 7, name: str = "bundle", **fields: Any) -> MachineImageTask:
    """As `insert_task`; the source instance is `projects/p/zones/z/instances/vm`."""
    machine_image = MachineImage(
        id=Int64(number),
        name=name,
        self_link=machine_image_link(PROJECT, name),
        creation_timestamp=CREATED,
        **{"source_instance": f"projects/{PROJECT}/zones/z/instances/vm"} | fields,
    )
    return MachineImageTask(operation_id=str(number), project=PROJECT, machine_image=machine_image)


def delete_task(made: InsertTask | MachineImageTask, number: int = 9) -> DeleteTask:
    resource = made.image if isinstance(made, InsertTask) else made.machine_image
    return DeleteTask(str(number), PROJECT, int(resource.id or 0), str(resource.name))


class BackendContract(ABC):
    @pytest.fixture
    @abstractmethod
    def backend(self) -> Backend: ...

    @pytest.fixture
    @abstractmethod
    def task(self) -> InsertTask:
        """One that ends well and, before it does, reports at least once."""

    @pytest.fixture
    @abstractmethod
    def failing_task(self) -> InsertTask: ...

    @abstractmethod
    def effects(self, backend: Backend) -> list[Any]:
        """All images that can be seen, and nothing else."""

    @abstractmethod
    def leftovers(self, backend: Backend) -> list[Any]:
        """Half-made things that can be found."""

    async def test_an_insert_tells_what_the_image_is_like(self, backend: Backend, task: InsertTask) -> None:
        facts = await backend.insert_image(task, Notes())
        assert facts.disk_size_gb >= 1
        assert facts.stored_bytes is not None
        assert len(self.effects(backend)) == 1
        assert self.leftovers(backend) == []

    async def test_progress_never_falls_and_stays_below_a_hundred(self, backend: Backend, task: InsertTask) -> None:
        notes = Notes()
        await backend.insert_image(task, notes)
        assert notes.percents == sorted(notes.percents)
        assert notes.percents
        assert notes.percents[-1] <= 99

    async def test_the_same_insert_twice_is_one_effect(self, backend: Backend, task: InsertTask) -> None:
        first = await backend.insert_image(task, Notes())
        seen = self.effects(backend)
        assert await backend.insert_image(task, Notes()) == first
        assert self.effects(backend) == seen

    async def test_a_failed_insert_leaves_nothing(self, backend: Backend, failing_task: InsertTask) -> None:
        threads = set(threading.enumerate())
        with pytest.raises(PermanentFailure) as failure:
            await backend.insert_image(failing_task, Notes())
        assert failure.value.entry.code.isupper()
        assert self.effects(backend) == []
        assert self.leftovers(backend) == []
        assert set(threading.enumerate()) <= threads

    async def test_a_cancelled_insert_leaves_nothing_and_no_thread(self, backend: Backend, task: InsertTask) -> None:
        threads = set(threading.enumerate())
        notes = Notes()
        work = asyncio.create_task(backend.insert_image(task, notes))
        await notes.heard.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert self.effects(backend) == []
        assert self.leftovers(backend) == []
        assert set(threading.enumerate()) <= threads

    async def test_an_insert_after_a_cancelled_one_works(self, backend: Backend, task: InsertTask) -> None:
        notes = Notes()
        work = asyncio.create_task(backend.insert_image(task, notes))
        await notes.heard.wait()
        work.cancel()
        await asyncio.wait([work])
        await backend.insert_image(task, Notes())
        assert len(self.effects(backend)) == 1

    async def test_a_patch_may_come_twice(self, backend: Backend, task: InsertTask) -> None:
        await backend.insert_image(task, Notes())
        patch = patch_task(
            task, family="fam", deprecated=DeprecationStatus(state=DeprecationState.DEPRECATED), description=None
        )
        await backend.patch_image(patch, Notes())
        seen = self.effects(backend)
        await backend.patch_image(patch, Notes())
        assert self.effects(backend) == seen
        assert self.leftovers(backend) == []

    async def test_a_delete_may_come_twice(self, backend: Backend, task: InsertTask) -> None:
        await backend.insert_image(task, Notes())
        await backend.delete_image(delete_task(task), Notes())
        seen = self.effects(backend)
        await backend.delete_image(delete_task(task), Notes())
        assert self.effects(backend) == seen
        assert self.leftovers(backend) == []

    async def test_what_is_not_there_is_deleted_already(self, backend: Backend, task: InsertTask) -> None:
        await backend.delete_image(delete_task(task), Notes())
        assert self.leftovers(backend) == []


class MachineImageContract(ABC):
    @pytest.fixture
    @abstractmethod
    def backend(self) -> Backend: ...

    @pytest.fixture
    @abstractmethod
    def task(self) -> MachineImageTask:
        """One that ends well and, before it does, reports at least once."""

    @pytest.fixture
    @abstractmethod
    def failing_task(self) -> MachineImageTask: ...

    @abstractmethod
    def effects(self, backend: Backend) -> list[Any]:
        """All machine images that can be seen, and nothing else."""

    @abstractmethod
    def leftovers(self, backend: Backend) -> list[Any]:
        """Half-made things that can be found."""

    async def test_an_insert_tells_what_the_machine_image_is_like(
        self, backend: Backend, task: MachineImageTask
    ) -> None:
        facts = await backend.insert_machine_image(task, Notes())
        assert facts.stored_bytes == facts.total_storage_bytes
        assert_valid("SourceInstanceProperties", facts.properties)
        assert_valid("InstanceProperties", facts.instance_properties)
        assert len(self.effects(backend)) == 1
        assert self.leftovers(backend) == []

    async def test_progress_never_falls_and_stays_below_a_hundred(
        self, backend: Backend, task: MachineImageTask
    ) -> None:
        notes = Notes()
        await backend.insert_machine_image(task, notes)
        assert notes.percents == sorted(notes.percents)
        assert notes.percents
        assert notes.percents[-1] <= 99

    async def test_the_same_insert_twice_is_one_effect(self, backend: Backend, task: MachineImageTask) -> None:
        first = await backend.insert_machine_image(task, Notes())
        seen = self.effects(backend)
        assert await backend.insert_machine_image(task, Notes()) == first
        assert self.effects(backend) == seen

    async def test_a_failed_insert_leaves_nothing(self, backend: Backend, failing_task: MachineImageTask) -> None:
        threads = set(threading.enumerate())
        with pytest.raises(PermanentFailure) as failure:
            await backend.insert_machine_image(failing_task, Notes())
        assert failure.value.entry.code.isupper()
        assert self.effects(backend) == []
        assert self.leftovers(backend) == []
        assert set(threading.enumerate()) <= threads

    async def test_a_cancelled_insert_leaves_nothing_and_the_next_one_works(
        self, backend: Backend, task: MachineImageTask
    ) -> None:
        threads = set(threading.enumerate())
        notes = Notes()
        work = asyncio.create_task(backend.insert_machine_image(task, notes))
        await notes.heard.wait()
        work.cancel()
        with pytest.raises(asyncio.CancelledError):
            await work
        assert self.effects(backend) == []
        assert self.leftovers(backend) == []
        assert set(threading.enumerate()) <= threads
        await backend.insert_machine_image(task, Notes())
        assert len(self.effects(backend)) == 1

    async def test_a_patch_may_come_twice(self, backend: Backend, task: MachineImageTask) -> None:
        await backend.insert_machine_image(task, Notes())
        after = msgspec.structs.replace(task.machine_image, labels={"a": "b"})
        patch = MachineImagePatchTask("8", PROJECT, task.machine_image, after)
        await backend.patch_machine_image(patch, Notes())
        seen = self.effects(backend)
        await backend.patch_machine_image(patch, Notes())
        assert self.effects(backend) == seen
        assert self.leftovers(backend) == []

    async def test_a_delete_may_come_twice(self, backend: Backend, task: MachineImageTask) -> None:
        await backend.insert_machine_image(task, Notes())
        await backend.delete_machine_image(delete_task(task), Notes())
        seen = self.effects(backend)
        await backend.delete_machine_image(delete_task(task), Notes())
        assert self.effects(backend) == seen
        assert self.leftovers(backend) == []

    async def test_what_is_not_there_is_deleted_already(self, backend: Backend, task: MachineImageTask) -> None:
        await backend.delete_machine_image(delete_task(task), Notes())
        assert self.leftovers(backend) == []


def failed(failure: pytest.ExceptionInfo[BackendFailure]) -> tuple[str, int, str]:
    """(code, HTTP status, message) as the record will show them."""
    error = failure.value
    return error.entry.code, int(error.http_status), error.entry.message
