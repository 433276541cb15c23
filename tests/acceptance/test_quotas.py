"""Quotas of a real daemon: how many images there are in the end, whoever asked and however it died meanwhile."""

import json
import random
import sqlite3
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud.compute_v1 import ProjectsClient, Quota
from tests.acceptance.conftest import Archive
from tests.acceptance.source import Served, SourceServer
from tests.backends.archives import GIB, MIB, small
from tests.daemon_process import LOOPBACK_SOURCES, PROJECT, DaemonProcess, Json, run_cli

AT_ONCE = ("backend=simulated", "backends.simulated.duration=0s")
SOURCE = {"source": "https://example.com/disk.tar.gz"}
CLIENTS = 8


def quota(metric: str, limit: int, more: str = "") -> str:
    return f'quota=[{{project="*", metric="{metric}", limit={limit}{more}}}]'


TEN = quota("compute.googleapis.com/images", 10, ', future_limit=20, rollout_status="IN_PROGRESS"')
MESSAGE = "Quota 'IMAGES' exceeded.  Limit: 10.0 globally."
REFUSED = {
    "code": "QUOTA_EXCEEDED",
    "message": MESSAGE,
    "errorDetails": [
        {
            "quotaInfo": {
                "metricName": "compute.googleapis.com/images",
                "limitName": "IMAGES-per-project",
                "dimensions": {"global": "global"},
                "limit": 10.0,
                "futureLimit": 20.0,
                "rolloutStatus": "IN_PROGRESS",
            }
        },
        {
            "errorInfo": {
                "reason": "QUOTA_EXCEEDED",
                "domain": "compute.googleapis.com",
                "metadatas": {
                    "metricName": "compute.googleapis.com/images",
                    "limitName": "IMAGES-per-project",
                    "limit": "10",
                },
            }
        },
        {
            "help": {
                "links": [
                    {
                        "description": "How quotas work and how to ask for more",
                        "url": "https://cloud.google.com/compute/resource-usage",
                    }
                ]
            }
        },
        {"localizedMessage": {"locale": "en-US", "message": MESSAGE}},
    ],
}


def insert_all(daemon: DaemonProcess, names: list[str]) -> list[Json]:
    """The operations of inserts that CLIENTS send at once, each on connections of its own."""
    with ThreadPoolExecutor(CLIENTS) as clients:
        return list(clients.map(lambda name: daemon.insert({"name": name, "rawDisk": SOURCE}), names))


def ledger_and_catalogue(data_dir: Path) -> tuple[Json, Json]:
    """What the ledger says, and what it should: counted from the records that clients read."""
    with closing(sqlite3.connect(data_dir / "state.db")) as database:
        rows = database.execute("SELECT metric, used, reserved FROM ledger WHERE project = ?", (PROJECT,)).fetchall()
        images = [json.loads(record) for (record,) in database.execute("SELECT record FROM resources")]
        operations = [json.loads(record) for (record,) in database.execute("SELECT record FROM operations")]
    status = Counter(image["status"] for image in images)
    unfinished = sum(operation["status"] != "DONE" for operation in operations)
    counted = {
        "compute.googleapis.com/images": (status["READY"] + status["DELETING"], status["PENDING"]),
        "imageopsd/image_gb": (status["READY"] + status["DELETING"], status["PENDING"]),  # all have 1 GB
        "imageopsd/stored_bytes": (0, status["PENDING"]),  # the simulated backend stores nothing
        "imageopsd/operations_in_flight": (unfinished, 0),
    }
    assert sum(status.values()) > 0
    return {metric: (used, reserved) for metric, used, reserved in rows}, counted


# ------------------------------------------------------------------------------------------- many at once


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[DaemonProcess, list[Json]]]:
    """A daemon with room for ten images, and the fifty operations that asked it for one each."""
    data_dir = tmp_path_factory.mktemp("quotas") / "data"
    with DaemonProcess(data_dir, *AT_ONCE, TEN) as daemon:
        yield daemon, insert_all(daemon, [f"i-{number}" for number in range(50)])


def test_of_fifty_parallel_inserts_ten_make_an_image_and_forty_tell_the_quota(
    full: tuple[DaemonProcess, list[Json]],
) -> None:
    daemon, answers = full
    records = [daemon.done(answer["name"]) for answer in answers]
    refused = [record for record in records if "error" in record]
    assert len({record["name"] for record in records}) == 50
    assert len(refused) == 40
    for record in refused:
        assert record["error"]["errors"] == [REFUSED]
        assert (record["httpErrorStatusCode"], record["httpErrorMessage"]) == (403, "FORBIDDEN")
        assert (record["progress"], record["operationType"]) == (100, "insert")
        assert "startTime" not in record
    # a refusal is DONE in the answer already, and no synchronous error
    assert [answer for answer in answers if answer["name"] in {record["name"] for record in refused}] == refused
    images = daemon.images()
    assert [image["status"] for image in images] == ["READY"] * 10
    made = {record["targetLink"] for record in records if "error" not in record}
    assert {image["selfLink"] for image in images} == made
    assert daemon.operations() == sorted(records, key=lambda record: int(record["id"]))


