"""SIGKILL at the worst moments. What was acknowledged is there afterwards, and ends once, with one image."""

import ctypes
import os
import select
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from tests.acceptance.conftest import Archive
from tests.acceptance.source import Gate, Served, SourceServer
from tests.backends import archives
from tests.backends.archives import MIB, same_bytes
from tests.daemon_process import LIMIT, LOOPBACK_SOURCES, PROJECT, DaemonProcess, Json, clean_environment

from imageopsd.crashpoints import VARIABLE

IMPORTING = (LOOPBACK_SOURCES, "log.level=debug")
FOR_EVER = ("backend=simulated", "backends.simulated.duration=1h")
AT_ONCE = ("backend=simulated", "backends.simulated.duration=0s")


def far(line: Json) -> bool:
    return int(line["progress"]) >= 40


def test_an_import_killed_in_the_middle_ends_once_with_every_byte(
    tmp_path: Path, source: SourceServer, archive: Archive
) -> None:
    half, start = Gate(after=len(archive.body) // 2), Gate(after=len(archive.body) // 10)
    url = source.put("disk.tar.gz", Served(archive.body, gate=half))
    with DaemonProcess(tmp_path / "data", *IMPORTING) as daemon:
        name = daemon.insert({"name": "disk", "rawDisk": {"source": url, "sha1Checksum": archive.sha1}})["name"]
        half.wait_until_reached()
        daemon.wait_for("operation progressed", far)
        records = [daemon.operation(name)]
        assert daemon.image("disk")["status"] == "PENDING"
        assert ([*daemon.data_dir.glob("images/*/*")], len(daemon.staged())) == ([], 1)

        daemon.kill()
        source.put("disk.tar.gz", Served(archive.body, gate=start))
        daemon.start()

        start.wait_until_reached()
        daemon.wait_for("operation progressed")
        records.append(daemon.operation(name))
        start.open()
        records.append(daemon.done(name))

        assert [record["status"] for record in records] == ["RUNNING", "RUNNING", "DONE"]
        progress = [record["progress"] for record in records]
        assert progress[0] >= 40
        assert progress == sorted(progress)
        written = [line["progress"] for line in daemon.log if line["event"] == "operation progressed"]
        assert written == sorted(written)
        assert len({record["startTime"] for record in records}) == 1
        assert "error" not in records[-1]
        assert "warnings" not in records[-1]
        assert [records[-1]] == daemon.operations()
        [image] = daemon.images()
        assert (image["id"], image["status"]) == (records[-1]["targetId"], "READY")
        assert image["archiveSizeBytes"] == str(len(archive.body))
        assert same_bytes(archive.disk, daemon.stored(image))
        assert [image["id"]] == os.listdir(daemon.data_dir / "images" / PROJECT)
        assert daemon.staged() == []
        assert source.requests == ["/disk.tar.gz"] * 2


def test_an_image_that_was_published_but_not_recorded_is_found_and_not_made_again(
    tmp_path: Path, source: SourceServer, archive: Archive
) -> None:
    before_the_end = Gate(after=len(archive.body) - 1)
    url = source.put("disk.tar.gz", Served(archive.body, gate=before_the_end))
    with DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES) as daemon:
        name = daemon.insert({"name": "disk", "rawDisk": {"source": url}})["name"]
        before_the_end.wait_until_reached()
        published = daemon.data_dir / "images" / PROJECT
        published.mkdir(mode=0o700)

        with unwritable(daemon.data_dir / "state.db"), appearing_in(published) as appeared:
            before_the_end.open()
            [image_id] = appeared
            daemon.kill()
        kept = (published / image_id / "disk.raw").stat().st_ino
        daemon.start()

        record = daemon.done(name)
        image = daemon.image("disk")
        assert "error" not in record
        assert (image["id"], image["status"], image["diskSizeGb"]) == (image_id, "READY", "1")
        assert image["archiveSizeBytes"] == str(len(archive.body))
        assert kept == daemon.stored(image).stat().st_ino
        assert same_bytes(archive.disk, daemon.stored(image))
        assert source.requests == ["/disk.tar.gz"]
        assert daemon.staged() == []


@pytest.mark.parametrize("side", ["before", "after"])
def test_a_death_while_a_large_disk_is_made_safe_in_parts_costs_no_byte(tmp_path: Path, side: str) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    disk = archives.disk(tmp_path / "disk.raw", archives.GIB, [(0, b"imageopsd" * (8 * MIB))])
    archives.sparse(disk, bucket / "disk.tar.gz")
    settings = (f'backends.local.buckets={{ b = "{bucket}" }}', "backends.local.free_space_margin=0")
    environment = {VARIABLE: f"window.sync.{side}"}
    with DaemonProcess(tmp_path / "data", *settings, environment=environment) as daemon:
        name = daemon.insert({"name": "disk", "rawDisk": {"source": "gs://b/disk.tar.gz"}})["name"]
        assert daemon.wait() == -signal.SIGKILL

        daemon.environment = {}
        daemon.start()
        assert "error" not in daemon.done(name)
        assert same_bytes(disk, daemon.stored(daemon.image("disk")))
        assert daemon.staged() == []


