"""Images that lie here and records that know of them, held to each other by the daemon and by hand."""

import asyncio
import gzip
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from click.testing import CliRunner
from tests.acceptance.conftest import Archive
from tests.acceptance.source import Served, SourceServer
from tests.backends.archives import same_bytes
from tests.daemon_process import LOOPBACK_SOURCES, PROJECT, DaemonProcess, Json, clean_environment, run_cli

from imageopsd.backends.local import LocalBackend
from imageopsd.cli.main import cli
from imageopsd.cli.show import Rows
from imageopsd.model.image import Int64
from imageopsd.model.machine_image import MachineImage, MachineImageStatus
from imageopsd.ports import Kept
from imageopsd.storage.sqlite.store import SqliteStore


def made(daemon: DaemonProcess, source: SourceServer, archive: Archive, name: str = "disk", **fields: object) -> Json:
    url = source.put(f"{name}.tar.gz", Served(archive.body))
    record = daemon.done(daemon.insert({"name": name, "rawDisk": {"source": url}, **fields})["name"])
    assert "error" not in record
    return daemon.image(name)


def test_a_flipped_bit_is_found_and_named_by_its_block(tmp_path: Path, source: SourceServer, archive: Archive) -> None:
    with DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES) as daemon:
        good, bad = made(daemon, source, archive, "good"), made(daemon, source, archive, "bad")
        at = ("--data-dir", daemon.data_dir, "--project", PROJECT)
        fine = run_cli("images", "verify", *at)
        with daemon.stored(bad).open("r+b") as file:  # in its second MiB there is data
            file.seek(1_500_000)
            byte = file.read(1)[0]
            file.seek(1_500_000)
            file.write(bytes([byte ^ 1]))
        found = run_cli("images", "verify", *at, "--format", "json")
        only_good = run_cli("images", "verify", *at, "good")
        missing = run_cli("images", "verify", *at, "good", "nobody")
        exported = run_cli("images", "export", *at, "bad", tmp_path / "out.raw")

    assert (fine.returncode, fine.stderr, fine.stdout.count("OK")) == (0, "", 2)
    damage = ["block 0 (bytes 0 to 4194303) differs"]
    assert sorted(json.loads(found.stdout), key=lambda row: str(row["name"])) == [
        {"project": PROJECT, "name": "bad", "id": bad["id"], "result": "DAMAGED", "damage": damage},
        {"project": PROJECT, "name": "good", "id": good["id"], "result": "OK", "damage": []},
    ]
    assert found.returncode == 1
    assert f"{PROJECT}/bad: block 0 (bytes 0 to 4194303) differs" in found.stderr
    assert (only_good.returncode, missing.returncode) == (0, 3)
    assert "nobody" in missing.stderr
    assert (exported.returncode, damage[0] in exported.stderr) == (1, True)
    assert not (tmp_path / "out.raw").exists()


def test_what_is_ready_in_the_records_and_not_here_is_named(
    tmp_path: Path, source: SourceServer, archive: Archive
) -> None:
    async def record(machine_image: MachineImage) -> None:
        async with SqliteStore(SqliteStore.Options(), tmp_path / "data") as store:
            await store.restore(PROJECT, machine_image)

    def verify(*names: str) -> tuple[int, list[list[str]], str]:
        ended = run_cli("images", "verify", "--data-dir", tmp_path / "data", *names)
        return ended.returncode, [line.split()[1:] for line in ended.stdout.splitlines()[1:]], ended.stderr

    with DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES) as daemon:
        here, gone = made(daemon, source, archive, "here"), made(daemon, source, archive, "gone")
        shutil.rmtree(daemon.stored(gone).parent)
        while_up = verify()
        daemon.terminate()

    there, missing = ["here", here["id"], "OK"], ["gone", gone["id"], "MISSING"]
    told = f"{PROJECT}/gone: its directory is gone\nimageopsd: 1 of {{}} are damaged or missing\n"
    assert while_up == verify() == (1, [missing, there], told.format(2))
    assert verify("gone") == (1, [missing], told.format(1))
    assert verify("here") == (0, [there], "")
    assert verify("--project", "other", "gone")[0] == 3

    asyncio.run(record(MachineImage(id=Int64(77), name="bundle", status=MachineImageStatus.READY)))
    asyncio.run(record(MachineImage(id=Int64(78), name="coming", status=MachineImageStatus.CREATING)))
    assert verify("bundle")[:2] == (1, [["bundle", "77", "MISSING"]])
    assert verify("coming")[0] == 3

    (tmp_path / "data" / "state.db").write_bytes(b"no database at all" * 100)
    code, rows, text = verify()
    assert (code, rows, "what should be here is not known" in text) == (1, [there], True)
    for file in (tmp_path / "data").glob("state.db*"):
        file.unlink()
    assert verify() == (0, [there], "")
    assert not (tmp_path / "data" / "state.db").exists()


