"""The demonstration itself: a daemon of its own on a directory of its own, three jobs, and the proof."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, BinaryIO
from uuid import uuid4

import click

from imageopsd.cli.client import Client, Place
from imageopsd.cli.demo.disk import Archive, make_disk, pack
from imageopsd.cli.demo.server import serving
from imageopsd.cli.exits import Exit, Failure
from imageopsd.cli.following import Follower, outcome
from imageopsd.cli.show import show_one
from imageopsd.config.loading import CONFIG_VARIABLE, ENVIRONMENT_PREFIX

PROJECT = "demo"
PREFIX = "imageopsd-demo-"
START_LIMIT = 30.0
JOBS_LIMIT = 120.0
IDLE_LIMIT = "60s"
COMPARED_AT_ONCE = 1024**2
METRICS = (
    "imageopsd_operations_total",
    "imageopsd_bytes_received_total",
    "imageopsd_operation_duration_seconds_sum",
    "imageopsd_queue_jobs",
)


@click.command()
@click.option("--keep", type=click.Path(path_type=Path), metavar="DIR", help="Work in DIR and leave it there.")
def demo(keep: Path | None) -> None:
    """Import a real disk image through a daemon of its own, patch it, and show the records.

    Needs no configuration and touches nothing but a temporary directory.
    """
    with ExitStack() as stack:
        stack.enter_context(_unwound_by_signals())
        folder = _folder(keep) if keep else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=PREFIX)))
        _heading("A disk")
        disk, content = make_disk(folder)
        archive = pack(disk, folder / "disk.tar.gz")
        click.echo(f"{disk.name}: {_size(disk.stat().st_size)} virtual, {_size(_stored(disk))} on disk: {content}")
        click.echo(f"{archive.path.name}: {_size(archive.size)}, sha1 {archive.sha1}")

        url = stack.enter_context(serving(archive.path))
        data_dir = folder / "data"
        log = folder / "daemon.log"
        jobs = _jobs(url, archive)
        _heading("Three jobs, submitted before the daemon runs")
        _submit(jobs, data_dir, folder)
        _heading("The daemon carries them out")
        server = stack.enter_context(_running(data_dir, log))
        client = Client(lambda: [Place(server)], PROJECT)
        records = _follow(client, jobs)
        _report(records)
        codes = [record["error"]["errors"][0]["code"] if "error" in record else None for record in records]
        if codes != [None, "INVALID_IMAGE_FILE", None]:
            raise Failure(Exit.FAILED, f"the demonstration went wrong: the operations ended with {codes}")
        image = client.image("demo-disk")
        _heading("The image")
        show_one(image, "json")
        _scrape(server)
        if not _compare(disk, data_dir / "images" / PROJECT / image["id"] / "disk.raw"):
            raise Failure(Exit.FAILED, "the demonstration went wrong: the image is not the disk")
    _heading("Next")
    click.echo("imageopsd serve --help · imageopsd submit --help · config/imageopsd.toml · README.md")


@contextmanager
def _unwound_by_signals() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP end the process as Ctrl-C does: from the inside out, leaving nothing behind."""
    numbers = (signal.SIGTERM, signal.SIGHUP)

    def unwind(number: int, _: FrameType | None) -> None:
        for other in (*numbers, signal.SIGINT):  # impatience must not interrupt the tidying up
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, unwind) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _folder(keep: Path) -> Path:
    """The directory to work in, which must be new or empty: a demonstration overwrites nothing. Raises Failure 2."""
    try:
        keep.mkdir(parents=True, exist_ok=True)
        if any(keep.iterdir()):
            raise Failure(Exit.USAGE, f"--keep {keep}: the directory is not empty; name one that is, or a new one")
    except OSError as error:
        raise Failure(Exit.USAGE, f"--keep {keep}: {error.strerror}") from error
    return keep


def _jobs(url: str, archive: Archive) -> list[dict[str, Any]]:
    def insert(name: str, sha1: str) -> dict[str, Any]:
        body = {"name": name, "rawDisk": {"source": url, "sha1Checksum": sha1}, "labels": {"made-by": "demo"}}
        return {"method": "images.insert", "project": PROJECT, "requestId": str(uuid4()), "body": body}

    patch = {"family": "demo", "description": "Made by imageopsd demo.", "deprecated": {"state": "DEPRECATED"}}
    return [
        insert("demo-disk", archive.sha1),
        insert("demo-bad-checksum", "0" * 40),
        {
            "method": "images.patch",
            "project": PROJECT,
            "requestId": str(uuid4()),
            "image": "demo-disk",
            "body": patch,
        },
    ]


