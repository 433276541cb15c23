"""Telling how far an import is, from counters that its threads move."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from imageopsd.ports import Reporter

INTERVAL = 0.25
"""Seconds between two looks at the counters."""
MOVED = 90
"""Percent when all bytes have been moved; the rest is verifying, syncing and publishing."""


class Meter:
    """Bytes so far. The stages write the fields from their threads and the event loop reads them: plain numbers
    with one writer each, a look that comes a moment late does no harm."""

    def __init__(self, verb: str, length: int | None, *, kept: int = 0) -> None:
        """`verb` says what is done (`importing`); `length` is that of the source, if it tells; its first `kept` bytes
        came in already when an earlier try read them."""
        self._verb = verb
        self._length = length
        self.read = 0
        """Bytes of the source that were used up."""
        self.made = 0
        """Bytes of the disk up to which it is made, and `size` of them there will be. In place of a length."""
        self.size: int | None = None
        self._told = kept

    def tell(self, report: Reporter) -> None:
        read = self.read
        if read > self._told:
            report.transferred(read - self._told)
            self._told = read
        if self._length:
            done, message = read / self._length, f"{_shown(read)} of {_shown(self._length)} read"
        elif self.size:
            done, message = self.made / self.size, f"{_shown(self.made)} of {_shown(self.size)} written"
        else:
            done, message = 0, f"{_shown(read)} read"
        report.progress(int(MOVED * min(done, 1)), f"{self._verb}: {message}")

    @contextmanager
    def telling(self, report: Reporter) -> Iterator[None]:
        """Tells every quarter of a second, and once more at the end so that no byte is missing."""
        loop = asyncio.get_running_loop()
        timer: asyncio.TimerHandle | None = None

        def again() -> None:
            nonlocal timer
            timer = loop.call_later(INTERVAL, again)
            self.tell(report)

        again()
        try:
            yield
        finally:
            assert timer is not None
            timer.cancel()
            self.tell(report)


def _shown(size: int) -> str:
    """`312.4 MiB`, `1.2 GiB`."""
    return f"{size / 1024**2:.1f} MiB" if size < 1024**3 else f"{size / 1024**3:.1f} GiB"
