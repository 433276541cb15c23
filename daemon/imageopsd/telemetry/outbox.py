"""Spans on their way to the collector: a bounded queue, and a thread that empties it.

The SDK's BatchSpanProcessor drops what has no room without a count that could be read, and wakes every five seconds
to find nothing.
"""

import logging
import threading
from collections import deque
from collections.abc import Callable

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from imageopsd.telemetry.logs import log

CAPACITY = 8192
"""Spans that wait at most; some 2 KB each."""
BATCH = 512
DELAY = 1.0
"""Seconds in which a batch gathers."""
PATIENCE = 2.0
"""Seconds that the end of the daemon may wait for the collector."""

Count = Callable[[str, int], None]
"""Told what became of how many spans: `exported` or `dropped`."""


class Outbox(SpanProcessor):
    """What the collector does not take is dropped and counted; nobody waits for it but `close`."""

    def __init__(
        self,
        exporter: SpanExporter,
        count: Count,
        *,
        capacity: int = CAPACITY,
        delay: float = DELAY,
        patience: float = PATIENCE,
    ) -> None:
        self._exporter = exporter
        self._count = count
        self._capacity = capacity
        self._delay = delay
        self._patience = patience
        self._waiting: deque[ReadableSpan] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self._well = True
        self._complaint = _Complaint()
        self._thread = threading.Thread(target=self._run, name="imageopsd-tracing", daemon=True)
        self._thread.start()

    def on_end(self, span: ReadableSpan) -> None:
        with self._changed:
            if room := not self._closing and len(self._waiting) < self._capacity:
                self._waiting.append(span)
                if len(self._waiting) in (1, BATCH):
                    self._changed.notify()
        if not room:
            self._count("dropped", 1)

    def close(self) -> None:
        """Sends what waits, for as long as there is patience. Blocks."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(self._patience)
        with self._changed:
            left = len(self._waiting)
            self._waiting.clear()
        if left:
            self._count("dropped", left)
        self._exporter.shutdown()  # ends the wait between two tries of an export
        self._complaint.end()

    def _run(self) -> None:
        while batch := self._next():
            self._complaint.text = ""
            try:
                taken = self._exporter.export(batch) is SpanExportResult.SUCCESS
                why = self._complaint.text
            except Exception as error:  # the thread must outlive whatever the exporter trips over
                taken, why = False, str(error)
            self._count("exported" if taken else "dropped", len(batch))
            self._tell(taken, why)

    def _next(self) -> list[ReadableSpan]:
        """The next batch; none when all is sent and no more will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            self._changed.wait_for(lambda: len(self._waiting) >= BATCH or self._closing, self._delay)
            return [self._waiting.popleft() for _ in range(min(BATCH, len(self._waiting)))]

    def _tell(self, taken: bool, why: str) -> None:
        """Once when the collector goes away and once when it is back, not at every batch."""
        if taken and not self._well:
            log.info("traces are exported again")
        elif not taken and self._well:
            log.warning("traces cannot be exported", reason=why)
        self._well = taken


class _Complaint(logging.Filter):
    """What OpenTelemetry first complained of since `text` was emptied, in place of its log lines: it has some for every
    try, and the last one only says that it was the last."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""
        self._logger = logging.getLogger("opentelemetry.exporter.otlp.proto.http.trace_exporter")
        self._logger.addFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        self.text = self.text or record.getMessage()[:300]
        return False

    def end(self) -> None:
        self._logger.removeFilter(self)
