"""Images from a bucket that the daemon has credentials for: the real client of the store, over real HTTP."""

import json
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.conftest import Archive
from tests.acceptance.object_store import BUCKET, TOKEN, ObjectStore
from tests.acceptance.source import Gate
from tests.acceptance.test_resume import wait_for_a_mark
from tests.backends import archives
from tests.backends.archives import MIB, same_bytes
from tests.daemon_process import PROJECT, DaemonProcess, run_cli

RANGE = 8 * MIB
NAME = "images/disk 1.tar.gz"
URL = f"gs://{BUCKET}/{NAME}"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """One of three ranges."""
    return made(tmp_path_factory.mktemp("objects"), seed=1)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    return made(tmp_path_factory.mktemp("objects"), seed=2)


def made(directory: Path, seed: int) -> Archive:
    path = archives.small(directory / "a.tar.gz", content=random.Random(seed).randbytes(2 * RANGE + MIB))
    return Archive(path.with_suffix(".raw"), path.read_bytes(), "")


@pytest.fixture
def store(archive: Archive) -> Iterator[ObjectStore]:
    with ObjectStore() as store:
        store.objects[NAME] = archive.body
        yield store


@pytest.fixture
def configuration(tmp_path: Path, store: ObjectStore) -> Path:
    """With BUCKET open to PROJECT."""
    file = tmp_path / "imageopsd.toml"
    file.write_text(f"""\
[backends.local.object_buckets.{BUCKET}]
filesystem = "gcs"
projects = ["{PROJECT}"]
credentials_file = "{store.credentials(tmp_path / "key.json")}"
endpoint = "{store.root}"
""")
    return file


@pytest.fixture
def daemon(tmp_path: Path, configuration: Path) -> Iterator[DaemonProcess]:
    arguments = ("--config", str(configuration))
    with DaemonProcess(tmp_path / "data", "worker.attempts=1", arguments=arguments) as daemon:
        yield daemon


def body(url: str = URL) -> dict[str, Any]:
    return {"name": "disk", "rawDisk": {"source": url}}


def without_query(name: str) -> str:
    """Its URL as texts show it."""
    return f"gs://{BUCKET}/{name}".partition("?")[0].partition("#")[0]


def imported(daemon: DaemonProcess, url: str = URL) -> dict[str, Any]:
    """The operation's record at its end."""
    return daemon.done(daemon.insert(body(url))["name"])


def error_of(record: dict[str, Any]) -> tuple[str, int, str]:
    [error] = record["error"]["errors"]
    return error["code"], record["httpErrorStatusCode"], error["message"]


@pytest.mark.parametrize(
    "url",
    [
        URL,
        f"https://storage.googleapis.com/{BUCKET}/images/disk%201.tar.gz",
        f"https://www.googleapis.com/storage/v1/b/{BUCKET}/o/images%2Fdisk%201.tar.gz?alt=media",
    ],
)
def test_an_object_is_imported_as_it_lies_in_its_bucket(
    daemon: DaemonProcess, store: ObjectStore, archive: Archive, url: str
) -> None:
    record = imported(daemon, url)

    assert "error" not in record
    assert "warnings" not in record
    size = len(archive.body)
    assert daemon.image("disk")["archiveSizeBytes"] == str(size)
    assert same_bytes(archive.disk, daemon.stored(daemon.image("disk")))
    assert store.ranges == [(store.generation, begin, min(begin + RANGE, size)) for begin in range(0, size, RANGE)]
    assert daemon.staged() == []


@pytest.mark.parametrize("name", ["nothing", "images", f"{NAME}?generation=1", f"{NAME}#1"])
def test_an_object_that_is_not_there_is_not_found(daemon: DaemonProcess, store: ObjectStore, name: str) -> None:
    assert error_of(imported(daemon, f"gs://{BUCKET}/{name}")) == (
        "RESOURCE_NOT_FOUND",
        404,
        f"The resource '{without_query(name)}' of type 'Google Cloud Storage object' was not found.",
    )
    assert store.ranges == []


