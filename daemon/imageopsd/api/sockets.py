"""Where the HTTP server listens: at the configured address, or on the sockets that systemd opened before us and keeps
open after us, so that a restart refuses no connection."""

import os
import socket
from collections.abc import Sequence

from aiohttp import web

from imageopsd.config.settings import is_loopback, split_address


class CannotListen(Exception):
    """The address is taken or unknown, or what was passed is no socket we may serve."""


async def listen_at(runner: web.BaseRunner, address: str) -> None:
    """`address` is server.listen. Raises CannotListen."""
    host, port = split_address(address)
    try:
        await web.TCPSite(runner, host, port).start()
    except OSError as error:
        raise CannotListen(f"server.listen: cannot listen on {address}: {os.strerror(error.errno or 0)}") from error


async def listen_on(runner: web.BaseRunner, passed: Sequence[socket.socket], *, guarded: bool) -> None:
    """Serves sockets of a socket unit, which take the place of server.listen; the rule of server.listen holds for them
    too: unless `guarded` by tokens, loopback only. Raises CannotListen."""
    for sock in passed:
        if sock.family not in (socket.AF_INET, socket.AF_INET6) or not sock.getsockopt(
            socket.SOL_SOCKET, socket.SO_ACCEPTCONN
        ):
            raise CannotListen("the socket unit: expected ListenStream= with an address and a port")
        host, port = sock.getsockname()[:2]
        if not guarded and not is_loopback(host):
            raise CannotListen(
                f"the socket unit: {host}:{port} can be reached from other machines and there is no server.tokens_file "
                "to tell whom to let in. Expected a tokens file, or a loopback address in ListenStream="
            )
    for sock in passed:
        await web.SockSite(runner, sock).start()