def test_what_is_deleted_makes_room_for_one_more(full: tuple[DaemonProcess, list[Json]]) -> None:
    daemon, _ = full
    assert "error" in daemon.insert({"name": "too-early", "rawDisk": SOURCE})
    name = daemon.images()[0]["name"]
    deletion = daemon.call("DELETE", f"images/{name}").json()
    assert "error" not in daemon.done(deletion["name"])

    again = [daemon.done(answer["name"]) for answer in insert_all(daemon, ["again-1", "again-2"])]

    assert sorted("error" in record for record in again) == [False, True]
    assert len(daemon.images()) == 10


def test_a_repeat_of_a_refused_request_is_the_refused_operation_also_when_there_is_room(
    full: tuple[DaemonProcess, list[Json]],
) -> None:
    daemon, _ = full
    request_id = "0a6f1c3f-8f10-4a68-9d7f-5d7c1d5e7d0c"
    body: Json = {"name": "patient", "rawDisk": SOURCE}
    refused = daemon.insert(body, requestId=request_id)
    assert refused["error"]["errors"] == [REFUSED]
    victim = daemon.images()[0]["name"]
    daemon.done(daemon.call("DELETE", f"images/{victim}").json()["name"])
    assert daemon.insert(body, requestId=request_id) == refused
    assert "error" not in daemon.done(daemon.insert(body)["name"])


def test_a_job_through_the_queue_is_refused_with_the_same_record(
    full: tuple[DaemonProcess, list[Json]],
) -> None:
    daemon, _ = full
    job = {"method": "images.insert", "project": PROJECT, "body": {"name": "queued", "rawDisk": SOURCE}}
    ended = run_cli("submit", "--wait", "-", "--data-dir", daemon.data_dir, stdin=json.dumps(job))
    assert ended.returncode == 1
    assert f"QUOTA_EXCEEDED: {MESSAGE}" in ended.stderr
    record = daemon.operation(ended.stdout.split()[0])
    assert (record["status"], record["user"], record["error"]["errors"]) == ("DONE", "queue", [REFUSED])
    assert run_cli("queue", "dead-letters", "--data-dir", daemon.data_dir, "--format", "json").stdout.strip() == "[]"


def test_projects_get_shows_the_limit_and_its_usage_to_the_official_client_and_to_the_command(
    full: tuple[DaemonProcess, list[Json]],
) -> None:
    daemon, _ = full
    client = ProjectsClient(
        credentials=AnonymousCredentials(),  # type: ignore[no-untyped-call]
        client_options={"api_endpoint": daemon.url},
    )
    assert list(client.get(project=PROJECT).quotas) == [Quota(metric="IMAGES", limit=10, usage=10)]
    table = run_cli("quota", "list", "--project", PROJECT, "--data-dir", daemon.data_dir).stdout
    assert [line.split() for line in table.splitlines()] == [["METRIC", "LIMIT", "USAGE"], ["IMAGES", "10", "10"]]
    unnamed = run_cli("quota", "list", "--data-dir", daemon.data_dir)
    assert (unnamed.returncode, "--project" in unnamed.stderr) == (2, True)


def test_a_scrape_shows_how_full_and_how_many_were_refused(full: tuple[DaemonProcess, list[Json]]) -> None:
    daemon, _ = full
    refused = sum("error" in operation for operation in daemon.operations())
    text = daemon.get("/metrics").body.decode()
    images = '{metric="compute.googleapis.com/images"}'
    assert f"imageopsd_quota_used_ratio{images} 1.0\n" in text
    assert f"imageopsd_quota_refusals_total{images} {float(refused)}\n" in text
    for sample in (f"usage{images} 10.0", f"limit{images} 10.0", 'limit{metric="imageopsd/image_gb"} +Inf'):
        assert f"imageopsd_quota_{sample}\n" in text
    assert 'imageopsd_quota_used_ratio{metric="imageopsd/image_gb"} 0.0\n' in text


def test_the_status_names_the_projects_that_are_the_fullest(full: tuple[DaemonProcess, list[Json]]) -> None:
    daemon, _ = full
    metric = "compute.googleapis.com/images"
    assert daemon.get("/status").json()["quotas"] == [
        {"project": PROJECT, "metric": metric, "usage": 10, "limit": 10},
        {"project": "*", "metric": metric, "usage": 0, "limit": 10},
    ]


# ------------------------------------------------------------------------------------------------ dying


