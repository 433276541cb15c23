"""Records and bytes held to each other."""

import errno
from collections.abc import AsyncIterator, Iterator
from datetime import UTC
from pathlib import Path
from threading import Event
from typing import BinaryIO

import anyio
import anyio.to_thread
import pytest

from imageopsd.engine.bus import EventBus
from imageopsd.engine.housekeeping import Housekeeping
from imageopsd.model.errors import AlreadyExists
from imageopsd.model.events import Change, Happening, LeftBehind, Succeeded
from imageopsd.model.image import Image, ImageStatus, Int64
from imageopsd.model.operation import Operation, Status
from imageopsd.model.resource import Resource
from imageopsd.model.time import Time
from imageopsd.ports import Kept
from imageopsd.storage.sqlite.store import SqliteStore


class Shelf:
    """A keeper whose things are in the test's hand."""

    def __init__(self) -> None:
        self.things: dict[int, Kept] = {}
        self.half_done: set[str] = set()
        self.mounted = True
        self.broken: OSError | None = None
        self.strange: dict[str, str] = {}
        self.stuck: dict[str, str] = {}
        self.slow = False
        self.emptied = 0
        self.emptying = Event()
        self.forgotten = anyio.Event()

    def put(self, number: int, operation: str | None = None, project: str = "p") -> None:
        self.things[number] = Kept(f"images/{project}/{number}", project, number, operation)

    def kept(self) -> Iterator[Kept]:
        yield from self.things.values()

    def keeps(self, project: str, resource: Resource) -> bool | None:
        if self.broken and resource.id == 1:
            raise self.broken
        return int(resource.id or 0) in self.things if self.mounted else None

    def damage(self, kept: Kept) -> Iterator[str]:
        yield from ()

    def export(self, kept: Kept, target: BinaryIO, *, packed: bool) -> None: ...

    def discard(self, kept: Kept) -> None:
        del self.things[kept.id]

    def staged(self) -> set[str]:
        if self.broken:
            raise self.broken
        return set(self.half_done)

    def strays(self) -> dict[str, str]:
        return self.strange

    def empty_trash(self, stop: Event) -> dict[str, str]:
        self.emptied += 1
        self.emptying.set()
        if self.slow:
            stop.wait()
        return self.stuck

    async def forget(self, operation_id: str) -> None:
        self.half_done.discard(operation_id)
        self.forgotten.set()


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[SqliteStore]:
    async with SqliteStore(SqliteStore.Options(), tmp_path) as store:
        yield store


class Home:
    def __init__(self, store: SqliteStore) -> None:
        self.store = store
        self.shelf = Shelf()
        self.bus = EventBus()
        self.told: list[tuple[str, str]] = []
        self.bus.subscribe(self._hear)
        self.keeping = Housekeeping(store, self.shelf, self.bus)

    def _hear(self, happening: Happening) -> None:
        if isinstance(happening, LeftBehind):
            self.told.append((happening.what, happening.which))

    async def image(self, number: int, status: ImageStatus = ImageStatus.READY) -> None:
        image = Image(id=Int64(number), name=f"i-{number}", status=status, family="f")
        await self.store.restore("p", image)


@pytest.fixture
def home(store: SqliteStore) -> Home:
    return Home(store)


async def test_what_fits_is_left_alone(home: Home) -> None:
    await home.image(1)
    home.shelf.put(1, "1")
    await home.keeping.round()
    assert (home.told, list(home.shelf.things)) == ([], [1])
    assert (await home.store.image("p", "i-1")).status is ImageStatus.READY


async def test_a_ready_image_without_its_bytes_is_failed_and_of_no_family(home: Home) -> None:
    for number in (1, 2):
        await home.image(number)
    await home.image(3, ImageStatus.PENDING)
    home.shelf.put(1, "1")

    await home.keeping.round()
    await home.keeping.round()

    statuses = [(await home.store.image("p", f"i-{number}")).status for number in (1, 2, 3)]
    assert statuses == [ImageStatus.READY, ImageStatus.FAILED, ImageStatus.PENDING]
    assert (await home.store.newest_in_family("p", "f")).name == "i-1"
    assert home.told == [("the bytes are gone; no longer READY", "p/i-2")]


