"""What the observers make of the engine's events."""

import json
import os
import re
import socket
import subprocess
import sys
from datetime import UTC, timedelta
from pathlib import Path

import pytest
from msgspec.structs import replace
from prometheus_client.openmetrics.exposition import generate_latest as openmetrics

from imageopsd.model.access import PermissionDenied, Unauthenticated
from imageopsd.model.errors import RequestError, StoreFull
from imageopsd.model.events import (
    Accepted,
    BackendCrashed,
    BytesReceived,
    Change,
    Claimed,
    Deferred,
    Event,
    Failed,
    Happening,
    Interrupted,
    JobBuried,
    LeaseWasLost,
    Postponed,
    Progressed,
    StoreTroubled,
    Succeeded,
)
from imageopsd.model.lifecycle import apply
from imageopsd.model.operation import ErrorEntry, Operation, Status
from imageopsd.model.time import Time
from imageopsd.ports import Totals
from imageopsd.telemetry.board import Board
from imageopsd.telemetry.metrics import REJECTIONS, Metrics
from imageopsd.telemetry.systemd import notify

NOW = Time(2026, 11, 20, 12, tzinfo=UTC)
ENTRY = ErrorEntry(code="SOURCE_UNAVAILABLE", message="The source answered 503.")
LINK = "https://www.googleapis.com/compute/v1/projects/p/global"


def history(number: int, *events: Event, kind: str = "insert") -> list[Happening]:
    """What is published about one operation, a second apart."""
    operation = Operation(
        id=str(number),
        name=f"operation-{number}",
        operation_type=kind,
        status=Status.PENDING,
        progress=0,
        insert_time=NOW,
        target_link=f"{LINK}/images/i-{number}",
        self_link=f"{LINK}/operations/operation-{number}",
    )
    changes: list[Happening] = [Change(Accepted(), operation, "p", NOW)]
    for second, event in enumerate(events, start=1):
        at = NOW + timedelta(seconds=second)
        operation = apply(operation, event, at)
        changes.append(Change(event, operation, "p", at))
    return changes


DEFERRED = Deferred(1, 5, ENTRY, NOW + timedelta(seconds=9))
SUCCESS = history(1, Claimed(), Progressed(50, "half"), Succeeded())
RETRIED = history(2, Claimed(), DEFERRED, Claimed(), Failed((ENTRY,), 503))
STOPPED = history(3, Claimed(), Interrupted("shutdown"), kind="patch")
RUNNING = history(4, Claimed(), Progressed(7, "importing"))


def test_metrics_count_each_operation_once() -> None:
    metrics = Metrics("1.0", "local", 4)
    for happening in (*SUCCESS, *RETRIED, *STOPPED, *RUNNING, BytesReceived(10), LeaseWasLost("x")):
        metrics.hear(happening)
    metrics.hear(JobBuried("j", "INVALID_FIELD_VALUE", "why"))
    metrics.hear(StoreTroubled("claiming", StoreFull("full")))

    def value(name: str, **labels: str) -> float | None:
        return metrics.registry.get_sample_value(f"imageopsd_{name}", labels)

    assert value("operations_accepted_total", type="insert") == 3
    assert value("operations_total", type="insert", outcome="success") == 1
    assert value("operations_total", type="insert", outcome="failure") == 1
    assert value("operations_total", type="patch", outcome="failure") == 0
    assert value("operation_retries_total", reason="source") == 1
    assert value("operations_interrupted_total", type="patch") == 1
    assert value("operations_running", type="insert") == 1
    assert value("operations_running", type="patch") == 0
    assert value("operation_duration_seconds_sum", type="insert", outcome="success") == 2
    assert value("operation_duration_seconds_sum", type="insert", outcome="failure") == 3
    assert value("queue_wait_seconds_count") == 4
    assert value("bytes_received_total") == 10
    assert value("leases_lost_total") == 1
    assert value("jobs_dead_lettered_total", reason="INVALID_FIELD_VALUE") == 1
    assert value("store_unavailable_total") == 1


