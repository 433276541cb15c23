"""Operations as spans: what a real engine tells, in memory; and the way to a collector that is slow, full or away."""

import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from tests.engine.conftest import Clock, Engine, HandBackend

from imageopsd.model.access import LOCAL
from imageopsd.model.errors import PermanentFailure, TemporaryFailure
from imageopsd.model.events import Cancelled, Deferred, Interrupted, Postponed, Reason
from imageopsd.model.image import Image, RawDisk
from imageopsd.model.operation import Operation
from imageopsd.model.requests import InsertImage
from imageopsd.storage.sqlite.store import SqliteStore
from imageopsd.telemetry import logs
from imageopsd.telemetry.outbox import Outbox
from imageopsd.telemetry.tracing import Tracing

TRACE, PARENT = 0x0AF7651916CD43DD8448EB211C80319C, 0xB7AD6B7169203331
SUBMITTER = f"00-{TRACE:032x}-{PARENT:016x}-01"
SECRET_SOURCE = "https://user:secret@images.example/path/disk.tar.gz?signature=secret"


class Traced:
    """An engine with a tracer beside it. `another_life` is what a new process is to the store and the collector."""

    def __init__(self, store: SqliteStore) -> None:
        self.exporter = InMemorySpanExporter()
        self.clock = Clock()
        self.store = store
        self.backends: list[HandBackend] = []
        self.another_life()

    def another_life(self) -> None:
        self.backend = HandBackend()
        self.backends.append(self.backend)
        self.engine = Engine(self.store, self.backend, self.clock)
        self.tracing = Tracing(SimpleSpanProcessor(self.exporter), self.clock, version="1.0", boot="b")
        self.engine.bus.subscribe(self.tracing.hear)

    async def insert(self, traceparent: str | None = SUBMITTER, **more: Any) -> Operation:
        image = Image(name="i", raw_disk=RawDisk(source=SECRET_SOURCE))
        request = InsertImage(project="p", image=image, traceparent=traceparent, **more)
        operation: Operation = await self.engine.ops.submit(request, by=LOCAL)
        return operation

    async def heard(self, event: type) -> None:
        await self.engine.until(lambda happened: any(isinstance(getattr(one, "event", 0), event) for one in happened))

    @property
    def spans(self) -> list[ReadableSpan]:
        """By when they began, the operation's first."""
        return sorted(
            self.exporter.get_finished_spans(), key=lambda span: (span.start_time, span.name != "images.insert")
        )

    def span(self, name: str) -> ReadableSpan:
        [span] = [span for span in self.spans if span.name == name]
        return span

    def seconds(self) -> list[tuple[str, float, float]]:
        """Name, begin and end of all spans, counted from the beginning of the first."""
        zero = self.spans[0].start_time
        return [(one.name, (one.start_time - zero) / 1e9, (one.end_time - zero) / 1e9) for one in self.spans]


@pytest.fixture
async def traced(tmp_path: Path) -> Any:
    async with SqliteStore(SqliteStore.Options(), tmp_path) as store:
        traced = Traced(store)
        yield traced
    for backend in traced.backends:
        backend.close()


def family(span: ReadableSpan) -> tuple[int, int | None]:
    """Its trace and its parent's id."""
    return span.context.trace_id, span.parent and span.parent.span_id


