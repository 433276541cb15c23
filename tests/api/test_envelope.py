"""Every refusal is the same envelope, whatever refused it, and tells the caller and nobody else what is wrong."""

import gzip
from collections.abc import Awaitable, Callable
from io import BytesIO
from typing import Any

import pytest
from tests.api.conftest import ROOT, SOURCE, Api, Bench, Json

from imageopsd.api.listening import MAX_BODY
from imageopsd.model.errors import StoreError, StoreFull

NAME_RULE = "Must be a match of regex '(?:[a-z](?:[-a-z0-9]{0,61}[a-z0-9])?)'."
GOOD: Json = {"name": "disk", "rawDisk": SOURCE}


def error(code: int, message: str, reason: str, status: str, field: str | None = None) -> Json:
    entry = {"message": message, "domain": "global", "reason": reason}
    if field:
        entry |= {"location": field, "locationType": "parameter"}
    return {"error": {"code": code, "message": message, "errors": [entry], "status": status}}


def invalid(field: str, message: str, reason: str = "invalid") -> Json:
    return error(400, message, reason, "INVALID_ARGUMENT", field)


BAD_INSERTS: dict[str, tuple[Json, Json]] = {
    "a bad name": (
        {**GOOD, "name": "Disk"},
        invalid("resource.name", f"Invalid value for field 'resource.name': 'Disk'. {NAME_RULE}"),
    ),
    "no name": (
        {"rawDisk": SOURCE},
        invalid("resource.name", f"Required field 'resource.name' not specified. {NAME_RULE}", "required"),
    ),
    "a name of 64": (
        {**GOOD, "name": "a" * 64},
        invalid("resource.name", f"Invalid value for field 'resource.name': '{'a' * 64}'. {NAME_RULE}"),
    ),
    "a name with a line in it": (
        {**GOOD, "name": "disk\n"},
        invalid("resource.name", f"Invalid value for field 'resource.name': 'disk\ufffd'. {NAME_RULE}"),
    ),
    "a bad family": (
        {**GOOD, "family": "-f"},
        invalid("resource.family", f"Invalid value for field 'resource.family': '-f'. {NAME_RULE}"),
    ),
    "a wrong type": (
        {**GOOD, "family": ["f"]},
        invalid("resource.family", "Invalid value for field 'resource.family'. Expected a string, got a list."),
    ),
    "a wrong type deep inside": (
        {**GOOD, "labels": {"a": 1}},
        invalid("resource.labels.a", "Invalid value for field 'resource.labels.a'. Expected a string, got an integer."),
    ),
    "a wrong type beside right ones": (
        {**GOOD, "labels": {"a": "1", "b.c\n": True, "d": True}},
        invalid(
            "resource.labels.b.c\ufffd",
            "Invalid value for field 'resource.labels.b.c\ufffd'. Expected a string, got a boolean.",
        ),
    ),
    "a wrong type in a map deep inside": (
        {**GOOD, "params": {"resourceManagerTags": {"tagKeys/1": "x", "tagKeys/2": [1]}}},
        invalid(
            "resource.params.resourceManagerTags.tagKeys/2",
            "Invalid value for field 'resource.params.resourceManagerTags.tagKeys/2'. Expected a string, got a list.",
        ),
    ),
    "a field left out deep inside": (
        {**GOOD, "guestOsFeatures": [{"type": "GVNIC"}, {}]},
        invalid(
            "resource.guestOsFeatures[1].type",
            "Required field 'resource.guestOsFeatures[1].type' not specified. Expected a value.",
            "required",
        ),
    ),
    "an unknown field": (
        {**GOOD, "colour": "red"},
        invalid("resource.colour", "Invalid JSON payload received. Unknown name 'colour' at 'resource.colour'."),
    ),
    "two sources": (
        {**GOOD, "sourceSnapshot": "global/snapshots/s"},
        invalid(
            "resource.sourceSnapshot",
            "Invalid resource usage: 'Must specify exactly one source for an image.' "
            "The request has resource.rawDisk.source and resource.sourceSnapshot.",
        ),
    ),
    "all four sources": (
        {**GOOD, "sourceSnapshot": "s", "sourceImage": "global/images/i", "sourceDisk": "d"},
        invalid(
            "resource.sourceDisk",
            "Invalid resource usage: 'Must specify exactly one source for an image.' The request has "
            "resource.rawDisk.source and resource.sourceDisk and resource.sourceImage and resource.sourceSnapshot.",
        ),
    ),
    "no source": (
        {"name": "disk", "rawDisk": {}},
        invalid(
            "resource.rawDisk.source",
            "Required field 'resource.rawDisk.source' not specified. Expected one of resource.rawDisk.source, "
            "resource.sourceDisk, resource.sourceImage, resource.sourceSnapshot.",
            "required",
        ),
    ),
    "a source with a password": (
        {"name": "disk", "rawDisk": {"source": "https://user:secret@example.com/a?sig=secret"}},
        invalid(
            "resource.rawDisk.source",
            "Invalid value for field 'resource.rawDisk.source': 'https://example.com/a'. "
            "Expected a URL with one of the schemes http, https, gs, file, without user name or control characters.",
        ),
    ),
    "a container that is no tar": (
        {"name": "disk", "rawDisk": {**SOURCE, "containerType": "ZIP"}},
        invalid(
            "resource.rawDisk.containerType",
            "Invalid value for field 'resource.rawDisk.containerType': 'ZIP'. Must be one of TAR.",
        ),
    ),
    "a digest that is none": (
        {"name": "disk", "rawDisk": {**SOURCE, "sha1Checksum": "abc"}},
        invalid(
            "resource.rawDisk.sha1Checksum",
            "Invalid value for field 'resource.rawDisk.sha1Checksum': 'abc'. Must be 40 hex digits.",
        ),
    ),
    "an unknown architecture": (
        {**GOOD, "architecture": "VAX"},
        invalid(
            "resource.architecture",
            "Invalid value for field 'resource.architecture': 'VAX'. "
            "Must be one of ARCHITECTURE_UNSPECIFIED, ARM64, X86_64.",
        ),
    ),
    "no number": (
        {**GOOD, "diskSizeGb": "ten"},
        invalid(
            "resource.diskSizeGb",
            "Invalid value for field 'resource.diskSizeGb'. Expected a 64-bit integer, "
            "as a number or a string of digits.",
        ),
    ),
    "a number that is too large": (
        {**GOOD, "diskSizeGb": "99999999999999999999"},
        invalid(
            "resource.diskSizeGb",
            "Invalid value for field 'resource.diskSizeGb'. Expected an integer of at most 64 bits.",
        ),
    ),
    "a label that is none": (
        {**GOOD, "labels": {"A": "b"}},
        invalid(
            "resource.labels",
            "Invalid value for field 'resource.labels': 'A'. "
            "Label keys start with a lower-case letter and hold at most 63 of a-z, 0-9, _ and -.",
        ),
    ),
}


