"""The door of the local backend: what an insert and a patch are made of, and what is left if they fail.

Machine images have a module of their own, `machines`.
"""

import asyncio
import os
from collections.abc import Coroutine
from contextlib import AbstractContextManager, ExitStack, nullcontext
from http import HTTPStatus
from pathlib import Path
from threading import Event
from types import TracebackType
from typing import Any, Self, TypeVar

from msgspec.structs import replace

from imageopsd.backends.local.archive import take_in
from imageopsd.backends.local.blocks import SUFFIX, BlockTable, Content
from imageopsd.backends.local.clone import Cloner
from imageopsd.backends.local.disk import Disk, Reservation
from imageopsd.backends.local.disks import Encryption, encryption_of, file_name, new_disk, opened
from imageopsd.backends.local.intake import Taken
from imageopsd.backends.local.keeping import Keeping
from imageopsd.backends.local.layout import DISK, Layout
from imageopsd.backends.local.machines import MachineImages
from imageopsd.backends.local.manifest import ImageManifest
from imageopsd.backends.local.options import Options as LocalOptions
from imageopsd.backends.local.pipe import in_thread
from imageopsd.backends.local.progress import MOVED, Meter
from imageopsd.backends.local.reading import Readable, pour
from imageopsd.backends.local.resources import Resources
from imageopsd.backends.local.room import Room, waited
from imageopsd.backends.local.sizes import CheckSize, check_asked_size, check_reserved, disk_size
from imageopsd.backends.local.sources.source import without_secrets
from imageopsd.backends.local.turns import Turns
from imageopsd.model.errors import InvalidRequest, NoRoom, NotYet, PermanentFailure, TemporaryFailure
from imageopsd.model.image import GIB, Image, ImageFacts, published
from imageopsd.model.keys import check_given
from imageopsd.model.machine_image import MachineImageFacts, MachineImageTask
from imageopsd.model.names import image_path, parse_image_reference
from imageopsd.model.references import Reference, parse_disk_reference, parse_snapshot_reference
from imageopsd.model.sources import server_of
from imageopsd.ports import DeleteTask, ImageKeys, InsertTask, MachineImagePatchTask, PatchTask, Reporter

T = TypeVar("T")

PLAIN_DISK = file_name(DISK, encrypted=False)


