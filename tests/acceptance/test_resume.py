"""A daemon that is killed, or stopped, in the middle of a transfer goes on from there in its next life."""

import time
from pathlib import Path

from tests.acceptance.conftest import Archive
from tests.acceptance.source import Gate, Served, SourceServer
from tests.backends.archives import MIB, same_bytes
from tests.daemon_process import LIMIT, LOOPBACK_SOURCES, DaemonProcess


def wait_for_a_mark(daemon: DaemonProcess) -> None:
    """Until the daemon has noted how far it is."""
    until = time.monotonic() + LIMIT
    while not [journal for journal in daemon.data_dir.glob("staging/*/source.jsonl") if b'"bytes"' in read(journal)]:
        assert time.monotonic() < until, "no mark was made"
        time.sleep(0.02)


def read(journal: Path) -> bytes:
    return journal.read_bytes() if journal.exists() else b""


def test_after_a_kill_only_what_was_not_there_yet_is_fetched(
    tmp_path: Path, source: SourceServer, archive: Archive
) -> None:
    half = Gate(after=len(archive.body) // 2)
    url = source.put("disk.tar.gz", Served(archive.body, gate=half, etag='"1"'), Served(archive.body, etag='"1"'))
    with DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES) as daemon:
        name = daemon.insert({"name": "disk", "rawDisk": {"source": url, "sha1Checksum": archive.sha1}})["name"]
        half.wait_until_reached()
        wait_for_a_mark(daemon)

        daemon.kill()
        daemon.start()
        record = daemon.done(name)

        assert "error" not in record
        assert "warnings" not in record
        first, second = source.promised
        assert (first, True) == (len(archive.body), second <= len(archive.body) - MIB)
        image = daemon.image("disk")
        assert image["archiveSizeBytes"] == str(len(archive.body))
        assert same_bytes(archive.disk, daemon.stored(image))
        assert daemon.staged() == []


def test_after_a_kill_a_source_that_changed_is_fetched_whole_and_the_record_says_so(
    tmp_path: Path, source: SourceServer, archive: Archive
) -> None:
    half = Gate(after=len(archive.body) // 2)
    url = source.put("disk.tar.gz", Served(archive.body, gate=half, etag='"1"'), Served(archive.body, etag='"2"'))
    with DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES) as daemon:
        name = daemon.insert({"name": "disk", "rawDisk": {"source": url}})["name"]
        half.wait_until_reached()
        wait_for_a_mark(daemon)

        daemon.kill()
        daemon.start()
        record = daemon.done(name)

        [warning] = record["warnings"]
        assert warning["message"].startswith(f"The source '{url}' was read again from its begin: it has changed")
        assert len(archive.body) == source.promised[-1]
        assert same_bytes(archive.disk, daemon.stored(daemon.image("disk")))
        assert daemon.staged() == []
