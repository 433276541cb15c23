"""An OpenTelemetry collector that keeps what it is sent: OTLP over HTTP, in protobuf."""

import gzip
import threading
from http.server import BaseHTTPRequestHandler
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.acceptance.loopback import LoopbackServer
from tests.daemon_process import LIMIT


class Span(NamedTuple):
    """As it came; ids in hex, `parent` empty for the first of a trace."""

    name: str
    trace: str
    id: str
    parent: str
    attributes: dict[str, Any]
    resource: dict[str, Any]
    seconds: float


class Collector(LoopbackServer):
    """A server on a port of its own while the block lasts; `headers` are those of the last request."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.raw = b""
        self.headers: dict[str, str] = {}
        self._came = threading.Condition()
        super().__init__(_handler(self))

    def take(self, headers: dict[str, str], body: bytes) -> None:
        with self._came:
            self.headers = headers
            self.raw += body
            self.spans += _spans(ExportTraceServiceRequest.FromString(body))
            self._came.notify_all()

    def wait_for(self, name: str, count: int = 1) -> list[Span]:
        """The spans of that name, once there are so many."""
        with self._came:
            found = self._came.wait_for(lambda: sum(span.name == name for span in self.spans) >= count, LIMIT)
            assert found, f"no {count} spans '{name}' among {[span.name for span in self.spans]}"
            return [span for span in self.spans if span.name == name]


def _spans(request: ExportTraceServiceRequest) -> list[Span]:
    return [
        Span(
            span.name,
            span.trace_id.hex(),
            span.span_id.hex(),
            span.parent_span_id.hex(),
            _plain(span.attributes),
            _plain(group.resource.attributes),
            (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9,
        )
        for group in request.resource_spans
        for scope in group.scope_spans
        for span in scope.spans
    ]


def _plain(attributes: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in attributes}


def _handler(collector: Collector) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            good = self.path == "/v1/traces" and self.headers["Content-Type"] == "application/x-protobuf"
            if good:
                packed = self.headers["Content-Encoding"] == "gzip"
                collector.take(dict(self.headers), gzip.decompress(body) if packed else body)
            self.send_response(200 if good else 400)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    return Handler
