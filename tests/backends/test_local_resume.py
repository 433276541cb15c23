"""A transfer that breaks goes on where it broke: in the same try, in a later one, and after a crash."""

import asyncio
import errno
import gzip
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
from tests.backends import archives
from tests.backends.archives import MIB, same_bytes
from tests.backends.contract import Notes, insert_task
from tests.backends.hostile import (
    Ranged,
    Turn,
    becomes,
    chunked,
    cut,
    saying,
    whole,
    without_ranges,
)
from tests.backends.test_local_sources import LOOPBACK, serving
from yarl import URL

from imageopsd.backends.local import LocalBackend
from imageopsd.backends.local.disk import Disk
from imageopsd.backends.local.sources import remote
from imageopsd.backends.local.sources.ranges import Version
from imageopsd.backends.local.sources.source import SourceChanged
from imageopsd.backends.local.spool import JOURNAL, PART, Mark, Spool
from imageopsd.model.errors import BackendFailure, NoRoom, PermanentFailure, TemporaryFailure
from imageopsd.model.image import ImageFacts, RawDisk

SIZE = 4 * MIB


@pytest.fixture
def body(tmp_path: Path) -> bytes:
    return archives.small(tmp_path / "a.tar.gz", content=random.Random(7).randbytes(SIZE // 2)).read_bytes()


@pytest.fixture
def other(tmp_path: Path) -> bytes:
    return archives.small(tmp_path / "b.tar.gz", content=random.Random(8).randbytes(SIZE // 2)).read_bytes()


@pytest.fixture
async def data(tmp_path: Path) -> AsyncIterator[Path]:
    data = tmp_path / "data"
    yield data
    assert not [thing for thing in data.glob("staging/*/*") if thing.name not in (PART, JOURNAL)]


@pytest.fixture(autouse=True)
def in_no_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSE", 0.0)


async def take(data: Path, url: URL, notes: Notes | None = None, **options: object) -> ImageFacts:
    settings = LocalBackend.Options(**({"allow_networks": LOOPBACK, "free_space_margin": 0} | options))  # type: ignore[arg-type]
    async with LocalBackend(settings, data) as backend:
        return await backend.insert_image(insert_task(raw_disk=RawDisk(source=str(url))), notes or Notes())


def imported(data: Path) -> Path:
    [disk] = data.glob("images/*/*/disk.raw")
    return disk


async def test_a_broken_transfer_goes_on_where_it_broke(tmp_path: Path, data: Path, body: bytes) -> None:
    server = Ranged(body, cut(MIB), cut(MIB), whole)
    notes = Notes()
    async with serving(server.serve) as url:
        facts = await take(data, url, notes)

    assert [(asked.range, asked.if_range) for asked in server.asked] == [
        (None, None),
        (f"bytes={MIB}-", '"v1"'),
        (f"bytes={2 * MIB}-", '"v1"'),
    ]
    assert (len(body), len(body), []) == (facts.archive_size_bytes, notes.bytes, notes.warnings)
    assert same_bytes(tmp_path / "a.tar.raw", imported(data))


async def test_a_server_that_gives_only_slices_is_asked_for_all_of_them(
    tmp_path: Path, data: Path, body: bytes
) -> None:
    async def slice_of_it(server: Ranged, request: object) -> object:
        begin = server.begin(request) or 0  # type: ignore[arg-type]
        end = min(begin + 2 * MIB, len(server.body))
        part = f"bytes {begin}-{end - 1}/{len(server.body)}"
        from aiohttp import web

        return web.Response(status=206, headers={"ETag": '"v1"', "Content-Range": part}, body=server.body[begin:end])

    server = Ranged(body, cut(MIB), slice_of_it)  # type: ignore[arg-type]
    async with serving(server.serve) as url:
        await take(data, url)

    assert same_bytes(tmp_path / "a.tar.raw", imported(data))
    assert len(server.asked) == 3


async def test_without_a_length_the_end_is_where_nothing_follows(tmp_path: Path, data: Path, body: bytes) -> None:
    server = Ranged(body, chunked(len(body)), whole)
    async with serving(server.serve) as url:
        await take(data, url)

    assert [asked.range for asked in server.asked] == [None, f"bytes={len(body)}-"]
    assert same_bytes(tmp_path / "a.tar.raw", imported(data))


CHANGES: dict[str, tuple[Turn, str]] = {
    "200": (without_ranges(), "it has changed, or its server began anew"),
    "416": (saying(416, Content_Range="bytes */100"), "it has become shorter"),
    "no-content-range": (saying(206), "its server gave another part of it than it was asked for"),
    "another-part": (
        saying(206, Content_Range="bytes 0-{last}/{total}"),
        "its server gave another part of it than it was asked for",
    ),
    "another-length": (saying(206, Content_Range="bytes {begin}-{last}/9{total}"), "its length has changed"),
    "another-etag": (saying(206, Content_Range="bytes {begin}-{last}/{total}", ETag='"v2"'), "it has changed"),
}


@pytest.mark.parametrize("case", CHANGES)
async def test_a_source_that_does_not_go_on_is_read_again_from_its_begin_once(
    tmp_path: Path, data: Path, body: bytes, case: str
) -> None:
    turn, reason = CHANGES[case]
    server = Ranged(body, cut(2 * MIB), turn, whole)
    notes = Notes()
    async with serving(server.serve) as url:
        await take(data, url, notes)

    [warning] = notes.warnings
    assert warning.code == "NOT_CRITICAL_ERROR"
    assert warning.message == f"The source '{url}' was read again from its begin: {reason}."
    assert [asked.range for asked in server.asked] == [None, f"bytes={2 * MIB}-", None]
    assert same_bytes(tmp_path / "a.tar.raw", imported(data))


async def test_a_source_that_becomes_another_one_is_imported_as_that(
    tmp_path: Path, data: Path, body: bytes, other: bytes
) -> None:
    server = Ranged(body, cut(2 * MIB), becomes(other, '"v2"'), whole)
    notes = Notes()
    async with serving(server.serve) as url:
        facts = await take(data, url, notes)

    assert same_bytes(tmp_path / "b.tar.raw", imported(data))
    assert (len(other), 1) == (facts.archive_size_bytes, len(notes.warnings))


async def test_a_source_that_keeps_changing_is_given_up_for_now(data: Path, body: bytes) -> None:
    server = Ranged(body, cut(2 * MIB), without_ranges(2 * MIB), cut(2 * MIB), without_ranges())
    async with serving(server.serve) as url:
        with pytest.raises(TemporaryFailure, match="it has changed, or its server began anew"):
            await take(data, url)

    assert list(data.glob("staging/*")) == []


async def test_a_source_that_gives_nothing_more_is_given_up_for_now(data: Path, body: bytes) -> None:
    server = Ranged(body, cut(2 * MIB), cut(10))
    async with serving(server.serve) as url:
        with pytest.raises(TemporaryFailure, match="closed in the middle"):
            await take(data, url)

    assert len(server.asked) == 1 + remote.MAX_FRUITLESS + 1


@pytest.mark.parametrize(
    ("turn", "kind"), [(saying(404), PermanentFailure), (saying(503, Retry_After="7"), TemporaryFailure)]
)
async def test_what_a_server_says_instead_of_going_on_counts(
    data: Path, body: bytes, turn: Turn, kind: type[BackendFailure]
) -> None:
    async with serving(Ranged(body, cut(2 * MIB), turn).serve) as url:
        with pytest.raises(kind) as caught:
            await take(data, url)

    if isinstance(caught.value, TemporaryFailure):
        assert caught.value.delay == 7
    else:
        assert list(data.glob("staging/*")) == []


@pytest.mark.parametrize("etag", [None, 'W/"v1"'])
async def test_without_a_strong_validator_nothing_is_continued(data: Path, body: bytes, etag: str | None) -> None:
    server = Ranged(body, cut(2 * MIB), etag=etag)
    async with serving(server.serve) as url:
        with pytest.raises(TemporaryFailure, match="closed in the middle"):
            await take(data, url)

    assert len(server.asked) == 1
    assert list(data.glob("staging/*")) == []


# ------------------------------------------------------------------------------------------ a later try


async def test_a_later_try_fetches_only_what_the_earlier_one_had_not(tmp_path: Path, data: Path, body: bytes) -> None:
    server = Ranged(body, cut(3 * MIB), saying(503), whole)
    async with serving(server.serve) as url:
        with pytest.raises(TemporaryFailure):
            await take(data, url)
        notes = Notes()
        facts = await take(data, url, notes)

    refetched = server.asked[-1]
    assert refetched.range is not None
    assert MIB <= int(refetched.range.removeprefix("bytes=")[:-1]) <= 3 * MIB
    assert refetched.sent == notes.bytes <= len(body) - MIB
    assert (len(body), []) == (facts.archive_size_bytes, notes.warnings)
    assert same_bytes(tmp_path / "a.tar.raw", imported(data))
    assert list(data.glob("staging/*")) == []


async def test_an_interrupted_import_keeps_what_it_has(tmp_path: Path, data: Path, body: bytes) -> None:
    stuck = asyncio.Event()

    async def stops(server: Ranged, request: object) -> object:
        response, rest = server.answer(request)  # type: ignore[arg-type]
        response.content_length = len(rest)
        await response.prepare(request)  # type: ignore[arg-type]
        await response.write(rest[: 3 * MIB])
        await stuck.wait()
        return response

    server = Ranged(body, stops, whole)  # type: ignore[arg-type]
    async with serving(server.serve) as url:
        first = asyncio.create_task(take(data, url))
        while not [journal for journal in data.glob(f"staging/*/{JOURNAL}") if b'"bytes"' in journal.read_bytes()]:
            await asyncio.sleep(0.01)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        stuck.set()
        await take(data, url)

    assert server.asked[-1].range is not None
    assert 0 < server.asked[-1].sent < len(body)
    assert same_bytes(tmp_path / "a.tar.raw", imported(data))


@pytest.mark.parametrize(("number", "kind"), [(errno.EIO, TemporaryFailure), (errno.ENOSPC, NoRoom)])
async def test_a_disk_that_fails_in_the_middle_keeps_what_was_fetched(
    tmp_path: Path, data: Path, body: bytes, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    def fail(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    server = Ranged(body, whole, whole)
    async with serving(server.serve) as url:
        with monkeypatch.context() as broken:
            broken.setattr(Disk, "finish", fail)
            with pytest.raises(kind):
                await take(data, url)
        await take(data, url)

    assert server.asked[-1].range is not None
    assert server.asked[-1].sent < len(body) / 2
    assert same_bytes(tmp_path / "a.tar.raw", imported(data))
    assert list(data.glob("staging/*")) == []


@pytest.mark.parametrize("damaged", [0, 1000, MIB // 2])
async def test_a_part_that_was_damaged_on_disk_is_not_used(
    tmp_path: Path, data: Path, body: bytes, damaged: int
) -> None:
    server = Ranged(body, cut(3 * MIB), saying(503), whole)
    async with serving(server.serve) as url:
        with pytest.raises(TemporaryFailure):
            await take(data, url)
        [part] = data.glob(f"staging/*/{PART}")
        with part.open("r+b") as file:
            file.seek(damaged)
            file.write(b"\0" * 100)
        notes = Notes()
        await take(data, url, notes)

    assert [warning.message for warning in notes.warnings] == [
        f"The source '{url}' was read again from its begin: the part of it that was kept is damaged."
    ]
    assert same_bytes(tmp_path / "a.tar.raw", imported(data))


async def test_nothing_is_kept_if_that_is_switched_off(data: Path, body: bytes) -> None:
    async with serving(Ranged(body, cut(3 * MIB), saying(503)).serve) as url:
        with pytest.raises(TemporaryFailure):
            await take(data, url, resume_rate=0)

    assert list(data.glob("staging/*")) == []


async def test_a_bad_archive_leaves_nothing_to_go_on_from(data: Path) -> None:
    bad = gzip.compress(archives.member(random.Random(1).randbytes(3 * MIB), name=b"other"), 1)
    async with serving(Ranged(bad).serve) as url:
        with pytest.raises(PermanentFailure, match=r"should be named ''disk\.raw''"):
            await take(data, url)

    assert list(data.glob("staging/*")) == []


# --------------------------------------------------------------------------------------------- the parts


def test_a_mark_of_another_boot_counts_only_if_it_was_synced(tmp_path: Path) -> None:
    (tmp_path / PART).write_bytes(bytes(3000))
    head = b'{"version":{"etag":"\\"x\\""},"length":9,"contentType":null}\n'
    marks = [Mark(1000, "a"), Mark(2000, "b", "an earlier boot")]
    (tmp_path / JOURNAL).write_bytes(head + b"".join(msgspec.json.encode(mark) + b"\n" for mark in marks) + b'{"by')

    spool = Spool(tmp_path, 1, 0)
    spool.open()
    spool.close()

    assert (spool.mark, (tmp_path / PART).stat().st_size) == (1000, 1000)


@pytest.mark.parametrize("journal", [b"", b"{", b'{"version":{},"length":1,"contentType":null}\n', b"\xff\n\n"])
def test_a_journal_that_says_nothing_is_thrown_away(tmp_path: Path, journal: bytes) -> None:
    (tmp_path / PART).write_bytes(bytes(10))
    (tmp_path / JOURNAL).write_bytes(journal)

    spool = Spool(tmp_path, 1, 0)
    spool.open()

    assert (spool.head, spool.mark, list(tmp_path.iterdir())) == (None, 0, [])


DATE = "Sat, 21 Nov 2026 02:00:00 GMT"


@pytest.mark.parametrize(
    ("headers", "version"),
    [
        ({"ETag": '"a"'}, Version(etag='"a"')),
        ({"ETag": 'W/"a"', "Last-Modified": "Sat, 21 Nov 2026 01:00:00 GMT", "Date": DATE}, None),
        ({"ETag": '"a"', "Accept-Ranges": "none"}, None),
        ({"ETag": "a"}, None),
        (
            {"Last-Modified": "Sat, 21 Nov 2026 01:59:59 GMT", "Date": DATE},
            Version(last_modified="Sat, 21 Nov 2026 01:59:59 GMT"),
        ),
        ({"Last-Modified": DATE, "Date": DATE}, None),
        ({"Last-Modified": "yesterday", "Date": DATE}, None),
        ({}, None),
    ],
)
def test_only_what_tells_two_versions_apart_is_a_validator(headers: dict[str, str], version: Version | None) -> None:
    assert Version.of(headers) == version


@pytest.mark.parametrize("value", ["", "bytes", "bytes 5-/9", "bytes -5/9", "items 5-8/9", "bytes 5-8/9, 1-2/9"])
def test_a_range_that_cannot_be_read_is_none(value: str) -> None:
    with pytest.raises(SourceChanged):
        Version(etag='"a"').goes_on(206, {"Content-Range": value}, 5, 9)
