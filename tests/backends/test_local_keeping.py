"""What lies on this host: found, verified, exported, cleared away."""

import errno
import gzip
import io
import os
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import msgspec
import pytest
from tests.backends import archives
from tests.backends.archives import GIB, MIB, data_extents, disk, same_bytes
from tests.backends.contract import PROJECT, Notes, delete_task, failed, insert_task
from tests.backends.test_local import image_dir, import_task
from tests.needs import need

from imageopsd.backends.local import LocalBackend, layout
from imageopsd.backends.local.blocks import pieces_of
from imageopsd.model.errors import PermanentFailure, TemporaryFailure
from imageopsd.model.image import CustomerEncryptionKey, Image, RawDisk
from imageopsd.model.secret import Secret
from imageopsd.ports import Keeper

FRAGMENTS = [(n * 4 * MIB, bytes([n + 1]) * (4096 * (n % 3 + 1))) for n in range(60)]
SHAPES = {
    "empty": (GIB, []),
    "one-extent": (GIB, [(0, b"x" * MIB)]),
    "to-the-end": (GIB, [(GIB - MIB, b"y" * MIB)]),
    "a-map-of-three-blocks": (GIB, FRAGMENTS),
}


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[LocalBackend]:
    async with LocalBackend(LocalBackend.Options(allow_files=(str(tmp_path),)), tmp_path / "data") as backend:
        yield backend


async def test_what_was_made_is_found_with_all_that_a_catalogue_needs(backend: LocalBackend, tmp_path: Path) -> None:
    task = import_task(
        archives.small(tmp_path / "a.tar.gz"),
        labels={"a": "b"},
        source_image_encryption_key=CustomerEncryptionKey(raw_key=Secret("c2VjcmV0"), sha256="x"),
    )
    await backend.insert_image(task, Notes())

    assert isinstance(backend, Keeper)
    [kept] = backend.kept()
    image = kept.resource
    assert isinstance(image, Image)
    assert (kept.project, kept.id, kept.operation) == (PROJECT, 7, "7")
    assert (image.name, image.status, image.labels, image.disk_size_gb) == ("img", "READY", {"a": "b"}, 1)
    assert image.source_image_encryption_key == CustomerEncryptionKey(sha256="x")
    assert backend.keeps(PROJECT, image)
    assert list(backend.damage(kept)) == []


async def test_a_manifest_has_no_secret_of_a_source(backend: LocalBackend, tmp_path: Path) -> None:
    url = archives.small(tmp_path / "a.tar.gz").as_uri() + "?signature=hush"
    await backend.insert_image(insert_task(raw_disk=RawDisk(source=url)), Notes())
    assert "hush" not in (image_dir(tmp_path / "data") / "manifest.json").read_text()


async def test_a_manifest_that_cannot_be_read_is_damage_and_no_crash(backend: LocalBackend, tmp_path: Path) -> None:
    await backend.insert_image(import_task(archives.small(tmp_path / "a.tar.gz")), Notes())
    (image_dir(tmp_path / "data") / "manifest.json").write_text("{")
    [kept] = backend.kept()
    assert (kept.place, kept.resource) == (f"images/{PROJECT}/7", None)
    assert list(backend.damage(kept)) == ["its manifest is gone or damaged"]


@pytest.mark.parametrize("shape", SHAPES)
async def test_an_export_gives_every_byte_and_hole_back(backend: LocalBackend, tmp_path: Path, shape: str) -> None:
    size, extents = SHAPES[shape]
    source = disk(tmp_path / "source.raw", size, extents)
    archive = archives.sparse(source, tmp_path / "a.tar.gz")
    await backend.insert_image(import_task(archive), Notes())
    [kept] = backend.kept()
    stored = image_dir(tmp_path / "data") / "disk.raw"

    raw, packed = tmp_path / "raw", tmp_path / "packed.tar.gz"
    with raw.open("xb") as target:
        backend.export(kept, target, packed=False)
    with packed.open("xb") as target:
        backend.export(kept, target, packed=True)

    assert same_bytes(source, raw)
    assert list(data_extents(stored)) == list(data_extents(raw))
    listed = subprocess.run(["tar", "-tvzf", packed], capture_output=True, text=True, check=True).stdout.split()
    assert (str(size), "disk.raw") == (listed[2], listed[-1])
    (tmp_path / "out").mkdir()
    subprocess.run(["tar", "-C", tmp_path / "out", "-xzSf", packed], check=True)
    assert same_bytes(source, tmp_path / "out" / "disk.raw")
    # and in again
    await backend.insert_image(import_task(packed, 8), Notes())
    assert same_bytes(source, image_dir(tmp_path / "data", 8) / "disk.raw")


