"""What is beta's alone: where the discovery documents say it is, refused in v1's requests, left out of v1's answers."""

import json
from typing import Any

import pytest
from msgspec.structs import fields, replace
from tests.contract.validate import SCHEMAS, assert_valid

from imageopsd.model.errors import InvalidRequest
from imageopsd.model.image import DeprecationStatus, Image, Part, RolloutPolicy
from imageopsd.model.image_changes import patched
from imageopsd.model.time import Time
from imageopsd.wire.compute import as_json, read_deprecation, read_image, read_patch
from imageopsd.wire.jobs import read_job
from imageopsd.wire.versions import BETA, ONLY_BETA, V1, as_of

LINK = "https://www.googleapis.com/compute/{}/projects/p/global/images/i"
ROLLOUT = {
    "defaultRolloutTime": "2026-12-01T00:00:00Z",
    "locationRolloutPolicies": {"zones/us-central1-a": "2026-11-21T00:00:00Z"},
}
BODY = {"name": "i", "rawDisk": {"source": "https://h/i"}, "locked": True, "rolloutOverride": ROLLOUT}
DEPRECATED = {"state": "OBSOLETE", "obsolete": "2026-11-21T00:00:00Z", "stateOverride": ROLLOUT}


def without(body: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in body.items() if name not in names}


@pytest.mark.parametrize("kind", [Image, DeprecationStatus])
def test_what_only_beta_has_is_what_the_documents_say(kind: type[Part]) -> None:
    names = {field.name: field.encode_name for field in fields(kind)}
    mine = {names[name] for name in ONLY_BETA[kind]}
    assert mine == SCHEMAS[BETA][kind.__name__].keys() - SCHEMAS[V1][kind.__name__].keys()
    assert {field.encode_name for field in fields(RolloutPolicy)} == SCHEMAS[BETA]["RolloutPolicy"].keys()


def test_beta_shows_all_of_an_image_and_v1_what_v1_knows() -> None:
    made = replace(read_image(BODY), self_link=LINK.format(V1))
    image = patched(made, read_patch({"deprecated": DEPRECATED}), Time.current())
    beta, v1 = as_json(as_of(BETA, image)), as_json(as_of(V1, image))
    assert_valid("Image", beta, BETA)
    assert_valid("Image", v1)
    assert beta == {"kind": "compute#image", **BODY, "deprecated": DEPRECATED, "selfLink": LINK.format(BETA)}
    assert v1 == {
        **without(beta, "locked", "rolloutOverride"),
        "deprecated": without(DEPRECATED, "stateOverride"),
        "selfLink": LINK.format(V1),
    }


@pytest.mark.parametrize(
    ("read", "body", "field"),
    [
        (read_image, without(BODY, "rolloutOverride"), "resource.locked"),
        (read_image, without(BODY, "locked"), "resource.rolloutOverride"),
        (read_patch, {"family": "f", "locked": False}, "resource.locked"),
        (read_patch, {"deprecated": DEPRECATED}, "resource.deprecated.stateOverride"),
        (read_deprecation, DEPRECATED, "resource.stateOverride"),
    ],
)
def test_v1_does_not_know_what_only_beta_has(read: Any, body: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest, match=r"Unknown name .* Only beta has it") as refused:
        read(body, V1)
    assert refused.value.field == field
    assert read(body, BETA) == read(body)


def test_a_job_may_use_all_there_is() -> None:
    job = {"method": "images.insert", "project": "p", "body": BODY}
    assert read_job(json.dumps(job).encode(), "1").made == read_image(BODY)
