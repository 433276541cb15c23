"""Lists: their bodies, their order, their pages."""

import base64

import pytest
from tests.api.conftest import LINKS, Api, Json
from tests.contract.validate import SCHEMAS

BAD_TOKEN = "Invalid value for field 'pageToken'. Expected a token of this same list."
NAMES = ["delta", "alpha", "echo", "charlie", "bravo"]
NEWEST_FIRST = "orderBy=creationTimestamp%20desc"


@pytest.fixture
async def full(api: Api) -> Api:
    for name in NAMES:
        await api.insert(name)
    return api


async def pages(api: Api, schema: str, path: str) -> list[list[str]]:
    """The names, or the targets' names, on each page from the first to the last."""
    found, token = [], ""
    while True:
        page = await api.answer(schema, "GET", f"{path}&pageToken={token}")
        found.append([item.get("targetLink", item["name"]).rpartition("/")[2] for item in page["items"]])
        if "nextPageToken" not in page:
            return found
        token = page["nextPageToken"]


async def test_an_empty_list_has_no_items(api: Api) -> None:
    images, operations = await api.call("GET", "images"), await api.call("GET", "operations")
    expected: Json = {"kind": "compute#imageList", "id": "projects/p/global/images", "selfLink": f"{LINKS}/images"}
    assert (200, expected) == images
    assert (200, {
        "kind": "compute#operationList",
        "id": "projects/p/global/operations",
        "selfLink": f"{LINKS}/operations",
    }) == operations  # fmt: skip


async def test_a_list_holds_the_same_records_as_get(full: Api) -> None:
    images, operations = await full.call("GET", "images"), await full.call("GET", "operations")

    assert (200, {
        "kind": "compute#imageList",
        "id": "projects/p/global/images",
        "items": [await full.image(name) for name in sorted(NAMES)],
        "selfLink": f"{LINKS}/images",
    }) == images  # fmt: skip
    assert (200, {
        "kind": "compute#operationList",
        "id": "projects/p/global/operations",
        "items": [
            await full.answer("Operation", "GET", f"operations/{operation['name']}")
            for operation in operations[1]["items"]
        ],
        "selfLink": f"{LINKS}/operations",
    }) == operations  # fmt: skip
    assert [operation["targetLink"].rpartition("/")[2] for operation in operations[1]["items"]] == NAMES


@pytest.mark.parametrize(
    ("schema", "path", "expected"),
    [
        ("ImageList", "images?maxResults=2", [["alpha", "bravo"], ["charlie", "delta"], ["echo"]]),
        ("ImageList", "images?maxResults=2&orderBy=name", [["alpha", "bravo"], ["charlie", "delta"], ["echo"]]),
        ("ImageList", f"images?maxResults=4&{NEWEST_FIRST}", [["bravo", "charlie", "echo", "alpha"], ["delta"]]),
        ("ImageList", "images?maxResults=5", [["alpha", "bravo", "charlie", "delta", "echo"]]),
        ("ImageList", "images?maxResults=0", [["alpha", "bravo", "charlie", "delta", "echo"]]),
        ("OperationList", "operations?maxResults=2", [["delta", "alpha"], ["echo", "charlie"], ["bravo"]]),
        (
            "OperationList",
            f"operations?maxResults=3&{NEWEST_FIRST}",
            [["bravo", "charlie", "echo"], ["alpha", "delta"]],
        ),
    ],
)
async def test_pages_follow_each_other_without_gap_or_repeat(
    full: Api, schema: str, path: str, expected: list[list[str]]
) -> None:
    assert expected == await pages(full, schema, path)


async def test_an_image_that_comes_between_two_pages_moves_nobody_else(full: Api) -> None:
    first = await full.answer("ImageList", "GET", "images?maxResults=2")
    await full.insert("aaa")
    second = await full.answer("ImageList", "GET", f"images?maxResults=2&pageToken={first['nextPageToken']}")
    assert [image["name"] for image in second["items"]] == ["charlie", "delta"]


@pytest.mark.parametrize("version", ["v1", "beta"])
@pytest.mark.parametrize(
    ("schema", "path"),
    [
        ("ImageList", "global/images"),
        ("MachineImageList", "global/machineImages"),
        ("OperationList", "global/operations"),
        ("OperationAggregatedList", "aggregated/operations"),
        ("OperationList", "zones/z/operations"),
        ("ZoneList", "zones"),
    ],
)
async def test_a_list_links_to_itself_in_the_version_that_was_asked(
    api: Api, version: str, schema: str, path: str
) -> None:
    url = f"/compute/{version}/projects/p/{path}"
    assert (await api.answer(schema, "GET", url))["selfLink"] == f"https://www.googleapis.com{url}"


# ------------------------------------------------------------------------------------------------- filters


@pytest.mark.parametrize(
    ("collection", "schema"), [("images", "Image"), ("machineImages", "MachineImage"), ("operations", "Operation")]
)
async def test_a_filter_may_ask_for_every_field_of_the_contract(full: Api, collection: str, schema: str) -> None:
    fields = SCHEMAS["v1"][schema].keys() | SCHEMAS["beta"][schema].keys()
    for field in fields:
        status, answer = await full.call("GET", f"{collection}?filter={field}:*")
        assert (status, field) == (200, field), answer
    status, answer = await full.call("GET", f"{collection}?filter=colour:*")
    assert (status, "Unknown field 'colour'" in answer["error"]["message"]) == (400, True)


