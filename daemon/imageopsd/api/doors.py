"""The listeners, and what one connection may cost: how many there are, and how long each may take for what.

aiohttp bounds the sizes: a request line or header field of 8190 bytes, 128 fields, bodies of `client_max_size`,
inflated or not.
"""

import asyncio
import errno
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any

from aiohttp import web

from imageopsd.api.tls import Certificates

CONNECTIONS = 512
"""At one time, all listeners together; one more is closed at once. Half of the 1024 files a process usually has."""
HEAD_LIMIT = 75.0
"""Seconds without a whole request head, from the start of a connection and between two requests, after which it is
closed, however slowly bytes trickle in. More than the 60 s for which proxies keep idle connections: they end first."""
HANDSHAKE_LIMIT = 10.0
"""Seconds for a TLS handshake."""
STALL_LIMIT = 30.0
"""Seconds for which a client may take nothing of an answer; then the kernel ends the connection (TCP_USER_TIMEOUT of
tcp(7)). A Unix socket has no such limit; who may use it may do worse."""
LINGER_LIMIT = 5.0
"""Seconds for which the rest of a body that nobody wants is read away, so that the client sees its answer."""
STOP_LIMIT = 1.0
"""Seconds that answers under way have when the listeners close."""


def runner_of(app: web.Application) -> web.AppRunner:
    """A runner with our limits; the doors are its sites."""
    return web.AppRunner(
        app,
        handle_signals=False,
        access_log=None,
        shutdown_timeout=STOP_LIMIT,
        keepalive_timeout=HEAD_LIMIT,
        lingering_time=LINGER_LIMIT,
    )


class _Full(asyncio.Protocol):
    """For the connection that is one too many."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


class Door(web.BaseSite):
    """A listener of `runner`."""

    def _protocol(self) -> asyncio.Protocol:
        server = self._runner.server
        assert server is not None
        return server() if len(server.connections) < CONNECTIONS else _Full()

    async def _serve(self, **where: Any) -> None:
        """Serves a TCP socket, or what is to be opened at a host and port."""
        server = await asyncio.get_running_loop().create_server(
            self._protocol,
            **where,
            ssl=self._ssl_context,
            ssl_handshake_timeout=HANDSHAKE_LIMIT if self._ssl_context else None,
            start_serving=False,
        )
        self._server = server
        for listening in server.sockets:  # connections inherit it
            listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(STALL_LIMIT * 1000))
        await server.start_serving()


class TcpDoor(Door):
    """Raises OSError in `start` if the address cannot be had."""

    def __init__(self, runner: web.AppRunner, host: str, port: int, certificates: Certificates | None = None) -> None:
        super().__init__(runner, ssl_context=certificates.context if certificates else None)
        self._host = host
        self._port = port

    @property
    def name(self) -> str:
        return f"{self._host}:{self._port}"

    async def start(self) -> None:
        await super().start()
        await self._serve(host=self._host, port=self._port)


class PassedDoor(Door):
    """A TCP socket that systemd opened before us and keeps open after us, so that a restart refuses no connection."""

    def __init__(self, runner: web.AppRunner, passed: socket.socket, certificates: Certificates | None = None) -> None:
        super().__init__(runner, ssl_context=certificates.context if certificates else None)
        self._passed = passed

    @property
    def name(self) -> str:
        return "passed:{}:{}".format(*self._passed.getsockname()[:2])

    async def start(self) -> None:
        await super().start()
        await self._serve(sock=self._passed)


class UnixDoor(Door):
    """A socket in the file system; `mode` is that of its file. Who connects is asked for by `peers`. Raises OSError in
    `start` if the path cannot be had; a socket that nobody listens on any more is replaced."""

    def __init__(self, runner: web.AppRunner, path: Path, mode: int) -> None:
        super().__init__(runner)
        self._path = path
        self._mode = mode
        self._made: tuple[int, int] | None = None

    @property
    def name(self) -> str:
        return f"unix:{self._path}"

    async def start(self) -> None:
        await super().start()
        _make_room(self._path)
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as made:
            os.fchmod(made.fileno(), self._mode)  # what bind(2) takes the file's mode from: it is never wider
            made.bind(str(self._path))
            self._made = _identity(self._path)
            self._path.chmod(self._mode)  # bind took the umask off
            self._server = await asyncio.get_running_loop().create_unix_server(self._protocol, sock=made.dup())

    async def stop(self) -> None:
        if self._made is not None and _identity(self._path) == self._made:  # not that of a daemon that came after us
            self._path.unlink()
        await super().stop()


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.lstat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _make_room(path: Path) -> None:
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError(errno.EEXIST, "there is a file that is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            probe.settimeout(1)
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            else:
                raise OSError(errno.EADDRINUSE, "another process listens on it")
