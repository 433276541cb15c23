"""The verbs beside insert, patch, get and list: each with its whole answer and what it leaves behind."""

import json
from email import message_from_bytes
from urllib.parse import urlencode

import pytest
from tests.api.conftest import LINKS, NOW, ROOT, SOURCE, Api, Bench, Json
from tests.contract.validate import assert_valid


async def made(bench: Bench, api: Api, name: str = "disk", **fields: object) -> Json:
    await api.done(await api.insert(name, **fields))
    return await api.image(name)


# ------------------------------------------------------------------------------------- deprecation, families


async def test_an_image_is_deprecated_obsoleted_and_taken_back(bench: Bench, api: Api) -> None:
    async with bench.working():
        before = await made(bench, api)
        times = {}
        for minute, state in enumerate(("DEPRECATED", "OBSOLETE", "DELETED")):
            bench.clock.now = NOW.replace(minute=minute)
            times[state.lower()] = bench.clock.now.text()
            operation = await api.answer("Operation", "POST", "images/disk/deprecate", {"state": state})
            assert operation["operationType"] == "deprecate"
            await api.done(operation)
            assert await api.image("disk") == before | {"deprecated": {"state": state, **times}}
        await api.done(await api.answer("Operation", "POST", "images/disk/deprecate", {"state": "ACTIVE"}))
        assert await api.image("disk") == before


@pytest.mark.parametrize("data", [None, b"{}"])
async def test_an_empty_deprecation_makes_the_image_active_again(bench: Bench, api: Api, data: bytes | None) -> None:
    async with bench.working():
        before = await made(bench, api)
        await api.done(await api.answer("Operation", "POST", "images/disk/deprecate", {"state": "OBSOLETE"}))
        _, operation = await api.call("POST", "images/disk/deprecate", data=data)
        await api.done(operation)
    assert await api.image("disk") == before


async def test_a_patch_without_a_state_leaves_a_deprecated_image_deprecated(bench: Bench, api: Api) -> None:
    async with bench.working():
        await made(bench, api)
        await api.done(await api.answer("Operation", "POST", "images/disk/deprecate", {"state": "DEPRECATED"}))
        before = await api.image("disk")
        body = {"deprecated": {"replacement": "global/images/new", "deleted": "2030-01-02T03:04:05Z"}}
        await api.done(await api.answer("Operation", "PATCH", "images/disk", body))
        said = {"replacement": f"{LINKS}/images/new", "deleted": "2030-01-02T03:04:05Z"}
        assert await api.image("disk") == before | {"deprecated": before["deprecated"] | said}


async def test_a_patch_without_a_state_of_an_active_image_fails_and_says_so(bench: Bench, api: Api) -> None:
    async with bench.working():
        before = await made(bench, api)
        body = {"deprecated": {"replacement": "global/images/new"}, "family": "f"}
        ended = await api.done(await api.answer("Operation", "PATCH", "images/disk", body))
    assert (ended["httpErrorStatusCode"], ended["error"]["errors"][0]["message"]) == (
        400,
        "Required field 'resource.deprecated.state' not specified."
        " The image is ACTIVE; name the state that it is to have.",
    )
    assert await api.image("disk") == before


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"state": "OLD"}, "resource.state"),
        ({"state": "DEPRECATED", "replacement": "x"}, "resource.replacement"),
        ({"replacement": "global/images/r"}, "resource.state"),
        ({"obsolete": "2030-01-02T03:04:05Z"}, "resource.state"),
        ({"state": "DEPRECATED", "deleted": "tomorrow"}, "resource.deleted"),
        ({"state": "DEPRECATED", "deleted": "2026-13-45T99:99:99Z"}, "resource.deleted"),
        ({"state": "DEPRECATED", "reason": "x"}, "resource.reason"),
    ],
)
async def test_a_deprecation_that_cannot_be_is_refused_by_field(api: Api, body: Json, field: str) -> None:
    await api.insert("disk")
    status, answer = await api.call("POST", "images/disk/deprecate", body)
    assert (status, answer["error"]["errors"][0]["location"]) == (400, field)


async def test_a_family_is_its_newest_image_that_is_not_deprecated(bench: Bench, api: Api) -> None:
    async with bench.working():
        one, two = await made(bench, api, "one", family="f"), await made(bench, api, "two", family="f")
        assert await api.answer("Image", "GET", "images/family/f") == two
        await api.done(await api.answer("Operation", "POST", "images/two/deprecate", {"state": "DEPRECATED"}))
        assert await api.answer("Image", "GET", "images/family/f") == one
    status, answer = await api.call("GET", "images/family/g")
    assert (status, answer["error"]["message"]) == (
        404,
        "The resource 'projects/p/global/images/family/g' was not found",
    )


