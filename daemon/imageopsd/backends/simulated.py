"""A backend that only pretends: progress, warnings and faults on order, for demonstrations and for tests of the rest.

[[backends.simulated.scripts]]
image = "flaky-*"
steps = [{ progress = 30 }, { wait = "500ms" }, { warn = "The disk is old." }, { fail = "transient", times = 2 }]
"""

import asyncio
from collections import OrderedDict
from fnmatch import fnmatchcase
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeVar

import msgspec

from imageopsd.backends.journal import Journal
from imageopsd.model.durations import Seconds
from imageopsd.model.errors import BackendFailure, PermanentFailure, TemporaryFailure
from imageopsd.model.image import ImageFacts
from imageopsd.model.machine_image import MachineImageFacts, MachineImageTask
from imageopsd.model.operation import OperationWarning
from imageopsd.model.quota import EVERY_PROJECT, Limit, Metric, refusal
from imageopsd.ports import DeleteTask, InsertTask, MachineImagePatchTask, PatchTask, Reporter

TICKS = 20
"""How often an image without a script tells of its progress."""
KEPT = 4096
"""How many images, machine images and effects are remembered, the last ones; nobody repeats an operation as late."""

QUOTA = Limit(project=EVERY_PROJECT, metric=Metric.IMAGES, limit=2000)
"""What a scripted quota failure tells; the quotas of the configuration are none of this backend's."""

K = TypeVar("K")
V = TypeVar("V")

Verb = Literal["insert", "patch", "delete", "insert-machine-image", "patch-machine-image", "delete-machine-image"]


