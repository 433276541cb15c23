"""Whole answers, byte for byte where nothing in them is chance."""

from tests.api.conftest import LINKS, ROOT, SOURCE, TIME, Api, Bench, Json
from tests.contract.validate import assert_valid


async def test_an_accepted_insert_is_a_pending_operation_and_a_pending_image(api: Api) -> None:
    request_id = "5d7c1d5e-7d0c-4a68-9d7f-0a6f1c3f8f10"
    operation = await api.insert("disk", f"?requestId={request_id.upper()}&forceCreate=true", family="f")

    number, name = operation["id"], operation["name"]
    assert {
        "kind": "compute#operation",
        "id": number,
        "name": name,
        "operationType": "insert",
        "status": "PENDING",
        "progress": 0,
        "insertTime": TIME,
        "user": "anonymous",
        "targetLink": f"{LINKS}/images/disk",
        "targetId": str(int(number) - 1),
        "selfLink": f"{LINKS}/operations/{name}",
        "clientOperationId": request_id,
    } == operation
    assert f"operation-1767323045678-{int(number):016x}" == name
    assert operation == await api.answer("Operation", "GET", f"operations/{name}")
    assert {
        "kind": "compute#image",
        "id": operation["targetId"],
        "name": "disk",
        "family": "f",
        "status": "PENDING",
        "creationTimestamp": TIME,
        "selfLink": f"{LINKS}/images/disk",
        "sourceType": "RAW",
        "rawDisk": SOURCE,
        "labelFingerprint": "47DEQpj8HBQ=",
    } == await api.image("disk")


async def test_every_field_of_an_image_comes_back_as_it_was_sent(api: Api) -> None:
    fields: Json = {
        "description": "d",
        "family": "f",
        "architecture": "ARM64",
        "diskSizeGb": "10",
        "guestOsFeatures": [{"type": "GVNIC"}, {"type": "UEFI_COMPATIBLE"}],
        "labels": {"a": "b", "empty": "", "ü": "ß"},
        "licenses": ["https://www.googleapis.com/compute/v1/projects/x/global/licenses/l"],
        "licenseCodes": ["5926592092274602096"],
        "storageLocations": ["eu"],
        "sourceType": "RAW",
        "shieldedInstanceInitialState": {"pk": {"content": "cGs=", "fileType": "X509"}, "dbs": [{"content": "ZGI="}]},
    }
    raw_disk = {**SOURCE, "containerType": "TAR", "sha1Checksum": "0123456789abcdef0123456789abcdef01234567"}

    await api.insert("disk", rawDisk=raw_disk, **fields)

    image = await api.image("disk")
    sent = {**fields, "name": "disk", "rawDisk": raw_disk}
    assert sent == {name: image.get(name) for name in sent}


async def test_numbers_may_come_as_numbers_and_go_out_as_strings(api: Api) -> None:
    await api.insert("disk", diskSizeGb=10, licenseCodes=[7])
    image = await api.image("disk")
    assert (image["diskSizeGb"], image["licenseCodes"]) == ("10", ["7"])


async def test_what_only_the_service_sets_is_ignored_in_an_insert(api: Api) -> None:
    await api.insert(
        "disk", id="7", kind="compute#image", status="READY", selfLink="x", creationTimestamp="x",
        deprecated={"state": "OBSOLETE"}, archiveSizeBytes="7", satisfiesPzs=True, labelFingerprint="AAAA",
    )  # fmt: skip
    image = await api.image("disk")
    assert ("PENDING", f"{LINKS}/images/disk", TIME) == (image["status"], image["selfLink"], image["creationTimestamp"])
    assert {"deprecated", "archiveSizeBytes", "satisfiesPzs"}.isdisjoint(image)
    assert image["id"] != "7"
    assert image["labelFingerprint"] != "AAAA"


async def test_what_is_only_for_the_service_is_in_no_answer(api: Api) -> None:
    await api.insert("disk", params={"resourceManagerTags": {"tagKeys/1": "tagValues/1"}})
    assert "params" not in await api.image("disk")


