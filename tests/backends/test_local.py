"""The local backend as a whole: the contract, and what an import makes of good and bad archives."""

import asyncio
import gzip
import hashlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from threading import Event
from typing import Any

import msgspec
import pytest
from tests.backends import archives
from tests.backends.archives import END, GIB, MIB, data_extents, header, member, packed, same_bytes
from tests.backends.contract import PROJECT, BackendContract, Notes, failed, insert_task, patch_task

from imageopsd.backends.local import LocalBackend
from imageopsd.model.errors import PermanentFailure
from imageopsd.model.image import DeprecationState, DeprecationStatus, Int64, RawDisk
from imageopsd.model.names import image_link
from imageopsd.ports import InsertTask


def import_task(archive: Path, number: int = 7, *, sha1: str | None = None, **fields: Any) -> InsertTask:
    return insert_task(number, raw_disk=RawDisk(source=archive.as_uri(), sha1_checksum=sha1), **fields)


def image_dir(data: Path, number: int = 7) -> Path:
    return data / "images" / PROJECT / str(number)


def nothing_remains(data: Path) -> bool:
    """But for what is freed later, in the trash."""
    return [*data.glob("images/*/*"), *data.glob("staging/*")] == []


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
async def backend(tmp_path: Path, data: Path) -> AsyncIterator[LocalBackend]:
    options = LocalBackend.Options(allow_files=(str(tmp_path),), max_disk_gb=4)
    async with LocalBackend(options, data) as backend:
        yield backend


class TestLocalBackend(BackendContract):
    @pytest.fixture
    def backend(self, backend: LocalBackend, data: Path) -> LocalBackend:
        self.data = data
        return backend

    @pytest.fixture
    def task(self, tmp_path: Path) -> InsertTask:
        return import_task(archives.small(tmp_path / "a.tar.gz"))

    @pytest.fixture
    def failing_task(self, tmp_path: Path) -> InsertTask:
        content = archives.small(tmp_path / "a.tar.gz").read_bytes()
        (tmp_path / "a.tar.gz").write_bytes(content[:-9])
        return import_task(tmp_path / "a.tar.gz")

    def effects(self, backend: LocalBackend) -> list[Any]:
        return [(path, path.read_bytes()) for path in self.data.glob("images/*/*/manifest.json")]

    def leftovers(self, backend: LocalBackend) -> list[Any]:
        return [*self.data.glob("staging/*")]


# ------------------------------------------------------------------------------------------- good archives

SCATTERED = [(n * 5 * MIB, bytes([n]) * (128 * 1024)) for n in range(1, 12)]
"""Eleven extents: more than the four that fit into an oldgnu header."""


@pytest.mark.parametrize("pack", [archives.dense, archives.sparse])
@pytest.mark.parametrize("name", ["disk.raw", "./disk.raw"])
async def test_bytes_and_holes_come_out_as_they_went_in(
    backend: LocalBackend, data: Path, tmp_path: Path, pack: Callable[..., Path], name: str
) -> None:
    disk = archives.disk(tmp_path / "d", 64 * MIB, SCATTERED)
    archive = pack(disk, tmp_path / "a.tar.gz", name)
    notes = Notes()
    facts = await backend.insert_image(import_task(archive), notes)
    os.truncate(disk, GIB)  # as the image was extended
    made = image_dir(data) / "disk.raw"
    assert same_bytes(made, disk)
    assert list(data_extents(made)) == list(data_extents(disk))
    assert facts.disk_size_gb == 1
    assert facts.archive_size_bytes == archive.stat().st_size == notes.bytes
    assert facts.stored_bytes == made.stat().st_blocks * 512
    assert facts.sha256 == hashlib.sha256(archive.read_bytes()).hexdigest()


