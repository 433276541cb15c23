"""google-api-python-client with its built-in discovery documents, unmodified, pointed at the daemon's address: v1 and
beta. Its answers are the raw JSON, so each is held to the schema that the document names for it."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest
from google.api_core.client_options import ClientOptions
from google.auth.credentials import AnonymousCredentials
from googleapiclient import discovery_cache
from googleapiclient.discovery import Resource, build
from googleapiclient.errors import HttpError
from googleapiclient.http import BatchHttpRequest, HttpRequest
from tests.acceptance.conftest import Archive
from tests.acceptance.source import Served, SourceServer
from tests.backends.archives import GIB, MIB, disk, same_bytes
from tests.contract.validate import assert_valid
from tests.daemon_process import LOOPBACK_SOURCES, PROJECT, DaemonProcess, Json

from imageopsd.wire.filters.parser import MAX_LENGTH

VERSIONS = ("v1", "beta")
INSTANCE = f"projects/{PROJECT}/zones/z/instances/vm"
SOURCE = {"source": "https://example.com/disk.tar.gz"}


def service_at(url: str, version: str) -> Resource:
    """The client as a user builds it. The path and its last slash are needed: they replace the document's own."""
    return build(
        "compute",
        version,
        static_discovery=True,
        credentials=AnonymousCredentials(),
        client_options=ClientOptions(api_endpoint=f"{url}/compute/{version}/"),
    )


def answers(version: str) -> dict[str, str]:
    """The schema of each method's answer, from the document that the client itself goes by."""

    def of(resource: Json) -> Iterator[tuple[str, str]]:
        for method in resource.get("methods", {}).values():
            yield method["id"], method.get("response", {}).get("$ref", "")
        for inner in resource.get("resources", {}).values():
            yield from of(inner)

    return dict(of(json.loads(discovery_cache.get_static_doc("compute", version))))


class Compute(NamedTuple):
    """The client in one version, the daemon it talks to, the URL of a good archive, and what answers look like."""

    version: str
    service: Resource
    daemon: DaemonProcess
    source: str
    answers: dict[str, str]

    def send(self, request: HttpRequest) -> Json:
        answer: Json = request.execute()
        self.hold(request, answer)
        return answer

    def hold(self, request: HttpRequest, answer: Any) -> None:
        """To the schema that its method has in the document."""
        assert_valid(self.answers[request.methodId], answer, self.version)

    def wait(self, operation: Json, project: str = PROJECT) -> Json:
        while operation["status"] != "DONE":
            operation = self.send(self.service.globalOperations().wait(project=project, operation=operation["name"]))
        return operation

    def done(self, request: HttpRequest) -> Json:
        """The operation of a change, at its good end."""
        ended = self.wait(self.send(request))
        assert not ended.keys() & {"error", "httpErrorStatusCode", "httpErrorMessage"}, ended
        assert (ended["status"], ended["progress"]) == ("DONE", 100)
        return ended

    def inserting(self, name: str, project: str = PROJECT, **fields: Any) -> HttpRequest:
        body = {"name": name, "rawDisk": {"source": self.source, "containerType": "TAR"}, **fields}
        return self.service.images().insert(project=project, body=body, requestId=str(uuid4()))

    def made(self, name: str, **fields: Any) -> Json:
        """An image that is there."""
        self.done(self.inserting(name, **fields))
        return self.image(name)

    def image(self, name: str) -> Json:
        return self.send(self.service.images().get(project=PROJECT, image=name))

    def pages(self, collection: Resource, method: str = "list", **query: Any) -> Iterator[Json]:
        """By the client's own way from page to page."""
        request = getattr(collection, method)(**query)
        while request is not None:
            page = self.send(request)
            yield page
            request = getattr(collection, f"{method}_next")(request, page)

    def refused(self, request: HttpRequest) -> tuple[int, str, str]:
        """Status, message and the first error's reason of what must be refused."""
        with pytest.raises(HttpError) as refused:
            request.execute()
        return refused.value.status_code, refused.value.reason, refused.value.error_details[0]["reason"]


