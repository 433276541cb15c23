"""HTTP over a Unix socket, for commands on the daemon's own host."""

import http.client
import socket
import urllib.request
from typing import Any

SCHEME = "unix:"
"""What a server's address begins with that is a socket's path."""


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class UnixHandler(urllib.request.HTTPHandler):
    """Sends every http request to one socket."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        def connection(host: str, timeout: float, **others: Any) -> _Connection:
            return _Connection(self._path, timeout)

        return self.do_open(connection, req)  # type: ignore[arg-type]  # typeshed wants the class it comes from