class Step(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One of `progress`, `wait`, `warn`, `fail`; the other fields say more about it."""

    progress: int | None = None
    """Percent to report, 0 to 99."""

    wait: Seconds | None = None
    """Let this time pass."""

    warn: str | None = None
    """A warning's message; `code` is its code."""

    fail: Literal["transient", "outage", "permanent", "quota"] | None = None
    """A failure; `code` and `message` are its words. An outage is a transient one of the whole backend."""

    code: str | None = None
    message: str | None = None

    times: int = 1
    """How many tries a transient failure hits before it lets one pass."""

    retry_after: Seconds | None = None
    """What a transient failure asks the worker to wait."""

    def __post_init__(self) -> None:
        named = [name for name in ("progress", "wait", "warn", "fail") if getattr(self, name) is not None]
        if len(named) != 1:
            raise ValueError(f"a step is one of progress, wait, warn and fail, not {' and '.join(named) or 'none'}")
        if self.progress is not None and not 0 <= self.progress <= 99:
            raise ValueError(f"progress: {self.progress} is not between 0 and 99")


class Script(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What happens to images whose name matches `image` (`*` and `?` as in a shell); with a verb for machine images,
    to those."""

    image: str
    steps: tuple[Step, ...]
    verb: Verb = "insert"


class _Options(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    duration: Seconds = Seconds(2)
    """How long an insert without a script takes; "0s" is done at once."""

    scripts: tuple[Script, ...] = ()
    """The first that matches is played."""

    journal: str = ""
    """A file that keeps what was done across restarts, for crash tests; empty: none."""


class _Place(msgspec.Struct, frozen=True, array_like=True):
    """The checkpoint: the step to go on with, and how often it has failed already."""

    step: int = 0
    failures: int = 0


class SimulatedBackend:
    """Remembers what it made, because a repeated operation gets the same again."""

    Options = _Options
    fixed = frozenset({"journal"})

    def __init__(self, options: _Options, data_dir: Path) -> None:
        self._options = options
        self._images: OrderedDict[str, ImageFacts] = OrderedDict()
        self._machine_images: OrderedDict[str, MachineImageFacts] = OrderedDict()
        self._effects: OrderedDict[tuple[str, Verb], None] = OrderedDict()
        self._journal = Journal(Path(options.journal)) if options.journal else None

    def configure(self, options: _Options) -> None:
        self._options = options

    @property
    def effects(self) -> list[tuple[str, Verb]]:
        """What it did lately, as (operation id, verb), so that a test can count. An effect happens once."""
        return list(self._effects)

    async def __aenter__(self) -> Self:
        if self._journal is not None:
            self._journal.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._journal is not None:
            self._journal.close()

    def obstacle(self) -> str | None:
        return None

    async def insert_image(self, task: InsertTask, report: Reporter) -> ImageFacts:
        made = self._images.get(task.operation_id)
        if made is None:
            if self._begin(task.operation_id, "insert", task.image.id):
                await self._take_time("insert", task.image.name, task.checkpoint, report)
            made = ImageFacts(disk_size_gb=int(task.image.disk_size_gb or 1), archive_size_bytes=0, stored_bytes=0)
            _remember(self._images, task.operation_id, made)
            self._note(task.operation_id, "insert")
        return made

    async def patch_image(self, task: PatchTask, report: Reporter) -> None:
        if self._begin(task.operation_id, "patch", task.after.id):
            await _play(self._script("patch", task.after.name) or (), None, report)
        self._note(task.operation_id, "patch")

    async def delete_image(self, task: DeleteTask, report: Reporter) -> None:
        if self._begin(task.operation_id, "delete", task.id):
            await _play(self._script("delete", task.name) or (), None, report)
        self._note(task.operation_id, "delete")

    async def insert_machine_image(self, task: MachineImageTask, report: Reporter) -> MachineImageFacts:
        made = self._machine_images.get(task.operation_id)
        if made is None:
            if self._begin(task.operation_id, "insert-machine-image", task.machine_image.id):
                await self._take_time("insert-machine-image", task.machine_image.name, None, report)
            machine = {"machineType": "simulated"}
            made = MachineImageFacts(0, machine, instance_properties=machine, stored_bytes=0)
            _remember(self._machine_images, task.operation_id, made)
            self._note(task.operation_id, "insert-machine-image")
        return made

    async def patch_machine_image(self, task: MachineImagePatchTask, report: Reporter) -> None:
        if self._begin(task.operation_id, "patch-machine-image", task.after.id):
            await _play(self._script("patch-machine-image", task.after.name) or (), None, report)
        self._note(task.operation_id, "patch-machine-image")

    async def delete_machine_image(self, task: DeleteTask, report: Reporter) -> None:
        if self._begin(task.operation_id, "delete-machine-image", task.id):
            await _play(self._script("delete-machine-image", task.name) or (), None, report)
        self._note(task.operation_id, "delete-machine-image")

    def _begin(self, operation_id: str, verb: Verb, target: int | None) -> bool:
        """Whether the effect is still to be made: with a journal, an earlier process may have made it."""
        return self._journal is None or self._journal.begin(operation_id, verb, target)

    def _note(self, operation_id: str, verb: Verb) -> None:
        _remember(self._effects, (operation_id, verb), None)
        if self._journal is not None:
            self._journal.end(operation_id, verb)

    def _script(self, verb: Verb, name: str | None) -> tuple[Step, ...] | None:
        for script in self._options.scripts:
            if script.verb == verb and fnmatchcase(name or "", script.image):
                return script.steps
        return None

    async def _take_time(self, verb: Verb, name: str | None, checkpoint: bytes | None, report: Reporter) -> None:
        """What the script says, or the duration."""
        steps = self._script(verb, name)
        if steps is None:
            await self._pass_time(report)
        else:
            await _play(steps, checkpoint, report)

    async def _pass_time(self, report: Reporter) -> None:
        if self._options.duration:
            for tick in range(TICKS):
                report.progress(tick * 100 // TICKS, "simulating")
                await asyncio.sleep(self._options.duration / TICKS)


def _remember(memory: OrderedDict[K, V], key: K, value: V) -> None:
    memory[key] = value
    if len(memory) > KEPT:
        memory.popitem(last=False)


async def _play(steps: tuple[Step, ...], checkpoint: bytes | None, report: Reporter) -> None:
    """From where the checkpoint stands to the end, or to the first failure."""
    place = msgspec.json.decode(checkpoint, type=_Place) if checkpoint else _Place()
    for number in range(place.step, len(steps)):
        step = steps[number]
        failures = place.failures if number == place.step else 0
        if step.progress is not None:
            report.progress(step.progress, step.message)
        elif step.wait is not None:
            await asyncio.sleep(step.wait)
        elif step.warn is not None:
            report.warn(OperationWarning.of(step.code or "NOT_CRITICAL_ERROR", step.warn))
        elif step.fail not in ("transient", "outage") or failures < step.times:
            await report.checkpoint(msgspec.json.encode(_Place(number, failures + 1)))
            raise _failure(step)
        await report.checkpoint(msgspec.json.encode(_Place(number + 1)))


def _failure(step: Step) -> BackendFailure:
    if step.fail == "quota":
        return refusal(Metric.IMAGES, QUOTA, step.message)
    if step.fail == "permanent":
        return PermanentFailure(
            step.code or "SIMULATED_FAILURE", step.message or "The script wants it so.", HTTPStatus.BAD_REQUEST
        )
    return TemporaryFailure(
        step.code or "SIMULATED_OUTAGE",
        step.message or "The script wants it so, for now.",
        delay=step.retry_after,
        of_backend=step.fail == "outage",
    )