def describe(resources: Path) -> None:
    """A host with INSTANCE and its two disks."""
    zone = resources / INSTANCE.partition("/instances/")[0]
    for kind in ("instances", "disks"):
        (zone / kind).mkdir(parents=True)
    disk(zone / "disks" / "boot.raw", GIB, [(MIB, b"boot" * 10_000)])
    disk(zone / "disks" / "data.raw", 64 * MIB, [(0, b"data" * 10_000)])
    disks = [
        {"source": f"zones/z/disks/{name}", "deviceName": name, "boot": name == "boot", "autoDelete": True}
        for name in ("boot", "data")
    ]
    instance = {
        "name": "vm",
        "machineType": "zones/z/machineTypes/e2-medium",
        "labels": {"tier": "web"},
        "metadata": {"items": [{"key": "startup-script", "value": "#!/bin/sh"}]},
        "networkInterfaces": [{"network": f"projects/{PROJECT}/global/networks/default"}],
        "disks": disks,
    }
    (zone / "instances" / "vm.json").write_text(json.dumps(instance))


@pytest.fixture(scope="module")
def resources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resources")
    describe(folder)
    return folder


@pytest.fixture(scope="module", params=VERSIONS)
def compute(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, archive: Archive, resources: Path
) -> Iterator[Compute]:
    version = request.param
    data_dir = tmp_path_factory.mktemp(f"googleapiclient-{version}") / "data"
    settings = (LOOPBACK_SOURCES, f"backends.local.resources_dir={resources}")
    with SourceServer() as server, DaemonProcess(data_dir, *settings) as daemon:
        source = server.put("disk.tar.gz", Served(archive.body))
        with service_at(daemon.url, version) as service:
            yield Compute(version, service, daemon, source, answers(version))


# ------------------------------------------------------------------------------------------------ images


def test_an_inserted_image_is_there_with_every_byte_and_every_field(compute: Compute, archive: Archive) -> None:
    started = compute.send(
        compute.inserting(
            "whole",
            description="A disk of noise.",
            family="noise",
            labels={"made-by": "tests"},
            architecture="X86_64",
            guestOsFeatures=[{"type": "GVNIC"}, {"type": "UEFI_COMPATIBLE"}],
            storageLocations=["us"],
        )
    )

    ended = compute.wait(started)
    image = compute.image("whole")

    assert (ended["status"], ended["progress"], ended["operationType"]) == ("DONE", 100, "insert")
    assert {started["name"], started["selfLink"]} == {ended["name"], ended["selfLink"]}
    assert (image["id"], image["selfLink"]) == (ended["targetId"], ended["targetLink"])
    made_here = ("id", "selfLink", "creationTimestamp", "labelFingerprint")
    assert {name: value for name, value in image.items() if name not in made_here} == {
        "kind": "compute#image",
        "name": "whole",
        "description": "A disk of noise.",
        "family": "noise",
        "labels": {"made-by": "tests"},
        "architecture": "X86_64",
        "guestOsFeatures": [{"type": "GVNIC"}, {"type": "UEFI_COMPATIBLE"}],
        "storageLocations": ["us"],
        "status": "READY",
        "sourceType": "RAW",
        "rawDisk": {"source": compute.source, "containerType": "TAR"},
        "diskSizeGb": "1",
        "archiveSizeBytes": str(len(archive.body)),
    }
    assert same_bytes(archive.disk, compute.daemon.stored(image))


def test_an_image_can_be_got_by_its_numeric_id(compute: Compute) -> None:
    image = compute.made("by-id")
    assert image == compute.image(image["id"])


def test_links_are_those_of_the_version_that_was_asked(compute: Compute) -> None:
    base = f"https://www.googleapis.com/compute/{compute.version}/projects/{PROJECT}/global"
    ended = compute.done(compute.inserting("linked"))
    again = compute.send(compute.service.globalOperations().get(project=PROJECT, operation=ended["name"]))
    assert f"{base}/operations/{ended['name']}" == ended["selfLink"] == again["selfLink"]
    assert f"{base}/images/linked" == ended["targetLink"] == again["targetLink"]


