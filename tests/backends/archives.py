"""Disk-image archives, good and bad ones.

The good ones are made by GNU tar itself, since it is its format that the backend must read; the bad ones header by
header, since no tool would make them.
"""

import gzip
import os
import subprocess
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

MIB = 1024**2
GIB = 1024**3

Extent = tuple[int, bytes]
"""Where on the disk, and what."""


def disk(path: Path, size: int, extents: Iterable[Extent] = ()) -> Path:
    """A sparse file of `size` bytes with some content."""
    with path.open("wb") as file:
        file.truncate(size)
        for offset, data in extents:
            file.seek(offset)
            file.write(data)
    return path


def dense(disk: Path, archive: Path, member: str = "disk.raw") -> Path:
    return _gnu_tar(disk, archive, member, "--format=gnu")


def sparse(disk: Path, archive: Path, member: str = "disk.raw") -> Path:
    return _gnu_tar(disk, archive, member, "--format=oldgnu", "--sparse", "--hole-detection=seek")


def pax(disk: Path, archive: Path) -> Path:
    return _gnu_tar(disk, archive, "disk.raw", "--format=posix", "--sparse")


def _gnu_tar(disk: Path, archive: Path, member: str, *options: str) -> Path:
    command = ["tar", "--create", f"--file={archive}", "--gzip", *options, f"--transform=s|.*|{member}|", disk.name]
    # gzip -1: the tests read, they do not store
    subprocess.run(command, cwd=disk.parent, check=True, env=os.environ | {"GZIP": "-1"}, stderr=subprocess.DEVNULL)
    return archive


def small(path: Path, *, size: int = 1 * GIB, content: bytes = b"imageopsd" * 1000) -> Path:
    """The archive of a disk that is quick to import and not empty: what most tests need."""
    source = disk(path.with_suffix(".raw"), size, [(MIB, content), (size - len(content), content)])
    return sparse(source, path)


def header(
    name: bytes = b"disk.raw",
    *,
    size: int = 0,
    kind: bytes = b"0",
    sparse_map: Iterable[tuple[int, int]] = (),
    extended: bool = False,
    real_size: int = 0,
    magic: bytes = b"ustar  \0",
    prefix: bytes = b"",
    size_field: bytes | None = None,
) -> bytes:
    """One tar header with a right checksum, GNU's unless `magic` says otherwise."""
    block = bytearray(512)
    block[0 : len(name)] = name
    block[100:108] = b"0000644\0"
    block[124:136] = size_field if size_field is not None else number(size)
    block[136:148] = number(0)
    block[156:157] = kind
    block[257:265] = magic
    block[345 : 345 + len(prefix)] = prefix
    if kind == b"S":
        for at, (start, length) in zip(range(386, 482, 24), sparse_map, strict=False):
            block[at : at + 24] = number(start) + number(length)
        block[482] = extended
        block[483:495] = number(real_size)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def extension(sparse_map: Iterable[tuple[int, int]], *, extended: bool = False) -> bytes:
    """A header that carries a sparse map on; up to 21 extents."""
    block = b"".join(number(start) + number(length) for start, length in sparse_map)
    return block.ljust(504, b"\0") + bytes([extended]) + bytes(7)


def number(value: int) -> bytes:
    """Octal where eleven digits suffice, else base-256, as GNU tar does it."""
    return b"%011o\0" % value if value < 8**11 else b"\x80" + value.to_bytes(11, "big")


END = bytes(1024)


def member(content: bytes = b"x" * 512, **fields: object) -> bytes:
    """A whole tar with one member."""
    return header(size=len(content), **fields) + content + bytes(-len(content) % 512) + END  # type: ignore[arg-type]


def packed(tar: bytes, path: Path) -> Path:
    path.write_bytes(gzip.compress(tar, 1))
    return path


def zeros(path: Path, size: int) -> Path:
    """A dense archive of nothing but zeros, a thousandth of their size; made of 32 equal gzip members because
    compressing one of them is thirty-two times as fast."""
    parts = [header(size=size), *[bytes(size // 32)] * 32, END]
    path.write_bytes(b"".join(_compressed(part) for part in parts))
    return path


@cache
def _compressed(part: bytes) -> bytes:
    return gzip.compress(part, 6)


def data_extents(path: Path) -> Iterator[tuple[int, int]]:
    """Where the file system keeps data of a file, as (start, end)."""
    with path.open("rb") as file:
        end, size = 0, os.fstat(file.fileno()).st_size
        while end < size:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole is left
                return
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            yield start, end


def same_bytes(first: Path, second: Path) -> bool:
    """Compares without reading 1 GiB of holes twice."""
    if first.stat().st_size != second.stat().st_size:
        return False
    places = sorted({*data_extents(first), *data_extents(second)})
    with first.open("rb") as one, second.open("rb") as two:
        return all(
            os.pread(one.fileno(), end - start, start) == os.pread(two.fileno(), end - start, start)
            for start, end in places
        )
