"""From an archive to a disk: the stages of an import and what runs between them."""

import asyncio
import hashlib
from collections.abc import Sequence

import msgspec

from imageopsd.backends.local.blocks import BlockTable
from imageopsd.backends.local.disk import Disk
from imageopsd.backends.local.gunzip import Gunzip, invalid_file
from imageopsd.backends.local.options import Options
from imageopsd.backends.local.pipe import Pipe, in_thread, outlast
from imageopsd.backends.local.progress import Meter
from imageopsd.backends.local.sizes import CheckSize, check_whole
from imageopsd.backends.local.sources.source import Source
from imageopsd.backends.local.spool import Spool
from imageopsd.backends.local.tar import Piece, TarReader
from imageopsd.model.image import GIB
from imageopsd.ports import Reporter

IN_FLIGHT = 4 * 1024**2
"""Bytes that may wait between two stages."""
LARGEST_FREED = 8 * 1024**2
"""Bytes of the block that is freed before an import begins."""


def largest_archive(max_size: int) -> int:
    """Bytes of an archive beyond which it cannot be one of a disk of `max_size` bytes: the disk as it is; a 64th for
    deflate, which makes what it cannot compress longer by 5 bytes a block (320 bytes would be a very short one); and
    64 MiB for all else: a sparse map of 24 MiB, the end of the tar and the padding behind it of 8 MiB each."""
    return max_size + max_size // 64 + 64 * 1024**2


class Taken(msgspec.Struct, frozen=True):
    """What was taken in: the disk's size and the archive's, in bytes, and the archive's SHA-256 in hex."""

    disk_size: int
    archive_size: int | None
    sha256: str | None


class Intake:
    """One archive on its way. Five stages run at once: the source pours, and a thread each hashes the archive, inflates
    it and reads the tar, hashes the disk, writes it. hashlib, zlib and pwrite let go of the GIL, so they share the
    processors, and while one waits for the device the others go on."""

    def __init__(
        self,
        source: Source,
        spool: Spool,
        disk: Disk,
        table: BlockTable,
        *,
        options: Options,
        check: CheckSize,
        sha1: str | None,
    ) -> None:
        """`check` has more to say of the disk's size than `options`; `sha1` is that of the archive in hex, if it is to
        be checked."""
        self._source = source
        self._spool = spool
        self._disk = disk
        self._table = table
        self._max_size = options.max_disk_gb * GIB
        self._sha1 = sha1
        self._gunzip = Gunzip(source.content_type)
        self._check = check
        self._strict = options.strict_sizes
        self._tar = TarReader(self._max_size, self._check_size)
        self._arriving: Pipe[bytes] = Pipe(IN_FLIGHT)
        self._hashed: Pipe[bytes] = Pipe(IN_FLIGHT)
        self._inflated: Pipe[Sequence[Piece]] = Pipe(IN_FLIGHT)
        self._digested: Pipe[Sequence[Piece]] = Pipe(IN_FLIGHT)
        self._meter = Meter("importing", source.length, kept=source.kept)

    async def run(self, report: Reporter) -> Taken:
        """Raises BackendFailure or SourceChanged, and OSError from the disk. No thread is left when it ends, however
        it ends."""
        self._check_length(self._source.length or 0)
        _keep_what_is_freed()
        with self._meter.telling(report):
            # a task of their own, because a TaskGroup too is awake with every turn of the loop in a cancelled scope
            stages = asyncio.create_task(self._run_stages())
            return await outlast(stages, stages.cancel)

    async def _run_stages(self) -> Taken:
        try:
            async with asyncio.TaskGroup() as stages:
                stages.create_task(self._source.pour(self._arriving))
                sha256 = stages.create_task(in_thread("hash", self._hash, self._stop))
                disk_size = stages.create_task(in_thread("inflate", self._inflate, self._stop))
                stages.create_task(in_thread("digest", self._digest, self._stop))
                stages.create_task(in_thread("write", self._write, self._stop))
        except BaseExceptionGroup as failures:
            # the first to fail is why the others were cancelled
            raise failures.exceptions[0] from None
        return Taken(disk_size=disk_size.result(), archive_size=self._meter.read, sha256=sha256.result())

    def _check_length(self, length: int) -> None:
        limit = largest_archive(self._max_size)
        if length > limit:
            raise invalid_file(
                f"The source has more than {limit} bytes, the most that an archive may have of a disk of the "
                f"{self._max_size // GIB} GB that backends.local.max_disk_gb allows."
            )

    def _check_size(self, size: int) -> None:
        if self._strict:
            check_whole(size)
        self._check(size)

    def _hash(self) -> str:
        sha256 = hashlib.sha256()
        sha1 = hashlib.sha1(usedforsecurity=False)  # the API's checksum; the manifest keeps the SHA-256
        for block in self._arriving:
            sha256.update(block)
            if self._sha1 is not None:
                sha1.update(block)
            self._spool.keep(block, sha256)
            self._hashed.put(block, len(block))
        if self._sha1 is not None and sha1.hexdigest() != self._sha1.lower():
            raise invalid_file(f"The source has the SHA-1 {sha1.hexdigest()}, expected was {self._sha1.lower()}.")
        self._hashed.close()
        return sha256.hexdigest()

    def _inflate(self) -> int:
        for block in self._hashed:
            self._check_length(self._meter.read + len(block))
            for raw in self._gunzip.feed(block):
                self._hand_on(raw)
            self._meter.read += len(block)
        self._gunzip.close()
        size = self._tar.close()
        self._inflated.close()
        return size

    def _hand_on(self, raw: bytes) -> None:
        # one item for all pieces of a step: a fragmented sparse map makes thousands
        pieces = list(self._tar.feed(raw))
        if pieces:
            self._inflated.put(pieces, len(raw))
            self._meter.size = self._tar.disk_size
            self._disk.expected = self._tar.content
            self._meter.made = pieces[-1].offset

    def _digest(self) -> None:
        for pieces in self._inflated:
            for piece in pieces:
                self._table.feed(piece)
            self._digested.put(pieces, sum(piece.end - piece.start for piece in pieces))
        self._digested.close()

    def _write(self) -> None:
        for pieces in self._digested:
            for piece in pieces:
                self._disk.fill(piece)

    def _stop(self) -> None:
        for pipe in (self._arriving, self._hashed, self._inflated, self._digested):
            pipe.break_off()


def _keep_what_is_freed() -> None:
    """glibc gives free memory back to the kernel from twice the largest block on that was ever freed. After one of
    this size it keeps a few of the megabytes that the stages hand on; page faults for each anew were a third of reading
    zeros (mallopt(3), M_MMAP_THRESHOLD)."""
    _ = bytes(LARGEST_FREED)
