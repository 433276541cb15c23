"""Whether the loops still get on: what they leave behind as they turn, and who looks at it."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import anyio


class Pulse:
    """One loop's. A loop that waits for something to do is well; one that stays long in the same turn is stuck, on a
    disk that does not answer or on a bug."""

    def __init__(self) -> None:
        self.beats = 0
        self.turning = False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Around the work of one turn; not around what the loop waits for."""
        self.beats += 1
        self.turning = True
        try:
            yield
        finally:
            self.turning = False

    def beat(self) -> None:
        """The turn is long, but it gets on."""
        self.beats += 1


class Watch:
    """Looks at `pulses` every `interval` seconds and reports the names of those that are in the same turn as at the
    look before: nobody, if all is well. That it looks at all shows that the event loop turns; `late` hears how many
    seconds after its time it did."""

    def __init__(
        self,
        pulses: Mapping[str, Pulse],
        interval: float,
        report: Callable[[tuple[str, ...]], None],
        late: Callable[[float], None] = lambda seconds: None,
        ticks: Callable[[], float] = time.monotonic,
    ) -> None:
        self._pulses = pulses
        self._interval = interval
        self._report = report
        self._late = late
        self._ticks = ticks

    async def run(self) -> None:
        seen: dict[str, int] = {}
        while True:
            turning = {name: pulse.beats for name, pulse in self._pulses.items() if pulse.turning}
            self._report(tuple(name for name, beats in turning.items() if seen.get(name) == beats))
            seen = turning
            due = self._ticks() + self._interval
            await anyio.sleep(self._interval)
            self._late(max(self._ticks() - due, 0.0))
