"""SIGHUP: a running daemon takes another configuration over as a whole, or nothing of it."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.daemon_process import DaemonProcess, Json

SIMULATED = """
backend = "simulated"
[backends.simulated]
duration = "0s"
scripts = [{ image = "slow-*", steps = [{ wait = "1h" }] }]
"""
GOOD, REFUSED, RESTART = "configuration read", "configuration refused", "configuration needs a restart"
READ_AT = "imageopsd_config_last_reload_success_timestamp_seconds"
QUOTA = 'quota = [{ project = "*", metric = "compute.googleapis.com/images", limit = 1 }]\n'


class Configured(DaemonProcess):
    """A daemon with a configuration file that a test can exchange."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "c.toml"
        self.file.write_text(SIMULATED)
        super().__init__(directory / "data", arguments=["--config", str(self.file)])

    def reload(self, text: str, expected: str = GOOD) -> Json:
        """What the daemon says once it has read `text`."""
        self.file.write_text(text)
        before = self.log
        self.signal(signal.SIGHUP)
        return self.wait_for(expected, lambda line: line not in before)

    def metric(self, name: str) -> float:
        lines = self.get("/metrics").body.decode().splitlines()
        [value] = [line.split()[1] for line in lines if line.startswith(f"{name} ")]
        return float(value)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Configured]:
    with Configured(tmp_path) as daemon:
        yield daemon


def image(name: str) -> Json:
    return {"name": name, "rawDisk": {"source": "https://example.com/d"}}


def running(daemon: Configured) -> int:
    operations: dict[str, int] = daemon.get("/status").json()["operations"]
    return operations["running"]


def begun(daemon: Configured, name: str) -> str:
    operation = str(daemon.insert(image(name))["name"])
    daemon.wait_for("operation started", lambda line: line["operation"] == operation)
    return operation


def test_slots_come_and_go_while_work_goes_on(daemon: Configured) -> None:
    daemon.reload(SIMULATED + "[worker]\nslots = 1\n")
    begun(daemon, "slow-1")
    second = str(daemon.insert(image("slow-2"))["name"])
    assert daemon.operation(second)["statusMessage"] == "Waiting for one of 1 slots"
    said = daemon.reload(SIMULATED + "[worker]\nslots = 3\n")
    assert said["changed"] == ["worker.slots"]
    daemon.wait_for("operation started", lambda line: line["operation"] == second)
    begun(daemon, "slow-3")
    assert daemon.get("/status").json()["slots"] == daemon.metric("imageopsd_worker_slots") == 3
    daemon.reload(SIMULATED + "[worker]\nslots = 2\n")
    assert running(daemon) == 3
    waiting = daemon.insert(image("quick"))["name"]
    daemon.call("POST", f"operations/{second}/cancel")
    assert "error" in daemon.done(second)
    assert daemon.operation(str(waiting))["statusMessage"] == "Waiting for one of 2 slots"


def test_a_configuration_with_errors_changes_nothing_and_every_problem_is_told(daemon: Configured) -> None:
    read = daemon.metric(READ_AT)
    bad = SIMULATED + '[worker]\nslots = 0\n[records]\nmax_unfinished = 1\n[log]\nlevl = "debug"\n'
    told = daemon.reload(bad, REFUSED)
    assert told["kept"] == "old configuration"
    assert told["problems"] == [
        f"{daemon.file}:7: worker.slots: Expected 'int' >= 1",
        f"{daemon.file}:11: log.levl: unknown key. Did you mean 'log.level'?",
    ]
    assert daemon.get("/status").json()["slots"] == 4
    assert daemon.metric('imageopsd_config_last_reload_successful{file="configuration"}') == 0
    assert daemon.metric(READ_AT) == read
    begun(daemon, "slow-1")
    assert daemon.call("POST", "images", image("slow-2")).status == 200  # max_unfinished is what it was
    daemon.reload(SIMULATED)
    assert daemon.metric('imageopsd_config_last_reload_successful{file="configuration"}') == 1
    assert daemon.metric(READ_AT) > read


def test_a_file_that_is_gone_changes_nothing(daemon: Configured) -> None:
    daemon.file.unlink()
    daemon.signal(signal.SIGHUP)
    told = daemon.wait_for(REFUSED)
    assert told["problems"] == [f"{daemon.file}: cannot be read: No such file or directory"]
    assert daemon.done(daemon.insert(image("i"))["name"])["progress"] == 100


def test_limits_begin_and_cease_to_hold(daemon: Configured) -> None:
    assert "error" not in daemon.done(daemon.insert(image("a"))["name"])
    daemon.reload(QUOTA + SIMULATED)
    refused = daemon.done(daemon.insert(image("b"))["name"])
    assert refused["error"]["errors"][0]["code"] == "QUOTA_EXCEEDED"  # what was there before the limit counts
    assert daemon.metric('imageopsd_quota_used_ratio{metric="compute.googleapis.com/images"}') == 1
    daemon.reload(QUOTA.replace("limit = 1", "limit = 2") + SIMULATED)
    assert "error" not in daemon.done(daemon.insert(image("b"))["name"])
    daemon.reload(SIMULATED)
    assert "error" not in daemon.done(daemon.insert(image("c"))["name"])
    daemon.reload(QUOTA.replace("limit = 1", "limit = 3") + SIMULATED)
    assert "error" in daemon.done(daemon.insert(image("d"))["name"])  # the third had not been counted when it was made


def test_the_level_and_the_backends_options_change(daemon: Configured) -> None:
    script = SIMULATED.replace("steps = [", "steps = [{ progress = 30 }, ") + '[log]\nlevel = "debug"\n'
    said = daemon.reload(script)
    assert said["changed"] == ["log.level", "backends.simulated.scripts"]
    name = daemon.insert(image("slow-1"))["name"]
    daemon.wait_for("operation progressed", lambda line: line["operation"] == name)
    daemon.file.write_text(SIMULATED + '[log]\nlevel = "error"\n')
    before, read = len(daemon.log), daemon.metric(READ_AT)
    daemon.signal(signal.SIGHUP)
    while daemon.metric(READ_AT) == read:  # nothing in the log says that it was read, and that is what counts here
        assert daemon.running
    daemon.reload("nonsense", REFUSED)  # an error is shown at every level
    assert [line["event"] for line in daemon.log[before:] if line["level"] != "error"] == []


def test_what_needs_a_restart_is_named_until_there_was_one(daemon: Configured) -> None:
    later = SIMULATED + '[server]\ntokens_file = "/nowhere"\n[worker]\nlease = "1m"\nattempts = 7\n'
    daemon.reload(later)
    told = daemon.wait_for(RESTART)
    assert told["keys"] == ["server.tokens_file", "worker.lease"]
    before = daemon.log
    daemon.reload(later.replace("attempts = 7", "attempts = 8"))
    assert daemon.wait_for(RESTART, lambda line: line not in before)["keys"] == ["server.tokens_file", "worker.lease"]


def test_the_environment_and_the_flags_still_win(tmp_path: Path) -> None:
    with Configured(tmp_path) as daemon:
        daemon.terminate()
        daemon.environment["IMAGEOPSD_WORKER__SLOTS"] = "2"
        daemon.settings.append("worker.attempts=9")
        daemon.start()
        said = daemon.reload(SIMULATED + "[worker]\nslots = 7\nattempts = 1\nproject_slots = 1\n")
        assert said["changed"] == ["worker.project_slots"]
        assert daemon.get("/status").json()["slots"] == 2
