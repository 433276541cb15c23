"""Putting it together: opens the parts, runs them in one task group, stops them in order."""

import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import anyio
from aiohttp import web

from imageopsd import plugins
from imageopsd.api.access import Access, TokensFile, issue
from imageopsd.api.browsers import harden, own_origin_only, own_pages_only
from imageopsd.api.compute import ComputeApi
from imageopsd.api.doors import TcpDoor, UnixDoor, runner_of
from imageopsd.api.envelope import envelope
from imageopsd.api.live import Live
from imageopsd.api.peers import user_ids
from imageopsd.api.status import StatusApi
from imageopsd.api.tls import Certificates, CertificatesInvalid
from imageopsd.config import Settings
from imageopsd.config.settings import Server, is_loopback, split_address
from imageopsd.engine.bus import EventBus
from imageopsd.engine.imageops import ImageOps
from imageopsd.engine.intake import Intake
from imageopsd.engine.upkeep import Upkeep
from imageopsd.engine.worker import Worker
from imageopsd.model.access import TokensInvalid
from imageopsd.model.events import Change, Failed, Happening, Succeeded
from imageopsd.model.names import IdSource
from imageopsd.model.retry import RetryPolicy
from imageopsd.model.time import Time
from imageopsd.ports import Backend, JobQueue, Store
from imageopsd.telemetry import logs
from imageopsd.telemetry.board import Board
from imageopsd.telemetry.logs import log
from imageopsd.telemetry.metrics import Metrics
from imageopsd.telemetry.systemd import notify
from imageopsd.telemetry.throughput import Throughput

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
        settings, data_dir = self._settings, _prepare(Path(self._settings.data_dir))
        tokens, certificates = _tokens(settings.server.tokens_file), _certificates(settings.server)
        async with AsyncExitStack() as stack:
            store: Store = _plug(plugins.STORES, settings.store, data_dir)
            store.observe_commit = self._metrics.commit.observe
            await stack.enter_async_context(store)
            queue: JobQueue = await stack.enter_async_context(_plug(plugins.QUEUES, settings.queue, data_dir))
            make_backend = plugins.find(plugins.BACKENDS, settings.backend)
            backend: Backend = await stack.enter_async_context(
                make_backend(settings.backends[settings.backend], data_dir)
            )
            boot = uuid4().hex
            recovered = await store.enter(boot, clock())
            ids = IdSource(node=int(boot[:8], 16), last=await store.newest_id())
            window = settings.records.request_id_window
            ops = ImageOps(store, self._bus, ids, clock, request_id_window=window)
            self._board.start_from(await store.totals())
            access = Access(
                tokens,
                self._metrics.refused,
                unix_users=_unix_users(settings.server),
                certificates=bool(settings.server.tls_client_ca),
            )
            throughput = Throughput(time.monotonic)
            live = Live(self._board, throughput, access, queue.depth, clock)
            observers = (self._board.hear, self._metrics.hear, logs.hear, self._count, throughput.hear, live.hear)
            for observer in observers:
                self._bus.subscribe(observer)
            address = await stack.enter_async_context(
                self._listening(ops, queue, tokens, certificates, access, live, data_dir)
            )
            log.info("ready", address=address, data_dir=str(data_dir), backend=settings.backend, recovered=recovered)
            await self._work(store, queue, backend, ops, live, boot)
            await store.leave(boot, clock())
        log.info("stopped")

    async def _work(
        self, store: Store, queue: JobQueue, backend: Backend, ops: ImageOps, live: Live, boot: str
    ) -> None:
        """Works until stopped, then drains: no new jobs, no new claims, what runs ends, the leases last of all."""
        options = self._settings.worker
        retry = RetryPolicy(options.attempts, options.retry_base, options.retry_cap)
        worker = Worker(store, backend, self._bus, retry, clock, owner=boot, slots=options.slots, lease=options.lease)
        self._worker = worker
        intake = Intake(queue, ops, self._bus, clock)
        upkeep = Upkeep(
            store,
            self._bus,
            clock,
            owner=boot,
            lease=options.lease,
            busy=lambda: worker.running > 0,
            freed=worker.look,
        )
        # Each group is cancelled or left before the one around it: a scope's end reaches all that is inside it.
        async with anyio.create_task_group() as leases:
            leases.start_soon(upkeep.run)
            leases.start_soon(live.run)
            async with anyio.create_task_group() as working:
                working.start_soon(worker.run)
                async with anyio.create_task_group() as taking:
                    taking.start_soon(intake.run)
                    if self._exit_when_idle is not None:
                        taking.start_soon(self._stop_when_idle, queue, self._exit_when_idle)
                    self._board.phase = "ready"
                    live.changed()
                    notify(READY=1, STATUS="Ready")
                    await self._stop.wait()
                    self._board.phase = "draining"
                    live.changed()
                    notify(STOPPING=1, STATUS=f"Draining {worker.running} operations")
                    log.info("draining", running=worker.running, timeout_seconds=options.drain_timeout)
                    ops.draining = True
                    taking.cancel_scope.cancel()
                await worker.drain(options.drain_timeout)
            leases.cancel_scope.cancel()

    # ------------------------------------------------------------------------------------------- the doors

    @asynccontextmanager
    async def _listening(
        self,
        ops: ImageOps,
        queue: JobQueue,
        tokens: TokensFile | None,
        certificates: Certificates | None,
        access: Access,
        live: Live,
        data_dir: Path,
    ) -> AsyncIterator[str]:
        """The listeners; yields the TCP one's base URL. They outlive the drain: records can be read to the end."""

        async def refresh() -> None:
            depth = await queue.depth()
            age = clock().timestamp() - depth.oldest.timestamp() if depth.oldest else 0.0
            self._metrics.set_depths(depth.waiting, depth.dead, max(age, 0.0), self._board.pending)

        server = self._settings.server
        pages = [] if tokens else [own_origin_only if server.tls_client_ca else own_pages_only]
        guards = [*pages, access.middleware]
        app = web.Application(middlewares=[envelope, *guards], client_max_size=MAX_BODY)
        app.on_response_prepare.append(harden)
        app.add_routes(StatusApi(self._board, self._metrics, refresh).routes())
        app.add_routes(live.routes())
        app.add_routes(ComputeApi(ops, access).routes())
        runner = runner_of(app)
        await runner.setup()
        endpoint, token = data_dir / ENDPOINT_FILE, data_dir / TOKEN_FILE
        try:
            address = await _open_doors(runner, server, certificates)
            if tokens is not None:
                tokens.admit(issue(token))
            endpoint.write_text(f"{f'unix:{server.unix_socket}' if server.unix_socket else address}\n")
            yield address
        finally:
            endpoint.unlink(missing_ok=True)
            token.unlink(missing_ok=True)
            self._bus.wake_all()
            live.close()
            await runner.cleanup()

    # ---------------------------------------------------------------------------------- ending by itself

    def _count(self, happening: Happening) -> None:
        self._activity.set()
        if isinstance(happening, Change) and isinstance(happening.event, Succeeded | Failed):
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


