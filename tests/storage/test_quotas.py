"""What every store promises of quotas: nothing over a limit, nothing forgotten, nothing counted twice."""

import asyncio
import sqlite3
import tempfile
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, closing
from datetime import timedelta
from importlib import resources
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule
from msgspec.structs import replace
from tests.storage.records import LEASE, NOW, claim, operation

from imageopsd import plugins
from imageopsd.model.errors import LeaseLost, QuotaExceeded
from imageopsd.model.events import Claimed, Failed, Interrupted, Succeeded
from imageopsd.model.image import Image, ImageFacts, Int64, RawDisk, published, reserved
from imageopsd.model.lifecycle import apply
from imageopsd.model.machine_image import MachineImage, MachineImageFacts
from imageopsd.model.machine_image import published as machine_image_published
from imageopsd.model.machine_image import reserved as reserved_machine_image
from imageopsd.model.names import IdSource
from imageopsd.model.operation import ErrorEntry
from imageopsd.model.quota import Limit, Metric, Quotas, Usage
from imageopsd.model.requests import DeleteImage, InsertImage, InsertMachineImage, PatchImage
from imageopsd.ports import CatalogueChange, Claim, Forget, Publish, Store
from imageopsd.storage.sqlite.store import SqliteStore

FAILED = Failed((ErrorEntry("X", "x"),), 400)
IDS = IdSource(node=2)
DISK = "projects/p/zones/z/disks/d"


PLENTY = Quotas([Limit(project="*", metric=metric, limit=10**9) for metric in Metric if metric is not Metric.INSERTS])
"""With limits so that there is a ledger, but none that refuses anything."""


@pytest.fixture
async def store(database: str, tmp_path: Path) -> AsyncIterator[Store]:
    kind = plugins.find(plugins.STORES, database)
    made: Store = kind(kind.Options(), tmp_path)
    made.quotas = PLENTY
    async with made:
        yield made


def limited(project: str = "*", **limits: int) -> Quotas:
    """By the names of `Metric`'s members."""
    return Quotas(Limit(project=project, metric=Metric[name], limit=limit) for name, limit in limits.items())


async def insert(
    store: Store,
    name: str,
    size_gb: int | None = None,
    *,
    project: str = "p",
    disk: str | None = None,
    at: float = 0,
    request_id: str | None = None,
) -> str:
    """Takes an insert of an image; the operation's name."""
    now = NOW + timedelta(seconds=at)
    raw = None if disk else RawDisk(source="https://h/i")
    size = None if size_gb is None else Int64(size_gb)
    wanted = Image(name=name, raw_disk=raw, source_disk=disk, disk_size_gb=size)
    image = reserved(wanted, project, IDS.next(NOW), now)
    made = replace(operation(), target_id=str(image.id), insert_time=now)
    request = InsertImage(project=project, image=wanted, request_id=request_id)
    accepted = await store.accept(made, project, request, lane=f"{project}/{name}", reserve=image)
    return accepted.operation.name


async def insert_machine_image(store: Store, name: str) -> str:
    wanted = MachineImage(name=name, source_instance="projects/p/zones/z/instances/i")
    made = reserved_machine_image(wanted, "p", IDS.next(NOW), NOW)
    request = InsertMachineImage(project="p", machine_image=wanted)
    task = replace(operation(), target_id=str(made.id))
    return (await store.accept(task, "p", request, lane=f"p/machine/{name}", reserve=made)).operation.name


async def end(store: Store, held: Claim, change: CatalogueChange, event: Any = None) -> None:
    await store.finish(held, apply(held.operation, event or Succeeded(), NOW), change)


def made(held: Claim, size_gb: int, stored_bytes: int) -> Publish:
    if isinstance(held.target, MachineImage):
        facts = MachineImageFacts(stored_bytes, {}, stored_bytes=stored_bytes)
        return Publish(machine_image_published(held.target, facts), stored_bytes)
    assert isinstance(held.target, Image)
    return Publish(published(held.target, ImageFacts(size_gb)), stored_bytes)