async def test_an_operation_is_a_span_of_its_submitters_trace_with_its_phases_below_it(traced: Traced) -> None:
    operation = await traced.insert(request_id="11111111-2222-3333-4444-555555555555")
    traced.clock.advance(3)
    async with traced.engine.working():
        call = await traced.backend.next_call()
        traced.clock.advance(5)
        call.succeed()
        await traced.engine.done(operation)

    whole, attempt = traced.span("images.insert"), traced.span("attempt")
    below = whole.context.span_id
    assert [family(span) for span in (whole, traced.span("wait"), attempt, traced.span("publish"))] == [
        (TRACE, PARENT),
        (TRACE, below),
        (TRACE, below),
        (TRACE, below),
    ]
    assert family(traced.span("backend.insert_image")) == (TRACE, attempt.context.span_id)
    assert sorted(traced.seconds()) == [
        ("attempt", 3, 8),
        ("backend.insert_image", 3, 8),
        ("images.insert", 0, 8),
        ("publish", 8, 8),
        ("wait", 0, 3),
    ]
    assert {span.status.status_code for span in traced.spans} == {StatusCode.UNSET}
    assert whole.kind is SpanKind.CONSUMER
    assert whole.parent is not None
    assert whole.parent.is_remote
    assert dict(whole.attributes) == {
        "imageopsd.project": "p",
        "imageopsd.operation.name": operation.name,
        "imageopsd.operation.type": "insert",
        "imageopsd.target": "i",
        "imageopsd.request_id": "11111111-2222-3333-4444-555555555555",
    }
    assert dict(traced.span("wait").attributes) == {"imageopsd.wait.reason": "queue"}
    assert dict(attempt.attributes) == {"imageopsd.attempt": 1}
    resource = whole.resource.attributes
    assert [resource[f"service.{name}"] for name in ("name", "version", "instance.id")] == ["imageopsd", "1.0", "b"]


async def test_every_failed_attempt_is_a_span_with_the_code_of_its_failure_and_no_word_of_its_message(
    traced: Traced,
) -> None:
    operation = await traced.insert()
    async with traced.engine.working() as worker:
        (await traced.backend.next_call()).fail(TemporaryFailure("SOURCE_UNAVAILABLE", f"{SECRET_SOURCE} said 503"))
        await traced.heard(Deferred)
        traced.clock.advance(100)
        worker.look()
        (await traced.backend.next_call()).fail(PermanentFailure("BAD_ARCHIVE", f"{SECRET_SOURCE} is bad", 400))
        await traced.engine.done(operation)

    attempts = [span for span in traced.spans if span.name == "attempt"]
    told = [(span.attributes["imageopsd.attempt"], span.attributes["error.type"]) for span in attempts]
    assert told == [(1, "SOURCE_UNAVAILABLE"), (2, "BAD_ARCHIVE")]
    waits = [span.attributes["imageopsd.wait.reason"] for span in traced.spans if span.name == "wait"]
    assert waits == ["queue", "retry"]
    whole = traced.span("images.insert")
    assert (whole.status.status_code, whole.status.description) == (StatusCode.ERROR, "BAD_ARCHIVE")
    assert whole.attributes["error.type"] == "BAD_ARCHIVE"
    everything = "".join(span.to_json() for span in traced.spans)
    assert "secret" not in everything
    assert "images.example" not in everything


@pytest.mark.parametrize("traceparent", [SUBMITTER, None])
async def test_an_operation_that_a_dead_process_began_ends_as_the_same_span(
    traced: Traced, traceparent: str | None
) -> None:
    operation = await traced.insert(traceparent)
    traced.clock.advance(1)
    now = traced.clock()
    await traced.store.enter("first", now)
    async with traced.engine.working():
        await traced.backend.next_call()
        traced.engine.bus._observers.clear()  # nobody hears of it any more: it was killed

    first = traced.spans
    traced.another_life()
    traced.clock.advance(10)
    async with traced.engine.working():
        (await traced.backend.next_call()).succeed()
        await traced.engine.done(operation)

    assert [span.name for span in first] == ["wait"]
    whole, attempt = traced.span("images.insert"), traced.span("attempt")
    assert [family(span) for span in (first[0], attempt)] == [(whole.context.trace_id, whole.context.span_id)] * 2
    assert family(whole) == ((TRACE, PARENT) if traceparent else (whole.context.trace_id, None))
    assert dict(attempt.attributes) == {"imageopsd.attempt": 1, "imageopsd.attempt.resumed": True}
    assert [one for one in traced.seconds() if one[0] != "backend.insert_image"] == [
        ("images.insert", 0, 11),
        ("wait", 0, 1),
        ("attempt", 11, 11),
        ("publish", 11, 11),
    ]