def test_what_one_version_makes_the_other_sees_and_changes(compute: Compute) -> None:
    compute.made("shared")
    [other] = set(VERSIONS) - {compute.version}

    with service_at(compute.daemon.url, other) as service:
        there = compute._replace(version=other, service=service, answers=answers(other))
        operation = there.done(service.images().patch(project=PROJECT, image="shared", body={"family": "seen"}))

    here = compute.image("shared")
    by_name = compute.send(compute.service.globalOperations().get(project=PROJECT, operation=operation["name"]))
    assert here["family"] == "seen"
    assert operation == by_name


def test_a_repeated_request_returns_the_first_operation_and_another_is_a_conflict(compute: Compute) -> None:
    request_id = str(uuid4())
    images = compute.service.images()
    bodies = [{"name": name, "rawDisk": {"source": compute.source}} for name in ("repeated", "repeated", "thief")]
    requests = [images.insert(project=PROJECT, body=body, requestId=request_id) for body in bodies]

    first = compute.done(requests[0])

    assert first == compute.send(requests[1])
    status, message, reason = compute.refused(requests[2])
    assert (status, reason) == (409, "conflict")
    assert "requestId" in message
    assert compute.refused(images.get(project=PROJECT, image="thief"))[0] == 404


def test_a_patch_changes_family_description_and_deprecation_and_nothing_else(compute: Compute) -> None:
    before = compute.made("patched", family="old", description="old", labels={"kept": "yes"})
    body = {"family": "new", "description": "", "deprecated": {"state": "DEPRECATED", "replacement": "global/images/r"}}

    ended = compute.done(compute.service.images().patch(project=PROJECT, image="patched", body=body))

    after = compute.image("patched")
    assert ended["operationType"] == "patch"
    assert after["family"] == "new"
    assert "description" not in after
    replacement = "https://www.googleapis.com/compute/v1/projects/p/global/images/r"
    assert (after["deprecated"]["state"], after["deprecated"]["replacement"]) == ("DEPRECATED", replacement)
    changed = ("family", "description", "deprecated")
    assert [{n: v for n, v in image.items() if n not in changed} for image in (before, after)] == [
        {n: v for n, v in before.items() if n not in changed}
    ] * 2


def test_an_image_is_deprecated_step_by_step_and_active_again(compute: Compute) -> None:
    images = compute.service.images()
    compute.made("ageing")
    states = []
    for state in ("DEPRECATED", "OBSOLETE", "DELETED", "ACTIVE"):
        ended = compute.done(images.deprecate(project=PROJECT, image="ageing", body={"state": state}))
        assert ended["operationType"] == "deprecate"
        states.append(compute.image("ageing").get("deprecated", {}).get("state"))
    assert states == ["DEPRECATED", "OBSOLETE", "DELETED", None]


def test_a_family_is_its_newest_image_that_is_not_deprecated(compute: Compute) -> None:
    images = compute.service.images()
    compute.made("member-1", family="members")
    compute.made("member-2", family="members")
    newest = compute.send(images.getFromFamily(project=PROJECT, family="members"))
    compute.done(images.deprecate(project=PROJECT, image="member-2", body={"state": "DEPRECATED"}))
    newest_left = compute.send(images.getFromFamily(project=PROJECT, family="members"))

    assert [newest["name"], newest_left["name"]] == ["member-2", "member-1"]
    assert compute.refused(images.getFromFamily(project=PROJECT, family="nobodys"))[::2] == (404, "notFound")


