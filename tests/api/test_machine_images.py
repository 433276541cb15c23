"""The verbs of machineImages, in v1 and beta, over the simulated backend."""

from urllib.parse import quote

import pytest
from tests.api.conftest import LINKS, ROOT, Api, Bench, Json

INSTANCE = "projects/p/zones/z/instances/vm"


async def insert(api: Api, name: str = "m", **fields: object) -> Json:
    body = {"name": name, "sourceInstance": INSTANCE, **fields}
    return await api.answer("Operation", "POST", "machineImages", body)


async def test_a_machine_image_is_creating_and_then_ready_with_its_instance(bench: Bench, api: Api) -> None:
    operation = await insert(api, description="d", labels={"a": "b"})
    assert (operation["operationType"], operation["targetLink"]) == ("insert", f"{LINKS}/machineImages/m")
    pending = await api.answer("MachineImage", "GET", "machineImages/m")
    assert (pending["status"], pending["id"]) == ("CREATING", operation["targetId"])
    async with bench.working():
        await api.done(operation)
    ready = await api.answer("MachineImage", "GET", f"machineImages/{pending['id']}")
    assert (ready["status"], ready["description"], ready["labels"]) == ("READY", "d", {"a": "b"})
    assert ready["sourceInstance"] == f"https://www.googleapis.com/compute/v1/{INSTANCE}"
    assert "sourceInstanceProperties" in ready


async def test_the_source_instance_may_stand_in_the_query_of_beta(api: Api) -> None:
    path = f"{ROOT.replace('/v1/', '/beta/')}/machineImages?sourceInstance={INSTANCE.replace('/', '%2F')}"
    await api.answer("Operation", "POST", path, {"name": "m"})
    machine_image = await api.answer("MachineImage", "GET", "machineImages/m")
    assert machine_image["sourceInstance"].endswith(INSTANCE)


async def test_without_a_source_instance_it_is_refused(api: Api) -> None:
    status, answer = await api.call("POST", "machineImages", {"name": "m"})
    assert (status, answer["error"]["errors"][0]["reason"]) == (400, "required")
    assert answer["error"]["errors"][0]["location"] == "resource.sourceInstance"


async def test_machine_images_are_listed_apart_from_images(api: Api) -> None:
    await api.insert("i")
    await insert(api, "m")
    listed = await api.answer("MachineImageList", "GET", "machineImages")
    assert [item["name"] for item in listed["items"]] == ["m"]
    images = await api.answer("ImageList", "GET", "images")
    assert [item["name"] for item in images["items"]] == ["i"]


async def test_an_image_and_a_machine_image_may_have_one_name(bench: Bench, api: Api) -> None:
    async with bench.working():
        await api.done(await api.insert("same"))
        await api.done(await insert(api, "same"))
        status, answer = await api.call("POST", "machineImages", {"name": "same", "sourceInstance": INSTANCE})
    message = "The resource 'projects/p/global/machineImages/same' already exists"
    assert (status, answer["error"]["message"]) == (409, message)


async def test_labels_and_policy_of_a_machine_image(bench: Bench, api: Api) -> None:
    async with bench.working():
        await api.done(await insert(api))
        seen = (await api.answer("MachineImage", "GET", "machineImages/m"))["labelFingerprint"]
        body = {"labels": {"a": "b"}, "labelFingerprint": seen}
        await api.done(await api.answer("Operation", "POST", "machineImages/m/setLabels", body))
        assert (await api.answer("MachineImage", "GET", "machineImages/m"))["labels"] == {"a": "b"}
        assert (await api.call("POST", "machineImages/m/setLabels", body))[0] == 412
    policy = await api.answer("Policy", "POST", "machineImages/m/setIamPolicy", {"bindings": [{"role": "r"}]})
    assert await api.answer("Policy", "GET", "machineImages/m/getIamPolicy") == policy


async def test_labels_that_the_backend_does_not_take_are_not_shown(bench: Bench, api: Api) -> None:
    refuse = {"image": "m", "verb": "patch-machine-image", "steps": [{"fail": "permanent"}]}
    async with bench.working(refuse):
        await api.done(await insert(api))
        seen = (await api.answer("MachineImage", "GET", "machineImages/m"))["labelFingerprint"]
        body = {"labels": {"a": "b"}, "labelFingerprint": seen}
        ended = await api.done(await api.answer("Operation", "POST", "machineImages/m/setLabels", body))
    assert ended["error"]["errors"][0]["code"] == "SIMULATED_FAILURE"
    assert "labels" not in await api.answer("MachineImage", "GET", "machineImages/m")


