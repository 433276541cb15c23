"""A disk as whoever copies or exports it reads it, plain or encrypted."""

import os
from collections.abc import Iterator
from threading import Event
from typing import Protocol

from imageopsd.backends.local.blocks import BlockTable
from imageopsd.backends.local.disk import Disk
from imageopsd.backends.local.extents import extents
from imageopsd.backends.local.pipe import Broken
from imageopsd.backends.local.progress import Meter
from imageopsd.backends.local.tar import Piece

STEP = 1024**2
"""Bytes of one read."""


class Readable(Protocol):
    """`size` is in bytes. Methods raise OSError, and PermanentFailure for an encrypted disk that was tampered with."""

    size: int

    def extents(self) -> Iterator[tuple[int, int]]:
        """Where data is, in order; the rest is holes."""

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """The bytes from `start` to `end`, all of them inside of one extent."""


class PlainDisk:
    """What lies behind a descriptor, which stays the caller's."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.size = os.fstat(descriptor).st_size

    def extents(self) -> Iterator[tuple[int, int]]:
        return extents(self._descriptor, self.size)

    def read(self, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            block = os.pread(self._descriptor, min(STEP, end - start), start)
            if not block:
                raise OSError("the disk became shorter while it was read")
            yield block
            start += len(block)


def pour(source: Readable, disk: Disk, table: BlockTable, meter: Meter, stop: Event) -> None:
    """Fills `disk`, and its `table`, from `source`; for what the file system cannot copy by itself, because one of the
    two is encrypted. Raises Broken when `stop` is set."""
    meter.size = source.size
    disk.expected = sum(end - start for start, end in source.extents())
    for start, end in source.extents():
        at = start
        for block in source.read(start, end):
            if stop.is_set():
                raise Broken
            piece = Piece(at, block, 0, len(block))
            disk.fill(piece)
            table.feed(piece)
            at += len(block)
            meter.made = at