def test_no_metric_has_an_identifier_for_a_label_and_all_pairs_are_there_before_the_first_event() -> None:
    metrics = Metrics("1.0", "local", 4)

    def pairs() -> set[tuple[str, tuple[tuple[str, str], ...]]]:
        return {
            (sample.name, tuple(sorted(sample.labels.items())))
            for family in metrics.registry.collect()
            for sample in family.samples
        }

    before = pairs()
    for happening in (*SUCCESS, *RETRIED, *STOPPED):
        metrics.hear(happening)
    for kind in ("INVALID_FIELD_VALUE", "REQUEST_ID_REUSED"):
        metrics.hear(JobBuried("j", kind, "why"))
    assert pairs() == before


def test_the_board_shows_what_runs_and_what_failed() -> None:
    board = Board("1.0", "local", 4, NOW)
    board.start_from(Totals(pending=1, running=1, succeeded=10, failed=5))
    for happening in (*SUCCESS, *RETRIED, *STOPPED, *RUNNING, JobBuried("j", "X", "why")):
        board.hear(happening)
    shown = board.snapshot()
    assert shown["operations"] == {"pending": 3, "running": 1, "succeeded": 11, "failed": 6}
    assert shown["running"] == [
        {
            "project": "p",
            "name": "operation-4",
            "operationType": "insert",
            "target": "i-4",
            "progress": 7,
            "statusMessage": "importing",
            "startTime": "2026-11-20T12:00:01+00:00",
        }
    ]
    assert [failure["code"] for failure in shown["recentFailures"]] == ["SOURCE_UNAVAILABLE"]
    assert shown["recentDeadLetters"] == [{"job": "j", "reason": "why"}]


def test_a_refused_job_is_a_failure_on_the_board_and_was_never_pending() -> None:
    board = Board("1.0", "local", 4, NOW)
    (accepted,) = history(5)
    assert isinstance(accepted, Change)
    failed = apply(accepted.operation, Failed((ENTRY,), 409), NOW)
    board.hear(Change(Failed((ENTRY,), 409), failed, "p", NOW))
    assert board.snapshot()["operations"] == {"pending": 0, "running": 0, "succeeded": 0, "failed": 1}


PROGRAM = """
import sys
from imageopsd.telemetry import logs
from imageopsd.model.events import BackendCrashed
from tests.telemetry.test_observers import RETRIED, SUCCESS
logs.configure(sys.argv[1], "debug", "1.0")
for happening in (*SUCCESS, *RETRIED):
    logs.hear(happening)
try:
    customer_key = "planted-secret"
    raise ZeroDivisionError("inner")
except ZeroDivisionError as error:
    logs.hear(BackendCrashed("operation-1", error))
import logging
logging.getLogger("aiohttp.server").error("from a library")
"""


def logged(form: str) -> str:
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, form], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == ""
    return done.stdout


def test_every_line_of_the_log_is_one_json_object_about_one_event() -> None:
    output = logged("json")
    lines = [json.loads(line) for line in output.splitlines()]
    assert [line["event"] for line in lines] == [
        "operation accepted",
        "operation started",
        "operation progressed",
        "operation succeeded",
        "operation accepted",
        "operation started",
        "operation deferred",
        "operation started",
        "operation failed",
        "backend crashed",
        "from a library",
    ]
    assert all({"timestamp", "level", "logger", "version"} <= line.keys() for line in lines)
    failed = lines[8]
    assert (failed["operation"], failed["error_code"], failed["http_status"]) == (
        "operation-2",
        "SOURCE_UNAVAILABLE",
        503,
    )
    assert failed["level"] == "warning"


@pytest.mark.parametrize("form", ["json", "console"])
def test_a_traceback_shows_where_but_no_local_variables(form: str) -> None:
    output = logged(form)
    assert "ZeroDivisionError" in output
    assert "planted-secret" not in output


