"""An image's disk on its way out: raw, or as the archive that it could be imported from again."""

import os
import stat
from array import array
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import BinaryIO

from imageopsd.backends.local.deflate import zlib
from imageopsd.backends.local.reading import Readable
from imageopsd.backends.local.tar import MAX_EXTENTS

STEP = 1024**2
"""Bytes of one run of zeros."""
_ZEROS = bytes(STEP)
_TAR_BLOCK = 512
_FIRST, _MORE = 4, 21
"""Entries of a sparse map in the header, and in each block after it."""

_LEAST_GAP = 64 * 1024
"""Bytes between extents that become one first: the grain in which an import makes holes."""


def write_raw(disk: Readable, target: BinaryIO) -> None:
    """All bytes of the disk. In a regular file that is empty, holes stay holes. Raises OSError, and what `disk`
    raises."""
    size = disk.size
    sparse = _is_empty_file(target)
    at = 0
    for start, end in disk.extents():
        _skip(target, start - at, sparse)
        for block in disk.read(start, end):
            target.write(block)
        at = end
    _skip(target, size - at, sparse)
    if sparse:
        target.truncate(size)
    target.flush()


def write_archive(disk: Readable, target: BinaryIO) -> None:
    """A gzip'd oldgnu tar with the one member disk.raw, sparse, as `tar -S --format=oldgnu -cz` makes it. Raises
    OSError, and what `disk` raises."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    for block in _tar(disk, Map(disk)):
        target.write(packer.compress(block))
    target.write(packer.flush())
    target.flush()


class Map:
    """Where data is on a disk, as a sparse map may tell it: in whole blocks, since tars disagree on others, and in so
    few extents that our own reader takes them. Of more, neighbours become one, with the zeros between them."""

    def __init__(self, disk: Readable) -> None:
        self.size = disk.size
        self._starts, self._ends = array("Q"), array("Q")
        self._gap = 0
        for start, end in _whole_blocks(disk.extents(), self.size):
            self._add(start, end)
            while len(self._starts) >= MAX_EXTENTS:  # one entry is for the end
                self._gap = max(2 * self._gap, _LEAST_GAP)
                starts, ends = self._starts, self._ends
                self._starts, self._ends = array("Q"), array("Q")
                for known in zip(starts, ends, strict=True):
                    self._add(*known)

    def _add(self, start: int, end: int) -> None:
        if self._ends and start <= self._ends[-1] + self._gap:
            self._ends[-1] = max(self._ends[-1], end)
        elif start < end:
            self._starts.append(start)
            self._ends.append(end)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return zip(self._starts, self._ends, strict=True)

    def entries(self) -> Iterator[tuple[int, int]]:
        """As tar has them: where, and how many bytes. GNU tar ends the map of a disk that ends with a hole by an empty
        one at its end."""
        yield from ((start, end - start) for start, end in self)
        if not self._ends or self._ends[-1] != self.size:
            yield self.size, 0

    @property
    def stored(self) -> int:
        """Bytes."""
        return sum(self._ends) - sum(self._starts)


def _tar(disk: Readable, where: Map) -> Iterator[bytes]:
    entries = where.entries()
    first, rest = list(islice(entries, _FIRST)), list(islice(entries, _MORE))
    yield _header(first, where.size, where.stored, more=bool(rest))
    while rest:
        part = b"".join(_number(start) + _number(length) for start, length in rest)
        rest = list(islice(entries, _MORE))
        yield part.ljust(504, b"\0") + bytes([bool(rest)]) + bytes(7)
    yield from _content(disk, where)
    yield bytes(-where.stored % _TAR_BLOCK + 2 * _TAR_BLOCK)


def _content(disk: Readable, where: Map) -> Iterator[bytes]:
    """The bytes of each extent of the map: the disk's where it has some, else zeros."""
    found = disk.extents()
    start, end = next(found, (where.size, where.size))
    for at, until in where:
        while start < until:
            yield from _zeros(start - at)
            yield from disk.read(start, end)
            at = end
            start, end = next(found, (where.size, where.size))
        yield from _zeros(until - at)


def _header(entries: Sequence[tuple[int, int]], size: int, stored: int, *, more: bool) -> bytes:
    """Tar's own names of the fields are in GNU tar's tar.h: `struct oldgnu_header`."""
    block = bytearray(_TAR_BLOCK)
    block[0:8] = b"disk.raw"
    block[100:108] = b"0000644\0"
    block[108:124] = b"0000000\0" * 2
    block[124:136] = _number(stored)
    block[136:148] = _number(0)
    block[156:157] = b"S"
    block[257:265] = b"ustar  \0"
    for at, (start, length) in zip(range(386, 482, 24), entries, strict=False):
        block[at : at + 24] = _number(start) + _number(length)
    block[482] = more
    block[483:495] = _number(size)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _number(value: int) -> bytes:
    """Octal where eleven digits suffice, else base-256, as GNU tar does it."""
    return b"%011o\0" % value if value < 8**11 else b"\x80" + value.to_bytes(11, "big")


def _whole_blocks(found: Iterator[tuple[int, int]], size: int) -> Iterator[tuple[int, int]]:
    for start, end in found:
        yield start // _TAR_BLOCK * _TAR_BLOCK, min(-(-end // _TAR_BLOCK) * _TAR_BLOCK, size)


def _skip(target: BinaryIO, count: int, sparse: bool) -> None:
    if sparse:
        target.seek(count, os.SEEK_CUR)
        return
    for block in _zeros(count):
        target.write(block)


def _zeros(count: int) -> Iterator[bytes]:
    while count:
        part = min(count, STEP)
        yield _ZEROS if part == STEP else bytes(part)
        count -= part


def _is_empty_file(target: BinaryIO) -> bool:
    with suppress(OSError):
        found = os.fstat(target.fileno())
        return stat.S_ISREG(found.st_mode) and found.st_size == 0
    return False
