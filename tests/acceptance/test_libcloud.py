"""apache-libcloud's GCE driver, unmodified, pointed at the daemon's address.

It takes no endpoint: its connection is told host and port before the first request, and its token comes from a file.
It waits by polling an operation's selfLink, so every change here has been through that.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
from libcloud.common.google import (
    GoogleBaseError,
    InvalidRequestError,
    QuotaExceededError,
    ResourceExistsError,
    ResourceNotFoundError,
)
from libcloud.compute.base import NodeImage, StorageVolume
from libcloud.compute.drivers.gce import GCENodeDriver
from tests.acceptance.conftest import Archive
from tests.acceptance.tap import tapped
from tests.backends.archives import GIB, MIB, disk, same_bytes
from tests.daemon_process import DaemonProcess, Json

PROJECT = "libcloud-tests"
"""Not `p`: libcloud swaps projects by replacing the id wherever it stands in a path, so it must stand there once."""

GOOD = "gs://bucket/disk.tar.gz"
MISSING = "gs://bucket/missing.tar.gz"


def driver_at(url: str, folder: Path, project: str = PROJECT) -> GCENodeDriver:
    """The driver as a user points it here. `host=` and `port=` of its constructor raise a TypeError."""
    token = folder / "token.json"
    token.write_text(json.dumps({"access_token": "x", "expire_time": "2099-01-01T00:00:00Z"}))
    driver = GCENodeDriver(
        "user@example.com", "secret", project=project, auth_type="IA", credential_file=str(token), secure=False
    )
    address = urlsplit(url)
    driver.connection.host, driver.connection.port = address.hostname, address.port
    driver.connection.connect()
    driver.connection.poll_interval = 0.02  # its own knob; 2 s unless told, a whole one for every change
    return driver


class Zone(NamedTuple):
    """As much as libcloud reads of the zone of a volume."""

    name: str


class Cloud(NamedTuple):
    """`url` is where the driver is pointed at."""

    driver: GCENodeDriver
    daemon: DaemonProcess
    url: str
    folder: Path

    def made(self, name: str, url: str = GOOD, **fields: Any) -> NodeImage:
        """An image that is there. `ex_copy_image` reads it back as libcloud does: from a list of all."""
        image = self.driver.ex_copy_image(name, url, **fields)
        assert (image.name, image.extra["status"]) == (name, "READY")
        return image

    def stored(self, image: NodeImage) -> Path:
        return self.daemon.data_dir / "images" / PROJECT / str(image.id) / "disk.raw"

    def last_operation(self) -> Json:
        page = self.daemon.get(f"/compute/v1/projects/{PROJECT}/global/operations?orderBy=creationTimestamp%20desc")
        operation: Json = page.json()["items"][0]
        return operation


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory, archive: Archive) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("libcloud")
    bucket = folder / "bucket"
    bucket.mkdir()
    (bucket / "disk.tar.gz").write_bytes(archive.body)
    disks = folder / "resources" / "projects" / PROJECT / "zones" / "z" / "disks"
    disks.mkdir(parents=True)
    disk(disks / "volume.raw", GIB, [(MIB, b"volume" * 1000)])
    settings = (
        f"backends.local.buckets={{ bucket = '{bucket}' }}",
        f"backends.local.resources_dir={folder / 'resources'}",
    )
    with DaemonProcess(folder / "data", *settings) as daemon, tapped(daemon) as url:
        yield Cloud(driver_at(url, folder), daemon, url, folder)


# ------------------------------------------------------------------------------------------------ images


def test_an_image_copied_from_a_bucket_is_there_with_every_byte_and_every_field(cloud: Cloud, archive: Archive) -> None:
    image = cloud.made("whole", description="A disk of noise.", family="noise", guest_os_features=["GVNIC"])

    extra = image.extra
    assert (extra["description"], extra["family"]) == ("A disk of noise.", "noise")
    assert extra["guestOsFeatures"] == [{"type": "GVNIC"}]
    assert (extra["sourceType"], extra["diskSizeGb"], extra["archiveSizeBytes"]) == ("RAW", "1", str(len(archive.body)))
    assert extra["rawDisk"]["source"] == "https://storage.googleapis.com/bucket/disk.tar.gz"
    assert "deprecated" not in extra
    assert same_bytes(archive.disk, cloud.stored(image))


def test_an_image_is_created_with_labels_and_licenses(cloud: Cloud) -> None:
    license = "https://www.googleapis.com/compute/v1/projects/debian-cloud/global/licenses/debian-12"
    image = cloud.driver.ex_create_image(
        "created",
        "https://storage.googleapis.com/bucket/disk.tar.gz",
        family="created",
        guest_os_features="UEFI_COMPATIBLE",
        ex_licenses=license,
        ex_labels={"made-by": "tests"},
        use_existing=False,
    )
    assert (image.name, image.extra["status"], image.extra["labels"]) == ("created", "READY", {"made-by": "tests"})
    assert len(image.extra["licenses"]) == 1


def test_an_image_is_created_of_a_volume(cloud: Cloud) -> None:
    """libcloud names the volume's zone in the body, where Compute knows no such field."""
    link = f"https://www.googleapis.com/compute/v1/projects/{PROJECT}/zones/z/disks/volume"
    volume = StorageVolume("1", "volume", 1, cloud.driver, extra={"selfLink": link, "zone": Zone("z")})

    image = cloud.driver.ex_create_image("of-a-volume", volume)

    assert (image.name, image.extra["status"], image.extra["sourceDisk"]) == ("of-a-volume", "READY", link)
    source = cloud.folder / "resources" / "projects" / PROJECT / "zones" / "z" / "disks" / "volume.raw"
    assert same_bytes(source, cloud.stored(image))


