"""The validator finds what it is there to find; on good answers the other tests try it."""

from typing import Any

import pytest
from tests.contract.answers import answer_problems, assert_answer
from tests.contract.validate import problems

KIND = {"kind": "compute#operation"}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({**KIND, "id": "7", "progress": 99, "status": "DONE"}, []),
        ({}, ["Operation.kind: None is not 'compute#operation'"]),
        ([], ["Operation: [] is no object"]),
        ({**KIND, "colour": "red"}, ["Operation.colour: not in the schema"]),
        ({**KIND, "id": 7}, ["Operation.id: 7 is no string"]),
        ({**KIND, "id": "-1"}, ["Operation.id: -1 is beyond uint64"]),
        ({**KIND, "id": "seven"}, ["Operation.id: 'seven' is no uint64"]),
        ({**KIND, "progress": "7"}, ["Operation.progress: '7' is no integer"]),
        ({**KIND, "progress": True}, ["Operation.progress: True is no integer"]),
        ({**KIND, "endTime": None}, ["Operation.endTime: None is no string"]),
        ({**KIND, "endTime": "2026-01-02T03:04:05"}, ["Operation.endTime: '2026-01-02T03:04:05' is no RFC 3339 time"]),
        ({**KIND, "status": "HALF"}, ["Operation.status: 'HALF' is none of DONE, PENDING, RUNNING"]),
        ({**KIND, "error": {"errors": [{"kode": "X"}]}}, ["Operation.error.errors[0].kode: not in the schema"]),
        (
            {**KIND, "error": {"errors": [{"errorDetails": [{"quotaInfo": {"dimensions": {"region": 1}}}]}]}},
            ["Operation.error.errors[0].errorDetails[0].quotaInfo.dimensions[region]: 1 is no string"],
        ),
    ],
)
def test_an_operation_that_is_none_is_told_by_path_and_reason(value: Any, expected: list[str]) -> None:
    assert expected == list(problems("Operation", value))


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"name": "an-image", "diskSizeGb": "10", "licenseCodes": ["7"], "labels": {"a": "b"}}, []),
        ({"name": "An_Image"}, ["Image.name: 'An_Image' does not match [a-z](?:[-a-z0-9]{0,61}[a-z0-9])?"]),
        ({"diskSizeGb": 10}, ["Image.diskSizeGb: 10 is no string"]),
        ({"params": {}}, ["Image.params: never part of an answer"]),
        ({"labels": {"a": 1}}, ["Image.labels[a]: 1 is no string"]),
        ({"labelFingerprint": "?"}, ["Image.labelFingerprint: '?' is not base64"]),
        ({"licenses": "one"}, ["Image.licenses: 'one' is no array"]),
        ({"satisfiesPzs": "yes"}, ["Image.satisfiesPzs: 'yes' is no boolean"]),
    ],
)
def test_an_image_that_is_none_is_told_by_path_and_reason(fields: dict[str, Any], expected: list[str]) -> None:
    assert expected == list(problems("Image", {"kind": "compute#image", **fields}))


IMAGE = {"kind": "compute#image", "name": "i"}


@pytest.mark.parametrize("version", ["v1", "beta"])
@pytest.mark.parametrize(
    ("method", "path", "value", "problem"),
    [
        ("GET", "images/i?alt=json", IMAGE, "Image.colour: not in the schema"),
        ("GET", "images/family/f", IMAGE, "Image.colour: not in the schema"),
        ("GET", "images", {"kind": "compute#imageList", "items": [IMAGE]}, "ImageList.colour: not in the schema"),
        ("POST", "images", KIND, "Operation.colour: not in the schema"),
        ("POST", "operations/o/cancel", KIND, "Operation.colour: not in the schema"),
        ("DELETE", "operations/o", {}, "{'colour': 'red'} is not empty"),
        ("GET", "images/i/getIamPolicy", {"etag": "AAAA"}, "Policy.colour: not in the schema"),
    ],
)
def test_an_answer_is_held_to_what_its_method_returns(
    version: str, method: str, path: str, value: Any, problem: str
) -> None:
    url = f"/compute/{version}/projects/p/global/{path}"
    assert_answer(method, url, value)
    assert [problem] == list(answer_problems(method, url, {**value, "colour": "red"}))


def test_a_field_of_beta_is_none_of_v1() -> None:
    image = {**IMAGE, "locked": True}
    assert_answer("GET", "/compute/beta/projects/p/global/images/i", image)
    found = answer_problems("GET", "/compute/v1/projects/p/global/images/i", image)
    assert list(found) == ["Image.locked: not in the schema"]


@pytest.mark.parametrize(
    ("method", "url"),
    [
        ("GET", "/compute/v1/projects/p/global/networks"),
        ("PUT", "/compute/v1/projects/p/global/images/i"),
        ("GET", "/compute/v2/projects/p"),
    ],
)
def test_what_no_method_stands_for_has_no_good_answer(method: str, url: str) -> None:
    found = list(answer_problems(method, url, {}))
    assert found == [f"{method} {url} was answered, but is no method of the discovery document"]
