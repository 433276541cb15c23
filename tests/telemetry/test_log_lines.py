"""The log of a real daemon at its loudest: whose lines there are, what each says, and what none does."""

import base64
import json
import random
from pathlib import Path

from tests.daemon_process import DaemonProcess

SECRET = base64.urlsafe_b64encode(random.Random(7).randbytes(32)).decode().rstrip("=")
SCRIPT = (
    'backends.simulated.scripts=[{image = "*", steps = [{progress = 5, message = "with Bearer SECRET"},'
    ' {fail = "transient", times = 1, message = "https://h.example/d?X-Goog-Signature=SECRET said 503"},'
    ' {fail = "permanent", message = "Authorization: SECRET"}]}]'
).replace("SECRET", SECRET)
EVERY = {"timestamp", "level", "event", "logger", "version"}
WORK = {"operation", "operation_id", "operation_type", "client_operation_id", "project", "target"}


def test_lines_about_an_operation_name_it_and_no_line_has_a_secret_or_is_a_librarys_noise(tmp_path: Path) -> None:
    settings = ("backend=simulated", SCRIPT, "log.level=debug", "worker.retry_base=1ms", "worker.retry_cap=1ms")
    with DaemonProcess(tmp_path / "data", *settings) as daemon:
        body = {"name": "i", "rawDisk": {"source": "https://example.com/d"}}
        record = daemon.done(daemon.insert(body, requestId="123e4567-e89b-12d3-a456-426614174000")["name"])
        daemon.get("/metrics")
        assert daemon.terminate() == 0
        log = daemon.log
    assert {line["logger"].partition(".")[0] for line in log} == {"imageopsd"}
    assert all(line.keys() >= EVERY for line in log)
    assert [line for line in log if "dropped_keys" in line] == []
    assert SECRET not in json.dumps(log)
    about = {line["event"]: line for line in log if line["event"].startswith("operation ")}
    assert about.keys() >= {"operation accepted", "operation started", "operation deferred", "operation failed"}
    for line in about.values():
        assert line.keys() >= WORK
        assert (line["operation"], line["operation_id"], line["target"]) == (record["name"], record["id"], "i")
        assert line["client_operation_id"] == "123e4567-e89b-12d3-a456-426614174000"
    phases = {event: about[f"operation {event}"]["phase"] for event in ("accepted", "started", "deferred")}
    assert phases == {"accepted": "queue", "started": "work", "deferred": "retry"}
    failed = about["operation failed"]
    assert (failed["attempt"], failed["error.kind"], failed["error"]) == (2, "caller", "Authorization: [hidden]")
    assert about["operation deferred"]["error"] == "https://h.example/d?[hidden] said 503"