def test_an_image_that_exists_is_given_back_unless_it_must_be_new(cloud: Cloud) -> None:
    image = cloud.made("existing")
    url = "https://storage.googleapis.com/bucket/disk.tar.gz"

    assert cloud.driver.ex_create_image("existing", url).id == image.id
    with pytest.raises(ResourceExistsError, match="already exists") as refused:
        cloud.driver.ex_create_image("existing", url, use_existing=False)
    assert (refused.value.http_code, refused.value.code) == (409, "alreadyExists")


def test_an_image_is_found_by_name_by_link_and_by_the_beginning_of_its_name(cloud: Cloud) -> None:
    """By the beginning libcloud finds the newest, for which it reads creationTimestamp in the one form it knows."""
    image = cloud.made("looked-for")
    by_name = cloud.driver.ex_get_image("looked-for")
    by_link = cloud.driver.ex_get_image(image.extra["selfLink"])
    by_beginning = cloud.driver.ex_get_image("looked-")
    assert {image.id} == {by_name.id, by_link.id, by_beginning.id}


def test_a_family_is_its_newest_image(cloud: Cloud) -> None:
    cloud.made("member-1", family="members")
    newest = cloud.made("member-2", family="members")
    assert newest.id == cloud.driver.ex_get_image_from_family("members").id
    link = newest.extra["selfLink"].replace("/images/", "/images/family/").replace("member-2", "members")
    assert newest.id == cloud.driver.ex_get_image_from_family(link).id
    with pytest.raises(ResourceNotFoundError):
        cloud.driver.ex_get_image_from_family("nobodys")


def test_a_deprecated_image_is_listed_only_on_demand(cloud: Cloud) -> None:
    old, new = cloud.made("old"), cloud.made("new")

    assert cloud.driver.ex_deprecate_image(old, new)
    settle(cloud)

    def named(**query: Any) -> set[str]:
        return {image.name for image in cloud.driver.ex_list_project_images(**query)}

    deprecated = cloud.driver.ex_get_image("old").extra["deprecated"]
    assert (deprecated["state"], deprecated["replacement"]) == ("DEPRECATED", new.extra["selfLink"])
    assert "old" not in named()
    assert {"old", "new"} <= named(ex_include_deprecated=True)