@pytest.mark.parametrize("case", BAD_INSERTS)
async def test_a_bad_insert_is_a_400_that_names_the_field_and_leaves_no_trace(api: Api, case: str) -> None:
    body, expected = BAD_INSERTS[case]
    assert (400, expected) == await api.call("POST", "images", body)
    assert "items" not in await api.answer("OperationList", "GET", "operations")
    assert "items" not in await api.answer("ImageList", "GET", "images")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "Required field 'resource' not specified. Expected a JSON object as the request's body."),
        (b"{", "Invalid JSON payload received for 'resource': Input data was truncated."),
        (b"name=disk", "Invalid JSON payload received for 'resource': "),
        (b"\xff\xfe", "Invalid JSON payload received for 'resource': "),
        (b'{"name": "\\ud800"}', "Invalid JSON payload received for 'resource': "),
        (b'{"diskSizeGb": NaN}', "Invalid JSON payload received for 'resource': "),
        (b"[]", "Invalid value for field 'resource'. Expected an object."),
        (b'"disk"', "Invalid value for field 'resource'. Expected an object."),
        (b"null", "Invalid value for field 'resource'. Expected an object."),
        (b"[" * 500_000, "Invalid JSON payload received for 'resource': "),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "Invalid JSON payload received for 'resource': "),
        (b'{"a":' * 900 + b"1" + b"}" * 900, "Invalid"),
    ],
    ids=["empty", "cut off", "a form", "not UTF-8", "half a surrogate", "NaN", "a list", "a string", "null",
         "too deep a list", "too deep an object", "deep"],
)  # fmt: skip
@pytest.mark.parametrize(("method", "path"), [("POST", "images"), ("PATCH", "images/disk")])
async def test_a_body_that_is_no_object_is_a_400(api: Api, method: str, path: str, data: bytes, message: str) -> None:
    status, body = await api.call(method, path, data=data)
    assert (status, body["error"]["status"]) == (400, "INVALID_ARGUMENT")
    assert body["error"]["message"].startswith(message)
    [entry] = body["error"]["errors"]
    assert entry["location"].startswith("resource")
    assert invalid(entry["location"], entry["message"], entry["reason"]) == body


