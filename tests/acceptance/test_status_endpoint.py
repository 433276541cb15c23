"""What a probe, Prometheus and a person with curl see of a real daemon."""

import json
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.daemon_process import DaemonProcess, Json, run_cli

from imageopsd.model.events import Obstacle, Outcome, Verb
from imageopsd.model.faults import Fault
from imageopsd.model.quota import Metric
from imageopsd.telemetry.vitals import CONFIGURATION, CREDENTIALS, FILES

SCRIPTS = (
    "backends.simulated.duration=0s",
    'backends.simulated.scripts=[{image = "bad-*", steps = [{fail = "quota"}]},'
    ' {image = "flaky-*", steps = [{fail = "transient", retry_after = "1ms"}]},'
    ' {image = "slow-*", steps = [{progress = 40, message = "half-way"}, {wait = "1h"}]}]',
)
SOURCE = {"source": "https://example.com/disk.tar.gz"}


SETTINGS = ("backend=simulated", *SCRIPTS, "worker.retry_base=1ms", "worker.retry_cap=1ms", "worker.slots=3")


class Lived(NamedTuple):
    """A daemon that has seen one of each, the records of it, and the series there were before."""

    daemon: DaemonProcess
    records: dict[str, Json]
    before: set[str]


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lived]:
    data_dir = tmp_path_factory.mktemp("status") / "data"
    with DaemonProcess(data_dir, *SETTINGS, "log.level=debug") as daemon:
        before = set(samples(daemon))
        yield Lived(daemon, live_through(daemon), before)


def samples(daemon: DaemonProcess) -> dict[str, float]:
    """Every sample of a scrape as `name{label="value"}`, as they are written."""
    text = daemon.get("/metrics").body.decode()
    return {
        line.rpartition(" ")[0]: float(line.rpartition(" ")[2])
        for line in text.splitlines()
        if not line.startswith("#")
    }


def live_through(daemon: DaemonProcess) -> dict[str, Json]:
    """One of each: good, patched, failed, tried twice, under way, and a dead letter."""
    records = {
        name: daemon.done(daemon.insert({"name": name, "rawDisk": SOURCE})["name"])
        for name in ("good-one", "bad-one", "flaky-one")
    }
    records["patch"] = daemon.done(daemon.patch("good-one", {"family": "f"})["name"])
    request_id = "5d7c1d5e-7d0c-4a68-9d7f-0a6f1c3f8f10"
    daemon.done(daemon.patch("good-one", {"family": "g"}, requestId=request_id)["name"])
    job = {
        "method": "images.patch",
        "project": "p",
        "requestId": request_id,
        "image": "good-one",
        "body": {"family": "x"},
    }
    run_cli("submit", "-", "--data-dir", daemon.data_dir, stdin=json.dumps(job))
    daemon.wait_for("job dead-lettered")
    records["slow-one"] = daemon.insert({"name": "slow-one", "rawDisk": SOURCE})
    daemon.wait_for("operation progressed", lambda line: line["message"] == "half-way")
    return records


def test_the_probes_of_a_daemon_that_runs_are_good(lived: Lived) -> None:
    answers = {path: lived.daemon.get(path) for path in ("/livez", "/readyz", "/startupz")}
    assert {path: (answer.status, answer.body) for path, answer in answers.items()} == {
        "/livez": (200, b"ok\n"),
        "/readyz": (200, b"ready\n"),
        "/startupz": (200, b"ready\n"),
    }


def test_the_status_tells_what_runs_and_what_went_wrong(lived: Lived) -> None:
    failed, slow = lived.records["bad-one"], lived.daemon.operation(lived.records["slow-one"]["name"])
    [error] = failed["error"]["errors"]

    status = lived.daemon.get("/status").json()

    [dead] = status.pop("recentDeadLetters")
    assert dead["job"] == "5d7c1d5e-7d0c-4a68-9d7f-0a6f1c3f8f10"
    assert "It was already used by " in dead["reason"]
    times = [status.pop("started"), status["running"][0].pop("startTime"), status["recentFailures"][0].pop("endTime")]
    assert [datetime.fromisoformat(slow["startTime"]), datetime.fromisoformat(failed["endTime"])] == [
        datetime.fromisoformat(time) for time in times[1:]
    ]
    assert {
        "version": version("imageopsd"),
        "backend": "simulated",
        "slots": 3,
        "quotas": [],
        "phase": "ready",
        "obstacles": {},
        "operations": {"pending": 0, "running": 1, "succeeded": 4, "failed": 1},
        "running": [
            {
                "project": "p",
                "name": slow["name"],
                "operationType": "insert",
                "target": "slow-one",
                "progress": 40,
                "statusMessage": "half-way",
            }
        ],
        "recentFailures": [
            {
                "project": "p",
                "name": failed["name"],
                "operationType": "insert",
                "target": "bad-one",
                "code": "QUOTA_EXCEEDED",
                "message": error["message"],
                "httpErrorStatusCode": 403,
                "errors": [error],
            }
        ],
    } == status


