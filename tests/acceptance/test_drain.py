"""SIGTERM: no new work, what can end ends, what cannot is given back whole, and nothing is lost."""

import json
import signal
import sqlite3
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from tests.acceptance.conftest import Archive
from tests.acceptance.source import Gate, Served, SourceServer
from tests.backends.archives import same_bytes
from tests.daemon_process import LIMIT, LOOPBACK_SOURCES, DaemonProcess, Json, clean_environment, run_cli

PATIENT = "worker.drain_timeout=10m"
HASTY = "worker.drain_timeout=100ms"


class Draining:
    """A daemon that was told to stop in the middle of an import, and is not done with it yet."""

    def __init__(self, daemon: DaemonProcess, source: SourceServer, archive: Archive) -> None:
        self.gate = Gate(after=len(archive.body) // 2)
        url = source.put("disk.tar.gz", Served(archive.body, gate=self.gate))
        self.insert = {"name": "disk", "rawDisk": {"source": url}}
        self.operation = daemon.insert(self.insert, requestId=REQUEST_ID)["name"]
        self.gate.wait_until_reached()
        daemon.signal(signal.SIGTERM)
        daemon.wait_for("draining")


REQUEST_ID = "5d7c1d5e-7d0c-4a68-9d7f-0a6f1c3f8f10"


def test_an_import_that_can_finish_finishes_and_its_waiter_is_answered(
    tmp_path: Path, source: SourceServer, archive: Archive
) -> None:
    with DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES, PATIENT) as daemon:
        draining = Draining(daemon, source, archive)

        with ThreadPoolExecutor(1) as client:
            waiting = client.submit(daemon.done, draining.operation)
            draining.gate.open()
            record = waiting.result()
            code = daemon.wait()

        assert code == 0
        assert "error" not in record
        daemon.start()
        assert record == daemon.operation(draining.operation)
        assert same_bytes(archive.disk, daemon.stored(daemon.image("disk")))
        assert source.requests == ["/disk.tar.gz"]


def test_while_it_drains_new_work_is_refused_and_everything_can_be_read(
    tmp_path: Path, source: SourceServer, archive: Archive
) -> None:
    with DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES, PATIENT) as daemon:
        draining = Draining(daemon, source, archive)

        refusals = [
            daemon.call("POST", "images", {"name": "other", "rawDisk": {"source": source.url("disk.tar.gz")}}),
            daemon.call("PATCH", "images/disk", {"family": "f"}),
            daemon.call("POST", f"images?requestId={REQUEST_ID}", draining.insert),
        ]
        record, image = daemon.operation(draining.operation), daemon.image("disk")
        probes = {path: daemon.get(path).status for path in ("/livez", "/startupz", "/readyz", "/metrics")}
        phase = daemon.get("/status").json()["phase"]
        draining.gate.open()

        message = "The daemon is shutting down; send the request again in a moment"
        body = {
            "error": {
                "code": 503,
                "message": message,
                "errors": [{"message": message, "domain": "global", "reason": "backendError"}],
                "status": "UNAVAILABLE",
            }
        }
        assert [(503, "1", body)] * 3 == [(a.status, a.headers["Retry-After"], a.json()) for a in refusals]
        assert (record["status"], image["status"]) == ("RUNNING", "PENDING")
        assert probes == {"/livez": 200, "/startupz": 200, "/readyz": 503, "/metrics": 200}
        assert phase == "draining"
        assert daemon.wait() == 0


def test_a_job_that_is_submitted_during_the_drain_is_the_next_daemons(
    tmp_path: Path, source: SourceServer, archive: Archive
) -> None:
    with DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES, PATIENT) as daemon:
        draining = Draining(daemon, source, archive)
        job = {"method": "images.patch", "project": "p", "image": "disk", "body": {"family": "later"}}

        submitted = run_cli("submit", "-", "--data-dir", daemon.data_dir, stdin=json.dumps(job))
        draining.gate.open()
        code = daemon.wait()

        assert (submitted.returncode, code) == (0, 0)
        daemon.start()
        daemon.wait_for("operation succeeded", lambda line: line["operation_type"] == "patch")
        assert daemon.image("disk")["family"] == "later"


