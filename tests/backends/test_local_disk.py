"""The local backend and the machine under it: full disks, copies, memory."""

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
import pytest
from tests.backends import archives
from tests.backends.archives import GIB, MIB, data_extents, same_bytes
from tests.backends.contract import PROJECT, Notes, failed, insert_task
from tests.backends.test_local import nothing_remains
from tests.needs import need

from imageopsd.backends.local import LocalBackend
from imageopsd.backends.local.clone import Cloner
from imageopsd.backends.local.disk import Disk
from imageopsd.backends.local.pipe import Broken
from imageopsd.backends.local.progress import Meter
from imageopsd.backends.local.tar import Piece
from imageopsd.model.errors import NoRoom, PermanentFailure
from imageopsd.model.image import Int64, RawDisk
from imageopsd.ports import InsertTask

# ----------------------------------------------------------------------------------------------- full disks


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MiB."""
    mount = tmp_path / "tiny"
    mount.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", mount], capture_output=True, text=True, check=False
    )
    need(made.returncode == 0, f"a small file system could not be mounted: {made.stderr.strip()}")
    yield mount
    subprocess.run(["umount", mount], check=True)


@pytest.mark.parametrize(
    ("content", "margin", "whole"), [(32 * MIB, 0, 8 * MIB), (64 * 1024, 9 * MIB, 0)], ids=["no room", "no margin"]
)
async def test_what_the_disk_could_never_hold_is_an_error_that_says_so(
    tmp_path: Path, tiny: Path, content: int, margin: int, whole: int
) -> None:
    disk = archives.disk(tmp_path / "d", GIB, [(MIB, os.urandom(content))])
    archive = archives.sparse(disk, tmp_path / "a.tar.gz")
    options = LocalBackend.Options(allow_files=(str(tmp_path),), free_space_margin=margin)
    async with LocalBackend(options, tiny / "data") as backend:
        task = insert_task(raw_disk=RawDisk(source=archive.as_uri()))
        with pytest.raises(PermanentFailure) as failure:
            await backend.insert_image(task, Notes())
    message = f"the file system of '{tiny / 'data'}' has {whole} bytes in all for images, too few for this."
    assert failed(failure) == ("INSUFFICIENT_STORAGE", 507, f"The disk is full: {message}")
    assert nothing_remains(tiny / "data")


async def test_what_there_is_no_room_for_now_leaves_nothing_and_begins_again_only_when_there_is(
    tmp_path: Path, tiny: Path
) -> None:
    disk = archives.disk(tmp_path / "d", GIB, [(MIB, os.urandom(5 * MIB))])
    archive = archives.sparse(disk, tmp_path / "a.tar.gz")
    ballast = tiny / "ballast"
    ballast.write_bytes(bytes(6 * MIB))
    options = LocalBackend.Options(allow_files=(str(tmp_path),), free_space_margin=0)
    async with LocalBackend(options, tiny / "data") as backend:
        task = insert_task(raw_disk=RawDisk(source=archive.as_uri()))
        seen = []
        for _ in range(2):
            notes = Notes()
            with pytest.raises(NoRoom) as failure:
                await backend.insert_image(task, notes)
            message = f"The disk is full: the file system of '{tiny / 'data'}' has no room for this."
            assert failed(failure) == ("INSUFFICIENT_STORAGE", 507, message)
            assert nothing_remains(tiny / "data")
            seen.append((notes.bytes > 0, [warning.message for warning in notes.warnings]))
        assert seen == [(True, [f"It had to wait for room. {message}"]), (False, [])]

        ballast.unlink()
        await backend.insert_image(task, Notes())
    os.truncate(disk, GIB)
    assert same_bytes(disk, tiny / "data/images" / PROJECT / "7/disk.raw")


async def test_parts_on_two_file_systems_are_refused_at_the_start(tiny: Path) -> None:
    data = tiny.parent / "data"
    data.mkdir()
    (data / "images").symlink_to(tiny)
    with pytest.raises(RuntimeError, match="must be on the same file system"):
        await LocalBackend(LocalBackend.Options(), data).__aenter__()


# --------------------------------------------------------------------------------------------------- copies


async def copied(data: Path, tmp_path: Path, **fields: object) -> tuple[InsertTask, Notes]:
    """An imported image 7 and its copy 8."""
    archive = archives.small(tmp_path / "a.tar.gz")
    notes = Notes()
    async with LocalBackend(LocalBackend.Options(allow_files=(str(tmp_path),)), data) as backend:
        original = insert_task(7, "original", raw_disk=RawDisk(source=archive.as_uri()))
        facts = await backend.insert_image(original, Notes())
        source = msgspec.structs.replace(original.image, archive_size_bytes=Int64(facts.archive_size_bytes or 0))
        task = insert_task(8, "copy", source_image=source.self_link, **fields)
        task = msgspec.structs.replace(task, source=source)
        copy = await backend.insert_image(task, notes)
        assert copy.archive_size_bytes == facts.archive_size_bytes
        assert copy.sha256 == facts.sha256
    return task, notes


async def test_a_copy_of_an_image_has_its_bytes_and_its_holes(tmp_path: Path) -> None:
    data = tmp_path / "data"
    _, notes = await copied(data, tmp_path)
    original, copy = (data / "images" / PROJECT / number / "disk.raw" for number in ("7", "8"))
    assert same_bytes(original, copy)
    assert list(data_extents(original)) == list(data_extents(copy))
    assert notes.bytes == 0
    assert notes.percents == sorted(notes.percents)


async def test_a_copy_can_be_larger(tmp_path: Path) -> None:
    data = tmp_path / "data"
    _, notes = await copied(data, tmp_path, disk_size_gb=Int64(2))
    assert (data / "images" / PROJECT / "8" / "disk.raw").stat().st_size == 2 * GIB
    assert [warning.code for warning in notes.warnings] == ["DISK_SIZE_LARGER_THAN_IMAGE_SIZE"]


async def test_a_source_image_that_is_gone_is_not_found(tmp_path: Path) -> None:
    source = insert_task(7, "gone").image
    task = msgspec.structs.replace(insert_task(8, "copy", source_image=source.self_link), source=source)
    async with LocalBackend(LocalBackend.Options(), tmp_path / "data") as backend:
        with pytest.raises(PermanentFailure) as failure:
            await backend.insert_image(task, Notes())
    assert failed(failure) == ("RESOURCE_NOT_FOUND", 404, "The resource 'projects/p/global/images/gone' was not found")
    assert list(tmp_path.glob("data/staging/*")) == []


def refuse(monkeypatch: pytest.MonkeyPatch, ways: set[str], number: int) -> list[str]:
    """Has the kernel refuse these ways of copying; what was tried."""
    tried: list[str] = []

    def instead(way: str, real: Callable[..., int]) -> Callable[..., int]:
        def call(*arguments: Any) -> int:
            tried.append(way)
            if way in ways:
                raise OSError(number, os.strerror(number))
            return real(*arguments)

        return call

    monkeypatch.setattr(fcntl, "ioctl", instead("clone", fcntl.ioctl))
    monkeypatch.setattr(os, "copy_file_range", instead("copy", os.copy_file_range))
    return tried


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EINVAL])
@pytest.mark.parametrize("refused", [set(), {"clone"}, {"clone", "copy"}], ids=["best", "copy", "read and write"])
def test_every_way_of_copying_gives_the_same_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: set[str], number: int
) -> None:
    refuse(monkeypatch, refused, number)
    extents = [(0, b"a" * 100), (30 * MIB, os.urandom(9 * MIB)), (GIB - 5, b"hello")]
    source = archives.disk(tmp_path / "source", GIB, extents)
    cloner, meter = Cloner(), Meter("copying", None)
    with source.open("rb") as file, Disk(tmp_path / "target", 0) as target:
        cloner.clone(file.fileno(), target, meter, Event())
        target.finish(GIB)
    assert same_bytes(source, tmp_path / "target")
    assert list(data_extents(source)) == list(data_extents(tmp_path / "target"))
    assert meter.made == GIB


def test_what_does_not_work_between_two_file_systems_is_tried_again_inside_of_one(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = archives.disk(tmp_path / "source", MIB, [(0, b"x")])
    there = archives.disk(tiny / "source", MIB, [(0, b"x")])
    cloner = Cloner()

    def tried(source: Path, number: int) -> list[str]:
        with monkeypatch.context() as patched, source.open("rb") as file:
            ways = refuse(patched, {"clone", "copy"}, number)
            with Disk(tmp_path / f"target-{os.urandom(4).hex()}", 0) as target:
                cloner.clone(file.fileno(), target, Meter("copying", None), Event())
            return ways

    assert tried(there, errno.EXDEV) == ["clone", "copy"]
    assert tried(there, errno.EXDEV) == []
    assert tried(here, errno.EINVAL) == ["clone", "copy"]  # which says nothing of other files
    assert tried(here, errno.EOPNOTSUPP) == ["clone", "copy"]
    assert tried(here, errno.EOPNOTSUPP) == []


def test_a_copy_stops_when_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = archives.disk(tmp_path / "source", GIB, [(0, b"x")])
    stop = Event()
    stop.set()
    refuse(monkeypatch, {"clone"}, errno.EOPNOTSUPP)
    cloner = Cloner()
    with source.open("rb") as file, Disk(tmp_path / "target", 0) as target, pytest.raises(Broken):
        cloner.clone(file.fileno(), target, Meter("copying", None), stop)


# ----------------------------------------------------------------------------------------- zeros and memory


def test_zeros_are_not_written_wherever_pieces_begin(tmp_path: Path) -> None:
    grain = 64 * 1024
    data = bytes(300) + b"x" + bytes(3 * grain) + b"y" * grain + bytes(grain)
    with Disk(tmp_path / "d", 0) as disk:
        disk.fill(Piece(grain - 512, b"zz" + data, 2, 2 + len(data)))
        disk.finish(GIB)
    place = grain - 512
    with (tmp_path / "d").open("rb") as file:
        file.seek(place)
        assert file.read(len(data)) == data
    assert (tmp_path / "d").stat().st_blocks * 512 <= 4 * grain


PEAK = """
import asyncio, resource, sys
from pathlib import Path
from imageopsd.backends.local import LocalBackend
from tests.backends.contract import Notes, insert_task
from imageopsd.model.image import RawDisk

async def main(tmp: Path) -> None:
    async with LocalBackend(LocalBackend.Options(allow_files=(str(tmp),)), tmp / "data") as backend:
        for number, name in enumerate(("small.tar.gz", "large.tar.gz"), 1):
            await backend.insert_image(insert_task(number, raw_disk=RawDisk(source=(tmp / name).as_uri())), Notes())
            print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM:")).split()[1])

asyncio.run(main(Path(sys.argv[1])))
"""


def test_memory_does_not_grow_with_the_disk(tmp_path: Path) -> None:
    """Zeros are the worst case: the whole archive fits into the pipes, its content a thousand times not."""
    archives.small(tmp_path / "small.tar.gz")
    archives.zeros(tmp_path / "large.tar.gz", GIB)
    command = [sys.executable, "-c", PEAK, str(tmp_path)]
    path = os.pathsep.join(filter(None, sys.path))
    run = subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    small, large = (int(line) * 1024 for line in run.stdout.split())
    assert large - small <= 64 * MIB