def test_the_counts_of_the_status_outlive_a_kill(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "data", *SETTINGS, "log.level=debug") as daemon:
        live_through(daemon)

        daemon.kill()
        daemon.start()
        daemon.wait_for("operation started")

        assert daemon.get("/status").json()["operations"] == {"pending": 0, "running": 1, "succeeded": 4, "failed": 1}
        assert samples(daemon)['imageopsd_queue_jobs{state="dead"}'] == 1


def test_the_metrics_count_what_happened(lived: Lived) -> None:
    now = samples(lived.daemon)

    expected = {
        'imageopsd_operations_total{outcome="success",type="insert"}': 2,
        'imageopsd_operations_total{outcome="failure",type="insert"}': 1,
        'imageopsd_operations_total{outcome="success",type="patch"}': 2,
        'imageopsd_operations_total{outcome="failure",type="patch"}': 0,
        'imageopsd_operations_accepted_total{type="insert"}': 4,
        'imageopsd_operations_accepted_total{type="patch"}': 2,
        'imageopsd_operation_retries_total{type="insert"}': 1,
        'imageopsd_operations_interrupted_total{type="insert"}': 0,
        'imageopsd_operations_running{type="insert"}': 1,
        'imageopsd_operations_running{type="patch"}': 0,
        'imageopsd_operation_duration_seconds_count{outcome="success",type="insert"}': 2,
        'imageopsd_operation_duration_seconds_count{outcome="failure",type="insert"}': 1,
        "imageopsd_queue_wait_seconds_count": 6,
        'imageopsd_jobs_dead_lettered_total{reason="REQUEST_ID_REUSED"}': 1,
        'imageopsd_jobs_dead_lettered_total{reason="INVALID_FIELD_VALUE"}': 0,
        'imageopsd_queue_jobs{state="waiting"}': 0,
        'imageopsd_queue_jobs{state="dead"}': 1,
        "imageopsd_queue_oldest_job_age_seconds": 0,
        "imageopsd_operations_pending": 0,
        "imageopsd_worker_slots": 3,
        "imageopsd_backend_crashes_total": 0,
        "imageopsd_leases_lost_total": 0,
        "imageopsd_store_unavailable_total": 0,
    }
    assert expected == {name: now.get(name) for name in expected}
    assert now['imageopsd_last_success_timestamp_seconds{type="insert"}'] > 0
    assert now["imageopsd_journal_write_seconds_count"] > 0


def test_every_series_is_there_before_anything_happened(lived: Lived) -> None:
    assert lived.before == set(samples(lived.daemon))


def test_no_metric_carries_a_name_of_anybody(lived: Lived) -> None:
    labels = {
        value
        for family in text_string_to_metric_families(lived.daemon.get("/metrics").body.decode())
        if family.name.startswith("imageopsd_")
        for sample in family.samples
        for label, value in sample.labels.items()
        if label not in ("le", "version")
    }
    assert labels == {
        "insert", "patch", "deprecate", "setLabels", "delete", "success", "failure", "waiting", "dead", "simulated",
        "INVALID_FIELD_VALUE", "REQUEST_ID_REUSED", "missing", "unknown", "forbidden", "cancelled",
        *Obstacle, *Metric, "other", *Verb, *Outcome, *Fault, *CREDENTIALS, *FILES, CONFIGURATION,
        "exported", "dropped",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("accept", "content_type", "end"),
    [
        ("*/*", "text/plain; version=0.0.4; charset=utf-8", ""),
        (
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            "application/openmetrics-text; version=1.0.0; charset=utf-8",
            "# EOF\n",
        ),
    ],
)
def test_the_metrics_are_in_the_format_that_is_asked_for(
    lived: Lived, accept: str, content_type: str, end: str
) -> None:
    answer = lived.daemon.call("GET", "/metrics", headers={"Accept": accept})
    assert (answer.status, answer.body.decode().endswith(end)) == (200, True)
    assert content_type == answer.headers["Content-Type"].partition("; escaping")[0]


def test_what_is_not_there_is_a_404_with_the_usual_envelope(lived: Lived) -> None:
    answer = lived.daemon.get("/nothing")
    assert (answer.status, answer.json()["error"]["errors"][0]["reason"]) == (404, "notFound")
