"""What a bad source gets: an operation that is DONE and says why, and nothing else that remains."""

import gzip
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.acceptance.conftest import Archive
from tests.acceptance.source import Served, SourceServer
from tests.backends.archives import END, MIB, header, member, same_bytes
from tests.daemon_process import LOOPBACK_SOURCES, DaemonProcess, Json, run_cli
from tests.needs import need

HTML = b"<!DOCTYPE html><html><body>Your link has expired.</body></html>"


class Bad(NamedTuple):
    """What is served and how the operation ends. `message` is its beginning, with `{url}` and `{sha1}` for what
    is known only later."""

    serve: Callable[[bytes], Served]
    code: str
    status: int
    words: str
    message: str
    raw_disk: Json | None = None
    """What else the request has in `rawDisk`."""


def packed(tar: bytes) -> Callable[[bytes], Served]:
    return lambda _: Served(gzip.compress(tar, 1))


def damaged(archive: bytes) -> bytes:
    middle = len(archive) // 2
    return archive[:middle] + bytes(64) + archive[middle + 64 :]


TAR = "The tar archive is not a valid image. "
CASES = {
    "not-found": Bad(
        lambda _: Served(b"no", 404, "text/plain"),
        "RESOURCE_NOT_FOUND",
        404,
        "NOT FOUND",
        "The resource '{url}' was not found.",
    ),
    "forbidden": Bad(
        lambda _: Served(b"no", 403, "text/plain"),
        "PERMISSION_DENIED",
        403,
        "FORBIDDEN",
        "Required 'read' permission for '{url}'",
    ),
    "an-html-page": Bad(
        lambda _: Served(HTML, 200, "text/html"),
        "INVALID_IMAGE_FILE",
        400,
        "BAD REQUEST",
        "The source is not a gzip archive: it is an HTML page (Content-Type text/html).",
    ),
    "empty": Bad(
        lambda _: Served(b""),
        "INVALID_IMAGE_FILE",
        400,
        "BAD REQUEST",
        "The source is not a gzip archive: it is empty (Content-Type application/gzip).",
    ),
    "truncated": Bad(
        lambda archive: Served(archive[: len(archive) // 2]),
        "INVALID_IMAGE_FILE",
        400,
        "BAD REQUEST",
        "The gzip archive is truncated.",
    ),
    "truncated-tar": Bad(
        packed(member(b"x" * 2048)[:1536]), "INVALID_IMAGE_TAR", 400, "BAD REQUEST", f"{TAR}It is truncated."
    ),
    "corrupt": Bad(
        lambda archive: Served(damaged(archive)),
        "INVALID_IMAGE_FILE",
        400,
        "BAD REQUEST",
        "The gzip archive is damaged (",
    ),
    "a-second-member": Bad(
        packed(member()[: -len(END)] + member()),
        "INVALID_IMAGE_TAR",
        400,
        "BAD REQUEST",
        f"{TAR}It holds more than the one file disk.raw.",
    ),
    "another-name": Bad(
        packed(member(name=b"image.raw")),
        "INVALID_IMAGE_TAR",
        400,
        "BAD REQUEST",
        "The file inside the tar archive was named ''image.raw''. It should be named ''disk.raw''.",
    ),
    "a-path-out-of-here": Bad(
        packed(member(name=b"../../disk.raw")),
        "INVALID_IMAGE_TAR",
        400,
        "BAD REQUEST",
        "The file inside the tar archive was named ''../../disk.raw''. It should be named ''disk.raw''.",
    ),
    "a-symlink": Bad(
        packed(header(kind=b"2") + END),
        "INVALID_IMAGE_TAR",
        400,
        "BAD REQUEST",
        f"{TAR}Its member 'disk.raw' is a symbolic link.",
    ),
    "pax": Bad(
        packed(header(kind=b"x") + END),
        "INVALID_IMAGE_TAR",
        400,
        "BAD REQUEST",
        "The tar archive format is not supported. Supported formats are: GNU and OLDGNU.",
    ),
    "a-wrong-digest": Bad(
        Served,
        "INVALID_IMAGE_FILE",
        400,
        "BAD REQUEST",
        "The source has the SHA-1 {sha1}, expected was 0000000000000000000000000000000000000000.",
        {"sha1Checksum": "0" * 40},
    ),
    "cut-off-on-the-way": Bad(
        lambda archive: Served(archive[:MIB], length=len(archive)),
        "SOURCE_UNAVAILABLE",
        503,
        "SERVICE UNAVAILABLE",
        "The source '{url}' could not be read: the connection was closed in the middle.",
    ),
    "an-address-nobody-allowed": Bad(
        lambda _: Served(b""),
        "SOURCE_NOT_ALLOWED",
        403,
        "FORBIDDEN",
        "The source is at an address that may not be reached. "
        "Networks that are not public are opened with backends.local.allow_networks.",
        {"source": "http://[::1]/disk.tar.gz"},
    ),
}
RETRIED = {"cut-off-on-the-way"}


@pytest.fixture(scope="module")
def served() -> Iterator[SourceServer]:
    with SourceServer() as server:
        yield server


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DaemonProcess]:
    retries = ("worker.attempts=2", "worker.retry_base=1ms", "worker.retry_cap=1ms")
    with DaemonProcess(tmp_path_factory.mktemp("sources") / "data", LOOPBACK_SOURCES, *retries) as process:
        yield process


@pytest.mark.parametrize("case", CASES)
def test_a_bad_source_ends_the_operation_with_its_error_and_leaves_nothing(
    daemon: DaemonProcess, served: SourceServer, archive: Archive, case: str
) -> None:
    bad = CASES[case]
    url = served.put(case, bad.serve(archive.body))

    record = daemon.done(daemon.insert({"name": case, "rawDisk": {"source": url, **(bad.raw_disk or {})}})["name"])

    [error] = record["error"]["errors"]
    expected = bad.message.format(url=url, sha1=archive.sha1)
    assert (bad.code, expected) == (error["code"], error["message"][: len(expected)])
    assert (bad.status, bad.words) == (record["httpErrorStatusCode"], record["httpErrorMessage"])
    assert (100, case in RETRIED) == (record["progress"], "warnings" in record)
    assert "statusMessage" not in record
    assert daemon.get(f"images/{case}").status == 404
    assert case not in [image["name"] for image in daemon.images()]
    assert daemon.staged() == []
    assert not (daemon.data_dir / "images" / "p" / record["targetId"]).exists()


def test_after_a_bad_source_the_name_is_free_and_a_good_one_gets_it(
    daemon: DaemonProcess, served: SourceServer, archive: Archive
) -> None:
    bad = {"name": "second-chance", "rawDisk": {"source": served.put("bad", Served(HTML))}}
    assert "error" in daemon.done(daemon.insert(bad)["name"])
    good = {"name": "second-chance", "rawDisk": {"source": served.put("good", Served(archive.body))}}

    record = daemon.done(daemon.insert(good)["name"])

    image = daemon.image("second-chance")
    assert ("READY", record["targetId"]) == (image["status"], image["id"])
    assert same_bytes(archive.disk, daemon.stored(image))


# ------------------------------------------------------------------------------------------- a full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    need(os.geteuid() == 0, "mounting a small file system needs root")
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16m,mode=700", "tmpfs", place], capture_output=True, text=True, check=False
    )
    need(mounted.returncode == 0, f"this machine cannot mount a tmpfs: {mounted.stderr.strip()}")
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)


