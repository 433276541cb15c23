"""How a submitting process wakes the daemon, without the daemon ever polling: a named pipe.

A ringer opens the pipe before it commits its jobs and writes a byte after. Should it be killed in between, the
kernel closes its end and the daemon sees the hang-up: that rings as well. So a job that is in the queue has rung, or
a daemon that was not there yet will look at the queue when it starts.
"""

import asyncio
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from imageopsd.model.errors import StoreError
from imageopsd.ownership import hand_over


class Doorbell:
    """The daemon's end; `ring` is called on the event loop each time somebody may have submitted."""

    def __init__(self, path: Path, ring: Callable[[], None]) -> None:
        self._path = path
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        _make(path)
        self._descriptor = self._listen()

    def close(self) -> None:
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _listen(self) -> int:
        descriptor = os.open(self._path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        self._loop.add_reader(descriptor, self._rung)
        return descriptor

    def _rung(self) -> None:
        with suppress(BlockingIOError):
            if not os.read(self._descriptor, 4096):
                # Every ringer has hung up. A pipe in that state stays readable for ever, a fresh one is quiet;
                # it is opened before the old one is closed so that no ringer finds nobody at home.
                old, self._descriptor = self._descriptor, self._listen()
                self._loop.remove_reader(old)
                os.close(old)
        self._ring()


@contextmanager
def ringing(path: Path) -> Iterator[None]:
    """Rings at the end of the block, or at the death of this process inside it. A daemon that starts meanwhile hears it
    as well: the pipe is made if need be and opened for both directions, which on Linux needs no other end (fifo(7))."""
    _make(path)
    descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        yield
        with suppress(BlockingIOError):  # a full pipe has rung often enough
            os.write(descriptor, b"!")
    finally:
        os.close(descriptor)


def _make(path: Path) -> None:
    with suppress(FileExistsError):
        os.mkfifo(path, 0o600)
        descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            hand_over(descriptor, path.parent)
        finally:
            os.close(descriptor)
    if not stat.S_ISFIFO(path.lstat().st_mode):
        raise StoreError(f"{path} is in the way: expected a named pipe there, or nothing")
