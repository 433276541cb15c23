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
from typing import Any, BinaryIO
from uuid import uuid4

import click

from imageopsd.cli.client import Client
from imageopsd.cli.demo.disk import Archive, make_disk, pack
from imageopsd.cli.demo.server import serving
from imageopsd.cli.exits import Exit, Failure
from imageopsd.cli.show import Follower, outcome, show_one

PROJECT = "demo"
START_LIMIT = 30.0
JOBS_LIMIT = 120.0
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
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="imageopsd-demo-")))
        folder.mkdir(parents=True, exist_ok=True)
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
        client = Client(server, PROJECT)
        records = _follow(client, jobs)
        _report(client, server, records)
        image = client.image("demo-disk")
        same = _compare(disk, data_dir / "images" / PROJECT / image["id"] / "disk.raw")
    expected = [None, "INVALID_IMAGE_FILE", None]
    codes = [record["error"]["errors"][0]["code"] if "error" in record else None for record in records]
    if codes != expected or not same:
        raise Failure(Exit.FAILED, f"the demonstration went wrong: {codes}, bytes equal: {same}")
    _heading("Next")
    click.echo("imageopsd serve --help · imageopsd submit --help · config/imageopsd.toml · README.md")


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
    subprocess.run([sys.executable, "-m", "imageopsd", "submit", file, "--data-dir", data_dir], check=True)


@contextmanager
def _running(data_dir: Path, log: Path) -> Iterator[str]:
    """A daemon in a process of its own, from its READY=1 to its end; yields its address."""
    command = [sys.executable, "-m", "imageopsd", "serve", "--data-dir", str(data_dir), "--listen", "127.0.0.1:0"]
    # the one thing beyond the defaults: sources on this very machine
    command += ["--set", 'backends.local.allow_networks=["127.0.0.0/8"]']
    click.echo(f"$ imageopsd {' '.join(command[3:])}")
    name = f"imageopsd-demo-{uuid4().hex}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready, log.open("wb") as output:
        ready.bind(f"\0{name}")
        ready.settimeout(START_LIMIT)
        environment = {**os.environ, "NOTIFY_SOCKET": f"@{name}"}
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=subprocess.STDOUT)
        try:
            while b"READY=1" not in ready.recv(4096):
                pass
            yield (data_dir / "endpoint").read_text().strip()
            process.send_signal(signal.SIGTERM)
            process.wait(START_LIMIT)
        except TimeoutError:
            raise Failure(Exit.FAILED, f"the daemon did not start:\n{log.read_text()}") from None
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()


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


def _report(client: Client, server: str, records: list[dict[str, Any]]) -> None:
    for record in records:
        target = record["targetLink"].rpartition("/")[2]
        _heading(f"The record of {record['operationType']} {target}: {outcome(record)}")
        show_one(record, "json")
    _heading("The image")
    show_one(client.image("demo-disk"), "json")
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