async def test_what_only_beta_has_is_kept_and_shown_under_beta(bench: Bench, api: Api) -> None:
    beta = ROOT.replace("/v1/", "/beta/")
    times = {"defaultRolloutTime": "2026-12-01T00:00:00Z"}
    body = {"name": "disk", "rawDisk": SOURCE, "locked": True, "rolloutOverride": times}
    status, refused = await api.call("POST", "images", body)
    assert (status, refused["error"]["errors"][0]["location"]) == (400, "resource.locked")
    async with bench.working():
        for path, sent in (("images", body), ("images/disk/deprecate", {"state": "OBSOLETE", "stateOverride": times})):
            status, operation = await api.call("POST", f"{beta}/{path}", sent)
            assert status == 200, operation
            assert "error" not in await api.done(operation)

    for path, kind in (("images/disk", "Image"), ("images", "ImageList")):
        _, under_beta = await api.call("GET", f"{beta}/{path}")
        assert_valid(kind, under_beta, "beta")
        under_v1 = await api.answer(kind, "GET", path)
        image, plain = (under_beta, under_v1) if kind == "Image" else (under_beta["items"][0], under_v1["items"][0])
        assert (image.pop("locked"), image.pop("rolloutOverride")) == (True, times)
        assert image["deprecated"].pop("stateOverride") == times
        assert plain == image | {"selfLink": f"{LINKS}/images/disk"}


async def test_nulls_and_empties_mean_nothing_was_said(api: Api) -> None:
    await api.insert(
        "disk", description=None, family=None, sourceImage="", architecture="", labels={}, licenses=[],
        deprecated=None, rawDisk={**SOURCE, "containerType": "", "sha1Checksum": None},
    )  # fmt: skip
    await api.insert("other")

    disk, other = await api.image("disk"), await api.image("other")

    assert {name: value for name, value in other.items() if name not in ("id", "name", "selfLink")} == {
        name: value for name, value in disk.items() if name not in ("id", "name", "selfLink")
    }


async def test_a_finished_insert_has_its_times_and_the_image_its_size(bench: Bench, api: Api) -> None:
    operation = await api.insert("disk")
    async with bench.working():
        ended = await api.done(operation)

    assert {**operation, "status": "DONE", "progress": 100, "startTime": TIME, "endTime": TIME} == ended
    image = await api.image("disk")
    assert (image["status"], image["diskSizeGb"], image["archiveSizeBytes"]) == ("READY", "1", "0")


async def test_progress_and_warnings_stand_on_the_record(bench: Bench, api: Api) -> None:
    steps = [
        {"warn": "The disk is old.", "code": "CLEANUP_FAILED"},
        {"fail": "transient"},
        {"warn": "The disk is old."},
    ]
    operation = await api.insert("disk")
    async with bench.working({"image": "disk", "steps": steps}, attempts=2):
        ended = await api.done(operation)

    assert [
        {"code": "CLEANUP_FAILED", "message": "The disk is old."},
        {
            "code": "NOT_CRITICAL_ERROR",
            "message": "Attempt 1 of 2 failed: The script wants it so, for now.",
            "data": [
                {"key": "attempt", "value": "1"},
                {"key": "error_code", "value": "SIMULATED_OUTAGE"},
                {"key": "next_attempt", "value": ended["warnings"][1]["data"][2]["value"]},
            ],
        },
        {"code": "NOT_CRITICAL_ERROR", "message": "The disk is old."},
    ] == ended["warnings"]
    assert "error" not in ended


