"""The source of the demonstration: one archive over HTTP on the loopback, as slow as a good network."""

import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

BYTES_PER_SECOND = 16 * 1024**2
"""Fast enough to end soon, slow enough to watch the progress move."""

CHUNK = 256 * 1024


@contextmanager
def serving(archive: Path) -> Iterator[str]:
    """Serves the archive at the URL it yields."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/gzip")
            self.send_header("Content-Length", str(archive.stat().st_size))
            self.end_headers()
            with archive.open("rb") as file:
                while chunk := file.read(CHUNK):
                    self.wfile.write(chunk)
                    time.sleep(len(chunk) / BYTES_PER_SECOND)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        def handle_error(self, request: Any, client_address: Any) -> None:
            if not isinstance(sys.exception(), OSError):  # a daemon that was stopped has hung up
                super().handle_error(request, client_address)

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/{archive.name}"
        finally:
            server.shutdown()
            thread.join()