async def ledger(store: Store, project: str = "p", at: float = 0) -> dict[str, tuple[int, int]]:
    """Used and reserved by the names of metrics; lines at zero left out."""
    lines = await store.usage(project, NOW + timedelta(seconds=at))
    return {line.metric.name: (line.used, line.reserved) for line in lines if line.total}


# ---------------------------------------------------------------------------------------- one after the other


async def test_an_insert_is_reserved_until_it_is_published_and_used_until_it_is_forgotten(store: Store) -> None:
    await insert(store, "i", 3)
    assert await ledger(store) == {
        "IMAGES": (0, 1), "IMAGE_GB": (0, 3), "STORED_BYTES": (0, 1), "OPERATIONS": (1, 0),
    }  # fmt: skip
    [held] = await claim(store)
    await end(store, held, made(held, 3, 4096))
    assert await ledger(store) == {"IMAGES": (1, 0), "IMAGE_GB": (3, 0), "STORED_BYTES": (4096, 0)}
    assert held.target is not None
    delete = DeleteImage(project="p", image="i")
    await store.accept(replace(operation(), target_id=str(held.target.id)), "p", delete, lane="p/i")
    [held] = await claim(store)
    assert held.target is not None
    await end(store, held, Forget(int(held.target.id or 0)))
    assert await ledger(store) == {}


async def test_a_change_keeps_what_an_image_takes_unless_it_tells_otherwise(store: Store) -> None:
    await insert(store, "i")
    [held] = await claim(store)
    change = made(held, 2, 4096)
    await end(store, held, change)
    patch = PatchImage(project="p", image="i", patch={})  # type: ignore[arg-type]
    await store.accept(replace(operation(), target_id=str(change.resource.id)), "p", patch, lane="p/i")
    [held] = await claim(store)
    assert isinstance(held.target, Image)
    await store.show(held, replace(held.target, description="soon"))
    await end(store, held, Publish(replace(held.target, description="now")))
    assert await ledger(store) == {"IMAGES": (1, 0), "IMAGE_GB": (2, 0), "STORED_BYTES": (4096, 0)}
    await store.accept(replace(operation(), target_id=str(change.resource.id)), "p", patch, lane="p/i")
    [held] = await claim(store)
    assert isinstance(held.target, Image)
    await end(store, held, Publish(replace(held.target, disk_size_gb=Int64(3)), 8192))
    assert await ledger(store) == {"IMAGES": (1, 0), "IMAGE_GB": (3, 0), "STORED_BYTES": (8192, 0)}


async def test_a_machine_image_takes_bytes_and_an_operation_but_no_image(store: Store) -> None:
    store.quotas = limited(IMAGES=0, STORED_BYTES=5000)
    await insert_machine_image(store, "m")
    assert await ledger(store) == {"STORED_BYTES": (0, 1), "OPERATIONS": (1, 0)}
    [held] = await claim(store)
    await store.settle(held, 0, 4096)
    await end(store, held, made(held, 0, 4096))
    assert await ledger(store) == {"STORED_BYTES": (4096, 0)}


async def test_what_fails_gives_its_reservation_back(store: Store) -> None:
    store.quotas = limited(IMAGES=1)
    await insert(store, "i")
    [held] = await claim(store)
    assert held.target is not None
    await end(store, held, Forget(int(held.target.id or 0)), FAILED)
    assert await ledger(store) == {}
    await insert(store, "i")


async def test_what_is_refused_leaves_nothing(store: Store) -> None:
    store.quotas = limited(IMAGES=1, INSERTS=2)
    await insert(store, "i")
    before, totals = await ledger(store), await store.totals()
    with pytest.raises(QuotaExceeded, match=r"^Quota 'IMAGES' exceeded.  Limit: 1.0 globally.$"):
        await insert(store, "j")
    assert (await ledger(store), await store.totals()) == (before, totals)
    assert len((await store.operations("p", 9, None, False)).items) == 1
    assert [image.name for image in (await store.images("p", 9, None, False)).items] == ["i"]


