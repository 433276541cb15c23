"""The stream behind the live page: what it sends, to whom, how much, and when it ends."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from aiohttp import ClientResponse, web
from aiohttp.test_utils import TestClient, TestServer
from tests.api.conftest import NOW, TIME
from tests.telemetry.test_observers import RETRIED, RUNNING, SUCCESS

from imageopsd.api import live as live_module
from imageopsd.api.access import Access, TokensFile
from imageopsd.api.envelope import envelope
from imageopsd.api.live import LISTENERS, Live
from imageopsd.model.errors import StoreFull
from imageopsd.model.events import BytesReceived, Happening
from imageopsd.ports import QueueDepth
from imageopsd.telemetry.board import Board
from imageopsd.telemetry.throughput import Throughput

LIMIT = 60.0
"""Seconds after which what should have happened counts as never happening."""

Json = dict[str, Any]


class Stage(NamedTuple):
    live: Live
    client: "TestClient[web.Request, web.Application]"
    happen: Callable[[Happening], None]
    asked: list[None]
    """Grows each time the queue is asked for its depth, which is once a frame."""


class Clock:
    """Seconds, for tokens and throughput."""

    now = 6000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def seconds() -> Clock:
    return Clock()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames come as fast as they are made: nothing here waits for time to pass."""
    monkeypatch.setattr(live_module, "INTERVAL", 0.0)


@asynccontextmanager
async def staged(seconds: Clock, tokens: TokensFile | None = None, *, broken: bool = False) -> AsyncIterator[Stage]:
    asked: list[None] = []

    async def depth() -> QueueDepth:
        asked.append(None)
        if broken:
            raise StoreFull("no room")
        return QueueDepth(waiting=3, dead=1, oldest=NOW)

    board, throughput, access = Board("1.2.3", "simulated", 4, NOW), Throughput(seconds), Access(tokens)
    live = Live(board, throughput, access, depth, lambda: NOW)

    def happen(happening: Happening) -> None:
        for observer in (board.hear, throughput.hear, live.hear):
            observer(happening)

    app = web.Application(middlewares=[envelope, access.middleware])
    app.add_routes(live.routes())
    async with TestClient(TestServer(app)) as client:
        running = asyncio.create_task(live.run())
        try:
            yield Stage(live, client, happen, asked)
        finally:
            live.close()
            running.cancel()


@pytest.fixture
async def stage(seconds: Clock) -> AsyncIterator[Stage]:
    async with staged(seconds) as made:
        yield made


async def event(response: ClientResponse) -> tuple[str, Json]:
    """The next event's name and data."""
    name = ""
    while True:
        line = (await asyncio.wait_for(response.content.readline(), LIMIT)).decode()
        assert line != "", "the stream has ended"
        field, _, value = line.strip().partition(": ")
        if field == "event":
            name = value
        if field == "data":
            return name, json.loads(value)


async def ended(response: ClientResponse) -> bool:
    await asyncio.wait_for(response.content.read(), LIMIT)
    return response.content.at_eof()


async def test_the_first_frame_is_the_whole_picture(stage: Stage) -> None:
    for happening in (*SUCCESS, *RETRIED, *RUNNING):
        stage.happen(happening)
    stage.happen(BytesReceived(5000))

    async with stage.client.get("/events") as response:
        assert response.content_type == "text/event-stream"
        assert await response.content.readline() == b"retry: 2000\n"
        name, status = await event(response)
        history_name, history = await event(response)

    throughput = status.pop("throughput")
    assert (name, history_name) == ("status", "history")
    assert status.pop("running")[0]["progress"] == 7
    assert status == {
        "version": "1.2.3",
        "backend": "simulated",
        "slots": 4,
        "started": NOW.isoformat(),
        "phase": "starting",
        "stuck": [],
        "obstacles": {},
        "time": TIME,
        "operations": {"pending": 0, "running": 1, "succeeded": 1, "failed": 1},
        "queue": {"waiting": 3, "dead": 1, "oldest": NOW.isoformat()},
    }
    assert throughput == {"minutes": [[0, 0]] * 59 + [[1, 1]], "bytesPerSecond": 500}
    [failure] = history["recentFailures"]
    assert (failure["httpErrorStatusCode"], failure["errors"]) == (
        503,
        [{"code": "SOURCE_UNAVAILABLE", "message": "The source answered 503."}],
    )


async def test_the_past_is_sent_again_only_when_it_has_changed(stage: Stage) -> None:
    async with stage.client.get("/events") as response:
        assert [(await event(response))[0] for _ in range(2)] == ["status", "history"]
        stage.happen(SUCCESS[0])
        assert (await event(response))[0] == "status"
        stage.happen(SUCCESS[1])
        assert (await event(response))[0] == "status"
        stage.happen(RETRIED[-1])
        names = [(await event(response))[0] for _ in range(2)]
    assert names == ["status", "history"]


