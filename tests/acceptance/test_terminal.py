"""What a person sees who sits in front of it: the commands on a terminal of their own, a real one to them."""

import fcntl
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest
from tests.acceptance.conftest import Archive
from tests.acceptance.source import Gate, Served, SourceServer
from tests.daemon_process import LIMIT, LOOPBACK_SOURCES, DaemonProcess, Json, clean_environment

SIMULATED = ("backend=simulated", "backends.simulated.duration=0s")
SCRIPTS = (
    'backends.simulated.scripts=[{image = "slow-*", steps = [{progress = 40}, {wait = "1h"}]},'
    ' {image = "bad-*", steps = [{fail = "quota"}]}]'
)

LONG_NAME = "good-one-with-a-rather-long-name"
WARNED = {"family": "f", "labels": {"a": "b"}}
"""A patch of which one field is ignored."""


class Terminal:
    """A command in the foreground of a pseudo-terminal with `columns`."""

    def __init__(self, *arguments: str | Path, columns: int = 100, stdin: bytes | None = None) -> None:
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))

        def take_terminal() -> None:
            fcntl.ioctl(1, termios.TIOCSCTTY, 0)

        self._master = master
        self.shown = ""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "imageopsd", *map(str, arguments)],
            env={**clean_environment(), "TERM": "xterm-256color"} | {"COLUMNS": "", "LINES": ""},
            stdin=slave if stdin is None else subprocess.PIPE,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=take_terminal,
        )
        os.close(slave)
        if stdin is not None:
            assert self._process.stdin is not None
            self._process.stdin.write(stdin)
            self._process.stdin.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._master)

    def press_ctrl_c(self) -> None:
        os.write(self._master, b"\x03")

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def until(self, condition: Callable[[str], object]) -> None:
        """Reads on until `condition` holds for all that was shown."""
        deadline = time.monotonic() + LIMIT
        while not condition(self.shown):
            assert time.monotonic() < deadline, self.shown
            assert self._read(1.0) is not None, self.shown

    def end(self) -> tuple[int, str]:
        """The exit code, and all that was shown, colours and cursor movements apart."""
        while self._read(LIMIT):
            pass
        return self._process.wait(LIMIT), plain(self.shown)

    def _read(self, patience: float) -> str | None:
        """What came; None at the end."""
        if not select.select([self._master], [], [], patience)[0]:
            return ""
        try:
            data = os.read(self._master, 65536).decode(errors="replace")
        except OSError:  # EIO: nobody has the terminal any more
            return None
        self.shown += data
        return data


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r\n", "\n")


def insert(name: str) -> Json:
    source = {"source": "https://example.com/disk.tar.gz"}
    return {"method": "images.insert", "project": "p", "body": {"name": name, "rawDisk": source}}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    with DaemonProcess(tmp_path_factory.mktemp("terminal") / "data", *SIMULATED, SCRIPTS) as process:
        process.done(process.insert(insert("bad-one")["body"])["name"])
        process.done(process.insert(insert(LONG_NAME)["body"])["name"])
        process.done(process.patch(LONG_NAME, WARNED)["name"])
        yield process


def test_waiting_shows_a_bar_that_moves_to_the_end(tmp_path: Path, source: SourceServer, archive: Archive) -> None:
    half = Gate(after=len(archive.body) // 2)
    body = {"name": "half-one", "rawDisk": {"source": source.put("disk.tar.gz", Served(archive.body, gate=half))}}
    job = json.dumps({"method": "images.insert", "project": "p", "body": body}).encode()
    with (
        DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES) as daemon,
        Terminal("submit", "--wait", "-", "--data-dir", daemon.data_dir, stdin=job) as terminal,
    ):
        terminal.until(lambda shown: any(percentages(shown)))
        half.open()
        code, shown = terminal.end()
    assert code == 0, shown
    first, *_, last = filter(None, percentages(shown))
    assert 0 < first < last == 100
    assert percentages(shown) == sorted(percentages(shown))
    assert "━" in shown
    assert shown.rstrip().endswith("ok")


