"""Whether operations may be started just now, and if not, why: the one home of every reason there can be.

The worker asks before it claims; whoever reads a PENDING operation is told; metrics and the probes hear of it.
"""

from collections import Counter
from collections.abc import Callable
from datetime import datetime, timedelta

import anyio

from imageopsd.engine.bus import EventBus
from imageopsd.model.breaker import Breaker, BreakerPolicy
from imageopsd.model.errors import BackendFailure, StoreUnavailable, TemporaryFailure
from imageopsd.model.events import Happening, Obstacle, ObstacleTurned, StoreTroubled
from imageopsd.model.time import Clock
from imageopsd.ports import Claim, Pause, Store

LOOK_AGAIN = 5.0
"""Seconds until a backend that cannot work, or a store that cannot be written, is looked at again."""

PATIENT = BreakerPolicy(failures=10, rest=5.0, longest_rest=300.0)


class Gate:
    """`slots` may be busy at once, `project_slots` of them for one project. `backend_obstacle` is the backend's own
    word; `turned` is called when something may have become possible."""

    def __init__(
        self,
        bus: EventBus,
        clock: Clock,
        *,
        slots: int,
        project_slots: int | None = None,
        policy: BreakerPolicy = PATIENT,
        look_again: float = LOOK_AGAIN,
        backend_obstacle: Callable[[], str | None] = lambda: None,
    ) -> None:
        self._bus = bus
        self._clock = clock
        self._breaker = Breaker(policy)
        self._look_again = look_again
        self._backend_obstacle = backend_obstacle
        self._obstacles: dict[Obstacle, str] = {}
        self._running: Counter[str] = Counter()
        self._store_well = anyio.Event()
        self._store_well.set()
        self._store_ill = anyio.Event()
        self._given_up = False
        self.turned: Callable[[], None] = lambda: None
        self.configure(slots=slots, project_slots=project_slots, policy=policy)
        bus.subscribe(self._hear)

    def configure(self, *, slots: int, project_slots: int | None, policy: BreakerPolicy) -> None:
        """Other limits. A breaker that is open stays so for the rest it has begun."""
        self.slots = slots
        self.project_slots = project_slots
        self._breaker.policy = policy
        self.turned()

    # ---------------------------------------------------------------------------------------- the worker's

    def seats(self, free: int) -> int:
        """How many of `free` slots may be filled."""
        self._turn(Obstacle.BACKEND, self._backend_obstacle())
        if self._obstacles.keys() & {Obstacle.PAUSED, Obstacle.STORE}:
            return 0
        return self._breaker.allows(self._clock(), free)

    @property
    def making(self) -> bool:
        """Whether what makes something may be started: a full disk must not keep anybody from deleting."""
        return Obstacle.BACKEND not in self._obstacles

    def look_again(self) -> datetime | None:
        """When `seats` may answer otherwise though nobody says so."""
        if self._breaker.until is not None and self._breaker.allows(self._clock(), 1) == 0:
            return self._breaker.until if self._breaker.until > self._clock() else None
        if Obstacle.BACKEND in self._obstacles:
            return self._clock() + timedelta(seconds=self._look_again)
        return None

    def began(self, claim: Claim) -> None:
        self._running[claim.project] += 1
        self._breaker.started(claim.operation.id)

    def ended(self, claim: Claim) -> None:
        self._running[claim.project] -= 1
        if not self._running[claim.project]:
            del self._running[claim.project]
        self._breaker.ended(claim.operation.id)

    def heard_of_backend(self, claim: Claim, failure: BackendFailure | None) -> None:
        """How the backend did, when it was allowed to finish; `failure` is what it raised."""
        if isinstance(failure, TemporaryFailure) and failure.of_backend:
            if self._breaker.failed(claim.operation.id, self._clock()):
                until = f"{self._breaker.until:%Y-%m-%d %H:%M:%S} UTC"
                self._turn(Obstacle.BREAKER, f"{failure.entry.message.rstrip('.')}; tried again at {until}")
        elif self._breaker.worked():
            self._turn(Obstacle.BREAKER, None)

    # --------------------------------------------------------------------------------------- the others'

    def pause(self, pause: Pause | None) -> None:
        """Nothing more is started; what runs goes on."""
        reason = f"Paused since {pause.since:%Y-%m-%d %H:%M:%S} UTC: {pause.reason}" if pause else None
        self._turn(Obstacle.PAUSED, reason)

    def why_waiting(self, project: str) -> str | None:
        """What an operation of the project waits for that could be started otherwise."""
        for obstacle in Obstacle:
            if reason := self._obstacles.get(obstacle):
                return reason
        if self.project_slots is not None and self._running[project] >= self.project_slots:
            return f"Waiting for one of the project's {self.project_slots} slots"
        return f"Waiting for one of {self.slots} slots" if self._running.total() >= self.slots else None

    async def store_well(self) -> None:
        """Returns once records can be written, as far as is known, or nobody has the time to wait for that."""
        await self._store_well.wait()

    def give_up(self) -> None:
        """The daemon stops now: nobody waits for a store any more."""
        self._given_up = True
        self._store_well.set()

    async def heal(self, store: Store) -> None:
        """Whenever a write has failed: tries, until one goes through again. Runs until it is cancelled."""
        while True:
            await self._store_ill.wait()
            self._store_ill = anyio.Event()
            while True:
                await anyio.sleep(self._look_again)
                try:
                    await store.probe()
                    break
                except StoreUnavailable as error:
                    self._turn(Obstacle.STORE, _sentence(error))
            self._turn(Obstacle.STORE, None)
            self._store_well.set()

    # -------------------------------------------------------------------------------------------- inside

    def _hear(self, happening: Happening) -> None:
        if isinstance(happening, StoreTroubled) and self._store_well.is_set() and not self._given_up:
            self._store_well = anyio.Event()
            self._store_ill.set()
            self._turn(Obstacle.STORE, _sentence(happening.error))

    def _turn(self, obstacle: Obstacle, reason: str | None) -> None:
        """Tells of an obstacle that came, went or changed its reason; only that it came and went wakes the worker."""
        before = self._obstacles.pop(obstacle, None)
        if reason is not None:
            self._obstacles[obstacle] = reason
        if reason != before:
            self._bus.publish(ObstacleTurned(obstacle, reason))
        if before is not None and reason is None:
            self.turned()


def _sentence(error: Exception) -> str:
    text = str(error)
    return f"{text[:1].upper()}{text[1:]}"