def test_an_image_comes_out_as_it_went_in(tmp_path: Path, source: SourceServer, archive: Archive) -> None:
    with DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES) as daemon:
        image = made(daemon, source, archive)
        at = ("images", "export", "--data-dir", daemon.data_dir)
        raw, packed = tmp_path / "out.raw", tmp_path / "out.tar.gz"
        codes = [
            run_cli(*at, "disk", raw).returncode,
            run_cli(*at, "disk", "--archive", packed).returncode,
            run_cli(*at, "disk", raw).returncode,
            run_cli(*at, "nobody", tmp_path / "other").returncode,
        ]
        again = made(daemon, source, archive._replace(body=packed.read_bytes()), "again")

        assert codes == [0, 0, 1, 3]
        assert {file.stat().st_mode & 0o777 for file in (raw, packed)} == {0o600}
        assert same_bytes(archive.disk, raw)
        assert raw.stat().st_blocks <= daemon.stored(image).stat().st_blocks
        assert same_bytes(archive.disk, daemon.stored(again))
        assert len(gzip.decompress(packed.read_bytes())) < 16 * 1024**2
        assert not (tmp_path / "other").exists()


def test_of_several_of_one_name_the_one_in_the_records_is_exported_and_any_by_its_id(
    tmp_path: Path, source: SourceServer, archive: Archive
) -> None:
    def export(*arguments: object) -> tuple[int, str]:
        (tmp_path / "out").unlink(missing_ok=True)
        ended = run_cli("images", "export", "--data-dir", daemon.data_dir, *arguments, tmp_path / "out")
        return ended.returncode, ended.stderr

    def lose_records() -> None:
        daemon.terminate()
        for file in daemon.data_dir.glob("state.db*"):
            file.unlink()

    with DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES) as daemon:
        orphan = made(daemon, source, archive)
        lose_records()
        daemon.start()
        known = made(daemon, source, archive)
        manifest = daemon.stored(orphan).parent / "manifest.json"

        assert [export(image["id"]) for image in (orphan, known)] == [(0, ""), (0, "")]
        assert same_bytes(archive.disk, tmp_path / "out")
        daemon.stored(orphan).unlink()  # were it chosen, that could not succeed
        assert [export("disk"), export("--project", PROJECT, "disk")] == [(0, ""), (0, "")]
        assert export("--project", "other", known["id"])[0] == 3

        lose_records()
        code, text = export("--project", PROJECT, "disk")
        assert (code, all(f"{image['id']} in {PROJECT}" in text for image in (orphan, known))) == (2, True)
        manifest.write_text("{")
        assert export(orphan["id"]) == (
            1,
            f"imageopsd: images/{PROJECT}/{orphan['id']}: its manifest is gone or damaged\n",
        )


def test_an_export_that_cannot_be_written_says_so(tmp_path: Path, source: SourceServer, archive: Archive) -> None:
    with DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES) as daemon:
        made(daemon, source, archive)
        at = ("images", "export", "--data-dir", daemon.data_dir, "disk")
        with open("/dev/full", "wb") as full:
            command = [sys.executable, "-m", "imageopsd", *map(str, at), "-"]
            to_stream = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, env=clean_environment(), text=True)
        nowhere = run_cli(*at, tmp_path / "nowhere" / "out.raw")
        (tmp_path / "small").mkdir()
        with_disk = run_cli(*at, "--disk", "0", tmp_path / "small" / "out.raw")
    assert (to_stream.returncode, to_stream.stderr) == (
        1,
        "imageopsd: cannot write standard output: No space left on device\n",
    )
    assert (nowhere.returncode, "cannot write" in nowhere.stderr) == (1, True)
    assert (with_disk.returncode, "no machine image 'disk' on this host" in with_disk.stderr) == (3, True)
    assert list((tmp_path / "small").iterdir()) == []