def test_labels_are_set_by_who_has_seen_the_ones_before(compute: Compute) -> None:
    images = compute.service.images()
    before = compute.made("labelled", labels={"old": "1"})
    body = {"labels": {"new": "2"}, "labelFingerprint": before["labelFingerprint"]}

    ended = compute.done(images.setLabels(project=PROJECT, resource="labelled", body=body))

    after = compute.image("labelled")
    assert ended["operationType"] == "setLabels"
    assert after["labels"] == {"new": "2"}
    assert before["labelFingerprint"] != after["labelFingerprint"]
    with pytest.raises(HttpError) as stale:
        images.setLabels(project=PROJECT, resource="labelled", body=body).execute()
    assert stale.value.status_code == 412
    assert "fingerprint" in stale.value.reason
    assert [(e["reason"], e["location"], e["locationType"]) for e in stale.value.error_details] == [
        ("conditionNotMet", "If-Match", "header")
    ]


def test_a_policy_is_kept_and_its_etag_guards_it(compute: Compute) -> None:
    images = compute.service.images()
    compute.made("guarded")
    binding = {"role": "roles/compute.imageUser", "members": ["user:reader@example.com"]}

    empty = compute.send(images.getIamPolicy(project=PROJECT, resource="guarded"))
    body = {"policy": {"bindings": [binding], "etag": empty["etag"]}}
    written = compute.send(images.setIamPolicy(project=PROJECT, resource="guarded", body=body))
    read = compute.send(images.getIamPolicy(project=PROJECT, resource="guarded"))

    assert "bindings" not in empty
    assert written == read
    assert read["bindings"] == [binding]
    status, _, reason = compute.refused(images.setIamPolicy(project=PROJECT, resource="guarded", body=body))
    assert (status, reason) == (409, "conflict")


def test_a_caller_is_told_which_permissions_it_has(compute: Compute) -> None:
    compute.made("permitted")
    body = {"permissions": ["compute.images.get", "compute.images.delete"]}
    request = compute.service.images().testIamPermissions(project=PROJECT, resource="permitted", body=body)
    assert body == compute.send(request)


def test_a_deleted_image_is_gone_and_its_name_is_free(compute: Compute) -> None:
    images = compute.service.images()
    first = compute.made("short-lived")

    ended = compute.done(images.delete(project=PROJECT, image="short-lived", requestId=str(uuid4())))

    assert (ended["operationType"], ended["targetId"]) == ("delete", first["id"])
    assert compute.refused(images.get(project=PROJECT, image="short-lived"))[::2] == (404, "notFound")
    assert not compute.daemon.stored(first).exists()
    assert compute.made("short-lived")["id"] != first["id"]


def test_lists_come_in_pages_and_in_the_order_that_was_asked_for(compute: Compute) -> None:
    project = "lists"
    names = ["c", "a", "d", "b", "e"]
    for name in names:
        compute.wait(compute.send(compute.inserting(name, project)), project)
    query: Json = {"project": project, "maxResults": 2}

    by_name = list(compute.pages(compute.service.images(), **query))
    newest_first = compute.pages(compute.service.images(), orderBy="creationTimestamp desc", **query)
    operations = compute.pages(compute.service.globalOperations(), **query)
    aggregated = compute.pages(compute.service.globalOperations(), "aggregatedList", **query)

    assert [[image["name"] for image in page["items"]] for page in by_name] == [["a", "b"], ["c", "d"], ["e"]]
    assert names[::-1] == [image["name"] for page in newest_first for image in page["items"]]
    assert names == [op["targetLink"].rpartition("/")[2] for page in operations for op in page["items"]]
    assert names == [
        op["targetLink"].rpartition("/")[2] for page in aggregated for op in page["items"]["global"]["operations"]
    ]


