"""The official client, unmodified, pointed at the daemon's address."""

from collections.abc import Iterator
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from google.api_core.exceptions import BadRequest, Conflict, NotFound
from google.auth.credentials import AnonymousCredentials
from google.cloud.compute_v1 import (
    DeprecationStatus,
    GetGlobalOperationRequest,
    GlobalOperationsClient,
    Image,
    ImagesClient,
    InsertImageRequest,
    ListGlobalOperationsRequest,
    ListImagesRequest,
    Operation,
    PatchImageRequest,
    RawDisk,
)
from tests.acceptance.conftest import Archive
from tests.acceptance.source import Served, SourceServer
from tests.backends.archives import GIB, same_bytes
from tests.daemon_process import LOOPBACK_SOURCES, PROJECT, DaemonProcess

DONE = Operation.Status.DONE


class Compute(NamedTuple):
    """The two clients a program needs, the daemon they talk to, and the URL of a good archive."""

    images: ImagesClient
    operations: GlobalOperationsClient
    daemon: DaemonProcess
    source: str

    def insert(self, name: str, request_id: str | None = None, **fields: Any) -> Operation:
        image = Image(name=name, raw_disk=RawDisk(source=self.source, container_type="TAR"), **fields)
        return self.images.insert_unary(
            InsertImageRequest(project=PROJECT, image_resource=image, request_id=request_id or str(uuid4()))
        )

    def wait(self, operation: Operation) -> Operation:
        return self.operations.wait(project=PROJECT, operation=operation.name)

    def made(self, name: str, **fields: Any) -> Image:
        """An image that is there."""
        ended = self.wait(self.insert(name, **fields))
        assert (ended.status, ended.http_error_status_code) == (DONE, 0), ended
        return self.images.get(project=PROJECT, image=name)

    def patch(self, name: str, changes: Image) -> Operation:
        request = PatchImageRequest(project=PROJECT, image=name, image_resource=changes, request_id=str(uuid4()))
        return self.wait(self.images.patch_unary(request))


@pytest.fixture(scope="module")
def compute(tmp_path_factory: pytest.TempPathFactory, archive: Archive) -> Iterator[Compute]:
    data_dir = tmp_path_factory.mktemp("google") / "data"
    with SourceServer() as server, DaemonProcess(data_dir, LOOPBACK_SOURCES) as daemon:
        options = {"api_endpoint": daemon.url}
        with (
            ImagesClient(credentials=AnonymousCredentials(), client_options=options) as images,
            GlobalOperationsClient(credentials=AnonymousCredentials(), client_options=options) as operations,
        ):
            yield Compute(images, operations, daemon, server.put("disk.tar.gz", Served(archive.body)))


def test_an_inserted_image_is_there_with_every_byte_and_every_field(compute: Compute, archive: Archive) -> None:
    started = compute.insert(
        "whole", description="A disk of noise.", family="noise", labels={"made-by": "tests"}, architecture="X86_64"
    )

    ended = compute.wait(started)
    image = compute.images.get(project=PROJECT, image="whole")

    assert started.name == ended.name
    assert (ended.status, ended.progress, ended.operation_type) == (DONE, 100, "insert")
    assert (ended.error.errors, ended.http_error_status_code, ended.http_error_message) == ([], 0, "")
    assert ended.insert_time <= ended.start_time <= ended.end_time
    assert str(image.id) == str(ended.target_id)
    assert image.self_link == ended.target_link
    assert image == Image(
        id=image.id,
        kind="compute#image",
        name="whole",
        description="A disk of noise.",
        family="noise",
        labels={"made-by": "tests"},
        architecture="X86_64",
        status="READY",
        source_type="RAW",
        raw_disk=RawDisk(source=compute.source, container_type="TAR"),
        disk_size_gb=1,
        archive_size_bytes=len(archive.body),
        creation_timestamp=image.creation_timestamp,
        self_link=f"https://www.googleapis.com/compute/v1/projects/{PROJECT}/global/images/whole",
    )
    assert same_bytes(archive.disk, compute.daemon.stored(compute.daemon.image("whole")))


