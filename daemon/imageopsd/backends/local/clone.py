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

_NOT_HERE = {errno.EOPNOTSUPP, errno.EXDEV, errno.ENOSYS, errno.ENOTTY, errno.EINVAL}


class Cloner:
    """Remembers what its file system cannot do, so that it is tried once. Methods run in threads."""

    def __init__(self) -> None:
        self._refused: set[str] = set()

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
        if "clone" in self._refused:
            return False
        try:
            fcntl.ioctl(target, FICLONE, source)
        except OSError as error:
            self._note("clone", error)
            return False
        return True

    def _copy(self, source: int, disk: Disk, offset: int, count: int) -> int:
        """Some bytes at `offset`, at most `count`; how many."""
        if "copy" not in self._refused:
            try:
                copied = os.copy_file_range(source, disk.fd, count, offset, offset)
            except OSError as error:
                self._note("copy", error)
            else:
                disk.written(offset + copied, copied)
                return copied
        data = os.pread(source, min(count, 1024**2), offset)
        disk.fill(Piece(offset, data, 0, len(data)))
        return len(data)

    def _note(self, way: str, error: OSError) -> None:
        if error.errno not in _NOT_HERE:
            raise error
        self._refused.add(way)