@pytest.mark.parametrize("most", [2, 7, 61, 62])
async def test_a_disk_in_too_many_pieces_is_exported_in_fewer(
    backend: LocalBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    """With more entries than an import takes, what was exported could not be imported again."""
    source = disk(tmp_path / "disk.raw", GIB, FRAGMENTS)
    await backend.insert_image(import_task(archives.sparse(source, tmp_path / "a.tar.gz")), Notes())
    for module in ("export", "tar"):
        monkeypatch.setattr(f"imageopsd.backends.local.{module}.MAX_EXTENTS", most)
    [kept] = backend.kept()
    with (tmp_path / "out.tar.gz").open("xb") as target:
        backend.export(kept, target, packed=True)
    await backend.insert_image(import_task(tmp_path / "out.tar.gz", number=8), Notes())
    assert same_bytes(source, image_dir(tmp_path / "data", 8) / "disk.raw")
    (tmp_path / "gnu").mkdir()
    subprocess.run(["tar", "-C", tmp_path / "gnu", "-xzSf", tmp_path / "out.tar.gz"], check=True)
    assert same_bytes(source, tmp_path / "gnu" / "disk.raw")


async def test_an_export_into_a_stream_has_zeros_for_holes(backend: LocalBackend, tmp_path: Path) -> None:
    small = disk(tmp_path / "s.raw", GIB, [(5 * MIB, b"data")])
    await backend.insert_image(import_task(archives.sparse(small, tmp_path / "a.tar.gz")), Notes())
    [kept] = backend.kept()
    packed = io.BytesIO()

    class Counting(io.RawIOBase):
        count = 0

        def write(self, data: object) -> int:
            self.count += len(data)  # type: ignore[arg-type]
            return len(data)  # type: ignore[arg-type]

    counting = Counting()
    backend.export(kept, counting, packed=False)  # type: ignore[arg-type]
    backend.export(kept, packed, packed=True)
    assert counting.count == GIB
    assert len(gzip.decompress(packed.getvalue())) < MIB


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("at", "data", "problem"),
    [
        (1_500_000, b"!", "block 0 (bytes 0 to 4194303) differs"),
        (GIB - 1, b"!", "block 255 (bytes 1069547520 to 1073741823) differs"),
        (8 * MIB, bytes(MIB), "block 2 (bytes 8388608 to 12582911) has become zeros"),
        (GIB - MIB, bytes(MIB), "block 255 (bytes 1069547520 to 1073741823) has become zeros"),
        (20 * MIB, b"!", "block 5 (bytes 20971520 to 25165823) has data instead of zeros"),
        (GIB, b"!", f"it has {GIB + 1} bytes instead of {GIB}"),
    ],
)
async def test_damage_is_not_exported_as_good(
    backend: LocalBackend, tmp_path: Path, at: int, data: bytes, problem: str, packed: bool
) -> None:
    source = disk(tmp_path / "s.raw", GIB, [(0, b"x" * 2 * MIB), (8 * MIB, b"y" * MIB), (GIB - MIB, b"z" * MIB)])
    await backend.insert_image(import_task(archives.sparse(source, tmp_path / "a.tar.gz")), Notes())
    with (image_dir(tmp_path / "data") / "disk.raw").open("r+b") as file:
        file.seek(at)
        file.write(data)
    [kept] = backend.kept()
    with (tmp_path / "out").open("xb") as target, pytest.raises(PermanentFailure) as failure:
        backend.export(kept, target, packed=packed)
    message = f"The disk of 'projects/{PROJECT}/global/images/img' is not as it was made: {problem}."
    assert failed(failure) == ("STORAGE_UNAVAILABLE", 503, message)


@pytest.mark.parametrize(("table", "problem"), [(None, "gone"), (b"0 00", "damaged")])
async def test_without_its_digests_nothing_is_exported(
    backend: LocalBackend, tmp_path: Path, table: bytes | None, problem: str
) -> None:
    await backend.insert_image(import_task(archives.small(tmp_path / "a.tar.gz")), Notes())
    path = image_dir(tmp_path / "data") / "disk.raw.blocks"
    path.unlink()
    if table is not None:
        path.write_bytes(table)
    [kept] = backend.kept()
    with pytest.raises(PermanentFailure, match=f"its table of digests is {problem}"):
        backend.export(kept, io.BytesIO(), packed=True)


async def test_an_export_that_cannot_be_written_is_no_damage(backend: LocalBackend, tmp_path: Path) -> None:
    await backend.insert_image(import_task(archives.small(tmp_path / "a.tar.gz")), Notes())
    [kept] = backend.kept()
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(OSError, match="No space left") as failure:
        backend.export(kept, full, packed=False)  # type: ignore[arg-type]
    assert failure.value.errno == errno.ENOSPC


async def test_a_copy_of_an_image_has_its_digests(backend: LocalBackend, tmp_path: Path) -> None:
    first = import_task(archives.small(tmp_path / "a.tar.gz"))
    await backend.insert_image(first, Notes())
    copy = insert_task(8, "copy", source_image="global/images/img")
    await backend.insert_image(msgspec.structs.replace(copy, source=first.image), Notes())
    made, again = sorted(backend.kept(), key=lambda kept: kept.id)
    data = tmp_path / "data"
    assert (image_dir(data) / "disk.raw.blocks").read_bytes() == (image_dir(data, 8) / "disk.raw.blocks").read_bytes()
    assert (list(backend.damage(made)), list(backend.damage(again))) == ([], [])


