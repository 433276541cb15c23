"""Machine images: the disks of an instance, and what the instance is like, in one directory that appears at once."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from http import HTTPStatus
from pathlib import Path
from threading import Event

import msgspec

from imageopsd.backends.local.blocks import BlockTable
from imageopsd.backends.local.clone import Cloner
from imageopsd.backends.local.disk import Disk, Reservation
from imageopsd.backends.local.disks import encryption_of, file_name, new_disk
from imageopsd.backends.local.instances import AttachedDisk, Instance
from imageopsd.backends.local.layout import Layout
from imageopsd.backends.local.manifest import MachineImageManifest, SavedFile
from imageopsd.backends.local.options import Options
from imageopsd.backends.local.pipe import in_thread
from imageopsd.backends.local.progress import MOVED, Meter
from imageopsd.backends.local.reading import PlainDisk, Readable, pour
from imageopsd.backends.local.resources import Resources, SourceDisk
from imageopsd.backends.local.room import Room, waited
from imageopsd.backends.local.saved import (
    attached_disk,
    disk_of,
    found,
    instance_properties,
    saved_attached_disk,
    saved_disk,
    source_properties,
    stored,
)
from imageopsd.model.errors import NoRoom, PermanentFailure
from imageopsd.model.keys import check_given
from imageopsd.model.machine_image import (
    MachineImage,
    MachineImageFacts,
    MachineImageParams,
    MachineImageTask,
    machine_image_path,
    published,
)
from imageopsd.model.operation import OperationWarning
from imageopsd.model.references import Reference, parse_instance_reference
from imageopsd.ports import MachineImagePatchTask, Reporter


class _Copy(msgspec.Struct, frozen=True):
    """One disk on its way into the bundle; `index` is its place in the instance."""

    index: int
    attached: AttachedDisk
    source: SourceDisk
    plain: Readable
    path: Path
    disk: Disk
    table: BlockTable
    meter: Meter
    as_it_is: bool
    """Nothing is encrypted, here or there: the file system may copy it."""


class _BundleMeter(Meter):
    """The progress of all copies together, whose meters it makes one for each."""

    def __init__(self) -> None:
        super().__init__("copying", None)
        self._parts: list[Meter] = []

    def part(self, size: int) -> Meter:
        self.size = (self.size or 0) + size
        self._parts.append(Meter("copying", None))
        return self._parts[-1]

    def tell(self, report: Reporter) -> None:
        self.made = sum(part.made for part in self._parts)
        super().tell(report)


class MachineImages:
    def __init__(self, options: Options, layout: Layout, resources: Resources, cloner: Cloner, room: Room) -> None:
        self._margin = options.free_space_margin
        self._layout = layout
        self._resources = resources
        self._cloner = cloner
        self._room = room

    async def insert(self, task: MachineImageTask, report: Reporter) -> MachineImageFacts:
        """Raises BackendFailure, and OSError from the data directory."""
        place = self._layout.machine_image(task.project, int(task.machine_image.id or 0))
        made = await in_thread("find", lambda: self._layout.found(place, task.operation_id, MachineImageManifest))
        if made is not None:
            facts = made.facts
        else:
            self._room.wait(task.operation_id, self._margin)
            facts = await self._make(task, place, report)
        _warn(task.machine_image, facts, report)
        return facts

    def patch(self, task: MachineImagePatchTask) -> None:
        """Blocks. Raises PermanentFailure, and OSError from the data directory."""
        place = self._layout.machine_image(task.project, int(task.after.id or 0))
        try:
            manifest = MachineImageManifest.read(place)
        except FileNotFoundError:
            raise PermanentFailure(
                "RESOURCE_NOT_FOUND",
                f"The resource '{machine_image_path(task.project, str(task.after.name))}' was not found",
                HTTPStatus.NOT_FOUND,
            ) from None
        self._layout.rewrite_manifest(task.operation_id, place, manifest.showing(task.after))

    async def _make(self, task: MachineImageTask, place: Path, report: Reporter) -> MachineImageFacts:
        source = task.machine_image.source_instance or ""
        reference = parse_instance_reference(source, task.project, "resource.sourceInstance")
        disks = list[Disk]()
        try:
            with self._room.failures(task.operation_id, self._margin, disks):
                instance = await in_thread("read", lambda: self._resources.instance(reference))
                chosen = _chosen(instance, task.machine_image.params, reference)
                staged = await in_thread("begin", lambda: self._layout.begin(task.operation_id))
                with ExitStack() as files:
                    meter = _BundleMeter()
                    copies = await in_thread("open", lambda: self._open(chosen, reference, task, staged, meter, files))
                    disks += [copy.disk for copy in copies]
                    stop = Event()
                    with meter.telling(report):
                        await in_thread("copy", lambda: self._copy(copies, stop), stop.set)
                    report.progress(MOVED, "reading it for its digests")
                    await in_thread("digest", lambda: _digest(copies, stop), stop.set)
                    report.progress(MOVED, "making it safe on disk")
                    sizes = await in_thread("sync", lambda: [copy.disk.finish(copy.source.size) for copy in copies])
                    saved = await in_thread("sync", lambda: [_saved_file(copy) for copy in copies])
                report.progress(95, "publishing")
                manifest = _manifest(task, reference, saved, _facts(instance, reference.project, chosen, copies, sizes))
                await in_thread("publish", lambda: self._layout.publish(staged, manifest, place))
        except BaseException as error:
            if isinstance(error, NoRoom):
                report.warn(waited(error))
            # as with an image: also what was published already
            await in_thread("discard", lambda: self._layout.discard(task.operation_id, place))
            raise
        report.progress(98, "published")
        return manifest.facts

    def _open(
        self,
        disks: dict[int, AttachedDisk],
        instance: Reference,
        task: MachineImageTask,
        staged: Path,
        meter: _BundleMeter,
        files: ExitStack,
    ) -> list[_Copy]:
        """All sources before anything is copied: what is missing is told at once, and the copies begin together."""
        sources = {
            index: files.enter_context(self._resources.disk(disk_of(attached, index, instance)))
            for index, attached in disks.items()
            if attached.type == "PERSISTENT"
        }
        keys, bundle = task.keys.disks, task.keys.bundle
        check_given(task.machine_image.machine_image_encryption_key, bundle, "resource.machineImageEncryptionKey")
        _check_needed(keys, [source.reference for source in sources.values()])
        plain = {index: source.opened(keys.get(source.reference.path)) for index, source in sources.items()}
        copies, reserved = [], Reservation(task.reserved_bytes)
        for index, source in sources.items():
            image_id = int(task.machine_image.id or 0)
            disk, table = files.enter_context(
                new_disk(staged, f"disk-{index}", self._margin, bundle, image_id, reserved)
            )
            path = staged / file_name(f"disk-{index}", encrypted=bundle is not None)
            part, as_it_is = meter.part(source.size), isinstance(plain[index], PlainDisk) and bundle is None
            copies.append(_Copy(index, disks[index], source, plain[index], path, disk, table, part, as_it_is))
        return copies

    def _copy(self, copies: Sequence[_Copy], stop: Event) -> None:
        for copy in copies:
            if copy.as_it_is:
                self._cloner.clone(copy.source.descriptor, copy.disk, copy.meter, stop)
            else:
                pour(copy.plain, copy.disk, copy.table, copy.meter, stop)
        # only after the last one: the bundle is of one moment if no disk changed until then
        for copy in copies:
            copy.source.check_unchanged()


def _chosen(instance: Instance, params: MachineImageParams | None, reference: Reference) -> dict[int, AttachedDisk]:
    """The disks that the machine image is to have, by their place in the instance. Raises PermanentFailure for a
    device name that no disk has."""
    params = params or MachineImageParams()
    known = {disk.device_name for disk in instance.disks}
    for name, names in (("includedDisks", params.included_disks), ("excludedDisks", params.excluded_disks)):
        for unknown in (device for device in names if device not in known):
            raise PermanentFailure(
                "INVALID_FIELD_VALUE",
                f"Invalid value for field 'resource.params.{name}': '{unknown}'. "
                f"The resource '{reference.path}' has no disk with that device name.",
                HTTPStatus.BAD_REQUEST,
            )
    return {
        index: disk
        for index, disk in enumerate(instance.disks)
        if disk.device_name not in params.excluded_disks
        and (not params.included_disks or disk.device_name in params.included_disks)
    }


def _facts(
    instance: Instance, project: str, disks: dict[int, AttachedDisk], copies: Sequence[_Copy], sizes: Sequence[int]
) -> MachineImageFacts:
    """`project` is the instance's; `sizes` are what the copies take on the device, in bytes."""
    attached = {index: attached_disk(disk, index, project) for index, disk in disks.items()}
    saved = {index: saved_attached_disk(disk, index, project) for index, disk in disks.items()}
    for copy, size in zip(copies, sizes, strict=True):
        of_disk = found(copy.source.reference, copy.source.size)
        attached[copy.index] |= of_disk
        saved[copy.index] |= of_disk | stored(size)
    return MachineImageFacts(
        total_storage_bytes=sum(sizes),
        properties=source_properties(instance, [*saved.values()]),
        instance_properties=instance_properties(instance, [*attached.values()]),
        saved_disks=tuple(
            saved_disk(copy.attached, copy.source.reference, size) for copy, size in zip(copies, sizes, strict=True)
        ),
        stored_bytes=sum(sizes),
    )


