"""Jobs and bodies: what comes in is understood or refused by the name of its field."""

import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from imageopsd.model.errors import InvalidRequest
from imageopsd.model.image import DeprecationStatus, Image, ImagePatch, RawDisk
from imageopsd.model.requests import InsertImage, PatchImage
from imageopsd.wire.compute import read_image, read_patch
from imageopsd.wire.jobs import MAX_JOB_BYTES, read_job

JOB_ID = "11111111-2222-3333-4444-555555555555"
BODY = {"name": "i", "rawDisk": {"source": "https://host/i.tar.gz"}}
INSERT = {"method": "images.insert", "project": "p", "body": BODY}
PATCH = {"method": "images.patch", "project": "p", "image": "i", "body": {"family": "f"}}


def read(value: Any) -> Any:
    return read_job(json.dumps(value).encode(), JOB_ID)


def test_an_insert_job_becomes_a_request_under_the_jobs_own_id() -> None:
    image = Image(name="i", raw_disk=RawDisk(source="https://host/i.tar.gz"))
    assert read(INSERT) == InsertImage(project="p", request_id=JOB_ID, image=image)


def test_a_patch_job_becomes_a_request() -> None:
    assert read(PATCH) == PatchImage(project="p", request_id=JOB_ID, image="i", patch=ImagePatch(family="f"))


def test_a_jobs_request_id_wins_over_its_own_id() -> None:
    own = "AAAAAAAA-2222-3333-4444-555555555555"
    assert read(INSERT | {"requestId": own}).request_id == own.lower()


def test_a_foreign_job_id_leads_to_the_same_request_id_every_time() -> None:
    body = json.dumps(INSERT).encode()
    first, second, other = (read_job(body, job_id).request_id for job_id in ("n-1", "n-1", "n-2"))
    assert first == second != other


def test_a_jobs_traceparent_is_kept_as_the_daemon_writes_it() -> None:
    trace = "0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331"
    assert read(INSERT | {"traceparent": f"cc-{trace}-ff-what-the-future-brings"}).traceparent == f"00-{trace}-03"


@pytest.mark.parametrize(
    ("job", "field", "said"),
    [
        (INSERT | {"traceparent": "00-00-00-01"}, "job.traceparent", "'00-00-00-01'. Expected a W3C traceparent"),
        (INSERT | {"traceparent": 1}, "job.traceparent", "Expected a string, got an integer"),
        ([], "job", "Expected an object"),
        ({}, "job.method", "Expected one of images.insert, images.patch"),
        (INSERT | {"method": "images.explode"}, "job.method", "'images.explode'. Expected one of images.insert"),
        ({"method": "images.insert", "body": BODY}, "job.project", "Expected a project id"),
        (INSERT | {"bdy": 1}, "job.bdy", "Did you mean 'body'?"),
        (INSERT | {"forceCreate": "yes"}, "job.forceCreate", "Expected a boolean, got a string"),
        (INSERT | {"image": "i"}, "job.image", "images.insert does not know it"),
        (INSERT | {"body": []}, "resource.name", "Required field"),
        (INSERT | {"body": "x"}, "job.body", "Expected an object"),
        (INSERT | {"body": BODY | {"nmae": "x"}}, "resource.nmae", "Did you mean 'name'?"),
        (INSERT | {"body": BODY | {"rawDisk": {"sorce": "x"}}}, "resource.rawDisk.sorce", "Did you mean 'source'?"),
        (INSERT | {"body": BODY | {"name": 3}}, "resource.name", "Expected a string, got an integer"),
        (INSERT | {"body": BODY | {"labels": {"a": 1}}}, "resource.labels.a", "Expected a string, got an integer"),
        (INSERT | {"body": BODY | {"diskSizeGb": "ten"}}, "resource.diskSizeGb", "Expected a 64-bit integer"),
        (INSERT | {"body": BODY | {"diskSizeGb": True}}, "resource.diskSizeGb", "Expected a 64-bit integer"),
        (INSERT | {"body": BODY | {"diskSizeGb": str(2**70)}}, "resource.diskSizeGb", "64-bit"),
        (INSERT | {"requestId": "00000000-0000-0000-0000-000000000000"}, "requestId", "not the zero UUID"),
        (PATCH | {"image": None}, "job.image", "Expected the name or id"),
        (PATCH | {"forceCreate": True}, "job.forceCreate", "images.patch does not know it"),
        (PATCH | {"body": {}}, "resource", "Expected at least one of deprecated, description, family"),
    ],
)
def test_a_bad_job_is_refused_by_field(job: Any, field: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        read(job)
    assert refused.value.field == field
    assert said in refused.value.message


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b"x" * (MAX_JOB_BYTES + 1)]
)
def test_what_is_no_json_is_refused_with_the_reason(data: bytes) -> None:
    with pytest.raises(InvalidRequest, match="'job'"):
        read_job(data, JOB_ID)


def test_empty_things_mean_absent_in_an_insert() -> None:
    body = BODY | {"description": None, "family": "", "labels": {}, "licenses": [], "guestOsFeatures": []}
    assert read(INSERT | {"body": body}) == read(INSERT)


def test_output_fields_of_an_insert_are_ignored() -> None:
    body = BODY | {"id": "7", "kind": "compute#image", "status": "READY", "deprecated": {"state": "DEPRECATED"}}
    assert read_image(body) == read_image(BODY)


def test_in_a_patch_an_empty_string_clears_and_other_empties_mean_absent() -> None:
    patch = read_patch({"family": "", "description": None, "labels": {}, "deprecated": {"state": "OBSOLETE"}})
    assert patch == ImagePatch(family="", deprecated=DeprecationStatus(state="OBSOLETE"))


def test_other_fields_of_an_image_in_a_patch_are_ignored() -> None:
    assert read_patch({"family": "f", "architecture": "ARM64", "name": "x"}) == ImagePatch(family="f")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.sampled_from(["method", "project", "body", "image", "requestId", "forceCreate"])
IMAGE_FIELDS = st.sampled_from([field.encode_name for field in msgspec.structs.fields(Image)])


@given(st.dictionaries(FIELDS, JSON), st.dictionaries(IMAGE_FIELDS, JSON))
def test_no_job_can_do_more_than_be_refused(outer: dict[str, Any], inner: dict[str, Any]) -> None:
    fields: list[str] = []
    for job in (
        outer,
        INSERT | outer,
        INSERT | {"body": inner},
        INSERT | {"body": BODY | inner},
        PATCH | {"body": inner},
    ):
        try:
            data = msgspec.json.encode(job)
        except ValueError:  # an integer beyond 64 bits has no JSON here
            continue
        try:
            request = read_job(data, JOB_ID)
        except InvalidRequest as error:
            fields.append(error.field)
        else:
            assert request.project == job["project"]
    assert all(re.match(r"(job|resource|requestId|project|image)\b", field) for field in fields)
