"""Disks that somebody uses, and images that must not be made of them unasked."""

import fcntl
import os
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import msgspec
import pytest
from tests.backends.archives import GIB, MIB, disk, same_bytes
from tests.backends.contract import Notes, failed, insert_task
from tests.backends.test_local import image_dir, nothing_remains
from tests.needs import need

from imageopsd.backends.local import LocalBackend
from imageopsd.backends.local.locks import locked_for_writing
from imageopsd.model.errors import PermanentFailure

DISK = "projects/p/zones/z/disks/boot"
Lock = Callable[[IO[bytes]], object]


def flock(kind: int) -> Lock:
    return lambda file: fcntl.flock(file, kind)


def own(kind: int, start: int = 0, length: int = 0) -> Lock:
    """A lock of an open file description, as if another process had it."""
    lock = struct.pack("hhqqi4x", kind, os.SEEK_SET, start, length, 0)
    return lambda file: fcntl.fcntl(file, fcntl.F_OFD_SETLK, lock)


IN_USE = {
    "flock": flock(fcntl.LOCK_EX),
    "of-the-file": own(fcntl.F_WRLCK),
    "of-a-byte": own(fcntl.F_WRLCK, 4096, 1),
    "as-qemu-writing": own(fcntl.F_RDLCK, 100, 4),
}
READ = {
    "nobody": lambda file: None,
    "flock": flock(fcntl.LOCK_SH),
    "of-the-file": own(fcntl.F_RDLCK),
    "as-qemu-reading": own(fcntl.F_RDLCK, 100, 1),
}


@contextmanager
def held(path: Path, lock: Lock) -> Iterator[None]:
    with path.open("r+b") as file:
        lock(file)
        yield


def locked(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return locked_for_writing(descriptor)
    finally:
        os.close(descriptor)


@pytest.fixture
def boot(tmp_path: Path) -> Path:
    path = tmp_path / "resources" / f"{DISK}.raw"
    path.parent.mkdir(parents=True)
    return disk(path, GIB, [(MIB, b"content")])


@pytest.mark.parametrize("lock", IN_USE)
def test_who_writes_is_seen_and_is_not_disturbed(boot: Path, lock: str) -> None:
    with held(boot, IN_USE[lock]):
        assert locked(boot)
        assert locked(boot)
    assert not locked(boot)


@pytest.mark.parametrize("lock", READ)
def test_who_only_reads_is_no_user(boot: Path, lock: str) -> None:
    with held(boot, READ[lock]):
        assert not locked(boot)


def test_a_look_leaves_no_lock(boot: Path) -> None:
    descriptor = os.open(boot, os.O_RDONLY)
    try:
        locked_for_writing(descriptor)
        with boot.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            own(fcntl.F_WRLCK)(file)
    finally:
        os.close(descriptor)


def test_a_disk_that_qemu_has_open_is_in_use(boot: Path) -> None:
    need(shutil.which("qemu-io"), "qemu-io (qemu-utils) is not installed")
    with subprocess.Popen(["qemu-io", "-f", "raw", boot], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as qemu:
        assert qemu.stdin is not None
        assert qemu.stdout is not None
        qemu.stdin.write(b"length\n")
        qemu.stdin.flush()
        qemu.stdout.readline()  # it answers once the disk is open
        assert locked(boot)
        qemu.stdin.close()
        qemu.wait()
    assert not locked(boot)


@pytest.mark.parametrize("lock", IN_USE)
async def test_a_disk_in_use_makes_an_image_only_by_force(tmp_path: Path, boot: Path, lock: str) -> None:
    data = tmp_path / "data"
    task = insert_task(source_disk=f"zones/z/disks/{boot.stem}")
    async with LocalBackend(LocalBackend.Options(resources_dir=str(tmp_path / "resources")), data) as backend:
        with held(boot, IN_USE[lock]):
            with pytest.raises(PermanentFailure) as failure:
                await backend.insert_image(task, Notes())
            assert failed(failure)[:2] == ("RESOURCE_IN_USE_BY_ANOTHER_RESOURCE", 400)
            assert failed(failure)[2].startswith(f"The disk resource '{DISK}' is already being used by ")
            assert nothing_remains(data)

            await backend.insert_image(msgspec.structs.replace(task, force=True), Notes())
    assert same_bytes(boot, image_dir(data) / "disk.raw")


async def test_with_strict_sizes_no_disk_is_extended(tmp_path: Path, boot: Path) -> None:
    os.truncate(boot, GIB + 512)
    options = LocalBackend.Options(resources_dir=str(tmp_path / "resources"), strict_sizes=True)
    async with LocalBackend(options, tmp_path / "data") as backend:
        with pytest.raises(PermanentFailure, match=rf"has {GIB + 512} bytes, not a whole number of GB"):
            await backend.insert_image(insert_task(source_disk=f"zones/z/disks/{boot.stem}"), Notes())
    assert nothing_remains(tmp_path / "data")
