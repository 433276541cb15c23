"""The directories of the local backend, and the order of fsync and rename that makes their content trustworthy.

    images/<project>/<id>/{disk.raw | disk.enc, manifest.json}    only what is whole
    machine-images/<project>/<id>/{disk-<n>.…, manifest.json}     the same: all disks of a bundle, or none
    staging/<operation id>/out/                                   what one operation is making; nobody reads it
    staging/<operation id>/source.{part,jsonl}                    what it has of its source, for its next try (`spool`)
    trash/<id>.<random>/                                          what is deleted; `empty_trash` frees its space

Ids are made by the server and never used again, and a project's name has no slash; what users write never becomes
a path. All methods block: call them in a thread.
"""

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path
from threading import Event, Lock
from typing import TypeVar
from uuid import uuid4

from imageopsd.backends.local import manifest
from imageopsd.backends.local.manifest import Manifest
from imageopsd.backends.local.spool import resumable
from imageopsd.crashpoints import crash_point
from imageopsd.model.errors import PermanentFailure

DISK = "disk"
"""Of an image; what follows says whether it is encrypted (`disks`)."""
OUT = "out"

M = TypeVar("M", bound=Manifest)


class Layout:
    def __init__(self, root: Path) -> None:
        self.root = root
        self._images, self._machine_images = root / "images", root / "machine-images"
        self._staging, self._trash = root / "staging", root / "trash"
        self._moving = Lock()
        """Held until it is settled that what was moved into the trash stays there."""

    def prepare(self) -> None:
        """Makes the directories and empties those whose content is nobody's since the last process ended.
        Raises RuntimeError if they are not on one file system: a rename could not publish anything then."""
        for directory in (self.root, self._images, self._machine_images, self._staging, self._trash):
            directory.mkdir(mode=0o700, parents=directory is self.root, exist_ok=True)
            if directory.stat().st_dev != self.root.stat().st_dev:
                raise RuntimeError(f"'{directory}' must be on the same file system as '{self.root}'")
        for left_over in self._staging.iterdir():
            self._throw_away(left_over / OUT if resumable(left_over) else left_over)

    def empty_trash(self, stop: Event) -> dict[str, str]:
        """Frees the space of what was thrown away, until `stop` is set; a file system takes its time for large files.
        What cannot be removed, with the reason."""
        with self._moving:
            doomed = sorted(self._trash.iterdir())
        kept = {}
        for path in doomed:
            if stop.is_set():
                break
            try:
                crash_point("remove.delete.before")
                _remove(path)
                crash_point("remove.delete.after")
            except OSError as error:
                kept[self.name(path)] = error.strerror or str(error)
        return kept

    def places(self) -> Iterator[tuple[str, Path]]:
        """All that is published, with its project."""
        for path, problem in self._found():
            if problem is None:
                yield path.parent.name, path

    def strays(self) -> dict[str, str]:
        """What lies where published things lie and is none of them, or cannot be looked at, with the reason."""
        return {self.name(path): problem for path, problem in self._found() if problem is not None}

    def _found(self) -> Iterator[tuple[Path, str | None]]:
        """Everything where published things lie; what is none of them with the reason."""
        for root in (self._images, self._machine_images):
            for project in root.iterdir() if is_directory(root) else ():
                try:
                    places = list(project.iterdir())
                except OSError as error:
                    yield project, error.strerror or str(error)
                    continue
                for place in places:
                    yield place, _problem(place)

    def name(self, path: Path) -> str:
        """For texts."""
        return str(path.relative_to(self.root))

    def staged(self) -> set[str]:
        """The ids of operations that have something half done."""
        return {path.name for path in self._staging.iterdir()}

    def clear(self, operation_id: str) -> None:
        """Nothing half done of the operation remains."""
        self._throw_away(self._staging / operation_id)

    def image(self, project: str, image_id: int) -> Path:
        return self._images / project / str(image_id)

    def machine_image(self, project: str, machine_image_id: int) -> Path:
        return self._machine_images / project / str(machine_image_id)

    def found(self, place: Path, operation_id: str, kind: type[M]) -> M | None:
        """What an earlier try of the operation published as `place` before its process died. Raises PermanentFailure
        if it is another operation's, or its manifest is damaged."""
        try:
            content = kind.read(place)
        except FileNotFoundError:
            return None
        if content.operation != operation_id:
            raise PermanentFailure(
                "RESOURCE_ALREADY_EXISTS",
                f"The id {place.name} belongs to what another operation has made.",
                HTTPStatus.CONFLICT,
            )
        self._sync_published(place, self._staging / operation_id)
        return content

    def begin(self, operation_id: str) -> Path:
        """A fresh directory for what the operation makes, in its own, where something may lie from an earlier try."""
        directory = self._staging / operation_id / OUT
        _remove(directory)
        directory.mkdir(mode=0o700, parents=True)
        return directory

    def publish(self, staged: Path, content: Manifest, place: Path) -> None:
        """Makes the directory `staged`, with disks in it that are safe already, visible as `place`; safe against
        power loss when it returns."""
        _write_manifest(staged, content)
        _sync_directory(staged)
        place.parent.mkdir(mode=0o700, exist_ok=True)
        _sync_directory(place.parent.parent)
        crash_point("publish.rename.before")
        staged.rename(place)
        crash_point("publish.rename.after")
        self._sync_published(place, staged.parent)

    def discard(self, operation_id: str, place: Path, *, resume: bool = False) -> None:
        """Nothing of the operation remains, also of what it published; but for what its next try can `resume`."""
        directory = self._staging / operation_id
        _remove(directory / OUT if resume and resumable(directory) else directory)
        self.remove(place)

    def remove(self, place: Path) -> None:
        """Takes what is at `place` away, in one step for whoever looks and safe against power loss. Then it is gone,
        whatever becomes of its bytes: those are `empty_trash`'s. Raises OSError, and then it is where it was. Also for
        what a dead process has removed."""
        doomed = self._trash / f"{place.name}.{uuid4().hex}"
        with self._moving:
            try:
                if place.exists():
                    crash_point("remove.rename.before")
                    place.rename(doomed)
                    crash_point("remove.rename.after")
                if place.parent.exists():
                    _sync_directory(place.parent)
                    _sync_directory(self._trash)
            except OSError:
                with suppress(OSError):
                    crash_point("restore.rename.before")
                    doomed.rename(place)
                    crash_point("restore.rename.after")
                raise

    def rewrite_manifest(self, operation_id: str, place: Path, content: Manifest) -> None:
        """Readers see the old manifest or the new one."""
        staged = self.begin(operation_id)
        try:
            _write_manifest(staged, content)
            crash_point("rewrite.rename.before")
            (staged / manifest.NAME).replace(place / manifest.NAME)
            crash_point("rewrite.rename.after")
            _sync_directory(place)
        finally:
            _remove(staged.parent)

    def _throw_away(self, path: Path) -> None:
        """At once, whatever its size; `empty_trash` has the work."""
        if os.path.lexists(path):
            crash_point("sweep.rename.before")
            path.rename(self._trash / f"{path.name}.{uuid4().hex}")
            crash_point("sweep.rename.after")

    def _sync_published(self, place: Path, staging: Path) -> None:
        """Also for what a dead process renamed: it may not have come so far. What is left in `staging` goes."""
        _sync_directory(place.parent)
        if staging.exists():
            _sync_directory(staging)
            _remove(staging)


def is_directory(path: Path) -> bool:
    """As `Path.is_dir`, but what cannot be looked at is not the same as what is not there. Raises OSError."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _problem(place: Path) -> str | None:
    """Why it is nothing published; `None` if it may be."""
    if not place.name.isdecimal():
        return "its name is no id"
    try:
        return None if is_directory(place) else "it is no directory"
    except OSError as error:
        return error.strerror or str(error)


def _write_manifest(directory: Path, content: Manifest) -> None:
    path = directory / manifest.NAME
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(content.encoded())
        file.flush()
        crash_point("manifest.sync.before")
        os.fsync(file.fileno())
        crash_point("manifest.sync.after")


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        crash_point("directory.sync.before")
        os.fsync(descriptor)
        crash_point("directory.sync.after")
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Whatever it is, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, onerror=_unless_gone)
    else:
        path.unlink(missing_ok=True)


def _unless_gone(_function: object, _path: object, error: tuple[type[BaseException], BaseException, object]) -> None:
    """Somebody else may be removing the same."""
    if not isinstance(error[1], FileNotFoundError):
        raise error[1]