def test_an_image_is_active_again(cloud: Cloud) -> None:
    """libcloud's ACTIVE is an empty body."""
    old, new = cloud.made("revived"), cloud.made("reviver")
    cloud.driver.ex_deprecate_image(old, new, state="OBSOLETE")
    settle(cloud)
    assert cloud.driver.ex_get_image("revived").extra["deprecated"]["state"] == "OBSOLETE"

    cloud.driver.ex_deprecate_image(old, new, state="ACTIVE")
    settle(cloud)

    assert "deprecated" not in cloud.driver.ex_get_image("revived").extra


def test_a_deprecation_may_name_its_times(cloud: Cloud) -> None:
    old, new = cloud.made("scheduled"), cloud.made("scheduled-heir")
    time = "2030-01-01T00:00:00.000+00:00"  # the one form that libcloud reads
    cloud.driver.ex_deprecate_image(old, new, deprecated=time, obsolete=time, deleted=time)
    settle(cloud)
    deprecated = cloud.driver.ex_get_image("scheduled").extra["deprecated"]
    assert [deprecated[name] for name in ("deprecated", "obsolete", "deleted")] == [time] * 3


def settle(cloud: Cloud) -> None:
    """`ex_deprecate_image` does not wait for its operation; its end is waited for by the one way libcloud has."""
    cloud.driver.connection.async_request(cloud.last_operation()["selfLink"])


def test_labels_are_replaced_and_cleared_by_who_has_seen_the_ones_before(cloud: Cloud) -> None:
    image = cloud.made("labelled")

    assert cloud.driver.ex_set_image_labels(image, {"a": "1"})
    with pytest.raises(GoogleBaseError, match="fingerprint") as stale:
        cloud.driver.ex_set_image_labels(image, {"b": "2"})
    labelled = cloud.driver.ex_get_image("labelled")
    assert cloud.driver.ex_set_image_labels(labelled, None)

    assert (stale.value.http_code, stale.value.code) == (412, "conditionNotMet")
    assert labelled.extra["labels"] == {"a": "1"}
    assert not cloud.driver.ex_get_image("labelled").extra["labels"]


def test_a_deleted_image_is_gone(cloud: Cloud) -> None:
    image = cloud.made("short-lived")
    cloud.made("short-lived-by-name")

    assert cloud.driver.ex_delete_image(image)
    assert cloud.driver.ex_delete_image("short-lived-by-name")

    for name in ("short-lived", "short-lived-by-name"):
        with pytest.raises(ResourceNotFoundError):
            cloud.driver.ex_get_image(name)
    assert not cloud.stored(image).exists()


def test_a_license_named_in_short_comes_back_as_the_link_that_libcloud_takes_apart(cloud: Cloud) -> None:
    """One such image would make every list of its project fail, hence a project of its own."""
    driver = driver_at(cloud.url, cloud.folder, "short-licenses")
    image = driver.ex_create_image(
        "licensed",
        "https://storage.googleapis.com/bucket/disk.tar.gz",
        ex_licenses="projects/debian-cloud/global/licenses/debian-12",
    )
    assert len(image.extra["licenses"]) == 1


def pages(driver: GCENodeDriver, path: str, **params: Any) -> list[list[Json]]:
    """As the docstring of libcloud's GCEConnection does it."""
    found, more = [], True
    while more:
        driver.connection.gce_params = params
        found.append(driver.connection.request(path).object.get("items", []))
        more = "pageToken" in params
    return found


