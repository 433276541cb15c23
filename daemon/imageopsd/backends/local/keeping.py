"""What of images is on this host, apart from making them: finding it, checking it, giving it back, clearing it away."""

import os
from collections.abc import Iterator
from itertools import chain
from threading import Event
from typing import BinaryIO

import msgspec

from imageopsd.backends.local.disks import file_name, opened, seals_damage
from imageopsd.backends.local.export import write_archive, write_raw
from imageopsd.backends.local.layout import DISK, Layout, is_directory
from imageopsd.backends.local.manifest import ImageManifest, MachineImageManifest
from imageopsd.backends.local.pipe import in_thread
from imageopsd.backends.local.room import Room
from imageopsd.backends.local.verify import damage
from imageopsd.model.image import GIB, Image
from imageopsd.model.names import image_path
from imageopsd.model.resource import IMAGES, Resource
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
            except (OSError, msgspec.MsgspecError):
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
        try:
            manifest = self._manifest(kept)
        except (OSError, msgspec.MsgspecError):
            yield "its manifest is gone or damaged"
            return
        if isinstance(manifest, ImageManifest):
            disks = [(_disk(manifest), manifest.facts.disk_size_gb * GIB, manifest.content, manifest.encryption)]
        else:
            disks = [(disk.file, disk.content_bytes, disk.content, disk.encryption) for disk in manifest.disks]
        for name, size, content, encryption in disks:
            prefix = "" if isinstance(manifest, ImageManifest) else f"{name}: "
            try:
                problems = chain(damage(place / name, size, content), seals_damage(place / name, encryption))
                yield from (f"{prefix}{problem}" for problem in problems)
            except OSError as error:
                yield f"{prefix}{name} cannot be read: {error.strerror}"

    def export(self, kept: Kept, target: BinaryIO, *, packed: bool, key: bytes | None = None) -> None:
        place = self._layout.root / kept.place
        name = str(kept.resource.name) if kept.resource else str(kept.id)
        with opened(place / _disk(ImageManifest.read(place)), key, image_path(kept.project, name)) as disk:
            (write_archive if packed else write_raw)(disk, target)

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
        """Raises OSError, msgspec.MsgspecError."""
        kind = ImageManifest if kept.place.startswith(f"{IMAGES}/") else MachineImageManifest
        return kind.read(self._layout.root / kept.place)


def _disk(manifest: ImageManifest) -> str:
    return file_name(DISK, encrypted=manifest.encryption is not None)
