"""Objects of a store, range by range: what an import makes of a store's answers, and of those it does not give."""

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from pathlib import Path

import pytest
from tests.backends import archives
from tests.backends.archives import MIB, same_bytes
from tests.backends.contract import PROJECT, Notes, insert_task

from imageopsd.backends.local import LocalBackend
from imageopsd.backends.local.options import ObjectBucket
from imageopsd.backends.local.sources import gcs, objects, remote
from imageopsd.backends.local.sources.objects import Found, StoreFailure
from imageopsd.backends.local.sources.ranges import Version
from imageopsd.backends.local.sources.source import SourceChanged
from imageopsd.model.errors import BackendFailure, PermanentFailure, TemporaryFailure
from imageopsd.model.image import ImageFacts, RawDisk
from imageopsd.model.sources import CloudStorageObject

URL = "gs://b/deep/disk.tar.gz"
FAILED = "its store failed (SomeError)"

Turn = Callable[[bytes], bytes]
"""What becomes of a range that was asked for."""


def whole(content: bytes) -> bytes:
    return content


def shorter(content: bytes) -> bytes:
    return content[:-1]


def failing(status: int | None) -> Turn:
    def turn(_: bytes) -> bytes:
        raise StoreFailure(status, FAILED)

    return turn


class Scripted:
    """A store with one object, whose answers are `turns`, the last one for ever; `asked` are the ranges."""

    def __init__(self, body: bytes, *turns: Turn) -> None:
        self.body = body
        self.generation = "1"
        self.silent = False
        self.asked: list[tuple[str, int]] = []
        self._turns = list(turns)

    async def look(self, named: CloudStorageObject) -> Found:
        assert named == CloudStorageObject("b", "deep/disk.tar.gz")
        return Found(len(self.body), self.generation, "application/gzip")

    async def read(self, named: CloudStorageObject, generation: str, start: int, end: int) -> bytes:
        self.asked.append((generation, start))
        if self.silent:
            await asyncio.Event().wait()
        turn = self._turns.pop(0) if len(self._turns) > 1 else self._turns[0]
        return turn(self.body[start:end])


@pytest.fixture(autouse=True)
def small_and_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "PAUSE", 0.0)
    monkeypatch.setattr(objects, "RANGE", MIB)


@pytest.fixture
def body(tmp_path: Path) -> bytes:
    return archives.small(tmp_path / "a.tar.gz", content=random.Random(7).randbytes(3 * MIB)).read_bytes()


async def take(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    store: Scripted,
    notes: Notes | None = None,
    url: str = URL,
    **options: object,
) -> ImageFacts:
    @asynccontextmanager
    async def connected(*_: object) -> AsyncIterator[Scripted]:
        yield store

    monkeypatch.setattr(gcs, "connected", connected)
    bucket = ObjectBucket(filesystem="gcs", projects=(PROJECT,))
    settings = LocalBackend.Options(**({"free_space_margin": 0, "object_buckets": {"b": bucket}} | options))  # type: ignore[arg-type]
    async with LocalBackend(settings, tmp_path / "data") as backend:
        return await backend.insert_image(insert_task(raw_disk=RawDisk(source=url)), notes or Notes())


def starts(body: bytes, first: int = 0) -> list[int]:
    """Of the ranges from `first` to the end."""
    return list(range(first, len(body), MIB))


def imported(tmp_path: Path) -> Path:
    [disk] = tmp_path.glob("data/images/*/*/disk.raw")
    return disk


def failed(failure: pytest.ExceptionInfo[BackendFailure]) -> tuple[str | None, int, str]:
    return failure.value.entry.code, failure.value.http_status, str(failure.value)


async def test_a_range_that_broke_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    store, notes = Scripted(body, whole, failing(None), failing(None), whole), Notes()
    facts = await take(tmp_path, monkeypatch, store, notes)

    assert store.asked == [("1", at) for at in (0, MIB, MIB, *starts(body, MIB))]
    assert (facts.archive_size_bytes, notes.bytes, notes.warnings) == (len(body), len(body), [])
    assert same_bytes(tmp_path / "a.tar.raw", imported(tmp_path))