async def test_a_limit_is_one_projects_or_every_ones_and_its_own_wins(store: Store) -> None:
    own = Limit(project="q", metric=Metric.IMAGES, limit=1)
    store.quotas = Quotas([own, Limit(project="*", metric=Metric.IMAGES, limit=0),
                           Limit(project="free", metric=Metric.IMAGES, limit=-1)])  # fmt: skip
    with pytest.raises(QuotaExceeded):
        await insert(store, "i", project="p")
    for project in ("q", "free"):
        await insert(store, "i", project=project)
    await insert(store, "j", project="free")
    with pytest.raises(QuotaExceeded):
        await insert(store, "j", project="q")


async def test_a_change_of_an_image_is_no_matter_of_a_full_image_quota_but_of_the_operations_in_flight(
    store: Store,
) -> None:
    await insert(store, "i")
    store.quotas = limited(IMAGES=0, IMAGE_GB=0, STORED_BYTES=0, INSERTS=0)
    delete = DeleteImage(project="p", image="i")
    await store.accept(operation(), "p", delete, lane="p/i")
    store.quotas = limited(OPERATIONS=2)
    with pytest.raises(QuotaExceeded, match="OPERATIONS_IN_FLIGHT"):
        await store.accept(operation(), "p", delete, lane="p/i")
    [held] = await claim(store)
    await end(store, held, None, FAILED)
    await store.accept(operation(), "p", delete, lane="p/i")


async def test_a_repeated_request_reserves_nothing_and_fits_always(store: Store) -> None:
    store.quotas = limited(IMAGES=1, OPERATIONS=1, INSERTS=1)
    request_id = "11111111-2222-3333-4444-555555555555"
    first = await insert(store, "i", request_id=request_id)
    before = await ledger(store)
    assert await insert(store, "i", request_id=request_id) == first
    assert await ledger(store) == before


async def test_what_is_asked_for_at_once_fits_exactly_as_often_as_there_is_room(store: Store) -> None:
    store.quotas = limited(IMAGE_GB=7)
    taken = []

    async def one(number: int) -> None:
        try:
            await insert(store, f"i-{number}", 2)
        except QuotaExceeded:
            return
        taken.append(number)

    async with anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(one, number)
    assert len(taken) == 3
    assert (await ledger(store))["IMAGE_GB"] == (0, 6)


# ------------------------------------------------------------------------------------------- real sizes


async def test_a_result_larger_than_its_reservation_is_refused_and_the_reservation_stays(store: Store) -> None:
    store.quotas = limited(IMAGE_GB=4, STORED_BYTES=5000)
    await insert(store, "i")
    await insert(store, "j", 3)
    held = {str(taken.target.name): taken for taken in await claim(store) if taken.target}
    before = await ledger(store)
    for size_gb, stored_bytes in ((2, 1), (1, 5001)):
        with pytest.raises(QuotaExceeded):
            await store.settle(held["i"], size_gb, stored_bytes)
        assert await ledger(store) == before
    await store.settle(held["j"], 2, 100)
    await store.settle(held["i"], 2, 4900)
    assert (await ledger(store))["STORED_BYTES"] == (0, 5000)


async def test_what_was_promised_is_kept_when_the_limit_is_lowered(store: Store) -> None:
    await insert(store, "i", 5)
    [held] = await claim(store)
    store.quotas = limited(IMAGE_GB=1)
    await store.settle(held, 4, 0)
    await end(store, held, made(held, 4, 0))
    assert (await ledger(store))["IMAGE_GB"] == (4, 0)


async def test_what_is_left_is_what_nobody_has_and_what_was_reserved_for_oneself(store: Store) -> None:
    store.quotas = limited(STORED_BYTES=5000, IMAGE_GB=10, IMAGES=9)
    for name, size_gb in (("a", 3), ("b", 4), ("c", None)):
        await insert(store, name, size_gb)
    first, second, third = await claim(store, 3)
    await end(store, first, made(first, 3, 4096))

    async def left(held: Claim) -> dict[Metric, int]:
        return {metric: remainder.amount for metric, remainder in (await store.left(held)).items()}

    assert await left(second) == {Metric.IMAGE_GB: 10 - 3 - 1, Metric.STORED_BYTES: 5000 - 4096 - 1}
    assert await left(third) == {Metric.IMAGE_GB: 10 - 3 - 4, Metric.STORED_BYTES: 5000 - 4096 - 1}

    store.quotas = limited(STORED_BYTES=10, IMAGE_GB=2)
    assert await left(second) == {Metric.IMAGE_GB: 4, Metric.STORED_BYTES: 1}  # what was promised is kept
    store.quotas = limited(IMAGES=2)
    assert await left(second) == {}