def test_a_daemon_killed_in_the_middle_has_a_ledger_that_equals_the_catalogue(tmp_path: Path) -> None:
    # the first of each slot's images is done at once, the other is never: some used, some reserved, some in no hands
    slow = 'backends.simulated.scripts=[{image = "slow-*", steps = [{progress = 5}, {wait = "1h"}]}]'
    with DaemonProcess(tmp_path / "data", *AT_ONCE, slow, TEN, "worker.slots=3") as daemon:
        quick = insert_all(daemon, [f"quick-{number}" for number in range(4)])
        for answer in quick:
            daemon.done(answer["name"])
        insert_all(daemon, [f"slow-{number}" for number in range(12)])
        daemon.wait_for("operation started", lambda line: str(line["target"]).startswith("slow-"))

        daemon.kill()

        ledger, catalogue = ledger_and_catalogue(daemon.data_dir)
        assert ledger == catalogue
        assert ledger["compute.googleapis.com/images"] == (4, 6)
        assert ledger["imageopsd/operations_in_flight"] == (6, 0)
        daemon.settings.remove(slow)
        daemon.start()

        for operation in daemon.operations():
            daemon.done(operation["name"])
        assert "error" in daemon.insert({"name": "over", "rawDisk": SOURCE})
        assert len(daemon.images()) == 10
        ledger, catalogue = ledger_and_catalogue(daemon.data_dir)
        assert ledger == catalogue
        assert ledger["compute.googleapis.com/images"] == (10, 0)
        assert [line for line in daemon.log if line["event"] == "quota ledger corrected"] == []


def test_a_ledger_that_somebody_changed_is_corrected_at_the_next_start_and_logged(tmp_path: Path) -> None:
    with DaemonProcess(tmp_path / "data", *AT_ONCE, TEN) as daemon:
        daemon.done(daemon.insert({"name": "only", "rawDisk": SOURCE})["name"])
        assert daemon.terminate() == 0
        with closing(sqlite3.connect(daemon.data_dir / "state.db", isolation_level=None)) as database:
            database.execute("UPDATE ledger SET used = 10 WHERE metric = 'compute.googleapis.com/images'")

        daemon.start()

        line = daemon.wait_for("quota ledger corrected")
        assert (line["project"], line["metric"]) == (PROJECT, "compute.googleapis.com/images")
        assert (line["found"]["used"], line["counted"]["used"]) == (10, 1)
        assert "error" not in daemon.done(daemon.insert({"name": "another", "rawDisk": SOURCE})["name"])


# ------------------------------------------------------------------------------- sizes known only at the end


@pytest.mark.parametrize(
    ("limit", "name"),
    [(quota("imageopsd/stored_bytes", MIB), "STORED_BYTES"), (quota("imageopsd/image_gb", 1), "IMAGE_GB")],
    ids=["bytes", "gigabytes"],
)
def test_an_image_that_turns_out_too_large_is_refused_and_nothing_of_it_remains(
    tmp_path: Path, source: SourceServer, limit: str, name: str
) -> None:
    noise = random.Random(8640).randbytes(3 * MIB)
    url = source.put("disk.tar.gz", Served(small(tmp_path / "a.tar.gz", size=2 * GIB, content=noise).read_bytes()))
    with DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES, limit) as daemon:
        record = daemon.done(daemon.insert({"name": "large", "rawDisk": {"source": url}})["name"])
        [error] = record["error"]["errors"]
        assert (error["code"], error["message"].split("'")[1]) == ("QUOTA_EXCEEDED", name)
        assert (record["httpErrorStatusCode"], "startTime" in record) == (403, True)
        assert source.requests == ["/disk.tar.gz"]
        assert daemon.images() == []
        assert [*daemon.data_dir.glob("images/*/*"), *daemon.staged()] == []
        with closing(sqlite3.connect(daemon.data_dir / "state.db")) as database:
            ledger = database.execute("SELECT used, reserved FROM ledger").fetchall()
        assert ledger == [(0, 0)] * 4


def test_stored_bytes_are_those_of_the_device_and_come_back_with_a_deletion(
    tmp_path: Path, source: SourceServer, archive: Archive
) -> None:
    url = source.put("disk.tar.gz", Served(archive.body))
    with DaemonProcess(tmp_path / "data", LOOPBACK_SOURCES, quota("imageopsd/stored_bytes", GIB)) as daemon:
        daemon.done(daemon.insert({"name": "disk", "rawDisk": {"source": url}})["name"])
        usage = [line["usage"] for line in daemon.get(f"/compute/v1/projects/{PROJECT}").json()["quotas"]]
        assert usage == [daemon.stored(daemon.image("disk")).stat().st_blocks * 512]
        daemon.done(daemon.call("DELETE", "images/disk").json()["name"])
        assert [line["usage"] for line in daemon.get(f"/compute/v1/projects/{PROJECT}").json()["quotas"]] == [0]
