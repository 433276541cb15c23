"""A test's own HTTP server, in threads of the test's process."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self


class LoopbackServer:
    """Serves on a port of its own while the block lasts; leaving it waits for all answers."""

    def __init__(self, handler: type[BaseHTTPRequestHandler]) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = False  # so that `server_close` waits for all answers
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.root = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._let_go()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _let_go(self) -> None:
        """Whatever answers wait for comes to pass now."""
