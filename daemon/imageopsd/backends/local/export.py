"""An image's disk on its way out: raw, or as the archive that it could be imported from again."""

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import BinaryIO

from imageopsd.backends.local.deflate import zlib
from imageopsd.backends.local.reading import Readable

STEP = 1024**2
"""Bytes of one run of zeros."""
_ZEROS = bytes(STEP)
_TAR_BLOCK = 512
_FIRST, _MORE = 4, 21
"""Entries of a sparse map in the header, and in each block after it."""

Extents = Sequence[tuple[int, int]]


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
    size = disk.size
    # a map whose extents are not whole blocks is read differently by different tars
    where = [(start, end) for start, end in _whole_blocks(disk.extents(), size) if end > start]
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    for block in _tar(disk, size, where):
        target.write(packer.compress(block))
    target.write(packer.flush())
    target.flush()


def _tar(disk: Readable, size: int, where: Extents) -> Iterator[bytes]:
    stored = sum(end - start for start, end in where)
    # GNU tar ends the map of a disk that ends with a hole by an empty entry at its end
    entries = [(start, end - start) for start, end in where]
    if not entries or sum(entries[-1]) != size:
        entries.append((size, 0))
    yield _header(entries[:_FIRST], size, stored, more=len(entries) > _FIRST)
    for at in range(_FIRST, len(entries), _MORE):
        part = b"".join(_number(start) + _number(length) for start, length in entries[at : at + _MORE])
        yield part.ljust(504, b"\0") + bytes([at + _MORE < len(entries)]) + bytes(7)
    for start, end in where:
        yield from disk.read(start, end)
    yield bytes(-stored % _TAR_BLOCK + 2 * _TAR_BLOCK)


def _header(entries: Extents, size: int, stored: int, *, more: bool) -> bytes:
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
    while count:
        part = min(count, STEP)
        target.write(_ZEROS if part == STEP else bytes(part))
        count -= part


def _is_empty_file(target: BinaryIO) -> bool:
    with suppress(OSError):
        found = os.fstat(target.fileno())
        return stat.S_ISREG(found.st_mode) and found.st_size == 0
    return False