async def test_an_archive_in_several_gzip_members_is_one_archive(
    backend: LocalBackend, data: Path, tmp_path: Path
) -> None:
    disk = archives.disk(tmp_path / "d", GIB, SCATTERED)
    tar = gzip.decompress(archives.sparse(disk, tmp_path / "a.tar.gz").read_bytes())
    parts = [tar[:300], tar[300:100_000], b"", tar[100_000:]]
    packed = b"".join(gzip.compress(part, 1) for part in parts) + bytes(4096)
    (tmp_path / "a.tar.gz").write_bytes(packed)
    await backend.insert_image(import_task(tmp_path / "a.tar.gz"), Notes())
    assert same_bytes(image_dir(data) / "disk.raw", disk)


async def test_the_manifest_tells_what_the_image_is(backend: LocalBackend, data: Path, tmp_path: Path) -> None:
    archive = archives.small(tmp_path / "a.tar.gz")
    facts = await backend.insert_image(import_task(archive, description="First."), Notes())
    table = image_dir(data) / "disk.raw.blocks"
    assert json.loads((image_dir(data) / "manifest.json").read_text()) == {
        "operation": "7",
        "project": PROJECT,
        "imageId": "7",
        "name": "img",
        "created": "2026-01-02T03:04:05.000+00:00",
        "source": archive.as_uri(),
        "contentBytes": GIB,
        "content": {"file": table.name, "blocks": 2, "sha256": hashlib.sha256(table.read_bytes()).hexdigest()},
        "facts": {
            "diskSizeGb": 1,
            "archiveSizeBytes": archive.stat().st_size,
            "storedBytes": facts.stored_bytes,
            "sha256": facts.sha256,
        },
        "description": "First.",
        "resource": {
            "kind": "compute#image",
            "id": "7",
            "name": "img",
            "description": "First.",
            "status": "READY",
            "creationTimestamp": "2026-01-02T03:04:05.000+00:00",
            "selfLink": image_link(PROJECT, "img"),
            "rawDisk": {"source": archive.as_uri()},
            "diskSizeGb": "1",
            "archiveSizeBytes": str(archive.stat().st_size),
        },
    }


async def test_only_the_owner_can_look_into_the_directories(backend: LocalBackend, data: Path, tmp_path: Path) -> None:
    await backend.insert_image(import_task(archives.small(tmp_path / "a.tar.gz")), Notes())
    directories = [data, *(path for path in data.rglob("*") if path.is_dir())]
    assert {path.stat().st_mode & 0o777 for path in directories} == {0o700}


@pytest.mark.parametrize(
    ("content", "asked", "size_gb", "warnings"),
    [
        (GIB, None, 1, []),
        (GIB, 1, 1, []),
        (
            GIB + 512,
            None,
            2,
            [
                (
                    "FIELD_VALUE_OVERRIDEN",
                    {"field": "resource.diskSizeGb", "size_bytes": "1073742336", "disk_size_gb": "2"},
                )
            ],
        ),
        (GIB, 3, 3, [("DISK_SIZE_LARGER_THAN_IMAGE_SIZE", {"disk_size_gb": "3", "image_size_gb": "1"})]),
        (
            2 * GIB,
            1,
            2,
            [
                (
                    "FIELD_VALUE_OVERRIDEN",
                    {"field": "resource.diskSizeGb", "size_bytes": "2147483648", "disk_size_gb": "2"},
                )
            ],
        ),
    ],
    ids=["whole", "as asked", "not whole", "more asked", "less asked"],
)
async def test_the_size_is_whole_and_never_less_than_the_content(
    backend: LocalBackend,
    data: Path,
    tmp_path: Path,
    content: int,
    asked: int | None,
    size_gb: int,
    warnings: list[tuple[str, dict[str, str]]],
) -> None:
    archive = archives.small(tmp_path / "a.tar.gz", size=content)
    for _ in range(2):  # the second finds the image and must warn as the first
        notes = Notes()
        facts = await backend.insert_image(
            import_task(archive, disk_size_gb=None if asked is None else Int64(asked)), notes
        )
        assert facts.disk_size_gb == size_gb
        assert (image_dir(data) / "disk.raw").stat().st_size == size_gb * GIB
        assert [(w.code, {datum.key: datum.value for datum in w.data}) for w in notes.warnings] == warnings