def test_an_image_can_be_got_by_its_numeric_id(compute: Compute) -> None:
    image = compute.made("by-id")
    assert image == compute.images.get(project=PROJECT, image=str(image.id))


def test_a_copy_of_an_image_has_its_bytes(compute: Compute, archive: Archive) -> None:
    original = compute.made("original", family="originals")
    copy = Image(name="copy", source_image=f"projects/{PROJECT}/global/images/family/originals")

    ended = compute.wait(compute.images.insert_unary(project=PROJECT, image_resource=copy))

    image = compute.images.get(project=PROJECT, image="copy")
    assert (ended.status, ended.http_error_status_code) == (DONE, 0)
    assert (image.source_image, image.source_image_id) == (original.self_link, str(original.id))
    assert same_bytes(archive.disk, compute.daemon.stored(compute.daemon.image("copy")))


def test_an_image_may_be_asked_for_larger_than_its_disk(compute: Compute, archive: Archive) -> None:
    image = compute.made("larger", disk_size_gb=3)

    [warning] = compute.daemon.operations()[-1]["warnings"]
    stored = compute.daemon.stored(compute.daemon.image("larger"))
    assert (image.disk_size_gb, stored.stat().st_size) == (3, 3 * GIB)
    assert warning["code"] == "DISK_SIZE_LARGER_THAN_IMAGE_SIZE"


def test_an_operation_is_the_same_by_name_and_by_id(compute: Compute) -> None:
    ended = compute.wait(compute.insert("found-twice"))
    by_name = compute.operations.get(project=PROJECT, operation=ended.name)
    by_id = compute.operations.get(GetGlobalOperationRequest(project=PROJECT, operation=str(ended.id)))
    assert ended == by_name == by_id


def test_a_repeated_request_returns_the_first_operation(compute: Compute) -> None:
    request_id = str(uuid4())
    first = compute.insert("repeated", request_id)

    again = compute.insert("repeated", request_id)
    after_its_end = compute.wait(first) and compute.insert("repeated", request_id)

    assert {first.name} == {again.name, after_its_end.name}
    assert after_its_end.status == DONE
    assert after_its_end.client_operation_id == request_id
    assert after_its_end.http_error_status_code == 0


def test_another_request_under_the_same_id_is_a_conflict_and_never_runs(compute: Compute) -> None:
    request_id = str(uuid4())
    compute.wait(compute.insert("owner-of-the-id", request_id))

    with pytest.raises(Conflict, match="requestId"):
        compute.insert("thief-of-the-id", request_id)

    with pytest.raises(NotFound):
        compute.images.get(project=PROJECT, image="thief-of-the-id")


def test_a_patch_changes_family_description_and_deprecation_and_nothing_else(compute: Compute) -> None:
    before = compute.made("patched", family="old", description="old", labels={"kept": "yes"})

    ended = compute.patch(
        "patched",
        Image(family="new", description="new", deprecated=DeprecationStatus(state="DEPRECATED", replacement="global/images/r")),
    )

    after = compute.images.get(project=PROJECT, image="patched")
    assert (ended.status, ended.operation_type, ended.http_error_status_code) == (DONE, "patch", 0)
    assert str(ended.target_id) == str(before.id)
    assert (after.family, after.description) == ("new", "new")
    assert (after.deprecated.state, after.deprecated.replacement) == ("DEPRECATED", "global/images/r")
    rest = Image(after)
    rest.family, rest.description, rest.deprecated = "old", "old", None
    assert before == rest


def test_an_empty_family_in_a_patch_clears_it_and_keeps_the_rest(compute: Compute) -> None:
    compute.made("cleared", family="gone", description="stays")

    compute.patch("cleared", Image(family=""))

    after = compute.images.get(project=PROJECT, image="cleared")
    assert "family" not in after
    assert after.description == "stays"


def test_an_image_that_is_active_again_has_no_deprecation(compute: Compute) -> None:
    compute.made("active-again")
    compute.patch("active-again", Image(deprecated=DeprecationStatus(state="OBSOLETE")))
    compute.patch("active-again", Image(deprecated=DeprecationStatus(state="ACTIVE")))
    assert "deprecated" not in compute.images.get(project=PROJECT, image="active-again")