def test_lists_come_in_pages_and_filtered(cloud: Cloud) -> None:
    driver = driver_at(cloud.url, cloud.folder, "paging-project")
    names = ["c", "a", "d", "b", "e"]
    for name in names:
        driver.ex_copy_image(name, GOOD)

    images = pages(driver, "/global/images", maxResults=2)
    filtered = pages(driver, "/global/images", maxResults=2, filter="name eq [a-c]")
    operations = pages(driver, "/global/operations", maxResults=2)
    aggregated = driver.connection.request_aggregated_items("operations")["items"]["global"]["operations"]

    assert [[image["name"] for image in page] for page in images] == [["a", "b"], ["c", "d"], ["e"]]
    assert [image["name"] for page in filtered for image in page] == ["a", "b", "c"]
    assert names == [operation["targetLink"].rpartition("/")[2] for page in operations for operation in page]
    assert aggregated == [operation for page in operations for operation in page]


def test_more_images_than_one_page_holds_are_all_listed(tmp_path: Path) -> None:
    """libcloud's lists of images always ask for pages of 500; `ex_list(...).page(2)` changes nothing for them."""
    with DaemonProcess(tmp_path / "data", "backend=simulated", "backends.simulated.duration=0s") as daemon:
        names = [f"i{number:03}" for number in range(501)]
        for name in names:
            body = {"name": name, "rawDisk": {"source": "https://example.com/disk.tar.gz"}}
            assert daemon.call("POST", f"/compute/v1/projects/{PROJECT}/global/images", body).status == 200
        assert names == [image.name for image in driver_at(daemon.url, tmp_path).ex_list_project_images()]


def test_images_are_listed_with_those_of_public_projects_which_are_none(cloud: Cloud) -> None:
    cloud.made("listed")
    assert "listed" in {image.name for image in cloud.driver.list_images()}
    assert cloud.driver.list_images(ex_project=["debian-cloud", "cos-cloud"]) == []


# --------------------------------------------------------------------------------------------- neighbours


def test_the_project_is_there(cloud: Cloud) -> None:
    assert cloud.driver.ex_get_project().name == PROJECT


@pytest.mark.parametrize("method", ["list_locations", "ex_list_zones", "ex_list_regions"])
def test_there_are_no_places(cloud: Cloud, method: str) -> None:
    places: Callable[[], list[Any]] = getattr(cloud.driver, method)
    assert places() == []


# ------------------------------------------------------------------------------------------------- errors


def test_what_is_not_there_is_libclouds_own_not_found(cloud: Cloud) -> None:
    link = f"https://www.googleapis.com/compute/v1/projects/{PROJECT}/global/images/missing"
    with pytest.raises(ResourceNotFoundError, match="was not found") as refused:
        cloud.driver.ex_get_image(link)
    assert refused.value.http_code == 404
    with pytest.raises(ResourceNotFoundError, match="Could not find image"):
        cloud.driver.ex_get_image("missing")


def test_a_bad_name_is_an_invalid_request(cloud: Cloud) -> None:
    with pytest.raises(InvalidRequestError, match=r"resource\.name") as refused:
        cloud.driver.ex_copy_image("Bad_Name", GOOD)
    assert (refused.value.http_code, refused.value.code) == (400, "invalid")


def test_a_failed_operation_is_raised_by_the_poll_that_sees_it(cloud: Cloud) -> None:
    with pytest.raises(GoogleBaseError, match="was not found") as failed:
        cloud.driver.ex_copy_image("no-source", MISSING)
    assert (failed.value.http_code, failed.value.code) == (200, "RESOURCE_NOT_FOUND")


def test_a_quota_refusal_is_libclouds_own_exception(tmp_path: Path) -> None:
    script = 'backends.simulated.scripts=[{image = "one-too-many", steps = [{fail = "quota"}]}]'
    with DaemonProcess(tmp_path / "data", "backend=simulated", script) as daemon:
        driver = driver_at(daemon.url, tmp_path)
        with pytest.raises(QuotaExceededError, match="Quota 'IMAGES' exceeded"):
            driver.ex_copy_image("one-too-many", GOOD)