async def test_a_quota_failure_has_all_four_kinds_of_detail_and_takes_the_image_away(bench: Bench, api: Api) -> None:
    operation = await api.insert("disk")
    async with bench.working({"image": "disk", "steps": [{"progress": 30}, {"fail": "quota"}]}):
        ended = await api.done(operation)

    message = "Quota 'IMAGES' exceeded.  Limit: 2000.0 globally."
    details = [
        {
            "quotaInfo": {
                "metricName": "compute.googleapis.com/images",
                "limitName": "IMAGES-per-project",
                "limit": 2000.0,
                "dimensions": {"global": "global"},
            }
        },
        {
            "errorInfo": {
                "reason": "QUOTA_EXCEEDED",
                "domain": "compute.googleapis.com",
                "metadatas": {
                    "metricName": "compute.googleapis.com/images",
                    "limitName": "IMAGES-per-project",
                    "limit": "2000",
                },
            }
        },
        {
            "help": {
                "links": [
                    {
                        "description": "How quotas work and how to ask for more",
                        "url": "https://cloud.google.com/compute/resource-usage",
                    }
                ]
            }
        },
        {"localizedMessage": {"locale": "en-US", "message": message}},
    ]
    assert {
        **operation,
        "status": "DONE",
        "progress": 100,
        "startTime": TIME,
        "endTime": TIME,
        "error": {"errors": [{"code": "QUOTA_EXCEEDED", "message": message, "errorDetails": details}]},
        "httpErrorStatusCode": 403,
        "httpErrorMessage": "FORBIDDEN",
    } == ended
    assert (await api.call("GET", "images/disk"))[0] == 404


async def test_a_patch_is_an_operation_on_the_image_and_moves_three_fields(bench: Bench, api: Api) -> None:
    async with bench.working():
        await api.done(await api.insert("disk", family="old", description="old", labels={"a": "b"}))
        before = await api.image("disk")
        body = {
            "family": "new",
            "description": "",
            "deprecated": {"state": "DEPRECATED", "replacement": "global/images/r"},
        }
        operation = await api.answer("Operation", "PATCH", "images/disk", {**body, "labels": {}, "diskSizeGb": "99"})
        await api.done(operation)

    assert ("patch", before["id"], before["selfLink"]) == (
        operation["operationType"],
        operation["targetId"],
        operation["targetLink"],
    )
    deprecated = {
        "state": "DEPRECATED",
        "replacement": f"{LINKS}/images/r",
        "deprecated": "2026-01-02T03:04:05.678+00:00",
    }
    after = {**before, "family": "new", "deprecated": deprecated}
    del after["description"]
    assert after == await api.image("disk")


async def test_a_null_in_a_patch_keeps_what_is_there(bench: Bench, api: Api) -> None:
    async with bench.working():
        await api.done(await api.insert("disk", family="kept"))
        await api.done(await api.answer("Operation", "PATCH", "images/disk", {"family": None, "description": "new"}))
    assert ((await api.image("disk"))["family"], (await api.image("disk"))["description"]) == ("kept", "new")


async def test_a_source_family_is_pinned_to_its_newest_image_at_admission(bench: Bench, api: Api) -> None:
    async with bench.working():
        for name in ("one", "two", "three"):
            await api.done(await api.insert(name, family="f"))
        await api.done(await api.answer("Operation", "PATCH", "images/three", {"deprecated": {"state": "DEPRECATED"}}))
        body = {"name": "copy", "sourceImage": "projects/p/global/images/family/f"}
        await api.done(await api.answer("Operation", "POST", "images", body))

    source, copy = await api.image("two"), await api.image("copy")
    assert (source["selfLink"], source["id"]) == (copy["sourceImage"], copy["sourceImageId"])


async def test_records_go_by_numeric_id_too(api: Api) -> None:
    operation = await api.insert("disk")
    assert operation == await api.answer("Operation", "GET", f"operations/{operation['id']}")
    assert await api.image("disk") == await api.image(operation["targetId"])


async def test_a_repeated_request_returns_the_first_operation_even_when_the_name_is_taken_by_it(api: Api) -> None:
    query = "?requestId=5d7c1d5e-7d0c-4a68-9d7f-0a6f1c3f8f10"
    first = await api.insert("disk", query, labels={"a": "b", "c": "d"})
    again = await api.insert("disk", query.upper().replace("REQUESTID", "requestId"), labels={"c": "d", "a": "b"})
    assert first == again


async def test_what_clients_add_to_every_request_is_ignored(api: Api) -> None:
    noise = "alt=json&prettyPrint=true&key=k&$alt=json&fields=a&quotaUser=u&returnPartialSuccess=true"
    operation = await api.insert("disk", f"?{noise}")
    assert operation == await api.answer("Operation", "GET", f"operations/{operation['name']}?{noise}")
    assert len((await api.answer("ImageList", "GET", f"images?{noise}"))["items"]) == 1
