"""Where the daemon gets archives from in these tests: a real HTTP server that can stop in the middle of an answer."""

import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import NamedTuple
from urllib.parse import urlsplit

from tests.acceptance.loopback import LoopbackServer
from tests.daemon_process import LIMIT


class Gate:
    """Where an answer stops, after `after` bytes of its body, until somebody opens the gate."""

    def __init__(self, after: int) -> None:
        self.after = after
        self._reached = threading.Event()
        self._opened = threading.Event()

    def wait_until_reached(self) -> None:
        assert self._reached.wait(LIMIT), "nobody fetched the source up to its gate"

    def open(self) -> None:
        self._opened.set()

    def pass_through(self) -> None:
        """The server's side."""
        self._reached.set()
        self._opened.wait()


class Served(NamedTuple):
    """One answer. `length` is the Content-Length that is promised, if it is not that of the body. One with an `etag`
    gives ranges of the body, too."""

    body: bytes
    status: int = 200
    content_type: str = "application/gzip"
    length: int | None = None
    gate: Gate | None = None
    etag: str | None = None

    def part(self, wanted: str | None, version: str | None) -> tuple["Served", str | None]:
        """The answer to a Range and its If-Range, and its Content-Range."""
        if self.etag is None or wanted is None or version != self.etag:
            return self, None
        begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
        part = f"bytes {begin}-{len(self.body) - 1}/{len(self.body)}"
        return self._replace(body=self.body[begin:], status=206), part


class SourceServer(LoopbackServer):
    """Serves what `put` gave it; `requests` are the paths that were asked for, `promised` the lengths of the bodies
    that were to be sent."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.promised: list[int] = []
        self._served: dict[str, list[Served]] = {}
        self._gates: list[Gate] = []
        super().__init__(_handler(self))

    def _let_go(self) -> None:
        for gate in self._gates:
            gate.open()

    def put(self, path: str, *served: Served) -> str:
        """From now on these are the answers at `path`, one after the other and the last one for ever; its URL."""
        self._served[f"/{path}"] = list(served)
        self._gates += [answer.gate for answer in served if answer.gate is not None]
        return self.url(path)

    def url(self, path: str) -> str:
        return f"{self.root}/{path}"

    def answer(self, path: str) -> Served:
        self.requests.append(path)
        answers = self._served.get(path, [Served(b"no such thing", 404, "text/plain")])
        return answers.pop(0) if len(answers) > 1 else answers[0]


def _handler(source: SourceServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served = source.answer(urlsplit(self.path).path)
            served, part = served.part(self.headers["Range"], self.headers["If-Range"])
            source.promised.append(len(served.body))
            with suppress(ConnectionError):  # a daemon that was killed takes no more
                self.send_response(served.status)
                self.send_header("Content-Type", served.content_type)
                self.send_header("Content-Length", str(served.length or len(served.body)))
                if served.etag is not None:
                    self.send_header("ETag", served.etag)
                if part is not None:
                    self.send_header("Content-Range", part)
                self.end_headers()
                after = len(served.body) if served.gate is None else served.gate.after
                self.wfile.write(served.body[:after])
                if served.gate is not None:
                    served.gate.pass_through()
                self.wfile.write(served.body[after:])

        def log_message(self, *_: object) -> None:
            pass

    return Handler
