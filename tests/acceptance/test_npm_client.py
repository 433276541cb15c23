"""npm's @google-cloud/compute, unmodified, pointed at the daemon's address. `npm/driver.js` drives it, one scenario
after the other in one node process; here stands what must have come of each. Version 6 of it is the last that runs on
node 18 and 20."""

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import pytest
from tests.acceptance.conftest import Archive
from tests.acceptance.source import Served, SourceServer
from tests.acceptance.tap import tapped
from tests.backends.archives import GIB, MIB, disk, same_bytes
from tests.daemon_process import LIMIT, LOOPBACK_SOURCES, PROJECT, DaemonProcess, Json
from tests.needs import need

FOLDER = Path(__file__).parent / "npm"
INSTALL_LIMIT = 300.0
"""Seconds that a first `npm ci` may take: it downloads what the lock file names."""


class Driver(NamedTuple):
    node: str
    modules: Path

    def run(self, *arguments: str) -> dict[str, Json]:
        """What each scenario came to."""
        ended = subprocess.run(
            [self.node, FOLDER / "driver.js", *arguments],
            env={**os.environ, "NODE_PATH": str(self.modules)},
            capture_output=True,
            timeout=LIMIT,
            check=False,
        )
        assert ended.returncode == 0, ended.stderr.decode(errors="replace")
        said: dict[str, Json] = json.loads(ended.stdout)
        return said