async def test_a_store_that_gives_nothing_is_given_up_for_now_and_the_next_try_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    with pytest.raises(TemporaryFailure) as failure:
        await take(tmp_path, monkeypatch, Scripted(body, whole, whole, failing(None)))
    assert failed(failure) == ("SOURCE_UNAVAILABLE", 503, f"The source '{URL}' could not be read: {FAILED}.")

    store, notes = Scripted(body, whole), Notes()
    await take(tmp_path, monkeypatch, store, notes)
    assert [at for _, at in store.asked] == starts(body, 2 * MIB)
    assert (notes.bytes, notes.warnings) == (len(body) - 2 * MIB, [])
    assert same_bytes(tmp_path / "a.tar.raw", imported(tmp_path))


async def test_a_store_that_says_nothing_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    store = Scripted(body, whole)
    store.silent = True
    quick = {"connect_timeout": 0.01, "stall_timeout": 0.01, "min_rate": 100 * MIB}
    with pytest.raises(TemporaryFailure, match="it did not answer in time"):
        await take(tmp_path, monkeypatch, store, **quick)
    assert len(store.asked) == remote.MAX_FRUITLESS + 1


@pytest.mark.parametrize(
    ("turn", "reason"),
    [
        (failing(404), "it has changed, or it is not there any more"),
        (failing(412), "it has changed, or it is not there any more"),
        (shorter, "its server gave another part of it than it was asked for"),
    ],
)
async def test_an_object_that_does_not_go_on_is_read_again_from_its_begin_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes, turn: Turn, reason: str
) -> None:
    store, notes = Scripted(body, whole, turn, whole), Notes()
    await take(tmp_path, monkeypatch, store, notes)

    [warning] = notes.warnings
    assert warning.message == f"The source '{URL}' was read again from its begin: {reason}."
    assert [at for _, at in store.asked] == [0, MIB, *starts(body)]
    assert same_bytes(tmp_path / "a.tar.raw", imported(tmp_path))


@pytest.mark.parametrize(
    ("status", "kind", "refusal"),
    [
        (403, PermanentFailure, ("PERMISSION_DENIED", 403, f"Required 'read' permission for '{URL}'")),
        (401, PermanentFailure, ("PERMISSION_DENIED", 403, f"Required 'read' permission for '{URL}'")),
        (
            503,
            TemporaryFailure,
            (
                "SOURCE_UNAVAILABLE",
                503,
                f"The source '{URL}' could not be read: the server answered 503 Service Unavailable.",
            ),
        ),
        (
            400,
            PermanentFailure,
            ("SOURCE_UNAVAILABLE", 400, f"The source '{URL}' could not be read: the server answered 400 Bad Request."),
        ),
    ],
)
async def test_what_a_store_answers_means_what_it_means_over_http(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    body: bytes,
    status: int,
    kind: type[BackendFailure],
    refusal: tuple[str, int, str],
) -> None:
    with pytest.raises(kind) as failure:
        await take(tmp_path, monkeypatch, Scripted(body, whole, failing(status)))
    assert failed(failure) == refusal


async def test_what_brings_its_own_right_is_not_read_with_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: bytes
) -> None:
    opened: list[str] = []

    @asynccontextmanager
    async def open_http(url: str, *_: object) -> AsyncIterator[None]:
        opened.append(url)
        raise PermanentFailure("STOP", "here", HTTPStatus.BAD_REQUEST)
        yield

    monkeypatch.setattr("imageopsd.backends.local.sources.http.open_http", open_http)
    store = Scripted(body, whole)
    for query in ("X-Goog-Signature=ab", "generation=5", "alt=media&generation=5"):
        url = f"https://storage.googleapis.com/b/deep/disk.tar.gz?{query}"
        with pytest.raises(PermanentFailure, match="here"):
            await take(tmp_path, monkeypatch, store, url=url)
        assert opened[-1] == url
    assert store.asked == []


def test_a_part_that_came_from_a_store_does_not_go_on_over_http() -> None:
    with pytest.raises(SourceChanged, match="read from an object store before"):
        Version(generation="1").request_from(5)
