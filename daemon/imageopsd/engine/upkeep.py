"""What must be looked after while the daemon runs: leases of our own claims, claims of the dead."""

import time
from collections.abc import Callable
from datetime import timedelta

import anyio

from imageopsd.engine.bus import EventBus
from imageopsd.engine.pulse import Pulse
from imageopsd.model.errors import StoreUnavailable
from imageopsd.model.events import StoreTroubled
from imageopsd.model.time import Clock
from imageopsd.ports import Store


class Upkeep:
    """Renews at a third of `lease` (seconds), so that two renewals may fail; only while `busy` says there is something
    to renew. `renewed` is called with the tick at which a renewal began, `freed` when claims were taken from the
    dead."""

    def __init__(
        self,
        store: Store,
        bus: EventBus,
        clock: Clock,
        *,
        owner: str,
        lease: float,
        busy: Callable[[], bool],
        renewed: Callable[[float], None],
        freed: Callable[[], None],
    ) -> None:
        self._store = store
        self._bus = bus
        self._clock = clock
        self._owner = owner
        self._lease = lease
        self._busy = busy
        self._renewed = renewed
        self._freed = freed
        self.pulse = Pulse()

    async def run(self) -> None:
        while True:
            await anyio.sleep(self._lease / 3)
            try:
                if not self._busy():
                    continue  # an idle daemon touches no table
                with self.pulse.turn():
                    began = time.monotonic()
                    await self._store.renew(self._owner, self._clock() + timedelta(seconds=self._lease))
                    self._renewed(began)
                    if await self._store.recover(self._clock()):
                        self._freed()
            except StoreUnavailable as error:
                self._bus.publish(StoreTroubled("renewing leases", error))
