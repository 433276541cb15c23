"""Whether disks are still what they were when they were made."""

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from types import TracebackType
from typing import Self

from imageopsd.backends.local.blocks import BLOCK, SUFFIX, BlockHasher, Content, pieces_of
from imageopsd.backends.local.reading import Readable
from imageopsd.backends.local.tar import Piece
from imageopsd.model.errors import PermanentFailure


def damage(disk: Path, size: int, content: Content | None) -> Iterator[str]:
    """What is wrong with a disk that should have `size` bytes and that content: a sentence each, without a name. Reads
    all of its data. Raises FileNotFoundError if there is no disk, OSError for one that cannot be read."""
    with disk.open("rb", buffering=0) as file:
        try:
            comparison = Comparison(_table(disk, content))
        except _Damaged as problem:
            yield str(problem)
            return
        found = os.fstat(file.fileno()).st_size
        if found != size:
            yield _wrong_size(found, size)
        for piece in pieces_of(file.fileno()):
            yield from comparison.feed(piece)
        yield from comparison.close()


class CheckedDisk:
    """A plain disk that should have `size` bytes and that content, compared with it as it is read: a `Readable`, to be
    read once and in order. Raises PermanentFailure at the first difference; `resource` is the partial URL for texts.

    The digests are made in a thread, while whoever reads writes what was read: SHA-256 lets go of the GIL."""

    def __init__(self, plain: Readable, disk: Path, size: int, content: Content | None, resource: str) -> None:
        self._plain = plain
        self._resource = resource
        self.size = plain.size
        try:
            self._comparison = Comparison(_table(disk, content))
            if plain.size != size:
                raise _Damaged(_wrong_size(plain.size, size))
        except _Damaged as problem:
            raise self._failure(str(problem)) from None
        self._thread = ThreadPoolExecutor(1, "digest")
        self._under_way: Future[list[str]] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Unless something else went wrong, what was read was all."""
        with self._thread:
            if error is None:
                self._check()
                self._raise_first(list(self._comparison.close()))

    def extents(self) -> Iterator[tuple[int, int]]:
        return self._plain.extents()

    def read(self, start: int, end: int) -> Iterator[bytes]:
        for block in self._plain.read(start, end):
            self._check()
            self._under_way = self._thread.submit(self._feed, Piece(start, block, 0, len(block)))
            yield block
            start += len(block)

    def _feed(self, piece: Piece) -> list[str]:
        return list(self._comparison.feed(piece))

    def _check(self) -> None:
        """What was read last."""
        if self._under_way is not None:
            self._raise_first(self._under_way.result())

    def _raise_first(self, problems: Sequence[str]) -> None:
        if problems:
            raise self._failure(problems[0])

    def _failure(self, problem: str) -> PermanentFailure:
        return PermanentFailure(
            "STORAGE_UNAVAILABLE",
            f"The disk of '{self._resource}' is not as it was made: {problem}.",
            HTTPStatus.SERVICE_UNAVAILABLE,
        )


class Comparison:
    """A walk through the blocks that should be and those that are, at once; blocks that are in neither are zeros, as
    they should be. Fed with a disk's content as `BlockHasher` is, it gives a sentence for each difference."""

    def __init__(self, table: bytes) -> None:
        self._expected = _lines(table)
        self._wanted = next(self._expected, None)
        self._fresh: list[tuple[int, str]] = []
        self._hasher = BlockHasher(lambda block, digest: self._fresh.append((block, digest)))

    def feed(self, piece: Piece) -> Iterator[str]:
        self._hasher.feed(piece)
        yield from self._compare()

    def close(self) -> Iterator[str]:
        """That was all."""
        self._hasher.close()
        yield from self._compare()
        while self._wanted is not None:
            yield self._zeros()

    def _compare(self) -> Iterator[str]:
        for block, digest in self._fresh:
            while self._wanted is not None and self._wanted[0] < block:
                yield self._zeros()
            if self._wanted is None or self._wanted[0] != block:
                yield f"{_place(block)} has data instead of zeros"
                continue
            if self._wanted[1] != digest:
                yield f"{_place(block)} differs"
            self._wanted = next(self._expected, None)
        self._fresh.clear()

    def _zeros(self) -> str:
        assert self._wanted is not None
        block, _ = self._wanted
        self._wanted = next(self._expected, None)
        return f"{_place(block)} has become zeros"


class _Damaged(Exception):
    """With a sentence on what is wrong."""


def _table(disk: Path, content: Content | None) -> bytes:
    """The table of a disk's digests. Raises _Damaged, FileNotFoundError if the disk is gone as well, OSError."""
    if content is None or content.file != disk.name + SUFFIX:
        raise _Damaged("its manifest names no digests")
    try:
        table = disk.with_name(content.file).read_bytes()
    except FileNotFoundError:
        if not disk.exists():
            raise
        raise _Damaged("its table of digests is gone") from None
    if hashlib.sha256(table).hexdigest() != content.sha256:
        raise _Damaged("its table of digests is damaged")
    return table


def _wrong_size(found: int, size: int) -> str:
    return f"it has {found} bytes instead of {size}"


def _lines(table: bytes) -> Iterator[tuple[int, str]]:
    lines: Iterable[bytes] = table.splitlines()
    for line in lines:
        if not line.startswith(b"#"):
            block, _, digest = line.partition(b" ")
            yield int(block), digest.decode()


def _place(block: int) -> str:
    return f"block {block} (bytes {block * BLOCK} to {(block + 1) * BLOCK - 1})"
