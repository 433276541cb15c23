"""A file system without room: new work is refused, reads go on, and all heals by itself once there is room again."""

import json
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.chaos.evidence import Verdict, check_store
from tests.daemon_process import PROJECT, DaemonProcess, Json, run_cli
from tests.needs import need

SIZE = 4 * 1024**2
"""Bytes of the file system; the databases fill it a few hundred records later."""

SOURCE = {"source": "https://example.com/disk.tar.gz"}
SETTINGS = ("backend=simulated", "backends.simulated.duration=0s")


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", place]
    mounted = subprocess.run(mount, capture_output=True, text=True, check=False)
    need(mounted.returncode == 0, f"this machine cannot mount a tmpfs: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def fill(place: Path) -> Path:
    """A file that takes all the room there is."""
    filler = place / "filler"
    with filler.open("wb", buffering=0) as file:
        for size in (64 * 1024, 4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue
    return filler


def insert_until_refused(daemon: DaemonProcess) -> tuple[list[Json], Json]:
    """The operations that were acknowledged on the way, and the refusal. What SQLite has room for in the files it has
    it still takes."""
    taken: list[Json] = []
    while len(taken) < 5000:
        name = f"i-{len(taken)}"
        body = {"name": name, "rawDisk": SOURCE, "description": "d" * 2000}
        answer = daemon.call("POST", "images", body)
        if answer.status != 200:
            return taken, {"status": answer.status, **answer.json()}
        taken.append(answer.json())
    raise AssertionError("the file system never was full")


def test_a_full_disk_loses_nothing_and_heals_by_itself(small: Path) -> None:
    with DaemonProcess(small / "data", *SETTINGS) as daemon:
        first = daemon.done(daemon.insert({"name": "before", "rawDisk": SOURCE})["name"])
        filler = fill(small)

        taken, refusal = insert_until_refused(daemon)

        assert refusal["status"] == 503
        assert "no space left for the database" in refusal["error"]["message"]
        assert refusal["error"]["errors"][0]["reason"] == "backendError"
        assert daemon.operation(first["name"]) == first
        assert daemon.image("before")["status"] == "READY"
        assert [daemon.get(path).status for path in ("/livez", "/metrics", "/status")] == [200] * 3
        submitted = run_cli("submit", "-", "--data-dir", daemon.data_dir, stdin=job("full"))
        assert (submitted.returncode, submitted.stdout) in ((1, ""), (5, "")), submitted
        daemon.wait_for("store unavailable")

        filler.unlink()

        for operation in taken:
            assert "error" not in daemon.done(operation["name"])
        daemon.done(daemon.insert({"name": "after", "rawDisk": SOURCE})["name"])
        assert daemon.terminate() == 0
    verdict = Verdict(jobs=len(taken) + 2, kills=0)
    assert len(check_store(daemon.data_dir, verdict)) == len(taken) + 2
    assert verdict.good, verdict.details()


def test_a_daemon_that_can_record_nothing_is_not_ready_until_it_can(small: Path) -> None:
    with DaemonProcess(small / "data", *SETTINGS) as daemon:
        filler = fill(small)
        insert_until_refused(daemon)
        assert daemon.get("/readyz").status == 503
        assert b"no space left for the database" in daemon.get("/readyz").body.lower()
        assert daemon.get("/livez").status == 200
        filler.unlink()
        daemon.wait_for("operations are started again", lambda line: line["obstacle"] == "store")
        assert daemon.get("/readyz").status == 200


def test_a_disk_that_fails_ends_the_process_rather_than_going_on_in_doubt(tmp_path: Path) -> None:
    """Writes beyond a limit on the size of files fail with EFBIG, which SQLite takes for an error of the disk."""
    with DaemonProcess(tmp_path, *SETTINGS) as daemon:
        resource.prlimit(daemon.pid, resource.RLIMIT_FSIZE, (4096, 4096))
        answer = daemon.call("POST", "images", {"name": "i", "rawDisk": SOURCE})
        assert answer.status == 503
        assert daemon.wait() == 1
        assert daemon.last_words() == "imageopsd: the daemon ended: the database cannot be used: disk I/O error\n"
        daemon.start()
        assert daemon.operations() == []
        daemon.done(daemon.insert({"name": "i", "rawDisk": SOURCE})["name"])


def test_a_daemon_that_is_killed_on_a_full_disk_starts_again_on_it(small: Path) -> None:
    with DaemonProcess(small / "data", *SETTINGS) as daemon:
        filler = fill(small)
        taken, _ = insert_until_refused(daemon)
        daemon.kill()
        filler.unlink()
        daemon.start()
        assert [daemon.done(operation["name"])["progress"] for operation in taken] == [100] * len(taken)


def job(name: str) -> str:
    body = {"name": name, "rawDisk": SOURCE}
    return json.dumps({"method": "images.insert", "project": PROJECT, "body": body})
