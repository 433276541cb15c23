"""One life of the daemon: opens the parts, serves until a signal, stops in order."""

import os
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import anyio
from msgspec.structs import replace

from imageopsd import plugins
from imageopsd.api.access import Access, issue
from imageopsd.api.compute import ComputeApi
from imageopsd.api.listening import CannotListen, Guards, listening
from imageopsd.api.live import Live
from imageopsd.api.scrape import Scrape
from imageopsd.api.status import StatusApi
from imageopsd.config import Loaded, Settings
from imageopsd.config.settings import SOCKET_PATH_LIMIT, Server
from imageopsd.engine.bus import EventBus, Observer
from imageopsd.engine.machine import Machine
from imageopsd.engine.pulse import Watch
from imageopsd.keys import Keyring
from imageopsd.model.errors import StoreUnavailable
from imageopsd.model.events import Cancelled, Change, Failed, Happening, JobBuried, StuckTurned, Succeeded
from imageopsd.model.names import IdSource
from imageopsd.model.quota import Quotas
from imageopsd.model.time import Time
from imageopsd.ports import Backend, JobQueue, Store
from imageopsd.reloading import Reloading, parts_of
from imageopsd.telemetry import logs
from imageopsd.telemetry.board import Board
from imageopsd.telemetry.logs import log
from imageopsd.telemetry.metrics import Metrics
from imageopsd.telemetry.systemd import StatusText, ask_for_time, notify, passed_sockets, watchdog_seconds
from imageopsd.telemetry.throughput import Throughput

ENDPOINT_FILE = "endpoint"
"""In the data directory: the address this daemon listens on, for commands on the same host."""

TOKEN_FILE = "token"  # noqa: S105 - its name, not its content
"""In the data directory, if there is a tokens file: what lets those commands in."""

SOCKET_FILE = "socket"
"""In the data directory, where clients must have certificates: the door of those commands, which have none."""

LOOK_INTERVAL = 30.0
"""Seconds between two looks at our own loops where no service manager has a wish of its own; a loop in the same turn
for so long is stuck."""

START_LIMIT = 600.0
"""Seconds that recovery may ask the service manager to wait."""

STOP_MARGIN = 30.0
"""Seconds after worker.drain_timeout in which interrupted work must have ended."""


def clock() -> Time:
    """The one place that asks what time it is."""
    return Time.current()


class StartError(Exception):
    """The daemon cannot start as it is configured; starting it again will not help."""


