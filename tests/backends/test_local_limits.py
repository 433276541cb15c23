"""Limits of the operator's that are not about a single archive's form."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import anyio
import msgspec
import pytest
from tests.backends import archives
from tests.backends.archives import GIB, MIB, disk
from tests.backends.contract import Notes, failed, insert_task
from tests.backends.hostile import Ranged, whole
from tests.backends.test_local import import_task, nothing_remains
from tests.backends.test_local_sources import LOOPBACK, serving

from imageopsd.backends.local import LocalBackend
from imageopsd.backends.local.turns import Turns
from imageopsd.model.errors import NotYet, PermanentFailure, ReservationExceeded
from imageopsd.model.image import Int64, RawDisk
from imageopsd.model.quota import Metric


def sparse(path: Path, size: int) -> Path:
    return archives.sparse(disk(path.with_suffix(".raw"), size, [(0, b"x")]), path)


KINDS = pytest.mark.parametrize("make", [pytest.param(archives.zeros, id="dense"), sparse])


@KINDS
async def test_with_strict_sizes_an_archive_is_refused_by_its_header(
    tmp_path: Path, make: Callable[[Path, int], Path]
) -> None:
    archive = make(tmp_path / "a.tar.gz", GIB // 2)
    options = LocalBackend.Options(allow_files=(str(tmp_path),), strict_sizes=True)
    async with LocalBackend(options, tmp_path / "data") as backend:
        with pytest.raises(PermanentFailure) as failure:
            await backend.insert_image(import_task(archive), Notes())
    assert failed(failure) == (
        "INVALID_IMAGE_FILE",
        400,
        f"The disk has {GIB // 2} bytes, not a whole number of GB, which backends.local.strict_sizes asks for.",
    )
    assert nothing_remains(tmp_path / "data")


def test_turns_are_counted_by_project_and_by_server() -> None:
    turns = Turns(per_project=2, per_server=1)
    with turns.take("p", "a"), turns.take("p", None):
        with pytest.raises(NotYet, match="of the project 'p'"), turns.take("p", "b"):
            pass
        with pytest.raises(NotYet, match="of the server 'a'"), turns.take("q", "a"):
            pass
        with turns.take("q", "b"):
            pass
    with turns.take("p", "a"), turns.take("p", "b"):
        pass


def test_without_limits_there_is_a_turn_for_everybody() -> None:
    turns = Turns(0, 0)
    with turns.take("p", "a"), turns.take("p", "a"), turns.take("p", "a"):
        pass


async def test_an_import_waits_for_its_turn_without_a_trace(tmp_path: Path) -> None:
    body = archives.small(tmp_path / "a.tar.gz").read_bytes()
    reached, opened = asyncio.Event(), asyncio.Event()

    async def slow(server: Ranged, request: object) -> object:
        reached.set()
        await opened.wait()
        return await whole(server, request)  # type: ignore[arg-type]

    options = LocalBackend.Options(allow_networks=LOOPBACK, max_imports_per_server=1)
    async with serving(Ranged(body, slow).serve) as url, LocalBackend(options, tmp_path / "data") as backend:  # type: ignore[arg-type]
        raw = RawDisk(source=str(url))
        async with anyio.create_task_group() as group:
            group.start_soon(backend.insert_image, insert_task(7, raw_disk=raw), Notes())
            await reached.wait()
            with pytest.raises(NotYet, match=r"of the server '127\.0\.0\.1'"):
                await backend.insert_image(insert_task(8, raw_disk=raw), Notes())
            assert [path.name for path in (tmp_path / "data" / "staging").iterdir()] == ["7"]
            opened.set()
        await backend.insert_image(insert_task(8, raw_disk=raw), Notes())
    assert len(list((tmp_path / "data").glob("images/*/*"))) == 2


@KINDS
@pytest.mark.parametrize(("asked", "size"), [(None, GIB + MIB), (2, 64 * 1024)], ids=["large", "asked for"])
async def test_an_image_larger_than_what_was_left_is_refused_by_its_header(
    tmp_path: Path, make: Callable[[Path, int], Path], asked: int | None, size: int
) -> None:
    archive = make(tmp_path / "a.tar.gz", size)
    task = import_task(archive, disk_size_gb=asked and Int64(asked))
    async with LocalBackend(LocalBackend.Options(allow_files=(str(tmp_path),)), tmp_path / "data") as backend:
        with pytest.raises(ReservationExceeded) as failure:
            await backend.insert_image(msgspec.structs.replace(task, reserved_gb=1, reserved_bytes=0), Notes())
        message = "The image would have 2 GB, more than the 1 GB that were left for it."
        assert (failed(failure), failure.value.metric) == (("RESERVATION_EXCEEDED", 403, message), Metric.IMAGE_GB)
        assert nothing_remains(tmp_path / "data")
        await backend.insert_image(msgspec.structs.replace(task, reserved_gb=2), Notes())


async def test_a_copy_is_held_to_what_was_left_as_well(tmp_path: Path) -> None:
    source = import_task(archives.small(tmp_path / "a.tar.gz"))
    copy = insert_task(8, "copy", source_image=source.image.self_link)
    copy = msgspec.structs.replace(copy, source=source.image, reserved_gb=0)
    async with LocalBackend(LocalBackend.Options(allow_files=(str(tmp_path),)), tmp_path / "data") as backend:
        await backend.insert_image(source, Notes())
        with pytest.raises(ReservationExceeded):
            await backend.insert_image(copy, Notes())
        await backend.insert_image(msgspec.structs.replace(copy, reserved_gb=1), Notes())


@pytest.mark.parametrize(("reserved", "fits"), [(8 * 64 * 1024, True), (8 * 64 * 1024 - 1, False)])
async def test_no_more_is_written_than_was_reserved(tmp_path: Path, reserved: int, fits: bool) -> None:
    source = disk(tmp_path / "d.raw", GIB, [(n * 4 * 1024**2, b"x" * 64 * 1024) for n in range(8)])
    task = import_task(archives.sparse(source, tmp_path / "a.tar.gz"))
    async with LocalBackend(LocalBackend.Options(allow_files=(str(tmp_path),)), tmp_path / "data") as backend:
        limited = msgspec.structs.replace(task, reserved_bytes=reserved)
        if fits:
            assert (await backend.insert_image(limited, Notes())).stored_bytes is not None
            return
        with pytest.raises(PermanentFailure) as failure:
            await backend.insert_image(limited, Notes())
    assert failed(failure)[:2] == ("RESERVATION_EXCEEDED", 403)
    assert nothing_remains(tmp_path / "data")
