"""Putting it together: opens the parts, runs them in one task group, stops them in order."""

import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import anyio
from aiohttp import web

from imageopsd import plugins
from imageopsd.api.access import Access, TokensFile, issue
from imageopsd.api.browsers import own_pages_only
from imageopsd.api.compute import ComputeApi
from imageopsd.api.envelope import envelope
from imageopsd.api.status import StatusApi
from imageopsd.config import Settings
from imageopsd.config.settings import split_address
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
from imageopsd.model.access import TokensInvalid
from imageopsd.model.breaker import BreakerPolicy
from imageopsd.model.events import Cancelled, Change, Failed, Happening, Succeeded
from imageopsd.model.names import IdSource
from imageopsd.model.quota import Quotas
from imageopsd.model.retry import RetryPolicy
from imageopsd.model.time import Time
from imageopsd.ports import Backend, Inventory, JobQueue, Keeper, Store
from imageopsd.telemetry import logs
from imageopsd.telemetry.board import Board
from imageopsd.telemetry.logs import log
from imageopsd.telemetry.metrics import Metrics
from imageopsd.telemetry.systemd import notify

MAX_BODY = 1024 * 1024
"""Bytes of a request's body; the largest Image anybody would send is a few kilobytes."""

ENDPOINT_FILE = "endpoint"
"""In the data directory: the address this daemon listens on, for commands on the same host."""

TOKEN_FILE = "token"  # noqa: S105 - its name, not its content
"""In the data directory, if there is a tokens file: what lets those commands in."""


def clock() -> Time:
    """The one place that asks what time it is."""
    return Time.current()


class StartError(Exception):
    """The daemon cannot start as it is configured; starting it again will not help."""