class LocalBackend(Keeping):
    """Images are files beneath a directory; see `layout` for which."""

    Options = LocalOptions
    fixed: frozenset[str] = frozenset()

    def __init__(self, options: LocalOptions, data_dir: Path) -> None:
        self._layout = Layout(data_dir)
        self._cloner = Cloner()
        self._turns = Turns()
        self._room = Room(data_dir)
        self.configure(options)

    def configure(self, options: LocalOptions) -> None:
        """For what is begun from now on, and where a limit is looked at again, also for what runs."""
        self._options = options
        self._turns.limit(options.max_imports_per_project, options.max_imports_per_server)
        self._resources = Resources(options)
        self._machine_images = MachineImages(options, self._layout, self._resources, self._cloner, self._room)

    async def __aenter__(self) -> Self:
        await in_thread("prepare", self._layout.prepare)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is open."""

    def obstacle(self) -> str | None:
        try:
            system = os.statvfs(self._layout.root)
        except OSError as error:
            return f"The directory '{self._layout.root}' cannot be used: {error.strerror}"
        free = system.f_bavail * system.f_frsize
        if free >= self._options.free_space_margin:
            return None
        return (
            f"The disk is full: the file system of '{self._layout.root}' has {free} bytes left, less than the "
            f"{int(self._options.free_space_margin)} of backends.local.free_space_margin"
        )

    async def insert_image(self, task: InsertTask, report: Reporter) -> ImageFacts:
        place = self._place(task.project, task.image)
        with self._room.failures(task.operation_id):
            made = await in_thread("find", lambda: self._layout.found(place, task.operation_id, ImageManifest))
            if made is not None:
                _warn_of_size(made.content_bytes, task.image, report)
                return made.facts
            check_asked_size(task.image.disk_size_gb, self._options.max_disk_gb)
            check_given(task.image.image_encryption_key, task.keys.image, "resource.imageEncryptionKey")
            self._room.wait(task.operation_id, self._options.free_space_margin)
            with self._turn(task):  # before anything is made: it may be asked for every second
                return await self._in_time("image", self._make(task, report))

    async def patch_image(self, task: PatchTask, report: Reporter) -> None:
        with self._room.failures(task.operation_id):
            await in_thread("patch", lambda: self._patch(task))

    async def delete_image(self, task: DeleteTask, report: Reporter) -> None:
        await self._remove(task, self._layout.image(task.project, task.id))

    async def insert_machine_image(self, task: MachineImageTask, report: Reporter) -> MachineImageFacts:
        with self._room.failures(task.operation_id):
            return await self._in_time("machine image", self._machine_images.insert(task, report))

    async def patch_machine_image(self, task: MachineImagePatchTask, report: Reporter) -> None:
        with self._room.failures(task.operation_id):
            await in_thread("patch", lambda: self._machine_images.patch(task))

    async def delete_machine_image(self, task: DeleteTask, report: Reporter) -> None:
        await self._remove(task, self._layout.machine_image(task.project, task.id))

    async def _remove(self, task: DeleteTask, place: Path) -> None:
        with self._room.failures(task.operation_id):
            await in_thread("remove", lambda: self._layout.remove(place))

    async def _in_time(self, what: str, making: Coroutine[Any, Any, T]) -> T:
        limit = self._options.total_timeout
        try:
            async with asyncio.timeout(limit) as deadline:
                return await making
        except TimeoutError as error:
            if not deadline.expired():  # a network file system has timeouts of its own
                raise
            # for good: the next try would take as long
            raise PermanentFailure(
                "DEADLINE_EXCEEDED",
                f"The {what} was not made within the {limit!s} of backends.local.total_timeout.",
                HTTPStatus.GATEWAY_TIMEOUT,
            ) from error

    # ------------------------------------------------------------------------------------------- the insert

    def _turn(self, task: InsertTask) -> AbstractContextManager[None]:
        """Raises NotYet if too many import at this moment; a copy needs no turn."""
        raw = task.image.raw_disk
        if raw is None or not raw.source:
            return nullcontext()
        return self._turns.take(task.project, server_of(raw.source))

    async def _make(self, task: InsertTask, report: Reporter) -> ImageFacts:
        place = self._place(task.project, task.image)
        margin, disks = self._options.free_space_margin, list[Disk]()
        try:
            with self._room.failures(task.operation_id, margin, disks):
                staged = await in_thread("begin", lambda: self._layout.begin(task.operation_id))
                key, image_id = task.keys.image, int(task.image.id or 0)
                reserved = Reservation(task.reserved_bytes)
                with new_disk(staged, DISK, margin, key, image_id, reserved) as (disk, table):
                    disks.append(disk)
                    taken = await self._fill(disk, table, staged, task, report)
                    report.progress(MOVED, "making it safe on disk")
                    size_gb = _warn_of_size(taken.disk_size, task.image, report)
                    stored = await in_thread("sync", lambda: disk.finish(size_gb * GIB))
                    content = await in_thread("sync", table.finish)
                path = staged / file_name(DISK, encrypted=key is not None)
                encryption = await in_thread("read", lambda: encryption_of(path))
                report.progress(95, "publishing")
                facts = ImageFacts(
                    disk_size_gb=size_gb,
                    archive_size_bytes=taken.archive_size,
                    stored_bytes=stored,
                    # who has it could tell what is encrypted here
                    sha256=taken.sha256 if encryption is None else None,
                )
                manifest = _manifest(task, taken.disk_size, content, encryption, facts)
                await in_thread("publish", lambda: self._layout.publish(staged, manifest, place))
        except BaseException as error:
            if isinstance(error, NoRoom):
                report.warn(waited(error))
            # also what was published already: nobody else can have done it under this id, and nobody knows of it yet
            resume = isinstance(error, TemporaryFailure | NotYet | asyncio.CancelledError)
            await in_thread("discard", lambda: self._layout.discard(task.operation_id, place, resume=resume))
            if isinstance(error, NoRoom) and self._room.free(margin) < 0:
                # what is kept of the source must not be what everybody waits for
                await in_thread("discard", lambda: self._layout.discard(task.operation_id, place))
            raise
        report.progress(98, "published")
        return facts

    async def _fill(self, disk: Disk, table: BlockTable, staged: Path, task: InsertTask, report: Reporter) -> Taken:
        def check(content: int) -> None:
            check_reserved(content, task.image.disk_size_gb, task.reserved_gb)

        raw = task.image.raw_disk
        if raw is not None and raw.source:
            options = self._options if task.keys.image is None else replace(self._options, resume_rate=0)
            root = self._layout.root
            return await take_in(raw, task.project, disk, table, staged.parent, options, root, check, report)
        if task.source is not None:
            return await self._copy_image(task.source, disk, table, task.keys, check, report)
        if self._resources.configured:
            reference = _source_of(task.image, task.project)
            return await self._copy_resource(reference, disk, table, task.keys, check, report, task.force)
        raise PermanentFailure(
            "UNSUPPORTED_OPERATION",
            "Images are made from disks and snapshots only where backends.local.resources_dir says where those are.",
            HTTPStatus.BAD_REQUEST,
        )

    async def _copy_image(
        self, source: Image, disk: Disk, table: BlockTable, keys: ImageKeys, check: CheckSize, report: Reporter
    ) -> Taken:
        if keys != ImageKeys() or source.image_encryption_key is not None:
            return await self._pour_image(source, disk, table, keys, check, report)
        descriptor, manifest, place = self._open(source)
        try:
            check(os.fstat(descriptor).st_size)
            await self._copy(descriptor, disk, report)
            size = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        try:
            # the same content has the same table; if the source was damaged, so that a look at the copy tells it too
            await in_thread("digest", lambda: table.copy(place / f"{PLAIN_DISK}{SUFFIX}"))
        except FileNotFoundError:  # deleted meanwhile
            await self._digest(disk, table, report)
        return Taken(size, manifest.facts.archive_size_bytes, manifest.facts.sha256)

    async def _pour_image(
        self, source: Image, disk: Disk, table: BlockTable, keys: ImageKeys, check: CheckSize, report: Reporter
    ) -> Taken:
        """Where one of the two is encrypted: what the file system could share or copy is of no use."""
        project, _, _ = parse_image_reference(source.self_link or "", "", "sourceImage")
        place = self._place(project, source)
        with ExitStack() as files:
            try:
                manifest = await in_thread("open", lambda: ImageManifest.read(place))
                path = place / file_name(DISK, encrypted=manifest.encryption is not None)
                name = image_path(project, str(source.name))
                plain = await in_thread("open", lambda: files.enter_context(opened(path, keys.source, name)))
            except FileNotFoundError:
                raise _gone(project, source) from None
            check(plain.size)
            await self._pour(plain, disk, table, report)
            return Taken(plain.size, manifest.facts.archive_size_bytes, manifest.facts.sha256)

    async def _copy_resource(
        self,
        reference: Reference,
        disk: Disk,
        table: BlockTable,
        keys: ImageKeys,
        check: CheckSize,
        report: Reporter,
        force: bool,
    ) -> Taken:
        with ExitStack() as files:
            source = await in_thread("open", lambda: files.enter_context(self._resources.disk(reference)))
            check(source.size)
            if not force:
                source.check_unused()
            plain = await in_thread("open", lambda: source.opened(keys.source))
            if keys == ImageKeys():
                await self._copy(source.descriptor, disk, report)
            else:
                await self._pour(plain, disk, table, report)
            if not force:
                source.check_unused()
                source.check_unchanged()
            if keys == ImageKeys():
                await self._digest(disk, table, report)
            return Taken(source.size, archive_size=None, sha256=None)

    async def _digest(self, disk: Disk, table: BlockTable, report: Reporter) -> None:
        report.progress(MOVED, "reading it for its digests")
        stop = Event()
        await in_thread("digest", lambda: table.read(disk.fd, stop), stop.set)

    async def _pour(self, source: Readable, disk: Disk, table: BlockTable, report: Reporter) -> None:
        meter, stop = Meter("copying", None), Event()
        with meter.telling(report):
            await in_thread("copy", lambda: pour(source, disk, table, meter, stop), stop.set)

    async def _copy(self, descriptor: int, disk: Disk, report: Reporter) -> None:
        meter, stop = Meter("copying", None), Event()
        with meter.telling(report):
            await in_thread("copy", lambda: self._cloner.clone(descriptor, disk, meter, stop), stop.set)

    def _open(self, source: Image) -> tuple[int, ImageManifest, Path]:
        project, _, _ = parse_image_reference(source.self_link or "", "", "sourceImage")
        place = self._place(project, source)
        try:
            manifest = ImageManifest.read(place)
            return os.open(place / PLAIN_DISK, os.O_RDONLY | os.O_CLOEXEC), manifest, place
        except FileNotFoundError:
            raise _gone(project, source) from None

    # ------------------------------------------------------------------------------- the patch, and the rest

    def _patch(self, task: PatchTask) -> None:
        place = self._place(task.project, task.after)
        try:
            manifest = ImageManifest.read(place)
        except FileNotFoundError:
            raise _gone(task.project, task.after) from None
        self._layout.rewrite_manifest(task.operation_id, place, manifest.patched(task.after))

    def _place(self, project: str, image: Image) -> Path:
        return self._layout.image(project, int(image.id or 0))


def _warn_of_size(content: int, image: Image, report: Reporter) -> int:
    """The size in GB that a disk of `content` bytes gives; tells what differs from what was asked."""
    size_gb, warnings = disk_size(content, image.disk_size_gb)
    for warning in warnings:
        report.warn(warning)
    return size_gb


def _manifest(
    task: InsertTask, content_bytes: int, content: Content, encryption: Encryption | None, facts: ImageFacts
) -> ImageManifest:
    image = task.image
    source = image.raw_disk.source if image.raw_disk else None
    source = source or image.source_image or image.source_disk or image.source_snapshot
    return ImageManifest(
        operation=task.operation_id,
        project=task.project,
        image_id=str(image.id),
        name=image.name,
        created=image.creation_timestamp,
        source=without_secrets(source) if source else None,
        content_bytes=content_bytes,
        content=content,
        encryption=encryption,
        facts=facts,
    ).patched(published(image, facts))


def _source_of(image: Image, project: str) -> Reference:
    """The disk or snapshot that is the image's source. Raises PermanentFailure."""
    try:
        if image.source_snapshot:
            return parse_snapshot_reference(image.source_snapshot, project, "resource.sourceSnapshot")
        return parse_disk_reference(image.source_disk or "", project, "resource.sourceDisk")
    except InvalidRequest as error:  # a rule that admission does not know
        raise PermanentFailure(error.code, error.message, error.http_status) from None


def _gone(project: str, image: Image) -> PermanentFailure:
    return PermanentFailure(
        "RESOURCE_NOT_FOUND",
        f"The resource '{image_path(project, image.name or str(image.id))}' was not found",
        HTTPStatus.NOT_FOUND,
    )