async def test_nothing_is_put_together_while_nobody_listens(stage: Stage) -> None:
    for happening in (*SUCCESS, *RETRIED):
        stage.happen(happening)
        await asyncio.sleep(0)
    assert stage.asked == []
    async with stage.client.get("/events") as response:
        await event(response)
    assert len(stage.asked) > 0


async def test_what_happens_at_once_is_one_frame_for_all_who_listen(stage: Stage) -> None:
    async with stage.client.get("/events") as one, stage.client.get("/events") as other:
        for response in (one, other):
            while (await event(response))[0] != "history":
                pass
        before = len(stage.asked)
        for happening in (*SUCCESS, *RUNNING) * 50:
            stage.happen(happening)
        for response in (one, other):
            while (await event(response))[1].get("operations", {}).get("succeeded") != 50:
                pass
        assert len(stage.asked) - before <= 2  # one of them for the second who came


async def test_there_are_only_so_many_listeners_and_who_leaves_makes_room(stage: Stage) -> None:
    opened = [await stage.client.get("/events") for _ in range(LISTENERS)]
    async with stage.client.get("/events") as refused:
        assert (refused.status, refused.headers["Retry-After"]) == (503, "10")
        assert (await refused.json())["error"]["code"] == 503
    opened.pop().close()
    deadline = asyncio.get_running_loop().time() + LIMIT
    while (late := await stage.client.get("/events")).status != 200:  # the server hears of it a moment later
        late.close()
        assert asyncio.get_running_loop().time() < deadline
    for response in [*opened, late]:
        response.close()


async def test_who_does_not_read_is_cut_off_and_nothing_piles_up_for_it(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_module, "SEND_LIMIT", 0.05)
    with socket.socket() as lazy:
        lazy.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        lazy.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(lazy, (stage.client.host, stage.client.port))
        await loop.sock_sendall(lazy, b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n")
        deadline = loop.time() + LIMIT
        while not stage.live._listeners:
            await asyncio.sleep(0)
        while stage.live._listeners:  # news never stop until it is gone
            stage.happen(RUNNING[-1])
            await asyncio.sleep(0)
            assert loop.time() < deadline
        received = 0
        with suppress(ConnectionResetError):
            while part := await asyncio.wait_for(loop.sock_recv(lazy, 65536), LIMIT):
                received += len(part)
        assert 0 < received < 1024 * 1024


async def test_the_streams_end_when_the_daemon_stops_and_none_begins_any_more(stage: Stage) -> None:
    async with stage.client.get("/events") as response:
        await event(response)
        stage.live.close()
        assert await ended(response)
    async with stage.client.get("/events") as late:
        assert await ended(late)


async def test_a_queue_that_cannot_be_read_leaves_the_rest_of_the_picture(seconds: Clock) -> None:
    async with staged(seconds, broken=True) as stage, stage.client.get("/events") as response:
        _, status = await event(response)
        assert (status["queue"], status["slots"]) == (None, 4)


async def test_with_tokens_the_page_is_open_and_the_stream_is_for_who_may_see_the_status(
    seconds: Clock, tmp_path: Path
) -> None:
    file = tmp_path / "tokens.toml"

    def entry(token: str, projects: str) -> str:
        digest = sha256(token.encode()).hexdigest()
        return f'[[token]]\nname = "{token}"\nsha256 = "{digest}"\nscopes = ["read"]\nprojects = ["{projects}"]\n'

    file.write_text(entry("all", "*") + entry("one", "p"))
    file.chmod(0o600)
    async with staged(seconds, TokensFile(file, seconds)) as stage:
        statuses = {}
        for token in ("", "nobody", "one"):
            headers = {"Authorization": f"Bearer {token}"} if token else {}
            async with stage.client.get("/events", headers=headers) as response:
                statuses[token] = response.status
        assert statuses == {"": 401, "nobody": 401, "one": 403}
        async with stage.client.get("/") as page:
            assert (page.status, page.content_type) == (200, "text/html")

        async with stage.client.get("/events", headers={"Authorization": "Bearer all"}) as response:
            await event(response)
            file.write_text(entry("one", "p"))
            seconds.now += 2
            stage.happen(SUCCESS[0])
            assert await ended(response)


async def test_a_head_request_does_not_open_a_stream(stage: Stage) -> None:
    async with stage.client.head("/events") as response:
        assert response.status == 405


def test_throughput_forgets_what_is_an_hour_old_and_rates_fall(seconds: Clock) -> None:
    throughput = Throughput(seconds)
    for happening in (*SUCCESS, *RETRIED, BytesReceived(10_000)):
        throughput.hear(happening)
    assert throughput.snapshot()["minutes"][-1] == [1, 1]
    seconds.now += timedelta(minutes=59).total_seconds()
    throughput.hear(SUCCESS[-1])
    assert throughput.snapshot() == {"minutes": [[1, 1]] + [[0, 0]] * 58 + [[1, 0]], "bytesPerSecond": 0}
    seconds.now += 60
    throughput.hear(SUCCESS[-1])
    assert throughput.snapshot()["minutes"] == [[0, 0]] * 58 + [[1, 0]] * 2
    assert len(throughput._ended) == 2