async def test_a_stale_claim_settles_nothing(store: Store) -> None:
    await insert(store, "i")
    [held] = await claim(store)
    await end(store, held, made(held, 1, 10))
    before = await ledger(store)
    with pytest.raises(LeaseLost):
        await store.settle(held, 9, 9)
    with pytest.raises(LeaseLost):
        await end(store, held, Forget(int(held.operation.target_id or 0)))
    assert await ledger(store) == before


# ------------------------------------------------------------------------------------- the sliding window


async def test_inserts_from_a_source_are_counted_in_a_window_that_slides(store: Store) -> None:
    store.quotas = limited(INSERTS=2)
    await insert(store, "a", disk=DISK, at=0)
    await insert(store, "b", disk=DISK, at=1800)
    with pytest.raises(QuotaExceeded) as refused:
        await insert(store, "c", disk=DISK, at=3599.999)
    assert str(refused.value) == f"Quota 'INSERTS_PER_SOURCE' exceeded.  Limit: 2.0 per hour for source '{DISK}'."
    await insert(store, "c", disk=DISK, at=3600)
    with pytest.raises(QuotaExceeded):
        await insert(store, "d", disk=DISK, at=5399)
    await insert(store, "d", disk=DISK, at=5400)
    for name in ("e", "f"):  # of the two sources the one with more counts
        await insert(store, name, disk=f"{DISK}-{name}", at=5400)
    assert (await ledger(store, at=5400))["INSERTS"] == (2, 0)
    assert "INSERTS" not in await ledger(store, at=9000)


async def test_a_source_is_the_same_however_it_is_written_and_another_one_or_projects_counts_apart(
    store: Store,
) -> None:
    store.quotas = limited(INSERTS=1)
    await insert(store, "a", disk="zones/z/disks/d")
    with pytest.raises(QuotaExceeded):
        await insert(store, "b", disk=f"https://www.googleapis.com/compute/v1/{DISK}")
    await insert(store, "b", disk="zones/z/disks/e")
    await insert(store, "a", disk=DISK, project="q")
    await insert(store, "c")
    assert (await ledger(store))["INSERTS"] == (1, 0)


async def test_an_insert_that_fails_was_an_insert_but_a_refused_one_was_none(store: Store) -> None:
    store.quotas = limited(INSERTS=2, IMAGES=1)
    await insert(store, "a", disk=DISK)
    with pytest.raises(QuotaExceeded, match="'IMAGES'"):
        await insert(store, "b", disk=DISK)
    [held] = await claim(store)
    await end(store, held, Forget(int(held.operation.target_id or 0)), FAILED)
    await insert(store, "b", disk=DISK)
    [held] = await claim(store)
    await end(store, held, Forget(int(held.operation.target_id or 0)), FAILED)
    with pytest.raises(QuotaExceeded, match="'INSERTS_PER_SOURCE'"):
        await insert(store, "c", disk=DISK)


# ------------------------------------------------------------------------------------- counting it anew


def sqlite(folder: Path, quotas: Quotas) -> SqliteStore:
    store = SqliteStore(SqliteStore.Options(), folder)
    store.quotas = quotas
    return store


async def test_an_audit_corrects_lines_that_are_wrong_missing_or_too_many(tmp_path: Path) -> None:
    async with sqlite(tmp_path, PLENTY) as store:
        await insert(store, "i", 3)
        right = await ledger(store)
        assert await store.audit() == []

        def disturb(tx: Any) -> None:
            tx.execute("UPDATE ledger SET reserved = 9 WHERE metric = 'imageopsd/image_gb'")
            tx.execute("DELETE FROM ledger WHERE metric = 'compute.googleapis.com/images'")
            tx.execute("INSERT INTO ledger VALUES ('gone', 'imageopsd/stored_bytes', 7, 0)")

        await store._writer.run(disturb)
        corrections = await store.audit()
        assert [(correction.found, correction.counted) for correction in corrections] == [
            (Usage("gone", Metric.STORED_BYTES, 7, 0), Usage("gone", Metric.STORED_BYTES, 0, 0)),
            (Usage("p", Metric.IMAGES, 0, 0), Usage("p", Metric.IMAGES, 0, 1)),
            (Usage("p", Metric.IMAGE_GB, 0, 9), Usage("p", Metric.IMAGE_GB, 0, 3)),
        ]
        assert (await ledger(store), await ledger(store, "gone")) == (right, {})
        assert await store.audit() == []


