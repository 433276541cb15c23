"""Every metric of the daemon. No identifier is a label; every label pair is there from the first scrape, so that
`rate()` sees the first failure."""

from collections.abc import Iterable
from itertools import product
from math import inf
from typing import TypeVar

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from imageopsd.model.events import (
    Accepted,
    BackendAnswered,
    BackendCrashed,
    BytesReceived,
    Cancelled,
    Change,
    Claimed,
    Deferred,
    Failed,
    Happening,
    Interrupted,
    JobBuried,
    LeaseWasLost,
    Obstacle,
    ObstacleTurned,
    Outcome,
    Postponed,
    StoreTroubled,
    Succeeded,
    Verb,
)
from imageopsd.model.faults import Fault, fault_of
from imageopsd.model.operation import ErrorEntry, Operation
from imageopsd.model.quota import Metric, Reach
from imageopsd.model.time import Time
from imageopsd.telemetry.vitals import Vitals

TYPES = ("insert", "patch", "deprecate", "setLabels", "delete")
OUTCOMES = ("success", "failure", "cancelled")
REASONS = ("INVALID_FIELD_VALUE", "REQUEST_ID_REUSED")
REFUSALS = ("missing", "unknown", "forbidden")
SPANS = ("exported", "dropped")
QUOTAS = tuple(Metric)
OTHER = "other"
"""A provider's own metric, of which there is no end."""
HOURS = (0.1, 0.5, 1, 5, 15, 60, 300, 900, 1800, 3600, 7200, 14400)
"""Bucket bounds in seconds for work that takes from a moment to an afternoon."""
WAITS = (0.005, 0.05, 0.5, 1, 5, 15, 60, 300, 900, 3600)
LAGS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30)
COMMITS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5)

Family = TypeVar("Family", Counter, Gauge, Histogram)