async def test_a_deprecated_source_is_used_with_a_warning_that_names_its_replacement(bench: Bench, api: Api) -> None:
    async with bench.working():
        await made(bench, api, "old")
        deprecation = {"state": "DEPRECATED", "replacement": "global/images/new"}
        await api.done(await api.answer("Operation", "POST", "images/old/deprecate", deprecation))
        body = {"name": "copy", "sourceImage": "global/images/old"}
        ended = await api.done(await api.answer("Operation", "POST", "images", body))
    assert ended["warnings"] == [
        {
            "code": "DEPRECATED_RESOURCE_USED",
            "message": f"The resource '{LINKS}/images/old' is deprecated."
            f" A suggested replacement is '{LINKS}/images/new'.",
            "data": [
                {"key": "resource_name", "value": f"{LINKS}/images/old"},
                {"key": "replacement", "value": f"{LINKS}/images/new"},
            ],
        }
    ]


# ----------------------------------------------------------------------------------------------- labels, patch


async def test_labels_are_replaced_by_who_has_seen_them(bench: Bench, api: Api) -> None:
    async with bench.working():
        image = await made(bench, api, labels={"a": "1", "b": "2"})
        body = {"labels": {"c": "3", "empty": ""}, "labelFingerprint": image["labelFingerprint"]}
        operation = await api.answer("Operation", "POST", "images/disk/setLabels", body)
        assert operation["operationType"] == "setLabels"
        await api.done(operation)
        after = await api.image("disk")
        assert after["labels"] == {"c": "3", "empty": ""}
        assert after["labelFingerprint"] != image["labelFingerprint"]
        await api.done(
            await api.answer(
                "Operation", "POST", "images/disk/setLabels", {"labelFingerprint": after["labelFingerprint"]}
            )
        )
        assert "labels" not in await api.image("disk")


@pytest.mark.parametrize("fingerprint", ["", "AAAAAAAAAAA=", None])
async def test_a_stale_fingerprint_is_a_412(api: Api, fingerprint: str | None) -> None:
    await api.insert("disk", labels={"a": "1"})
    status, answer = await api.call(
        "POST", "images/disk/setLabels", {"labels": {"b": "2"}, "labelFingerprint": fingerprint}
    )
    message = "Labels fingerprint either invalid or resource labels have changed"
    assert (status, answer) == (
        412,
        {
            "error": {
                "code": 412,
                "message": message,
                "errors": [
                    {
                        "message": message,
                        "domain": "global",
                        "reason": "conditionNotMet",
                        "location": "If-Match",
                        "locationType": "header",
                    }
                ],
                "status": "FAILED_PRECONDITION",
            }
        },
    )


async def test_labels_that_changed_between_admission_and_work_fail_the_operation(bench: Bench, api: Api) -> None:
    await api.insert("disk")
    seen = (await api.image("disk"))["labelFingerprint"]
    first, second = [
        await api.answer("Operation", "POST", "images/disk/setLabels", {"labels": {k: "v"}, "labelFingerprint": seen})
        for k in ("a", "b")
    ]
    async with bench.working():
        assert "error" not in await api.done(first)
        ended = await api.done(second)
    assert (ended["httpErrorStatusCode"], ended["error"]["errors"][0]["code"]) == (412, "CONDITION_NOT_MET")
    assert (await api.image("disk"))["labels"] == {"a": "v"}


async def test_known_fields_that_a_patch_does_not_change_are_named_in_warnings(bench: Bench, api: Api) -> None:
    async with bench.working():
        await made(bench, api)
        body = {"family": "f", "architecture": "ARM64", "labels": {"a": "b"}, "id": "7"}
        ended = await api.done(await api.answer("Operation", "PATCH", "images/disk", body))
    assert [(warning["code"], warning["data"][0]["value"]) for warning in ended["warnings"]] == [
        ("SCHEMA_VALIDATION_IGNORED", "resource.architecture"),
        ("SCHEMA_VALIDATION_IGNORED", "resource.labels"),
    ]
    assert "labels" not in await api.image("disk")


# ---------------------------------------------------------------------------------- operations that are deleted


async def test_a_repeat_of_what_was_deleted_is_answered_and_not_done_again(bench: Bench, api: Api) -> None:
    query = "?requestId=11111111-2222-3333-4444-555555555555"
    async with bench.working():
        ended = await api.done(await api.insert("disk", query))
        await api.done(await api.answer("Operation", "DELETE", "images/disk"))
        assert await api.call("DELETE", f"operations/{ended['name']}") == (200, {})

        assert await api.insert("disk", query) == ended

    for path in (f"operations/{ended['name']}", "images/disk"):
        assert (await api.call("GET", path))[0] == 404
    for path in ("operations", "/compute/v1/projects/p/aggregated/operations"):
        _, listed = await api.call("GET", path)
        assert ended["name"] not in json.dumps(listed)


