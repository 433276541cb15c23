"""The validator finds what it is there to find; on good answers the other tests try it."""

from typing import Any

import pytest
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