@pytest.mark.parametrize("data", [b"not gzip at all", gzip.compress(b'{"name": "disk"}')[:-12]])
async def test_a_body_that_is_not_in_the_encoding_it_claims_is_a_400(api: Api, data: bytes) -> None:
    status, body = await api.call("POST", "images", data=data, headers={"Content-Encoding": "gzip"})
    assert (status, body["error"]["status"]) == (400, "INVALID_ARGUMENT")


@pytest.mark.parametrize(
    ("path", "field", "message"),
    [
        (
            "images?requestId=seven",
            "requestId",
            "Invalid value for field 'requestId': 'seven'. Must be a valid UUID and not the zero UUID.",
        ),
        (
            "images?requestId=00000000-0000-0000-0000-000000000000",
            "requestId",
            "Invalid value for field 'requestId': '00000000-0000-0000-0000-000000000000'. "
            "Must be a valid UUID and not the zero UUID.",
        ),
        (
            "images?forceCreate=maybe",
            "forceCreate",
            "Invalid value for field 'forceCreate': 'maybe'. Expected true or false.",
        ),
        (
            "/compute/v1/projects/No_Project/global/images",
            "project",
            "Invalid value for field 'project': 'No_Project'. Expected a project id such as 'my-project'.",
        ),
        (
            "/compute/v1/projects/-/global/images",
            "project",
            "Invalid value for field 'project': '-'. Expected a project id such as 'my-project'.",
        ),
    ],
)
async def test_a_bad_parameter_is_a_400_that_names_it(api: Api, path: str, field: str, message: str) -> None:
    assert (400, invalid(field, message)) == await api.call("POST", path, GOOD)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (
            {},
            invalid(
                "resource",
                "Required field 'resource' not specified. Expected at least one of deprecated, description, family.",
                "required",
            ),
        ),
        (
            {"labels": {"a": "b"}},
            invalid(
                "resource",
                "Required field 'resource' not specified. Expected at least one of deprecated, description, family.",
                "required",
            ),
        ),
        (
            {"family": "F"},
            invalid("resource.family", f"Invalid value for field 'resource.family': 'F'. {NAME_RULE}"),
        ),
        (
            {"deprecated": {"state": "OLD"}},
            invalid(
                "resource.deprecated.state",
                "Invalid value for field 'resource.deprecated.state': 'OLD'. "
                "Must be one of ACTIVE, DEPRECATED, OBSOLETE, DELETED.",
            ),
        ),
        (
            {"deprecated": {"stat": "OBSOLETE"}},
            invalid(
                "resource.deprecated.stat",
                "Invalid JSON payload received. Unknown name 'stat' at 'resource.deprecated.stat'. "
                "Did you mean 'state'?",
            ),
        ),
    ],
)
async def test_a_bad_patch_is_a_400_that_names_the_field(api: Api, body: Json, expected: Json) -> None:
    await api.insert("disk")
    assert (400, expected) == await api.call("PATCH", "images/disk", body)