@pytest.fixture(scope="session")
def driver() -> Driver:
    """With the client installed from the lock file: once for each lock file, outside of the source tree."""
    node, npm = shutil.which("node"), shutil.which("npm")
    need(node and npm, "node and npm")
    assert node is not None
    assert npm is not None
    key = hashlib.sha256((FOLDER / "package-lock.json").read_bytes()).hexdigest()[:16]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imageopsd-tests"
    installed = cache / f"npm-{key}"
    if not installed.exists():
        cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache) as folder:
            new = Path(folder) / "new"
            new.mkdir()
            for name in ("package.json", "package-lock.json"):
                shutil.copy(FOLDER / name, new)
            ended = subprocess.run(
                [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
                cwd=new,
                capture_output=True,
                timeout=INSTALL_LIMIT,
                check=False,
            )
            need(ended.returncode == 0, f"what npm ci installs: {ended.stderr.decode(errors='replace')}")
            try:
                new.rename(installed)
            except OSError:  # another session was faster
                assert installed.exists()
    return Driver(node, installed / "node_modules")


class Npm(NamedTuple):
    said: dict[str, Json]
    daemon: DaemonProcess
    source: str

    def __call__(self, scenario: str) -> Any:
        """What it returned."""
        told = self.said[scenario]
        assert "error" not in told, told["error"]
        return told["value"]


@pytest.fixture(scope="module")
def npm(driver: Driver, tmp_path_factory: pytest.TempPathFactory, archive: Archive) -> Iterator[Npm]:
    folder = tmp_path_factory.mktemp("npm")
    zone = folder / "resources" / "projects" / PROJECT / "zones" / "z"
    for kind in ("instances", "disks"):
        (zone / kind).mkdir(parents=True)
    disk(zone / "disks" / "boot.raw", GIB, [(MIB, b"boot" * 10_000)])
    instance = {"name": "vm", "disks": [{"source": "zones/z/disks/boot", "deviceName": "boot", "boot": True}]}
    (zone / "instances" / "vm.json").write_text(json.dumps(instance))
    resources = f"backends.local.resources_dir={folder / 'resources'}"
    no_quota = 'backends.simulated.scripts=[{image = "*", steps = [{fail = "quota"}]}]'
    with (
        SourceServer() as server,
        DaemonProcess(folder / "data", LOOPBACK_SOURCES, resources) as daemon,
        DaemonProcess(folder / "stingy", "backend=simulated", no_quota) as stingy,
        tapped(daemon) as url,
        tapped(stingy) as stingy_url,
    ):
        source = server.put("disk.tar.gz", Served(archive.body))
        yield Npm(driver.run(url, source, stingy_url), daemon, source)


def succeeded(operation: Json) -> bool:
    return (operation["status"], operation["progress"]) == ("DONE", 100) and not (
        operation.get("error") or operation.get("httpErrorStatusCode") or operation.get("httpErrorMessage")
    )


def envelope(thrown: Json) -> tuple[int, str, str]:
    """Status, message and reason of an error: this version of the client has the whole body as its message."""
    error = json.loads(thrown["message"])["error"]
    assert str(thrown["code"]) == str(error["code"])
    return error["code"], error["message"], error["errors"][0]["reason"]


def test_an_inserted_image_is_there_with_every_byte_and_every_field(npm: Npm, archive: Archive) -> None:
    said = npm("insert")
    image, raw = said["image"], npm.daemon.image("whole")
    assert succeeded(said["ended"])
    assert said["started"]["name"] == said["ended"]["name"]
    assert said["ended"]["targetLink"] == image["selfLink"]
    for name in ("id", "description", "family", "labels", "architecture", "guestOsFeatures", "diskSizeGb", "status"):
        assert raw[name] == image[name], name
    assert image["rawDisk"] == {"source": npm.source, "containerType": "TAR"}
    assert image["archiveSizeBytes"] == str(len(archive.body))
    assert same_bytes(archive.disk, npm.daemon.stored(raw))


def test_the_numeric_id_that_the_client_calls_a_name_is_waited_for(npm: Npm) -> None:
    said = npm("waitById")
    assert said["id"].isdecimal()
    assert said["id"] == said["ended"]["id"]
    assert succeeded(said["ended"])


def test_a_repeated_request_returns_the_first_operation_and_another_is_a_conflict(npm: Npm) -> None:
    said = npm("repeat")
    assert said["first"] == said["again"]
    status, message, reason = envelope(said["thief"])
    assert (status, reason, "requestId" in message) == (409, "conflict", True)
    assert envelope(said["nothing"])[0] == 404


def test_a_patch_changes_what_it_names_and_its_empty_labels_change_nothing(npm: Npm) -> None:
    """The client has `"labels": {}` in every body, asked for or not."""
    said = npm("patch")
    assert [succeeded(operation) for operation in said["operations"]] == [True, True]
    assert [operation["warnings"] for operation in said["operations"]] == [[], []]
    assert said["after"]["description"] == "new"
    assert not said["after"].get("family")
    assert said["before"]["labels"] == said["after"]["labels"] == {"kept": "yes"}


def test_an_image_is_deprecated_step_by_step_and_active_again(npm: Npm) -> None:
    assert npm("deprecate") == ["DEPRECATED", "OBSOLETE", "DELETED", None]


def test_a_family_is_its_newest_image_that_is_not_deprecated(npm: Npm) -> None:
    assert npm("family") == ["member-2", "member-1"]


def test_labels_are_set_by_who_has_seen_the_ones_before(npm: Npm) -> None:
    said = npm("labels")
    assert succeeded(said["ended"])
    assert said["after"]["labels"] == {"new": "2"}
    status, message, reason = envelope(said["stale"])
    assert (status, reason, "fingerprint" in message) == (412, "conditionNotMet", True)


def test_a_policy_is_kept_and_permissions_are_told(npm: Npm) -> None:
    said = npm("policy")
    assert said["empty"]["bindings"] == []
    assert said["written"] == said["read"]
    [binding] = said["read"]["bindings"]
    assert (binding["role"], binding["members"]) == ("roles/compute.imageUser", ["user:reader@example.com"])
    assert said["tested"]["permissions"] == ["compute.images.get"]


def test_a_deleted_image_is_gone(npm: Npm) -> None:
    said = npm("remove")
    assert succeeded(said["ended"])
    assert said["ended"]["targetId"] == said["image"]["id"]
    assert envelope(said["gone"])[::2] == (404, "notFound")
    assert not npm.daemon.stored(said["image"]).exists()


def test_lists_come_in_pages_and_in_the_order_that_was_asked_for(npm: Npm) -> None:
    names = ["c", "a", "d", "b", "e"]
    assert npm("lists") == {
        "pages": [["a", "b"], ["c", "d"], ["e"]],
        "filtered": ["a", "b"],
        "newest": names[::-1],
        "operations": names,
        "aggregated": [["global", names[0:2]], ["global", names[2:4]], ["global", names[4:5]]],
        "nobodys": [],
    }


def test_an_operation_is_the_same_by_name_and_by_id_and_can_be_forgotten(npm: Npm) -> None:
    said = npm("forget")
    ended, by_name, by_id = said["found"]
    assert ended == by_name == by_id
    assert [envelope(gone)[::2] for gone in said["gone"]] == [(404, "notFound")] * 2


def test_there_are_no_operations_in_zones_regions_and_organizations(npm: Npm) -> None:
    assert [(listed, str(code)) for listed, code in npm("elsewhere")] == [([], "404")] * 3


def test_a_project_has_its_name_and_no_zones_or_regions(npm: Npm) -> None:
    assert npm("neighbours") == {"name": PROJECT, "zones": [], "regions": []}


def test_an_error_has_its_status_and_the_whole_envelope(npm: Npm) -> None:
    errors = {name: envelope(thrown) for name, thrown in npm("errors").items()}
    assert errors["missing"] == (
        404,
        f"The resource 'projects/{PROJECT}/global/images/missing' was not found",
        "notFound",
    )
    assert errors["missingOperation"][::2] == (404, "notFound")
    assert errors["taken"][::2] == (409, "alreadyExists")
    assert (errors["badName"][::2], "'resource.name'" in errors["badName"][1]) == ((400, "invalid"), True)
    assert (errors["badRequestId"][::2], "'requestId'" in errors["badRequestId"][1]) == ((400, "invalid"), True)


def test_a_failed_operation_says_why_in_all_three_places(npm: Npm) -> None:
    ended = npm("failure")
    assert (ended["status"], ended["progress"]) == ("DONE", 100)
    assert (ended["httpErrorStatusCode"], ended["httpErrorMessage"]) == (404, "NOT FOUND")
    assert [error["code"] for error in ended["error"]["errors"]] == ["RESOURCE_NOT_FOUND"]


def test_the_packages_beta_clients_see_and_change_the_same_images(npm: Npm) -> None:
    said = npm("beta")
    assert said["seen"]["id"] == said["image"]["id"]
    assert succeeded(said["ended"])
    assert said["ended"]["selfLink"].startswith("https://www.googleapis.com/compute/beta/")
    assert said["family"] == "beta"


def test_a_quota_refusal_carries_the_quota(npm: Npm) -> None:
    ended = npm("quota")
    [error] = ended["error"]["errors"]
    quota = error["errorDetails"][0]["quotaInfo"]
    assert (ended["httpErrorStatusCode"], error["code"]) == (403, "QUOTA_EXCEEDED")
    assert (quota["metricName"], quota["limitName"], quota["limit"], quota["dimensions"]) == (
        "compute.googleapis.com/images",
        "IMAGES-per-project",
        2000,
        {"global": "global"},
    )


class TestMachineImages:
    def test_a_machine_image_is_made_labelled_listed_and_deleted(self, npm: Npm) -> None:
        said = npm("machineImages")
        made = said["machineImage"]
        assert succeeded(said["ended"])
        assert (made["id"], made["selfLink"]) == (said["ended"]["targetId"], said["ended"]["targetLink"])
        assert (made["status"], made["description"]) == ("READY", "A host.")
        assert [disk["deviceName"] for disk in made["sourceInstanceProperties"]["disks"]] == ["boot"]
        stored = npm.daemon.data_dir / "machine-images" / PROJECT / made["id"] / "disk-0.raw"
        source = npm.daemon.data_dir.parent / "resources" / "projects" / PROJECT / "zones" / "z" / "disks" / "boot.raw"
        assert same_bytes(source, stored)
        assert said["labels"] == {"new": "2"}
        assert [binding["role"] for binding in said["policy"]["bindings"]] == ["roles/viewer"]
        assert said["permissions"]["permissions"] == ["compute.machineImages.get"]
        assert said["listed"] == ["host-1", "host-2"]
        assert envelope(said["gone"])[::2] == (404, "notFound")

    def test_what_cannot_be_made_or_changed_says_why(self, npm: Npm) -> None:
        said = npm("machineImages")
        assert envelope(said["stale"])[::2] == (412, "conditionNotMet")
        assert envelope(said["taken"])[::2] == (409, "alreadyExists")
        assert said["ofNothing"]["httpErrorStatusCode"] == 404
        assert [error["code"] for error in said["ofNothing"]["error"]["errors"]] == ["RESOURCE_NOT_FOUND"]
