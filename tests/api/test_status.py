"""The probes in every phase of a daemon's life, and a scrape while the queue does not answer."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import anyio
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from tests.api.conftest import NOW

from imageopsd.api.status import StatusApi
from imageopsd.model.errors import StoreBusy
from imageopsd.telemetry.board import Board
from imageopsd.telemetry.metrics import Metrics


async def nothing() -> None:
    pass


@asynccontextmanager
async def status_api(
    phase: str, refresh: Callable[[], Awaitable[None]] = nothing, stuck: tuple[str, ...] = ()
) -> AsyncIterator["TestClient[web.Request, web.Application]"]:
    board = Board("1.2.3", "simulated", 4, NOW)
    board.phase = phase
    board.stuck = stuck
    app = web.Application()
    app.add_routes(StatusApi(board, Metrics("1.2.3", "simulated", 4), refresh).routes())
    async with TestClient(TestServer(app)) as client:
        yield client


@pytest.mark.parametrize(
    ("phase", "live", "started", "ready"),
    [("starting", 200, 503, 503), ("ready", 200, 200, 200), ("draining", 200, 200, 503)],
)
async def test_each_probe_answers_its_own_question(phase: str, live: int, started: int, ready: int) -> None:
    async with status_api(phase) as client:
        statuses = []
        for path in ("/livez", "/startupz", "/readyz"):
            async with client.get(path) as response:
                statuses.append((response.status, await response.text()))
    assert [(live, "ok\n"), (started, f"{phase}\n"), (ready, f"{phase}\n")] == statuses


async def test_a_daemon_with_a_loop_that_hangs_is_not_alive_but_says_no_more_than_that() -> None:
    async with status_api("ready", stuck=("intake", "worker")) as client:
        async with client.get("/livez") as response:
            assert (response.status, await response.text()) == (503, "stuck: intake, worker\n")
        async with client.get("/readyz") as response:
            assert response.status == 200


async def test_the_status_of_a_daemon_that_saw_nothing_yet() -> None:
    async with status_api("ready") as client, client.get("/status") as response:
        assert await response.json() == {
            "version": "1.2.3",
            "backend": "simulated",
            "slots": 4,
            "started": "2026-01-02T03:04:05.678000+00:00",
            "phase": "ready",
            "obstacles": {},
            "operations": {"pending": 0, "running": 0, "succeeded": 0, "failed": 0},
            "running": [],
            "recentFailures": [],
            "recentDeadLetters": [],
            "quotas": [],
        }
        assert (response.status, response.content_type) == (200, "application/json")


async def test_a_scrape_does_not_wait_for_a_queue_that_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imageopsd.api.status.REFRESH_LIMIT", 0.01)
    async with status_api("ready", anyio.sleep_forever) as client, client.get("/metrics") as response:
        assert response.status == 200
        assert "imageopsd_worker_slots 4.0" in await response.text()


async def test_whoever_asks_for_numbers_gets_fresh_ones_and_a_probe_waits_for_none() -> None:
    asked = []

    async def refresh() -> None:
        asked.append(True)

    async with status_api("ready", refresh) as client:
        for path in ("/livez", "/readyz", "/startupz"):
            async with client.get(path):
                assert asked == []
        for number, path in enumerate(("/metrics", "/status"), 1):
            async with client.get(path):
                assert asked == [True] * number


@pytest.mark.parametrize("path", ["/metrics", "/status"])
async def test_what_the_store_cannot_say_keeps_nothing_else_back(path: str) -> None:
    async def refresh() -> None:
        raise StoreBusy("locked")

    async with status_api("ready", refresh) as client, client.get(path) as response:
        assert response.status == 200