def test_lists_come_in_pages_and_in_the_order_that_was_asked_for(compute: Compute) -> None:
    project = "lists"
    names = ["c", "a", "d", "b", "e"]
    for name in names:
        image = Image(name=name, raw_disk=RawDisk(source=compute.source))
        ended = compute.operations.wait(
            project=project, operation=compute.images.insert_unary(project=project, image_resource=image).name
        )
        assert ended.http_error_status_code == 0

    by_name = compute.images.list(ListImagesRequest(project=project, max_results=2))
    newest_first = compute.images.list(
        ListImagesRequest(project=project, max_results=2, order_by="creationTimestamp desc")
    )
    operations = compute.operations.list(ListGlobalOperationsRequest(project=project, max_results=2))

    assert [[image.name for image in page.items] for page in by_name.pages] == [["a", "b"], ["c", "d"], ["e"]]
    assert names[::-1] == [image.name for image in newest_first]
    assert names == [operation.target_link.rpartition("/")[2] for operation in operations]


def test_a_project_nobody_knows_has_no_images(compute: Compute) -> None:
    assert list(compute.images.list(project="nobody-was-here")) == []


def test_what_is_not_there_is_not_found(compute: Compute) -> None:
    with pytest.raises(NotFound, match="The resource 'projects/p/global/images/missing' was not found"):
        compute.images.get(project=PROJECT, image="missing")
    with pytest.raises(NotFound, match="The resource 'projects/p/global/images/missing' was not found"):
        compute.patch("missing", Image(family="f"))
    with pytest.raises(NotFound, match="The resource 'projects/p/global/operations/missing' was not found"):
        compute.operations.get(project=PROJECT, operation="missing")
    with pytest.raises(NotFound, match="The resource 'projects/p/global/operations/missing' was not found"):
        compute.operations.wait(project=PROJECT, operation="missing")


def test_a_taken_name_is_a_conflict(compute: Compute) -> None:
    compute.made("taken")
    with pytest.raises(Conflict, match="The resource 'projects/p/global/images/taken' already exists"):
        compute.insert("taken")


def test_a_bad_name_is_a_bad_request_that_names_the_field(compute: Compute) -> None:
    with pytest.raises(BadRequest, match=r"Invalid value for field 'resource\.name': 'Bad_Name'") as refused:
        compute.insert("Bad_Name")
    assert [(e["reason"], e["domain"]) for e in refused.value.errors] == [("invalid", "global")]


def test_a_request_id_that_is_no_uuid_is_a_bad_request(compute: Compute) -> None:
    with pytest.raises(BadRequest, match="requestId"):
        compute.insert("never", request_id="00000000-0000-0000-0000-000000000000")


def test_a_failed_operation_looks_failed_to_the_client(compute: Compute) -> None:
    image = Image(name="no-source", raw_disk=RawDisk(source=compute.source.replace("disk.", "missing.")))
    ended = compute.wait(compute.images.insert_unary(project=PROJECT, image_resource=image))

    assert (ended.status, ended.progress) == (DONE, 100)
    assert (ended.http_error_status_code, ended.http_error_message) == (404, "NOT FOUND")
    assert [error.code for error in ended.error.errors] == ["RESOURCE_NOT_FOUND"]
    assert ended.error.errors[0].message.startswith("The resource 'http://127.0.0.1:")
    with pytest.raises(NotFound):
        compute.images.get(project=PROJECT, image="no-source")


def test_a_result_that_is_done_already_needs_no_more_than_the_client(compute: Compute) -> None:
    """`.result()` polls an address of the library's own unless the operation is DONE: a repeat of a finished one."""
    image = Image(name="resulting", raw_disk=RawDisk(source=compute.source))
    request = InsertImageRequest(project=PROJECT, image_resource=image, request_id=str(uuid4()))
    compute.wait(compute.images.insert_unary(request))

    extended = compute.images.insert(request)

    extended.result()
    assert extended.done()
    assert extended.error_code is None or extended.error_code == 0