class Daemon:
    """One life of the daemon; `exit_when_idle` (seconds without work) or `max_operations` (ended) may end it."""

    def __init__(
        self, settings: Settings, *, exit_when_idle: float | None = None, max_operations: int | None = None
    ) -> None:
        self._settings = settings
        self._exit_when_idle = exit_when_idle
        self._max_operations = max_operations
        self._version = version("imageopsd")
        self._stop = anyio.Event()  # a latch: set by whatever ends us, never cleared (procrastinate#1563)
        self._activity = anyio.Event()
        self._ended = 0
        self._worker: Worker | None = None
        self._bus = EventBus()
        self._board = Board(self._version, settings.backend, settings.worker.slots, clock())
        self._metrics = Metrics(self._version, settings.backend, settings.worker.slots)

    async def run(self) -> None:
        """Serves until a signal. Raises StartError, StoreError or whatever broke it."""
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with anyio.create_task_group() as watching:
                watching.start_soon(self._heed, signals)
                await self._serve()
                watching.cancel_scope.cancel()

    async def _heed(self, signals: AsyncIterator[signal.Signals]) -> None:
        """The first signal drains, the second interrupts what still runs. SIGHUP is the terminal's going away, which
        ends what was started on it and nothing else."""
        async for number in signals:
            if number is signal.SIGHUP and not sys.stdin.isatty():
                log.info("signal ignored", signal=number.name)
                continue
            log.info("signal received", signal=number.name, again=self._stop.is_set())
            if self._stop.is_set() and self._worker is not None:
                self._worker.interrupt()
            self._stop.set()

    async def _serve(self) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # keys are in memory
        settings, data_dir = self._settings, _prepare(Path(self._settings.data_dir))
        tokens = _tokens(settings.server.tokens_file)
        async with AsyncExitStack() as stack:
            store: Store = plugins.make(plugins.STORES, settings.store, data_dir)
            store.observe_commit = self._metrics.commit.observe
            store.quotas = Quotas(settings.quota)
            await stack.enter_async_context(store)
            queue: JobQueue = await stack.enter_async_context(
                plugins.make(plugins.QUEUES, settings.queue, data_dir, settings.queues)
            )
            backend: Backend = await stack.enter_async_context(
                plugins.make(plugins.BACKENDS, settings.backend, data_dir, settings.backends)
            )
            boot = uuid4().hex
            recovered = await store.enter(boot, clock())
            for correction in await store.audit() if store.quotas else ():
                found, counted = correction.found, correction.counted
                log.warning(
                    "quota ledger corrected",
                    project=counted.project,
                    metric=counted.metric,
                    found={"used": found.used, "reserved": found.reserved},
                    counted={"used": counted.used, "reserved": counted.reserved},
                )
            ids = IdSource(node=int(boot[:8], 16), last=await store.newest_id())
            totals = await store.totals()
            unfinished = totals.pending + totals.running
            keyring = Keyring(data_dir)
            gate, backlog = self._gate(backend), Backlog(self._bus, settings.records.max_unfinished, unfinished)
            ops = ImageOps(
                store,
                self._bus,
                ids,
                clock,
                backlog=backlog,
                request_id_window=settings.records.request_id_window,
                why_waiting=gate.why_waiting,
                seal=keyring.sealed,
            )
            self._board.start_from(totals)
            for observer in (self._board.hear, self._metrics.hear, logs.hear, self._count):
                self._bus.subscribe(observer)
            address = await stack.enter_async_context(self._listening(ops, store, queue, tokens, data_dir))
            log.info("ready", address=address, data_dir=str(data_dir), backend=settings.backend, recovered=recovered)
            await self._work(store, queue, backend, ops, gate, backlog, keyring, boot)
            await store.leave(boot, clock())
        log.info("stopped")

    def _gate(self, backend: Backend) -> Gate:
        options = self._settings.worker
        return Gate(
            self._bus,
            clock,
            slots=options.slots,
            project_slots=options.project_slots or None,
            policy=BreakerPolicy(options.breaker_failures, options.breaker_rest, options.breaker_longest_rest),
            backend_obstacle=backend.obstacle,
        )

    async def _work(
        self,
        store: Store,
        queue: JobQueue,
        backend: Backend,
        ops: ImageOps,
        gate: Gate,
        backlog: Backlog,
        keyring: Keyring,
        boot: str,
    ) -> None:
        """Works until stopped, then drains: no new jobs, no new claims, what runs ends, the leases last of all."""
        options, records = self._settings.worker, self._settings.records
        retry = RetryPolicy(options.attempts, options.retry_base, options.retry_cap, options.retry_patience)
        worker = Worker(
            store, backend, self._bus, retry, clock, gate, owner=boot, lease=options.lease, open_keys=keyring.opened
        )
        self._worker = worker
        intake = Intake(queue, ops, self._bus, clock, gate, backlog)
        retention = Retention(
            store,
            self._bus,
            clock,
            succeeded=records.keep_succeeded or None,
            failed=records.keep_failed or None,
        )
        gate.pause(await queue.paused())
        upkeep = Upkeep(
            store,
            self._bus,
            clock,
            owner=boot,
            lease=options.lease,
            busy=lambda: worker.running > 0,
            renewed=worker.renewed,
            freed=worker.look,
        )
        # Each group is cancelled or left before the one around it: a scope's end reaches all that is inside it.
        async with anyio.create_task_group() as leases:
            leases.start_soon(upkeep.run)
            leases.start_soon(gate.heal, store)
            leases.start_soon(Deadlines(store, ops, self._bus, clock, gate).run)
            if isinstance(store, Inventory) and isinstance(backend, Keeper):
                leases.start_soon(Housekeeping(store, backend, self._bus).run)
            async with anyio.create_task_group() as working:
                working.start_soon(worker.run)
                async with anyio.create_task_group() as taking:
                    taking.start_soon(intake.run)
                    taking.start_soon(retention.run)
                    taking.start_soon(self._heed_pause, queue, gate)
                    if self._exit_when_idle is not None:
                        taking.start_soon(self._stop_when_idle, queue, self._exit_when_idle)
                    self._board.phase = "ready"
                    notify(READY=1, STATUS="Ready")
                    await self._stop.wait()
                    self._board.phase = "draining"
                    notify(STOPPING=1, STATUS=f"Draining {worker.running} operations")
                    log.info("draining", running=worker.running, timeout_seconds=options.drain_timeout)
                    ops.draining = True
                    taking.cancel_scope.cancel()
                await worker.drain(options.drain_timeout)
            leases.cancel_scope.cancel()

    async def _heed_pause(self, queue: JobQueue, gate: Gate) -> None:
        pause = await queue.paused()
        while True:
            gate.pause(pause)
            pause = await queue.pause_turned(pause)

    # ------------------------------------------------------------------------------------------- the doors

    @asynccontextmanager
    async def _listening(
        self, ops: ImageOps, store: Store, queue: JobQueue, tokens: TokensFile | None, data_dir: Path
    ) -> AsyncIterator[str]:
        """The HTTP server; yields its base URL. It outlives the drain, so that records can be read to the end."""

        async def refresh() -> None:
            depth = await queue.depth()
            age = clock().timestamp() - depth.oldest.timestamp() if depth.oldest else 0.0
            self._metrics.set_depths(depth.waiting, depth.dead, max(age, 0.0), self._board.pending)
            if store.quotas:
                self._metrics.set_quota_use(store.quotas.fullest(await store.usage(None, clock())))

        access = Access(tokens, self._metrics.refused)
        guards = [access.middleware] if tokens else [own_pages_only, access.middleware]
        app = web.Application(middlewares=[envelope, *guards], client_max_size=MAX_BODY)
        app.add_routes(StatusApi(self._board, self._metrics, refresh).routes())
        app.add_routes(ComputeApi(ops, access).routes())
        runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        endpoint, token = data_dir / ENDPOINT_FILE, data_dir / TOKEN_FILE
        try:
            host, port = split_address(self._settings.server.listen)
            try:
                await web.TCPSite(runner, host, port).start()
            except OSError as error:
                raise StartError(
                    f"server.listen: cannot listen on {self._settings.server.listen}: {os.strerror(error.errno or 0)}"
                ) from error
            host, port = runner.addresses[0][:2]
            address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            if tokens is not None:
                tokens.admit(issue(token))
            endpoint.write_text(f"{address}\n")
            yield address
        finally:
            endpoint.unlink(missing_ok=True)
            token.unlink(missing_ok=True)
            self._bus.wake_all()
            await runner.cleanup()

    # ---------------------------------------------------------------------------------- ending by itself

    def _count(self, happening: Happening) -> None:
        self._activity.set()
        if isinstance(happening, Change) and isinstance(happening.event, Succeeded | Failed | Cancelled):
            self._ended += 1
            if self._ended == self._max_operations:
                self._stop.set()

    async def _stop_when_idle(self, queue: JobQueue, seconds: float) -> None:
        """Stops once nothing has happened for so long and nothing waits; deferred operations wait too."""
        while True:
            self._activity = anyio.Event()
            with anyio.move_on_after(seconds):
                await self._activity.wait()
                continue
            depth = await queue.depth()
            if not (depth.waiting or self._board.pending or self._board.running):
                log.info("idle", seconds=seconds)
                self._stop.set()


def _tokens(file: str) -> TokensFile | None:
    try:
        return TokensFile(Path(file), time.monotonic) if file else None
    except TokensInvalid as error:
        raise StartError("\n  ".join(["server.tokens_file has errors:", *error.problems])) from error


def _prepare(data_dir: Path) -> Path:
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise StartError(
            f"data_dir: cannot create {data_dir}: {error.strerror}; choose another with --data-dir"
        ) from error
    if not os.access(data_dir, os.W_OK | os.X_OK):
        raise StartError(f"data_dir: {data_dir} is not writable for this user; choose another with --data-dir")
    return data_dir.resolve()