def noise(size: int) -> bytes:
    """The archive of a disk with `size` bytes that no file system can make small."""
    return gzip.compress(member(os.urandom(size)), 1)


def test_what_a_disk_could_never_hold_is_said_so_publishes_nothing_and_leaves_the_daemon_alive(
    small_disk: Path, source: SourceServer
) -> None:
    too_much, fits = source.put("much", Served(noise(24 * MIB))), source.put("little", Served(noise(1 * MIB)))
    with DaemonProcess(small_disk / "data", LOOPBACK_SOURCES, "backends.local.free_space_margin=0") as daemon:
        record = daemon.done(daemon.insert({"name": "much", "rawDisk": {"source": too_much}})["name"])

        [error] = record["error"]["errors"]
        assert error["code"] == "INSUFFICIENT_STORAGE"
        assert error["message"].startswith("The disk is full: ")
        assert (record["httpErrorStatusCode"], record["httpErrorMessage"]) == (507, "INSUFFICIENT STORAGE")
        assert (daemon.staged(), [*daemon.data_dir.glob("images/*/*")]) == ([], [])
        assert daemon.get("images/much").status == 404

        assert "error" not in daemon.done(daemon.insert({"name": "little", "rawDisk": {"source": fits}})["name"])
        assert daemon.image("little")["status"] == "READY"
        assert daemon.get("/readyz").status == 200


