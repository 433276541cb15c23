"""Whether disks are still what they were when they were made."""

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from imageopsd.backends.local.blocks import BLOCK, SUFFIX, BlockHasher, Content, pieces_of


def damage(disk: Path, size: int, content: Content | None) -> Iterator[str]:
    """What is wrong with a disk that should have `size` bytes and that content: a sentence each, without a name. Reads
    all of its data. Raises FileNotFoundError if there is no disk, OSError for one that cannot be read."""
    if content is None or content.file != disk.name + SUFFIX:
        yield "its manifest names no digests"
        return
    with disk.open("rb", buffering=0) as file:
        try:
            table = disk.with_name(content.file).read_bytes()
        except FileNotFoundError:
            yield "its table of digests is gone"
            return
        if hashlib.sha256(table).hexdigest() != content.sha256:
            yield "its table of digests is damaged"
            return
        found = os.fstat(file.fileno()).st_size
        if found != size:
            yield f"it has {found} bytes instead of {size}"
        yield from _compare(file.fileno(), _lines(table))


def _compare(descriptor: int, expected: Iterator[tuple[int, str]]) -> Iterator[str]:
    """A walk through both lists at once; blocks that are in neither are zeros, as they should be."""
    fresh: list[tuple[int, str]] = []
    hasher = BlockHasher(lambda block, digest: fresh.append((block, digest)))
    wanted = next(expected, None)

    def check() -> Iterator[str]:
        nonlocal wanted
        for block, digest in fresh:
            while wanted is not None and wanted[0] < block:
                yield f"{_place(wanted[0])} has become zeros"
                wanted = next(expected, None)
            if wanted is None or wanted[0] != block:
                yield f"{_place(block)} has data instead of zeros"
                continue
            if wanted[1] != digest:
                yield f"{_place(block)} differs"
            wanted = next(expected, None)
        fresh.clear()

    for piece in pieces_of(descriptor):
        hasher.feed(piece)
        yield from check()
    hasher.close()
    yield from check()
    while wanted is not None:
        yield f"{_place(wanted[0])} has become zeros"
        wanted = next(expected, None)


def _lines(table: bytes) -> Iterator[tuple[int, str]]:
    lines: Iterable[bytes] = table.splitlines()
    for line in lines:
        if not line.startswith(b"#"):
            block, _, digest = line.partition(b" ")
            yield int(block), digest.decode()


def _place(block: int) -> str:
    return f"block {block} (bytes {block * BLOCK} to {(block + 1) * BLOCK - 1})"