def test_what_is_deleted_while_all_is_verified_is_left_out(
    tmp_path: Path, source: SourceServer, archive: Archive, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real verify of real images; only the moment of the deletion is ours."""
    listed = LocalBackend.kept

    def kept(self: LocalBackend) -> Iterator[Kept]:
        found = sorted(listed(self), key=lambda one: str(one.resource and one.resource.name))
        with closing(sqlite3.connect(tmp_path / "data" / "state.db")) as records, records:
            records.execute("DELETE FROM resources WHERE id = ?", (found[0].id,))
        shutil.rmtree(tmp_path / "data" / found[0].place)
        return iter(found)

    with DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES) as daemon:
        for name in ("gone", "here"):
            made(daemon, source, archive, name)
        daemon.terminate()
    monkeypatch.setattr(LocalBackend, "kept", kept)
    result = CliRunner().invoke(cli, ["images", "verify", "--data-dir", str(tmp_path / "data")])
    assert (result.exit_code, [line.split()[1] for line in result.stdout.splitlines()]) == (0, ["NAME", "here"])
    assert result.stderr == f"{PROJECT}/gone was deleted meanwhile\n"


def test_what_is_verified_is_told_as_it_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    """The last of them may be hours away."""
    records = [{"name": name, "result": result} for name, result in (("a", "OK"), ("a-long-name", "DAMAGED"))]
    with Rows("table", {"NAME": "name", "RESULT": "result"}, records) as rows:
        rows.doing("reading a")
        rows.add(records[0])
        assert capsys.readouterr() == ("NAME         RESULT\na            OK\n", "")
        rows.add(records[1])
        assert capsys.readouterr().out == "a-long-name  DAMAGED\n"
    with Rows("json", {}, records) as rows:
        rows.add(records[0])
        assert capsys.readouterr().out == ""
    assert json.loads(capsys.readouterr().out) == records[:1]


def test_lost_records_are_made_again_from_what_lies_there(
    tmp_path: Path, source: SourceServer, archive: Archive
) -> None:
    def usage(daemon: DaemonProcess) -> float:
        [line] = daemon.get(f"/compute/v1/projects/{PROJECT}").json()["quotas"]
        return float(line["usage"])

    limit = 'quota=[{project="*", metric="imageopsd/stored_bytes", limit=1_000_000_000}]'
    with DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES, limit) as daemon:
        image = made(daemon, source, archive, family="f", labels={"a": "b"}, description="First.")
        used = usage(daemon)
        rebuild = ("images", "rebuild", "--data-dir", daemon.data_dir, "--format", "json")
        while_running = run_cli(*rebuild)
        daemon.terminate()
        for file in daemon.data_dir.glob("state.db*"):
            file.unlink()
        # a start on empty records does not take the images for rubbish
        daemon.start()
        daemon.wait_for("bytes that no record knows; `imageopsd images rebuild` takes them in")
        assert daemon.images() == []
        daemon.terminate()

        rebuilt, repeated = run_cli(*rebuild), run_cli(*rebuild)
        daemon.start()

        assert (while_running.returncode, "in use by another" in while_running.stderr) == (1, True)
        assert json.loads(rebuilt.stdout) == [{"project": PROJECT, "name": "disk", "id": image["id"]}]
        assert (rebuilt.returncode, repeated.returncode, json.loads(repeated.stdout)) == (0, 0, [])
        assert daemon.image("disk") == image
        assert (usage(daemon), used > 0) == (used, True)
        assert daemon.get("images/family/f").json() == image
        assert same_bytes(archive.disk, daemon.stored(image))


def test_an_image_whose_bytes_are_gone_does_not_stay_ready(
    tmp_path: Path, source: SourceServer, archive: Archive
) -> None:
    with DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES) as daemon:
        lost = made(daemon, source, archive, "lost")
        daemon.kill()
        shutil.rmtree(daemon.stored(lost).parent)
        daemon.start()
        daemon.wait_for("the bytes are gone; no longer READY")

        assert daemon.image("lost") == {**lost, "status": "FAILED"}
        assert "error" not in daemon.done(daemon.call("DELETE", "images/lost").json()["name"])
        assert daemon.images() == []


def test_what_a_failed_insert_left_behind_is_removed(tmp_path: Path, source: SourceServer, archive: Archive) -> None:
    with DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES) as daemon:
        image = made(daemon, source, archive)
        gone = daemon.insert({"name": "gone", "rawDisk": {"source": source.url("nothing")}})["name"]
        record = daemon.done(gone)
        daemon.kill()
        # as if the process had died after the publishing of an image whose operation then ended otherwise
        orphan = daemon.stored(image).parent.with_name(record["targetId"])
        shutil.copytree(daemon.stored(image).parent, orphan)
        manifest = orphan / "manifest.json"
        manifest.write_text(manifest.read_text().replace(json.loads(manifest.read_text())["operation"], record["id"]))
        (daemon.data_dir / "staging" / record["id"]).mkdir()
        (daemon.data_dir / "staging" / record["id"] / "source.jsonl").write_text("{}")
        daemon.start()
        daemon.wait_for("removed bytes that no record has")

        assert not orphan.exists()
        assert (daemon.staged(), [one["name"] for one in daemon.images()]) == ([], ["disk"])
        assert daemon.stored(image).exists()
