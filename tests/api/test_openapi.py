"""The OpenAPI document says what is so: the routes there are, under Compute's names, and what they take and give."""

import re
from collections.abc import Iterator

import pytest
from jsonschema import Draft202012Validator, FormatChecker
from openapi_spec_validator import OpenAPIV31SpecValidator
from tests.api.conftest import SOURCE, Api, Bench, Json

from imageopsd.api.calls import Call, Route
from imageopsd.api.openapi import SHAPES
from imageopsd.api.openapi import document as made_of

SAMPLES = {"project": "p", "operation": "operation-1", "zone": "z", "region": "r", "name": "n"}
"""Values of path parameters; whatever is not here is called `disk`."""

LISTS = "filter maxResults orderBy pageToken"
DISCOVERY = f"""
images.delete DELETE projects/{{}}/global/images/{{}} requestId
images.deprecate POST projects/{{}}/global/images/{{}}/deprecate requestId
images.get GET projects/{{}}/global/images/{{}}
images.getFromFamily GET projects/{{}}/global/images/family/{{}}
images.getIamPolicy GET projects/{{}}/global/images/{{}}/getIamPolicy
images.insert POST projects/{{}}/global/images forceCreate requestId
images.list GET projects/{{}}/global/images {LISTS}
images.patch PATCH projects/{{}}/global/images/{{}} requestId
images.setIamPolicy POST projects/{{}}/global/images/{{}}/setIamPolicy
images.setLabels POST projects/{{}}/global/images/{{}}/setLabels
images.testIamPermissions POST projects/{{}}/global/images/{{}}/testIamPermissions
machineImages.delete DELETE projects/{{}}/global/machineImages/{{}} requestId
machineImages.get GET projects/{{}}/global/machineImages/{{}}
machineImages.getIamPolicy GET projects/{{}}/global/machineImages/{{}}/getIamPolicy
machineImages.insert POST projects/{{}}/global/machineImages requestId sourceInstance
machineImages.list GET projects/{{}}/global/machineImages {LISTS}
machineImages.setIamPolicy POST projects/{{}}/global/machineImages/{{}}/setIamPolicy
machineImages.setLabels POST projects/{{}}/global/machineImages/{{}}/setLabels
machineImages.testIamPermissions POST projects/{{}}/global/machineImages/{{}}/testIamPermissions
globalOperations.aggregatedList GET projects/{{}}/aggregated/operations {LISTS}
globalOperations.delete DELETE projects/{{}}/global/operations/{{}}
globalOperations.get GET projects/{{}}/global/operations/{{}}
globalOperations.list GET projects/{{}}/global/operations {LISTS}
globalOperations.wait POST projects/{{}}/global/operations/{{}}/wait
regionOperations.delete DELETE projects/{{}}/regions/{{}}/operations/{{}}
regionOperations.get GET projects/{{}}/regions/{{}}/operations/{{}}
regionOperations.list GET projects/{{}}/regions/{{}}/operations {LISTS}
regionOperations.wait POST projects/{{}}/regions/{{}}/operations/{{}}/wait
zoneOperations.delete DELETE projects/{{}}/zones/{{}}/operations/{{}}
zoneOperations.get GET projects/{{}}/zones/{{}}/operations/{{}}
zoneOperations.list GET projects/{{}}/zones/{{}}/operations {LISTS}
zoneOperations.wait POST projects/{{}}/zones/{{}}/operations/{{}}/wait
globalOrganizationOperations.delete DELETE locations/global/operations/{{}}
globalOrganizationOperations.get GET locations/global/operations/{{}}
globalOrganizationOperations.list GET locations/global/operations {LISTS}
projects.get GET projects/{{}}
zones.list GET projects/{{}}/zones
zones.get GET projects/{{}}/zones/{{}}
regions.list GET projects/{{}}/regions
regions.get GET projects/{{}}/regions/{{}}
"""
"""Method, verb, path and those query parameters that we read, of the discovery document (google-api-python-client
2.202.0, `compute.v1.json`, revision 20261106). Names of path parameters are left out: Compute is not of one mind."""


@pytest.fixture
async def document(api: Api) -> Json:
    status, document = await api.call("GET", "/openapi.json")
    assert status == 200
    result: Json = document
    return result


def operations(document: Json) -> Iterator[tuple[str, str, Json]]:
    """Verb, path and definition of every operation."""
    for path, item in document["paths"].items():
        for verb in ("get", "post", "put", "patch", "delete"):
            if verb in item:
                yield verb.upper(), path, item[verb]