def test_a_name_that_no_object_has_is_not_even_asked_for(daemon: DaemonProcess, store: ObjectStore) -> None:
    """In the URL of a request they would lead to another place: to the bucket's own description, say."""
    for number, name in enumerate(("..", ".", "images/")):
        operation = daemon.insert({**body(f"gs://{BUCKET}/{name}"), "name": f"disk-{number}"})
        assert error_of(daemon.done(operation["name"]))[0] == "RESOURCE_NOT_FOUND"
    assert store.requests == []


@pytest.mark.parametrize("lists", [True, False])
def test_an_object_that_the_store_keeps_from_us_is_a_403_without_its_words(
    daemon: DaemonProcess, store: ObjectStore, lists: bool
) -> None:
    """Also if we may see that it is there."""
    store.forbidden.add(NAME)
    store.lists = lists
    assert error_of(imported(daemon)) == ("PERMISSION_DENIED", 403, f"Required 'read' permission for '{URL}'")


def test_a_project_that_is_not_named_reads_nothing(tmp_path: Path, daemon: DaemonProcess, store: ObjectStore) -> None:
    answer = daemon.call("POST", "/compute/v1/projects/other/global/images", body())
    name = answer.json()["name"]
    record = daemon.call("POST", f"/compute/v1/projects/other/global/operations/{name}/wait").json()

    assert error_of(record) == (
        "SOURCE_NOT_ALLOWED",
        403,
        "The source is in a bucket that backends.local.object_buckets does not open to this project.",
    )
    assert store.requests == []


def test_a_generation_that_is_replaced_in_the_middle_is_read_again_as_the_new_one(
    daemon: DaemonProcess, store: ObjectStore, other: Archive
) -> None:
    gate = store.gate = Gate(after=RANGE)
    name = daemon.insert(body())["name"]
    gate.wait_until_reached()
    store.objects[NAME], store.generation = other.body, "1700000000000002"
    gate.open()
    record = daemon.done(name)

    assert "error" not in record
    [warning] = record["warnings"]
    assert warning["message"] == (
        f"The source '{URL}' was read again from its begin: it has changed, or it is not there any more."
    )
    assert same_bytes(other.disk, daemon.stored(daemon.image("disk")))


def test_after_a_kill_only_what_was_not_there_yet_is_fetched(
    daemon: DaemonProcess, store: ObjectStore, archive: Archive
) -> None:
    gate = store.gate = Gate(after=RANGE)
    name = daemon.insert(body())["name"]
    gate.wait_until_reached()
    wait_for_a_mark(daemon)

    daemon.kill()
    gate.open()
    before = len(store.ranges)
    daemon.start()
    record = daemon.done(name)

    assert "error" not in record
    assert "warnings" not in record
    assert store.ranges[before].begin >= MIB
    assert same_bytes(archive.disk, daemon.stored(daemon.image("disk")))
    assert daemon.staged() == []


def test_after_a_kill_another_generation_is_fetched_whole_and_the_record_says_so(
    daemon: DaemonProcess, store: ObjectStore, other: Archive
) -> None:
    gate = store.gate = Gate(after=RANGE)
    name = daemon.insert(body())["name"]
    gate.wait_until_reached()
    wait_for_a_mark(daemon)

    daemon.kill()
    store.objects[NAME], store.generation = other.body, "1700000000000002"
    gate.open()
    daemon.start()
    record = daemon.done(name)

    [warning] = record["warnings"]
    assert warning["message"] == f"The source '{URL}' was read again from its begin: it has changed."
    assert same_bytes(other.disk, daemon.stored(daemon.image("disk")))


def test_an_import_is_cancelled_while_the_store_says_nothing(daemon: DaemonProcess, store: ObjectStore) -> None:
    gate = store.gate = Gate(after=RANGE)
    name = daemon.insert(body())["name"]
    gate.wait_until_reached()

    ended = run_cli("operations", "cancel", name, "--data-dir", daemon.data_dir, "--project", PROJECT)

    assert ended.returncode == 0, ended.stderr
    record = daemon.done(name)  # the gate is shut still
    assert record["error"]["errors"][0]["code"] == "CANCELLED"
    assert daemon.staged() == []


