"""Traces as a collector gets them from the real daemon, over its deaths; and the daemon where there is none."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.acceptance.collector import Collector
from tests.acceptance.conftest import Archive
from tests.acceptance.source import Gate, Served, SourceServer
from tests.daemon_process import LOOPBACK_SOURCES, DaemonProcess, run_cli

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SUBMITTER = f"00-{TRACE}-{PARENT}-01"
OTHER = "00-11111111111111111111111111111111-2222222222222222-01"
AT_ONCE = ("backend=simulated", "backends.simulated.duration=0s")
BODY = {"name": "image", "rawDisk": {"source": "https://example.com/disk.tar.gz"}}


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as collector:
        yield collector


def traced_by(collector: Collector) -> str:
    return f"tracing.endpoint={collector.root}"


def test_an_import_that_a_kill_interrupted_is_one_span_of_its_submitters_trace(
    tmp_path: Path, source: SourceServer, archive: Archive, collector: Collector
) -> None:
    half = Gate(after=len(archive.body) // 2)
    url = source.put("secret-disk.tar.gz", Served(archive.body, gate=half))
    body = {"name": "disk", "rawDisk": {"source": f"{url}?signature=secret"}}
    with DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES, traced_by(collector)) as daemon:
        daemon.environment["OTEL_EXPORTER_OTLP_HEADERS"] = "x-key=k"
        name = daemon.call("POST", "images", body, {"traceparent": SUBMITTER}).json()["name"]
        half.wait_until_reached()
        [wait] = collector.wait_for("wait")

        daemon.kill()
        source.put("secret-disk.tar.gz", Served(archive.body))
        daemon.start()
        record = daemon.done(name)
        [whole] = collector.wait_for("images.insert")
        [attempt], [publish] = collector.wait_for("attempt"), collector.wait_for("publish")
        [call] = collector.wait_for("backend.insert_image")

        assert "error" not in record
        assert (whole.trace, whole.parent, whole.attributes["imageopsd.operation.name"]) == (TRACE, PARENT, name)
        assert [(one.trace, one.parent) for one in (wait, attempt, publish)] == [(TRACE, whole.id)] * 3
        assert (call.trace, call.parent) == (TRACE, attempt.id)
        assert attempt.attributes == {"imageopsd.attempt": 1, "imageopsd.attempt.resumed": True}
        assert wait.resource["service.name"] == "imageopsd"
        lives = {one.resource["service.instance.id"] for one in (wait, whole)}
        assert len(lives) == 2
        assert whole.seconds >= wait.seconds + attempt.seconds
        assert collector.headers["x-key"] == "k"
        assert b"secret" not in collector.raw
        traced = [line["event"] for line in daemon.log if line.get("trace_id") == TRACE]
        assert traced == ["operation accepted", "operation started", "operation started", "operation succeeded"]


def test_a_job_is_in_the_trace_of_whoever_submitted_it(tmp_path: Path, collector: Collector) -> None:
    with DaemonProcess(tmp_path / "data", *AT_ONCE, traced_by(collector)) as daemon:

        def submitted(name: str, environment: str, **more: str) -> str:
            job = {"method": "images.insert", "project": "p", "body": {**BODY, "name": name}, **more}
            arguments = ("submit", "-", "--data-dir", daemon.data_dir)
            ended = run_cli(*arguments, stdin=json.dumps(job), environment={"TRACEPARENT": environment})
            assert ended.returncode == 0, ended.stderr
            return ended.stdout.strip()

        ids = [submitted("a", SUBMITTER), submitted("b", SUBMITTER, traceparent=OTHER), submitted("c", "nonsense")]
        submitted("a", OTHER, requestId=ids[0])  # a repeat, whoever traces it
        spans = {one.attributes["imageopsd.request_id"]: one for one in collector.wait_for("images.insert", 3)}

        first, second, third = (spans[one] for one in ids)
        assert (first.trace, first.parent) == (TRACE, PARENT)
        assert (second.trace, second.parent) == ("1" * 32, "2" * 16)
        assert third.parent == ""
        assert third.trace in {line.get("trace_id") for line in daemon.log}
        assert len(daemon.operations()) == 3


def test_a_collector_that_is_away_costs_spans_and_nothing_else(tmp_path: Path) -> None:
    with socket.socket() as nobody:  # bound and not listening: the port refuses, and stays ours
        nobody.bind(("127.0.0.1", 0))
        endpoint = f"tracing.endpoint=http://127.0.0.1:{nobody.getsockname()[1]}"
        environment = {"OTEL_EXPORTER_OTLP_TIMEOUT": "4", "OTEL_EXPORTER_OTLP_HEADERS": "secret"}
        with DaemonProcess(tmp_path / "data", *AT_ONCE, endpoint, environment=environment) as daemon:
            assert "error" not in daemon.done(daemon.insert(BODY)["name"])
            line = daemon.wait_for("traces cannot be exported")
            assert "refused" in line["reason"]
            assert 'imageopsd_trace_spans_total{outcome="exported"} 0.0' in daemon.get("/metrics").body.decode()
            assert 'imageopsd_trace_spans_total{outcome="dropped"} 0.0' not in daemon.get("/metrics").body.decode()
            assert daemon.get("/readyz").status == 200
            assert daemon.terminate() == 0
            assert "secret" not in json.dumps(daemon.log)


@pytest.fixture
def without_the_extra(tmp_path: Path) -> dict[str, str]:
    """Python finds a module of that name and nothing inside it."""
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "opentelemetry.py").write_text('raise ImportError("No module named opentelemetry")\n')
    return {"PYTHONPATH": str(tmp_path / "stub")}


def test_a_daemon_without_the_extra_says_what_to_install(tmp_path: Path, without_the_extra: dict[str, str]) -> None:
    arguments = ("serve", "--data-dir", tmp_path / "data", "--set", "tracing.endpoint=http://127.0.0.1:1")
    ended = run_cli(*arguments, environment=without_the_extra)
    assert ended.returncode == 78
    assert "tracing.endpoint: the extra 'tracing' is not installed" in ended.stderr
    assert "pip install 'imageopsd[tracing]'" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_component_of_the_exporter_that_is_not_there_is_a_configuration_error(tmp_path: Path) -> None:
    arguments = ("serve", "--data-dir", tmp_path / "data", "--set", "tracing.endpoint=http://127.0.0.1:1")
    ended = run_cli(*arguments, environment={"OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER": "x"})
    assert (ended.returncode, "Traceback" in ended.stderr) == (78, False)
    assert "tracing: " in ended.stderr


def test_without_a_collector_nothing_of_it_is_imported(tmp_path: Path, without_the_extra: dict[str, str]) -> None:
    with DaemonProcess(tmp_path / "data", *AT_ONCE, environment=without_the_extra) as daemon:
        assert "error" not in daemon.done(daemon.insert(BODY)["name"])
        assert [line for line in daemon.log if "trace_id" in line] == []