def test_an_import_that_cannot_finish_is_given_back_and_the_next_daemon_completes_it(
    tmp_path: Path, source: SourceServer, archive: Archive
) -> None:
    retries = ("worker.attempts=2", "worker.retry_base=1ms", "worker.retry_cap=1ms")
    with DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES, HASTY, *retries) as daemon:
        draining = Draining(daemon, source, archive)
        code = daemon.wait()

        record = recorded(daemon)
        assert code == 0
        assert ("RUNNING", draining.operation) == (record["status"], record["name"])
        assert record["statusMessage"] == "Interrupted: the daemon is shutting down; it will be taken up again"
        assert {"endTime", "error", "warnings"}.isdisjoint(record)
        assert daemon.staged() == []

        # had the interruption been an attempt, this outage would be the last one's and end it
        source.put("disk.tar.gz", Served(b"", 503), Served(archive.body))
        daemon.start()

        ended = daemon.done(draining.operation)
        assert "error" not in ended
        [warning] = ended["warnings"]
        assert warning["message"].startswith("Attempt 1 of 2 failed: ")
        assert (record["startTime"], True) == (ended["startTime"], ended["progress"] > record["progress"])
        assert [ended] == daemon.operations()
        assert same_bytes(archive.disk, daemon.stored(daemon.image("disk")))


def test_a_second_sigterm_means_now_and_costs_the_import_nothing(
    tmp_path: Path, source: SourceServer, archive: Archive
) -> None:
    with DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES, PATIENT) as daemon:
        draining = Draining(daemon, source, archive)

        assert daemon.terminate() == 0

        assert recorded(daemon)["status"] == "RUNNING"
        assert daemon.staged() == []
        source.put("disk.tar.gz", Served(archive.body))
        daemon.start()
        assert {"error", "warnings", "statusMessage"}.isdisjoint(daemon.done(draining.operation))


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_daemon_ends_in_good_order(tmp_path: Path, number: signal.Signals) -> None:
    with DaemonProcess(tmp_path / "data") as daemon:
        daemon.signal(number)

        assert daemon.wait() == 0
        assert daemon.log[-1]["event"] == "stopped"
        assert not (daemon.data_dir / "endpoint").exists()


def test_a_service_manager_that_went_away_does_not_disturb_the_drain(
    tmp_path: Path, source: SourceServer, archive: Archive
) -> None:
    with DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES, PATIENT) as daemon:
        daemon.hang_up()
        draining = Draining(daemon, source, archive)
        draining.gate.open()

        assert daemon.wait() == 0
        assert recorded(daemon)["status"] == "DONE"


def recorded(daemon: DaemonProcess) -> Json:
    """The one record in the store, while no daemon runs that could show or change it."""
    assert not daemon.running
    with closing(sqlite3.connect(daemon.data_dir / "state.db")) as store:
        [(record,)] = store.execute("SELECT record FROM operations").fetchall()
    parsed: Json = json.loads(record)
    return parsed


def test_sigterm_at_any_moment_of_the_start_ends_it_and_the_next_start_goes_on(tmp_path: Path) -> None:
    """A stop that start-up code forgets, or that finds no one to tell, is a deadlock (procrastinate#1563)."""
    data_dir = tmp_path / "data"
    job = {"method": "images.insert", "project": "p", "body": {"name": "i", "rawDisk": {"source": "https://h/i"}}}
    submitted = run_cli("submit", "-", "--data-dir", data_dir, stdin=json.dumps(job))
    simulated = ("backend=simulated", "backends.simulated.duration=0s", "worker.slots=1")
    moments = ("daemon.lock", "state.db", "state.db-wal", "queue.db-wal", "endpoint")
    for moment in moments:
        (data_dir / "daemon.lock").unlink(missing_ok=True)  # so that it can be seen to appear
        starting = subprocess.Popen(
            [sys.executable, "-m", "imageopsd", "serve", "--data-dir", data_dir, "--listen", "127.0.0.1:0"]
            + [word for setting in simulated for word in ("--set", setting)],
            env=clean_environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while not (data_dir / moment).exists() and starting.poll() is None:
            pass
        starting.send_signal(signal.SIGTERM)
        assert starting.wait(LIMIT) in (0, -signal.SIGTERM), moment
    with DaemonProcess(data_dir, *simulated) as daemon:
        while run_cli("queue", "stats", "--data-dir", data_dir, "--format", "json").stdout.find('"waiting": 0') < 0:
            pass
        assert "error" not in daemon.done(submitted.stdout.strip())


def test_a_drain_that_is_killed_in_the_middle_loses_nothing(
    tmp_path: Path, source: SourceServer, archive: Archive
) -> None:
    """The worst that systemd and Kubernetes do: SIGTERM, a moment, SIGKILL."""
    with DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES, PATIENT) as daemon:
        draining = Draining(daemon, source, archive)
        daemon.kill()
        draining.gate.open()
        daemon.start()

        assert {"error", "warnings", "statusMessage"}.isdisjoint(daemon.done(draining.operation))
        assert same_bytes(archive.disk, daemon.stored(daemon.image("disk")))
