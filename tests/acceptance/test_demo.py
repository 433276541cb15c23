"""`imageopsd demo` as somebody runs it who has never seen the daemon: to its end, and stopped in the middle."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.daemon_process import LIMIT, clean_environment, run_cli


def start(temporary: Path, *arguments: str) -> "subprocess.Popen[str]":
    """A demonstration that has `temporary` for its temporary files, in a session of its own as a terminal gives it."""
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "imageopsd", "demo", *arguments],
        env={**clean_environment(), "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def mentioning(directory: Path) -> list[str]:
    """The command lines of processes that work on a directory."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = file.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:  # it has ended
            continue
        if str(directory) in command:
            found.append(command)
    return found


def until(condition: Callable[[], Any]) -> None:
    """For what happens in processes that are not ours to wait for."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_demonstration_imports_a_disk_and_shows_the_records(tmp_path: Path) -> None:
    begun = time.monotonic()
    with start(tmp_path) as demo:
        output, complaint = demo.communicate(timeout=LIMIT)
    assert demo.returncode == 0, output + complaint
    assert time.monotonic() - begun < 60
    assert "\nidentical\n" in output
    for heading in ("insert demo-disk: ok", "insert demo-bad-checksum: INVALID_IMAGE_FILE: ", "patch demo-disk: ok"):
        assert f"The record of {heading}" in output
    assert output.count('"kind": "compute#operation"') == 3
    assert re.search(r'^imageopsd_operations_total\{outcome="success",type="insert"\} 1\.0$', output, re.MULTILINE)
    assert "insert demo-disk  DONE 100%  ok" in complaint
    assert (list(tmp_path.iterdir()), mentioning(tmp_path)) == ([], [])


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129), (signal.SIGINT, 130)], ids=lambda n: str(n)
)
@pytest.mark.parametrize("moment", ["the disk is made", "the import runs"])
def test_a_demonstration_that_is_stopped_leaves_nothing_behind(
    tmp_path: Path, number: signal.Signals, code: int, moment: str
) -> None:
    with start(tmp_path) as demo:
        assert demo.stderr is not None
        if moment == "the import runs":
            assert any("RUNNING" in line for line in demo.stderr)
            assert any(" serve " in command for command in mentioning(tmp_path))
        else:
            until(lambda: list(tmp_path.glob("*/disk.raw")))
        if number == signal.SIGINT:
            os.killpg(demo.pid, number)  # Ctrl-C is for all that run in the foreground
        else:
            demo.send_signal(number)
        _, complaint = demo.communicate(timeout=LIMIT)

    assert (demo.returncode, "Traceback" in complaint) == (code, False), complaint
    assert (list(tmp_path.iterdir()), mentioning(tmp_path)) == ([], [])


def test_what_configures_the_daemon_does_not_configure_the_demonstration(tmp_path: Path) -> None:
    ended = run_cli("demo", "--keep", tmp_path / "kept", environment={"IMAGEOPSD_BACKEND": "simulated"})
    assert (ended.returncode, "\nidentical\n" in ended.stdout) == (0, True), ended.stdout + ended.stderr
    assert {"disk.raw", "disk.tar.gz", "jobs.json", "daemon.log", "data"} == {
        path.name for path in (tmp_path / "kept").iterdir()
    }


def test_a_directory_to_keep_that_holds_something_is_refused(tmp_path: Path) -> None:
    (tmp_path / "disk.raw").write_text("mine")
    ended = run_cli("demo", "--keep", tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"imageopsd: --keep {tmp_path}: the directory is not empty; name one that is, or a new one\n"
    assert (tmp_path / "disk.raw").read_text() == "mine"


def test_a_file_is_no_directory_to_keep(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = run_cli("demo", "--keep", tmp_path / "file")
    assert (2, f"imageopsd: --keep {tmp_path / 'file'}: File exists\n") == (ended.returncode, ended.stderr)
