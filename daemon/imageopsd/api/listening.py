"""All that is served, and where: at the configured address, on sockets that were passed to us, on a Unix socket."""

import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from aiohttp import web

from imageopsd.api.access import TokensFile
from imageopsd.api.browsers import harden, own_origin_only, own_pages_only
from imageopsd.api.doors import PassedDoor, TcpDoor, UnixDoor, runner_of
from imageopsd.api.envelope import envelope
from imageopsd.api.peers import user_ids
from imageopsd.api.tls import Certificates, CertificatesInvalid
from imageopsd.config.settings import Server, is_loopback, split_address
from imageopsd.model.access import TokensInvalid
from imageopsd.telemetry.logs import log

T = TypeVar("T")

MAX_BODY = 1024 * 1024
"""Bytes of a request's body; the largest Image anybody would send is a few kilobytes."""


class CannotListen(Exception):
    """The doors cannot be opened as the configuration wants them; trying again will not help."""


class Guards:
    """Who is let in, as read from the files that `server` names. Raises CannotListen with every problem."""

    def __init__(self, server: Server) -> None:
        self.server = server
        problems: list[str] = []
        self.tokens = _read(lambda: _tokens(server.tokens_file), problems)
        self.certificates = _read(lambda: _certificates(server), problems)
        self.unix_users = _read(lambda: _unix_users(server), problems) or frozenset()
        if problems:
            raise CannotListen("\n  ".join(problems))

    @property
    def strangers_are_known(self) -> bool:
        """Nobody from another machine is let in without a token or a certificate."""
        return self.tokens is not None or bool(self.server.tls_client_ca)


@asynccontextmanager
async def listening(
    guards: Guards, guard: object, routes: Sequence[Sequence[web.AbstractRouteDef]], passed: Sequence[socket.socket]
) -> AsyncIterator[str]:
    """Serves `routes` behind the middleware `guard`; yields the TCP listener's base URL. Raises CannotListen."""
    server = guards.server
    pages = [] if guards.tokens else [own_origin_only if server.tls_client_ca else own_pages_only]
    middlewares = [envelope, *pages, guard]
    app = web.Application(middlewares=middlewares, client_max_size=MAX_BODY)  # type: ignore[arg-type]
    app.on_response_prepare.append(harden)
    for some in routes:
        app.add_routes(some)
    runner = runner_of(app)
    await runner.setup()
    try:
        yield await _open_doors(runner, guards, passed)
    finally:
        await runner.cleanup()


async def _open_doors(runner: web.AppRunner, guards: Guards, passed: Sequence[socket.socket]) -> str:
    server, certificates = guards.server, guards.certificates
    host, port = split_address(server.listen)
    if passed:
        for sock in passed:
            _check_passed(sock, guards)
            await PassedDoor(runner, sock, certificates).start()
    else:
        try:
            await TcpDoor(runner, host, port, certificates).start()
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise CannotListen(f"server.listen: cannot listen on {server.listen}: {reason}") from error
    host, port = runner.addresses[0][:2]
    if certificates is None and not is_loopback(host):
        log.warning(
            "tokens travel in clear", listen=f"{host}:{port}", expected="server.tls_certificate, or TLS in front"
        )
    if server.unix_socket:
        try:
            await UnixDoor(runner, Path(server.unix_socket), 0o666 if server.unix_socket_users else 0o600).start()
        except OSError as error:
            reason = error.strerror or str(error)
            raise CannotListen(f"server.unix_socket: cannot listen on {server.unix_socket}: {reason}") from error
    return f"{'https' if certificates else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def _check_passed(sock: socket.socket, guards: Guards) -> None:
    """A socket unit takes the place of server.listen, and its rule holds for it too. Raises CannotListen."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6) or not sock.getsockopt(
        socket.SOL_SOCKET, socket.SO_ACCEPTCONN
    ):
        raise CannotListen("the socket unit: expected ListenStream= with an address and a port")
    host, port = sock.getsockname()[:2]
    if not guards.strangers_are_known and not is_loopback(host):
        raise CannotListen(
            f"the socket unit: {host}:{port} can be reached from other machines and there is no server.tokens_file "
            "to tell whom to let in. Expected a tokens file, or a loopback address in ListenStream="
        )


def _read(make: Callable[[], T], problems: list[str]) -> T | None:
    try:
        return make()
    except CannotListen as error:
        problems.append(str(error))
        return None


def _tokens(file: str) -> TokensFile | None:
    try:
        return TokensFile(Path(file), time.monotonic) if file else None
    except TokensInvalid as error:
        raise CannotListen("\n  ".join(["server.tokens_file has errors:", *error.problems])) from error


def _certificates(server: Server) -> Certificates | None:
    if not server.tls_certificate:
        return None
    client_ca = Path(server.tls_client_ca) if server.tls_client_ca else None
    try:
        return Certificates(Path(server.tls_certificate), Path(server.tls_private_key), client_ca, time.monotonic)
    except CertificatesInvalid as error:
        raise CannotListen(str(error)) from error


def _unix_users(server: Server) -> frozenset[int]:
    """Who may use the socket: those who could read the data directory anyway, and those who are named."""
    if not server.unix_socket:
        return frozenset()
    try:
        return user_ids(server.unix_socket_users) | {0, os.geteuid()}
    except ValueError as error:
        raise CannotListen(f"server.unix_socket_users: {error}") from error