# ----------------------------------------------------------------------------------------------------- IAM


async def test_a_policy_is_kept_and_guarded_by_its_etag(api: Api) -> None:
    await api.insert("disk")
    empty = await api.answer("Policy", "GET", "images/disk/getIamPolicy")
    bindings = [{"role": "roles/compute.imageUser", "members": ["user:a@example.com"]}]
    body = {"policy": {"bindings": bindings, "etag": empty["etag"]}}
    kept = await api.answer("Policy", "POST", "images/disk/setIamPolicy", body)
    assert (kept["bindings"], kept["version"]) == (bindings, 1)
    assert await api.answer("Policy", "GET", "images/disk/getIamPolicy") == kept
    status, answer = await api.call("POST", "images/disk/setIamPolicy", body)
    assert (status, answer["error"]["status"]) == (409, "ABORTED")
    asked = {"permissions": ["compute.images.get", "compute.images.delete"]}
    assert await api.answer("TestPermissionsResponse", "POST", "images/disk/testIamPermissions", asked) == asked


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "images/none/getIamPolicy", None),
        ("POST", "images/none/setIamPolicy", {"policy": {}}),
        ("POST", "images/none/testIamPermissions", {"permissions": []}),
        ("POST", "images/none/setLabels", {"labels": {}}),
        ("POST", "images/none/deprecate", {"state": "ACTIVE"}),
        ("DELETE", "images/none", None),
    ],
)
async def test_every_verb_on_an_image_that_is_not_there_is_a_404(
    api: Api, method: str, path: str, body: object
) -> None:
    status, answer = await api.call(method, path, body)
    assert (status, answer["error"]["message"]) == (404, "The resource 'projects/p/global/images/none' was not found")


# ---------------------------------------------------------------------------------------------- operations


async def test_a_finished_operation_is_deleted_and_another_is_not(bench: Bench, api: Api) -> None:
    operation = await api.insert("disk")
    path = f"operations/{operation['name']}"
    assert (await api.call("DELETE", path))[0] == 400
    async with bench.working():
        await api.done(operation)
    assert await api.call("DELETE", path) == (200, {})
    assert (await api.call("GET", path))[0] == 404
    assert (await api.call("DELETE", path))[0] == 404


async def test_the_aggregated_list_has_the_global_operations(api: Api) -> None:
    path = "/compute/v1/projects/p/aggregated/operations"
    empty = await api.answer("OperationAggregatedList", "GET", path)
    assert empty["items"] == {}
    operation = await api.insert("disk")
    full = await api.answer("OperationAggregatedList", "GET", path)
    assert full["items"] == {"global": {"operations": [operation]}}


@pytest.mark.parametrize("place", ["projects/p/zones/z", "projects/p/regions/r", "locations/global"])
async def test_there_are_no_operations_elsewhere(api: Api, place: str) -> None:
    root = f"/compute/v1/{place}/operations"
    listed = await api.answer("OperationList", "GET", root)
    assert listed["items"] == []
    for method, path in (("GET", f"{root}/o"), ("DELETE", f"{root}/o"), ("POST", f"{root}/o/wait")):
        status, answer = await api.call(method, path)
        assert (status, answer["error"]["message"]) == (404, f"The resource '{place}/operations/o' was not found")


async def test_the_project_and_its_empty_neighbourhood_answer(api: Api) -> None:
    status, project = await api.call("GET", "/compute/v1/projects/p")
    assert (status, project["name"], project["commonInstanceMetadata"]) == (200, "p", {"kind": "compute#metadata"})
    for collection, kind in (("zones", "compute#zoneList"), ("regions", "compute#regionList")):
        status, listed = await api.call("GET", f"/compute/v1/projects/p/{collection}")
        assert (status, listed["kind"], listed["items"]) == (200, kind, [])
        assert (await api.call("GET", f"/compute/v1/projects/p/{collection}/x"))[0] == 404


# ----------------------------------------------------------------------------------- long queries, beta, batch


def as_form(method: str = "GET", content_type: str = "application/x-www-form-urlencoded") -> Json:
    """The headers that googleapiclient sends a query with that is too long for a URL."""
    return {"x-http-method-override": method, "content-type": content_type}


async def test_a_get_may_come_as_a_form_where_its_query_is_too_long_for_a_url(api: Api) -> None:
    for name in ("one", "two"):
        await api.insert(name)
    wanted = " OR ".join(["name = one"] * 100)
    status, listed = await api.call(
        "POST", "images", data=urlencode({"filter": wanted, "alt": "json"}).encode(), headers=as_form()
    )
    assert (status, [image["name"] for image in listed["items"]]) == (200, ["one"])


