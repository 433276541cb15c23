"""The official client, unmodified, pointed at the daemon's address."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from google.api_core.exceptions import BadRequest, Conflict, NotFound, PreconditionFailed
from google.auth.credentials import AnonymousCredentials
from google.cloud.compute_v1 import (
    AggregatedListGlobalOperationsRequest,
    Binding,
    DeleteImageRequest,
    DeprecationStatus,
    GetGlobalOperationRequest,
    GlobalOperationsClient,
    GlobalOrganizationOperationsClient,
    GlobalSetLabelsRequest,
    GlobalSetPolicyRequest,
    Image,
    ImagesClient,
    InsertImageRequest,
    InsertMachineImageRequest,
    ListGlobalOperationsRequest,
    ListImagesRequest,
    ListMachineImagesRequest,
    MachineImage,
    MachineImagesClient,
    Operation,
    PatchImageRequest,
    Policy,
    ProjectsClient,
    RawDisk,
    RegionOperationsClient,
    RegionsClient,
    ZoneOperationsClient,
    ZonesClient,
)
from google.cloud.compute_v1 import TestPermissionsRequest as PermissionsRequest
from tests.acceptance.conftest import Archive
from tests.acceptance.source import Served, SourceServer
from tests.acceptance.tap import tapped
from tests.backends.archives import GIB, MIB, disk, same_bytes
from tests.daemon_process import LOOPBACK_SOURCES, PROJECT, DaemonProcess

DONE = Operation.Status.DONE


class Compute(NamedTuple):
    """The two clients a program needs, the daemon they talk to and its address, and the URL of a good archive."""

    images: ImagesClient
    operations: GlobalOperationsClient
    daemon: DaemonProcess
    url: str
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
    settings = (LOOPBACK_SOURCES, f"backends.local.resources_dir={data_dir.parent / 'resources'}")
    with SourceServer() as server, DaemonProcess(data_dir, *settings) as daemon, tapped(daemon) as url:
        options = {"api_endpoint": url}
        with (
            ImagesClient(credentials=AnonymousCredentials(), client_options=options) as images,
            GlobalOperationsClient(credentials=AnonymousCredentials(), client_options=options) as operations,
        ):
            yield Compute(images, operations, daemon, url, server.put("disk.tar.gz", Served(archive.body)))


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
        label_fingerprint=image.label_fingerprint,
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
        Image(
            family="new",
            description="new",
            deprecated=DeprecationStatus(state="DEPRECATED", replacement="global/images/r"),
        ),
    )

    after = compute.images.get(project=PROJECT, image="patched")
    assert (ended.status, ended.operation_type, ended.http_error_status_code) == (DONE, "patch", 0)
    assert str(ended.target_id) == str(before.id)
    assert (after.family, after.description) == ("new", "new")
    replacement = "https://www.googleapis.com/compute/v1/projects/p/global/images/r"
    assert (after.deprecated.state, after.deprecated.replacement) == ("DEPRECATED", replacement)
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


def test_lists_are_filtered_in_both_dialects(compute: Compute) -> None:
    project = "filters"
    for name in ("red-1", "red-2", "blue-1"):
        image = Image(name=name, raw_disk=RawDisk(source=compute.source), labels={"colour": name.partition("-")[0]})
        operation = compute.images.insert_unary(project=project, image_resource=image)
        compute.operations.wait(project=project, operation=operation.name)

    def named(query: str) -> list[str]:
        request = ListImagesRequest(project=project, filter=query, max_results=1)
        return [image.name for image in compute.images.list(request)]

    assert named("labels.colour = red") == ["red-1", "red-2"]
    assert named("name eq .*-1") == ["blue-1", "red-1"]
    failed = ListGlobalOperationsRequest(project=project, filter="httpErrorStatusCode >= 400")
    assert list(compute.operations.list(failed)) == []
    with pytest.raises(BadRequest, match="filter"):
        named("name =")


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


def test_a_result_comes_once_the_librarys_own_poller_is_told_where_to_ask(compute: Compute) -> None:
    """A trick and no promise: the client keeps its poller in a private place, and has no option for it. Without it
    `.result()` of what is not yet DONE asks Google; `insert_unary` and `wait` need no trick."""
    options = {"api_endpoint": compute.url}
    with ImagesClient(credentials=AnonymousCredentials(), client_options=options) as images:
        images.transport._extended_operations_services["global_operations"] = compute.operations
        good = Image(name="result", raw_disk=RawDisk(source=compute.source))
        bad = Image(name="no-result", raw_disk=RawDisk(source=compute.source.replace("disk.", "missing.")))

        succeeding = images.insert(project=PROJECT, image_resource=good)
        failing = images.insert(project=PROJECT, image_resource=bad)

        succeeding.result()
        with pytest.raises(NotFound, match="NOT FOUND"):
            failing.result()
    assert compute.images.get(project=PROJECT, image="result").status == "READY"


# ------------------------------------------------------------------------------------- the rest of the images


def test_an_image_is_deprecated_step_by_step_and_active_again(compute: Compute) -> None:
    compute.made("ageing")
    states = []
    for state in ("DEPRECATED", "OBSOLETE", "DELETED", "ACTIVE"):
        operation = compute.images.deprecate_unary(
            project=PROJECT, image="ageing", deprecation_status_resource=DeprecationStatus(state=state)
        )
        ended = compute.wait(operation)
        assert (ended.status, ended.http_error_status_code, ended.operation_type) == (DONE, 0, "deprecate")
        states.append(compute.images.get(project=PROJECT, image="ageing").deprecated.state)
    assert states == ["DEPRECATED", "OBSOLETE", "DELETED", ""]


def test_a_family_is_its_newest_image_that_is_not_deprecated(compute: Compute) -> None:
    compute.made("member-1", family="members")
    newest = compute.made("member-2", family="members")
    assert newest == compute.images.get_from_family(project=PROJECT, family="members")

    compute.wait(
        compute.images.deprecate_unary(
            project=PROJECT, image="member-2", deprecation_status_resource=DeprecationStatus(state="DEPRECATED")
        )
    )

    assert compute.images.get_from_family(project=PROJECT, family="members").name == "member-1"
    with pytest.raises(NotFound):
        compute.images.get_from_family(project=PROJECT, family="nobodys")


def test_labels_are_set_by_who_has_seen_the_ones_before(compute: Compute) -> None:
    before = compute.made("labelled", labels={"old": "1"})
    wanted = GlobalSetLabelsRequest(labels={"new": "2"}, label_fingerprint=before.label_fingerprint)

    ended = compute.wait(
        compute.images.set_labels_unary(project=PROJECT, resource="labelled", global_set_labels_request_resource=wanted)
    )

    after = compute.images.get(project=PROJECT, image="labelled")
    assert (ended.status, ended.http_error_status_code, ended.operation_type) == (DONE, 0, "setLabels")
    assert dict(after.labels) == {"new": "2"}
    assert before.label_fingerprint != after.label_fingerprint
    for stale in (wanted, GlobalSetLabelsRequest(labels={"new": "3"})):
        with pytest.raises(PreconditionFailed, match="fingerprint"):
            compute.images.set_labels_unary(
                project=PROJECT, resource="labelled", global_set_labels_request_resource=stale
            )


def test_a_policy_is_kept_and_its_etag_guards_it(compute: Compute) -> None:
    compute.made("guarded")
    empty = compute.images.get_iam_policy(project=PROJECT, resource="guarded")
    binding = Binding(role="roles/compute.imageUser", members=["user:reader@example.com"])
    wanted = GlobalSetPolicyRequest(policy=Policy(bindings=[binding], etag=empty.etag))

    written = compute.images.set_iam_policy(
        project=PROJECT, resource="guarded", global_set_policy_request_resource=wanted
    )

    assert (list(empty.bindings), list(written.bindings)) == ([], [binding])
    assert written == compute.images.get_iam_policy(project=PROJECT, resource="guarded")
    with pytest.raises(Conflict, match="policy"):
        compute.images.set_iam_policy(project=PROJECT, resource="guarded", global_set_policy_request_resource=wanted)


def test_a_caller_is_told_which_permissions_it_has(compute: Compute) -> None:
    compute.made("permitted")
    asked = ["compute.images.get", "compute.images.delete"]
    answer = compute.images.test_iam_permissions(
        project=PROJECT,
        resource="permitted",
        test_permissions_request_resource=PermissionsRequest(permissions=asked),
    )
    assert asked == list(answer.permissions)


def test_a_deleted_image_is_gone_and_its_name_is_free(compute: Compute) -> None:
    first = compute.made("short-lived")
    stored = compute.daemon.stored(compute.daemon.image("short-lived"))
    request = DeleteImageRequest(project=PROJECT, image="short-lived", request_id=str(uuid4()))

    ended = compute.wait(compute.images.delete_unary(request))
    again = compute.images.delete_unary(request)

    assert (ended.status, ended.http_error_status_code, ended.operation_type) == (DONE, 0, "delete")
    assert str(ended.target_id) == str(first.id)
    assert ended.name == again.name
    assert not stored.exists()
    with pytest.raises(NotFound):
        compute.images.get(project=PROJECT, image="short-lived")
    with pytest.raises(NotFound):
        compute.images.delete_unary(project=PROJECT, image="short-lived")
    assert compute.made("short-lived").id != first.id


# ------------------------------------------------------------------------- the rest of the operations


def test_operations_of_everywhere_are_global_ones(compute: Compute) -> None:
    project = "everywhere"
    names = []
    for name in ("a", "b", "c"):
        image = Image(name=name, raw_disk=RawDisk(source=compute.source))
        names.append(compute.images.insert_unary(project=project, image_resource=image).name)

    pages = compute.operations.aggregated_list(AggregatedListGlobalOperationsRequest(project=project, max_results=2))

    found = [(scope, [operation.name for operation in scoped.operations]) for scope, scoped in pages]
    assert found == [("global", names[:2]), ("global", names[2:])]


def test_the_record_of_a_finished_operation_can_be_forgotten(compute: Compute) -> None:
    ended = compute.wait(compute.insert("remembered"))

    compute.operations.delete(project=PROJECT, operation=ended.name)

    for verb in (compute.operations.get, compute.operations.wait, compute.operations.delete):
        with pytest.raises(NotFound):
            verb(project=PROJECT, operation=ended.name)
    assert compute.images.get(project=PROJECT, image="remembered").status == "READY"


def test_there_are_no_operations_in_zones_regions_and_organizations(compute: Compute) -> None:
    here: dict[str, Any] = {
        "credentials": AnonymousCredentials(),
        "client_options": {"api_endpoint": compute.url},
    }
    zone = {"project": PROJECT, "zone": "us-central1-a"}
    region = {"project": PROJECT, "region": "us-central1"}
    with (
        ZoneOperationsClient(**here) as zonal,
        RegionOperationsClient(**here) as regional,
        GlobalOrganizationOperationsClient(**here) as organizational,
    ):
        assert [list(zonal.list(**zone)), list(regional.list(**region)), list(organizational.list())] == [[], [], []]
        for verb in (zonal.get, zonal.wait, zonal.delete):
            with pytest.raises(NotFound):
                verb(operation="operation-1", **zone)
        for verb in (regional.get, regional.wait, regional.delete):
            with pytest.raises(NotFound):
                verb(operation="operation-1", **region)
        for verb in (organizational.get, organizational.delete):
            with pytest.raises(NotFound):
                verb(operation="operation-1")


def test_a_project_has_its_name_and_no_zones_or_regions(compute: Compute) -> None:
    here: dict[str, Any] = {
        "credentials": AnonymousCredentials(),
        "client_options": {"api_endpoint": compute.url},
    }
    with ProjectsClient(**here) as projects, ZonesClient(**here) as zones, RegionsClient(**here) as regions:
        assert projects.get(project=PROJECT).name == PROJECT
        assert [list(zones.list(project=PROJECT)), list(regions.list(project=PROJECT))] == [[], []]


def test_a_quota_refusal_carries_the_quota(tmp_path: Path) -> None:
    script = 'backends.simulated.scripts=[{image = "one-too-many", steps = [{fail = "quota"}]}]'
    with DaemonProcess(tmp_path / "data", "backend=simulated", script) as daemon:
        options = {"api_endpoint": daemon.url}
        with (
            ImagesClient(credentials=AnonymousCredentials(), client_options=options) as images,
            GlobalOperationsClient(credentials=AnonymousCredentials(), client_options=options) as operations,
        ):
            compute = Compute(images, operations, daemon, daemon.url, "https://example.com/disk.tar.gz")
            ended = compute.wait(compute.insert("one-too-many"))

    [error] = ended.error.errors
    quota = error.error_details[0].quota_info
    assert (ended.http_error_status_code, ended.http_error_message) == (403, "FORBIDDEN")
    assert error.code == "QUOTA_EXCEEDED"
    assert (quota.metric_name, quota.limit_name, quota.limit, dict(quota.dimensions)) == (
        "compute.googleapis.com/images",
        "IMAGES-per-project",
        2000,
        {"global": "global"},
    )


# ------------------------------------------------------------------------------------------ machine images

INSTANCE = f"projects/{PROJECT}/zones/z/instances/vm"


class TestMachineImages:
    @pytest.fixture
    def machine_images(self, compute: Compute) -> Iterator[MachineImagesClient]:
        zone = compute.daemon.data_dir.parent / "resources" / INSTANCE.partition("/instances/")[0]
        if not zone.exists():
            for kind in ("instances", "disks"):
                (zone / kind).mkdir(parents=True)
            disk(zone / "disks" / "boot.raw", GIB, [(MIB, b"boot" * 10_000)])
            instance = {"name": "vm", "disks": [{"source": "zones/z/disks/boot", "deviceName": "boot", "boot": True}]}
            (zone / "instances" / "vm.json").write_text(json.dumps(instance))
        options = {"api_endpoint": compute.url}
        with MachineImagesClient(credentials=AnonymousCredentials(), client_options=options) as client:
            yield client

    def inserted(self, machine_images: MachineImagesClient, name: str, instance: str = INSTANCE) -> Operation:
        return machine_images.insert_unary(
            InsertMachineImageRequest(
                project=PROJECT,
                source_instance=instance,
                machine_image_resource=MachineImage(name=name, description="A host."),
                request_id=str(uuid4()),
            )
        )

    def made(self, compute: Compute, machine_images: MachineImagesClient, name: str) -> MachineImage:
        ended = compute.wait(self.inserted(machine_images, name))
        assert (ended.status, ended.http_error_status_code, ended.operation_type) == (DONE, 0, "insert")
        return machine_images.get(project=PROJECT, machine_image=name)

    def test_a_machine_image_has_the_bytes_and_properties_of_its_instance(
        self, compute: Compute, machine_images: MachineImagesClient
    ) -> None:
        made = self.made(compute, machine_images, "host")

        root = compute.daemon.data_dir
        source = root.parent / "resources" / INSTANCE.replace("instances/vm", "disks/boot.raw")
        assert (made.status, made.description) == ("READY", "A host.")
        assert made.source_instance.endswith(INSTANCE)
        assert [attached.device_name for attached in made.source_instance_properties.disks] == ["boot"]
        assert [saved.source_disk.rpartition("/")[2] for saved in made.saved_disks] == ["boot"]
        assert same_bytes(source, root / "machine-images" / PROJECT / str(made.id) / "disk-0.raw")

    def test_labels_and_policies_are_those_of_images(
        self, compute: Compute, machine_images: MachineImagesClient
    ) -> None:
        before = self.made(compute, machine_images, "labelled")
        wanted = GlobalSetLabelsRequest(labels={"new": "2"}, label_fingerprint=before.label_fingerprint)
        policy = Policy(bindings=[Binding(role="roles/viewer", members=["user:reader@example.com"])])
        where = {"project": PROJECT, "resource": "labelled"}

        compute.wait(machine_images.set_labels_unary(global_set_labels_request_resource=wanted, **where))
        written = machine_images.set_iam_policy(
            global_set_policy_request_resource=GlobalSetPolicyRequest(policy=policy), **where
        )

        assert dict(machine_images.get(project=PROJECT, machine_image="labelled").labels) == {"new": "2"}
        with pytest.raises(PreconditionFailed):
            machine_images.set_labels_unary(global_set_labels_request_resource=wanted, **where)
        assert written == machine_images.get_iam_policy(**where)
        permissions = PermissionsRequest(permissions=["compute.machineImages.get"])
        tested = machine_images.test_iam_permissions(test_permissions_request_resource=permissions, **where)
        assert list(tested.permissions) == ["compute.machineImages.get"]

    def test_they_are_listed_in_pages_and_deleted(self, compute: Compute, machine_images: MachineImagesClient) -> None:
        for name in ("page-1", "page-2", "page-3"):
            self.made(compute, machine_images, name)
        request = ListMachineImagesRequest(project=PROJECT, max_results=2, filter="name eq page-.*")

        pages = [[image.name for image in page.items] for page in machine_images.list(request).pages]
        ended = compute.wait(machine_images.delete_unary(project=PROJECT, machine_image="page-2"))

        assert pages == [["page-1", "page-2"], ["page-3"]]
        assert (ended.http_error_status_code, ended.operation_type) == (0, "delete")
        with pytest.raises(NotFound):
            machine_images.get(project=PROJECT, machine_image="page-2")

    def test_of_no_instance_there_is_no_machine_image(
        self, compute: Compute, machine_images: MachineImagesClient
    ) -> None:
        ended = compute.wait(self.inserted(machine_images, "of-nothing", f"{INSTANCE}-2"))
        assert (ended.http_error_status_code, ended.http_error_message) == (404, "NOT FOUND")
        with pytest.raises(NotFound):
            machine_images.get(project=PROJECT, machine_image="of-nothing")
        self.made(compute, machine_images, "taken")
        with pytest.raises(Conflict):
            self.inserted(machine_images, "taken")