async def test_a_right_checksum_is_accepted_in_any_case(backend: LocalBackend, tmp_path: Path) -> None:
    archive = archives.small(tmp_path / "a.tar.gz")
    sha1 = hashlib.sha1(archive.read_bytes()).hexdigest()
    await backend.insert_image(import_task(archive, sha1=sha1.upper()), Notes())


# -------------------------------------------------------------------------------------------- bad archives

INVALID = "The tar archive is not a valid image. "
UNSUPPORTED = "The tar archive format is not supported. Supported formats are: GNU and OLDGNU."


def sparse_member(sparse_map: list[tuple[int, int]], size: int, real_size: int = MIB, tail: bytes = b"") -> bytes:
    return header(kind=b"S", sparse_map=sparse_map, size=size, real_size=real_size) + tail + bytes(size) + END


BAD_TARS = {
    "wrong name": (
        member(name=b"other.img"),
        "The file inside the tar archive was named ''other.img''. It should be named ''disk.raw''.",
    ),
    "in a directory": (
        member(name=b"image/disk.raw"),
        "The file inside the tar archive was named ''image/disk.raw''. It should be named ''disk.raw''.",
    ),
    "in a ustar prefix": (
        member(magic=b"ustar\x0000", prefix=b"../.."),
        "The file inside the tar archive was named ''../../disk.raw''. It should be named ''disk.raw''.",
    ),
    "a terminal escape for a name": (
        member(name=b"\x1b[2Jx"),
        "The file inside the tar archive was named ''\N{REPLACEMENT CHARACTER}[2Jx''. It should be named ''disk.raw''.",
    ),
    "PAX": (member(name=b"PaxHeaders/disk.raw", kind=b"x"), UNSUPPORTED),
    "global PAX": (member(name=b"pax_global_header", kind=b"g"), UNSUPPORTED),
    "GNU long name": (member(name=b"././@LongLink", kind=b"L"), UNSUPPORTED),
    "symbolic link": (member(kind=b"2"), INVALID + "Its member 'disk.raw' is a symbolic link."),
    "hard link": (member(kind=b"1"), INVALID + "Its member 'disk.raw' is a hard link."),
    "device": (member(kind=b"4"), INVALID + "Its member 'disk.raw' is a device."),
    "unknown type": (member(kind=b"9"), INVALID + "Its member 'disk.raw' is not a regular file."),
    "bad checksum": (
        member().replace(b"0000644", b"0000645", 1),
        INVALID + "The checksum of its header is wrong.",
    ),
    "checksum is no number": (b"disk.raw".ljust(600, b"x"), INVALID + "The checksum in its header is not a number."),
    "size is no number": (
        header(size_field=b"twelve".ljust(12, b"\0")) + END,
        INVALID + "The size in its header is not a number.",
    ),
    "negative size": (header(size_field=b"\xff" * 12) + END, INVALID + "The size in its header is not a number."),
    "size beyond 63 bits": (
        header(size_field=b"\x80" + b"\xff" * 11) + END,
        INVALID + "The size in its header is too large.",
    ),
    "no file": (END, INVALID + "It holds no file."),
    "nothing": (b"", INVALID + "It is empty."),
    "empty disk": (member(b""), INVALID + "Its disk.raw is empty."),
    "second member": (
        header(size=512) + bytes(512) + member(name=b"more"),
        INVALID + "It holds more than the one file disk.raw.",
    ),
    "something behind the end": (member() + b"x" * 512, INVALID + "Something follows its end."),
    "endless end": (member() + bytes(9 * MIB), INVALID + "Its end is followed by too many zeros."),
    "cut in the header": (header()[:300], INVALID + "It is truncated."),
    "cut in the content": (header(size=2048) + bytes(1000), INVALID + "It is truncated."),
    "cut in the padding": (header(size=100) + bytes(200), INVALID + "It is truncated."),
    "no end": (header(size=512) + bytes(512), INVALID + "It is truncated."),
    "overlapping extents": (
        sparse_member([(0, 1024), (512, 512)], 1536),
        INVALID + "Its sparse map is not in order.",
    ),
    "extents out of order": (
        sparse_member([(4096, 512), (0, 512)], 1024),
        INVALID + "Its sparse map is not in order.",
    ),
    "extent beyond the disk": (
        sparse_member([(MIB - 512, 1024)], 1024),
        INVALID + "Its sparse map reaches beyond the end of the disk.",
    ),
    "sparse map of another size": (
        sparse_member([(0, 512)], 1024),
        INVALID + "Its sparse map does not add up to the size of the member.",
    ),
    "broken block inside": (
        sparse_member([(0, 100), (1024, 412)], 512),
        INVALID + "Its sparse map is not made of whole blocks.",
    ),
    "sparse map after its end": (
        header(kind=b"S", size=0, real_size=MIB, extended=True) + archives.extension([(0, 512)]) + END,
        INVALID + "Its sparse map goes on after its end.",
    ),
    "cut in the sparse map": (
        header(kind=b"S", sparse_map=[(n * 512, 512) for n in range(4)], size=4096, real_size=MIB, extended=True),
        INVALID + "It is truncated.",
    ),
}