class Daemon:
    """One life of the daemon; `exit_when_idle` (seconds without work) or `max_operations` (ended) may end it.
    `read_again` reads the configuration once more: blocks, and raises ConfigError."""

    def __init__(
        self,
        settings: Settings,
        read_again: Callable[[], Loaded],
        *,
        exit_when_idle: float | None = None,
        max_operations: int | None = None,
    ) -> None:
        self._settings = settings
        self._exit_when_idle = exit_when_idle
        self._max_operations = max_operations
        self._version = version("imageopsd")
        self._stop = anyio.Event()  # a latch: set by whatever ends us, never cleared (procrastinate#1563)
        self._activity = anyio.Event()
        self._ended = 0
        self.failures = 0
        """Operations that ended in an error in this life, cancelled ones too, and jobs that could not become any."""
        self._machine: Machine | None = None
        self._bus = EventBus()
        self._board = Board(self._version, settings.backend, settings.worker.slots, clock())
        self._metrics = Metrics(
            self._version, settings.backend, settings.worker.slots, traced=bool(settings.tracing.endpoint)
        )
        self._metrics.configuration_read(clock())
        self._throughput = Throughput(time.monotonic)
        self._reloading = Reloading(settings, read_again, self._heard_of_reload)
        self._watchdog = watchdog_seconds()
        self._ready = anyio.Event()

    async def run(self) -> None:
        """Serves until a signal. Raises StartError, StoreError or whatever broke it."""
        with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            async with anyio.create_task_group() as watching:
                watching.start_soon(self._heed, signals)
                watching.start_soon(self._ask_for_time)
                await self._serve()
                watching.cancel_scope.cancel()

    async def _heed(self, signals: AsyncIterator[signal.Signals]) -> None:
        """The first signal drains, the second interrupts what still runs. SIGHUP has the configuration read again;
        but for what was started on a terminal, it is the terminal's going away, and ends it."""
        async for number in signals:
            if number is signal.SIGHUP and not sys.stdin.isatty():
                if not self._stop.is_set():
                    self._reloading.ask()
                continue
            log.info("signal received", signal=number.name, again=self._stop.is_set())
            if self._stop.is_set() and self._machine is not None:
                self._machine.interrupt()
            self._stop.set()

    async def _ask_for_time(self) -> None:
        """Recovery and a drain may take longer than the service manager's limits, and it is told so."""
        async with anyio.create_task_group() as asking:
            asking.start_soon(ask_for_time, START_LIMIT)
            await self._ready.wait()
            asking.cancel_scope.cancel()
        await self._stop.wait()
        await ask_for_time(self._reloading.settings.worker.drain_timeout + STOP_MARGIN)

    def _looked(self, stuck: tuple[str, ...]) -> None:
        """What was seen of our loops. A service manager that is not told that all is well kills us, and the next start
        goes on where we hung."""
        if stuck != self._board.stuck:
            self._bus.publish(StuckTurned(stuck))
        if self._watchdog and not stuck:
            notify(WATCHDOG=1)

    def _heard_of_reload(self, good: bool) -> None:
        self._board.configuration_refused = not good
        self._board.slots = self._reloading.settings.worker.slots
        self._metrics.set_slots(self._board.slots)
        if good:
            self._metrics.configuration_read(clock())
        else:
            self._metrics.configuration_refused()
        notify(READY=1, STATUS=self._board.sentence())

    async def _serve(self) -> None:
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))  # keys are in memory
        settings, data_dir = self._settings, _prepare(Path(self._settings.data_dir))
        try:
            guards, passed = Guards(_with_local_door(settings.server, data_dir)), passed_sockets()
        except (CannotListen, OSError) as error:
            raise StartError(str(error)) from error
        async with AsyncExitStack() as stack:
            boot = uuid4().hex
            tracing = await stack.enter_async_context(self._tracing(boot))
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
            recovered = await store.enter(boot, clock())
            await _audit(store)
            ids = IdSource(node=int(boot[:8], 16), last=await store.newest_id())
            totals = await store.totals()
            self._board.start_from(totals)
            machine = Machine(
                store,
                queue,
                backend,
                self._bus,
                clock,
                settings,
                boot=boot,
                ids=ids,
                totals=totals,
                keyring=Keyring(data_dir),
            )
            self._machine = machine
            access = Access(
                guards.tokens,
                self._metrics.refused,
                unix_users=guards.unix_users,
                certificates=bool(settings.server.tls_client_ca),
            )
            live = Live(self._board, self._throughput, access, queue.depth, clock)
            status = StatusText(self._board.sentence)
            lines: Observer = partial(logs.hear, traced=bool(tracing))
            observers = (self._board.hear, self._metrics.hear, lines, self._count, self._throughput.hear)
            for observer in (*observers, live.hear, status.hear, *tracing):
                self._bus.subscribe(observer)
            doors = self._doors(machine, store, queue, guards, passed, access, live, data_dir)
            address = await stack.enter_async_context(doors)
            log.info("ready", address=address, data_dir=str(data_dir), backend=settings.backend, recovered=recovered)
            interval = self._watchdog / 3 if self._watchdog else LOOK_INTERVAL
            watch = Watch(machine.pulses, interval, self._looked, self._metrics.lag.observe)
            parts = parts_of(store, machine, backend, settings.backend, self._version)
            beside = [live.run, watch.run, status.run, lambda: self._reloading.run(parts)]
            if self._exit_when_idle is not None:
                beside.append(lambda: self._stop_when_idle(queue))
            await machine.run(lambda: self._until_stopped(live), *beside)
            with suppress(StoreUnavailable):  # on a full disk: the next start sees by the lock that we are gone
                await store.leave(boot, clock())
        log.info("stopped")

    async def _until_stopped(self, live: Live) -> None:
        self._board.phase = "ready"
        live.changed()
        notify(READY=1, STATUS=self._board.sentence())
        self._ready.set()
        await self._stop.wait()
        self._board.phase = "draining"
        live.changed()
        notify(STOPPING=1, STATUS=self._board.sentence())
        log.info("draining", running=self._board.running, timeout_seconds=self._reloading.settings.worker.drain_timeout)

    @asynccontextmanager
    async def _tracing(self, boot: str) -> AsyncIterator[tuple[Observer, ...]]:
        """The observer that traces operations, if a collector is configured. Raises StartError."""
        endpoint = self._settings.tracing.endpoint
        if not endpoint:
            yield ()
            return
        try:
            from imageopsd.telemetry.tracing import Tracing, exporting

            outbox = exporting(endpoint, self._metrics.spans)
        except ImportError as error:
            raise StartError(
                f"tracing.endpoint: the extra 'tracing' is not installed ({error}); "
                "pip install 'imageopsd[tracing]', or leave tracing.endpoint empty"
            ) from error
        except RuntimeError as error:  # a component that a variable OTEL_… names is not there
            raise StartError(f"tracing: {error}") from error
        try:
            yield (Tracing(outbox, clock, version=self._version, boot=boot).hear,)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(outbox.close)

    # ------------------------------------------------------------------------------------------- the doors

    @asynccontextmanager
    async def _doors(
        self,
        machine: Machine,
        store: Store,
        queue: JobQueue,
        guards: Guards,
        passed: Sequence[socket.socket],
        access: Access,
        live: Live,
        data_dir: Path,
    ) -> AsyncIterator[str]:
        """Yields the base URL of the TCP listener. The doors outlive the drain: records can be read to the end."""
        scrape = Scrape(self._board, self._metrics, store, queue, guards, data_dir, clock, machine.could_start)
        routes = [
            StatusApi(self._board, self._metrics, scrape.refresh, scrape.refresh_quotas).routes(),
            live.routes(),
            ComputeApi(machine.ops, access, self._metrics.answered).routes(),
        ]
        endpoint, token = data_dir / ENDPOINT_FILE, data_dir / TOKEN_FILE
        try:
            async with listening(guards, access.middleware, routes, passed) as address:
                try:
                    if guards.tokens is not None:
                        guards.tokens.admit(issue(token))
                    unix = guards.server.unix_socket
                    endpoint.write_text(f"{f'unix:{unix}' if unix else address}\n")
                    yield address
                finally:
                    endpoint.unlink(missing_ok=True)
                    token.unlink(missing_ok=True)
                    live.close()
                    self._bus.wake_all()
        except CannotListen as error:
            raise StartError(str(error)) from error

    # ---------------------------------------------------------------------------------- ending by itself

    def _count(self, happening: Happening) -> None:
        self._activity.set()
        if isinstance(happening, JobBuried) or (
            isinstance(happening, Change) and isinstance(happening.event, Failed | Cancelled)
        ):
            self.failures += 1
        if isinstance(happening, Change) and isinstance(happening.event, Succeeded | Failed | Cancelled):
            self._ended += 1
            if self._ended == self._max_operations:
                self._stop.set()

    async def _stop_when_idle(self, queue: JobQueue) -> None:
        """Stops once nothing has happened for so long and nothing waits; deferred operations wait too."""
        while not self._stop.is_set():
            self._activity = anyio.Event()
            with anyio.move_on_after(self._exit_when_idle):
                await self._activity.wait()
                continue
            depth = await queue.depth()
            if not (depth.waiting or self._board.pending or self._board.running):
                log.info("idle", seconds=self._exit_when_idle)
                self._stop.set()


def _with_local_door(server: Server, data_dir: Path) -> Server:
    """Commands and health checks of this host must get in where a client certificate is asked for. Who can reach a
    socket in the data directory could read its token as well."""
    path = data_dir / SOCKET_FILE
    if not server.tls_client_ca or server.unix_socket or len(os.fsencode(path)) > SOCKET_PATH_LIMIT:
        return server
    return replace(server, unix_socket=str(path))


async def _audit(store: Store) -> None:
    """The quota ledger is counted anew; a wrong line is corrected, and told of."""
    for correction in await store.audit() if store.quotas else ():
        found, counted = correction.found, correction.counted
        log.warning(
            "quota ledger corrected",
            project=counted.project,
            metric=counted.metric,
            found={"used": found.used, "reserved": found.reserved},
            counted={"used": counted.used, "reserved": counted.reserved},
        )


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