def percentages(shown: str) -> list[int]:
    return [int(number) for number in re.findall(r"insert half-one .*?(\d+)%", plain(shown))]


def test_a_warning_is_a_line_that_stays_above_the_bars(daemon: DaemonProcess) -> None:
    job = {"method": "images.patch", "project": "p", "image": LONG_NAME, "body": WARNED}
    with Terminal("submit", "--wait", "-", "--data-dir", daemon.data_dir, stdin=json.dumps(job).encode()) as terminal:
        code, shown = terminal.end()
    assert code == 0, shown
    [warning] = daemon.operation(shown.split()[0])["warnings"]
    assert shown.count(f"patch {LONG_NAME}  warning SCHEMA_VALIDATION_IGNORED: {warning['message']}\n") == 1
    assert shown.rstrip().endswith("ok")


@pytest.mark.parametrize("command", ["submit", "operations wait"])
def test_ctrl_c_ends_the_waiting_and_says_how_to_go_on(daemon: DaemonProcess, command: str) -> None:
    if command == "submit":
        job = json.dumps(insert("slow-one")).encode()
        arguments: list[str] = ["submit", "--wait", "-"]
    else:
        job, arguments = b"", ["operations", "wait", daemon.insert(insert("slow-two")["body"])["name"]]
    with Terminal(*arguments, "--data-dir", str(daemon.data_dir), stdin=job) as terminal:
        terminal.until(lambda shown: re.search(r"insert slow-.*40%", plain(shown)))
        terminal.press_ctrl_c()
        code, shown = terminal.end()
    name = shown.split()[0] if command == "submit" else arguments[2]
    assert (code, "Traceback" in shown) == (130, False), shown
    assert f"\nthe job goes on; follow it with: imageopsd operations wait {name}\n" in shown
    assert daemon.operation(name)["status"] == "RUNNING"


@pytest.mark.parametrize("columns", [80, 100, 120, 200])
def test_a_table_fits_the_terminal_and_names_stay_whole(daemon: DaemonProcess, columns: int) -> None:
    with Terminal("operations", "list", "--data-dir", daemon.data_dir, columns=columns) as terminal:
        code, shown = terminal.end()
    assert code == 0, shown
    head, *lines = shown.splitlines()
    records = daemon.operations()
    assert sorted(record["name"] for record in records) == sorted(line.split()[0] for line in lines)
    assert max(map(len, [head, *lines])) <= columns
    assert {"NAME", "TARGET", "STATUS", "ERROR"} <= set(head.split())
    assert [column in head for column in ("WARNINGS", "INSERTED")] == [columns >= 120, columns >= 200]
    assert any("QUOTA" in line for line in lines)


def test_an_empty_table_says_so(tmp_path: Path, daemon: DaemonProcess) -> None:
    with Terminal("images", "list", "--project", "empty", "--data-dir", daemon.data_dir) as terminal:
        assert terminal.end() == (0, "nothing to show\n")


def test_the_log_on_a_terminal_is_for_eyes(tmp_path: Path) -> None:
    arguments = ["serve", "--data-dir", str(tmp_path), "--listen", "127.0.0.1:0"]
    with Terminal(*arguments, *(word for setting in SIMULATED for word in ("--set", setting))) as terminal:
        terminal.until(lambda shown: "ready" in shown)
        terminal.press_ctrl_c()
        code, shown = terminal.end()
    assert (code, "Traceback" in shown) == (0, False), shown
    [ready] = [line for line in shown.splitlines() if " ready " in line]
    assert re.match(r"\d{4}-\d\d-\d\dT[\d:.]+Z \[info +\] ready +", ready), ready
    assert f"data_dir={tmp_path}" in ready
    assert "signal=SIGINT" in shown