async def test_what_dead_operations_left_is_swept(backend: LocalBackend, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for name in ("staging/5/out", "staging/6", "trash/9"):
        (data / name).mkdir(parents=True)
        (data / name / "file").write_bytes(b"x")

    assert backend.staged() == {"5", "6"}
    await backend.forget("5")
    assert os.listdir(data / "staging") == ["6"]
    assert backend.empty_trash(Event()) == {}
    assert os.listdir(data / "trash") == []
    await backend.forget("6")
    await backend.forget("7")
    assert backend.staged() == set()


@contextmanager
def stuck(directory: Path) -> Iterator[None]:
    """While something in it cannot be removed, by root neither."""
    directory.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", directory], capture_output=True, text=True, check=False
    )
    need(mounted.returncode == 0, f"this machine cannot mount a tmpfs: {mounted.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", directory], check=False)


async def test_a_delete_is_over_when_the_image_is_gone_whatever_becomes_of_its_bytes(
    backend: LocalBackend, tmp_path: Path
) -> None:
    data, tasks = tmp_path / "data", [import_task(archives.small(tmp_path / f"{n}.tar.gz"), n) for n in (7, 8)]
    for task in tasks:
        await backend.insert_image(task, Notes())
    with stuck(image_dir(data) / "stuck"):
        for task in tasks:
            await backend.delete_image(delete_task(task), Notes())
        assert list(backend.kept()) == []
        [trashed] = data.glob("trash/7.*")
        try:
            # what can be removed is, and what cannot is told
            assert backend.empty_trash(Event()) == {f"trash/{trashed.name}": os.strerror(errno.EBUSY)}
            assert os.listdir(data / "trash") == [trashed.name]
        finally:
            subprocess.run(["umount", trashed / "stuck"], check=True)
    assert backend.empty_trash(Event()) == {}
    assert os.listdir(data / "trash") == []


async def test_an_image_whose_delete_cannot_be_made_safe_is_where_it_was(
    backend: LocalBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = import_task(archives.small(tmp_path / "a.tar.gz"))
    await backend.insert_image(task, Notes())

    def fail(directory: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(layout, "_sync_directory", fail)
    with pytest.raises(TemporaryFailure) as failure:
        await backend.delete_image(delete_task(task), Notes())

    assert failed(failure)[:2] == ("STORAGE_UNAVAILABLE", 503)
    assert backend.keeps(PROJECT, task.image)
    assert os.listdir(tmp_path / "data" / "trash") == []


async def test_what_is_no_image_is_told_apart_and_hides_none(backend: LocalBackend, tmp_path: Path) -> None:
    await backend.insert_image(import_task(archives.small(tmp_path / "a.tar.gz")), Notes())
    images = tmp_path / "data" / "images"
    (images / "README").write_text("a stray file")
    (images / PROJECT / "notes.txt").write_text("another")
    (images / PROJECT / "8").write_text("a file with an id")

    assert [kept.id for kept in backend.kept()] == [7]
    assert backend.strays() == {
        "images/README": os.strerror(errno.ENOTDIR),
        f"images/{PROJECT}/notes.txt": "its name is no id",
        f"images/{PROJECT}/8": "it is no directory",
    }


async def test_what_is_deleted_while_it_is_verified_is_not_damaged(backend: LocalBackend, tmp_path: Path) -> None:
    task = import_task(archives.small(tmp_path / "a.tar.gz"))
    await backend.insert_image(task, Notes())
    [kept] = backend.kept()
    disk = image_dir(tmp_path / "data") / "disk.raw"
    for at in (0, 8 * MIB):
        with disk.open("r+b") as file:
            file.seek(at)
            file.write(b"damage")
    found = backend.damage(kept)
    assert next(found) == "block 0 (bytes 0 to 4194303) differs"
    await backend.delete_image(delete_task(task), Notes())
    with pytest.raises(FileNotFoundError):
        next(found)
    with pytest.raises(FileNotFoundError):
        list(backend.damage(kept))


async def test_reading_for_digests_leaves_nothing_in_the_page_cache(tmp_path: Path) -> None:
    path = disk(tmp_path / "disk.raw", 16 * MIB, [(0, os.urandom(8 * MIB))])
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        if not in_cache(descriptor, MIB):
            pytest.skip("the file system does not tell what is in the page cache")
        assert sum(piece.end - piece.start for piece in pieces_of(descriptor)) == 8 * MIB
        assert not any(in_cache(descriptor, at) for at in range(0, 8 * MIB, MIB))
    finally:
        os.close(descriptor)


def in_cache(descriptor: int, at: int) -> bool:
    try:
        return os.preadv(descriptor, [bytearray(4096)], at, os.RWF_NOWAIT) == 4096
    except OSError:  # EAGAIN; EOPNOTSUPP
        return False