@pytest.mark.parametrize("collection", ["images", "machineImages"])
async def test_a_deleted_one_is_deleting_and_then_gone(bench: Bench, api: Api, collection: str) -> None:
    make = api.insert if collection == "images" else (lambda name: insert(api, name))
    async with bench.working():
        await api.done(await make("gone"))
        operation = await api.answer("Operation", "DELETE", f"{collection}/gone")
        assert operation["operationType"] == "delete"
        assert "error" not in await api.done(operation)
        assert (await api.call("GET", f"{collection}/gone"))[0] == 404
        await api.done(await make("gone"))


@pytest.mark.parametrize("collection", ["images", "machineImages"])
async def test_one_whose_deletion_fails_is_there_as_before(bench: Bench, api: Api, collection: str) -> None:
    verb = "delete" if collection == "images" else "delete-machine-image"
    script = {"image": "kept", "verb": verb, "steps": [{"fail": "permanent"}]}
    async with bench.working(script):
        await api.done(await (api.insert("kept") if collection == "images" else insert(api, "kept")))
        schema = "Image" if collection == "images" else "MachineImage"
        before = await api.answer(schema, "GET", f"{collection}/kept")
        ended = await api.done(await api.answer("Operation", "DELETE", f"{collection}/kept"))
        assert "error" in ended
        assert await api.answer(schema, "GET", f"{collection}/kept") == before


async def test_a_failed_machine_image_is_not_there(bench: Bench, api: Api) -> None:
    script = {"image": "m", "verb": "insert-machine-image", "steps": [{"fail": "permanent"}]}
    async with bench.working(script):
        assert "error" in await api.done(await insert(api))
    assert (await api.call("GET", "machineImages/m"))[0] == 404


# ------------------------------------------------------------------------------------------------- filters


async def names(api: Api, collection: str, text: str) -> list[str]:
    status, answer = await api.call("GET", f"{collection}?filter={quote(text)}")
    assert status == 200, answer
    return [item["name"] for item in answer.get("items", [])]


async def test_lists_are_filtered_in_both_dialects(bench: Bench, api: Api) -> None:
    async with bench.working():
        await api.done(await api.insert("web-1", family="web", labels={"env": "prod"}))
        await api.done(await api.insert("web-2", family="web", labels={"env": "test"}))
        await api.done(await api.insert("db-1", family="db", diskSizeGb="10"))
    assert await names(api, "images", "family = web") == ["web-1", "web-2"]
    assert await names(api, "images", "labels.env = prod OR family = db") == ["db-1", "web-1"]
    assert await names(api, "images", "name eq web-.*") == ["web-1", "web-2"]
    assert await names(api, "images", "(family ne web)") == ["db-1"]
    assert await names(api, "images", "name = nothing") == []
    (only,) = await names(api, "operations", 'status = DONE AND targetLink : "*/db-1"')
    assert only.startswith("operation-")


async def test_filtered_pages_hold_each_match_once(bench: Bench, api: Api) -> None:
    for number in range(7):
        await api.insert(f"i-{number}", family="odd" if number % 2 else "even")
    seen: list[str] = []
    token = ""
    while True:
        page = await api.answer("ImageList", "GET", f"images?filter=family%3Deven&maxResults=2&pageToken={token}")
        seen += [item["name"] for item in page["items"]]
        if "nextPageToken" not in page:
            break
        token = page["nextPageToken"]
    assert seen == ["i-0", "i-2", "i-4", "i-6"]


@pytest.mark.parametrize("text", ["family =", "nonsense = x", "name eq (", "a" * 3000, "(" * 100])
async def test_a_filter_that_cannot_be_read_is_a_400(api: Api, text: str) -> None:
    status, answer = await api.call("GET", f"images?filter={quote(text)}")
    assert (status, answer["error"]["errors"][0]["location"]) == (400, "filter")


async def test_a_filter_looks_at_a_bounded_part_of_the_history_for_each_answer(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("imageopsd.api.pages.SCAN_LIMIT", 3)
    monkeypatch.setattr("imageopsd.api.pages.LARGEST_PAGE", 3)
    for number in range(5):
        await api.insert(f"i-{number}")
    first = await api.answer("ImageList", "GET", "images?filter=name%3Di-4")
    assert "items" not in first
    second = await api.answer("ImageList", "GET", f"images?filter=name%3Di-4&pageToken={first['nextPageToken']}")
    assert [item["name"] for item in second["items"]] == ["i-4"]
    assert "nextPageToken" not in second
