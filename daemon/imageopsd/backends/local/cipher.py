"""How a disk is encrypted with a customer's key: the form of its two files, and nothing that opens one.

`disk.enc` has each chunk of 64 KiB where it is on the disk, encrypted with AES-256-GCM; chunks of zeros are holes.
`disk.enc.seals` beside it:

    0     a header of 256 bytes, see `Header`; zeros up to 4096
    4096  16 bytes for each chunk, in order: its GCM tag, or zeros for a hole; up to a whole number of 64 KiB

The nonce of a chunk is its number, and it is authenticated with it, its length and the image's id: it fits nowhere
else. The key of all chunks is random and new for each try of making a disk, so that no nonce is used twice; it is
wrapped with one that HKDF-SHA256 derives from the customer's key, and everything else in the header is authenticated
with that: the disk's length and the digest of all tags, holes included. So no chunk can be cut off, and none become a
hole.

Same sizes and places as in a plain disk: what is sparse stays so, and the digests of blocks work on what lies there
(decision 6).
"""

import os
import struct
from hashlib import sha256
from typing import Self

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

CHUNK = 64 * 1024
"""The grain in which zeros become holes of a plain disk, too (`disk`)."""
TAG = 16
TABLE_AT = 4096
TABLE_BLOCK = 64 * 1024
"""Bytes of the table that are written, and digested, as one: the tags of 256 MiB."""
NO_TAG = bytes(TAG)

_MAGIC = b"imageopsd disk 1"
"""The version is its last byte."""
_KEY_BYTES = 32
_FIELDS = struct.Struct(">16sIQQ32s32s32s12s")
_WRAPPED = _KEY_BYTES + TAG
HEADER_BYTES = 256


class NotOurs(ValueError):
    """No header, one of another version, or one that the key does not fit: somebody changed it."""


class Header(msgspec.Struct, frozen=True):
    """`size` is the disk's, in bytes; `key_sha256` that of the customer's key; `table_sha256` is of the blocks of the
    table that are not all zeros, each after its number in eight bytes; `wrapped` is the disk's own key."""

    image_id: int
    size: int
    key_sha256: bytes
    table_sha256: bytes
    salt: bytes
    nonce: bytes
    wrapped: bytes = b""

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """Raises NotOurs."""
        if len(data) < HEADER_BYTES:
            raise NotOurs("its header is cut off")
        magic, chunk, image_id, size, key, table, salt, nonce = _FIELDS.unpack_from(data)
        if magic != _MAGIC or chunk != CHUNK:
            raise NotOurs("its header is of no version that is known here")
        wrapped = data[_FIELDS.size : _FIELDS.size + _WRAPPED]
        return cls(image_id, size, key, table, salt, nonce, wrapped)

    def _fields(self) -> bytes:
        return _FIELDS.pack(
            _MAGIC, CHUNK, self.image_id, self.size, self.key_sha256, self.table_sha256, self.salt, self.nonce
        )

    def sealed(self, key: bytes, disk_key: bytes) -> bytes:
        """The header with the disk's key wrapped by the customer's."""
        fields = self._fields()
        return (fields + self._wrapper(key).encrypt(self.nonce, disk_key, fields)).ljust(HEADER_BYTES, b"\0")

    def opened(self, key: bytes) -> bytes:
        """The disk's key. Raises NotOurs."""
        try:
            return self._wrapper(key).decrypt(self.nonce, self.wrapped, self._fields())
        except InvalidTag:
            raise NotOurs("its header was changed") from None

    def _wrapper(self, key: bytes) -> AESGCM:
        derived = HKDF(SHA256(), _KEY_BYTES, self.salt, b"imageopsd disk key %d" % self.image_id).derive(key)
        return AESGCM(derived)


class Chunks:
    """Encrypts and decrypts the chunks of one disk. A number must be encrypted once only."""

    def __init__(self, disk_key: bytes, image_id: int) -> None:
        self._cipher = AESGCM(disk_key)
        self._image_id = image_id

    def encrypt(self, number: int, data: bytes) -> bytes:
        """The chunk, and its tag behind it."""
        return self._cipher.encrypt(*self._place(number, data, len(data)))

    def decrypt(self, number: int, data: bytes) -> bytes:
        """Of a chunk and its tag. Raises NotOurs."""
        try:
            return self._cipher.decrypt(*self._place(number, data, max(len(data) - TAG, 0)))
        except InvalidTag:
            first = number * CHUNK
            raise NotOurs(f"bytes {first} to {first + len(data) - TAG - 1} were changed") from None

    def _place(self, number: int, data: bytes, length: int) -> tuple[bytes, bytes, bytes]:
        return struct.pack(">4xQ", number), data, struct.pack(">QQI", self._image_id, number, length)


class TableDigest:
    """The digest of a table, fed with its blocks in order."""

    def __init__(self) -> None:
        self._digest = sha256()

    def add(self, number: int, block: bytes) -> None:
        self._digest.update(number.to_bytes(8, "big"))
        self._digest.update(block)

    def value(self) -> bytes:
        return self._digest.digest()


def new_disk_key() -> bytes:
    return os.urandom(_KEY_BYTES)