async def _open_doors(runner: web.AppRunner, server: Server, certificates: Certificates | None) -> str:
    """Listens where the configuration wants it; returns the base URL of the TCP listener."""
    host, port = split_address(server.listen)
    if certificates is None and not is_loopback(host):
        log.warning("tokens travel in clear", listen=server.listen, expected="server.tls_certificate or TLS in front")
    try:
        await TcpDoor(runner, host, port, certificates).start()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise StartError(f"server.listen: cannot listen on {server.listen}: {reason}") from error
    host, port = runner.addresses[0][:2]
    if server.unix_socket:
        try:
            await UnixDoor(runner, Path(server.unix_socket), 0o666 if server.unix_socket_users else 0o600).start()
        except OSError as error:
            reason = error.strerror or str(error)
            raise StartError(f"server.unix_socket: cannot listen on {server.unix_socket}: {reason}") from error
    return f"{'https' if certificates else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def _plug(group: str, name: str, data_dir: Path) -> Any:
    kind = plugins.find(group, name)
    return kind(kind.Options(), data_dir)


def _tokens(file: str) -> TokensFile | None:
    try:
        return TokensFile(Path(file), time.monotonic) if file else None
    except TokensInvalid as error:
        raise StartError("\n  ".join(["server.tokens_file has errors:", *error.problems])) from error


def _certificates(server: Server) -> Certificates | None:
    if not server.tls_certificate:
        return None
    client_ca = Path(server.tls_client_ca) if server.tls_client_ca else None
    try:
        return Certificates(Path(server.tls_certificate), Path(server.tls_private_key), client_ca, time.monotonic)
    except CertificatesInvalid as error:
        raise StartError(str(error)) from error


def _unix_users(server: Server) -> frozenset[int]:
    """Who may use the socket: those who could read the data directory anyway, and those who are named."""
    if not server.unix_socket:
        return frozenset()
    try:
        return user_ids(server.unix_socket_users) | {0, os.geteuid()}
    except ValueError as error:
        raise StartError(f"server.unix_socket_users: {error}") from error


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