def problems(document: Json, name: str, value: object) -> list[str]:
    """What is wrong with `value` as the component of that name."""
    schema = {"$ref": f"#/components/schemas/{name}", "components": document["components"]}
    found = Draft202012Validator(schema, format_checker=FormatChecker()).iter_errors(value)
    return [f"{error.json_path}: {error.message}" for error in found]


# ------------------------------------------------------------------------------------------ what is in it


async def test_it_is_a_valid_openapi_document(document: Json) -> None:
    assert [error.message for error in OpenAPIV31SpecValidator(document).iter_errors()] == []


async def test_every_schema_in_it_is_a_valid_one_and_used(document: Json) -> None:
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    assert document["components"]["schemas"].keys() == set(re.findall(r"#/components/schemas/(\w+)", str(document)))


async def test_every_route_is_in_it_and_nothing_else(document: Json) -> None:
    routes = {key.replace(" ", " /compute/{version}/") for key in SHAPES}
    assert routes | {"POST /batch/compute/{version}"} == {f"{verb} {path}" for verb, path, _ in operations(document)}


def test_a_route_that_nobody_has_described_is_an_error() -> None:
    async def handler(call: Call) -> bytes:
        return b""

    with pytest.raises(KeyError, match=re.escape("PUT projects/{project}/global/images")):
        made_of([Route("PUT", "projects/{project}/global/images", handler)])


@pytest.mark.parametrize("version", ["v1", "beta"])
async def test_every_path_in_it_has_a_route(api: Api, document: Json, version: str) -> None:
    for verb, path, _ in operations(document):
        url = re.sub(r"{(\w+)}", lambda match: {**SAMPLES, "version": version}.get(match[1], "disk"), path)
        status, answer = await api.call(verb, url)
        assert status in (200, 400, 404), (verb, url, answer)
        if status == 404:
            assert answer["error"]["message"].startswith("The resource '")  # the router has another sentence


async def test_every_parameter_of_a_path_is_described(document: Json) -> None:
    for path, item in document["paths"].items():
        assert re.findall(r"{(\w+)}", path) == [parameter["name"] for parameter in item["parameters"]]


async def test_methods_have_the_names_paths_and_parameters_of_the_discovery_document(document: Json) -> None:
    ours = {
        definition["operationId"]: (
            verb,
            re.sub(r"{\w+}", "{}", path.removeprefix("/compute/{version}/")),
            {parameter["name"] for parameter in definition.get("parameters", ())},
        )
        for verb, path, definition in operations(document)
    }
    theirs = [line.split() for line in DISCOVERY.strip().splitlines()]
    for method, verb, path, *query in theirs:
        assert (method, verb, path, set(query)) == (method, *ours[method][:2], ours[method][2] & set(query))
    # a batch is no method; organizations have no wait: it is there because the other places have one; two are our own
    extensions = {"globalOperations.cancel", "globalOperations.retry"}
    more = {"batch", "globalOrganizationOperations.wait", *extensions}
    assert ours.keys() - {method for method, *_ in theirs} == more


# ------------------------------------------------------------------------------------- what the API answers


class Described:
    """The API, whose answers are checked against the document; `seen` are the operations that had a good one."""

    def __init__(self, api: Api, document: Json) -> None:
        self._api = api
        self._document = document
        self._operations = {found["operationId"]: (verb, path, found) for verb, path, found in operations(document)}
        self.seen: set[str] = set()

    async def good(self, name: str, body: Json | None = None, query: str = "", **parameters: str) -> Json:
        """The answer to a request that must be taken."""
        verb, path, definition = self._operations[name]
        url = re.sub(r"{(\w+)}", lambda match: {**SAMPLES, "version": "v1", **parameters}.get(match[1], "disk"), path)
        status, answer = await self._api.call(verb, url + query, body)
        assert status == 200, (name, answer)
        assert problems(self._document, referred(definition["responses"]["200"]), answer) == [], name
        if body is not None:
            found = problems(self._document, referred(definition["requestBody"]), body)
            assert found in ([], ["$: 'kind' is a required property"]), name  # required of answers: it is read-only
        self.seen.add(name)
        result: Json = answer
        return result

    async def done(self, name: str, body: Json | None = None, **parameters: str) -> Json:
        operation = await self.good(name, body, **parameters)
        return await self.good("globalOperations.wait", operation=operation["name"])


