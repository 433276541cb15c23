"""What of images is on this host, apart from making them: finding it, checking it, giving it back, clearing it away."""

import os
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from threading import Event
from typing import BinaryIO, NamedTuple

import msgspec

from imageopsd.backends.local.blocks import Content
from imageopsd.backends.local.disks import Encryption, file_name, opened, seals_damage
from imageopsd.backends.local.export import write_archive, write_raw
from imageopsd.backends.local.layout import DISK, Layout, is_directory
from imageopsd.backends.local.manifest import ImageManifest, MachineImageManifest
from imageopsd.backends.local.pipe import in_thread
from imageopsd.backends.local.room import Room
from imageopsd.backends.local.verify import CheckedDisk, damage
from imageopsd.model.errors import InvalidRequest, PermanentFailure
from imageopsd.model.image import GIB, Image
from imageopsd.model.resource import IMAGES, MACHINE_IMAGES, Resource, resource_path
from imageopsd.ports import Kept


class Keeping:
    """The local backend as a `ports.Keeper`."""

    _layout: Layout
    _room: Room

    def kept(self) -> Iterator[Kept]:
        for project, place in self._layout.places():
            found = Kept(str(place.relative_to(self._layout.root)), project, int(place.name))
            try:
                manifest = self._manifest(found)
            except (OSError, PermanentFailure):
                if os.path.lexists(place):  # else it was deleted in this moment
                    yield found
            else:
                yield msgspec.structs.replace(
                    found,
                    operation=manifest.operation,
                    resource=manifest.resource,
                    stored_bytes=manifest.facts.stored_bytes or 0,
                )

    def keeps(self, project: str, resource: Resource) -> bool | None:
        find = self._layout.image if isinstance(resource, Image) else self._layout.machine_image
        place = find(project, int(resource.id or 0))
        # a project's directory is never removed
        return is_directory(place) if is_directory(place.parent) else None

    def damage(self, kept: Kept) -> Iterator[str]:
        place = self._layout.root / kept.place
        for problem in self._damage(kept, place):
            if not place.is_dir():  # what was taken away piece by piece looks like damage
                raise FileNotFoundError(place)
            yield problem

    def _damage(self, kept: Kept, place: Path) -> Iterator[str]:
        try:
            manifest = self._manifest(kept)
        except (OSError, PermanentFailure):
            yield "its manifest is gone or damaged"
            return
        for disk in _disks(manifest):
            prefix = "" if isinstance(manifest, ImageManifest) else f"{disk.file}: "
            path = place / disk.file
            try:
                problems = chain(damage(path, disk.size, disk.content), seals_damage(path, disk.encryption))
                yield from (f"{prefix}{problem}" for problem in problems)
            except OSError as error:
                yield f"{prefix}{disk.file} cannot be read: {error.strerror}"

    def export(
        self, kept: Kept, target: BinaryIO, *, packed: bool, disk: str | None = None, key: bytes | None = None
    ) -> None:
        manifest = self._manifest(kept)
        wanted = _disks(manifest)[0] if isinstance(manifest, ImageManifest) else _disk_of(manifest, disk)
        name = str(kept.resource.name) if kept.resource else str(kept.id)
        collection = IMAGES if isinstance(manifest, ImageManifest) else MACHINE_IMAGES
        where = resource_path(collection, kept.project, name)
        path = self._layout.root / kept.place / wanted.file
        with ExitStack() as files:
            content = files.enter_context(opened(path, key, where))
            if wanted.encryption is None:  # what is encrypted is found authentic as it is decrypted
                content = files.enter_context(CheckedDisk(content, path, wanted.size, wanted.content, where))
            (write_archive if packed else write_raw)(content, target)

    def discard(self, kept: Kept) -> None:
        self._layout.remove(self._layout.root / kept.place)

    def staged(self) -> set[str]:
        return self._layout.staged()

    def strays(self) -> dict[str, str]:
        return self._layout.strays()

    def empty_trash(self, stop: Event) -> dict[str, str]:
        return self._layout.empty_trash(stop)

    async def forget(self, operation_id: str) -> None:
        self._room.forget(operation_id)
        await in_thread("forget", lambda: self._layout.clear(operation_id))

    def _manifest(self, kept: Kept) -> ImageManifest | MachineImageManifest:
        """Raises OSError, PermanentFailure."""
        kind = ImageManifest if kept.place.startswith(f"{IMAGES}/") else MachineImageManifest
        return kind.read(self._layout.root / kept.place)


class _Disk(NamedTuple):
    """What a manifest says of a disk; `size` is in bytes."""

    file: str
    size: int
    content: Content | None
    encryption: Encryption | None


def _disks(manifest: ImageManifest | MachineImageManifest) -> list[_Disk]:
    if isinstance(manifest, MachineImageManifest):
        return [_Disk(disk.file, disk.content_bytes, disk.content, disk.encryption) for disk in manifest.disks]
    file = file_name(DISK, encrypted=manifest.encryption is not None)
    return [_Disk(file, manifest.facts.disk_size_gb * GIB, manifest.content, manifest.encryption)]


def _disk_of(manifest: MachineImageManifest, wanted: str | None) -> _Disk:
    """One disk, named by its number or its device name. Raises InvalidRequest."""
    devices = {str(disk["index"]): str(disk.get("deviceName", "")) for disk in manifest.facts.properties["disks"]}
    disks = {Path(disk.file).stem.removeprefix("disk-"): disk for disk in _disks(manifest)}
    found = [number for number in disks if wanted in (None, number, devices.get(number))]
    if len(found) != 1:
        known = ", ".join(f"{number} ({devices.get(number) or 'without a name'})" for number in disks)
        raise InvalidRequest("disk", f"Expected the number or the device name of one of its disks: {known}.")
    return disks[found[0]]