@pytest.mark.parametrize("case", BAD_TARS)
async def test_a_bad_tar_is_refused_with_its_reason(
    backend: LocalBackend, data: Path, tmp_path: Path, case: str
) -> None:
    tar, message = BAD_TARS[case]
    with pytest.raises(PermanentFailure) as failure:
        await backend.insert_image(import_task(packed(tar, tmp_path / "a.tar.gz")), Notes())
    assert failed(failure) == ("INVALID_IMAGE_TAR", 400, message)
    assert nothing_remains(data)


async def test_what_gnu_tar_calls_posix_is_not_supported(backend: LocalBackend, data: Path, tmp_path: Path) -> None:
    archive = archives.pax(archives.disk(tmp_path / "d", MIB, [(0, b"x")]), tmp_path / "a.tar.gz")
    with pytest.raises(PermanentFailure) as failure:
        await backend.insert_image(import_task(archive), Notes())
    assert failed(failure) == ("INVALID_IMAGE_TAR", 400, UNSUPPORTED)
    assert nothing_remains(data)


GOOD = gzip.compress(member(b"x" * 4096), 1)
HTML = b"<!DOCTYPE html><html><body>Sign in\x1b[0m</body></html>"


def flipped(position: int) -> bytes:
    content = bytearray(GOOD)
    content[position] ^= 0x40
    return bytes(content)