def test_lists_are_filtered_in_both_dialects(compute: Compute) -> None:
    project = "filters"
    for name in ("red-1", "red-2", "blue-1"):
        request = compute.inserting(name, project, labels={"colour": name.partition("-")[0]})
        compute.wait(compute.send(request), project)

    def named(query: str) -> list[str]:
        pages = compute.pages(compute.service.images(), project=project, filter=query, maxResults=1)
        return [image["name"] for page in pages for image in page.get("items", [])]

    assert named("labels.colour = red") == ["red-1", "red-2"]
    assert named('(labels.colour = "red") (name != "red-1")') == ["red-2"]
    assert named("name eq .*-1") == ["blue-1", "red-1"]
    assert named("name ne red-.*") == ["blue-1"]
    operations = compute.service.globalOperations()
    found = compute.pages(operations, project=project, filter='operationType = "insert" AND status = DONE')
    assert sum(len(page.get("items", [])) for page in found) == 3
    assert compute.refused(operations.list(project=project, filter="name ="))[::2] == (400, "invalid")


def test_a_filter_may_be_too_long_for_a_url(compute: Compute) -> None:
    """The client then sends its query as the form of a POST, and the token of each next page in the URL."""
    project = "long-filters"
    for name in ("a", "b", "c", "d"):
        compute.wait(compute.send(compute.inserting(name, project)), project)
    images = compute.service.images()
    wanted = " OR ".join(f'(name = "{name}")' for name in ("a", "b", "d") * 40)
    query: Json = {"project": project, "filter": wanted, "maxResults": 1}
    assert len(wanted) <= MAX_LENGTH < len(images.list(**query).uri)

    listed = [image["name"] for page in compute.pages(images, **query) for image in page.get("items", [])]

    assert listed == ["a", "b", "d"]
    status, message, _ = compute.refused(images.list(project=project, filter="x" * (MAX_LENGTH + 1)))
    assert (status, "Expected at most 2048 characters" in message) == (400, True)


# ------------------------------------------------------------------------------- operations and neighbours


def test_an_operation_is_the_same_by_name_and_by_id_and_can_be_forgotten(compute: Compute) -> None:
    operations = compute.service.globalOperations()
    ended = compute.done(compute.inserting("forgotten"))
    by_name = compute.send(operations.get(project=PROJECT, operation=ended["name"]))
    by_id = compute.send(operations.get(project=PROJECT, operation=ended["id"]))

    answer = operations.delete(project=PROJECT, operation=ended["name"]).execute()

    assert ended == by_name == by_id
    assert json.loads(answer) == {}  # the document has no schema for it, so the client hands on the bytes
    for request in (operations.get, operations.wait, operations.delete):
        assert compute.refused(request(project=PROJECT, operation=ended["name"]))[::2] == (404, "notFound")


def test_there_are_no_operations_in_zones_regions_and_organizations(compute: Compute) -> None:
    service = compute.service
    places: list[tuple[Resource, Json]] = [
        (service.zoneOperations(), {"project": PROJECT, "zone": "us-central1-a"}),
        (service.regionOperations(), {"project": PROJECT, "region": "us-central1"}),
        (service.globalOrganizationOperations(), {}),
    ]
    for collection, where in places:
        assert compute.send(collection.list(**where)).get("items", []) == []
        verbs = [collection.get, collection.delete, *([collection.wait] if where else [])]
        for verb in verbs:
            assert compute.refused(verb(operation="operation-1", **where))[::2] == (404, "notFound")


def test_a_project_has_its_name_and_no_zones_or_regions(compute: Compute) -> None:
    service = compute.service
    project = compute.send(service.projects().get(project=PROJECT))
    assert (project["kind"], project["name"]) == ("compute#project", PROJECT)
    assert [
        compute.send(places.list(project=PROJECT)).get("items", []) for places in (service.zones(), service.regions())
    ] == [
        [],
        [],
    ]
    assert compute.refused(service.zones().get(project=PROJECT, zone="us-central1-a"))[::2] == (404, "notFound")
    assert compute.refused(service.regions().get(project=PROJECT, region="us-central1"))[::2] == (404, "notFound")


# -------------------------------------------------------------------------------------------------- errors