def test_what_opens_the_bucket_is_in_no_log_no_record_and_no_file_of_ours(
    tmp_path: Path, configuration: Path, store: ObjectStore
) -> None:
    arguments = ("--config", str(configuration))
    with DaemonProcess(tmp_path / "data", "worker.attempts=1", "log.level=debug", arguments=arguments) as daemon:
        imported(daemon)
        store.forbidden.add(NAME)
        refused = daemon.done(daemon.insert({**body(), "name": "second"})["name"])
        records = json.dumps([daemon.operations(), daemon.images(), refused])
        assert daemon.terminate() == 0
        said = json.dumps(daemon.log)
        assert {line["logger"] for line in daemon.log if line["logger"].startswith(("gcsfs", "google"))} == set()
    shown = run_cli("config", "show", "--config", configuration).stdout
    assert "credentials_file" in shown
    kept = b"".join(
        file.read_bytes() for file in daemon.data_dir.rglob("*") if file.is_file() and file.suffix != ".raw"
    )

    for secret in (TOKEN, *store.private_key.splitlines(), "0123456789abcdef"):
        assert not [where for where in (records, said, shown) if secret in where], secret
        assert secret.encode() not in kept
    assert "storage.objects.get" not in said + records  # the store's own words


def test_nothing_of_the_environment_says_where_to_go_or_who_we_are(
    tmp_path: Path, configuration: Path, store: ObjectStore, archive: Archive
) -> None:
    """Each of these would be asked, or believed, if the client were left to itself."""
    (tmp_path / "adc.json").write_text("{}")
    with socket.create_server(("127.0.0.1", 0)) as trap, ObjectStore() as elsewhere:
        environment = {
            "STORAGE_EMULATOR_HOST": elsewhere.root,
            "GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "adc.json"),
            "GCE_METADATA_HOST": f"127.0.0.1:{trap.getsockname()[1]}",
            "FSSPEC_GCS": json.dumps({"endpoint_url": elsewhere.root, "requester_pays": "somebody"}),
            "FSSPEC_GS_TOKEN": "theirs",
        }
        arguments = ("--config", str(configuration))
        with DaemonProcess(tmp_path / "data", arguments=arguments, environment=environment) as daemon:
            record = imported(daemon)
        trap.setblocking(False)
        with pytest.raises(BlockingIOError):
            trap.accept()

    assert "error" not in record
    assert elsewhere.requests == []
    assert [request for request in store.requests if "userProject" in request] == []


def test_a_key_that_everybody_may_read_is_not_used(tmp_path: Path, daemon: DaemonProcess, store: ObjectStore) -> None:
    (tmp_path / "key.json").chmod(0o644)
    assert error_of(imported(daemon)) == (
        "SOURCE_UNAVAILABLE",
        503,
        f"The source '{URL}' could not be read: the credentials of its bucket cannot be read, or can be by everybody.",
    )
    (tmp_path / "key.json").chmod(0o600)
    (tmp_path / "key.json").write_text(json.dumps({"type": "external_account", "token": TOKEN}))
    code, _, message = error_of(imported(daemon))
    assert code == "SOURCE_UNAVAILABLE"
    assert message.endswith(": the credentials of its bucket are no service account's and no user's.")
    assert store.requests == []


def test_a_daemon_without_the_extra_says_what_to_install(tmp_path: Path, configuration: Path) -> None:
    (tmp_path / "stub").mkdir()
    (tmp_path / "stub" / "sitecustomize.py").write_text('import sys\nsys.modules["gcsfs"] = None\n')
    without = {"PYTHONPATH": str(tmp_path / "stub")}
    for command in (["serve", "--data-dir", tmp_path / "data"], ["config", "check"]):
        ended = run_cli(*command, "--config", configuration, environment=without)
        assert ended.returncode == 78
        assert f"{configuration}:2: backends.local.object_buckets: the extra 'objects' is not installed" in ended.stderr
        assert "pip install 'imageopsd[objects]'" in ended.stderr
        assert "Traceback" not in ended.stderr
    once = ("--listen", "127.0.0.1:0", "--exit-when-idle", "0s")
    ended = run_cli("serve", "--data-dir", tmp_path / "data", *once, environment=without)
    assert ended.returncode == 0, ended.stderr
