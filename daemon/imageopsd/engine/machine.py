"""All that works, put together: what runs beside what, and the order in which it stops."""

from collections.abc import Callable, Coroutine
from typing import Any

import anyio

from imageopsd.config.settings import Records, Settings
from imageopsd.config.settings import Worker as WorkerOptions
from imageopsd.engine.backlog import Backlog
from imageopsd.engine.bus import EventBus
from imageopsd.engine.deadlines import Deadlines
from imageopsd.engine.gate import Gate
from imageopsd.engine.housekeeping import Housekeeping
from imageopsd.engine.imageops import ImageOps
from imageopsd.engine.intake import Intake
from imageopsd.engine.retention import Retention
from imageopsd.engine.upkeep import Upkeep
from imageopsd.engine.worker import Worker
from imageopsd.keys import Keyring
from imageopsd.model.breaker import BreakerPolicy
from imageopsd.model.names import IdSource
from imageopsd.model.retry import RetryPolicy
from imageopsd.model.time import Clock
from imageopsd.ports import Backend, Inventory, JobQueue, Keeper, Store, Totals

SideTask = Callable[[], Coroutine[Any, Any, None]]


class Machine:
    """`boot` is an id that no process had before; `totals` are the store's as of now. `ops` are the verbs for the
    doors, `pulses` show whether the loops get on, `could_start` whether the worker leaves
    something lying (`Worker.could_start`); `keyring` seals the keys that customers send, and opens them."""

    def __init__(
        self,
        store: Store,
        queue: JobQueue,
        backend: Backend,
        bus: EventBus,
        clock: Clock,
        settings: Settings,
        *,
        boot: str,
        ids: IdSource,
        totals: Totals,
        keyring: Keyring,
    ) -> None:
        options, records = settings.worker, settings.records
        self._queue = queue
        self._gate = Gate(bus, clock, slots=options.slots, backend_obstacle=backend.obstacle)
        self._backlog = Backlog(bus, records.max_unfinished, totals.pending + totals.running)
        self.ops = ImageOps(
            store,
            bus,
            ids,
            clock,
            room=self._backlog.entering,
            why_waiting=self._gate.why_waiting,
            seal=keyring.sealed,
        )
        self._worker = Worker(
            store,
            backend,
            bus,
            _retry(options),
            clock,
            self._gate,
            owner=boot,
            lease=options.lease,
            open_keys=keyring.opened,
        )
        self._intake = Intake(queue, self.ops, bus, clock, self._gate, self._backlog)
        self._retention = Retention(store, queue, bus, clock, succeeded=None, failed=None, request_ids=None, dead=None)
        self._upkeep = Upkeep(
            store,
            bus,
            clock,
            owner=boot,
            lease=options.lease,
            busy=lambda: self._worker.running > 0,
            renewed=self._worker.renewed,
            freed=self._worker.look,
        )
        self._to_the_last: list[SideTask] = [
            store.until_broken,
            queue.until_broken,
            self._upkeep.run,
            lambda: self._gate.heal(store),
            Deadlines(store, self.ops, bus, clock, self._gate).run,
        ]
        if isinstance(store, Inventory) and isinstance(backend, Keeper):
            self._to_the_last.append(Housekeeping(store, backend, bus, freed=self._worker.look).run)
        self.configure_worker(options)
        self.configure_records(records)
        self.could_start = self._worker.could_start
        self.pulses = {"intake": self._intake.pulse, "worker": self._worker.pulse, "upkeep": self._upkeep.pulse}

    @property
    def running(self) -> int:
        return self._worker.running

    def configure_worker(self, options: WorkerOptions) -> None:
        """Takes over all that can change while it works."""
        self._drain_timeout = options.drain_timeout
        self._gate.configure(
            slots=options.slots,
            project_slots=options.project_slots or None,
            policy=BreakerPolicy(options.breaker_failures, options.breaker_rest, options.breaker_longest_rest),
        )
        self._worker.retry = _retry(options)

    def configure_records(self, records: Records) -> None:
        self._backlog.configure(records.max_unfinished)
        self.ops.configure(request_id_window=records.request_id_window)
        self._retention.configure(
            succeeded=records.keep_succeeded or None,
            failed=records.keep_failed or None,
            request_ids=records.request_id_window,
            dead=records.keep_dead_letters or None,
        )

    def interrupt(self) -> None:
        """Interrupts what runs at once; it will be taken up again."""
        self._worker.interrupt()

    async def run(self, until_stopped: SideTask, *beside: SideTask) -> None:
        """Works until `until_stopped` returns, then drains: no new jobs, no new claims, what runs ends, the leases
        last of all. `beside` runs until then."""
        pause = await self._queue.paused()
        self._gate.pause(pause)
        self._backlog.tell()
        # Each group is cancelled or left before the one around it: a scope's end reaches all that is inside it.
        async with anyio.create_task_group() as leases:
            for task in (*self._to_the_last, *beside):
                leases.start_soon(task)
            async with anyio.create_task_group() as working:
                working.start_soon(self._worker.run)
                async with anyio.create_task_group() as taking:
                    for task in (self._intake.run, self._retention.run, self._heed_pause):
                        taking.start_soon(task)
                    await until_stopped()
                    self.ops.draining = True
                    taking.cancel_scope.cancel()
                await self._worker.drain(self._drain_timeout)
            leases.cancel_scope.cancel()

    async def _heed_pause(self) -> None:
        pause = await self._queue.paused()
        while True:
            self._gate.pause(pause)
            pause = await self._queue.pause_turned(pause)


def _retry(options: WorkerOptions) -> RetryPolicy:
    return RetryPolicy(options.attempts, options.retry_base, options.retry_cap, options.retry_patience)
