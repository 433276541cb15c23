"""Whether a running process has a disk locked for writing.

Nobody here waits for a lock or keeps one: a look that took locks could keep a machine from starting.
"""

import errno
import fcntl
import os
import struct

_FLOCK = struct.Struct("hhqqi4x")
"""struct flock of 64-bit Linux: type, whence, start, length, process."""
_QEMU_PERMISSIONS = range(100, 164)
"""QEMU holds a shared lock on byte 100 + n for each permission n it uses (qemu, block/file-posix.c)."""
_QEMU_WRITING = (101, 103)
"""BLK_PERM_WRITE and BLK_PERM_RESIZE."""
_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}
"""What a file system says that has none."""


def locked_for_writing(descriptor: int) -> bool:
    """By fcntl (POSIX and open file description locks), by flock, or in QEMU's way. Raises OSError."""
    try:
        return _has_write_lock(descriptor) or _qemu_writes(descriptor) or _has_exclusive_flock(descriptor)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        return False


def _has_write_lock(descriptor: int) -> bool:
    """Whatever would be in the way of reading."""
    return _conflict(descriptor, fcntl.F_RDLCK, 0, 0) is not None


def _qemu_writes(descriptor: int) -> bool:
    for byte in _QEMU_WRITING:
        # a writer would be kept out also by somebody who has the whole file locked for reading: that is no machine
        conflict = _conflict(descriptor, fcntl.F_WRLCK, byte, 1)
        if conflict is not None and conflict[0] in _QEMU_PERMISSIONS and conflict[1] - 1 in _QEMU_PERMISSIONS:
            return True
    return False


def _conflict(descriptor: int, kind: int, start: int, length: int) -> tuple[int, int] | None:
    """Begin and end of a lock that is in the way of such a one; `length` 0 is to the end of the file."""
    asked = _FLOCK.pack(kind, os.SEEK_SET, start, length, 0)
    found, _, begin, size, _ = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))
    return None if found == fcntl.F_UNLCK else (begin, begin + size)


def _has_exclusive_flock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False
