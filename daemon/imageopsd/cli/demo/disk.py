"""A real disk image made on the spot, and its archive as Compute wants it: a gzip'd oldgnu tar with one `disk.raw`."""

import hashlib
import io
import os
import random
import shutil
import struct
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from isal import isal_zlib

MIB = 1024**2
VIRTUAL_SIZE = 1024 * MIB
PARTITION_START = 1 * MIB
SECTOR = 512
LINUX = 0x83


class Archive(NamedTuple):
    path: Path
    sha1: str
    size: int


def make_disk(folder: Path) -> tuple[Path, str]:
    """`disk.raw` of 1 GiB in `folder` and what is in it: a partition with an ext4 file system and files where
    mkfs.ext4 is to be had, otherwise plain data between holes."""
    disk = folder / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(VIRTUAL_SIZE)
        file.write(_partition_table())
    # Debian keeps mkfs in /usr/sbin, which is not on every user's PATH
    mkfs = shutil.which("mkfs.ext4", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if mkfs is None:
        _scatter(disk)
        return disk, "a partition table and data between holes (no mkfs.ext4 on this machine)"
    tree = folder / "tree"
    count = _files(tree)
    offset = f"offset={PARTITION_START},lazy_itable_init=1,lazy_journal_init=1"
    size = f"{(VIRTUAL_SIZE - PARTITION_START) // 1024}k"
    subprocess.run([mkfs, "-q", "-F", "-L", "demo", "-d", tree, "-E", offset, disk, size], check=True)
    shutil.rmtree(tree)
    return disk, f"a partition table and an ext4 file system with {count} files"


def pack(disk: Path, archive: Path) -> Archive:
    """The disk as `disk.raw` in `archive`, by GNU tar with its sparse map where there is GNU tar."""
    tar = shutil.which("tar")
    digest = hashlib.sha1(usedforsecurity=False)
    deflate = isal_zlib.compressobj(level=1, wbits=31)
    with archive.open("wb") as target:

        def write(data: bytes) -> int:
            packed = deflate.compress(data)
            digest.update(packed)
            target.write(packed)
            return len(data)

        if tar is not None:
            command = [tar, "--format=oldgnu", "--sparse", "--owner=0", "--group=0", "-cf", "-", disk.name]
            with subprocess.Popen(command, cwd=disk.parent, stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                while data := process.stdout.read(MIB):
                    write(data)
            if process.returncode:
                raise subprocess.CalledProcessError(process.returncode, command)
        else:
            with tarfile.open(fileobj=_Stream(write), mode="w|", format=tarfile.GNU_FORMAT) as dense:
                dense.add(disk, arcname="disk.raw")
        last = deflate.flush()
        digest.update(last)
        target.write(last)
    return Archive(archive, digest.hexdigest(), archive.stat().st_size)


class _Stream(io.RawIOBase):
    """The little that tarfile needs of a file to write to."""

    def __init__(self, write: Callable[[bytes], int]) -> None:
        self.write = write  # type: ignore[method-assign,assignment]


def _partition_table() -> bytes:
    """An MBR with one Linux partition over the whole disk behind the first MiB."""
    start, sectors = PARTITION_START // SECTOR, (VIRTUAL_SIZE - PARTITION_START) // SECTOR
    beyond_chs = b"\xfe\xff\xff"
    entry = struct.pack("<B3sB3sII", 0x80, beyond_chs, LINUX, beyond_chs, start, sectors)
    return bytes(440) + b"imgd" + bytes(2) + entry + bytes(48) + b"\x55\xaa"


def _files(tree: Path) -> int:
    """Files as a small system has them: text, things that do not compress, and one with a hole."""
    noise = random.Random(8640)  # noqa: S311 - content, not a secret
    for number in range(24):
        folder = tree / "usr" / f"package-{number}"
        folder.mkdir(parents=True)
        (folder / "binary").write_bytes(noise.randbytes(2 * MIB))
        (folder / "README").write_text(f"Package {number} of the demonstration.\n" * 2000)
    (tree / "etc").mkdir()
    (tree / "etc" / "hostname").write_text("imageopsd-demo\n")
    with (tree / "swapfile").open("wb") as swap:
        swap.truncate(64 * MIB)
    return 24 * 2 + 2


def _scatter(disk: Path) -> None:
    noise = random.Random(8640)  # noqa: S311 - content, not a secret
    with disk.open("r+b") as file:
        for offset in range(PARTITION_START, VIRTUAL_SIZE, 40 * MIB):
            file.seek(offset)
            file.write(noise.randbytes(2 * MIB))
