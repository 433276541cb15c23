"""The files of a disk in the directory of an image: plain, or encrypted with a customer's key.

What encrypts is imported when it is needed: its library takes more memory than the rest of the daemon may.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from imageopsd.backends.local.blocks import BlockTable
from imageopsd.backends.local.disk import Disk, Reservation
from imageopsd.backends.local.reading import PlainDisk, Readable
from imageopsd.model.keys import check_source_key
from imageopsd.model.operation import Record

PLAIN = ".raw"
ENCRYPTED = ".enc"


class Encryption(Record, frozen=True):
    """What a manifest says of an encrypted disk: the SHA-256 of the customer's key as Compute shows it, and that of the
    header of the disk's seals, in hex."""

    key_sha256: str
    header_sha256: str


def file_name(stem: str, *, encrypted: bool) -> str:
    return stem + (ENCRYPTED if encrypted else PLAIN)


@contextmanager
def new_disk(
    directory: Path, stem: str, margin: int, key: bytes | None, image_id: int, reserved: Reservation | None = None
) -> Iterator[tuple[Disk, BlockTable]]:
    """The disk to fill, and the table of its digests to feed with the same. Raises OSError."""
    path = directory / file_name(stem, encrypted=key is not None)
    if key is None:
        with Disk(path, margin, reserved) as disk, BlockTable(path) as table:
            yield disk, table
        return
    from imageopsd.backends.local.encrypted import CipherBlockTable, EncryptedDisk

    with CipherBlockTable(path) as table, EncryptedDisk(path, margin, key, image_id, table, reserved) as disk:
        yield disk, table


def encryption_of(path: Path) -> Encryption | None:
    """Of a disk that is finished; `None` for a plain one. Raises OSError."""
    if path.suffix != ENCRYPTED:
        return None
    from imageopsd.backends.local.cipher import HEADER_BYTES
    from imageopsd.backends.local.decrypted import Seals

    with open(_seals(path), "rb", buffering=0) as file:
        return Encryption(
            Seals(file.fileno()).key_sha256, hashlib.sha256(os.pread(file.fileno(), HEADER_BYTES, 0)).hexdigest()
        )


@contextmanager
def opened(path: Path, key: bytes | None, resource: str) -> Iterator[Readable]:
    """The disk in clear. `resource` is the partial URL for texts. Raises PermanentFailure for a key that is missing,
    wrong or not needed and for an encrypted disk that was tampered with; FileNotFoundError, OSError."""
    with ExitStack() as files:
        names = [path] if path.suffix != ENCRYPTED else [path, _seals(path)]
        disk, *seals = (files.enter_context(open(name, "rb", buffering=0)).fileno() for name in names)
        yield readable(disk, seals[0] if seals else None, key, resource)


def readable(disk: int, seals: int | None, key: bytes | None, resource: str) -> Readable:
    """The same of descriptors, which stay the caller's; a plain disk has no seals."""
    if seals is None:
        check_source_key(key, None, resource)
        return PlainDisk(disk)
    from imageopsd.backends.local.decrypted import DecryptedDisk

    return DecryptedDisk(disk, seals, key, resource)


def seals_damage(path: Path, expected: Encryption | None) -> Iterator[str]:
    """What can be told without the key: whether the seals of an encrypted disk are those that it was made with. A
    sentence each. Raises OSError."""
    if path.suffix != ENCRYPTED:
        return
    from imageopsd.backends.local.cipher import NotOurs
    from imageopsd.backends.local.decrypted import Seals

    try:
        if encryption_of(path) != expected:
            yield "the header of its seals is damaged"
            return
        with open(_seals(path), "rb", buffering=0) as file:
            Seals(file.fileno()).check()
    except FileNotFoundError:
        yield "its seals are gone"
    except NotOurs as error:
        yield f"of its seals {error}"


def seals_name(disk: str) -> str:
    """Of the file beside an encrypted disk."""
    return f"{disk}.seals"


def _seals(path: Path) -> Path:
    return path.with_name(seals_name(path.name))