def _manifest(
    task: MachineImageTask,
    source: Reference,
    disks: Sequence[SavedFile],
    facts: MachineImageFacts,
) -> MachineImageManifest:
    machine_image = task.machine_image
    return MachineImageManifest(
        operation=task.operation_id,
        project=task.project,
        machine_image_id=str(machine_image.id),
        name=machine_image.name,
        created=machine_image.creation_timestamp,
        description=machine_image.description,
        source=source.path,
        disks=tuple(disks),
        facts=facts,
    ).showing(published(machine_image, facts))


def _warn(machine_image: MachineImage, facts: MachineImageFacts, report: Reporter) -> None:
    """Tells what was asked for, or could be expected, and was not done."""
    if machine_image.guest_flush:
        report.warn(
            OperationWarning.of(
                "NOT_CRITICAL_ERROR",
                "The disks were copied as they are: a local disk has no guest that could be told to flush it.",
                field="resource.guestFlush",
            )
        )
    for disk in facts.properties["disks"]:
        if disk["type"] == "SCRATCH":
            report.warn(
                OperationWarning.of(
                    "NOT_CRITICAL_ERROR",
                    "The content of a scratch disk is not part of a machine image.",
                    index=disk["index"],
                    device_name=disk.get("deviceName", ""),
                )
            )


def _digest(copies: Sequence[_Copy], stop: Event) -> None:
    """Of what the file system copied; the others' digests were made on their way."""
    for copy in copies:
        if copy.as_it_is:
            copy.table.read(copy.disk.fd, stop)


def _saved_file(copy: _Copy) -> SavedFile:
    content, encryption = copy.table.finish(), encryption_of(copy.path)
    return SavedFile(copy.path.name, copy.source.reference.path, copy.source.size, content, encryption)


def _check_needed(keys: Mapping[str, bytes], disks: Sequence[Reference]) -> None:
    """Raises PermanentFailure for a key of a disk that is not among those to copy."""
    for path in keys.keys() - {disk.path for disk in disks}:
        raise PermanentFailure(
            "INVALID_FIELD_VALUE",
            f"Invalid value for field 'resource.sourceDiskEncryptionKeys': '{path}'. "
            "It is not one of the disks that the machine image is made of.",
            HTTPStatus.BAD_REQUEST,
        )