async def test_the_query_of_the_url_comes_before_that_of_the_form(api: Api) -> None:
    """googleapiclient's `list_next` leaves the form as it was and puts the next token into the URL."""
    for name in ("one", "two", "three"):
        await api.insert(name)
    form, seen = "filter=name:*&maxResults=1", []

    async def page(path: str, form: str) -> str:
        status, listed = await api.call("POST", path, data=form.encode(), headers=as_form())
        assert status == 200
        seen.extend(image["name"] for image in listed["items"])
        return str(listed.get("nextPageToken"))

    first = await page("images", form)
    second = await page("images", f"{form}&pageToken={first}")
    assert await page(f"images?pageToken={second}", f"{form}&pageToken={first}") == "None"
    assert seen == ["one", "three", "two"]


async def test_a_query_in_a_form_is_refused_as_one_in_a_url_would_be(api: Api) -> None:
    in_url = await api.call("GET", "images?filter=n%C3%A4me")
    assert in_url[0] == 400
    assert in_url == await api.call("POST", "images", data=b"filter=n%C3%A4me", headers=as_form())


@pytest.mark.parametrize("headers", [as_form("DELETE"), as_form(content_type="application/json")])
async def test_no_other_override_means_a_get(api: Api, headers: Json) -> None:
    status, answer = await api.call("POST", "images", data=b"filter=", headers=headers)
    assert (status, answer["error"]["message"].partition(":")[0]) == (
        400,
        "Invalid JSON payload received for 'resource'",
    )


async def test_only_a_post_can_mean_another_verb(api: Api) -> None:
    operation = await api.insert("disk")
    status, answer = await api.call("DELETE", f"operations/{operation['name']}", data=b"", headers=as_form())
    assert (status, answer["error"]["status"]) == (400, "FAILED_PRECONDITION")  # it deletes, or would if it were DONE


async def test_beta_and_v1_share_one_state_and_an_operation_keeps_the_link_it_was_made_with(api: Api) -> None:
    beta = ROOT.replace("/v1/", "/beta/")
    operation = await api.answer("Operation", "POST", f"{beta}/images", {"name": "disk", "rawDisk": SOURCE})
    assert operation["selfLink"].startswith("https://www.googleapis.com/compute/beta/projects/p/global/operations/")
    assert await api.answer("Operation", "GET", f"operations/{operation['name']}") == operation
    v1, shown = await api.image("disk"), await api.answer("Image", "GET", f"{beta}/images/disk")
    assert v1["id"] == operation["targetId"]
    assert shown == v1 | {"selfLink": v1["selfLink"].replace("/v1/", "/beta/")}


BATCH = (
    b"--==a==\nContent-Type: application/http\nMIME-Version: 1.0\nContent-ID: <x + 1>\n\n"
    b"POST /compute/v1/projects/p/global/images?alt=json HTTP/1.1\nContent-Type: application/json\n"
    b'Host: h\n\n{"name": "disk", "rawDisk": {"source": "https://h/x"}}\n'
    b"--==a==\nContent-Type: application/http\nContent-ID: <x + 2>\n\n"
    b"GET /compute/v1/projects/p/global/images/none?alt=json HTTP/1.1\nHost: h\n\n\n"
    b"--==a==--"
)


async def test_a_batch_is_answered_part_by_part(api: Api) -> None:
    headers = {"Content-Type": 'multipart/mixed; boundary="==a=="'}
    async with api.client.post("/batch/compute/v1", data=BATCH, headers=headers) as response:
        assert response.status == 200
        whole = f"Content-Type: {response.headers['Content-Type']}\r\n\r\n".encode() + await response.read()
    first, second = message_from_bytes(whole).get_payload()
    assert (first["Content-ID"], second["Content-ID"]) == ("<response-x + 1>", "<response-x + 2>")
    head, _, body = first.get_payload().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200 OK\r\n")
    assert_valid("Operation", json.loads(body))
    assert second.get_payload().startswith("HTTP/1.1 404 Not Found\r\n")
    assert (await api.image("disk"))["name"] == "disk"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/mixed", BATCH),
        ('multipart/mixed; boundary="b"', b""),
        ('multipart/mixed; boundary="b"', b"--b\nContent-Type: text/plain\n\nhello\n--b--"),
        ('multipart/mixed; boundary="b"', b"--b\nContent-Type: application/http\n\nEXPLODE /x HTTP/1.1\n\n\n--b--"),
    ],
)
async def test_what_is_no_batch_is_a_400(api: Api, content_type: str, body: bytes) -> None:
    status, answer = await api.call("POST", "/batch/compute/v1", data=body, headers={"Content-Type": content_type})
    assert (status, answer["error"]["status"]) == (400, "INVALID_ARGUMENT")
