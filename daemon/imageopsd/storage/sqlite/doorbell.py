"""How a submitting process wakes the daemon, without the daemon ever polling: a named pipe.

A ringer opens the pipe before it commits its jobs and writes a byte after. Should it be killed in between, the
kernel closes its end and the daemon sees the hang-up: that rings as well. So a job that is in the queue has rung.
"""

import asyncio
import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


class Doorbell:
    """The daemon's end; `ring` is called on the event loop each time somebody may have submitted."""

    def __init__(self, path: Path, ring: Callable[[], None]) -> None:
        self._path = path
        self._ring = ring
        self._loop = asyncio.get_running_loop()
        with suppress(FileExistsError):
            os.mkfifo(path, 0o600)
        if not stat.S_ISFIFO(path.lstat().st_mode):
            raise FileExistsError(errno.EEXIST, "not a named pipe", str(path))
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
    """Rings at the end of the block, or at the death of this process inside it; silent if no daemon listens."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENXIO):
            raise
        yield
        return
    try:
        yield
        with suppress(BlockingIOError, BrokenPipeError):  # a full pipe has rung often enough
            os.write(descriptor, b"!")
    finally:
        os.close(descriptor)
