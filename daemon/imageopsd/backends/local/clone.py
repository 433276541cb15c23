"""Copying a disk inside one file system, in the cheapest way it knows."""

import errno
import fcntl
import os
from threading import Event

from imageopsd.backends.local.disk import Disk
from imageopsd.backends.local.extents import extents
from imageopsd.backends.local.pipe import Broken
from imageopsd.backends.local.progress import Meter
from imageopsd.backends.local.tar import Piece

FICLONE = 0x40049409
"""linux/fs.h: share all extents of another file (btrfs, XFS, bcachefs)."""
CHUNK = 8 * 1024**2
"""Bytes between two looks at the cancel flag."""

_NEVER_HERE = {errno.EOPNOTSUPP, errno.EXDEV, errno.ENOSYS, errno.ENOTTY}
"""Between these two file systems it will not work for other files either."""
_NOT_NOW = {errno.EINVAL}
"""It is these two files that it does not work for: their sizes or flags, say."""


class Cloner:
    """Remembers what cannot be done from one file system to another, so that it is tried once. Methods run in
    threads."""

    def __init__(self) -> None:
        self._refused: set[tuple[str, int, int]] = set()
        """Ways, with the device of the source and that of the target."""

    def clone(self, source: int, disk: Disk, meter: Meter, stop: Event) -> None:
        """Fills `disk` from the descriptor `source`; holes stay holes. Raises Broken when `stop` is set, OSError."""
        found = os.fstat(source)
        size = meter.size = found.st_size
        disk.expected = found.st_blocks * 512
        if self._shares_extents(source, disk.fd):
            meter.made = size
            return
        for start, end in extents(source, size):
            at = start
            while at < end:
                if stop.is_set():
                    raise Broken
                copied = self._copy(source, disk, at, min(CHUNK, end - at))
                if not copied:
                    raise OSError(errno.EIO, "the disk became shorter while it was copied")
                at += copied
                meter.made = at

    def _shares_extents(self, source: int, target: int) -> bool:
        way = _way("clone", source, target)
        if way in self._refused:
            return False
        try:
            fcntl.ioctl(target, FICLONE, source)
        except OSError as error:
            self._note(way, error)
            return False
        return True

    def _copy(self, source: int, disk: Disk, offset: int, count: int) -> int:
        """Some bytes at `offset`, at most `count`; how many."""
        way = _way("copy", source, disk.fd)
        if way not in self._refused:
            try:
                copied = os.copy_file_range(source, disk.fd, count, offset, offset)
            except OSError as error:
                self._note(way, error)
            else:
                disk.written(offset + copied, copied)
                return copied
        data = os.pread(source, min(count, 1024**2), offset)
        disk.fill(Piece(offset, data, 0, len(data)))
        return len(data)

    def _note(self, way: tuple[str, int, int], error: OSError) -> None:
        if error.errno in _NEVER_HERE:
            self._refused.add(way)
        elif error.errno not in _NOT_NOW:
            raise error


def _way(name: str, source: int, target: int) -> tuple[str, int, int]:
    return name, os.fstat(source).st_dev, os.fstat(target).st_dev
