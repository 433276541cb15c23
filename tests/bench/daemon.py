"""A daemon as a process, with nobody reading its log: what it costs to start, to keep and to ask."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import NamedTuple
from uuid import uuid4

import anyio

from tests.bench.figure import MIB, Figure
from tests.bench.history import store
from tests.daemon_process import clean_environment

ROUNDS = 5
IDLE = 30
"""Seconds for which nothing is asked of it."""
IDLE_CPU = 0.02 / 20
"""Seconds that it may compute in a second of idleness."""


class Running(NamedTuple):
    pid: int
    url: str
    seconds: float
    """From its start until it said READY=1."""

    @property
    def cpu(self) -> float:
        """Seconds it has computed, all its threads together."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    @property
    def resident(self) -> int:
        """Bytes of memory."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def running(data_dir: Path, *settings: str) -> Iterator[Running]:
    name = f"imageopsd-bench-{uuid4().hex}"
    command = [sys.executable, "-m", "imageopsd", "serve", "--data-dir", str(data_dir), "--listen", "127.0.0.1:0"]
    for setting in settings:
        command += ["--set", setting]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(120)
        environment = {**clean_environment(), "NOTIFY_SOCKET": f"@{name}"}
        began = perf_counter()
        with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL) as process:
            try:
                while b"READY=1" not in manager.recv(4096):
                    pass
                yield Running(process.pid, (data_dir / "endpoint").read_text().strip(), perf_counter() - began)
            finally:
                process.send_signal(signal.SIGTERM)


async def measure(folder: Path, finished: int) -> list[Figure]:
    """Figures of the default configuration, local backend included; `finished` records in the larger store."""
    return await anyio.to_thread.run_sync(_measure, folder / "daemon", await store(folder, finished), finished)


def _measure(data_dir: Path, large: Path, finished: int) -> list[Figure]:
    target = "target"
    libraries = [_libraries() for _ in range(ROUNDS)]
    empty = [_start(data_dir) for _ in range(ROUNDS)]
    with running(data_dir) as daemon:
        sleep(1)  # what follows a start, housekeeping say, is no idleness
        before = daemon.cpu
        sleep(IDLE)
        idle, resident = daemon.cpu - before, daemon.resident
    full = [_start(large) for _ in range(ROUNDS)]
    return [
        Figure.time("start to ready, no records", median(empty), target, 0.5),
        Figure.time("", median(empty), "python importing aiohttp.web and anyio", median(libraries)),
        Figure.time(f"start to ready, {finished:,} finished records", median(full), target, 1.0),
        Figure.time(f"CPU in {IDLE} s of idleness", idle, target, IDLE_CPU * IDLE),
        Figure.size("resident when idle", resident, target, 60 * MIB),
    ]


def _start(data_dir: Path) -> float:
    with running(data_dir) as daemon:
        return daemon.seconds


def _libraries() -> float:
    began = perf_counter()
    subprocess.run([sys.executable, "-c", "import aiohttp.web, anyio"], check=True)
    return perf_counter() - began
