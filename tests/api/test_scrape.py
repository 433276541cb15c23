"""What a scrape finds out by itself: the state, the disk, the files that are read again."""

import math
import os
from collections.abc import Awaitable, Callable, Iterator
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from tests.api.conftest import NOW
from tests.certificates import Authority

from imageopsd.api import scrape as module
from imageopsd.api.access import TokensFile
from imageopsd.api.scrape import Scrape
from imageopsd.api.tls import Certificates
from imageopsd.model.errors import StoreFull
from imageopsd.model.events import Change, Claimed, Obstacle, ObstacleTurned
from imageopsd.model.operation import Operation, Status
from imageopsd.model.quota import Quotas
from imageopsd.telemetry.board import Board
from imageopsd.telemetry.metrics import Metrics


class Queue:
    """Two jobs, the older of an age of one minute; or `trouble`, which raises or never ends."""

    def __init__(self) -> None:
        self.trouble: Callable[[], Awaitable[None]] | None = None

    async def depth(self) -> Any:
        if self.trouble:
            await self.trouble()
        return SimpleNamespace(waiting=2, dead=1, oldest=NOW - timedelta(minutes=1))


class Scraped:
    """`values` after a refresh, by name and label values."""

    def __init__(self, data_dir: Path, **guards: Any) -> None:
        self.board = Board("1", "local", 4, NOW)
        self.board.phase = "ready"
        self.metrics = Metrics("1", "local", 4)
        known: Any = SimpleNamespace(**{"tokens": None, "certificates": None, **guards})
        nothing: Any = SimpleNamespace(quotas=Quotas())
        self.queue: Any = Queue()
        self.possible = False
        self.scrape = Scrape(
            self.board, self.metrics, nothing, self.queue, known, data_dir, lambda: NOW, self.could_start, limit=1.0
        )

    async def could_start(self) -> bool:
        return self.possible

    async def values(self) -> dict[tuple[str, ...], float]:
        await self.scrape.refresh()
        return {
            (sample.name.removeprefix("imageopsd_"), *sample.labels.values()): sample.value
            for family in self.metrics.registry.collect()
            for sample in family.samples
        }


def running(number: int, seconds: float) -> Change:
    """One that was begun so long ago."""
    operation = Operation(
        id=str(number), name=f"operation-{number}", operation_type="insert", status=Status.RUNNING, progress=0,
        insert_time=NOW, start_time=NOW - timedelta(seconds=seconds), target_link="images/i", self_link="",
    )  # fmt: skip
    return Change(Claimed(), operation, "p", NOW)


async def test_a_daemon_that_is_well(tmp_path: Path) -> None:
    values = await Scraped(tmp_path).values()
    space = os.statvfs(tmp_path)
    assert values[("ready",)] == 1
    assert values[("loops_stuck",)] == 0
    assert values[("oldest_running_operation_age_seconds",)] == 0
    assert values[("data_dir_size_bytes",)] == space.f_blocks * space.f_frsize
    assert 0 < values[("data_dir_free_bytes",)] <= values[("data_dir_size_bytes",)]
    assert values[("event_loop_lag_seconds_count",)] == 1
    assert values[("queue_oldest_job_age_seconds",)] == 60
    for credential in ("tls_certificate", "tls_client_ca"):
        assert values[("credential_expiry_timestamp_seconds", credential)] == math.inf
    for file in ("tokens_file", "tls_certificate"):
        assert values[("config_last_reload_successful", file)] == 1


async def test_one_that_is_not(tmp_path: Path) -> None:
    scraped = Scraped(tmp_path)
    for change in (running(1, 5), running(2, 3600), running(3, 60)):
        scraped.board.hear(change)
    scraped.board.hear(ObstacleTurned(Obstacle.STORE, "the disk is full"))
    scraped.board.stuck = ("intake", "worker")
    values = await scraped.values()
    assert values[("ready",)] == 0
    assert values[("loops_stuck",)] == 2
    assert values[("oldest_running_operation_age_seconds",)] == 3600


async def test_a_draining_daemon_is_not_ready(tmp_path: Path) -> None:
    scraped = Scraped(tmp_path)
    scraped.board.phase = "draining"
    assert (await scraped.values())[("ready",)] == 0