class Metrics:
    """Subscribe `hear` to the bus and expose `registry`."""

    def __init__(self, version: str, backend: str, slots: int) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # `_created` doubles a counter's series (prometheus/client_python#672)
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        build = Gauge("imageopsd_build_info", "Version and backend of this daemon; always 1.", ["version", "backend"],
                      registry=self.registry)  # fmt: skip
        build.labels(version, backend).set(1)
        self._slots = self._gauge("worker_slots", "Operations that can be carried out at once.")
        self._slots.set(slots)
        self._reloaded = self._gauge("config_last_reload_success_timestamp_seconds", "When the configuration in force "
                                     "was read.")  # fmt: skip
        self._finished = self._counter("operations", "Operations that ended.", type=TYPES, outcome=OUTCOMES)
        self._running_now: set[str] = set()
        self._failed = self._counter("operations_failed", "Operations that failed, by who must act.",
                                     fault=tuple(Fault))  # fmt: skip
        self._accepted = self._counter("operations_accepted", "Operations recorded for the first time.", type=TYPES)
        self._retries = self._counter("operation_retries", "Attempts that failed and will be made again.", type=TYPES)
        self._interrupted = self._counter("operations_interrupted", "Attempts given back by a stop.", type=TYPES)
        self._buried = self._counter("jobs_dead_lettered", "Jobs that could not become operations.", reason=REASONS)
        self._received = self._counter("bytes_received", "Bytes that came in from image sources.")
        self._leases_lost = self._counter("leases_lost", "Claims found in other hands.")
        self._crashes = self._counter("backend_crashes", "Errors that no backend may raise; each is a bug.")
        self._calls = self._counter("backend_requests", "Calls of the backend that ended, by what came of them.",
                                    verb=tuple(Verb), outcome=tuple(Outcome))  # fmt: skip
        self._call_duration = self._histogram("backend_request_duration", "From a call of the backend to its end.",
                                              HOURS, verb=tuple(Verb))  # fmt: skip
        self._troubles = self._counter("store_unavailable", "Writes put off: the disk was full or the database locked.")
        self._refused = self._counter("auth_failures", "Requests without a token, with no good one, or above it.",
                                      reason=REFUSALS)  # fmt: skip
        self._duration = self._histogram("operation_duration", "From the first claim to the end.", HOURS, type=TYPES,
                                         outcome=OUTCOMES)  # fmt: skip
        self._wait = self._histogram("queue_wait", "From the record of an operation to its first claim.", WAITS)
        self.commit = self._histogram("journal_write", "One commit of the record store, fsync included.", COMMITS)
        self.lag = self._histogram("event_loop_lag", "How late the event loop was for what was ready, when looked at.",
                                   LAGS)  # fmt: skip
        self._running = self._gauge("operations_running", "Operations a worker has in hand.", type=TYPES)
        self._last_success = self._gauge("last_success_timestamp_seconds", "When an operation last succeeded.",
                                         type=TYPES)  # fmt: skip
        self._queue = self._gauge("queue_jobs", "Jobs by where they wait.", state=("waiting", "dead"))
        self._obstacles = self._gauge("starts_blocked", "1 while that keeps operations from being started.",
                                      reason=tuple(Obstacle))  # fmt: skip
        self._pending = self._gauge("operations_pending", "Operations no worker has taken yet.")
        self._oldest = self._gauge("queue_oldest_job_age_seconds", "Age of the oldest job in the queue; 0 if empty.")

        self._spans = self._counter("trace_spans", "Spans of traces, by whether the collector took them.",
                                    outcome=SPANS)  # fmt: skip
        # no project's name: it would be told to whoever may scrape, and there is no end of them
        self._quota_ratio = self._gauge("quota_used_ratio", "Share of a limit taken, by the project with the highest.",
                                        metric=QUOTAS)  # fmt: skip
        self._quota_usage = self._gauge("quota_usage", "What that project takes, what is reserved included; in units "
                                        "of the metric.", metric=QUOTAS)  # fmt: skip
        self._quota_limit = self._gauge("quota_limit", "The limit of that project; +Inf where nobody has one.",
                                        metric=QUOTAS)  # fmt: skip
        self.set_quota_use(())
        self._quota_refused = self._counter("quota_refusals", "Operations that failed with QUOTA_EXCEEDED.",
                                            metric=(*QUOTAS, OTHER))  # fmt: skip
        self.vitals = Vitals(self._gauge)

    def _counter(self, name: str, text: str, **labels: tuple[str, ...]) -> Counter:
        return _prepared(Counter(f"imageopsd_{name}", text, list(labels), registry=self.registry), labels)

    def _gauge(self, name: str, text: str, **labels: tuple[str, ...]) -> Gauge:
        return _prepared(Gauge(f"imageopsd_{name}", text, list(labels), registry=self.registry), labels)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], **labels: tuple[str, ...]) -> Histogram:
        histogram = Histogram(f"imageopsd_{name}_seconds", text, list(labels), buckets=buckets, registry=self.registry)
        return _prepared(histogram, labels)

    def hear(self, happening: Happening) -> None:
        match happening:
            case Change():
                self._changed(happening)
            case JobBuried(kind=kind):
                self._buried.labels(kind).inc()
            case BytesReceived(size=size):
                self._received.inc(size)
            case BackendAnswered(verb=verb, outcome=outcome, seconds=seconds):
                self._calls.labels(verb, outcome).inc()
                self._call_duration.labels(verb).observe(seconds)
            case LeaseWasLost():
                self._leases_lost.inc()
            case BackendCrashed():
                self._crashes.inc()
            case StoreTroubled():
                self._troubles.inc()
            case ObstacleTurned(obstacle=obstacle, reason=reason):
                self._obstacles.labels(obstacle).set(reason is not None)

    def _changed(self, change: Change) -> None:
        operation, kind = change.operation, change.operation.operation_type
        started = operation.start_time
        match change.event:
            case Accepted():
                self._accepted.labels(kind).inc()
            case Claimed():
                self._running_now.add(operation.id)
                self._running.labels(kind).inc()
                if started == change.at:
                    self._wait.observe((started - operation.insert_time).total_seconds())
            case Deferred():
                self._left(operation)
                self._retries.labels(kind).inc()
            case Postponed():
                self._left(operation)
            case Interrupted():
                self._left(operation)
                self._interrupted.labels(kind).inc()
            case Succeeded():
                self._last_success.labels(kind).set(change.at.timestamp())
                self._ended(change, "success")
            case Failed(errors=errors, http_status=status):
                self._ended(change, "failure")
                self._failed.labels(fault_of(errors[0] if errors else None, status)).inc()
            case Cancelled():
                self._ended(change, "cancelled")

    def _ended(self, change: Change, outcome: str) -> None:
        kind, started = change.operation.operation_type, change.operation.start_time
        self._left(change.operation)
        self._finished.labels(kind, outcome).inc()
        for error in change.operation.error.errors if change.operation.error else ():
            self._count_refusal(error)
        if started is not None:  # a refused job was never claimed
            self._duration.labels(kind, outcome).observe((change.at - started).total_seconds())

    def _left(self, operation: Operation) -> None:
        if operation.id in self._running_now:
            self._running_now.remove(operation.id)
            self._running.labels(operation.operation_type).dec()

    def _count_refusal(self, error: ErrorEntry) -> None:
        for detail in error.error_details:
            if detail.quota_info is not None:
                metric = detail.quota_info.metric_name
                self._quota_refused.labels(metric if metric in QUOTAS else OTHER).inc()

    def set_slots(self, slots: int) -> None:
        self._slots.set(slots)

    def configuration_read(self, at: Time) -> None:
        """The configuration in force is the one read then."""
        self.vitals.set_configured(True)
        self._reloaded.set(at.timestamp())

    def configuration_refused(self) -> None:
        self.vitals.set_configured(False)

    def set_quota_use(self, reached: Iterable[Reach]) -> None:
        """`reached` has the fullest first."""
        fullest: dict[Metric, Reach] = {}
        for reach in reached:
            fullest.setdefault(reach.metric, reach)
        for metric in QUOTAS:
            found = fullest.get(metric)
            self._quota_ratio.labels(metric).set(found.share if found else 0)
            self._quota_usage.labels(metric).set(found.usage if found else 0)
            self._quota_limit.labels(metric).set(found.limit if found else inf)

    def refused(self, reason: str) -> None:
        """`reason` is one of REFUSALS."""
        self._refused.labels(reason).inc()

    def spans(self, outcome: str, count: int) -> None:
        """`outcome` is one of SPANS. May be called in any thread."""
        self._spans.labels(outcome).inc(count)

    def set_depths(self, waiting: int, dead: int, oldest_age: float, pending: int) -> None:
        self._queue.labels("waiting").set(waiting)
        self._queue.labels("dead").set(dead)
        self._oldest.set(oldest_age)
        self._pending.set(pending)


def _prepared(family: Family, labels: dict[str, tuple[str, ...]]) -> Family:
    """The family with every combination of its label values at zero."""
    if labels:
        for combination in product(*labels.values()):
            family.labels(*combination)
    return family