def test_an_error_has_its_message_and_its_details(compute: Compute) -> None:
    images, operations = compute.service.images(), compute.service.globalOperations()
    compute.made("taken")
    missing = f"The resource 'projects/{PROJECT}/global/images/missing' was not found"

    assert (404, missing, "notFound") == compute.refused(images.get(project=PROJECT, image="missing"))
    assert (404, missing, "notFound") == compute.refused(images.delete(project=PROJECT, image="missing"))
    assert (404, missing, "notFound") == compute.refused(
        images.patch(project=PROJECT, image="missing", body={"family": "f"})
    )
    assert (
        404,
        f"The resource 'projects/{PROJECT}/global/operations/missing' was not found",
        "notFound",
    ) == compute.refused(operations.wait(project=PROJECT, operation="missing"))
    assert (
        409,
        f"The resource 'projects/{PROJECT}/global/images/taken' already exists",
        "alreadyExists",
    ) == compute.refused(compute.inserting("taken"))


def test_a_bad_request_names_the_field(compute: Compute) -> None:
    images = compute.service.images()
    bad_name = compute.refused(compute.inserting("Bad_Name"))
    no_source = compute.refused(images.insert(project=PROJECT, body={"name": "i"}))
    bad_id = compute.refused(images.insert(project=PROJECT, body={"name": "i", "rawDisk": SOURCE}, requestId="seven"))
    bad_page = compute.refused(images.list(project=PROJECT, pageToken="nonsense"))

    assert (bad_name[::2], "'resource.name'" in bad_name[1]) == ((400, "invalid"), True)
    assert (no_source[::2], "'resource.rawDisk.source'" in no_source[1]) == ((400, "required"), True)
    assert (bad_id[::2], "'requestId'" in bad_id[1]) == ((400, "invalid"), True)
    assert (bad_page[::2], "'pageToken'" in bad_page[1]) == ((400, "invalid"), True)


def test_a_failed_operation_says_why_in_all_three_places(compute: Compute) -> None:
    source = compute.source.replace("disk.", "missing.")
    ended = compute.wait(compute.send(compute.inserting("no-source", rawDisk={"source": source})))

    assert (ended["status"], ended["progress"]) == ("DONE", 100)
    assert (ended["httpErrorStatusCode"], ended["httpErrorMessage"]) == (404, "NOT FOUND")
    [error] = ended["error"]["errors"]
    assert error["code"] == "RESOURCE_NOT_FOUND"
    assert source in error["message"]


def test_a_quota_refusal_carries_the_quota(tmp_path: Path) -> None:
    script = 'backends.simulated.scripts=[{image = "one-too-many", steps = [{fail = "quota"}]}]'
    with (
        DaemonProcess(tmp_path / "data", "backend=simulated", script) as daemon,
        service_at(daemon.url, "v1") as service,
    ):
        compute = Compute("v1", service, daemon, SOURCE["source"], answers("v1"))
        ended = compute.wait(compute.send(compute.inserting("one-too-many")))

    [error] = ended["error"]["errors"]
    assert (ended["httpErrorStatusCode"], ended["httpErrorMessage"]) == (403, "FORBIDDEN")
    assert error["code"] == "QUOTA_EXCEEDED"
    assert error["errorDetails"][0]["quotaInfo"] == {
        "metricName": "compute.googleapis.com/images",
        "limitName": "IMAGES-per-project",
        "limit": 2000,
        "dimensions": {"global": "global"},
    }


# -------------------------------------------------------------------------------------------------- batches


class Batch(NamedTuple):
    """What a batch's callback was called with, by the caller's own ids."""

    answers: dict[str, Json]
    errors: dict[str, HttpError]

    def callback(self, request_id: str, answer: Json, error: HttpError | None) -> None:
        if error is None:
            self.answers[request_id] = answer
        else:
            self.errors[request_id] = error


