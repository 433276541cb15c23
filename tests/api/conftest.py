"""The REST front as `daemon.Daemon` puts it together, on a real store; clock and backend are in the test's hand."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from email import message_from_bytes
from email.policy import HTTP
from http import HTTPStatus
from pathlib import Path
from typing import Any, BinaryIO

import anyio
import msgspec
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from structlog.testing import capture_logs
from tests.contract.answers import assert_answer
from tests.contract.validate import assert_valid

from imageopsd.api.compute import ComputeApi
from imageopsd.api.envelope import envelope
from imageopsd.api.listening import MAX_BODY
from imageopsd.backends.simulated import SimulatedBackend
from imageopsd.engine.bus import EventBus
from imageopsd.engine.gate import Gate
from imageopsd.engine.imageops import ImageOps
from imageopsd.engine.worker import Worker
from imageopsd.model.durations import Seconds
from imageopsd.model.names import IdSource
from imageopsd.model.retry import RetryPolicy
from imageopsd.model.time import Time
from imageopsd.storage.sqlite.store import SqliteStore

BOOT = "boot"
ROOT = "/compute/v1/projects/p/global"
LINKS = "https://www.googleapis.com/compute/v1/projects/p/global"
NOW = Time(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)
TIME = "2026-01-02T03:04:05.678+00:00"
"""NOW as answers write it."""
SOURCE = {"source": "https://example.com/disk.tar.gz"}

Json = dict[str, Any]


class Clock:
    """Stands still unless a test sets it."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


class Api:
    """The doors and what stands behind them."""

    def __init__(self, client: "TestClient[web.Request, web.Application]", store: SqliteStore, ops: ImageOps) -> None:
        self.client = client
        self.store = store
        self.ops = ops

    async def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        data: bytes | BinaryIO | None = None,
        headers: Json | None = None,
    ) -> tuple[int, Any]:
        """Status and body of an answer, which is JSON whatever happened, and as the discovery document has it if it is
        a good one of the Compute API. `path` is one of project p's collections unless it begins with a slash."""
        url = _url(path)
        sent = {"data": data} if body is None else {"json": body}
        async with self.client.request(method, url, headers=headers, **sent) as response:
            assert response.content_type == "application/json"
            assert response.charset == "utf-8"
            answer = await response.json()
        if response.status == HTTPStatus.OK and url.startswith("/compute/"):
            assert_answer((headers or {}).get("x-http-method-override", method), url, answer)
        return response.status, answer

    async def batch(self, calls: list[tuple[str, str]]) -> list[tuple[int, Any]]:
        """Status and body of each part of a batch, in its order; as `call` has them."""
        parts = [f"{method} {_url(path)} HTTP/1.1" for method, path in calls]
        data = "".join(f"--x\r\nContent-Type: application/http\r\n\r\n{part}\r\n\r\n\r\n" for part in parts) + "--x--"
        headers = {"Content-Type": "multipart/mixed; boundary=x"}
        async with self.client.post("/batch/compute/v1", data=data, headers=headers) as response:
            assert response.status == HTTPStatus.OK
            whole = f"Content-Type: {response.headers['Content-Type']}\r\n\r\n".encode() + await response.read()
        answers = []
        for (method, path), part in zip(calls, message_from_bytes(whole, policy=HTTP).iter_parts(), strict=True):
            head, _, body = part.get_content().decode().partition("\r\n\r\n")
            answers.append((int(head.split()[1]), json.loads(body)))
            if answers[-1][0] == HTTPStatus.OK:
                assert_answer(method, _url(path), answers[-1][1])
        return answers

    async def answer(self, schema: str, method: str, path: str, body: object = None) -> Json:
        """The body of an answer that is good, and of that schema."""
        status, answer = await self.call(method, path, body)
        assert status == HTTPStatus.OK, answer
        assert_valid(schema, answer, "beta" if path.startswith("/compute/beta/") else "v1")
        result: Json = answer
        return result

    async def insert(self, name: str, query: str = "", **fields: object) -> Json:
        return await self.answer("Operation", "POST", f"images{query}", {"name": name, "rawDisk": SOURCE, **fields})

    async def image(self, name: str) -> Json:
        return await self.answer("Image", "GET", f"images/{name}")

    async def done(self, operation: Json) -> Json:
        ended = await self.answer("Operation", "POST", f"operations/{operation['name']}/wait")
        assert ended["status"] == "DONE"
        return ended


def _url(path: str) -> str:
    return path if path.startswith("/") else f"{ROOT}/{path}"


class Bench:
    """Makes an `Api`, and workers for it."""

    def __init__(self, store: SqliteStore, clock: Clock) -> None:
        self.bus = EventBus()
        self.store = store
        self.clock = clock

    def waiting(self, operation: Json) -> int:
        """How many waits stand behind an operation at this moment."""
        return len(self.bus._waiters.get(operation["id"], ()))

    @asynccontextmanager
    async def api(self, wait_limit: float = 45.0) -> AsyncIterator[Api]:
        ops = ImageOps(self.store, self.bus, IdSource(node=0), self.clock)
        app = web.Application(middlewares=[envelope], client_max_size=MAX_BODY)
        app.add_routes(ComputeApi(ops, wait_limit=wait_limit).routes())
        async with TestClient(TestServer(app)) as client:
            yield Api(client, self.store, ops)

    @asynccontextmanager
    async def working(self, *scripts: Json, attempts: int = 1) -> AsyncIterator[None]:
        """Operations are carried out during the block: at once, or as the simulated backend's scripts say."""
        options = msgspec.convert({"duration": "0s", "scripts": scripts}, SimulatedBackend.Options, dec_hook=_seconds)
        worker = Worker(
            self.store,
            SimulatedBackend(options, Path()),
            self.bus,
            RetryPolicy(attempts, 0, 0),
            self.clock,
            Gate(self.bus, self.clock, slots=2),
            owner=BOOT,
            lease=30,
            dice=lambda: 0.0,  # the clock stands still: what is tried again must be due at once
        )
        async with anyio.create_task_group() as group:
            group.start_soon(worker.run)
            yield
            await worker.drain(0)


def _seconds(kind: type, value: Any) -> Any:
    assert kind is Seconds
    return Seconds.parse(value)


@pytest.fixture(autouse=True)
def log() -> Iterator[list[Any]]:
    """What was logged, which nobody reads as text here."""
    with capture_logs() as lines:
        yield lines


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with SqliteStore(SqliteStore.Options(), tmp_path) as store:
        await store.enter(BOOT, NOW)
        yield Bench(store, Clock())


@pytest.fixture
async def api(bench: Bench) -> AsyncIterator[Api]:
    async with bench.api() as opened:
        yield opened
