"""How much got done lately, kept in memory: what the live page draws."""

from collections.abc import Callable
from typing import Any

from imageopsd.model.events import BytesReceived, Change, Failed, Happening, Succeeded

MINUTES = 60
"""How far back ended operations are counted."""
WINDOW = 10
"""Seconds over which the rate of bytes is taken."""


class Throughput:
    """Subscribe `hear` to the bus. `now` counts seconds; from where does not matter. Costs an hour of minutes and ten
    seconds of bytes, however much happens."""

    def __init__(self, now: Callable[[], float]) -> None:
        self._now = now
        self._ended: dict[int, list[int]] = {}
        self._bytes: dict[int, int] = {}

    def hear(self, happening: Happening) -> None:
        match happening:
            case Change(event=Succeeded()):
                self._count(0)
            case Change(event=Failed()):
                self._count(1)
            case BytesReceived(size=size):
                second = int(self._now())
                self._bytes[second] = self._bytes.get(second, 0) + size
                _forget(self._bytes, second - WINDOW)

    def _count(self, outcome: int) -> None:
        minute = int(self._now() // 60)
        self._ended.setdefault(minute, [0, 0])[outcome] += 1
        _forget(self._ended, minute - MINUTES)

    @property
    def bytes_per_second(self) -> int:
        oldest = int(self._now()) - WINDOW
        return sum(size for second, size in self._bytes.items() if second > oldest) // WINDOW

    def snapshot(self) -> dict[str, Any]:
        """`minutes` has a pair for each of the last sixty, the present one last: how many succeeded and failed."""
        minute = int(self._now() // 60)
        ended = [self._ended.get(past, [0, 0]) for past in range(minute - MINUTES + 1, minute + 1)]
        return {"minutes": ended, "bytesPerSecond": self.bytes_per_second}


def _forget(buckets: dict[int, Any], until: int) -> None:
    """Drops what is as old as `until`; the buckets stand in the order of their time."""
    while (oldest := next(iter(buckets))) <= until:
        del buckets[oldest]