def run_batch(compute: Compute, requests: dict[str, HttpRequest]) -> Batch:
    """`service.new_batch_http_request()` would ask Google whatever the endpoint is, hence the `batch_uri`."""
    told = Batch({}, {})
    callback: Callable[..., None] = told.callback
    batch = BatchHttpRequest(callback=callback, batch_uri=f"{compute.daemon.url}/batch/compute/{compute.version}")
    for request_id, request in requests.items():
        batch.add(request, request_id=request_id)
    batch.execute()
    for request_id, answer in told.answers.items():
        compute.hold(requests[request_id], answer)
    return told


def test_each_call_of_a_batch_has_its_own_answer_or_error(compute: Compute) -> None:
    images = compute.service.images()
    image = compute.made("batched", family="old")

    told = run_batch(
        compute,
        {
            "get": images.get(project=PROJECT, image="batched"),
            "missing": images.get(project=PROJECT, image="missing"),
            "insert": compute.inserting("made-in-a-batch"),
            "taken": compute.inserting("batched"),
            "patch": images.patch(project=PROJECT, image="batched", body={"family": "new"}),
            "list": images.list(project=PROJECT, maxResults=1),
        },
    )

    assert image == told.answers["get"]
    assert {"get", "insert", "patch", "list"} == told.answers.keys()
    assert [(name, error.status_code, error.reason) for name, error in told.errors.items()] == [
        ("missing", 404, f"The resource 'projects/{PROJECT}/global/images/missing' was not found"),
        ("taken", 409, f"The resource 'projects/{PROJECT}/global/images/batched' already exists"),
    ]
    for name in ("insert", "patch"):
        assert "error" not in compute.wait(told.answers[name])
    assert compute.image("made-in-a-batch")["status"] == "READY"
    assert compute.image("batched")["family"] == "new"


def test_several_operations_are_waited_for_in_one_batch(compute: Compute) -> None:
    started = {name: compute.send(compute.inserting(name)) for name in ("waited-1", "waited-2")}
    operations = compute.service.globalOperations()

    told = run_batch(
        compute, {name: operations.wait(project=PROJECT, operation=op["name"]) for name, op in started.items()}
    )

    assert told.errors == {}
    assert [told.answers[name]["status"] for name in started] == ["DONE", "DONE"]


def test_a_batch_of_the_clients_own_making_goes_to_google(compute: Compute) -> None:
    """Why `batch_uri` is needed: the endpoint that the client was built with does not reach its batches."""
    asked = []

    class Recorder:
        def request(self, uri: str, **_: Any) -> Any:
            asked.append(uri)
            raise ConnectionAbortedError

    batch = compute.service.new_batch_http_request()
    batch.add(compute.service.images().get(project=PROJECT, image="any"))
    with pytest.raises(ConnectionAbortedError):
        batch.execute(http=Recorder())
    assert asked == [f"https://compute.googleapis.com/batch/compute/{compute.version}"]


# ------------------------------------------------------------------------------------------ machine images