def test_systemd_is_told_in_one_datagram(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"imageopsd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(f"\0{name}")
        ear.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        notify(READY=1, STATUS="Ready")
        assert ear.recv(4096) == b"READY=1\nSTATUS=Ready"
    monkeypatch.delenv("NOTIFY_SOCKET")
    notify(READY=1)  # nobody to tell, nothing to fail


def test_a_crash_reason_is_counted() -> None:
    metrics = Metrics("1.0", "local", 4)
    metrics.hear(BackendCrashed("operation-1", ValueError("x")))
    assert metrics.registry.get_sample_value("imageopsd_backend_crashes_total") == 1


def observed(metrics: Metrics, name: str) -> dict[tuple[str, ...], float]:
    """The sums of a histogram that has any, by its labels' values."""
    return {
        tuple(sample.labels.values()): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name == f"imageopsd_{name}_sum" and sample.value
    }


def test_what_an_operation_spent_in_each_phase_is_told_at_its_end() -> None:
    metrics, late = Metrics("1.0", "local", 4), NOW + timedelta(seconds=9)
    turn = Postponed("another import", late)
    for happening in history(1, Claimed(), DEFERRED, Claimed(), turn, Claimed(), Progressed(5), Succeeded()):
        assert observed(metrics, "operation_phase_duration_seconds") == {}
        metrics.hear(happening)
    assert observed(metrics, "operation_phase_duration_seconds") == {
        ("insert", "queue"): 1,
        ("insert", "work"): 4,
        ("insert", "retry"): 1,
        ("insert", "turn"): 1,
    }


def test_no_phase_is_made_up_for_what_was_never_worked_on_or_is_not_known() -> None:
    metrics = Metrics("1.0", "local", 4)
    for happening in history(1, Failed((ENTRY,), 503)):
        metrics.hear(happening)
    restarted = history(2, Claimed(), Interrupted("a stop"), Claimed(), Succeeded())
    for happening in restarted[3:]:  # what the process after the stop sees
        metrics.hear(happening)
    assert observed(metrics, "operation_phase_duration_seconds") == {("insert", "work"): 1}


@pytest.mark.parametrize(
    ("traceparent", "trace"),
    [
        (None, r"[0-9a-f]{32}"),
        (f"00-{'a' * 32}-{'b' * 16}-01", "a" * 32),
        (f"00-{'a' * 32}-{'b' * 16}-00", None),
    ],
)
def test_a_bucket_names_a_trace_that_is_kept(traceparent: str | None, trace: str | None) -> None:
    plain, traced = Metrics("1.0", "local", 4), Metrics("1.0", "local", 4, traced=True)
    for change in SUCCESS:
        assert isinstance(change, Change)
        for metrics in (plain, traced):
            metrics.hear(replace(change, traceparent=traceparent))
    assert "trace_id" not in openmetrics(plain.registry).decode()
    found = re.findall(
        r'imageopsd_(\w+)_seconds_bucket\S* 1.0 # {trace_id="(.*?)"}', openmetrics(traced.registry).decode()
    )
    assert [name for name, _ in found] == (["operation_duration", "queue_wait"] if trace else [])
    assert all(re.fullmatch(str(trace), shown) for _, shown in found)


def test_answers_are_counted_by_status_and_refusals_of_changes_by_their_code() -> None:
    metrics = Metrics("1.0", "local", 4)
    for answer in (
        (True, 200, None),
        (False, 404, "RESOURCE_NOT_FOUND"),
        (True, 503, "OVERLOADED"),
        (True, 418, "TEA"),
    ):
        metrics.answered(*answer)
    counted = {
        (sample.name.removeprefix("imageopsd_"), *sample.labels.values()): sample.value
        for family in metrics.registry.collect()
        for sample in family.samples
        if sample.name in ("imageopsd_requests_total", "imageopsd_jobs_rejected_total") and sample.value
    }
    assert counted == {
        ("requests_total", "200"): 1,
        ("requests_total", "404"): 1,
        ("requests_total", "503"): 1,
        ("requests_total", "other"): 1,
        ("jobs_rejected_total", "OVERLOADED"): 1,
        ("jobs_rejected_total", "OTHER"): 1,
    }


def test_every_code_that_a_request_can_be_refused_with_is_counted_by_its_name() -> None:
    def kinds(error: type[RequestError]) -> set[type[RequestError]]:
        return {error}.union(*(kinds(kind) for kind in error.__subclasses__()))

    assert PermissionDenied in kinds(RequestError)
    codes = {kind.code for kind in kinds(RequestError) - {RequestError, Unauthenticated}}  # auth_failures has those
    assert codes == set(REJECTIONS) - {"STORE_UNAVAILABLE", "INTERNAL_ERROR", "OTHER"}
