"""The local backend's directory fails: nothing is started until it is well again, and nobody pays with attempts."""

from pathlib import Path

from tests.acceptance.conftest import Archive
from tests.daemon_process import DaemonProcess

SETTINGS = (
    "worker.slots=1",
    "worker.attempts=10",
    "worker.retry_base=1ms",
    "worker.retry_cap=1ms",
    "worker.breaker_failures=3",
    "worker.breaker_rest=1s",
    "worker.breaker_longest_rest=1s",
)


def test_a_directory_that_fails_opens_the_breaker_and_costs_no_operation(tmp_path: Path, archive: Archive) -> None:
    bucket = tmp_path / "bucket"
    bucket.mkdir()
    (bucket / "disk.tar.gz").write_bytes(archive.body)
    with DaemonProcess(tmp_path / "data", f'backends.local.buckets={{ b = "{bucket}" }}', *SETTINGS) as daemon:
        staging = daemon.data_dir / "staging"
        staging.rename(tmp_path / "elsewhere")
        staging.write_text("no directory")
        body = {"rawDisk": {"source": "gs://b/disk.tar.gz"}}
        names = [daemon.insert({"name": f"disk-{number}", **body})["name"] for number in range(5)]

        line = daemon.wait_for("no operation is started", lambda line: line["obstacle"] == "breaker")
        assert line["reason"].startswith(f"The directory '{daemon.data_dir}' failed: ")

        staging.unlink()
        (tmp_path / "elsewhere").rename(staging)
        assert ["error" in daemon.done(name) for name in names] == [False] * 5
        daemon.wait_for("operations are started again", lambda line: line["obstacle"] == "breaker")