class TestMachineImages:
    """The instance is named in the query, where the document has it."""

    def made(self, compute: Compute, name: str, **fields: Any) -> Json:
        """A machine image that is there."""
        machine_images = compute.service.machineImages()
        compute.done(
            machine_images.insert(
                project=PROJECT, body={"name": name, **fields}, sourceInstance=INSTANCE, requestId=str(uuid4())
            )
        )
        return compute.send(machine_images.get(project=PROJECT, machineImage=name))

    def test_a_machine_image_has_every_disk_and_property_of_its_instance(
        self, compute: Compute, resources: Path
    ) -> None:
        image = self.made(compute, "whole", description="A host.", labels={"made-by": "tests"})

        base = f"https://www.googleapis.com/compute/{compute.version}/projects/{PROJECT}"
        assert (image["status"], image["selfLink"]) == ("READY", f"{base}/global/machineImages/whole")
        assert (image["description"], image["labels"]) == ("A host.", {"made-by": "tests"})
        assert image["sourceInstance"].endswith(INSTANCE)
        properties = image["sourceInstanceProperties"]
        assert (properties["machineType"], properties["labels"]) == ("e2-medium", {"tier": "web"})
        assert [disk["deviceName"] for disk in properties["disks"]] == ["boot", "data"]
        assert [saved["sourceDisk"].rpartition("/")[2] for saved in image["savedDisks"]] == ["boot", "data"]
        stored = compute.daemon.data_dir / "machine-images" / PROJECT / image["id"]
        for number, name in enumerate(("boot", "data")):
            source = resources / INSTANCE.replace("instances/vm", f"disks/{name}.raw")
            assert same_bytes(source, stored / f"disk-{number}.raw")

    def test_the_instance_may_be_named_in_the_body_alone(self, compute: Compute) -> None:
        """gcloud names it there."""
        machine_images = compute.service.machineImages()
        body = {"name": "in-the-body", "sourceInstance": INSTANCE}
        compute.done(machine_images.insert(project=PROJECT, body=body))
        image = compute.send(machine_images.get(project=PROJECT, machineImage="in-the-body"))
        assert image["sourceInstance"].endswith(INSTANCE)

    def test_labels_and_policies_are_those_of_images(self, compute: Compute) -> None:
        machine_images = compute.service.machineImages()
        where = {"project": PROJECT, "resource": "labelled"}
        before = self.made(compute, "labelled", labels={"old": "1"})
        body = {"labels": {"new": "2"}, "labelFingerprint": before["labelFingerprint"]}
        policy = {"policy": {"bindings": [{"role": "roles/viewer", "members": ["user:reader@example.com"]}]}}

        compute.done(machine_images.setLabels(body=body, **where))
        written = compute.send(machine_images.setIamPolicy(body=policy, **where))

        assert compute.send(machine_images.get(project=PROJECT, machineImage="labelled"))["labels"] == {"new": "2"}
        assert compute.refused(machine_images.setLabels(body=body, **where))[::2] == (412, "conditionNotMet")
        assert written == compute.send(machine_images.getIamPolicy(**where))
        permissions = {"permissions": ["compute.machineImages.get"]}
        assert permissions == compute.send(machine_images.testIamPermissions(body=permissions, **where))

    def test_they_are_listed_in_pages_and_deleted(self, compute: Compute) -> None:
        machine_images = compute.service.machineImages()
        images = {name: self.made(compute, name) for name in ("page-1", "page-2", "page-3")}

        def listed() -> list[str]:
            query = {"project": PROJECT, "maxResults": 2, "filter": "name eq page-.*"}
            return [image["name"] for page in compute.pages(machine_images, **query) for image in page.get("items", [])]

        assert listed() == ["page-1", "page-2", "page-3"]
        ended = compute.done(machine_images.delete(project=PROJECT, machineImage="page-2"))
        assert (ended["operationType"], ended["targetId"]) == ("delete", images["page-2"]["id"])
        assert listed() == ["page-1", "page-3"]
        missing = machine_images.get(project=PROJECT, machineImage="page-2")
        assert compute.refused(missing)[::2] == (404, "notFound")
        assert not (compute.daemon.data_dir / "machine-images" / PROJECT / images["page-2"]["id"]).exists()

    def test_without_an_instance_nothing_is_made(self, compute: Compute) -> None:
        machine_images = compute.service.machineImages()
        missing = INSTANCE.replace("vm", "nothing")

        ended = compute.wait(
            compute.send(machine_images.insert(project=PROJECT, body={"name": "of-nothing"}, sourceInstance=missing))
        )

        assert ended["httpErrorStatusCode"] == 404
        assert [error["code"] for error in ended["error"]["errors"]] == ["RESOURCE_NOT_FOUND"]
        assert compute.refused(machine_images.get(project=PROJECT, machineImage="of-nothing"))[0] == 404
        self.made(compute, "taken")
        taken = machine_images.insert(project=PROJECT, body={"name": "taken"}, sourceInstance=INSTANCE)
        assert compute.refused(taken)[::2] == (409, "alreadyExists")
        of_none = machine_images.insert(project=PROJECT, body={"name": "of-none"})
        assert compute.refused(of_none)[::2] == (400, "required")
