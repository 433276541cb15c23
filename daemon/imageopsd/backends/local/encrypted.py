"""Writing a disk that is encrypted with a customer's key; `cipher` has the form of its files."""

import os
from hashlib import sha256
from pathlib import Path
from types import TracebackType

from imageopsd.backends.local.blocks import BlockTable
from imageopsd.backends.local.cipher import (
    CHUNK,
    NO_TAG,
    TABLE_AT,
    TABLE_BLOCK,
    TAG,
    Chunks,
    Header,
    TableDigest,
    new_disk_key,
)
from imageopsd.backends.local.disk import Disk, Reservation
from imageopsd.backends.local.disks import seals_name
from imageopsd.backends.local.tar import Piece
from imageopsd.crashpoints import crash_point

_ZEROS = bytes(CHUNK)
_NO_TAGS = bytes(TABLE_BLOCK)
_TAGS = TABLE_BLOCK // TAG


class CipherBlockTable(BlockTable):
    """Digests of what lies there, so that they tell nothing of the disk and can be checked without its key. Who writes
    the disk feeds it; what others feed it with is the disk in clear."""

    def feed(self, piece: Piece) -> None:
        pass

    def feed_encrypted(self, piece: Piece) -> None:
        super().feed(piece)


class EncryptedDisk(Disk):
    """As `Disk`; what it is filled with reaches the file encrypted, and `table` what is in the file."""

    _partial_of: int
    """The chunk that is in `_partial`, of which not all came yet; -1: none."""

    def __init__(
        self,
        path: Path,
        margin: int,
        key: bytes,
        image_id: int,
        table: CipherBlockTable,
        reserved: Reservation | None = None,
    ) -> None:
        super().__init__(path, margin, reserved)
        self._key = key
        self._image_id = image_id
        self._block_table = table
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._seals = os.open(path.with_name(seals_name(path.name)), flags, 0o600)
        except OSError:
            os.close(self.fd)
            raise
        self._begin()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._seals)
        super().__exit__(kind, error, trace)

    def fill(self, piece: Piece) -> None:
        shift = piece.offset - piece.start
        at = piece.start
        while at < piece.end:
            number, into = divmod(at + shift, CHUNK)
            end = min(piece.end, at + CHUNK - into)
            if number != self._partial_of:
                self._end_partial(CHUNK)
            if end - at == CHUNK:
                if not piece.data.startswith(_ZEROS, at):
                    self._encrypt(number, piece.data[at:end])
            else:
                self._partial_of = number
                self._partial[into : into + end - at] = piece.data[at:end]
            at = end

    def restart(self) -> None:
        super().restart()
        os.ftruncate(self._seals, 0)
        self._begin()

    def finish(self, size: int) -> int:
        self._end_partial(size - self._partial_of * CHUNK)
        self._end_table_block()
        header = Header(
            image_id=self._image_id,
            size=size,
            key_sha256=sha256(self._key).digest(),
            table_sha256=self._table_digest.value(),
            salt=os.urandom(32),
            nonce=os.urandom(12),
        )
        _write(self._seals, header.sealed(self._key, self._disk_key), 0)
        blocks = -(-size // (CHUNK * _TAGS))
        os.ftruncate(self._seals, TABLE_AT + blocks * TABLE_BLOCK)
        crash_point("seals.sync.before")
        os.fsync(self._seals)
        crash_point("seals.sync.after")
        return super().finish(size) + os.fstat(self._seals).st_blocks * 512

    def _begin(self) -> None:
        """A key of its own for every begin: two contents under one would share their nonces."""
        self._disk_key = new_disk_key()
        self._chunks = Chunks(self._disk_key, self._image_id)
        self._partial = bytearray(CHUNK)
        self._partial_of = -1
        self._table_digest = TableDigest()
        self._tags = bytearray(TABLE_BLOCK)
        self._tags_of = 0

    def _end_partial(self, size: int) -> None:
        """`size` is how far the disk goes in it, at most."""
        if self._partial_of < 0:
            return
        if self._partial != _ZEROS:
            self._encrypt(self._partial_of, bytes(self._partial[:size]))
            self._partial = bytearray(CHUNK)
        self._partial_of = -1

    def _encrypt(self, number: int, data: bytes) -> None:
        sealed = self._chunks.encrypt(number, data)
        tag = sealed[-TAG:]
        assert tag != NO_TAG  # once in 2^128
        block, place = divmod(number, _TAGS)
        if block != self._tags_of:
            self._end_table_block()
            self._tags_of = block
        self._tags[place * TAG : (place + 1) * TAG] = tag
        offset = number * CHUNK
        self._write(sealed, 0, len(data), offset)
        self._block_table.feed_encrypted(Piece(offset, sealed, 0, len(data)))

    def _end_table_block(self) -> None:
        if self._tags == _NO_TAGS:
            return
        block = bytes(self._tags)
        self._table_digest.add(self._tags_of, block)
        _write(self._seals, block, TABLE_AT + self._tags_of * TABLE_BLOCK)
        self._tags = bytearray(TABLE_BLOCK)


def _write(descriptor: int, data: bytes, offset: int) -> None:
    with memoryview(data) as view:
        at = 0
        while at < len(data):
            at += os.pwrite(descriptor, view[at:], offset + at)
