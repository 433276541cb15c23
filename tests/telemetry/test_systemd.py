"""What the daemon says to a service manager and takes from it; here a manager is a socket and a few variables."""

import json
import os
import select
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.request import urlopen
from uuid import uuid4

import anyio
import pytest
from tests.daemon_process import LIMIT, clean_environment, run_cli

from imageopsd.engine.pulse import Pulse, Watch
from imageopsd.telemetry.systemd import notify, watchdog_seconds

SLOW = 'backends.simulated.scripts=[{image = "*", steps = [{wait = "1h"}]}]'
JOB = '{"method": "images.insert", "project": "p", "body": {"name": "i", "rawDisk": {"source": "https://h/i"}}}'
ACTIVATED = "import os, sys; os.environ['LISTEN_PID'] = str(os.getpid()); os.execv(sys.executable, sys.argv[1:])"
"""What systemd does between fork and exec."""


class Manager:
    """Hears what the daemon it started says."""

    def __init__(self) -> None:
        self.address = f"\0imageopsd-test-{uuid4().hex}"
        self._ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ear.bind(self.address)
        self._ear.settimeout(LIMIT)

    def close(self) -> None:
        self._ear.close()

    def heard(self, wanted: str) -> list[str]:
        """Every line up to the first that begins with `wanted`."""
        lines: list[str] = []
        while not any(line.startswith(wanted) for line in lines):
            lines += self._ear.recv(4096).decode().splitlines()
        return lines

    @contextmanager
    def running(
        self,
        data_dir: Path,
        *settings: str,
        environment: dict[str, str] | None = None,
        passed: socket.socket | None = None,
    ) -> Iterator["subprocess.Popen[str]"]:
        command = [sys.executable, "-m", "imageopsd", "serve", "--data-dir", str(data_dir), "--listen", "127.0.0.1:0"]
        for setting in ("backend=simulated", *settings):
            command += ["--set", setting]
        variables = {**clean_environment(), "NOTIFY_SOCKET": f"@{self.address[1:]}", **(environment or {})}
        if passed is not None:
            command = [sys.executable, "-c", ACTIVATED, *command]
            variables |= {"LISTEN_FDS": "1"}

        def take_its_place() -> None:
            if passed is not None:
                os.dup2(passed.fileno(), 3)

        process = subprocess.Popen(
            command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            pass_fds=[3] if passed is not None else [], preexec_fn=take_its_place,
        )  # fmt: skip
        try:
            yield process
        finally:
            process.kill()
            process.communicate()


@pytest.fixture
def manager() -> Iterator[Manager]:
    manager = Manager()
    yield manager
    manager.close()


def request(address: tuple[str, int], method: str, path: str, body: str | None = None) -> int:
    connection = HTTPConnection(*address, timeout=LIMIT)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
        return connection.getresponse().status
    finally:
        connection.close()


def test_time_is_asked_for_while_it_starts_and_while_it_drains(manager: Manager, tmp_path: Path) -> None:
    with manager.running(tmp_path, SLOW, "worker.drain_timeout=1h") as process:
        begun = manager.heard("READY=1")
        assert begun[0].startswith("EXTEND_TIMEOUT_USEC=")
        assert begun[-1] == "STATUS=Ready: 0 running, 0 waiting, 0 succeeded, 0 failed"
        host, _, port = (tmp_path / "endpoint").read_text().strip().removeprefix("http://").rpartition(":")
        body = '{"name": "slow", "rawDisk": {"source": "https://example.com/d"}}'
        assert request((host, int(port)), "POST", "/compute/v1/projects/p/global/images", body) == 200
        assert manager.heard("STATUS=Ready: 1 running")
        process.send_signal(signal.SIGTERM)
        ended = manager.heard("EXTEND_TIMEOUT_USEC=")
        assert "STOPPING=1" in ended
        assert "STATUS=Draining: 1 running, 0 waiting, 0 succeeded, 0 failed" in ended