BAD_FILES = {
    "web page": (HTML, "The source is not a gzip archive: it is an HTML page."),
    "control characters": (b"\x1b[0m", "The source is not a gzip archive: it is unknown data."),
    "empty": (b"", "The source is not a gzip archive: it is empty."),
    "one byte": (b"\x1f", "The source is not a gzip archive: it is unknown data."),
    "plain tar": (member(), "The source is not a gzip archive: it is a plain tar archive."),
    "truncated": (GOOD[:-20], "The gzip archive is truncated."),
    "trailer cut": (GOOD[:-1], "The gzip archive is truncated."),
    "only a header": (GOOD[:10], "The gzip archive is truncated."),
    "checksum flipped": (flipped(-8), "The gzip archive is damaged (Error -6 Incorrect checksum found)."),
    "length flipped": (flipped(-4), "The gzip archive is damaged (Error -6 Incorrect checksum found)."),
    "rubbish behind": (GOOD + b"rubbish", "Something that is not gzip follows the gzip archive."),
    "rubbish behind zeros": (
        GOOD + bytes(100) + b"rubbish",
        "Something other than zeros follows the gzip archive.",
    ),
    "a member behind zeros": (GOOD + bytes(100) + GOOD, "Something other than zeros follows the gzip archive."),
    "too many members": (GOOD + gzip.compress(b"") * 64, "The gzip archive has more than 64 members."),
    "too large a disk": (
        gzip.compress(header(size=4 * GIB + 1)),
        "The disk of 4294967297 bytes is larger than the 4 GB that backends.local.max_disk_gb allows.",
    ),
    "too large a sparse disk": (
        gzip.compress(header(kind=b"S", real_size=2**62)),
        f"The disk of {2**62} bytes is larger than the 4 GB that backends.local.max_disk_gb allows.",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
async def test_a_bad_file_is_refused_with_what_was_found(
    backend: LocalBackend, data: Path, tmp_path: Path, case: str
) -> None:
    content, message = BAD_FILES[case]
    (tmp_path / "a.tar.gz").write_bytes(content)
    with pytest.raises(PermanentFailure) as failure:
        await backend.insert_image(import_task(tmp_path / "a.tar.gz"), Notes())
    assert failed(failure) == ("INVALID_IMAGE_FILE", 400, message)
    assert nothing_remains(data)


async def test_a_wrong_checksum_is_refused_with_both(backend: LocalBackend, data: Path, tmp_path: Path) -> None:
    archive = archives.small(tmp_path / "a.tar.gz")
    sha1 = hashlib.sha1(archive.read_bytes()).hexdigest()
    with pytest.raises(PermanentFailure) as failure:
        await backend.insert_image(import_task(archive, sha1="0" * 40), Notes())
    assert failed(failure) == (
        "INVALID_IMAGE_FILE",
        400,
        f"The source has the SHA-1 {sha1}, expected was {'0' * 40}.",
    )
    assert nothing_remains(data)


async def test_more_than_the_largest_disk_cannot_be_asked_for(
    backend: LocalBackend, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(PermanentFailure) as failure:
        await backend.insert_image(import_task(tmp_path / "unread", disk_size_gb=Int64(5)), Notes())
    assert failed(failure) == (
        "INVALID_IMAGE_FILE",
        400,
        "The 5 GB asked for are more than the 4 GB that backends.local.max_disk_gb allows.",
    )
    assert nothing_remains(data)


@pytest.mark.parametrize("source", ["source_disk", "source_snapshot"])
async def test_disks_and_snapshots_are_no_sources(backend: LocalBackend, data: Path, source: str) -> None:
    with pytest.raises(PermanentFailure) as failure:
        await backend.insert_image(insert_task(**{source: "projects/p/zones/z/disks/d"}), Notes())
    assert failed(failure)[:2] == ("UNSUPPORTED_OPERATION", 400)
    assert nothing_remains(data)


# -------------------------------------------------------------------------------------- ends and beginnings


async def test_an_image_that_a_dead_process_published_is_found(
    backend: LocalBackend, data: Path, tmp_path: Path
) -> None:
    archive = archives.small(tmp_path / "a.tar.gz")
    facts = await backend.insert_image(import_task(archive), Notes())
    archive.unlink()
    async with LocalBackend(LocalBackend.Options(), data) as next_process:
        assert await next_process.insert_image(import_task(archive), Notes()) == facts


async def test_an_image_of_another_operation_is_not_taken_for_ours(
    backend: LocalBackend, data: Path, tmp_path: Path
) -> None:
    archive = archives.small(tmp_path / "a.tar.gz")
    await backend.insert_image(import_task(archive), Notes())
    before = (image_dir(data) / "manifest.json").read_bytes()
    other = InsertTask(operation_id="99", project=PROJECT, image=import_task(archive).image)
    with pytest.raises(PermanentFailure) as failure:
        await backend.insert_image(other, Notes())
    assert failed(failure)[:2] == ("RESOURCE_ALREADY_EXISTS", 409)
    assert (image_dir(data) / "manifest.json").read_bytes() == before


async def test_starting_clears_staging_and_keeps_images(backend: LocalBackend, data: Path, tmp_path: Path) -> None:
    await backend.insert_image(import_task(archives.small(tmp_path / "a.tar.gz")), Notes())
    for left_over in ("staging/1/disk.raw", "trash/2/disk.raw"):
        (data / left_over).parent.mkdir()
        (data / left_over).write_bytes(b"half")
    async with LocalBackend(LocalBackend.Options(), data):
        assert [*data.glob("staging/*")] == []
        assert image_dir(data).is_dir()
    assert backend.empty_trash(Event()) == {}
    assert [*data.glob("trash/*")] == []


class CancelWhen(Notes):
    """Cancels the task that reports, at this message."""

    def __init__(self, message: str) -> None:
        super().__init__()
        self._message = message

    def progress(self, percent: int, message: str | None = None) -> None:
        super().progress(percent, message)
        if message == self._message:
            task = asyncio.current_task()
            assert task is not None
            task.cancel()


@pytest.mark.parametrize("moment", ["making it safe on disk", "publishing"])
async def test_a_cancellation_in_the_last_moment_takes_the_image_back(
    backend: LocalBackend, data: Path, tmp_path: Path, moment: str
) -> None:
    task = import_task(archives.small(tmp_path / "a.tar.gz"))
    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(backend.insert_image(task, CancelWhen(moment)))
    assert nothing_remains(data)


async def test_many_imports_at_once_do_not_wait_for_each_others_threads(
    backend: LocalBackend, data: Path, tmp_path: Path
) -> None:
    archive = archives.small(tmp_path / "a.tar.gz")
    await asyncio.gather(*(backend.insert_image(import_task(archive, n), Notes()) for n in range(1, 41)))
    assert len(list(data.glob("images/*/*/manifest.json"))) == 40


# ------------------------------------------------------------------------------------------------- patches


async def test_a_patch_changes_three_things_in_the_manifest(backend: LocalBackend, data: Path, tmp_path: Path) -> None:
    task = import_task(archives.small(tmp_path / "a.tar.gz"), description="First.", family="old")
    await backend.insert_image(task, Notes())
    before = json.loads((image_dir(data) / "manifest.json").read_text())
    status = DeprecationStatus(state=DeprecationState.OBSOLETE)
    await backend.patch_image(patch_task(task, family="new", description=None, deprecated=status), Notes())
    after = json.loads((image_dir(data) / "manifest.json").read_text())
    for shown in (before, before["resource"]):
        del shown["description"]
        shown |= {"family": "new", "deprecated": {"state": "OBSOLETE"}}
    # the task's image is the catalogue's, which has these from the facts
    del before["resource"]["status"], before["resource"]["diskSizeGb"], before["resource"]["archiveSizeBytes"]
    assert after == before


@pytest.mark.parametrize("content", [b"{", b"", b"[]", b'{"operation": "\xff"}', b'{"x": ' + b"[" * 100_000])
async def test_a_damaged_manifest_is_a_failure_of_the_storage_for_whoever_needs_it(
    backend: LocalBackend, data: Path, tmp_path: Path, content: bytes
) -> None:
    task = import_task(archives.small(tmp_path / "a.tar.gz"))
    await backend.insert_image(task, Notes())
    manifest = image_dir(data) / "manifest.json"
    manifest.write_bytes(content)
    copy = insert_task(8, "copy", source_image="global/images/img")
    link = f"projects/{PROJECT}/global/images/img"
    copy = msgspec.structs.replace(copy, source=msgspec.structs.replace(task.image, self_link=link))
    attempts: list[Callable[[], Awaitable[object]]] = [
        lambda: backend.patch_image(patch_task(task, family="f"), Notes()),
        lambda: backend.insert_image(task, Notes()),
        lambda: backend.insert_image(copy, Notes()),
    ]
    for attempt in attempts:
        with pytest.raises(PermanentFailure) as failure:
            await attempt()
        assert failed(failure) == (
            "STORAGE_UNAVAILABLE",
            503,
            f"The manifest of 'images/{PROJECT}/7' is damaged; "
            "`imageopsd images verify` and `imageopsd images rebuild` tell more.",
        )
    assert manifest.read_bytes() == content
    [kept] = backend.kept()
    assert (kept.resource, list(backend.damage(kept))) == (None, ["its manifest is gone or damaged"])


async def test_a_patch_of_an_image_that_is_gone_is_not_found(backend: LocalBackend, data: Path) -> None:
    with pytest.raises(PermanentFailure) as failure:
        await backend.patch_image(patch_task(insert_task(), family="f"), Notes())
    assert failed(failure) == ("RESOURCE_NOT_FOUND", 404, "The resource 'projects/p/global/images/img' was not found")
    assert nothing_remains(data)