@pytest.mark.parametrize(
    ("method", "path", "resource"),
    [
        ("GET", "images/missing", "projects/p/global/images/missing"),
        ("GET", "images/99999999999999999999", "projects/p/global/images/99999999999999999999"),
        ("GET", "images/7", "projects/p/global/images/7"),
        ("GET", "images/%2e%2e%2fdisk", "projects/p/global/images/../disk"),
        ("GET", "images/d%C3%AFsk", "projects/p/global/images/dïsk"),
        ("PATCH", "images/missing", "projects/p/global/images/missing"),
        ("GET", "operations/missing", "projects/p/global/operations/missing"),
        ("GET", "operations/99999999999999999999", "projects/p/global/operations/99999999999999999999"),
        ("GET", "operations/operation-1-000000000000000g", "projects/p/global/operations/operation-1-000000000000000g"),
        ("POST", "operations/missing/wait", "projects/p/global/operations/missing"),
        (
            "GET",
            "operations/5d7c1d5e-7d0c-4a68-9d7f-0a6f1c3f8f10",
            "projects/p/global/operations/5d7c1d5e-7d0c-4a68-9d7f-0a6f1c3f8f10",
        ),
    ],
)
async def test_what_is_not_there_is_a_404_that_names_it(api: Api, method: str, path: str, resource: str) -> None:
    body = {"family": "f"} if method == "PATCH" else None
    message = f"The resource '{resource}' was not found"
    assert (404, error(404, message, "notFound", "NOT_FOUND")) == await api.call(method, path, body)


async def test_an_image_of_another_project_is_not_there(api: Api) -> None:
    operation = await api.insert("disk")
    for path in ("images/disk", f"images/{operation['targetId']}", f"operations/{operation['name']}"):
        assert (await api.call("GET", f"/compute/v1/projects/q/global/{path}"))[0] == 404


async def test_a_place_nobody_lives_at_is_a_404(api: Api) -> None:
    for path in ("/", "/compute/v1", "/compute/v7/projects/p/global/images", f"{ROOT}/images/", f"{ROOT}/disks"):
        expected = error(404, f"GET {path}: Not Found", "notFound", "NOT_FOUND")
        assert (404, expected) == await api.call("GET", path)


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "images", {"GET", "POST"}),
        ("POST", "images/disk", {"DELETE", "GET", "PATCH"}),
        ("GET", "operations/o/wait", {"POST"}),
        ("PATCH", "operations/o", {"DELETE", "GET"}),
    ],
)
async def test_a_verb_that_a_place_does_not_know_is_a_405_that_tells_which_it_knows(
    api: Api, method: str, path: str, allowed: set[str]
) -> None:
    async with api.client.request(method, f"{ROOT}/{path}") as response:
        body = await response.json()
        assert response.status == 405
        assert (
            error(405, f"{method} {ROOT}/{path}: Method Not Allowed", "httpMethodNotAllowed", "UNIMPLEMENTED") == body
        )
        # RFC 9110, 15.5.6: the origin server MUST generate an Allow header in a 405 response
        assert allowed == set(response.headers.get("Allow", "").split(",")) - {"HEAD"}


async def test_a_body_that_is_too_large_is_a_413(api: Api) -> None:
    status, body = await api.call("POST", "images", data=BytesIO(b" " * (MAX_BODY + 1)))
    assert (
        status,
        body["error"]["errors"][0]["reason"],
        body["error"]["status"],
    ) == (413, "uploadTooLarge", "INVALID_ARGUMENT")


async def test_a_body_that_only_inflates_to_too_much_is_a_413_too(api: Api) -> None:
    bomb = gzip.compress(b" " * (64 * MAX_BODY))
    status, _ = await api.call("POST", "images", data=bomb, headers={"Content-Encoding": "gzip"})
    assert status == 413