def test_a_reload_is_told_with_its_time_and_its_end_however_it_goes(manager: Manager, tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("[worker]\nslots = 3\n")
    with manager.running(tmp_path / "data", environment={"IMAGEOPSD_CONFIG": str(file)}) as process:
        manager.heard("READY=1")
        for text, said in (
            ("[worker]\nslots = 0\n", "; the new configuration has errors, the old one counts"),
            ("[worker]\nslots = 5\n", ""),
        ):
            file.write_text(text)
            before = time.monotonic_ns() // 1000
            process.send_signal(signal.SIGHUP)
            reloading, at = manager.heard("RELOADING=1")[-2:]
            assert reloading == "RELOADING=1"
            name, _, microseconds = at.partition("=")
            assert name == "MONOTONIC_USEC"
            assert before <= int(microseconds) <= time.monotonic_ns() // 1000
            assert manager.heard("READY=1")[-2:] == [
                "READY=1",
                f"STATUS=Ready: 0 running, 0 waiting, 0 succeeded, 0 failed{said}",
            ]


def test_the_watchdog_is_fed_if_there_is_one(manager: Manager, tmp_path: Path) -> None:
    with manager.running(tmp_path, environment={"WATCHDOG_USEC": "300000"}):
        manager.heard("READY=1")
        for _ in range(3):
            manager.heard("WATCHDOG=1")


def test_a_manager_that_does_not_read_is_not_waited_for(manager: Manager, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{manager.address[1:]}")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.setblocking(False)
        other.connect(manager.address)
        with suppress(BlockingIOError):
            while True:
                other.send(b"STATUS=full")
    speaking = threading.Thread(target=notify, kwargs={"WATCHDOG": 1}, daemon=True)
    speaking.start()
    speaking.join(LIMIT)
    assert not speaking.is_alive()


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "1500000"}, 1.5),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "1"}, None),
    ],
)
def test_only_a_watchdog_that_means_this_process_is_fed(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], seconds: float | None
) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert watchdog_seconds() == seconds


def test_a_message_for_nobody_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/nonexistent/socket")
    notify(READY=1)


def test_a_loop_that_stays_in_one_turn_is_stuck_until_it_gets_on() -> None:
    pulse, idle, looks = Pulse(), Pulse(), list[tuple[str, ...]]()

    async def live() -> None:
        async with anyio.create_task_group() as group:

            def looked(stuck: tuple[str, ...]) -> None:
                looks.append(stuck)
                if len(looks) == 4:
                    pulse.beat()
                if len(looks) == 6:
                    group.cancel_scope.cancel()

            with idle.turn():
                pass
            with pulse.turn():
                group.start_soon(Watch({"worker": pulse, "intake": idle}, 0, looked).run)
                await anyio.sleep_forever()

    anyio.run(live)
    assert looks == [(), ("worker",), ("worker",), ("worker",), (), ("worker",)]
    assert not pulse.turning


def test_a_loop_that_hangs_shows_in_the_status_line_and_on_the_status_page(manager: Manager, tmp_path: Path) -> None:
    """Taking a job in waits for a lock that somebody else holds."""
    watched = {"WATCHDOG_USEC": "1500000"}
    with manager.running(tmp_path, environment=watched) as process:
        manager.heard("READY=1")
        url = (tmp_path / "endpoint").read_text().strip()
        assert status(url)["stuck"] == []
        with closing(sqlite3.connect(tmp_path / "state.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            submitted = run_cli("submit", "-", "--data-dir", tmp_path, stdin=JOB)
            assert submitted.returncode == 0, submitted.stderr
            manager.heard("STATUS=Stuck in intake")
            assert "intake" in status(url)["stuck"]  # the worker too, if its first claim comes this late
            other.execute("ROLLBACK")
        manager.heard("STATUS=Ready")
        process.kill()


def status(url: str) -> dict[str, Any]:
    with urlopen(f"{url}/status", timeout=LIMIT) as answer:
        return dict(json.load(answer))


def test_the_socket_that_is_passed_is_served_and_stays_open_after_the_end(manager: Manager, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as passed:
        address = passed.getsockname()
        for life in ("first", "second"):
            with manager.running(tmp_path / life, passed=passed) as process:
                manager.heard("READY=1")
                assert (tmp_path / life / "endpoint").read_text() == f"http://127.0.0.1:{address[1]}\n"
                assert request(address, "GET", "/readyz") == 200
                process.send_signal(signal.SIGTERM)
                assert process.wait(LIMIT) == 0
        with socket.create_connection(address, LIMIT):
            assert select.select([passed], [], [], LIMIT)[0]


@pytest.mark.parametrize("kind", ["others", "unix"])
def test_a_socket_that_may_not_be_served_is_a_configuration_error(manager: Manager, tmp_path: Path, kind: str) -> None:
    if kind == "others":
        passed = socket.create_server(("0.0.0.0", 0))
        complaint = f"0.0.0.0:{passed.getsockname()[1]} can be reached from other machines"
    else:
        passed = socket.socket(socket.AF_UNIX)
        passed.bind(str(tmp_path / "socket"))
        passed.listen()
        complaint = "expected ListenStream= with an address and a port"
    with passed, manager.running(tmp_path / "data", passed=passed) as process:
        output, _ = process.communicate(timeout=LIMIT)
        assert process.returncode == 78
    assert complaint in output
    assert "Traceback" not in output
