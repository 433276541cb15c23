"""A span for each operation, made of what the engine tells and the record has; see `daemon/decisions/0009-tracing.md`.

Needs the extra `tracing`, so only `daemon.py` imports it, and only when a collector is configured. Attributes hold
names and codes, never a message or a source: those may quote what a customer would not show.
"""

import logging
from collections.abc import Callable

import msgspec
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator, RandomIdGenerator
from opentelemetry.sdk.trace.sampling import DEFAULT_ON
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.propagation import set_span_in_context

from imageopsd.model.events import (
    BackendAnswered,
    Cancelled,
    Change,
    Claimed,
    Deferred,
    Failed,
    Happening,
    Interrupted,
    LeaseWasLost,
    Postponed,
    Succeeded,
)
from imageopsd.model.names import operation_id_of
from imageopsd.model.time import Time
from imageopsd.model.trace import span_id, submitter, trace_id
from imageopsd.telemetry.outbox import Count, Outbox

Attributes = dict[str, str | int | bool]


def exporting(endpoint: str, count: Count) -> Outbox:
    """Sends spans to the OTLP/HTTP collector whose base URL is `endpoint`. Headers, certificates and time-outs are the
    exporter's, from the environment (OTEL_EXPORTER_OTLP_HEADERS …)."""
    logging.getLogger("opentelemetry.util.re").addFilter(_without_its_text)
    return Outbox(OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces"), count)


def _without_its_text(record: logging.LogRecord) -> bool:
    """OpenTelemetry quotes headers that it cannot read, and those may be what lets us in."""
    record.msg, record.args = "OTEL_EXPORTER_OTLP_HEADERS: Expected name=value, with commas between several", ()
    return True


class _Ids(IdGenerator):
    """Random ones, but for the next span if it was given its own."""

    def __init__(self) -> None:
        self._random = RandomIdGenerator()
        self.trace = self.span = 0

    def generate_trace_id(self) -> int:
        trace, self.trace = self.trace, 0
        return trace or self._random.generate_trace_id()

    def generate_span_id(self) -> int:
        span, self.span = self.span, 0
        return span or self._random.generate_span_id()


class _Attempt(msgspec.Struct):
    """One that runs now: its number, when it was claimed, its place in the trace. `waited_since` is for how long it had
    to wait for another image, if it had, and `resumed` that another process began the operation."""

    number: int
    began: Time
    operation: SpanContext
    context: SpanContext
    waited_since: Time | None
    resumed: bool


class Tracing:
    """Subscribe `hear` to the bus. What it keeps is about operations that this process has in hand; all else it finds
    in the record, so that any later process ends the span that an earlier one began."""

    def __init__(self, processor: SpanProcessor, clock: Callable[[], Time], *, version: str, boot: str) -> None:
        resource = Resource.create(
            {"service.name": "imageopsd", "service.version": version, "service.instance.id": boot}
        )
        self._ids = _Ids()
        # a parent's word on sampling counts; OTEL_TRACES_SAMPLER could part an operation from its own children
        provider = TracerProvider(sampler=DEFAULT_ON, resource=resource, shutdown_on_exit=False, id_generator=self._ids)
        provider.add_span_processor(processor)
        self._tracer = provider.get_tracer("imageopsd", version)
        self._clock = clock
        self._attempts: dict[str, _Attempt] = {}
        self._waits: dict[str, tuple[Time, str]] = {}

    def hear(self, happening: Happening) -> None:
        match happening:
            case Change():
                self._changed(happening)
            case BackendAnswered(operation_id=operation_id):
                if attempt := self._attempts.get(operation_id):
                    self._called(attempt, happening)
            case LeaseWasLost(operation_name=name):
                self._attempted(str(operation_id_of(name)), self._clock(), "lease_lost")

    def _changed(self, change: Change) -> None:
        number, at = change.operation.id, change.at
        match change.event:
            case Claimed(attempt=attempt):
                self._claimed(change, attempt)
            case Deferred(failure=failure):
                self._attempted(number, at, failure.code)
                self._waits[number] = (at, "retry")
            case Interrupted():
                self._attempted(number, at, interrupted=True)
                self._waits[number] = (at, "interruption")
            case Postponed():  # no attempt: it comes back every second until it can begin
                postponed = self._attempts.pop(number, None)
                self._waits[number] = ((postponed and postponed.waited_since) or at, "image")
            case Succeeded():
                self._attempted(number, at)
                self._span("publish", _operation_context(change), at, self._clock())
                self._ended(change)
            case Failed() | Cancelled():
                error = change.operation.error
                code = error.errors[0].code if error else "INTERNAL_ERROR"
                self._attempted(number, at, code)
                self._ended(change, code)

    def _claimed(self, change: Change, number: int) -> None:
        operation, context = change.operation, _operation_context(change)
        waited = self._waits.pop(operation.id, None)
        first = operation.start_time == change.at
        if waited is None and first:
            waited = (operation.insert_time, "queue")
        for_image = waited is not None and waited[1] == "image"
        if waited is not None and not for_image:
            self._span("wait", context, waited[0], change.at, {"imageopsd.wait.reason": waited[1]})
        self._attempts[operation.id] = _Attempt(
            number=number,
            began=change.at,
            operation=context,
            context=SpanContext(
                context.trace_id, self._ids.generate_span_id(), is_remote=False, trace_flags=context.trace_flags
            ),
            waited_since=waited[0] if waited is not None and for_image else None,
            resumed=waited is None and not first,
        )

    def _attempted(self, number: str, at: Time, error: str | None = None, *, interrupted: bool = False) -> None:
        """An attempt has ended, if there was one: what was refused or cancelled in time was never tried."""
        self._waits.pop(number, None)
        attempt = self._attempts.pop(number, None)
        if attempt is None:
            return
        if attempt.waited_since is not None:
            reason: Attributes = {"imageopsd.wait.reason": "image"}
            self._span("wait", attempt.operation, attempt.waited_since, attempt.began, reason)
        attributes: Attributes = {"imageopsd.attempt": attempt.number}
        if attempt.resumed:
            attributes["imageopsd.attempt.resumed"] = True
        if interrupted:
            attributes["imageopsd.attempt.interrupted"] = True
        self._ids.span = attempt.context.span_id
        self._span("attempt", attempt.operation, attempt.began, at, attributes, error)

    def _called(self, attempt: _Attempt, call: BackendAnswered) -> None:
        if call.began and call.ended:
            self._span(f"backend.{call.verb}", attempt.context, call.began, call.ended, {}, call.error)

    def _ended(self, change: Change, error: str | None = None) -> None:
        """The one span of the operation. Its end is known only after the commit that it tells of."""
        operation = change.operation
        _, _, place = operation.target_link.partition("/global/")
        collection, _, target = place.partition("/")
        attributes: Attributes = {
            "imageopsd.project": change.project,
            "imageopsd.operation.name": operation.name,
            "imageopsd.operation.type": operation.operation_type,
            "imageopsd.target": target,
        }
        if operation.client_operation_id is not None:
            attributes["imageopsd.request_id"] = operation.client_operation_id
        own, above = _operation_context(change), _submitter_context(change)
        self._ids.span = own.span_id
        if above is None:
            self._ids.trace = own.trace_id
        self._span(
            f"{collection}.{operation.operation_type}",
            above,
            operation.insert_time,
            max(self._clock(), change.at),
            attributes,
            error,
            SpanKind.CONSUMER,
        )

    def _span(
        self,
        name: str,
        parent: SpanContext | None,
        began: Time,
        ended: Time,
        attributes: Attributes | None = None,
        error: str | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
    ) -> None:
        """A whole span. `error` is a code."""
        context = set_span_in_context(NonRecordingSpan(parent), Context()) if parent else Context()
        span = self._tracer.start_span(name, context, kind, attributes, start_time=_nanoseconds(began))
        if error is not None:
            span.set_attribute("error.type", error)
            span.set_status(Status(StatusCode.ERROR, error))
        span.end(_nanoseconds(max(ended, began)))


def _submitter_context(change: Change) -> SpanContext | None:
    if change.traceparent is None:
        return None
    trace, parent, flags = submitter(change.traceparent)
    return SpanContext(trace, parent, is_remote=True, trace_flags=TraceFlags(flags))


def _operation_context(change: Change) -> SpanContext:
    """The same in every process: the operation's own span, which ends last."""
    above = _submitter_context(change)
    flags = above.trace_flags if above else TraceFlags(TraceFlags.SAMPLED)
    trace = int(trace_id(change.operation, change.traceparent), 16)
    return SpanContext(trace, span_id(change.operation), is_remote=False, trace_flags=flags)


def _nanoseconds(time: Time) -> int:
    """Of the Unix clock; records have milliseconds."""
    return round(time.timestamp() * 1000) * 1_000_000