def referred(part: Json) -> str:
    """The component that is the JSON of a body or an answer."""
    name: str = part["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    return name


async def test_requests_and_answers_are_as_it_says(bench: Bench, api: Api, document: Json) -> None:
    """One good answer of every operation that has any."""
    described = Described(api, document)
    image = {
        "name": "disk",
        "rawDisk": {**SOURCE, "containerType": "TAR", "sha1Checksum": "0" * 40},
        "architecture": "ARM64",
        "description": "d",
        "diskSizeGb": "10",
        "family": "f",
        "guestOsFeatures": [{"type": "GVNIC"}],
        "labels": {"a": "b"},
        "licenseCodes": ["5926592092274602096"],
        "params": {"resourceManagerTags": {"tagKeys/1": "tagValues/1"}},
        "shieldedInstanceInitialState": {"pk": {"content": "cGs=", "fileType": "X509"}},
        "sourceType": "RAW",
        "storageLocations": ["eu"],
    }
    instance = "projects/p/zones/z/instances/i"
    policy = {"policy": {"version": 3, "bindings": [{"role": "r", "members": ["user:a@example.com"]}]}}
    async with bench.working({"image": "broken", "steps": [{"fail": "permanent"}]}):
        for name in ("zones.list", "regions.list", "projects.get", "images.list", "globalOperations.aggregatedList"):
            await described.good(name)
        for collection, body in (("images", image), ("machineImages", {"name": "disk", "sourceInstance": instance})):
            ended = await described.done(f"{collection}.insert", body)
            made = await described.good(f"{collection}.get")
            await described.good(f"{collection}.list", query="?orderBy=name&maxResults=1")
            labels = {"labels": {"c": "d"}, "labelFingerprint": made["labelFingerprint"]}
            await described.done(f"{collection}.setLabels", labels)
            await described.good(f"{collection}.setIamPolicy", policy)
            await described.good(f"{collection}.getIamPolicy")
            await described.good(f"{collection}.testIamPermissions", {"permissions": ["compute.images.get"]})
        await described.good("images.getFromFamily", family="f")
        await described.done("images.patch", {"family": "", "description": "new"})
        await described.done("images.deprecate", {"state": "OBSOLETE", "deleted": "2030-01-02T03:04:05Z"})
        await described.good("images.get")
        for name in ("globalOperations.list", "globalOperations.aggregatedList", "zoneOperations.list",
                     "regionOperations.list", "globalOrganizationOperations.list"):  # fmt: skip
            await described.good(name, query="?returnPartialSuccess=true")
        for collection in ("images", "machineImages"):
            await described.done(f"{collection}.delete")
        await described.good("globalOperations.get", operation=ended["name"])
        await described.good("globalOperations.cancel", operation=ended["name"])
        failed = await described.done("images.insert", {"name": "broken", "rawDisk": SOURCE})
        await described.good("globalOperations.retry", operation=failed["name"])
        await described.good("globalOperations.delete", operation=ended["name"])

    assert described.seen == {
        found["operationId"]
        for _, _, found in operations(document)
        if "application/json" in found["responses"].get("200", {}).get("content", {})
    }


@pytest.mark.parametrize("failure", ["quota", "permanent"])
async def test_operations_that_failed_are_as_it_says(bench: Bench, api: Api, document: Json, failure: str) -> None:
    described = Described(api, document)
    steps = [{"warn": "The disk is old."}, {"fail": failure}]
    async with bench.working({"image": "disk", "steps": steps}):
        ended = await described.done("images.insert", {"name": "disk", "rawDisk": SOURCE})
    assert ended["error"]["errors"]


@pytest.mark.parametrize(
    ("verb", "path", "body", "status"),
    [
        ("POST", "images", {"name": "Disk", "rawDisk": SOURCE}, 400),
        ("POST", "images", {"name": "disk", "rawDisk": SOURCE}, 409),
        ("POST", "images/disk/setLabels", {"labels": {}, "labelFingerprint": "AAAA"}, 412),
        ("GET", "images/none", None, 404),
        ("PUT", "images", None, 405),
        ("GET", "nowhere", None, 404),
        ("GET", "/nowhere", None, 404),
        ("POST", "/batch/compute/v1", {}, 400),
    ],
)
async def test_errors_are_as_it_says(
    api: Api, document: Json, verb: str, path: str, body: Json | None, status: int
) -> None:
    await api.insert("disk")
    found, answer = await api.call(verb, path, body)
    assert (status, []) == (found, problems(document, "Error", answer))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Image", {"kind": "compute#image", "name": "disk", "colour": "red"}),
        ("Image", {"kind": "compute#image", "name": "Disk"}),
        ("Image", {"kind": "compute#image", "diskSizeGb": 10}),
        ("Image", {"name": "disk"}),
        ("Operation", {"kind": "compute#operation", "name": "o"}),
        ("Error", {"error": {"code": 400, "message": "m", "errors": [], "status": "s"}}),
    ],
)
async def test_what_is_not_so_is_not_as_it_says(document: Json, name: str, value: Json) -> None:
    assert problems(document, name, value)