def test_a_kill_is_no_attempt(tmp_path: Path, source: SourceServer, archive: Archive) -> None:
    retries = ("worker.attempts=2", "worker.retry_base=1ms", "worker.retry_cap=1ms")
    with DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES, *retries) as daemon:
        gate = Gate(after=1000)
        url = source.put("disk.tar.gz", Served(archive.body, gate=gate))
        name = daemon.insert({"name": "disk", "rawDisk": {"source": url}})["name"]
        for _ in range(2):
            gate.wait_until_reached()
            daemon.kill()
            gate = Gate(after=1000)
            source.put("disk.tar.gz", Served(archive.body, gate=gate))
            daemon.start()
        gate.wait_until_reached()
        daemon.kill()
        source.put("disk.tar.gz", Served(b"", 503), Served(archive.body))
        daemon.start()

        record = daemon.done(name)

        assert "error" not in record
        assert [warning["code"] for warning in record["warnings"]] == ["NOT_CRITICAL_ERROR"]
        assert record["warnings"][0]["message"].startswith("Attempt 1 of 2 failed: ")
        assert same_bytes(archive.disk, daemon.stored(daemon.image("disk")))


@pytest.mark.parametrize("when", ["before the daemon started", "while the daemon ran"])
def test_a_job_whose_id_was_printed_is_carried_out_whatever_is_killed_then(tmp_path: Path, when: str) -> None:
    job_id = str(uuid4())
    job = f'{{"method": "images.insert", "project": "p", "requestId": "{job_id}", "body": {IMAGE}}}'
    with DaemonProcess(tmp_path / "data", *FOR_EVER) as daemon:
        if when == "before the daemon started":
            daemon.kill()

        assert job_id == first_line_and_death(["submit", "-", "--data-dir", str(daemon.data_dir)], job)
        if daemon.running:
            daemon.kill()
        daemon.settings = list(AT_ONCE)
        daemon.start()

        daemon.wait_for("operation succeeded")
        record = daemon.done(job_id)
        assert (record["clientOperationId"], record["user"]) == (job_id, "queue")
        assert "error" not in record
        assert [record] == daemon.operations()
        assert [image["name"] for image in daemon.images()] == ["image"]


def test_what_was_done_before_a_kill_is_unchanged_after_it(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "data", *AT_ONCE) as daemon:
        good = daemon.done(daemon.insert({"name": "good", "rawDisk": {"source": "https://example.com/a"}})["name"])
        patched = daemon.done(daemon.patch("good", {"family": "f", "description": "d"})["name"])
        image = daemon.image("good")

        daemon.kill()
        daemon.start()

        assert [good, patched] == daemon.operations()
        assert [image] == daemon.images()


def test_a_pending_operation_behind_a_killed_one_keeps_its_turn(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "data", *FOR_EVER) as daemon:
        insert = daemon.insert({"name": "image", "rawDisk": {"source": "https://example.com/a"}})
        daemon.wait_for("operation started")
        patch = daemon.patch("image", {"family": "f"})
        assert patch["status"] == "PENDING"

        daemon.kill()
        daemon.settings = list(AT_ONCE)
        daemon.start()

        ends = [daemon.done(operation["name"])["endTime"] for operation in (insert, patch)]
        assert ends == sorted(ends)
        assert daemon.image("image")["family"] == "f"


IMAGE = '{"name": "image", "rawDisk": {"source": "https://example.com/disk.tar.gz"}}'


def first_line_and_death(arguments: list[str], stdin: str) -> str:
    """What a command prints first; it is killed the moment it has printed it."""
    command = [sys.executable, "-m", "imageopsd", *arguments]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=clean_environment(), text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(stdin)
        process.stdin.close()
        line = process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    return line.strip()


@contextmanager
def unwritable(database: Path) -> Iterator[None]:
    """Nobody else can commit to the database inside the block: whoever tries waits."""
    with closing(sqlite3.connect(database, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")


IN_MOVED_TO = 0x80
HEADER = 16
"""struct inotify_event: descriptor, mask, cookie, length of the name that follows."""


@contextmanager
def appearing_in(directory: Path) -> Iterator[Iterator[str]]:
    """The names of what is renamed into `directory` from now on, each the moment it happens (inotify(7), for which
    Python has no module)."""
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_CLOEXEC)
    try:
        assert libc.inotify_add_watch(descriptor, os.fsencode(directory), IN_MOVED_TO) > 0, ctypes.get_errno()
        yield _first_name(descriptor)
    finally:
        os.close(descriptor)


def _first_name(descriptor: int) -> Iterator[str]:
    readable, _, _ = select.select([descriptor], [], [], LIMIT)
    assert readable, "nothing was published"
    yield os.read(descriptor, 4096)[HEADER:].partition(b"\0")[0].decode()