async def test_a_ledger_is_begun_with_the_first_limit_and_ended_with_the_last(tmp_path: Path) -> None:
    def triggers(tx: Any) -> int:
        (number,) = tx.execute("SELECT count(*) FROM sqlite_schema WHERE type = 'trigger'").fetchone()
        return int(number)

    async with sqlite(tmp_path, Quotas()) as store:
        await insert(store, "i", 3)
        assert (await store._writer.run(triggers), await ledger(store)) == (0, {})
    async with sqlite(tmp_path, PLENTY) as store:
        assert await store._writer.run(triggers) == 5
        assert (await ledger(store))["IMAGE_GB"] == (0, 3)
    async with sqlite(tmp_path, Quotas()) as store:
        assert await store._writer.run(triggers) == 0
        await insert(store, "j", 4)
    async with sqlite(tmp_path, PLENTY) as store:
        assert (await ledger(store))["IMAGE_GB"] == (0, 7)
        assert await store.audit() == []


async def test_a_file_from_before_the_ledger_gets_one_that_is_right(tmp_path: Path) -> None:
    first = (resources.files("imageopsd.storage.sqlite.migrations") / "state" / "0001.sql").read_text()
    with closing(sqlite3.connect(tmp_path / "state.db")) as database:
        database.executescript(first)
        image = '{"kind": "compute#image", "id": "%d", "name": "i", "status": "%s", "diskSizeGb": "%d"}'
        machine_image = '{"kind": "compute#machineImage", "id": "%d", "name": "m", "status": "CREATING"}'
        for number, collection, record in (
            (1, "images", image % (1, "READY", 7)),
            (2, "images", image % (2, "PENDING", 3)),
            (3, "machineImages", machine_image % 3),
        ):
            database.execute(
                "INSERT INTO resources VALUES (?, ?, 'p', ?, NULL, ?, NULL)",
                (number, collection, f"i-{number}", record),
            )
        database.execute("INSERT INTO operations VALUES (4, 'p', NULL, NULL, 0, '{}', '{}')")
        database.execute("INSERT INTO tasks (operation_id, lane, runnable, not_before) VALUES (4, 'l', 1, 0)")
        database.execute("PRAGMA user_version = 1")
        database.commit()
    async with sqlite(tmp_path, PLENTY) as store:
        assert await ledger(store) == {"IMAGES": (1, 1), "IMAGE_GB": (7, 3), "OPERATIONS": (1, 0)}
        assert await store.audit() == []


# -------------------------------------------------------------------------------------- whatever happens


LIMITS = {Metric.IMAGES: 4, Metric.IMAGE_GB: 9, Metric.STORED_BYTES: 900, Metric.OPERATIONS: 5}
PROJECTS = st.sampled_from(["p", "q"])