async def test_files_that_became_bad_are_told_of_until_they_are_good_again(tmp_path: Path) -> None:
    authority, ticks = Authority(tmp_path, "ours"), iter(range(0, 1000, 10))
    pair = authority.issue("server")
    certificates = Certificates(pair.certificate, pair.key, authority.certificate, lambda: float(next(ticks)))
    file = tmp_path / "tokens.toml"
    good = f'[[token]]\nname = "ci"\nsha256 = "{sha256(b"t").hexdigest()}"\nscopes = ["read"]\nprojects = ["*"]\n'
    file.write_text(good)
    file.chmod(0o600)
    tokens = TokensFile(file, lambda: float(next(ticks)))
    scraped = Scraped(tmp_path, tokens=tokens, certificates=certificates)

    async def successful() -> tuple[float, float]:
        tokens.find(b"t")
        certificates._refresh()
        values = await scraped.values()
        name = "config_last_reload_successful"
        return values[(name, "tokens_file")], values[(name, "tls_certificate")]

    values = await scraped.values()
    for credential in ("tls_certificate", "tls_client_ca"):
        end = values[("credential_expiry_timestamp_seconds", credential)]
        assert math.isfinite(end)
        assert end == certificates.ends[credential]
    assert await successful() == (1, 1)
    file.write_text("no toml")
    assert await successful() == (0, 1)
    pair.certificate.write_text("no certificate")
    assert await successful() == (0, 0)
    file.write_text(good + "\n")
    pair = authority.issue("server")
    assert await successful() == (1, 1)


@pytest.fixture
def stuck_disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """Does not answer until the test ends; who asked."""
    from threading import Event

    answer, asked = Event(), list[Path]()

    def statvfs(path: Path) -> os.statvfs_result:
        asked.append(path)
        assert answer.wait(60)
        raise OSError("too late")

    monkeypatch.setattr(module.os, "statvfs", statvfs)
    yield asked
    answer.set()


async def test_a_disk_that_does_not_answer_holds_one_thread_and_hides_nothing_else(
    tmp_path: Path, stuck_disk: list[Path]
) -> None:
    scraped = Scraped(tmp_path)
    while not stuck_disk:
        with anyio.move_on_after(0.05):
            await scraped.scrape.refresh()
    with anyio.fail_after(60):
        for _ in range(2):
            await scraped.scrape.refresh()
    assert stuck_disk == [tmp_path]
    assert scraped.metrics.registry.get_sample_value("imageopsd_ready") == 1
    assert scraped.metrics.registry.get_sample_value("imageopsd_queue_jobs", {"state": "waiting"}) == 2


async def full() -> None:
    raise StoreFull("the disk is full")


async def broken() -> None:
    raise ZeroDivisionError("a bug")


@pytest.mark.parametrize("trouble", [full, broken, anyio.sleep_forever])
async def test_a_queue_in_trouble_costs_its_own_figures_only_and_is_counted(
    tmp_path: Path, trouble: Callable[[], Awaitable[None]]
) -> None:
    scraped = Scraped(tmp_path)
    assert (await scraped.values())[("scrape_errors_total", "queue")] == 0
    scraped.queue.trouble, scraped.possible = trouble, True
    scraped.board.phase = "draining"
    values = await scraped.values()
    assert values[("scrape_errors_total", "queue")] == 1
    assert values[("queue_jobs", "waiting")] == 2, "as it was"
    assert (values[("ready",)], values[("start_possible",)]) == (0, 1), "as it is"
    assert values[("event_loop_lag_seconds_count",)] == 2, "the disk was asked as well"
    assert sum(value for name, value in values.items() if name[0] == "scrape_errors_total") == 1


async def test_a_data_dir_that_is_gone_costs_its_own_figures_only(tmp_path: Path) -> None:
    values = await Scraped(tmp_path / "gone").values()
    assert values[("scrape_errors_total", "disk")] == 1
    assert (values[("ready",)], values[("queue_jobs", "waiting")], values[("data_dir_size_bytes",)]) == (1, 2, 0)