def _submit(jobs: list[dict[str, Any]], data_dir: Path, folder: Path) -> None:
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs, indent=2))
    click.echo(f"$ imageopsd submit {file.name}")
    for job in jobs:
        click.echo(f"  {job['method']:14} {job.get('image') or job['body']['name']}")
    command = [sys.executable, "-m", "imageopsd", "submit", str(file), "--data-dir", str(data_dir)]
    if subprocess.run(command, env=_environment(), check=False).returncode:
        raise Failure(Exit.FAILED, "the jobs could not be submitted")


def _environment() -> dict[str, str]:
    """Ours, without what would configure the commands: the demonstration runs on the defaults."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(ENVIRONMENT_PREFIX)}
    return {**others, CONFIG_VARIABLE: ""}  # nor the host's own file


@contextmanager
def _running(data_dir: Path, log: Path) -> Iterator[str]:
    """A daemon in a process of its own, from its READY=1 to its end; yields its address."""
    command = [sys.executable, "-m", "imageopsd", "serve", "--data-dir", str(data_dir), "--listen", "127.0.0.1:0"]
    # the one thing beyond the defaults: sources on this very machine
    command += ["--set", 'backends.local.allow_networks=["127.0.0.0/8"]']
    command += ["--exit-when-idle", IDLE_LIMIT]  # should we be killed, it does not stay alone for long
    click.echo(f"$ imageopsd {' '.join(command[3:])}")
    name = f"{PREFIX}{uuid4().hex}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, log.open("wb") as output:
        ready.bind(f"\0{name}")
        ready.settimeout(0.2)
        environment = {**_environment(), "NOTIFY_SOCKET": f"@{name}"}
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            _await_ready(ready, process, log)
            yield (data_dir / "endpoint").read_text().strip()
            process.send_signal(signal.SIGTERM)
            process.wait(START_LIMIT)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


def _await_ready(ready: socket.socket, process: "subprocess.Popen[bytes]", log: Path) -> None:
    """Raises Failure 1 with the daemon's log if it ends instead, or takes too long."""
    deadline = time.monotonic() + START_LIMIT
    while True:
        try:
            if b"READY=1" in ready.recv(4096):
                return
        except TimeoutError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise Failure(Exit.FAILED, f"the daemon did not start:\n{log.read_text()}") from None


def _follow(client: Client, jobs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All operations to their end, with their progress in front of your eyes."""
    records: dict[str, dict[str, Any]] = {}
    deadline = time.monotonic() + JOBS_LIMIT
    with Follower() as follower:
        while len(records) < len(jobs) or any(r["status"] != "DONE" for r in records.values()):
            if time.monotonic() > deadline:
                raise Failure(Exit.TIMED_OUT, "the jobs took too long")
            for operation in client.list("operations", len(jobs)):
                records[operation["clientOperationId"]] = operation
                follower.update(operation)
            time.sleep(0.2)
    return [records[job["requestId"]] for job in jobs]


def _report(records: list[dict[str, Any]]) -> None:
    for record in records:
        target = record["targetLink"].rpartition("/")[2]
        _heading(f"The record of {record['operationType']} {target}: {outcome(record)}")
        show_one(record, "json")


def _scrape(server: str) -> None:
    _heading(f"Of {server}/metrics")
    with urllib.request.urlopen(f"{server}/metrics", timeout=10) as answer:  # noqa: S310 - our own daemon
        for line in answer.read().decode().splitlines():
            if line.startswith(METRICS) and not line.endswith(" 0.0"):
                click.echo(line)


def _compare(original: Path, stored: Path) -> bool:
    """Compares all that is data in one of the two; what is a hole in both is zeros in both."""
    _heading("The bytes")
    for path, name in ((original, "the original"), (stored, "the image")):
        click.echo(f"{name:12}  {_size(path.stat().st_size)} virtual, {_size(_stored(path))} stored")
    with original.open("rb") as one, stored.open("rb") as other:
        ranges = {*_data(one), *_data(other)}
        same = original.stat().st_size == stored.stat().st_size and all(
            os.pread(one.fileno(), length, start) == os.pread(other.fileno(), length, start) for start, length in ranges
        )
    click.echo("identical" if same else "DIFFERENT")
    return same


def _data(file: BinaryIO) -> Iterator[tuple[int, int]]:
    """Where the file holds data, in pieces of at most COMPARED_AT_ONCE bytes on a common grid."""
    end = os.fstat(file.fileno()).st_size
    start = 0
    while start < end:
        try:
            start = os.lseek(file.fileno(), start, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole from here on
            return
        start -= start % COMPARED_AT_ONCE
        yield start, COMPARED_AT_ONCE
        start += COMPARED_AT_ONCE


def _heading(text: str) -> None:
    click.secho(f"\n{text}", bold=True)


def _stored(path: Path) -> int:
    return path.stat().st_blocks * 512


def _size(count: int) -> str:
    return f"{count / 1024**3:.1f} GiB" if count >= 1024**3 else f"{count / 1024**2:.1f} MiB"