async def test_two_operations_without_a_submitters_trace_have_each_their_own(traced: Traced) -> None:
    async with traced.engine.working():
        for name in ("a", "b"):
            operation = await traced.engine.insert(name)
            (await traced.backend.next_call()).succeed()
            await traced.engine.done(operation)
    traces = [span.context.trace_id for span in traced.spans if span.name == "images.insert"]
    assert len(set(traces)) == 2
    assert 0 not in traces


async def test_a_submitter_that_does_not_sample_gets_no_span(traced: Traced) -> None:
    operation = await traced.insert(SUBMITTER[:-2] + "00")
    async with traced.engine.working():
        (await traced.backend.next_call()).succeed()
        await traced.engine.done(operation)
    assert traced.spans == []


async def test_a_cancelled_operation_that_an_earlier_process_accepted_ends_in_its_trace(traced: Traced) -> None:
    operation = await traced.insert()
    traced.another_life()
    await traced.engine.ops.cancel("p", operation.name, Cancelled(Reason.USER, by="test"))
    [whole] = traced.spans
    assert (whole.name, *family(whole)) == ("images.insert", TRACE, PARENT)
    assert whole.attributes["error.type"] == "CANCELLED"


async def test_an_interrupted_attempt_says_so_and_is_no_error(traced: Traced) -> None:
    await traced.insert()
    async with traced.engine.working():
        await traced.backend.next_call()
    await traced.heard(Interrupted)
    attempt = traced.span("attempt")
    assert dict(attempt.attributes) == {"imageopsd.attempt": 1, "imageopsd.attempt.interrupted": True}
    assert attempt.status.status_code is StatusCode.UNSET


async def test_waiting_for_another_image_is_one_span_however_often_it_was_looked_at(traced: Traced) -> None:
    source = await traced.engine.insert("source")
    async with traced.engine.working() as worker:
        making = await traced.backend.next_call()
        copy = await traced.engine.copy("copy", "global/images/source")
        for looked in range(1, 4):
            await traced.engine.until(
                lambda happened, looked=looked: (
                    sum(isinstance(getattr(one, "event", 0), Postponed) for one in happened) == looked
                )
            )
            if looked < 3:
                traced.clock.advance(2)
                worker.look()
        making.succeed()
        await traced.engine.done(source)
        traced.clock.advance(2)
        worker.look()
        (await traced.backend.next_call()).succeed()
        await traced.engine.done(copy)

    waits = [span for span in traced.spans if span.name == "wait"]
    told = [(span.attributes["imageopsd.wait.reason"], (span.end_time - span.start_time) / 1e9) for span in waits]
    assert sorted(told) == [("image", 6), ("queue", 0), ("queue", 0)]
    assert [span.attributes["imageopsd.attempt"] for span in traced.spans if span.name == "attempt"] == [1, 1]


async def test_nothing_is_kept_of_an_operation_that_has_ended(traced: Traced) -> None:
    operation = await traced.insert()
    async with traced.engine.working() as worker:
        (await traced.backend.next_call()).fail(TemporaryFailure("X", "x"))
        await traced.heard(Deferred)
        assert traced.tracing._waits.keys() == {operation.id}
        traced.clock.advance(100)
        worker.look()
        (await traced.backend.next_call()).succeed()
        await traced.engine.done(operation)
    assert (traced.tracing._attempts, traced.tracing._waits) == ({}, {})


@pytest.mark.parametrize(
    ("traceparent", "traced_here", "known"), [(SUBMITTER, False, True), (None, True, True), (None, False, False)]
)
async def test_the_log_names_the_trace(
    traced: Traced, capsys: pytest.CaptureFixture[str], traceparent: str | None, traced_here: bool, known: bool
) -> None:
    handlers, level = logging.getLogger().handlers, logging.getLogger().level
    logs.configure("json", "info", "1.0")
    try:
        traced.engine.bus.subscribe(lambda happening: logs.hear(happening, traced=traced_here))
        operation = await traced.insert(traceparent)
        await traced.engine.ops.cancel("p", operation.name, Cancelled(Reason.USER, by="test"))
    finally:
        logging.getLogger().handlers, logging.getLogger().level = handlers, level
    lines = capsys.readouterr().out.splitlines()
    trace_id = f'"trace_id": "{traced.span("images.insert").context.trace_id:032x}"'
    assert [trace_id in line for line in lines] == [known, known]