async def test_where_nothing_of_a_project_is_the_disk_may_be_missing_and_nothing_is_changed(home: Home) -> None:
    await home.image(1)
    home.shelf.mounted = False
    await home.keeping.round()
    await home.keeping.round()
    assert (await home.store.image("p", "i-1")).status is ImageStatus.READY
    [(what, which)] = home.told
    assert ("another disk mounted" in what, which) == (True, "p/i-1")


async def test_bytes_of_an_unknown_operation_stay_and_are_told_of_once(home: Home) -> None:
    home.shelf.put(1, "1")
    await home.keeping.round()
    await home.keeping.round()
    assert list(home.shelf.things) == [1]
    [(what, which)] = home.told
    assert ("images rebuild" in what, which) == (True, "images/p/1")


async def test_more_resources_than_a_page_are_all_looked_at(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imageopsd.engine.housekeeping.PAGE", 2)
    for number in range(1, 6):
        await home.image(number)
    home.shelf.put(1)
    await home.keeping.round()
    assert len(home.told) == 4


async def test_half_done_things_of_operations_that_have_ended_go(home: Home) -> None:
    home.shelf.half_done = {"1", "2"}
    await home.keeping.round()
    assert (home.shelf.half_done, [which for _, which in home.told]) == (set(), ["1", "2"])


async def test_a_name_that_is_taken_is_not_taken_twice(home: Home) -> None:
    await home.image(1)
    assert not await home.store.restore("p", Image(id=Int64(1), name="i-1"))
    with pytest.raises(AlreadyExists):
        await home.store.restore("p", Image(id=Int64(2), name="i-1"))


async def test_what_cannot_be_done_keeps_nothing_else_from_being_done(home: Home) -> None:
    for number in (1, 2):
        await home.image(number)
    home.shelf.broken = OSError(errno.EIO, "Input/output error")
    home.shelf.strange = {"images/README": "it is no directory"}

    await home.keeping.round()

    statuses = [(await home.store.image("p", f"i-{number}")).status for number in (1, 2)]
    assert statuses == [ImageStatus.READY, ImageStatus.FAILED]
    assert home.told == [
        ("housekeeping failed", "[Errno 5] Input/output error"),
        ("its bytes cannot be looked at: Input/output error", "p/i-1"),
        ("the bytes are gone; no longer READY", "p/i-2"),
        ("no image: it is no directory", "images/README"),
    ]


async def test_what_cannot_be_removed_is_told_once(home: Home) -> None:
    home.shelf.stuck = {"trash/7.x": "Device or resource busy"}
    for _ in range(2):
        await home.keeping.empty_trash()
    assert home.told == [("cannot be removed: Device or resource busy", "trash/7.x")]


async def test_the_trash_is_emptied_at_start_and_after_a_delete_and_then_there_may_be_room(home: Home) -> None:
    freed = 0
    news = anyio.Event()

    def note() -> None:
        nonlocal freed, news
        freed += 1
        news.set()
        news = anyio.Event()

    keeping = Housekeeping(home.store, home.shelf, home.bus, freed=note)
    async with anyio.create_task_group() as group:
        group.start_soon(keeping.run)
        with anyio.fail_after(10):
            while freed < 1:
                await news.wait()
            home.bus.publish(ended("insert"))
            home.bus.publish(ended("delete"))
            while freed < 2:
                await news.wait()
        group.cancel_scope.cancel()
    assert home.shelf.emptied == 2


async def test_a_stop_does_not_wait_for_the_trash(home: Home) -> None:
    home.shelf.slow = True
    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(home.keeping.run)
            await anyio.to_thread.run_sync(home.shelf.emptying.wait)
            group.cancel_scope.cancel()


def ended(kind: str) -> Change:
    now = Time(2026, 1, 1, tzinfo=UTC)
    operation = Operation(
        id="1",
        name="operation-1",
        operation_type=kind,
        status=Status.DONE,
        progress=100,
        insert_time=now,
        target_link="t",
        self_link="s",
    )
    return Change(Succeeded(), operation, "p", now)
