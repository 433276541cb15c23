"""What every test leaves behind: nothing. Tasks, threads and open files are compared before and after."""

import asyncio
import gc
import inspect
import os
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

LIMIT = 5.0
"""Seconds that a thread or socket on its way out has to be gone."""

POOLS = ("AnyIO worker thread", "asyncio_")
"""Names of threads that wait for more work until their event loop, or the process, ends; nobody has to join them."""


@pytest.fixture(autouse=True)
def nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """First to be set up and last to be torn down, so that a test's own fixtures are looked at as well."""
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("no_task_is_left")
    # a client that a module's tests share keeps the connection that the first of them made
    shared = any(found[-1].scope == "module" for found in request.node._fixtureinfo.name2fixturedefs.values())
    threads, files = _threads(), _files(sockets=not shared)
    yield
    deadline = time.monotonic() + LIMIT
    while (left := [*(_threads() - threads), *(_files(sockets=not shared) - files)]) and time.monotonic() < deadline:
        gc.collect()  # what only waits for the collector is no leak; a ResourceWarning tells of it if it should not
        time.sleep(0.01)
    assert left == [], "the test left these behind"


@pytest.fixture
async def no_task_is_left() -> AsyncIterator[None]:
    before = asyncio.all_tasks()
    yield
    deadline = time.monotonic() + LIMIT
    while (left := asyncio.all_tasks() - before - {asyncio.current_task()}) and time.monotonic() < deadline:
        await asyncio.sleep(0)
    assert left == set(), "the test left these tasks running"


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if not thread.name.startswith(POOLS)}


def _files(*, sockets: bool) -> Counter[str]:
    """Open databases, pipes and sockets by what they are: a socket has its own number, a database may be open twice."""
    found: Counter[str] = Counter()
    for descriptor in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # the directory's own is gone by now
            target = os.readlink(descriptor)
            if (
                (sockets and target.startswith("socket:"))
                or ".db" in Path(target).name
                or target.endswith((".bell", ".lock"))
            ):
                found[target] += 1
    return found