@pytest.mark.parametrize("field", ["zone", "region", "creationTimestamp"])
async def test_what_an_operation_never_has_is_just_absent(full: Api, field: str) -> None:
    assert "items" not in await full.answer("OperationList", "GET", f"operations?filter={field}:*")
    assert len((await full.answer("OperationList", "GET", f"operations?filter=NOT {field}:*"))["items"]) == len(NAMES)


@pytest.mark.parametrize(("version", "other"), [("v1", "beta"), ("beta", "v1")])
async def test_a_filter_sees_what_the_answer_shows(full: Api, version: str, other: str) -> None:
    def listed(link: str) -> str:
        url = f"https://www.googleapis.com/compute/{link}/projects/p/global/images/echo"
        return f"/compute/{version}/projects/p/global/images?maxResults=1&filter=selfLink = {url}"

    [image] = (await full.answer("ImageList", "GET", listed(version)))["items"]
    assert image["name"] == "echo"
    assert "items" not in await full.answer("ImageList", "GET", listed(other))


async def test_projects_do_not_see_each_other(full: Api) -> None:
    for collection, schema in (("images", "ImageList"), ("operations", "OperationList")):
        answer = await full.answer(schema, "GET", f"/compute/v1/projects/q/global/{collection}")
        assert "items" not in answer


async def test_a_dash_means_the_operations_of_all_projects(full: Api) -> None:
    await full.answer(
        "Operation",
        "POST",
        "/compute/v1/projects/q/global/images",
        {"name": "foxtrot", "rawDisk": {"source": "https://example.com/a"}},
    )
    answer = await full.answer("OperationList", "GET", "/compute/v1/projects/-/global/operations")
    assert [*NAMES, "foxtrot"] == [operation["targetLink"].rpartition("/")[2] for operation in answer["items"]]


async def token_of(api: Api, path: str) -> str:
    token: str = (await api.call("GET", path))[1]["nextPageToken"]
    return token


@pytest.mark.parametrize(
    ("made_by", "used_in"),
    [
        ("images?maxResults=1", f"images?maxResults=1&{NEWEST_FIRST}"),
        (f"images?maxResults=1&{NEWEST_FIRST}", "images?maxResults=1"),
        ("images?maxResults=1", "operations?maxResults=1"),
        ("operations?maxResults=1", "images?maxResults=1"),
        ("operations?maxResults=1", f"operations?maxResults=1&{NEWEST_FIRST}"),
    ],
)
async def test_a_token_of_another_list_is_refused(full: Api, made_by: str, used_in: str) -> None:
    token = await token_of(full, made_by)
    status, body = await full.call("GET", f"{used_in}&pageToken={token}")
    assert (status, body["error"]["message"]) == (400, BAD_TOKEN)


async def test_a_tampered_token_is_refused(full: Api) -> None:
    token = await token_of(full, "images?maxResults=1")
    tampered = [
        "x",
        "%00",
        "ü",
        token[:-2],
        token + "AAAA",
        f"!{token}",
        base64.urlsafe_b64encode(b"[false]").decode(),
        base64.urlsafe_b64encode(b"[false,null]").decode(),
        base64.urlsafe_b64encode(b"[false,-1]").decode(),
        base64.urlsafe_b64encode(b"[false,9223372036854775808]").decode(),
        base64.urlsafe_b64encode(b"[false,1e400]").decode(),
        base64.urlsafe_b64encode(b"[" * 100_000).decode()[:4000],
    ]
    answers = [await full.call("GET", f"images?maxResults=1&pageToken={text}") for text in tampered]
    assert [(400, BAD_TOKEN)] * len(tampered) == [(status, body["error"]["message"]) for status, body in answers]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("maxResults=501", "Invalid value for field 'maxResults': '501'. Must be between 0 and 500."),
        ("maxResults=-1", "Invalid value for field 'maxResults': '-1'. Must be between 0 and 500."),
        ("maxResults=ten", "Invalid value for field 'maxResults': 'ten'. Must be between 0 and 500."),
        ("maxResults=%C2%B2", "Invalid value for field 'maxResults': '²'. Must be between 0 and 500."),
        (
            f"maxResults={'9' * 5000}",
            f"Invalid value for field 'maxResults': '{'9' * 63}…'. Must be between 0 and 500.",
        ),
        (
            "orderBy=size",
            "Invalid value for field 'orderBy': 'size'. Expected 'name' or 'creationTimestamp desc'.",
        ),
    ],
)
@pytest.mark.parametrize("collection", ["images", "operations"])
async def test_a_query_that_cannot_be_is_refused(api: Api, collection: str, query: str, message: str) -> None:
    status, body = await api.call("GET", f"{collection}?{query}")
    field = query.partition("=")[0]
    assert (400, {
        "error": {
            "code": 400,
            "message": message,
            "errors": [
                {
                    "message": message,
                    "domain": "global",
                    "reason": "invalid",
                    "location": field,
                    "locationType": "parameter",
                }
            ],
            "status": "INVALID_ARGUMENT",
        }
    }) == (status, body)  # fmt: skip
