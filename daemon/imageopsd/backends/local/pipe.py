"""How the stages of an import hand bytes on, and how their threads begin and end.

A stage runs in a thread of its own and talks to the next one through a `Pipe`, so that the event loop is not
asked once per chunk and no stage can run ahead of the next by more than the pipe holds.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Condition
from typing import Generic, TypeVar

import anyio

T = TypeVar("T")


class Broken(Exception):
    """The import is being given up; only stages see this, each ends when it does."""


class Pipe(Generic[T]):
    """A queue with one writer and one reader, bounded by the bytes in it rather than by the items."""

    def __init__(self, capacity: int) -> None:
        """Takes items as long as fewer than `capacity` bytes wait."""
        self._capacity = capacity
        self._waiting: deque[tuple[T, int]] = deque()
        self._held = 0
        self._closed = self._broken = False
        self._changed = Condition()
        self._sender: tuple[asyncio.AbstractEventLoop, asyncio.Future[None]] | None = None

    def put(self, item: T, size: int) -> None:
        """From a thread; waits for room. Raises Broken."""
        with self._changed:
            while not self._take_in(item, size):
                self._changed.wait()

    async def send(self, item: T, size: int) -> None:
        """From the event loop; waits for room. Raises Broken."""
        loop = asyncio.get_running_loop()
        while True:
            with self._changed:
                if self._take_in(item, size):
                    return
                room = loop.create_future()
                self._sender = loop, room
            await room

    async def drained(self) -> None:
        """From the event loop, by the one who sends; waits until all is taken out, or nobody takes anything any
        more."""
        loop = asyncio.get_running_loop()
        while True:
            with self._changed:
                if self._broken or not self._waiting:
                    return
                room = loop.create_future()
                self._sender = loop, room
            await room

    def close(self) -> None:
        """Nothing more will come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def break_off(self) -> None:
        """Both ends get Broken from now on, also the one that waits at this moment."""
        with self._changed:
            self._broken = True
            self._changed.notify_all()
            self._wake_sender()

    def __iter__(self) -> Iterator[T]:
        """In a thread: the items up to `close`. Raises Broken."""
        while True:
            with self._changed:
                while not (self._waiting or self._closed or self._broken):
                    self._changed.wait()
                if self._broken:
                    raise Broken
                if not self._waiting:
                    return
                item, size = self._waiting.popleft()
                self._held -= size
                self._changed.notify_all()
                self._wake_sender()
            yield item

    def _take_in(self, item: T, size: int) -> bool:
        if self._broken:
            raise Broken
        if self._held >= self._capacity:
            return False
        self._waiting.append((item, size))
        self._held += size
        self._changed.notify_all()
        return True

    def _wake_sender(self) -> None:
        if self._sender is not None:
            loop, room = self._sender
            self._sender = None
            loop.call_soon_threadsafe(_resolve, room)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():  # its waiter may have been cancelled meanwhile
        future.set_result(None)


async def in_thread(name: str, work: Callable[[], T], stop: Callable[[], None] = lambda: None) -> T:
    """What `work` gives, done in a thread of its own. Cancelled, it calls `stop`, which should make `work` end soon,
    and comes back only when the thread is over: whoever cleans up afterwards does so alone.

    Not `asyncio.to_thread`: that one leaves the thread behind, and its shared pool is too small for stages that
    wait for each other.
    """
    with ThreadPoolExecutor(1, thread_name_prefix=name) as thread:
        return await outlast(asyncio.get_running_loop().run_in_executor(thread, work), stop)


async def outlast(ending: asyncio.Future[T], stop: Callable[[], object]) -> T:
    """What `ending` gives. Cancelled, it calls `stop` and still waits for the end, however often it is cancelled."""
    cancelled: asyncio.CancelledError | None = None
    while not ending.done():
        try:
            # a cancelled scope of anyio cancels us anew with every turn of the event loop, unless we hide from it
            with anyio.CancelScope(shield=cancelled is not None):
                await asyncio.wait([ending])
        except asyncio.CancelledError as error:
            cancelled = error
            stop()
    if cancelled is not None:
        if not ending.cancelled():
            ending.exception()  # looked at, so that asyncio does not complain of it
        raise cancelled
    return ending.result()
