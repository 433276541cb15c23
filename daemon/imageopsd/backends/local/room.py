"""What the file system of the data directory says when it fails, in the daemon's words; and who found it full, so that
nobody begins again what there is not even as much room for as last time."""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path

from imageopsd.backends.local.disk import Disk
from imageopsd.model.errors import NoRoom, PermanentFailure, TemporaryFailure
from imageopsd.model.operation import OperationWarning

STEP = 1024**2
"""Bytes more than last time, and an eighth more, that make another try worth while: so the futile ones are few."""


class Room:
    def __init__(self, root: Path) -> None:
        self._root = root
        self._wanted: dict[str, int] = {}
        """Bytes for each operation that found the disk full."""

    def free(self, margin: int) -> int:
        """Bytes beyond the margin. Raises OSError."""
        space = os.statvfs(self._root)
        return space.f_bavail * space.f_frsize - margin

    def wait(self, operation_id: str, margin: int) -> None:
        """Raises NoRoom for an operation that would only find the disk full again."""
        if (wanted := self._wanted.get(operation_id)) is not None and self.free(margin) < wanted:
            raise NoRoom(self._full())

    def forget(self, operation_id: str) -> None:
        """It has ended."""
        self._wanted.pop(operation_id, None)

    @contextmanager
    def failures(self, operation_id: str = "", margin: int = 0, disks: Sequence[Disk] = ()) -> Iterator[None]:
        """The border where an OSError of the data directory becomes ours; `disks` are what the operation made so far.
        A full disk is NoRoom, but for one that could not hold the disks if it were empty."""
        try:
            yield
            self.forget(operation_id)
        except OSError as error:
            match error.errno:
                case errno.ENOSPC:
                    raise self._no_room(operation_id, margin, disks) from error
                case errno.EDQUOT:
                    raise TemporaryFailure(
                        "INSUFFICIENT_STORAGE",
                        f"The disk quota of the daemon's user is used up in '{self._root}'.",
                        HTTPStatus.INSUFFICIENT_STORAGE,
                    ) from error
                case errno.EFBIG:
                    raise self._never("has no files as large as this disk") from error
            # whatever comes next would meet the same; what only a source's file says was said by its reader
            raise TemporaryFailure(
                "STORAGE_UNAVAILABLE",
                f"The directory '{self._root}' failed: {error.strerror or error}.",
                of_backend=True,
            ) from error

    def _no_room(self, operation_id: str, margin: int, disks: Sequence[Disk]) -> NoRoom | PermanentFailure:
        taken = sum(disk.taken for disk in disks)
        expected = sum(disk.expected for disk in disks)
        space = os.statvfs(self._root)
        whole = space.f_blocks * space.f_frsize - margin
        if max(taken, expected) > whole:
            return self._never(f"has {max(whole, 0)} bytes in all for images, too few for this")
        self._wanted[operation_id] = taken + max(STEP, taken // 8)
        return NoRoom(self._full())

    def _full(self) -> str:
        return f"The disk is full: the file system of '{self._root}' has no room for this."

    def _never(self, reason: str) -> PermanentFailure:
        return PermanentFailure(
            "INSUFFICIENT_STORAGE",
            f"The disk is full: the file system of '{self._root}' {reason}.",
            HTTPStatus.INSUFFICIENT_STORAGE,
        )


def waited(failure: NoRoom) -> OperationWarning:
    """For the record: it stays there when there was room in the end."""
    return OperationWarning.of("NOT_CRITICAL_ERROR", f"It had to wait for room. {failure}")
