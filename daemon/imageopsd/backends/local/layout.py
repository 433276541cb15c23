"""The directories of the local backend, and the order of fsync and rename that makes their content trustworthy.

    images/<project>/<image id>/{disk.raw, manifest.json}     only what is whole
    staging/<operation id>/                                   what one operation is making; nobody reads it
    trash/                                                    what is to be deleted

Ids are made by the server and never used again, and a project's name has no slash; what users write never becomes
a path. All methods block: call them in a thread.
"""

import os
import shutil
from pathlib import Path

from imageopsd.backends.local import manifest
from imageopsd.backends.local.manifest import Manifest

DISK = "disk.raw"


class Layout:
    def __init__(self, root: Path) -> None:
        self.root = root
        self._images, self._staging, self._trash = root / "images", root / "staging", root / "trash"

    def prepare(self) -> None:
        """Makes the directories and empties those whose content is nobody's since the last process ended.
        Raises RuntimeError if they are not on one file system: a rename could not publish an image then."""
        for directory in (self.root, self._images, self._staging, self._trash):
            directory.mkdir(mode=0o700, parents=directory is self.root, exist_ok=True)
            if directory.stat().st_dev != self.root.stat().st_dev:
                raise RuntimeError(f"'{directory}' must be on the same file system as '{self.root}'")
        for directory in (self._staging, self._trash):
            for left_over in directory.iterdir():
                _remove(left_over)

    def image(self, project: str, image_id: int) -> Path:
        return self._images / project / str(image_id)

    def begin(self, operation_id: str) -> Path:
        """A fresh directory for what the operation makes."""
        directory = self._staging / operation_id
        _remove(directory)
        directory.mkdir(mode=0o700)
        return directory

    def publish(self, staged: Path, content: Manifest, image: Path) -> None:
        """Makes the directory `staged`, with a disk in it that is safe already, visible as `image`; safe against
        power loss when it returns."""
        _write_manifest(staged, content)
        _sync_directory(staged)
        image.parent.mkdir(mode=0o700, exist_ok=True)
        _sync_directory(self._images)
        staged.rename(image)
        self.sync_published(image)

    def sync_published(self, image: Path) -> None:
        """Also for an image that a dead process renamed: it may not have come so far."""
        _sync_directory(image.parent)
        _sync_directory(self._staging)

    def discard(self, operation_id: str, image: Path) -> None:
        """Nothing of the operation remains; an image that it published goes in one step for whoever looks."""
        _remove(self._staging / operation_id)
        if image.exists():
            doomed = self._trash / image.name
            image.rename(doomed)
            _sync_directory(image.parent)
            _remove(doomed)

    def rewrite_manifest(self, operation_id: str, image: Path, content: Manifest) -> None:
        """Readers see the old manifest or the new one."""
        staged = self.begin(operation_id)
        try:
            _write_manifest(staged, content)
            (staged / manifest.NAME).replace(image / manifest.NAME)
            _sync_directory(image)
        finally:
            _remove(staged)


def _write_manifest(directory: Path, content: Manifest) -> None:
    path = directory / manifest.NAME
    with open(path, "xb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(content.encoded())
        file.flush()
        os.fsync(file.fileno())


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    """Whatever it is, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
