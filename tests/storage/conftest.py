"""The databases that the suites run on. A later one is one more param."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from imageopsd import plugins
from imageopsd.ports import JobQueue, Store

Opener = Callable[[], Awaitable[Store]]


@pytest.fixture(params=["sqlite"])
def database(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
async def store(database: str, tmp_path: Path) -> AsyncIterator[Store]:
    kind = plugins.find(plugins.STORES, database)
    async with kind(kind.Options(), tmp_path) as opened:
        yield opened


@pytest.fixture
async def open_queue(database: str, tmp_path: Path) -> AsyncIterator[Callable[..., Awaitable[JobQueue]]]:
    """Opens the queue, as often as wanted; all are closed at the end."""
    kind = plugins.find(plugins.QUEUES, database)
    async with AsyncExitStack() as stack:

        async def opened(*, consumer: bool = True) -> JobQueue:
            queue: JobQueue = await stack.enter_async_context(kind(kind.Options(), tmp_path, consumer=consumer))
            return queue

        yield opened
