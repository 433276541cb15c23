"""Writing a disk image front to back: zeros stay holes, and dirty pages stay few.

A host that fills its page cache with an image evicts everybody else's pages and then stalls in one long fsync
(CDI issue 2110, imageio commit 186e005); so what is written goes to the device, and out of the cache, as we go.
That is also four times as fast as one fsync at the end.
"""

import errno
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from imageopsd.backends.local.tar import Piece
from imageopsd.crashpoints import crash_point
from imageopsd.model.errors import ReservationExceeded
from imageopsd.model.quota import Metric

GRAIN = 64 * 1024
"""Zeros become holes in units of this many bytes, aligned on the disk."""
STRIDE = 8 * 1024**2
"""After so many written bytes the device is asked to begin with them."""
WINDOW = 64 * 1024**2
"""After so many we wait for the device and look at the free space; no more than this is ever dirty."""

_ZEROS = bytes(GRAIN)


class Reservation:
    """How many bytes that are not zeros may be written, to one disk or to several together; `None`: as many as there
    are."""

    def __init__(self, limit: int | None = None) -> None:
        self._limit = limit
        self._taken = 0

    def check(self, more: int = 0) -> None:
        """Raises ReservationExceeded if `more` are too many."""
        if self._limit is not None and self._taken + more > self._limit:
            raise ReservationExceeded(
                f"There are more than the {self._limit} bytes of data that were left for it.", Metric.STORED_BYTES
            )

    def take(self, count: int) -> None:
        """They are written; negative: they are gone again."""
        self._taken += count


class Disk:
    """A new file at `path`, which must not exist. Raises OSError, and the one for a full disk (ENOSPC) already when
    fewer than `margin` bytes would stay free for others. Offsets must not fall. What `reserved` does not allow is
    not written: ReservationExceeded."""

    def __init__(self, path: Path, margin: int, reserved: Reservation | None = None) -> None:
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._margin = margin
        self._reserved = reserved or Reservation()
        self.taken = 0
        """Bytes that were written so far."""
        self.expected = 0
        """Bytes that it will have in the end at the most, as far as is known; for whoever asks whether it can fit."""
        self._stride = self._window = 0
        """Where on the disk the running stride and window begin."""
        self._in_stride = self._in_window = 0
        """Bytes written in them; holes do not count."""
        try:
            self._check_free_space()
        except OSError:
            os.close(self.fd)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self.fd)

    def fill(self, piece: Piece) -> None:
        """Writes what is not zero in `piece`, neighbouring grains with one call."""
        shift = piece.offset - piece.start
        at, data_from = piece.start, -1
        while at < piece.end:
            end = min(piece.end, at + GRAIN - (at + shift) % GRAIN)
            if not piece.data.startswith(_ZEROS[: end - at] if end - at < GRAIN else _ZEROS, at):
                if data_from < 0:
                    data_from = at
            elif data_from >= 0:
                self._write(piece.data, data_from, at, shift)
                data_from = -1
            at = end
        if data_from >= 0:
            self._write(piece.data, data_from, piece.end, shift)

    def written(self, end: int, count: int) -> None:
        """Somebody wrote `count` bytes up to `end`: lets the device begin with them, waits for it now and then."""
        self.taken += count
        self._reserved.take(count)
        self._reserved.check()
        self._in_stride += count
        if self._in_stride < STRIDE:
            return
        # on dirty pages this starts the writing and does not wait; on clean ones it drops them
        os.posix_fadvise(self.fd, self._stride, end - self._stride, os.POSIX_FADV_DONTNEED)
        self._in_window += self._in_stride
        self._stride, self._in_stride = end, 0
        if self._in_window < WINDOW:
            return
        crash_point("window.sync.before")
        os.fdatasync(self.fd)
        crash_point("window.sync.after")
        os.posix_fadvise(self.fd, self._window, end - self._window, os.POSIX_FADV_DONTNEED)
        self._window, self._in_window = end, 0
        self._check_free_space()

    def restart(self) -> None:
        """Empty again, as it was made."""
        os.ftruncate(self.fd, 0)
        self._reserved.take(-self.taken)
        self.taken = 0
        self._stride = self._window = self._in_stride = self._in_window = 0

    def finish(self, size: int) -> int:
        """Gives the disk its size and makes it safe against power loss. How many bytes it takes on the device."""
        os.ftruncate(self.fd, size)
        crash_point("disk.sync.before")
        os.fsync(self.fd)
        crash_point("disk.sync.after")
        return os.fstat(self.fd).st_blocks * 512

    def _write(self, data: bytes, start: int, end: int, shift: int) -> None:
        self._reserved.check(end - start)
        with memoryview(data) as view:
            at = start
            while at < end:
                at += os.pwrite(self.fd, view[at:end], at + shift)
        self.written(end + shift, end - start)

    def _check_free_space(self) -> None:
        space = os.fstatvfs(self.fd)
        if space.f_bavail * space.f_frsize < self._margin:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
