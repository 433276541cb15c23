"""Reading a disk that is encrypted with a customer's key; nothing of it goes out that was not found authentic."""

import base64
import os
from collections.abc import Iterator
from http import HTTPStatus

from imageopsd.backends.local.cipher import (
    CHUNK,
    HEADER_BYTES,
    NO_TAG,
    TABLE_AT,
    TABLE_BLOCK,
    TAG,
    Chunks,
    Header,
    NotOurs,
    TableDigest,
)
from imageopsd.backends.local.extents import extents
from imageopsd.model.errors import PermanentFailure
from imageopsd.model.keys import check_source_key

_TAGS = TABLE_BLOCK // TAG


class Seals:
    """The seals of a disk, as far as they can be read without its key. Raises NotOurs, OSError."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.header = Header.parse(os.pread(descriptor, HEADER_BYTES, 0))

    @property
    def key_sha256(self) -> str:
        """As Compute shows it."""
        return base64.b64encode(self.header.key_sha256).decode()

    def check(self) -> None:
        """Whether all tags are what they were."""
        for _ in self.blocks():
            pass

    def blocks(self) -> Iterator[tuple[int, bytes]]:
        """The blocks of the table that are not all zeros, with their numbers; raises at the end if they are not those
        that the header speaks of."""
        digest = TableDigest()
        for number in self._used():
            block = os.pread(self._descriptor, TABLE_BLOCK, TABLE_AT + number * TABLE_BLOCK).ljust(TABLE_BLOCK, b"\0")
            if block.count(0) != TABLE_BLOCK:
                digest.add(number, block)
                yield number, block
        if digest.value() != self.header.table_sha256:
            raise NotOurs("its tags were changed")

    def tag(self, number: int) -> bytes:
        return os.pread(self._descriptor, TAG, TABLE_AT + number * TAG)

    def _used(self) -> Iterator[int]:
        """The numbers of blocks in which the file has data."""
        following = 0
        for start, end in extents(self._descriptor, os.fstat(self._descriptor).st_size):
            first = max(following, max(start - TABLE_AT, 0) // TABLE_BLOCK)
            following = max(following, -(-max(end - TABLE_AT, 0) // TABLE_BLOCK))
            yield from range(first, following)


class DecryptedDisk:
    """The disk in clear: a `Readable`. The descriptors of its two files stay the caller's; `resource` is the partial
    URL for texts. Raises PermanentFailure for a key that is not the right one, and for files that were changed: before
    the first byte is read, as far as key, length and tags go."""

    def __init__(self, disk: int, seals: int, key: bytes | None, resource: str) -> None:
        self._disk = disk
        self._resource = resource
        try:
            self._seals = Seals(seals)
            check_source_key(key, self._seals.key_sha256, resource)
            header = self._seals.header
            self._chunks = Chunks(header.opened(key or b""), header.image_id)
            if os.fstat(disk).st_size != header.size:
                raise NotOurs(f"it has {os.fstat(disk).st_size} bytes instead of {header.size}")
            self._seals.check()
        except NotOurs as error:
            raise self._damaged(error) from None
        self.size = header.size

    def extents(self) -> Iterator[tuple[int, int]]:
        begin = end = 0
        try:
            for number, block in self._seals.blocks():
                for place in range(0, TABLE_BLOCK, TAG):
                    if block[place : place + TAG] == NO_TAG:
                        continue
                    offset = (number * _TAGS + place // TAG) * CHUNK
                    if offset != end:
                        if begin < end:
                            yield begin, end
                        begin = offset
                    end = min(offset + CHUNK, self.size)
        except NotOurs as error:
            raise self._damaged(error) from None
        if begin < end:
            yield begin, end

    def read(self, start: int, end: int) -> Iterator[bytes]:
        while start < end:
            number, into = divmod(start, CHUNK)
            offset = number * CHUNK
            data = os.pread(self._disk, min(CHUNK, self.size - offset), offset)
            try:
                plain = self._chunks.decrypt(number, data + self._seals.tag(number))
            except NotOurs as error:
                raise self._damaged(error) from None
            part = plain if not into and end - start >= len(plain) else plain[into : into + end - start]
            yield part
            start += len(part)

    def _damaged(self, reason: NotOurs) -> PermanentFailure:
        return PermanentFailure(
            "INVALID_RESOURCE",
            f"The encrypted disk of '{self._resource}' is not as it was made: {reason}.",
            HTTPStatus.BAD_REQUEST,
        )
