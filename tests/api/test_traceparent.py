"""The `traceparent` of a request is kept with what it asks for; one that is not valid is as good as none."""

import pytest
from multidict import CIMultiDict
from tests.api.conftest import SOURCE, Api, Bench, Json
from tests.api.test_machine_images import INSTANCE
from tests.api.test_verbs import BATCH

TRACED = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-11111111111111111111111111111111-2222222222222222-00"
INSERT = {"name": "disk", "rawDisk": SOURCE}
MACHINE_IMAGE = {"name": "m", "sourceInstance": INSTANCE}


async def kept(api: Api, operation: Json) -> str | None:
    _, _, request = await api.store.request_of("p", operation["name"])
    return request.traceparent


async def test_every_verb_that_makes_an_operation_keeps_it(api: Api, bench: Bench) -> None:
    found = {}

    async def do(method: str, path: str, body: Json | None = None) -> Json:
        status, operation = await api.call(method, path, body, headers={"Traceparent": TRACED})
        assert status == 200, operation
        found[f"{method} {path}"] = await kept(api, operation)
        return await api.done(operation)

    async with bench.working({"image": "broken", "steps": [{"fail": "permanent"}]}):
        await do("POST", "images", INSERT)
        await do("PATCH", "images/disk", {"family": "f"})
        await do("POST", "images/disk/deprecate", {"state": "DEPRECATED"})
        labels = {"labels": {"a": "b"}, "labelFingerprint": (await api.image("disk"))["labelFingerprint"]}
        await do("POST", "images/disk/setLabels", labels)
        await do("DELETE", "images/disk")
        await do("POST", "machineImages", MACHINE_IMAGE)
        seen = (await api.answer("MachineImage", "GET", "machineImages/m"))["labelFingerprint"]
        await do("POST", "machineImages/m/setLabels", {"labels": {"a": "b"}, "labelFingerprint": seen})
        await do("DELETE", "machineImages/m")
        failed = await do("POST", "images", {"name": "broken", "rawDisk": SOURCE})
        assert "error" in failed

        status, again = await api.call("POST", f"operations/{failed['name']}/retry", headers={"traceparent": OTHER})
        assert (status, await kept(api, again)) == (200, OTHER)
        await api.done(again)
        status, again = await api.call("POST", f"operations/{failed['name']}/retry")
        assert (status, await kept(api, again)) == (200, None)
    assert found == dict.fromkeys(found, TRACED)
    assert len(found) == 8


async def test_the_parts_of_a_batch_are_in_the_trace_of_the_whole(api: Api) -> None:
    headers = {"Content-Type": 'multipart/mixed; boundary="==a=="', "traceparent": TRACED}
    async with api.client.post("/batch/compute/v1", data=BATCH, headers=headers) as response:
        assert response.status == 200
    [operation] = (await api.answer("OperationList", "GET", "operations"))["items"]
    assert await kept(api, operation) == TRACED


@pytest.mark.parametrize(
    "sent", [["nonsense"], [""], ["\xff"], [TRACED[:-1]], [f"{TRACED}, {OTHER}"], [TRACED, OTHER], [TRACED, TRACED]]
)
async def test_one_that_is_not_valid_is_ignored(api: Api, sent: list[str]) -> None:
    headers = CIMultiDict([("traceparent", one) for one in sent])
    status, operation = await api.call("POST", "images", INSERT, headers=headers)  # type: ignore[arg-type]
    assert (status, await kept(api, operation)) == (200, None)


async def test_a_repeat_from_another_trace_is_the_first_operation_in_its_own(api: Api) -> None:
    path = "images?requestId=11111111-2222-3333-4444-555555555555"
    answers = [await api.call("POST", path, INSERT, headers={"traceparent": one}) for one in (TRACED, OTHER)]
    assert answers[0] == answers[1]
    assert await kept(api, answers[0][1]) == TRACED