def test_an_import_that_finds_the_disk_full_waits_and_says_so_and_goes_on_by_itself(
    small_disk: Path, source: SourceServer, archive: Archive
) -> None:
    url = source.put("much", Served(noise(10 * MIB)))
    settings = ("backends.local.free_space_margin=0", "worker.retry_cap=10ms", "worker.attempts=1", "log.level=debug")
    with DaemonProcess(small_disk / "data", LOOPBACK_SOURCES, *settings) as daemon:
        ballast = small_disk / "ballast"
        ballast.write_bytes(bytes(7 * MIB))
        waiting = daemon.insert({"name": "much", "rawDisk": {"source": url}})["name"]
        daemon.wait_for("operation postponed", lambda line: line["reason"].startswith("The disk is full: "))

        record = daemon.operation(waiting)
        assert (record["status"], record["statusMessage"][:18]) == ("RUNNING", "The disk is full: ")
        assert [warning["code"] for warning in record["warnings"]] == ["NOT_CRITICAL_ERROR"]
        assert (daemon.staged(), [*daemon.data_dir.glob("images/*/*")]) == ([], [])

        ballast.unlink()
        assert "error" not in daemon.done(waiting)
        assert daemon.image("much")["status"] == "READY"


def test_a_full_disk_starts_no_import_and_says_so_until_there_is_space_again(
    small_disk: Path, source: SourceServer
) -> None:
    url = source.put("disk", Served(noise(1 * MIB)))
    margin = f"backends.local.free_space_margin={8 * MIB}"
    with DaemonProcess(small_disk / "data", LOOPBACK_SOURCES, margin) as daemon:
        daemon.done(daemon.insert({"name": "old", "rawDisk": {"source": url}})["name"])
        ballast = small_disk / "ballast"
        ballast.write_bytes(bytes(7 * MIB))

        waiting = daemon.insert({"name": "new", "rawDisk": {"source": url}})["name"]
        daemon.wait_for("no operation is started")
        record = daemon.operation(waiting)
        assert record["status"] == "PENDING"
        assert record["statusMessage"].startswith("The disk is full: ")
        assert daemon.get("/readyz").status == 503
        assert b"The disk is full" in daemon.get("/readyz").body
        assert daemon.image("old")["status"] == "READY"
        deleted = daemon.call("DELETE", "images/old").json()["name"]
        assert "error" not in daemon.done(deleted)  # a full disk keeps nobody from deleting

        ballast.unlink()
        assert "error" not in daemon.done(waiting)
        daemon.wait_for("operations are started again")
        assert daemon.get("/readyz").body == b"ready\n"


def test_when_not_even_records_fit_callers_are_told_and_nothing_that_was_promised_is_lost(
    small_disk: Path, source: SourceServer
) -> None:
    url = source.put("disk", Served(noise(1 * MIB)))
    with DaemonProcess(small_disk / "data", LOOPBACK_SOURCES, "backends.local.free_space_margin=0") as daemon:
        before = daemon.done(daemon.insert({"name": "before", "rawDisk": {"source": url}})["name"])
        ballast = small_disk / "ballast"
        fill(ballast)

        refused = [
            daemon.call(
                "POST", "images", {"name": f"refused-{number}", "rawDisk": {"source": url}, "description": LONG}
            )
            for number in range(200)
        ]
        job = {"method": "images.insert", "project": "p", "body": {"name": "job", "rawDisk": {"source": url}}}
        submitted = run_cli("submit", "-", "--data-dir", daemon.data_dir, stdin=json.dumps([job] * 500))
        assert refused[-1].status == 503
        assert refused[-1].json()["error"]["status"] == "UNAVAILABLE"
        assert "no space left" in refused[-1].json()["error"]["message"]
        assert (submitted.returncode, submitted.stdout) == (5, "")
        assert "no space left" in submitted.stderr
        assert before == daemon.operation(before["name"])

        ballast.unlink()
        taken = [answer.json()["name"] for answer in refused if answer.status == 200]
        after = daemon.insert({"name": "after", "rawDisk": {"source": url}})["name"]
        assert {"DONE"} == {daemon.done(name)["status"] for name in [*taken, after]}
        assert daemon.image("after")["status"] == "READY"


LONG = "x" * 2000


def fill(file: Path) -> None:
    """Takes the last byte of the file system."""
    with file.open("wb", buffering=0) as ballast:
        size = MIB
        while size:
            try:
                ballast.write(bytes(size))
            except OSError:
                size //= 2