# ------------------------------------------------------------------------------------------ the way there


class Collector(SpanExporter):
    """Takes a batch when the test lets it."""

    def __init__(self, *answers: SpanExportResult | Exception) -> None:
        self.answers = list(answers)
        self.busy = threading.Event()
        self.free = threading.Event()
        self.down = threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.busy.set()
        assert self.free.wait(60)
        answer = self.answers.pop(0) if self.answers else SpanExportResult.SUCCESS
        if isinstance(answer, Exception):
            raise answer
        return answer

    def shutdown(self) -> None:
        self.down.set()
        self.free.set()


class Tally:
    def __init__(self) -> None:
        self.counts = {"exported": 0, "dropped": 0}
        self._changed = threading.Condition()

    def __call__(self, outcome: str, count: int) -> None:
        with self._changed:
            self.counts[outcome] += count
            self._changed.notify_all()

    def until(self, **counts: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: counts.items() <= self.counts.items(), 60), self.counts


@pytest.fixture
def tracer() -> Iterator[Any]:
    provider = TracerProvider(shutdown_on_exit=False)
    yield provider
    provider.shutdown()


def test_spans_without_room_are_dropped_and_counted_and_nobody_waits(tracer: TracerProvider) -> None:
    collector, tally = Collector(), Tally()
    outbox = Outbox(collector, tally, capacity=5, delay=0)
    tracer.add_span_processor(outbox)
    make = tracer.get_tracer("test").start_span
    make("first").end()
    assert collector.busy.wait(60)
    for _ in range(8):  # the collector holds the first and takes no more
        make("more").end()
    tally.until(dropped=3)
    collector.free.set()
    tally.until(exported=6)
    outbox.close()
    assert tally.counts == {"exported": 6, "dropped": 3}


def test_what_waits_is_sent_at_the_end_and_what_comes_later_is_dropped(tracer: TracerProvider) -> None:
    collector, tally = Collector(), Tally()
    collector.free.set()
    outbox = Outbox(collector, tally)
    tracer.add_span_processor(outbox)
    make = tracer.get_tracer("test").start_span
    for _ in range(700):
        make("span").end()
    outbox.close()
    assert tally.counts == {"exported": 700, "dropped": 0}
    assert collector.down.is_set()
    make("late").end()
    assert tally.counts == {"exported": 700, "dropped": 1}


def test_the_end_does_not_wait_for_a_collector_that_does_not_answer(tracer: TracerProvider) -> None:
    collector, tally = Collector(SpanExportResult.FAILURE), Tally()
    outbox = Outbox(collector, tally, delay=0, patience=0.01)
    tracer.add_span_processor(outbox)
    make = tracer.get_tracer("test").start_span
    make("held").end()
    assert collector.busy.wait(60)
    make("waiting").end()
    outbox.close()
    tally.until(dropped=2)


def test_a_collector_that_is_away_is_told_of_once_and_so_is_its_return(
    tracer: TracerProvider, capsys: pytest.CaptureFixture[str]
) -> None:
    failure = SpanExportResult.FAILURE
    collector, tally = Collector(failure, RuntimeError("oops"), failure, SpanExportResult.SUCCESS), Tally()
    collector.free.set()
    handlers, level = logging.getLogger().handlers, logging.getLogger().level
    logs.configure("json", "info", "1.0")
    try:
        outbox = Outbox(collector, tally, delay=0)
        tracer.add_span_processor(outbox)
        for dropped in (1, 2, 3):
            tracer.get_tracer("test").start_span("span").end()
            tally.until(dropped=dropped)
        tracer.get_tracer("test").start_span("span").end()
        tally.until(exported=1)
        outbox.close()
    finally:
        logging.getLogger().handlers, logging.getLogger().level = handlers, level
    lines = capsys.readouterr().out.splitlines()
    assert ["cannot be exported" in lines[0], "exported again" in lines[1]] == [True, True]
    assert len(lines) == 2