class Ledger(RuleBasedStateMachine):
    """Everything that takes from quotas or gives back, in any order, with restarts in between; beside it a plain count
    of what must be there."""

    claims = Bundle("claims")
    images = Bundle("images")

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._directory = tempfile.TemporaryDirectory()
        self._number = 0
        self._takes: dict[str, tuple[str, bool, int, int]] = {}
        """Image id → project, published, GB, bytes."""
        self._in_flight: Counter[str] = Counter()

    @initialize()
    def open(self) -> None:
        self._stack = AsyncExitStack()
        limits = Quotas(Limit(project="*", metric=metric, limit=limit) for metric, limit in LIMITS.items())
        store = sqlite(Path(self._directory.name), limits)
        self._store = self._run(self._stack.enter_async_context(store))
        self._number += 1
        self._run(self._store.enter(f"boot-{self._number}", NOW))

    def teardown(self) -> None:
        self._run(self._stack.aclose())
        self._runner.close()
        self._directory.cleanup()

    def _run(self, coroutine: Any) -> Any:
        return self._runner.run(coroutine)

    @rule()
    def restart(self) -> None:
        """Claims of before are stale from now on."""
        self._run(self._stack.aclose())
        self.open()

    @rule(project=PROJECTS, size_gb=st.none() | st.integers(1, 5))
    def insert(self, project: str, size_gb: int | None) -> None:
        self._number += 1
        try:
            name = self._run(insert(self._store, f"i-{self._number}", size_gb, project=project))
        except QuotaExceeded:
            return
        taken = self._run(self._store.operation(project, name))
        self._takes[str(taken.target_id)] = (project, False, size_gb or 1, 1)
        self._in_flight[project] += 1

    @rule(image=consumes(images))
    def delete(self, image: str) -> None:
        project = self._takes[image][0]
        request = DeleteImage(project=project, image=image)
        try:
            self._run(self._store.accept(replace(operation(), target_id=image), project, request, lane=image))
        except QuotaExceeded:
            return
        self._in_flight[project] += 1

    @rule(target=claims, limit=st.integers(1, 3))
    def claim(self, limit: int) -> Any:
        owner = f"boot-{self._number}"
        begun = self._store.claim(owner, limit, NOW, NOW + LEASE, lambda before: apply(before, Claimed(), NOW))
        return multiple(*self._run(begun).claims)

    @rule(held=consumes(claims))
    def give_back(self, held: Claim) -> None:
        interrupted = apply(held.operation, Interrupted("x"), NOW)
        self._write(self._store.release(held, interrupted))

    @rule(target=images, held=consumes(claims), size_gb=st.integers(1, 5), stored=st.integers(0, 400))
    def succeed(self, held: Claim, size_gb: int, stored: int) -> Any:
        image = str(held.operation.target_id)
        if isinstance(held.request, DeleteImage):
            if self._write(end(self._store, held, Forget(int(image)))):
                del self._takes[image]
                self._in_flight[held.project] -= 1
            return multiple()
        try:
            if not self._write(self._store.settle(held, size_gb, stored)):
                return multiple()
        except QuotaExceeded:
            self.fail(held)
            return multiple()
        assert self._write(end(self._store, held, made(held, size_gb, stored)))
        self._takes[image] = (held.project, True, size_gb, stored)
        self._in_flight[held.project] -= 1
        return image

    @rule(held=claims)
    def fail(self, held: Claim) -> None:
        """Not consumed: what ended already comes here again, as a stale claim."""
        image = str(held.operation.target_id)
        inserting = isinstance(held.request, InsertImage)
        if self._write(end(self._store, held, Forget(int(image)) if inserting else None, FAILED)):
            self._in_flight[held.project] -= 1
            if inserting:
                del self._takes[image]

    def _write(self, coroutine: Any) -> bool:
        """Whether the claim still held."""
        try:
            self._run(coroutine)
        except LeaseLost:
            return False
        return True

    @invariant()
    def nothing_is_over_its_limit_or_below_zero_and_all_is_what_there_is(self) -> None:
        expected: Counter[tuple[str, Metric, bool]] = Counter()
        for project, is_published, size_gb, stored in self._takes.values():
            expected[project, Metric.IMAGES, is_published] += 1
            expected[project, Metric.IMAGE_GB, is_published] += size_gb
            expected[project, Metric.STORED_BYTES, is_published] += stored
        for project, number in self._in_flight.items():
            expected[project, Metric.OPERATIONS, True] += number
        shown: Counter[tuple[str, Metric, bool]] = Counter()
        for usage in self._run(self._store.usage(None, NOW)):
            assert usage.used >= 0
            assert usage.reserved >= 0
            assert usage.total <= LIMITS[usage.metric]
            shown[usage.project, usage.metric, True] = usage.used
            shown[usage.project, usage.metric, False] = usage.reserved
        assert +shown == +expected
        assert self._run(self._store.audit()) == []


TestLedger = Ledger.TestCase
TestLedger.settings = settings(
    max_examples=20, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