async def test_a_taken_name_is_a_409(api: Api) -> None:
    await api.insert("disk")
    message = "The resource 'projects/p/global/images/disk' already exists"
    assert (409, error(409, message, "alreadyExists", "ALREADY_EXISTS")) == await api.call("POST", "images", GOOD)


async def test_another_request_under_a_used_id_is_a_409(api: Api) -> None:
    request_id = "5d7c1d5e-7d0c-4a68-9d7f-0a6f1c3f8f10"
    first = await api.insert("disk", f"?requestId={request_id}")
    message = (
        f"Invalid value for field 'requestId': '{request_id}'. It was already used by "
        f"'{first['name']}' for another request; repeat that request or choose a new id."
    )
    expected = (409, error(409, message, "conflict", "ABORTED"))
    for method, path, body in (
        ("POST", "images", {**GOOD, "name": "other"}),
        ("POST", "images", {**GOOD, "description": "another"}),
        ("PATCH", "images/disk", {"family": "f"}),
        ("PATCH", "images/missing", {"family": "f"}),
    ):
        assert expected == await api.call(method, f"{path}?requestId={request_id}", body)
    assert (await api.call("GET", "images/other"))[0] == 404


async def test_a_copy_of_an_obsolete_image_is_a_400(bench: Bench, api: Api) -> None:
    async with bench.working():
        await api.done(await api.insert("disk"))
        await api.done(await api.answer("Operation", "PATCH", "images/disk", {"deprecated": {"state": "OBSOLETE"}}))
    message = "Invalid value for field 'resource.sourceImage': 'global/images/disk'. The image is OBSOLETE."
    body = {"name": "copy", "sourceImage": "global/images/disk"}
    assert (400, invalid("resource.sourceImage", message)) == await api.call("POST", "images", body)


async def test_a_daemon_that_drains_answers_503_and_when_to_come_back(api: Api) -> None:
    operation = await api.insert("disk")
    api.ops.draining = True
    async with api.client.post(f"{ROOT}/images", json=GOOD) as response:
        message = "The daemon is shutting down; send the request again in a moment"
        assert error(503, message, "backendError", "UNAVAILABLE") == await response.json()
        assert (response.status, response.headers["Retry-After"]) == (503, "1")
    assert operation == await api.answer("Operation", "GET", f"operations/{operation['name']}")


@pytest.mark.parametrize("trouble", [StoreFull("no space left for the database"), StoreError("it cannot be written")])
async def test_a_store_that_cannot_be_used_is_a_503(
    api: Api, monkeypatch: pytest.MonkeyPatch, trouble: StoreError
) -> None:
    monkeypatch.setattr(api.store, "accept", raising(trouble))
    assert (503, error(503, str(trouble), "backendError", "UNAVAILABLE")) == await api.call("POST", "images", GOOD)


async def test_a_bug_is_a_500_that_tells_nothing_of_the_inside(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api.store, "accept", raising(RuntimeError("the secret of the inside")))
    assert (500, error(500, "Internal error", "internalError", "INTERNAL")) == await api.call("POST", "images", GOOD)


def raising(trouble: Exception) -> Callable[..., Awaitable[Any]]:
    async def method(*_: object, **__: object) -> Any:
        raise trouble

    return method


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("GET", "/zones"),
        ("GET", "/zones/z"),
        ("GET", "/global/images"),
        ("GET", "/global/images/i"),
        ("GET", "/global/operations"),
        ("GET", "/aggregated/operations"),
        ("GET", "/zones/z/operations"),
        ("GET", "/zones/z/operations/o"),
        ("POST", "/regions/r/operations/o/wait"),
        ("DELETE", "/regions/r/operations/o"),
    ],
)
async def test_what_cannot_be_a_project_is_refused_wherever_it_stands(api: Api, method: str, path: str) -> None:
    status, body = await api.call(method, f"/compute/v1/projects/P!{path}")
    message = "Invalid value for field 'project': 'P!'. Expected a project id such as 'my-project'."
    assert (status, body["error"]["message"]) == (400, message)
    assert body["error"]["errors"][0]["location"] == "project"
