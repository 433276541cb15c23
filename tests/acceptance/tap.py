"""Between a client and the daemon: what goes over the wire is held to the discovery document, which the clients
themselves, with their parsers that forgive, do not do."""

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

from tests.contract.answers import answer_problems
from tests.daemon_process import LIMIT, DaemonProcess

HOP_BY_HOP = frozenset({"connection", "keep-alive", "transfer-encoding"})


class Tap(ThreadingHTTPServer):
    """Passes each request on as it is, and its answer back; one connection each. `answers` counts the good ones."""

    daemon_threads = False  # so that `server_close` waits for all answers

    def __init__(self, daemon: DaemonProcess) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.daemon = daemon
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.answers = 0
        self.problems: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: Tap

    def _pass_on(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        connection = http.client.HTTPConnection(urlsplit(self.server.daemon.url).netloc, timeout=LIMIT)
        try:
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in HOP_BY_HOP:
                    connection.putheader(name, value)
            connection.endheaders(body)
            answer = connection.getresponse()
            content = answer.read()
        finally:
            connection.close()
        if answer.status == HTTPStatus.OK:
            self.server.answers += 1
            found = answer_problems(self.command, self.path, json.loads(content))
            self.server.problems += [f"{self.command} {self.path}: {problem}" for problem in found]
        self.send_response_only(answer.status)
        for name, value in answer.headers.items():
            if name.lower() not in HOP_BY_HOP:
                self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PATCH = do_DELETE = _pass_on

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def tapped(daemon: DaemonProcess) -> Iterator[str]:
    """The address of a tap before the daemon. Fails at the end if any good answer was not what the document says, or if
    there was none."""
    with Tap(daemon) as tap:
        thread = threading.Thread(target=tap.serve_forever)
        thread.start()
        try:
            yield tap.url
        finally:
            tap.shutdown()
            thread.join()
    assert (tap.problems, tap.answers > 0) == ([], True), tap.problems
